# Sessions that change definitions, or use them, at the same time: who waits for another one goes on with what is there then,
# and nobody holds up what is not his. TAP, because sessions wait for each other, and because it needs a Redis.

use strict;
use warnings;
use Postpipe::Test;

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('at_once', redis => $redis, conf => "log_error_verbosity = terse\nlock_timeout = '60s'");
sql(<<'SQL');
CREATE EXTENSION postpipe;
CREATE ROLE app; CREATE ROLE other;
GRANT USAGE, CREATE ON SCHEMA public TO app, other;
GRANT EXECUTE ON FUNCTION postpipe_create_pipeline, postpipe_drop_pipeline, postpipe_ingest TO app, other;
CREATE TABLE t (id int PRIMARY KEY, v text);
CREATE TABLE u (id int PRIMARY KEY, v text);
ALTER TABLE t OWNER TO app;
SQL
my $one = pp_session($node);
my $locks = q(SELECT count(*) FROM pg_locks WHERE locktype = 'object' AND classid = 'postpipe_pipeline'::regclass AND pid = );

# --- Two create the same pipeline: the second one finds it.
for my $option ('false', 'true')
{
	$one->(q(BEGIN; SET ROLE app; SELECT postpipe_create_pipeline('cc', 'stream:one', statement => 'SELECT FROM postpipe_batch')));
	my $two = later("BEGIN; SET ROLE other; SELECT postpipe_create_pipeline('cc', 'stream:two', statement => 'SELECT FROM postpipe_batch', if_not_exists => $option) IS NULL; "
		  . "RESET ROLE; $locks pg_backend_pid()");
	$one->('COMMIT; RESET ROLE');
	like($two->(), $option eq 'true' ? qr/NOTICE:  pipeline "cc" already exists, skipping\nt\n0$/ : qr/ERROR:  pipeline "cc" already exists/, "if_not_exists => $option: it is there");
	is(sql(q(SELECT owner, stream FROM postpipe_pipelines WHERE pipeline = 'cc')), 'app|stream:one', '... as the first one has made it');
	sql(q(SELECT postpipe_drop_pipeline('cc')));
}

# --- What waited for a drop finds the pipeline gone, and leaves nothing for the next one of that name.
for my $call (
	q(postpipe_ingest('p', '{"id": 1}', '5-1')), q(postpipe_replay('p')), q(postpipe_discard('p')), q(postpipe_skip('p', '5-1')), q(postpipe_backfill('p')),
	q(postpipe_test('p')), q(postpipe_rewind('p')), q(postpipe_pause('p')), q(postpipe_resume('p')), q(postpipe_alter_pipeline('p', workers => 2)), q(postpipe_drop_pipeline('p')))
{
	make('p');
	$one->(q(BEGIN; SELECT postpipe_drop_pipeline('p')));
	my $two = later("SELECT $call");
	$one->('COMMIT');
	like($two->(), qr/ERROR:  pipeline "p" does not exist/, "$call after a drop");
}
is(sql('SELECT count(*) FROM postpipe_ingested'), 0, 'nothing is on record');
make('p');
$one->(q(BEGIN; SELECT postpipe_drop_pipeline('p')));
my $drop = later("BEGIN; SELECT postpipe_drop_pipeline('p', if_exists => true); $locks pg_backend_pid()");
$one->('COMMIT');
like($drop->(), qr/NOTICE:  pipeline "p" does not exist, skipping\nf\n0$/, 'two drops with if_exists');
make('p');
is(sql(q(SELECT postpipe_ingest('p', '{"id": 1}', '5-1'))), 1, 'the same ID for the next pipeline of that name');

# --- What waited for an alter goes by the new definition.
$one->(q(BEGIN; SELECT postpipe_alter_pipeline('p', target => 'u')));
my $ingest = later(q(SELECT postpipe_ingest('p', '{"id": 2}')));
$one->('COMMIT');
is($ingest->(), '1', 'ingest after an alter');
is(sql('SELECT (SELECT count(*) FROM t WHERE id = 2), (SELECT count(*) FROM u WHERE id = 2)'), '0|1', '... into the new target');
# Where it had asked another group by then, it says so.
make('q');
$one->(q(BEGIN; SELECT postpipe_drop_pipeline('q'); SELECT postpipe_create_pipeline('q', 'stream:other', target => 't')));
$redis->command('XGROUP', 'CREATE', 'stream:p', 'postpipe_q', '0', 'MKSTREAM');
my $skip = later(q(SELECT postpipe_skip('q', '5-1')));
$one->('COMMIT');
like($skip->(), qr/ERROR:  pipeline "q" was changed at the same time/, 'skip of an entry of another stream');
sql(q(SELECT postpipe_drop_pipeline('q')));
# With a snapshot from before it, too.
$one->('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM u');
sql(q(SELECT postpipe_drop_pipeline('p')));
like($one->(q(SELECT postpipe_ingest('p', '{"id": 3}', '5-2'))), qr/ERROR:  pipeline "p" does not exist/, 'ingest with an old snapshot');
$one->('ROLLBACK');

# --- The built-in pipeline has no row before it is changed: each combination of two that make one.
my $posts = q(SELECT enabled, enabled_reason, options FROM postpipe_pipelines WHERE pipeline = 'posts');
for my $case (
	[ q(postpipe_pause('posts', 'one')), q(postpipe_pause('posts', 'two')), qr/^$/, 'f|two|{}' ],
	[ q(postpipe_pause('posts', 'one')), q(postpipe_alter_pipeline('posts', options => '{"batch_size": 5}') IS NULL), qr/^f$/, 'f|one|{"batch_size": 5}' ],
	[ q(postpipe_alter_pipeline('posts', options => '{"batch_size": 5}')), q(postpipe_pause('posts', 'two')), qr/^$/, 'f|two|{"batch_size": 5}' ],
	[ q(postpipe_pause('posts', 'one')), q(postpipe_resume('posts')), qr/^$/, 't||{}' ],
	[ q(postpipe_resume('posts', take_over => true)), q(postpipe_pause('posts', 'two')), qr/^$/, 'f|two|{}' ],
	[ q(postpipe_pause('posts', 'one')), q(postpipe_drop_pipeline('posts')), qr/^t$/, '' ],
	[ q(postpipe_drop_pipeline('posts')), q(postpipe_pause('posts', 'two')), qr/ERROR:  pipeline "posts" does not exist/, '' ])
{
	my ($first, $second, $answer, $row) = @$case;
	sql('DELETE FROM postpipe_pipeline');
	$one->("BEGIN; SELECT $first");
	my $two = later("SELECT $second");
	$one->('COMMIT');
	like($two->(), $answer, "$first, then $second");
	is(sql($posts), $row, '... both count');
}
sql('DELETE FROM postpipe_pipeline');

# Neither does a pause wait for a batch, nor for an alter that waits for one; what is written is never what a snapshot lacks.
make('p');
my $batch = pp_session($node);
$batch->(q(BEGIN; SELECT postpipe_ingest('p', '{"id": 5}')));
my $alter = later(q(SELECT postpipe_alter_pipeline('p', workers => 2) IS NULL));
sql(q(SELECT postpipe_pause('p', 'meanwhile')));
$batch->('COMMIT');
$batch->(undef);
is($alter->(), 'f', 'an alter that waits for a batch');
is(sql(q(SELECT workers, enabled_reason FROM postpipe_pipelines WHERE pipeline = 'p')), '2|meanwhile', '... is not waited for by a pause');
for my $call (q(postpipe_pause('later')), q(postpipe_alter_pipeline('later', workers => 2)))
{
	$one->('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM u');
	make('later');
	like($one->("SELECT $call"), qr/ERROR:  could not serialize access/, "$call with a snapshot from before it was made");
	$one->('ROLLBACK');
	sql(q(SELECT postpipe_drop_pipeline('later')));
}

# --- Nor does what ends the ledger that is there go by an older one: a letter that it does not see would be forgotten by a drop, and
# kept by a rewind, which has its entry applied again.
sql(q(CREATE TABLE bounded (id int CHECK (id > 0)); SELECT postpipe_create_pipeline('seen', 'stream:seen', target => 'bounded', options => '{"max_retries": 0}')));
$redis->xadd('stream:seen', id => 1);
wait_sql($node, 'postgres', 'SELECT count(*) FROM bounded', 1, 'an entry is applied');
$one->('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM u');
$redis->xadd('stream:seen', id => 0);
wait_sql($node, 'postgres', q(SELECT count(*) FROM postpipe_dlq WHERE pipeline = 'seen'), 1, '... and another one is dead');
my $refused = qr/ERROR:  \w+\(\) must be called in a transaction with isolation level read committed/;
like($one->(q(SAVEPOINT s; SELECT postpipe_drop_pipeline('seen'); ROLLBACK TO s)), $refused, 'drop with a snapshot from before it failed');
sql(q(SELECT postpipe_pause('seen')));
is(sql(q(SELECT postpipe_wait_state('seen', 'paused'))), 't', 'a pause');
like($one->(q(SELECT postpipe_rewind('seen'))), $refused, '... and a rewind with that snapshot');
$one->('COMMIT');
like(error(q(SELECT postpipe_drop_pipeline('seen'))), qr/has 1 dead letters/, '... and without one');
is(sql(q(SELECT postpipe_rewind('seen'))), 2, '... both are read again');
is(sql(q(SELECT count(*) FROM postpipe_dlq WHERE pipeline = 'seen')), 0, '... and the letter is discarded');

# --- What is somebody else's is not locked.
sql(q(SELECT postpipe_create_pipeline('victim', 'stream:victim', target => 't', owner => 'app', enabled => false)));
my $pid = $one->('SELECT pg_backend_pid()') + 0;
like($one->(q(BEGIN; SET ROLE other; SELECT postpipe_create_pipeline('victim', 'x', statement => 'SELECT 1', if_not_exists => true))), qr/already exists, skipping/, 'a create that is skipped');
is(sql("$locks $pid"), 0, '... holds no lock');
$one->('ROLLBACK; BEGIN');
is($one->(q(SELECT postpipe_ingest('victim', '{"id": 4}'))), "1\n", 'a transaction that uses a pipeline');
like(error(q(SET ROLE other; SELECT postpipe_drop_pipeline('victim'))), qr/must be a member of role "app"/, '... is not waited for by one who may not drop it');
like(error(q(SET ROLE other; SELECT postpipe_create_pipeline('victim', 'x', statement => 'SELECT 1'))), qr/already exists/, '... nor by one who makes another one');
$one->('COMMIT');

# Two names with one hash would be one lock. hashtext() is the same hash, where the collation is deterministic.
my ($first, $second) = split /\|/, sql(q(SELECT min(n), max(n) FROM (SELECT 'n' || i AS n FROM generate_series(1, 400000) i) s GROUP BY hashtext(n) HAVING count(*) > 1 LIMIT 1));
make($first);
like(error("SET ROLE other; SELECT postpipe_create_pipeline('$second', 'x', statement => 'SELECT 1')"), qr/"$second" would have the lock of pipeline "$first".*HINT:  Choose another name/s,
	'a name with the hash of another one');
sql("SELECT postpipe_drop_pipeline('$first')");

$one->(undef);
$node->stop;
done_testing();

sub make { my ($name) = @_; return sql("SELECT postpipe_create_pipeline('$name', 'stream:p', target => 't', enabled => false)") }

# Starts statements in another session and waits until they wait for a lock; what is returned says how they ended.
sub later
{
	my ($statements) = @_;
	my $name = 'later ' . ++our $later;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $answer = pp_start($node, "SET application_name = '$name'", split /; /, $statements);
	wait_sql($node, 'postgres', "SELECT count(*) FROM pg_stat_activity WHERE application_name = '$name' AND wait_event_type = 'Lock'", 1, "it waits: $statements");
	return $answer;
}
