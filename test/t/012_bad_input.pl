# Entries of every wrong shape: each is a dead letter with its bytes and what is wrong, everything around it is in the table.
# TAP, because it needs bytes that only Redis, or a fake one, can deliver, background workers and the server's log.

use strict;
use warnings;
use Digest::MD5 qw(md5_hex);
use Postpipe::Test '!sql';

my $stream = 'stream:posts:parsed';
my $marker = 'SECRET';    # in every bad entry; must not be in the server's log

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('bad_input', redis => $redis, conf => 'postpipe.max_retries = 0');
sql('CREATE EXTENSION postpipe');
wait_sql($node, 'postgres', 'SELECT state FROM postpipe_stats', 'idle', 'the pipeline is there');

# --- The zoo. name => [SQLSTATE, what message, detail or column say, fields]
my @key = (channel_id => $marker, telegram_message_id => 1);
my $open = qq({"channel_id": "$marker", "telegram_message_id": 1, );
my @zoo = (
	# No event at all.
	[ 'data is an array', '22023', qr/"data" is not a JSON object.*array/s, data => qq(["$marker"]) ],
	[ 'data is an empty array', '22023', qr/"data" is not a JSON object.*array/s, data => '[]', note => $marker ],
	[ 'data is a string', '22023', qr/"data" is not a JSON object.*scalar/s, data => qq("$marker") ],
	[ 'data is a number', '22023', qr/"data" is not a JSON object.*scalar/s, data => '42' ],
	[ 'data is null', '22023', qr/"data" is not a JSON object.*scalar/s, data => 'null' ],
	[ 'payload is an array', '22023', qr/"payload" is not a JSON object.*array/s, payload => qq([{"channel_id": "$marker"}]) ],
	[ 'data is broken JSON', '22P02', qr/invalid input syntax for type json/, data => $open ],
	[ 'data has something behind it', '22P02', qr/invalid input syntax for type json/, data => qq({"text": "$marker"} x) ],
	[ 'data in Python', '22P02', qr/invalid input syntax for type json/, data => qq({'text': '$marker'}) ],
	[ 'data has NaN', '22P02', qr/invalid input syntax for type json/, data => $open . '"views_count": NaN}' ],
	[ 'data is empty', '22P02', qr/invalid input syntax for type json/, data => '' ],
	[ 'payload is empty', '22P02', qr/invalid input syntax for type json/, payload => '', note => $marker ],
	[ 'data is blank', '22P02', qr/invalid input syntax for type json/, data => '  ' ],
	[ 'data wins over payload, also when it is broken', '22P02', qr/invalid input syntax for type json/, payload => '{}', data => '{' ],
	[ 'a control character in a JSON string', '22P02', qr/invalid input syntax for type json/, data => $open . qq("text": "a\x01b"}) ],

	# Bytes and characters.
	[ '\u0000 in JSON', '22P05', qr/Unicode escape/, data => $open . qq("text": "a\\u0000b$marker"}) ],
	[ '\u0000 in a name in JSON', '22P05', qr/Unicode escape/, data => $open . qq("te\\u0000xt": "$marker"}) ],
	[ '\u0000 in JSON text of a flat field', '22P05', qr/Unicode escape/, @key, media_urls => qq(["\\u0000$marker"]) ],
	[ 'a lone high surrogate', '22P02', qr/surrogate/, data => $open . qq("text": "\\ud83d$marker"}) ],
	[ 'a lone low surrogate', '22P02', qr/surrogate/, data => $open . qq("text": "\\ude80$marker"}) ],
	[ 'surrogates as UTF-8', '22021', qr/not valid UTF-8.*"text"/s, @key, text => "$marker\xed\xa0\xbd\xed\xba\x80" ],
	[ 'a NUL in a value', '22021', qr/NUL.*"text"/s, @key, text => "a\0$marker" ],
	[ 'a NUL at the end of a value', '22021', qr/NUL.*"text"/s, @key, text => "$marker\0" ],
	[ 'nothing but a NUL', '22021', qr/NUL.*"text"/s, @key, text => "\0" ],
	[ 'a NUL in a name', '22021', qr/name of a field.*NUL/s, @key, "te\0xt$marker" => 'x' ],
	[ 'a NUL in JSON', '22021', qr/NUL.*"data"/s, data => $open . qq("text": "\0$marker"}) ],
	[ 'a NUL behind the JSON', '22021', qr/NUL.*"data"/s, data => $open . qq("text": "$marker"}\0) ],
	[ 'bad UTF-8 in a value', '22021', qr/not valid UTF-8.*"text"/s, @key, text => "$marker\xff\xfe" ],
	[ 'UTF-8 that is cut off', '22021', qr/not valid UTF-8.*"text"/s, @key, text => "$marker\xd0" ],
	[ 'an overlong form', '22021', qr/not valid UTF-8.*"text"/s, @key, text => "$marker\xc0\x80" ],
	[ 'beyond Unicode', '22021', qr/not valid UTF-8.*"text"/s, @key, text => "$marker\xf4\x90\x80\x80" ],
	[ 'bad UTF-8 in a name', '22021', qr/name of a field.*not valid UTF-8/s, @key, "$marker\xff" => 'x' ],
	[ 'Windows-1251 in JSON', '22021', qr/not valid UTF-8.*"data"/s, data => $open . qq("text": "\xcf\xf0\xe8\xe2\xe5\xf2 $marker"}) ],
	[ 'bad UTF-8 around JSON', '22021', qr/not valid UTF-8.*"source"/s, source => "$marker\xff", data => $open . '"text": "x"}' ],

	# Sizes and depths.
	[ '20,000 nested arrays', '54001', qr/stack depth|too many levels/, data => $open . '"media_urls": ' . '[' x 20000 . ']' x 20000 . '}' ],
	[ '20,000 nested objects', '54001', qr/stack depth|too many levels/, data => '{"a":' x 20000 . "\"$marker\"" . '}' x 20000 ],
	[ '20,000 arrays that are not closed', '54001', qr/stack depth|too many levels/, data => '[' x 20000 ],
	[ 'nested arrays as JSON text', '54001', qr/stack depth|too many levels/, @key, media_urls => '[' x 20000 . ']' x 20000 ],
	[ '5 MB in a bigint', '22P02', qr/bigint/, @key, views_count => $marker x 874000 ],
	[ '5 MB in a key', '54000', qr/index row/, channel_id => $marker x 874000, telegram_message_id => 1 ],
	[ '5 MB of text with a bad end', '22021', qr/not valid UTF-8/, @key, text => $marker x 874000 . "\xff" ],

	# Values of a type that does not fit.
	[ '1e999999', '22003', qr/overflow|out of range/, data => $open . '"views_count": 1e999999}' ],
	[ '1e999999 in a field that nobody reads', '22003', qr/overflow|out of range/, data => $open . '"unknown": 1e999999}' ],
	[ 'a number beyond bigint', '22003', qr/out of range for type bigint/, @key, views_count => '9223372036854775808' ],
	[ 'a number beyond bigint in JSON', '22003', qr/out of range for type bigint/, data => $open . '"views_count": 1e30}' ],
	[ 'a key beyond bigint', '22003', qr/out of range for type bigint/, channel_id => $marker, telegram_message_id => '99999999999999999999' ],
	[ 'a key that is no number', '22P02', qr/bigint/, channel_id => $marker, telegram_message_id => "$marker 12" ],
	[ 'a broken number', '22P02', qr/bigint/, @key, views_count => '1.5' ],
	[ 'a list as a number', '22P02', qr/bigint/, data => $open . qq("views_count": ["$marker"]}) ],
	[ 'an object as a boolean', '22P02', qr/boolean/, data => $open . qq("has_media": {"a": "$marker"}}) ],
	[ 'a boolean that is none', '22P02', qr/boolean/, @key, has_media => $marker ],
	[ 'a date that is none', '22007', qr/timestamp/, @key, posted_at => "$marker o'clock" ],
	[ 'February 30', '22008', qr/out of range/, @key, posted_at => '2025-02-30T00:00:00Z' ],
	[ 'month 13', '22008', qr/out of range/, @key, posted_at => '2025-13-01T00:00:00Z' ],
	[ 'hour 25', '22008', qr/out of range/, @key, occurred_at => '2025-01-01T25:00:00Z' ],
	[ 'a year far away', '22008', qr/out of range/, @key, posted_at => '294277-01-01T00:00:00Z' ],
	[ 'a zone that does not exist', '22023', qr/time zone/, @key, posted_at => "2025-01-01 00:00:00 Europe/$marker" ],
	[ 'seconds since 1970', '22008', qr/out of range/, @key, posted_at => '1761769585' ],
	[ 'media_urls that are no JSON', '22P02', qr/json/, @key, media_urls => "https://$marker" ],

	# No key.
	[ 'no channel', '23502', qr/null value in column "channel_id".*channel_id/s, telegram_message_id => 1, text => $marker ],
	[ "channel ''", '23502', qr/null value in column "channel_id"/, channel_id => '', telegram_message_id => 1, text => $marker ],
	[ 'no message', '23502', qr/null value in column "telegram_message_id"/, channel_id => $marker ],
	[ "message ''", '23502', qr/null value in column "telegram_message_id"/, @key[ 0, 1 ], telegram_message_id => '', tg_message_id => '' ],
	[ 'message null', '23502', qr/null value in column "telegram_message_id"/, data => qq({"channel_id": "$marker", "telegram_message_id": null}) ],
	[ 'an empty object', '23502', qr/null value in column "channel_id"/, data => '{}', note => $marker ],
	[ 'nothing known', '23502', qr/null value in column "channel_id"/, foo => $marker ],
	[ 'empty name and value', '23502', qr/null value in column "channel_id"/, '' => '' ]);

my $good = 0;
my $from = log_offset($node);
my $batch = in_one_batch(
	sub {
		for my $bad (@zoo)
		{
			good(2);
			my (undef, undef, undef, @fields) = @$bad;
			push @$bad, { id => $redis->xadd($stream, @fields), fields => \@fields };
		}
		good(5);
	});
is($batch, 1, 'the zoo and its neighbors are one batch');
my %dead;
for my $line (split /\n/, sql(q(SELECT id, sqlstate, encode(convert_to(concat_ws(' ', left(message, 200), left(detail, 300), column_name), 'UTF8'), 'base64') IS NOT NULL,
	translate(concat_ws(' ', left(message, 200), left(detail, 300), column_name), E'\n|', '  '), state, stream, size_bytes, attempts,
	(SELECT string_agg(md5(f), ' ' ORDER BY n) FROM unnest(fields) WITH ORDINALITY AS u (f, n)) FROM postpipe_dlq)))
{
	my ($id, @columns) = split /\|/, $line, -1;
	$dead{$id} = \@columns;
}
for my $bad (@zoo)
{
	my ($name, $sqlstate, $message) = @$bad;
	my ($id, $fields) = @{ $bad->[-1] }{qw(id fields)};
	my $row = $dead{$id} // [ ('') x 9 ];
	is($row->[0], $sqlstate, "$name: SQLSTATE");
	like($row->[2], $message, "$name: what is wrong");
	is($row->[7], join(' ', map { md5_hex($_) } @$fields), "$name: its bytes");
	my $bytes = 0;
	$bytes += length for @$fields;
	is(join('|', @$row[ 3 .. 6 ]), "dead|$stream|$bytes|1", "$name: state, stream, size, attempts");
}
is(scalar keys %dead, scalar @zoo, 'nothing else is dead');
check_good('the zoo');
is(sql(q(SELECT count(*) FROM postpipe_dlq WHERE message = '' OR message LIKE '%missing error text%')), '0', 'every dead letter says what is wrong');
is(sql(qq(SELECT count(*) FROM posts WHERE posts::text LIKE '%$marker%')), '0', 'nothing of a bad entry is in the table');
wait_sql($node, 'postgres', q(SELECT applied + dead = added, balance FROM postpipe_audit), 't|0', 'the audit balances');

# A bad entry alone, and again one that is well.
$redis->xadd($stream, data => qq(["$marker"]));
settle();
good(1);
settle();
check_good('a bad entry alone');

# Large and deep, and nothing wrong with it.
my $big = join '', map { md5_hex($_) } 1 .. 160_000;
$redis->xadd($stream, channel_id => 'big', telegram_message_id => 1, text => $big);
$redis->xadd($stream, data => qq({"channel_id": "big", "telegram_message_id": 2, "text": "$big"}));
$redis->xadd($stream, data => '{"channel_id": "big", "telegram_message_id": 3, "text": "deep", "unknown": ' . '[' x 1000 . ']' x 1000 . '}');
$redis->xadd($stream, channel_id => 'big', telegram_message_id => 4, text => 'wide', map { ("field $_" => $_) } 1 .. 5000);
settle();
is(sql(q(SELECT string_agg(CASE WHEN length(content) > 10 THEN md5(content) ELSE content END, ' ' ORDER BY telegram_message_id) FROM posts WHERE channel_id = 'big')),
	join(' ', md5_hex($big), md5_hex($big), 'deep', 'wide'), '5 MB of text, 1,000 levels, 5,000 fields: nothing wrong with them');

# --- 1000 entries with 1 poison: how often the statement ran. A sequence counts runs that are rolled back as well.
sql(<<'SQL');
CREATE SEQUENCE runs;
CREATE FUNCTION count_run() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM nextval(''runs''); RETURN NULL; END';
CREATE TRIGGER count_run BEFORE INSERT ON posts FOR EACH STATEMENT EXECUTE FUNCTION count_run();
SQL
for my $place (0, 637, 999)
{
	sql(q(SELECT setval('runs', 1, false)));
	my $had = sql('SELECT entries_dead FROM postpipe_stats');
	$batch = in_one_batch(sub { good($place); $redis->xadd($stream, @key, has_media => $marker); good(999 - $place) });
	is($batch, 1, "poison at $place of 1000: one batch");
	is(sql('SELECT entries_dead FROM postpipe_stats') - $had, 1, '... and one dead letter');
	my $runs = sql('SELECT last_value FROM runs');
	cmp_ok($runs, '<=', 21, '... in at most 21 runs of the statement');
	cmp_ok($runs, '>', 2, '... which were counted');
	check_good("poison at $place");
}

# --- 200 poison of 1000.
my $had = sql('SELECT entries_dead FROM postpipe_stats');
$batch = in_one_batch(
	sub {
		for my $i (1 .. 200)
		{
			$redis->xadd($stream, @key, has_media => "$marker $i");
			good(4);
		}
	});
is($batch, 1, '200 poison of 1000: one batch');
is(sql('SELECT entries_dead FROM postpipe_stats') - $had, 200, '... and 200 dead letters');
is(sql(q(SELECT count(*) FROM postpipe_dlq WHERE message LIKE '%boolean%' AND fields[5] = 'has_media' AND convert_from(fields[6], 'UTF8') LIKE 'SECRET %')), '200', '... each with its fields');
check_good('200 poison of 1000');

# --- The log.
is(join("\n", map { substr $_, 0, 200 } log_lines($node, qr/$marker/)), '', 'nothing of an entry is in the log of the server');
is(join("\n", map { substr $_, 0, 200 } log_lines($node, qr/\b(ERROR|FATAL|PANIC|WARNING):/, $from)), '', 'no dead letter is an error in the log');
is(scalar log_lines($node, qr/was terminated by signal/), 0, 'nothing has crashed');
$node->stop;

# --- What a Redis would not send, but something in its place: entries by a fake one, which keeps what is pending.
my @script = (
	[ entry('1-1', 'channel_id', 'fake', 'telegram_message_id', '1'), entry('1-2', 'channel_id', 'fake', $marker), entry('1-3'),
		entry('1-4', 'channel_id', 'fake', 'telegram_message_id', '4') ],
	[ entry('2-1', 'channel_id', 'fake', 'telegram_message_id', '5'), entry('2-2', 'channel_id', 'fake', 'telegram_message_id', \7),
		entry('2-3', 'channel_id', 'fake', 'telegram_message_id', '8', 'text', undef), entry('2-4', 'channel_id', 'fake', 'telegram_message_id', '9') ]);
my %pending;
my $length = map { @$_ } @script;
my $nil = "*-1\r\n";
my $facts = resp([ 'length', \$length, 'last-generated-id', '2-4', 'entries-added', \$length, 'first-entry', undef ]);
my $fake = Postpipe::Test::FakeRedis->new(
	replies => {
		'XINFO STREAM' => $facts,
		'XINFO GROUPS' => resp([ [ 'name', 'post_persist_workers', 'pending', \0, 'last-delivered-id', '0-0', 'entries-read', \0, 'lag', \$length ] ]),
		'XACK' => sub { my (undef, undef, undef, @ids) = @_; return ':' . (grep { delete $pending{$_} } @ids) . "\r\n" },
		'XREADGROUP' => sub {
			my $after = $_[-1];
			my ($block) = grep { uc $_[$_] eq 'BLOCK' } 0 .. $#_;
			my @entries = $after eq '>' ? @{ shift @script // [] } : map { $pending{$_} } grep { $_ gt $after } sort keys %pending;
			$pending{ $_->[0] } = $_ for @entries;
			return resp([ [ $stream, \@entries ] ]) if @entries || $after ne '>';
			return defined $block ? { after => $_[ $block + 1 ] / 1000, send => $nil } : $nil;
		}
	});
$node = pp_node('fake', redis => $fake, conf => 'postpipe.max_retries = 0');
sql('CREATE EXTENSION postpipe');
wait_sql($node, 'postgres', q(SELECT id, sqlstate, message, array_length(fields, 1) FROM postpipe_dlq WHERE id < '2-0' ORDER BY id),
	"1-2|22023|entry has a field without a value|3\n1-3|22023|entry has no fields|", 'an odd number of fields, and none at all');
wait_sql($node, 'postgres', q(SELECT string_agg(telegram_message_id::text, ' ' ORDER BY telegram_message_id) FROM posts WHERE telegram_message_id < 5), '1 4', '... with everything around them in the table');
wait_sql($node, 'postgres', q(SELECT string_agg(telegram_message_id::text, ' ' ORDER BY telegram_message_id) FROM posts WHERE telegram_message_id IN (5, 9)), '5 9',
	'fields that are no strings do not hold up what is around them', 10);
wait_sql($node, 'postgres', q(SELECT string_agg(id::text, ' ' ORDER BY id) FROM postpipe_dlq WHERE id > '2-0'), '2-2 2-3', '... and are dead letters');
is(join("\n", log_lines($node, qr/$marker/)), '', 'nothing of it is in the log');
$node->stop;
done_testing();

sub sql { my ($query) = @_; return $node->safe_psql('postgres', $query) }

# Publishes entries that are all well.
sub good
{
	my ($n) = @_;
	$redis->pipeline(map { [ 'XADD', $stream, '*', channel_id => 'good', telegram_message_id => ++$good, text => "good $good" ] } 1 .. $n) if $n > 0;
	return;
}

# They are all in the table, nothing is pending, and the pipeline goes on.
sub check_good
{
	my ($when) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is(sql(q(SELECT count(*), max(telegram_message_id), bool_and(content = 'good ' || telegram_message_id) FROM posts WHERE channel_id = 'good')), "$good|$good|t", "$when: everything around is in the table");
	wait_sql($node, 'postgres', q(SELECT state, workers FROM postpipe_stats), 'idle|1', "$when: the pipeline is well");
	return;
}

# Publishes while the pipeline is paused; returns how many batches it took.
sub in_one_batch
{
	my ($publish) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	sql(q(SELECT postpipe_pause('posts')));
	sql(q(SELECT postpipe_wait_state('posts', 'paused')));
	my $before = sql('SELECT batches FROM postpipe_stats');
	$publish->();
	sql(q(SELECT postpipe_resume('posts')));
	settle();
	return sql('SELECT batches FROM postpipe_stats') - $before;
}

# Every entry of the stream has been applied or found dead, and is acknowledged.
sub settle
{
	my $n = $redis->command('XLEN', $stream);
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_sql($node, 'postgres', 'SELECT entries_applied + entries_dead FROM postpipe_stats', $n, "all $n entries are settled");
	wait_for { pending($redis, $stream, 'post_persist_workers') == 0 } 'nothing is pending';
	return;
}

# RESP of nested arrays; a reference to a scalar is an integer.
sub resp
{
	my ($value) = @_;
	return "\$-1\r\n" unless defined $value;
	return join '', '*' . @$value . "\r\n", map { resp($_) } @$value if ref $value eq 'ARRAY';
	return ref $value ? ":$$value\r\n" : '$' . length($value) . "\r\n$value\r\n";
}

sub entry { my ($id, @fields) = @_; return [ $id, \@fields ] }
