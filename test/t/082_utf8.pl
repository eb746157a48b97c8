# What is UTF-8 and what is not: a value of any bytes is a row where PostgreSQL takes these bytes as UTF-8, else a dead letter
# (utf8.c looks at sixteen bytes at a time). TAP, because it needs a Redis and background workers.

use strict;
use warnings;
use Postpipe::Test;

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('utf8', redis => $redis, conf => 'postpipe.max_retries = 0');
sql(q(CREATE EXTENSION postpipe; SELECT postpipe_drop_pipeline('posts'); CREATE TABLE strings (id int PRIMARY KEY, v text NOT NULL)));

# Bytes at the borders of what each place of a character may have.
my @leads = map { chr } 0x01, 0x7f, 0x80, 0xbf, 0xc0, 0xc1, 0xc2, 0xd0, 0xdf, 0xe0, 0xe1, 0xed, 0xef, 0xf0, 0xf1, 0xf4, 0xf5, 0xff;
my @others = map { chr } 0x00, 0x41, 0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc0, 0xd0, 0xf0;
my @parts = ('', map { chr } 0 .. 255);
for my $lead (@leads)
{
	push @parts, map { $lead . $_ } @others;
	next if $lead lt "\xe0";
	for my $second (grep { $_ ge "\x7f" } @others)
	{
		push @parts, map { "$lead$second$_" } "\x41", "\x80", "\xbf", "\xd0";
		push @parts, map { ("$lead$second\x80$_", "$lead$second\xbf$_") } "\x41", "\x80", "\xc0" if $lead ge "\xf0";
	}
}

# Each of them at all places of a block, alone and with characters of one, two, three and four bytes around it.
my @around = ('', 'a', "\xd0\xbf", "\xe2\x80\x94", "\xf0\x9f\x9a\x80");
my @strings = map { my $part = $_; map { my $before = $around[$_ % @around]; my $after = $around[$_ * 7 % 11 % @around]; 'b' x $_ . $before . $part . $after . "\xd1\x8f" x ($_ * 5 % 13) } 0 .. 18 } @parts;
# ... and at the very end.
push @strings, map { my $part = $_; map { 'b' x $_ . $part, "\xd0\xbf" x $_ . $part } 3 .. 9, 15 .. 19 } map { $_, substr($_, 0, length($_) - 1) } grep { length($_) > 1 } @parts;
for (my $first = 0; $first < @strings; $first += 2000)
{
	$redis->pipeline(map { [ 'XADD', 'stream:strings', '*', id => $_, v => $strings[$_] ] } grep { $_ < @strings } $first .. $first + 1999);
}
sql(q(SELECT postpipe_create_pipeline('strings', 'stream:strings', target => 'strings', options => '{"error_threshold": 1}')));
wait_sql($node, 'postgres', 'SELECT entries_applied + entries_dead FROM postpipe_stats', scalar @strings, 'all entries are settled');

sql(<<'SQL');
CREATE FUNCTION is_utf8(bytea) RETURNS bool LANGUAGE plpgsql AS
$$ BEGIN PERFORM convert_from($1, 'UTF8'); RETURN true; EXCEPTION WHEN character_not_in_repertoire THEN RETURN false; END $$;
SQL
is(sql(q(SELECT count(*) FROM strings WHERE NOT is_utf8(convert_to(v, 'UTF8')))), 0, 'each row is one for PostgreSQL');
is(sql(q(SELECT count(*) FROM postpipe_dlq WHERE sqlstate <> '22021' OR is_utf8(fields[4]))), 0, 'each dead letter is none');
my %rows = map { split /\|/, $_, 2 } split /\n/, sql(q(SELECT id, encode(convert_to(v, 'UTF8'), 'hex') FROM strings));
is(scalar(grep { $rows{$_} ne unpack 'H*', $strings[$_] } keys %rows), 0, 'the rows are what was sent');
cmp_ok(keys %rows, '>', 1500, 'there are many rows');
cmp_ok(sql('SELECT count(*) FROM postpipe_dlq'), '>', 1500, '... and many dead letters');
pp_balanced($node);
$node->stop;
done_testing();
