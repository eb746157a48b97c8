# What is tried again is what came: strings of any length, in databases of several encodings, and JSON that is left to the server's
# parser. TAP, because it needs a Redis, background workers and databases of their own.

use strict;
use warnings;
use Postpipe::Test;

my @encodings = qw(utf8 latin1 sql_ascii);
my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('again', redis => $redis, databases => join(', ', @encodings), conf => 'postpipe.max_retries = 0');

for my $db (@encodings)
{
	my $sql = sub { return $node->safe_psql($db, $_[0]) };
	$node->safe_psql('postgres', "CREATE DATABASE $db TEMPLATE template0 ENCODING '\U$db' LC_COLLATE 'C' LC_CTYPE 'C'");
	$sql->(q(CREATE EXTENSION postpipe; SELECT postpipe_drop_pipeline('posts')));
	$sql->(q(CREATE TABLE texts (id int PRIMARY KEY, a text, b text, n int, CONSTRAINT closed CHECK (id = 0))));
	$sql->("SELECT postpipe_create_pipeline('texts', 'stream:$db', target => 'texts', options => '{\"error_threshold\": 1}')");

	# Names and values of all lengths, so that they end at all places; objects with more names than our own parser takes.
	my $many = join ',', map { sprintf '"k%03d":%d', $_, $_ } 0 .. 299;
	my @entries = (
		[ a => 'passes', b => 'passes' ],
		map({ [ a => 'y' x $_, b => 'z' x ($_ % 5), n => $_ % 3 ? $_ : '' ] } 0 .. 20),
		map({ [ b => '', 'x' x ($_ + 1) => 'no column', a => 'y' x $_ ] } 0 .. 8),
		map({ [ data => qq({"id": ID, "n": 7, $many, "a": ") . 'x' x $_ . '"}', source => 'behind it' ] } 0 .. 16));
	$redis->pipeline(map { my $id = $_; [ 'XADD', "stream:$db", '*', id => $id, map { s/ID/$id/r } @{ $entries[$id] } ] } 0 .. $#entries);
	wait_sql($node, $db, 'SELECT entries_applied, entries_dead FROM postpipe_stats', "1|$#entries", "$db: all but one are dead");
	is($sql->('SELECT DISTINCT sqlstate FROM postpipe_dlq'), '23514', '... because of the constraint');

	$sql->('ALTER TABLE texts DROP CONSTRAINT closed');
	is($sql->(q(SELECT postpipe_replay('texts'))), "($#entries,$#entries,0)", '... and pass when they are tried again');
	my %rows = map { my @row = split /\|/, $_, -1; $row[0] => join '|', @row[ 1 .. 3 ] } split /\n/, $sql->('SELECT * FROM texts');
	my %wanted;
	for my $id (0 .. $#entries)
	{
		my %fields = @{ $entries[$id] };
		%fields = (a => $fields{data} =~ /"a": "(x*)"/ ? $1 : undef, n => 7) if $fields{data};
		$wanted{$id} = join '|', map { $_ // '' } @fields{qw(a b n)};
	}
	is_deeply(\%rows, \%wanted, '... as they came');
	pp_balanced($node, $db);
}
$node->stop;
done_testing();
