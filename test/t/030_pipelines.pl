# Pipelines side by side, and everything that is done to them while they run: pause, resume, rewind, drop, options, settings.
# TAP, because it needs Redis streams, background workers, several databases and a server of few worker slots.

use strict;
use warnings;
use PostgreSQL::Test::Utils;
use Postpipe::Test;
use Postpipe::Test::Pipelines qw(pause wait_state);

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('pipelines', redis => $redis, databases => 'postgres, other');
$node->safe_psql('postgres', 'CREATE DATABASE other');
for my $db (qw(postgres other))
{
	$node->safe_psql($db, 'CREATE EXTENSION postpipe');
	$node->safe_psql($db, q(SELECT postpipe_drop_pipeline('posts')));
}

# --- Statements of all kinds, and a target, on one stream: each sees every entry once.
sql(<<'SQL');
CREATE TABLE target (id int PRIMARY KEY, v text);
CREATE TABLE counter (n bigint);
INSERT INTO counter VALUES (0);
CREATE TABLE merged (id int PRIMARY KEY, v text, n int);
CREATE TABLE first_table (id int PRIMARY KEY, v text);
CREATE TABLE second_table (id int, v text);
CREATE TABLE conflicts (id int PRIMARY KEY, v text);
SQL
my @kinds = qw(tgt counting merging modifying inserting selecting);
make('tgt', 'stream:kinds', target => 'target');
make('counting', 'stream:kinds', statement => 'UPDATE counter SET n = n + (SELECT count(*) FROM postpipe_batch)');
make('merging', 'stream:kinds', statement => <<'SQL');
MERGE INTO merged m USING (SELECT (event ->> 'id')::int AS id, event ->> 'v' AS v FROM postpipe_batch) b ON m.id = b.id
WHEN MATCHED THEN UPDATE SET v = b.v, n = m.n + 1 WHEN NOT MATCHED THEN INSERT VALUES (b.id, b.v, 1)
SQL
make('modifying', 'stream:kinds', statement => <<'SQL');
WITH new AS (INSERT INTO first_table SELECT (event ->> 'id')::int, event ->> 'v' FROM postpipe_batch ON CONFLICT (id) DO UPDATE SET v = excluded.v RETURNING *)
INSERT INTO second_table SELECT id, v FROM new
SQL
make('inserting', 'stream:kinds', statement => <<'SQL');
INSERT INTO conflicts AS c SELECT (event ->> 'id')::int, event ->> 'v' FROM postpipe_batch
ON CONFLICT (id) DO UPDATE SET v = excluded.v RETURNING c.xmax = 0 AS inserted
SQL
make('selecting', 'stream:kinds', statement => 'SELECT id, ord, stream, event, envelope, added_at FROM postpipe_batch ORDER BY ord');
add('stream:kinds', map { { id => $_, v => "v$_" } } 1 .. 20);
settled($_, 20) for @kinds;
# The same keys in a batch of their own: once more for each entry.
add('stream:kinds', map { { id => $_, v => "w$_" } } 1 .. 10);
settled($_, 30) for @kinds;
is(sql('SELECT count(*), max(v) FROM target'), '20|w9', 'target: a row for each key, the last entry wins');
is(sql('SELECT n FROM counter'), 30, 'SET n = n + 1: each entry counted once');
is(sql('SELECT count(*), sum(n), max(v) FROM merged'), '20|30|w9', 'MERGE');
is(sql('SELECT (SELECT count(*) FROM first_table), (SELECT count(*) FROM second_table)'), '20|30', 'a data-modifying CTE');
is(sql(q(SELECT count(*) FROM conflicts WHERE v ~ '^w')), 10, 'ON CONFLICT DO UPDATE');
is(stat_of('inserting', 'entries_conflicted'), 10, 'RETURNING inserted tells conflicts');
is(stat_of('tgt', 'entries_conflicted'), 10, '... also of a generated statement');
is(stat_of('counting', 'entries_conflicted'), 0, '... and without it there are none');
for my $name (@kinds)
{
	wait_for { pending($redis, 'stream:kinds', "postpipe_$name") == 0 } "$name: everything is acknowledged";
}
# One key several times in a batch, which an upsert and a MERGE refuse as a whole (21000): no entry is to blame, the last one wins.
sql("SELECT postpipe_pause('$_')") for @kinds;
wait_state($_, 'paused') for @kinds;
add('stream:kinds', map { { id => 1 + $_ % 3, v => sprintf('x%02d', $_) } } 1 .. 30);
sql("SELECT postpipe_resume('$_')") for @kinds;
settled($_, 60) for @kinds;
for my $table (qw(target merged conflicts first_table))
{
	is(sql("SELECT string_agg(v, ' ' ORDER BY id) FROM $table WHERE id <= 3"), 'x30 x28 x29', "$table: one key several times in a batch, the last entry wins");
}
is(sql('SELECT count(*) FROM postpipe_dlq'), 0, '... and nothing is dead');

# --- Two databases, one name: different tables, different streams; and two groups on one stream.
$node->safe_psql('other', 'CREATE TABLE target (id int PRIMARY KEY, v text)');
$node->safe_psql('other', q(SELECT postpipe_create_pipeline('tgt', 'stream:other', target => 'target')));
$node->safe_psql('other', q(SELECT postpipe_create_pipeline('kinds', 'stream:kinds', target => 'target')));
add('stream:other', { id => 100, v => 'other' });
wait_sql($node, 'other', q(SELECT count(*), max(id) FROM target), '21|100', 'the other database has its own pipelines');
is(sql('SELECT count(*) FROM target WHERE id = 100'), 0, '... and its stream does not reach this one');
is($node->safe_psql('other', 'SELECT string_agg(pipeline, $$ $$ ORDER BY pipeline) FROM postpipe_stats'), 'kinds tgt', 'postpipe_stats shows this database');
is(sql(q(SELECT count(*) FROM postpipe_workers WHERE pipeline = 'tgt')), 2, 'postpipe_workers shows all of them');
is(sql(q(SELECT count(DISTINCT consumer) FROM postpipe_workers WHERE pipeline = 'tgt')), 2, '... with consumers of their own');
$node->safe_psql('other', q(SELECT postpipe_drop_pipeline('tgt')));
wait_sql($node, 'postgres', q(SELECT count(*) FROM postpipe_workers WHERE pipeline = 'tgt'), '1', 'a drop there');
add('stream:kinds', { id => 21, v => 'x' });
settled('tgt', 61);
sql("SELECT postpipe_drop_pipeline('$_')") for @kinds;
$node->safe_psql('other', 'DROP EXTENSION postpipe');

# --- Three workers: each entry once, in a table that would take it twice.
sql('CREATE TABLE appended (entry text)');
make('three', 'stream:three', statement => 'INSERT INTO appended SELECT id FROM postpipe_batch', workers => 3, options => '{"batch_size": 20}');
wait_sql($node, 'postgres', q(SELECT workers, workers_wanted FROM postpipe_stats WHERE pipeline = 'three'), '3|3', 'three workers');
wait_for { consumers($redis, 'stream:three', 'postpipe_three') == 3 } 'three consumers';
add('stream:three', map { { id => $_ } } 1 .. 3000);
settled('three', 3000);
is(sql('SELECT count(*), count(DISTINCT entry) FROM appended'), '3000|3000', 'each entry is applied once');
is(sql(q(SELECT count(DISTINCT worker) > 1 FROM postpipe_ledger WHERE pipeline = 'three')), 't', 'by more than one worker');
wait_for { pending($redis, 'stream:three', 'postpipe_three') == 0 } 'three: everything is acknowledged';
is(consumers($redis, 'stream:three', 'postpipe_three'), 3, 'and still three consumers');
sql(q(SELECT postpipe_drop_pipeline('three')));

# --- Pause: "paused" means that no transaction of the pipeline is open any more.
sql('CREATE TABLE slow (entry text); CREATE TABLE witness (entry text)');
make('slow', 'stream:slow', statement => 'INSERT INTO slow SELECT id FROM postpipe_batch');
make('witness', 'stream:slow', statement => 'INSERT INTO witness SELECT id FROM postpipe_batch');
wait_state('slow', 'idle');
{
	my $session = pp_session($node);
	$session->('BEGIN; LOCK TABLE slow IN ACCESS EXCLUSIVE MODE');
	add('stream:slow', { n => 1 });
	wait_sql($node, 'postgres', q(SELECT count(*) FROM pg_stat_activity WHERE application_name = 'postpipe worker slow/1' AND wait_event_type = 'Lock'),
		'1', 'a batch waits for a lock');
	sql(q(SELECT postpipe_pause('slow', 'for a test')));
	is(sql(q(SELECT postpipe_wait_state('slow', 'paused', '300ms'))), 'f', 'not paused while its transaction is open');
	$session->('COMMIT');
	$session->(undef);
}
wait_state('slow', 'paused');
is(sql(q(SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'postpipe worker slow/%')), 0, 'paused: no process of it is there');
is(sql(q(SELECT state, reason_code, reason, workers FROM postpipe_stats WHERE pipeline = 'slow')), 'paused|paused|for a test|0', '... and the reason is shown');
is(sql('SELECT count(*) FROM slow'), 1, '... and the batch in hand was finished');
is(pending($redis, 'stream:slow', 'postpipe_slow'), 0, '... and acknowledged');
add('stream:slow', { n => 2 });
wait_sql($node, 'postgres', 'SELECT count(*) FROM witness', '2', 'another pipeline goes on');
is(sql('SELECT count(*) FROM slow'), 1, 'a paused one does not read');
sql(q(SELECT postpipe_resume('slow')));
wait_sql($node, 'postgres', 'SELECT count(*) FROM slow', '2', 'resume: what came meanwhile is applied');

# --- Changes that are rolled back have no effect.
wait_state('slow', 'idle');
sql(q(BEGIN; SELECT postpipe_pause('slow'); ROLLBACK));
sql(q(BEGIN; SELECT postpipe_drop_pipeline('slow'); ROLLBACK));
sql(q(BEGIN; SELECT postpipe_create_pipeline('never', 'stream:slow', statement => 'INSERT INTO slow SELECT id FROM postpipe_batch'); ROLLBACK));
sql(q(BEGIN; SAVEPOINT s; SELECT postpipe_pause('slow'); ROLLBACK TO s; COMMIT));
sql(q(BEGIN; DROP EXTENSION postpipe; ROLLBACK));
add('stream:slow', { n => 3 });
wait_sql($node, 'postgres', 'SELECT count(*) FROM witness', '3', 'the other one has the next entry');
wait_sql($node, 'postgres', 'SELECT count(*) FROM slow', '3', 'after what was rolled back the pipeline runs');
is(sql(q(SELECT count(*) FROM postpipe_stats WHERE pipeline = 'never')), 0, 'and none is there that was not committed');
unlike($redis->cli('XINFO', 'GROUPS', 'stream:slow'), qr/postpipe_never/, '... nor a group of it');
sql(q(BEGIN; SELECT postpipe_pause('slow'); SELECT postpipe_resume('slow'); COMMIT));
add('stream:slow', { n => 4 });
wait_sql($node, 'postgres', 'SELECT count(*) FROM slow', '4', 'paused and resumed in one transaction it runs');

# --- The switch: postpipe.enabled, by reload.
configure('postpipe.enabled', 'off');
wait_sql($node, 'postgres', q(SELECT DISTINCT state, reason_code, workers FROM postpipe_stats), 'stopped|disabled|0', 'enabled = off stops all');
is(sql(q(SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'postpipe worker')), 0, '... and no worker is there');
my ($last) = add('stream:slow', { n => 5 });
is(sql('SELECT count(*) FROM slow'), 4, 'nothing is read');
configure('postpipe.enabled', 'on');
wait_sql($node, 'postgres', 'SELECT count(*) FROM slow', '5', 'on: nothing is lost');
wait_sql($node, 'postgres', 'SELECT count(*) FROM witness', '5', '... by any');
sql("SELECT postpipe_drop_pipeline('$_')") for qw(slow witness);

# --- Rewind: applies again exactly the entries after to_id, or from to_time on.
my @ids = map { (1700000000000 + 1000 * $_) . '-' . $_ } 0 .. 4;
sql('CREATE TABLE hits (entry text PRIMARY KEY, n int)');
$redis->xadd('stream:rewind', { id => $_ }, n => 1) for @ids;
make('again', 'stream:rewind', statement => <<'SQL');
INSERT INTO hits AS h SELECT id, 1 FROM postpipe_batch ON CONFLICT (entry) DO UPDATE SET n = h.n + 1
SQL
hits_are('1 1 1 1 1', 'each entry is applied once');
is(rewind("to_id => '$ids[2]'"), 2, 'rewind says how many will be read');
hits_are('1 1 1 2 2', 'to_id: those after it are applied again');
is(rewind(q(to_time => to_timestamp(1700000001))), 4, 'rewind to a time');
hits_are('1 2 2 3 3', 'to_time: those of that time and later are applied again');
is(rewind(q(to_time => to_timestamp(1700000001.001))), 3, '... and just after it');
hits_are('1 2 3 4 4', '... one less');
is(rewind('to_id => NULL'), 5, 'rewind to the beginning');
hits_are('2 3 4 5 5', '... applies all again');
is(rewind("to_id => '$ids[4]'"), 0, 'rewind to the last entry');
# What follows shows that nothing came again.
my $new = $redis->xadd('stream:rewind', { id => '1700000005000-5' }, n => 1);
hits_are('2 3 4 5 5 1', '... applies none again');
# A restart of the workers does not repeat it.
configure('postpipe.enabled', 'off');
wait_state('again', 'stopped');
configure('postpipe.enabled', 'on');
push @ids, $new, $redis->xadd('stream:rewind', { id => '1700000006000-6' }, n => 1);
hits_are('2 3 4 5 5 1 1', 'a restart after a rewind applies nothing again');

# From here on it is counted from zero, and what follows an entry in the stream shows that the entry did not come again.
# Rolled back: Redis has been told already, so the entries come again; the ledger knows them.
pause('again');
sql('UPDATE hits SET n = 0');
sql(q(BEGIN; SELECT postpipe_rewind('again'); ROLLBACK));
after_this('0 0 0 0 0 0 0 1', 'a rewind that is rolled back applies nothing again');

# An entry whose XACK got lost before the rewind, and which lies before to_id: XCLAIM FORCE makes it pending again.
pause('again');
sql('UPDATE hits SET n = 0');
my ($consumer) = $redis->cli('XINFO', 'CONSUMERS', 'stream:rewind', 'postpipe_again') =~ /(postpipe:\S+)/;
$redis->command('XCLAIM', 'stream:rewind', 'postpipe_again', $consumer, 0, $ids[0], 'FORCE', 'JUSTID');
is(pending($redis, 'stream:rewind', 'postpipe_again'), 1, 'an entry from before is pending');
is(sql("SELECT postpipe_rewind('again', to_id => '$ids[6]')"), 1, 'rewind to an entry after it');
after_this('0 0 0 0 0 0 0 1 1', 'an unacknowledged entry before to_id is not applied again');
is($node->psql('postgres', q(SELECT postpipe_rewind('again'))), 3, 'a running pipeline is not rewound');

# --- Drop: the group stays, unless asked for; a new pipeline takes a group up where it is.
my $groups = sub { $redis->cli('XINFO', 'GROUPS', 'stream:rewind') };
sql(q(SELECT postpipe_drop_pipeline('again')));
wait_sql($node, 'postgres', q(SELECT count(*) FROM postpipe_workers WHERE pipeline = 'again'), '0', 'drop ends the worker');
is(sql(q(SELECT (SELECT count(*) FROM postpipe_ledger) + (SELECT count(*) FROM postpipe_epoch WHERE pipeline = 'again'))), 0, 'drop forgets the ledger');
like($groups->(), qr/postpipe_again/, 'drop keeps the group');
make('again', 'stream:rewind', statement => 'INSERT INTO hits AS h SELECT id, 1 FROM postpipe_batch ON CONFLICT (entry) DO UPDATE SET n = h.n + 1');
sql('UPDATE hits SET n = 0');
after_this('0 0 0 0 0 0 0 0 0 1', 'a group that is there is adopted: what it acknowledged does not come again');
pause('again');
is(sql(q(SELECT postpipe_drop_pipeline('again', destroy_group => true))), 't', 'drop with destroy_group');
unlike($groups->(), qr/postpipe_again/, '... and the group is gone');
make('running', 'stream:rewind', statement => 'SELECT * FROM postpipe_batch');
settled('running', scalar @ids);
wait_state('running', 'idle');
sql(q(SELECT postpipe_drop_pipeline('running', destroy_group => true)));
wait_sql($node, 'postgres', q(SELECT count(*) FROM postpipe_workers WHERE pipeline = 'running'), '0', 'a running pipeline is dropped with its group');
unlike($groups->(), qr/postpipe_running/, '... which does not come back');
make('no_stream', 'stream:no', statement => 'SELECT * FROM postpipe_batch');
wait_state('no_stream', 'idle');
pause('no_stream');
$redis->command('DEL', 'stream:no');
is(sql(q(SELECT postpipe_drop_pipeline('no_stream', destroy_group => true))), 't', 'a stream that is gone has no group to destroy');

# --- Dropped by its own batch, which goes on: what it leaves is not the next pipeline's.
sql(<<'SQL');
CREATE TABLE last_one (id int PRIMARY KEY);
CREATE FUNCTION drop_it() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM public.postpipe_drop_pipeline('last_one', discard_dead => true); RETURN NULL; END $$;
CREATE TRIGGER drop_it AFTER INSERT ON last_one FOR EACH ROW WHEN (NEW.id = 2) EXECUTE FUNCTION drop_it();
SQL
make('last_one', 'stream:last', target => 'last_one');
wait_state('last_one', 'idle');
add('stream:last', { id => 1 }, { id => 2 }, { id => 'none' });
wait_sql($node, 'postgres', 'SELECT count(*) FROM last_one', '2', 'a batch drops its own pipeline');
is(sql(q(SELECT count(*) FROM postpipe_stats WHERE pipeline = 'last_one')), 0, '... which is gone');
is(sql(q(SELECT count(*) > 0 FROM postpipe_ledger WHERE pipeline = 'last_one')), 't', '... and puts on record what it does');
make('last_one', 'stream:last', target => 'last_one', enabled => \'false');
is(sql(q(SELECT (SELECT count(*) FROM postpipe_dlq WHERE pipeline = 'last_one'), (SELECT count(*) FROM postpipe_ledger WHERE pipeline = 'last_one'))), '0|0', 'the next one begins with nothing');
is(sql(q(SELECT postpipe_drop_pipeline('last_one'))), 't', '... and has no dead letters');

# --- With the setting of a replication tool, too, the supervisor is told.
sql('CREATE TABLE replica (id int PRIMARY KEY)');
sql(q(SET session_replication_role = replica; SELECT postpipe_create_pipeline('replica', 'stream:replica', target => 'replica')));
wait_state('replica', 'idle');
sql(q(SELECT postpipe_drop_pipeline('replica')));

# --- Where a group begins; created paused.
for my $case (
	[ 'latest', "start_id => '\$'", 0 ], [ 'earliest', "start_id => '0'", 10 ], [ 'after', "start_id => '$ids[7]'", 2 ],
	[ 'from_time', 'start_time => to_timestamp(1700000007)', 3 ], [ 'after_time', 'start_time => to_timestamp(1700000007.001)', 2 ],
	[ 'future', q(start_time => '2100-01-01'), 0 ])
{
	my ($name, $start, $entries) = @$case;
	sql("SELECT postpipe_create_pipeline('$name', 'stream:rewind', statement => 'SELECT FROM postpipe_batch', $start)");
	wait_state($name, 'idle');
	settled($name, $entries);
}
$redis->xadd('stream:rewind', { id => '1700000010000-10' }, n => 1);
settled($_->[0], $_->[1]) for [ 'latest', 1 ], [ 'earliest', 11 ], [ 'after', 3 ], [ 'from_time', 4 ], [ 'after_time', 3 ];
# A stream's IDs may run behind the clock; what is older than start_time is not read.
is(stat_of('future', 'entries_read'), 0, 'nothing before start_time is read');
sql("SELECT postpipe_drop_pipeline('$_')") for qw(latest earliest after from_time after_time future);

make('asleep', 'stream:rewind', statement => 'INSERT INTO sizes SELECT count(*) FROM postpipe_batch', enabled => \'false',
	options => '{"batch_size": 4}', before => 'CREATE TABLE sizes (n int)');
wait_state('asleep', 'paused');
unlike($groups->(), qr/postpipe_asleep/, 'created paused: no group is made');
is(sql('SELECT count(*) FROM sizes'), 0, '... and nothing was written when the statement was tried');
is(sql(q(SELECT postpipe_create_pipeline('asleep', 'stream:x', statement => 'SELECT 1', if_not_exists => true) IS NULL)), 't', 'if_not_exists leaves it');
sql('TRUNCATE sizes');
sql(q(SELECT postpipe_resume('asleep')));
settled('asleep', 11);
is(sql('SELECT sum(n), max(n) FROM sizes'), '11|4', 'batch_size bounds a batch');
sql(q(SELECT postpipe_drop_pipeline('asleep')));

# --- Small and large batches through one worker: two plans, one result.
sql('CREATE TABLE known (id int PRIMARY KEY, v text); INSERT INTO known SELECT g, g FROM generate_series(1, 20000) g; ANALYZE known');
make('plans', 'stream:plans', statement => <<'SQL');
WITH s AS (INSERT INTO sizes SELECT count(*) FROM postpipe_batch)
MERGE INTO known k USING (SELECT (event ->> 'id')::int AS id FROM postpipe_batch) b ON k.id = b.id
WHEN MATCHED THEN UPDATE SET v = k.v || '+' WHEN NOT MATCHED THEN INSERT VALUES (b.id, 'new')
SQL
wait_state('plans', 'idle');
sql('TRUNCATE sizes');
for my $round (1 .. 3)
{
	{
		my $session = pp_session($node);
		$session->('BEGIN; LOCK TABLE sizes IN ACCESS EXCLUSIVE MODE');
		add('stream:plans', { id => $round });
		wait_sql($node, 'postgres', q(SELECT count(*) FROM pg_stat_activity WHERE application_name = 'postpipe worker plans/1' AND wait_event_type = 'Lock'),
			'1', "round $round: a small batch waits");
		add('stream:plans', map { { id => 19000 + $_ } } 1 .. 1500);
		$session->('COMMIT');
		$session->(undef);
	}
	settled('plans', 1501 * $round);
}
is(sql('SELECT sum(n), min(n), max(n) > 100 FROM sizes'), '4503|1|t', 'there were small and large batches');
is(sql(q(SELECT count(*), count(*) FILTER (WHERE v LIKE '%+'), count(*) FILTER (WHERE v = 'new++') FROM known)), '20500|1503|500', 'and all is as it should be');
sql(q(SELECT postpipe_drop_pipeline('plans')));

# --- on_conflict nothing: the row stays, and the entries that met it are told; not where a trigger may have left them out.
sql('CREATE TABLE stays (id int PRIMARY KEY, v text); CREATE TABLE hides (LIKE stays INCLUDING ALL)');
sql(q(CREATE FUNCTION hide() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN CASE WHEN NEW.id < 5 THEN NEW END; END';
	CREATE TRIGGER hide BEFORE INSERT ON hides FOR EACH ROW EXECUTE FUNCTION hide()));
make($_, 'stream:stays', target => $_, on_conflict => 'nothing') for qw(stays hides);
add('stream:stays', map { { id => $_, v => 'first' } } 1 .. 9);
settled($_, 9) for qw(stays hides);
add('stream:stays', map { { id => $_ % 10, v => 'later' } } 5 .. 14);
settled($_, 19) for qw(stays hides);
is(sql(q(SELECT string_agg(id::text, ' ' ORDER BY id) FILTER (WHERE v = 'later'), count(*) FROM stays)), '0|10', 'on_conflict nothing: the rows stay');
is(stat_of('stays', 'entries_conflicted'), 9, '... and conflicts are told');
is(stat_of('hides', 'entries_conflicted'), 0, '... but not where a trigger leaves rows out');
sql("SELECT postpipe_drop_pipeline('$_')") for qw(stays hides);

# --- event_types: the others are counted as filtered.
sql('CREATE TABLE typed (entry text, kind text)');
make('typed', 'stream:typed', statement => q(INSERT INTO typed SELECT id, event ->> 'event_type' FROM postpipe_batch), event_types => '{made,changed}');
add('stream:typed', map { { event_type => $_ } } qw(made removed changed made other), '');
wait_sql($node, 'postgres', q(SELECT entries_applied + entries_filtered FROM postpipe_stats WHERE pipeline = 'typed'), '6', 'all are settled');
is(sql(q(SELECT string_agg(kind, ' ' ORDER BY entry) FROM typed WHERE kind <> '')), 'made changed made', 'event_types: these are applied');
is(stat_of('typed', 'entries_filtered') + sql(q(SELECT count(*) FROM typed)), 6, '... the others are filtered');
wait_for { pending($redis, 'stream:typed', 'postpipe_typed') == 0 } '... and acknowledged';
wait_sql($node, 'postgres', q(SELECT balance FROM postpipe_audit WHERE pipeline = 'typed'), '0', '... and accounted for');
sql(q(SELECT postpipe_drop_pipeline('typed')));

# --- CREATE EXTENSION in a database that is not listed says which command is missing.
$node->safe_psql('postgres', 'CREATE DATABASE unlisted');
my $stderr = error('CREATE EXTENSION postpipe', 'unlisted');
like($stderr, qr/WARNING:  database "unlisted" is not listed in postpipe\.databases/, 'a warning in a database that is not listed');
like($stderr, qr/ALTER SYSTEM SET postpipe\.databases = 'postgres, other, unlisted'; SELECT pg_reload_conf\(\);/, '... with the command');
my ($command) = $stderr =~ /Run (ALTER SYSTEM SET .*?;)/;
$node->safe_psql('postgres', $command);
$node->reload;
wait_sql($node, 'postgres', q(SELECT count(*) FROM postpipe_workers WHERE datname = 'unlisted' AND backend_type = 'supervisor'), '1', '... which works');
# --- Fewer workers than before: what was pending for those that are gone is taken over, more than a page of it, and applied once.
sql('CREATE TABLE fewer (entry text, n int)');
my %fewer = (consumer_group => 'fewer', workers => 2, statement => q(INSERT INTO fewer SELECT id::text, (event ->> 'n')::int FROM postpipe_batch));
make('fewer', 'stream:fewer', %fewer);
wait_sql($node, 'postgres', q(SELECT count(*) FROM postpipe_workers WHERE pipeline = 'fewer' AND state = 'idle'), '2', 'two workers run');
my $second = sql(q(SELECT consumer FROM postpipe_workers WHERE pipeline = 'fewer' AND worker = 2));
$redis->xadd('stream:fewer', n => 0);
wait_sql($node, 'postgres', 'SELECT count(*) FROM fewer', '1', 'and read');
sql(q(SELECT postpipe_pause('fewer')));
wait_state('fewer', 'paused');
$redis->pipeline(map { [ 'XADD', 'stream:fewer', '*', 'n', $_ ] } 1 .. 1500);
$redis->command('XREADGROUP', 'GROUP', 'fewer', $second, 'COUNT', 1500, 'STREAMS', 'stream:fewer', '>');
is(pending($redis, 'stream:fewer', 'fewer'), 1500, 'the second worker has received what it does not acknowledge');
sql(q(SELECT postpipe_drop_pipeline('fewer')));
make('fewer', 'stream:fewer', %fewer, workers => 1);
wait_sql($node, 'postgres', 'SELECT count(*), count(DISTINCT n) FROM fewer', '1501|1501', 'the only worker applies it, once');
wait_for { pending($redis, 'stream:fewer', 'fewer') == 0 } 'and acknowledges it';
sql(q(SELECT postpipe_drop_pipeline('fewer')));

$node->stop;


# --- No free worker slot: the pipeline waits, says so, and runs when there is one. Two slots beside our own two processes and the server's one.
my $small = pp_node('small', redis => $redis, conf => "max_worker_processes = 5\n");
my $from = log_offset($small);
$small->safe_psql('postgres', 'CREATE EXTENSION postpipe');
$small->safe_psql('postgres', q(SELECT postpipe_drop_pipeline('posts')));
wait_sql($small, 'postgres', q(SELECT count(*) FROM postpipe_workers WHERE backend_type = 'worker'), '0', 'two slots are free');
for my $n (1 .. 3)
{
	$small->safe_psql('postgres', "SELECT postpipe_create_pipeline('s$n', 'stream:small$n', statement => 'SELECT FROM postpipe_batch')");
	wait_sql($small, 'postgres', "SELECT state FROM postpipe_stats WHERE pipeline = 's$n'", $n < 3 ? 'idle' : 'waiting', "pipeline $n of three");
}
is($small->safe_psql('postgres', q(SELECT reason_code FROM postpipe_stats WHERE pipeline = 's3')), 'no_slot', 'the reason is no_slot');
like($small->safe_psql('postgres', q(SELECT reason FROM postpipe_stats WHERE pipeline = 's3')), qr/max_worker_processes/, '... and names the setting');
is(scalar log_lines($small, qr/LOG:.*free worker slot/, $from), 1, '... and is said once in the log');
$redis->xadd('stream:small3', n => 1);
$small->safe_psql('postgres', q(SELECT postpipe_drop_pipeline('s1')));
wait_sql($small, 'postgres', q(SELECT state, entries_applied FROM postpipe_stats WHERE pipeline = 's3'), 'idle|1', 'it runs when a slot is free');
$small->stop;

done_testing();

# make(name, stream, argument => value, ...): a value is a literal, a reference to one is SQL. before => SQL to run first.
sub make
{
	my ($name, $stream, %args) = @_;
	my $before = delete $args{before};
	sql($before) if defined $before;
	my $list = join ', ', map { "$_ => " . (ref $args{$_} ? ${ $args{$_} } : "\$_\$$args{$_}\$_\$") } sort keys %args;
	return sql("SELECT postpipe_create_pipeline('$name', '$stream', $list)");
}

# Adds one entry per hash in one write; returns their IDs.
sub add
{
	my ($stream, @entries) = @_;
	return $redis->pipeline(map { [ 'XADD', $stream, '*', %$_ ] } @entries);
}

sub stat_of
{
	my ($name, $column) = @_;
	return sql("SELECT $column FROM postpipe_stats WHERE pipeline = '$name'");
}

sub settled
{
	my ($name, $n) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_sql($node, 'postgres', "SELECT entries_applied FROM postpipe_stats WHERE pipeline = '$name'", $n, "$name: $n entries are applied");
}

sub rewind
{
	my ($arguments) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	pause('again');
	my $entries = sql("SELECT postpipe_rewind('again', $arguments)");
	sql(q(SELECT postpipe_resume('again')));
	return $entries;
}

# Resumes, adds one more entry, and compares how often each was applied when that one is.
sub after_this
{
	my ($expected, $what) = @_;
	sql(q(SELECT postpipe_resume('again')));
	push @ids, $redis->xadd('stream:rewind', { id => sprintf('17000000%02d000-%d', scalar @ids, scalar @ids) }, n => 1);
	wait_sql($node, 'postgres', "SELECT n FROM hits WHERE entry = '$ids[-1]'", '1', 'the next entry is applied');
	return is(sql(q(SELECT string_agg(n::text, ' ' ORDER BY entry) FROM hits)), $expected, $what);
}

# How often each entry was applied, in stream order. Waits for the sum, then compares.
sub hits_are
{
	my ($expected, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_sql($node, 'postgres', q(SELECT string_agg(n::text, ' ' ORDER BY entry) FROM hits), $expected, $what);
}
