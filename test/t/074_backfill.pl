# postpipe_backfill(): a range of the stream through the statement, into the target or another table. TAP, because it needs a
# Redis with what others have acknowledged, and a pipeline that runs beside it.

use strict;
use warnings;
use Postpipe::Test;

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('backfill', redis => $redis, conf => 'postpipe.max_retries = 0');
sql('CREATE EXTENSION postpipe');
sql(q(SELECT postpipe_drop_pipeline('posts')));
sql(q(CREATE TABLE item (id int PRIMARY KEY, v text, n int); CREATE TABLE counted (id text)));

# --- What was in the stream before the group, which another reader has acknowledged.
my @ids = map { $redis->xadd('stream:item', id => $_, v => "v$_") } 1 .. 5;
$redis->command('XGROUP', 'CREATE', 'stream:item', 'postpipe_item', $ids[2]);
sql(q(SELECT postpipe_create_pipeline('item', 'stream:item', target => 'item')));
settled('item', '2');
is(backfill('item'), '5|0|5|0', 'what was before the group counts as settled');
is(backfill('item', "to_id => '$ids[2]', again => true"), '3|3|0|0', '... and is applied when that is asked for');
is(sql('SELECT string_agg(v, $$ $$ ORDER BY id) FROM item'), 'v1 v2 v3 v4 v5', 'all are there');
is(sql(q(SELECT applied, ingested FROM postpipe_audit WHERE pipeline = 'item')), '2|3', '... which the audit has as ingested');
sql(q(UPDATE item SET v = 'changed'));
is(backfill('item', "again => true, from_id => '$ids[3]'"), '2|2|0|0', 'again');
is(sql('SELECT string_agg(v, $$ $$ ORDER BY id) FROM item'), 'changed changed changed v4 v5', '... applies what is on record');

# --- What is unread or pending is the workers'.
sql(q(SELECT postpipe_pause('item')));
sql(q(SELECT postpipe_wait_state('item', 'paused')));
wait_for { $redis->cli('CLIENT', 'LIST') !~ /name=postpipe:\d+:\d+:item:1 / } 'nobody reads';
push(@ids, map { $redis->xadd('stream:item', id => $_) } 6 .. 9);
$redis->command('XREADGROUP', 'GROUP', 'postpipe_item', 'python', 'COUNT', 2, 'STREAMS', 'stream:item', '>');
$redis->command('XACK', 'stream:item', 'postpipe_item', $ids[5]);
my (undef, $out, $notice) = $node->psql('postgres', qq(SELECT * FROM postpipe_backfill('item', '$ids[5]')));
is($out, '4|1|0|0', 'what another one acknowledged');
like($notice, qr/NOTICE:  3 entries were left to the workers/, '... and no more');
is(sql('SELECT count(*) FROM item WHERE id > 5'), 1, '... is there');
is(backfill('item', qq('$ids[5]')), '4|0|1|0', '... once');
is(backfill('item', "'$ids[5]', again => true"), '4|1|0|0', '... nor again');
is($redis->command('XPENDING', 'stream:item', 'postpipe_item')->[0], 1, 'the group is as it was');
$redis->command('XACK', 'stream:item', 'postpipe_item', $ids[6]);
sql(q(SELECT postpipe_resume('item')));
wait_sql($node, 'postgres', 'SELECT count(*) FROM item', 8, 'the worker applies what is its own'); # not the one that python acknowledged

# --- What fails is said, counted, and not on record; in a transaction that fails nothing stays.
push(@ids, $redis->xadd('stream:item', id => 'bad'), $redis->xadd('stream:item', data => '[1]'));
wait_sql($node, 'postgres', q(SELECT count(*) FROM postpipe_dlq), 2, 'two entries are dead');
(undef, $out, $notice) = $node->psql('postgres', q(SELECT * FROM postpipe_backfill('item', again => true)));
is($out, '11|9|0|2', 'entries that fail');
like($notice, qr/WARNING:  entry $ids[9]: invalid input syntax for type integer: "bad".*WARNING:  entry $ids[10]: field "data" is not a JSON object/s, '... are named');
is(sql('SELECT count(*) FROM item'), 9, '... and the others are applied');
sql('DELETE FROM item WHERE id = 1');
sql(q(BEGIN; SELECT postpipe_backfill('item', again => true); ROLLBACK));
is(sql('SELECT count(*) FROM item'), 8, 'a rollback');

# --- Into a table of the same kind: all entries, each time; it need not have the same columns.
sql('CREATE TABLE shadow (id int PRIMARY KEY, v text)');
is(backfill('item', "into_table => 'shadow'"), '11|9|0|2', 'into another table');
is(backfill('item', "into_table => 'shadow', to_id => '$ids[1]'"), '2|2|0|0', '... which keeps no record');
is(sql('SELECT count(*), min(v) FROM shadow'), '9|v1', '... has the rows');
is(sql('SELECT count(*) FROM item'), 8, '... and the target has not');

# --- A statement of the user; an append-only target stays exact with a worker at work.
my $n = 2000;
sql(q(SELECT postpipe_create_pipeline('counted', 'stream:counted', statement => 'INSERT INTO counted SELECT event ->> $$id$$ FROM postpipe_batch')));
sql(q(SELECT postpipe_wait_state('counted', 'idle')));
sql(q(SELECT postpipe_pause('counted')));
sql(q(SELECT postpipe_wait_state('counted', 'paused')));
wait_for { $redis->cli('CLIENT', 'LIST') !~ /name=postpipe:\d+:\d+:counted:1 / } 'nobody reads';
$redis->pipeline(map { [ 'XADD', 'stream:counted', '*', 'id', $_ ] } 1 .. $n);
$redis->command('XREADGROUP', 'GROUP', 'postpipe_counted', 'python', 'NOACK', 'COUNT', $n / 2, 'STREAMS', 'stream:counted', '>');
sql(q(SELECT postpipe_resume('counted')));
my @sessions = map { pp_session($node) } 1 .. 2;
$_->(q(SELECT postpipe_backfill('counted'))) for @sessions;
$_->(undef) for @sessions;
settled('counted', $n);
is(backfill('counted'), "$n|0|$n|0", 'all is on record');
is(sql('SELECT count(*), count(DISTINCT id) FROM counted'), "$n|$n", '... once');
like(error(q(SELECT postpipe_backfill('counted', into_table => 'shadow'))), qr/has a statement of its own.*HINT/s, 'a statement names its tables');

# --- What a group of the pipeline's own has passed over is the workers', which find it; so is all that a group will deliver that
# is not there yet.
for my $workers (1, 3)
{
	my $p = "own_$workers";
	sql(qq(CREATE TABLE $p (id text); SELECT postpipe_create_pipeline('$p', 'stream:$p', workers => $workers, enabled => false, statement => 'INSERT INTO $p SELECT event ->> \$\$id\$\$ FROM postpipe_batch')));
	$redis->pipeline(map { [ 'XADD', "stream:$p", '*', 'id', $_ ] } 1 .. 50);
	left($p, '50|0|0|0', 50, 'there is no group yet');
	sql("SELECT postpipe_resume('$p')");
	settled($p, 50);
	pause($p);
	$redis->pipeline(map { [ 'XADD', "stream:$p", '*', 'id', $_ ] } 51 .. 70);
	$redis->command('XGROUP', 'SETID', "stream:$p", "postpipe_$p", '$');
	left($p, '70|0|50|0', 20, 'the group was moved forward');
	sql("SELECT postpipe_resume('$p')");
	settled($p, 70);
	my $session = pp_session($node);
	$session->("BEGIN; LOCK TABLE $p");
	$redis->transaction((map { [ 'XADD', "stream:$p", '*', 'id', $_ ] } 71 .. 80)); # one batch
	wait_for { pending($redis, "stream:$p", "postpipe_$p") == 10 } "$p: ten are in hand";
	pause($p);
	$session->('ROLLBACK');
	$session->(undef);
	$redis->command('XGROUP', 'DELCONSUMER', "stream:$p", "postpipe_$p", $_->[1]) for @{ $redis->command('XPENDING', "stream:$p", "postpipe_$p", '-', '+', 10) };
	left($p, '80|0|70|0', 10, 'what was pending was deleted with its consumer');
	# Somebody else comes and goes while nobody looks: what he has acknowledged is applied here, and not by a repair.
	$redis->pipeline(map { [ 'XADD', "stream:$p", '*', 'id', $_ ] } 81 .. 85);
	$redis->command('XREADGROUP', 'GROUP', "postpipe_$p", 'python', 'NOACK', 'STREAMS', "stream:$p", '>');
	is(backfill($p), '85|15|70|0', "$p: another consumer has come");
	$redis->command('XGROUP', 'DELCONSUMER', "stream:$p", "postpipe_$p", 'python');
	sql("SELECT postpipe_resume('$p')");
	$redis->xadd("stream:$p", id => 86);
	settled($p, 86);
	is(sql("SELECT count(DISTINCT id) FROM $p"), 86, "$p: each once");
	wait_sql($node, 'postgres', "SELECT balance FROM postpipe_audit WHERE pipeline = '$p' ORDER BY epoch DESC LIMIT 1", 0, '... and the audit balances');
}

# --- What is no event is not on record by a backfill, so it takes no record away: that of a call that was given its ID stays.
$redis->command('XGROUP', 'CREATE', 'stream:named', 'postpipe_named', 0, 'MKSTREAM');
my $named = $redis->xadd('stream:named', data => '[1]');
$redis->command('XREADGROUP', 'GROUP', 'postpipe_named', 'python', 'NOACK', 'STREAMS', 'stream:named', '>');
sql(q(CREATE TABLE named (id text); SELECT postpipe_create_pipeline('named', 'stream:named', target => 'named')));
wait_sql($node, 'postgres', q(SELECT state FROM postpipe_stats WHERE pipeline = 'named'), 'idle', 'a group in which another one has read what is no event');
is(sql("SELECT postpipe_ingest('named', '{\"id\": 1}', '$named')"), 1, 'it is mended by hand');
is(backfill('named'), '1|0|1|0', 'a backfill finds it on record');
is(sql("SELECT postpipe_ingest('named', '{\"id\": 1}', '$named')"), 0, '... and so does the same call again');
is(sql(q(SELECT ingested FROM postpipe_audit WHERE pipeline = 'named')), 1, '... and the audit');

# --- What cannot be.
like(error(q(SELECT postpipe_backfill('item', 'x'))), qr/invalid from_id "x"/, 'an ID that is none');
like(error(q(BEGIN READ ONLY; SELECT postpipe_backfill('item'))), qr/cannot execute postpipe_backfill\(\) in a read-only transaction/, 'read-only');
like(error(q(BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT postpipe_backfill('item'))), qr/isolation level read committed/, 'an old snapshot');
like(error(q(SELECT postpipe_backfill('item', into_table => 'pg_class'))), qr/ERROR/, 'a table that may not be written');
pp_balanced($node);
$node->stop;
done_testing();

sub backfill { my ($name, $arguments) = @_; return sql("SELECT * FROM postpipe_backfill('$name'" . ($arguments ? ", $arguments" : '') . ')') }

sub pause
{
	my ($name) = @_;
	sql("SELECT postpipe_pause('$name'); SELECT postpipe_wait_state('$name', 'paused')");
	return wait_for { $redis->cli('CLIENT', 'LIST') !~ /name=postpipe:\d+:\d+:$name:\d+ / } "$name: nobody reads";
}

# A backfill that leaves n entries to the workers.
sub left
{
	my ($name, $result, $n, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my (undef, $out, $err) = $node->psql('postgres', "SELECT * FROM postpipe_backfill('$name')");
	is($out, $result, "$name: $what");
	return like($err, qr/NOTICE:  $n entries were left to the workers/, '... and that is said');
}

sub settled
{
	my ($table, $n) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_sql($node, 'postgres', "SELECT count(*) FROM $table", $n, "$table: $n rows");
}
