# When too many entries fail, the pipeline stops and says why, instead of dead-lettering the world; it goes on by itself when
# the cause is gone. And how often a statement runs meanwhile.
# TAP, because it needs a Redis and background workers.

use strict;
use warnings;
use Postpipe::Test;
use Postpipe::Test::Fault;
use Postpipe::Test::Pipelines qw(while_paused wait_state);

my $id = 0;
my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('main', redis => $redis, conf => 'postpipe.max_retries = 0');
sql('CREATE EXTENSION postpipe');
sql(q(SELECT postpipe_drop_pipeline('posts')));
sql(<<'SQL');
CREATE SEQUENCE runs;
CREATE FUNCTION count_run() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM nextval(''public.runs''); RETURN NULL; END';
SQL

# --- All of 1000 are bad: it stops with a reason, and nothing is dead.
table('all');
while_paused('all', sub { add('all', 1000, 'bad') });
stopped('all', qr/^\d+ of the last \d+ entries failed, the last one with: new row for relation "all_rows" violates check constraint/);
is(letters('all'), 0, '... and nothing is dead-lettered');
is(pending($redis, 'stream:all', 'postpipe_all'), 1000, '... and nothing acknowledged');
is(scalar log_lines($node, qr/HINT:.*error_threshold/), 1, 'the log has a hint');

# While it is stopped, an attempt is a few runs of the statement.
my $count = q(SELECT last_value FROM runs);
sql(q(SELECT setval('runs', 1)));
my $attempts = q(SELECT next_attempt_at FROM postpipe_workers WHERE pipeline = 'all');
my $next = sql($attempts);
wait_sql($node, 'postgres', "SELECT next_attempt_at > '$next' FROM postpipe_workers WHERE pipeline = 'all'", 't', 'it tries again');
cmp_ok(sql($count), '<=', 40, 'an attempt takes few runs of the statement');
cmp_ok(sql($count), '>', 1, '... which were counted');
is(letters('all'), 0, '... and dead-letters nothing');
sql('ALTER TABLE all_rows DROP CONSTRAINT bad');
wait_sql($node, 'postgres', 'SELECT count(*) FROM all_rows', 1000, 'the table is mended: it goes on by itself');
done_with('all', '1000|0');

# --- In small batches, by several workers, and across restarts: no more are dead than may fail.
table('small', '"batch_size": 50', 4);
while_paused('small', sub { add('small', 1000, 'bad') });
my $before = 0;
for my $round (1 .. 3)
{
	wait_sql($node, 'postgres', "SELECT count(*) FROM postpipe_workers WHERE pipeline = 'small' AND reason_code = 'error_threshold' AND pid NOT IN ($before)", 4, 'small: each worker has stopped');
	$before = sql(q(SELECT string_agg(pid::text, ',') FROM postpipe_workers WHERE pipeline = 'small'));
	cmp_ok(letters('small'), '<=', 100, '... with 100 dead letters at most');
	$node->restart if $round == 1;
	sql(q(SELECT pg_terminate_backend(pid) FROM postpipe_workers WHERE pipeline = 'small')) if $round == 2;
}
sql('ALTER TABLE small_rows DROP CONSTRAINT bad');
wait_sql($node, 'postgres', q(SELECT applied + dead FROM postpipe_audit WHERE pipeline = 'small'), 1000, 'the table is mended: it goes on by itself');

# --- 60 of 100 is too few to say, 900 of 1000 is too much; when some are mended it goes on with the others.
table('most');
while_paused('most', sub { add('most', 60, 'bad'); add('most', 40, 'good') });
done_with('most', '40|60');
while_paused('most', sub { for (1 .. 100) { add('most', 9, 'bad'); add('most', 1, 'good') } });
stopped('most', qr/ entries failed/);
is(letters('most'), 60, '... and nothing more is dead-lettered');
sql(q(ALTER TABLE most_rows DROP CONSTRAINT bad, ADD CONSTRAINT bad CHECK (v <> 'bad' OR id % 4 > 0)));
wait_sql($node, 'postgres', q(SELECT applied + dead FROM postpipe_audit WHERE pipeline = 'most'), 1100, 'most are mended: it goes on');
done_with('most');

# --- A fifth of all may fail for ever, in one batch or in many.
table('some', '"batch_size": 100');
while_paused('some', sub { for (1 .. 500) { add('some', 4, 'good'); add('some', 1, 'bad') } });
done_with('some', '2000|500');

# --- What is rolled back for another reason was no failure: it is not counted once for each attempt.
table('rolled', '"error_threshold": 0.1');
my $fault = Postpipe::Test::Fault->new($node);
while_paused('rolled', sub { $fault->set('before_commit:error:2'); add('rolled', 90, 'bad'); add('rolled', 510, 'good') });
done_with('rolled', '510|90');
is($fault->fired, 2, 'rolled: two attempts failed at their end');
is(scalar log_lines($node, qr/pipeline "rolled", worker 1: failed/), 0, '... which did not stop it');

# --- The same for what is no event at all; pause and resume do not change that, the option does.
table('shape');
while_paused('shape', sub { $redis->pipeline(map { [ 'XADD', 'stream:shape', '*', 'data', '[]' ] } 1 .. 200) });
stopped('shape', qr/200 of the last 200 entries failed, the last one with: field "data" is not a JSON object/);
is(letters('shape'), 0, 'nothing of it is dead-lettered');
sql(q(SELECT postpipe_pause('shape')));
sql(q(SELECT postpipe_wait_state('shape', 'paused')));
sql(q(SELECT postpipe_resume('shape')));
stopped('shape', qr/200 of the last 200/);
sql(q(UPDATE postpipe_pipeline SET options = '{"error_threshold": 1}' WHERE pipeline = 'shape'));
done_with('shape', '0|200');

# --- One in 1000, at any place: at most 2 log2(1000) + 2 runs.
table('one');
my $settled = 0;
for my $place (0, 1, 499, 500, 998, 999)
{
	$settled += 1000;
	sql(q(SELECT setval('runs', 1)));
	while_paused('one', sub { add('one', $place, 'good'); add('one', 1, 'bad'); add('one', 999 - $place, 'good') });
	wait_sql($node, 'postgres', q(SELECT applied + dead, pending FROM postpipe_audit WHERE pipeline = 'one'), "$settled|0", "one at $place: settled");
	cmp_ok(sql($count) - 1, '<=', 21, '... in at most 21 runs of the statement');
}
done_with('one', '5994|6');

# --- Where the server can check values without an error, all that have the wrong type are found in one pass. Version 15 is given
# the function that it lacks.
my $old = sql('SHOW server_version_num') < 160000;
sql($old ? <<'SQL' : 'SELECT');
SET allow_system_table_mods = on;
CREATE FUNCTION pg_catalog.pg_input_is_valid(text, text) RETURNS boolean LANGUAGE plpgsql STRICT AS $$
BEGIN    -- a cast would cut a text that is too long
    EXECUTE format(CASE WHEN $2 LIKE '%char%' THEN 'SELECT x FROM pg_catalog.json_to_record(pg_catalog.json_build_object(''x'', %L::text)) AS t (x %s)' ELSE 'SELECT %L::%s' END, $1, $2);
    RETURN true;
EXCEPTION WHEN data_exception THEN RETURN false;
END $$;
SQL
table('types', '"max_retries": 0');
sql(q(ALTER TABLE types_rows ADD i int, ADD b boolean DEFAULT true, ADD t timestamptz, ADD p timestamp, ADD s varchar(3), ADD x numeric(3, 1), ADD a int[], ADD j jsonb, ADD e text));
my @bad = ([ i => 'one' ], [ i => '99999999999' ], [ b => 'perhaps' ], [ t => 'soon' ], [ p => '2025-02-30' ], [ s => 'four' ], [ x => '100' ], [ a => '{x}' ], [ j => '{' ]);
my @fine = ([ i => 1 ], [ i => '' ], [ b => 'yes' ], [ t => '2025-02-28' ], [ p => '2025-02-28T00:00:00Z' ], [ s => 'abc  ' ], [ x => '99.94' ], [ a => '[1,2]' ], [ a => '{1,2}' ], [ j => '[]' ], [ e => '' ]);
sql(q(SELECT setval('runs', 1)));
while_paused('types', sub {
	for my $round (1 .. 5)
	{
		$redis->pipeline(map { [ 'XADD', 'stream:types', '*', id => ++$id, @$_ ] } (@fine) x 9, @bad, @fine);
	}
});
done_with('types', '550|45');
cmp_ok(sql($count) - 1, '<=', 45 + 2, 'a run for each bad one, and two for all others');
cmp_ok(sql($count) - 1, '>=', 45, '... which were counted');
# They are found so whatever the first error of the batch is.
table('mixed', '"max_retries": 0');
sql('ALTER TABLE mixed_rows ADD i int');
sql(q(SELECT setval('runs', 1)));
while_paused('mixed', sub {
	add('mixed', 1, 'bad');
	$redis->pipeline(map { [ 'XADD', 'stream:mixed', '*', id => ++$id, i => 1 ], [ 'XADD', 'stream:mixed', '*', id => ++$id, i => 'x' ] } 1 .. 50);
	add('mixed', 100, 'good');
});
done_with('mixed', '150|51');
cmp_ok(sql($count) - 1, '<=', 51 + 2 * 8 + 2, 'a run for each bad one, and those that it takes to find the first');
# What cannot be checked so is found as before, and so is what fails for another reason.
while_paused('types', sub { add('types', 30, 'good'); $redis->xadd('stream:types', id => ++$id, a => '["x"]'); add('types', 1, 'bad'); $redis->xadd('stream:types', id => ++$id, i => 'x'); add('types', 30, 'good') });
done_with('types', '610|48');
# The check follows a type that the statement itself does not name.
sql('ALTER TABLE types_rows ADD q varchar(5)');
while_paused('types', sub { $redis->xadd('stream:types', id => ++$id, q => 'four'); $redis->xadd('stream:types', id => ++$id, q => 'longer') });
done_with('types', '611|49');
sql(q(UPDATE types_rows SET q = NULL));
my $behind = sql(q(SELECT pid FROM postpipe_workers WHERE pipeline = 'types'));
sql('ALTER TABLE types_rows ALTER q TYPE varchar(3)');
sql(q(SELECT setval('runs', 1)));
my $lock = pp_session($node);
$lock->('BEGIN; LOCK TABLE types_rows');
$redis->xadd('stream:types', id => ++$id);
wait_sql($node, 'postgres', q(SELECT count(*) FROM pg_locks WHERE relation = 'types_rows'::regclass AND NOT granted), 1, 'held up, so that the rest is one batch');
$redis->pipeline(map { [ 'XADD', 'stream:types', '*', id => ++$id, q => 'four' ], [ 'XADD', 'stream:types', '*', id => ++$id, q => 'two' ] } 1 .. 20);
$lock->('COMMIT');
$lock->(undef);
done_with('types', '632|69');
cmp_ok(sql($count) - 1, '<=', 20 + 1 + 2, 'a run for each bad one, and three for all others');
is(sql(q(SELECT pid FROM postpipe_workers WHERE pipeline = 'types')), $behind, '... by the same process');
is(scalar log_lines($node, qr/was terminated by signal|PANIC/), 0, 'nothing has crashed');
pp_balanced($node);
$node->stop;
done_testing();

sub letters { my ($name) = @_; return sql("SELECT count(*) FROM postpipe_dlq WHERE pipeline = '$name'") }

sub add
{
	my ($name, $n, $v) = @_;
	$redis->pipeline(map { [ 'XADD', "stream:$name", '*', id => ++$id, v => $v ] } 1 .. $n) if $n > 0;
	return;
}

# A table that takes no "bad", and a pipeline into it.
sub table
{
	my ($name, $options, $workers) = @_;
	$options //= '';
	$workers //= 1;
	sql("CREATE TABLE ${name}_rows (id int PRIMARY KEY, v text, CONSTRAINT bad CHECK (v <> 'bad'));
		CREATE TRIGGER count_run BEFORE INSERT ON ${name}_rows FOR EACH STATEMENT EXECUTE FUNCTION count_run();
		SELECT postpipe_create_pipeline('$name', 'stream:$name', target => '${name}_rows', workers => $workers, options => '{$options}')");
	wait_state($name);
	return;
}

sub stopped
{
	my ($name, $reason) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_sql($node, 'postgres', "SELECT state, reason_code FROM postpipe_stats WHERE pipeline = '$name'", 'failed|error_threshold', "$name: stopped");
	return like(sql("SELECT reason FROM postpipe_stats WHERE pipeline = '$name'"), $reason, '... with a reason');
}

# Everything is settled; applied and dead, if given, without which it may still be the moment before the last entries came.
sub done_with
{
	my ($name, $counts) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my ($columns, $expected) = $counts ? ('applied, dead, ', "$counts|") : ('', '');
	wait_sql($node, 'postgres', "SELECT ${columns}pending, lag, balance FROM postpipe_audit WHERE pipeline = '$name'", "${expected}0|0|0", "$name: ${expected}all is accounted for");
	return;
}
