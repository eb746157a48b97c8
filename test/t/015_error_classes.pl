# Each class of errors, and whose fault it is: what is the moment's or the pipeline's costs no entry, what is an entry's costs
# that one alone. TAP, because it needs a Redis, background workers and several sessions.

use strict;
use warnings;
use Postpipe::Test;
use Postpipe::Test::Pipelines qw(while_paused wait_state);

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('main', redis => $redis, conf => "postpipe.max_retries = 0\ndeadlock_timeout = 100ms");
my $session = pp_session($node);
sql('CREATE EXTENSION postpipe');
sql(q(SELECT postpipe_drop_pipeline('posts')));
sql(<<'SQL');
CREATE TABLE raises (v text PRIMARY KEY, sqlstate text, times int);    -- which error a value raises, how often: a sequence counts
CREATE FUNCTION raise() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    r public.raises;
BEGIN
    SELECT * INTO r FROM public.raises WHERE v IN (NEW.v, '*') LIMIT 1;
    IF FOUND AND pg_catalog.nextval('public.raised') <= r.times THEN
        RAISE 'raised for a test' USING ERRCODE = r.sqlstate;
    END IF;
    RETURN NEW;
END $$;
CREATE SEQUENCE raised;
SQL

# --- The moment's: the whole batch again, until it passes; nothing is dead, although no entry has a second chance.
for my $sqlstate (qw(40001 40P01 08006 53000 53100 53300 53400 55P03 57P01 57P03 58000 58030))
{
	my $name = "m_\L$sqlstate";
	table($name);
	raises($name, 'bad', $sqlstate, 2);
	while_paused($name, sub { add($name, qw(1 2 bad 3)) });
	wait_sql($node, 'postgres', "SELECT count(*) FROM $name", 4, "$sqlstate a few times: all rows");
	is(letters($name), '', '... and nothing is dead');
	is(sql(q(SELECT last_value FROM raised)), 3, '... after two attempts');
	is(sql("SELECT last_error_sqlstate FROM postpipe_stats WHERE pipeline = '$name'"), $sqlstate, '... and a word about it');
	sql("SELECT postpipe_drop_pipeline('$name')");
}

# A lock timeout and a deadlock, real ones.
table('locked', '{"lock_timeout": "50ms"}');
sql(q(INSERT INTO locked VALUES ('2')));
$session->(q(BEGIN; UPDATE locked SET v = v WHERE v = '2'));
while_paused('locked', sub { add('locked', qw(1 2 3)) });
wait_sql($node, 'postgres', q(SELECT state, reason_code FROM postpipe_stats WHERE pipeline = 'locked'), 'retrying|sqlstate_55P03', 'lock_timeout: tried again');
$session->('COMMIT');
wait_sql($node, 'postgres', 'SELECT count(*) FROM locked', 3, '... until it passes');
is(letters('locked'), '', '... with nothing dead');
# The worker looks for a deadlock once, so long after it began to wait: until then the other one must have closed the circle.
configure('deadlock_timeout', '5s');
table('dead');
sql(q(INSERT INTO dead VALUES ('1'), ('2')));
$session->(q(SET deadlock_timeout = '100s'; BEGIN; UPDATE dead SET n = 7 WHERE v = '2'));
while_paused('dead', sub { add('dead', qw(1 2 3)) });
wait_sql($node, 'postgres', q(SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE '%dead/1' AND wait_event_type = 'Lock'), 1, 'the worker waits for a row');
$session->(q(UPDATE dead SET n = n + 1 WHERE v = '1'; COMMIT));
wait_sql($node, 'postgres', 'SELECT count(*) FROM dead', 3, 'deadlock: all rows');
is(sql(q(SELECT last_error_sqlstate FROM postpipe_stats WHERE pipeline = 'dead')), '40P01', '... of which the worker was the victim');
is(letters('dead'), '', '... with nothing dead');
configure('deadlock_timeout');

# A session lock that a trigger takes goes with the transaction, also with one that is rolled back.
table('advisory');
sql(q(CREATE FUNCTION lock_and_fail() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_advisory_lock(77); RAISE ''x'' USING ERRCODE = ''40001''; END';
	CREATE TRIGGER lock_and_fail BEFORE INSERT ON advisory FOR EACH ROW EXECUTE FUNCTION lock_and_fail()));
add('advisory', 1);
wait_sql($node, 'postgres', q(SELECT state FROM postpipe_stats WHERE pipeline = 'advisory'), 'retrying', 'a trigger takes a session lock and fails');
$session->(q(SET lock_timeout = '20s'));
unlike($session->('SELECT pg_advisory_lock(77)'), qr/ERROR/, '... which others can have between two attempts');
like($session->('SELECT pg_advisory_unlock(77)'), qr/^t/, '... and did');
sql(q(SELECT postpipe_drop_pipeline('advisory')));

# --- The pipeline's: state failed, nothing is dead, and it heals by itself.
for my $sqlstate (qw(42P01 42501 3F000 28000 25006 0A000 55000))
{
	my $name = "p_\L$sqlstate";
	table($name);
	raises($name, '*', $sqlstate, 1000000);
	while_paused($name, sub { add($name, 1 .. 50) });
	wait_sql($node, 'postgres', "SELECT state, reason_code FROM postpipe_stats WHERE pipeline = '$name'", "failed|sqlstate_$sqlstate", "$sqlstate of every entry: failed");
	is(letters($name), '', '... and nothing is dead');
	between_attempts($name, sub { raises($name, '*', $sqlstate, 0) });
	wait_sql($node, 'postgres', "SELECT count(*) FROM $name", 50, '... and heals by itself');
	is(letters($name), '', '... with nothing dead');
	sql("SELECT postpipe_drop_pipeline('$name')");
}
# Settings that forbid to write are not ours.
sql('ALTER DATABASE postgres SET default_transaction_read_only = on');
table('writable');
add('writable', 1);
wait_sql($node, 'postgres', 'SELECT count(*) FROM writable', 1, 'default_transaction_read_only does not stop it');
sql('SET default_transaction_read_only = off; ALTER DATABASE postgres RESET default_transaction_read_only');

# --- The entry's: that one alone.
for my $sqlstate (qw(P0001 22003 23514 42501 42P01 0A000 XX000 53200))
{
	my $name = "e_\L$sqlstate";
	table($name);
	raises($name, 'bad', $sqlstate, 1000000);
	while_paused($name, sub { add($name, qw(1 2 bad 3)) });
	wait_sql($node, 'postgres', "SELECT count(*) FROM $name", 3, "$sqlstate of one entry: the others pass");
	is(letters($name), "bad $sqlstate dead", '... and it is dead');
}
# One that takes too long.
sql(q(CREATE TABLE slow (v text); SELECT postpipe_create_pipeline('slow', 'stream:slow', options => '{"statement_timeout": "300ms"}',
	statement => 'INSERT INTO slow SELECT event->>$$v$$ FROM postpipe_batch, pg_sleep(CASE WHEN event->>$$v$$ = $$bad$$ THEN 5 ELSE 0 END)')));
while_paused('slow', sub { add('slow', 1 .. 5, 'bad', 6 .. 9) });
wait_sql($node, 'postgres', 'SELECT count(*) FROM slow', 9, 'statement_timeout of one entry: the others pass');
wait_sql($node, 'postgres', q(SELECT string_agg(concat_ws(' ', event->>'v', sqlstate, state), '; ') FROM postpipe_dlq WHERE pipeline = 'slow'), 'bad 57014 dead', '... and it is dead');
# ... by the server's setting, as it is by then.
{
	sql(q(CREATE TABLE later (v text); SELECT postpipe_create_pipeline('later', 'stream:later',
		statement => 'INSERT INTO later SELECT event->>$$v$$ FROM postpipe_batch, pg_sleep(CASE WHEN event->>$$v$$ = $$bad$$ THEN 3600 ELSE 0 END)')));
	wait_state('later');
	$node->append_conf('postgresql.conf', 'statement_timeout = 2s');
	$node->reload;
	local $ENV{PGOPTIONS} = '-c statement_timeout=0';
	add('later', 'bad');
	# An attempt that has begun before the worker was told goes on for an hour: then it is cancelled, which is no attempt.
	wait_for {
		sql(q(SELECT pg_cancel_backend(pid) FROM postpipe_workers JOIN pg_stat_activity a USING (pid) WHERE pipeline = 'later' AND a.xact_start < now() - interval '10 s'));
		letters('later') eq 'bad 57014 dead';
	} 'a statement_timeout that was set meanwhile';
	sql(q(SELECT postpipe_drop_pipeline('later', discard_dead => true)));
	$node->append_conf('postgresql.conf', 'statement_timeout = 0');
	$node->reload;
}

# What is out of reach for different reasons in turn is not so again and again: no entry is judged by that.
sql(<<'SQL');
CREATE TABLE in_turn (v text);
CREATE SEQUENCE turns;
CREATE FUNCTION turn() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE n int;
BEGIN
    IF NEW.v <> 'bad' THEN RETURN NEW; END IF;
    n := nextval('public.turns');
    IF n <= 5 THEN RAISE 'away' USING ERRCODE = CASE n % 2 WHEN 0 THEN '08006' ELSE '58030' END; END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER turn BEFORE INSERT ON in_turn FOR EACH ROW EXECUTE FUNCTION turn();
SELECT postpipe_create_pipeline('in_turn', 'stream:in_turn', target => 'in_turn', options => '{"max_retries": 2}');
SQL
wait_state('in_turn');
while_paused('in_turn', sub { add('in_turn', qw(1 2 bad 3)) });

# What is out of reach again and again for one entry alone is that entry's; for all of them it stays the moment's.
for my $sqlstate (qw(08006 58P01))
{
	my $name = "o_\L$sqlstate";
	table($name, '{"max_retries": 2, "retry_delay": "100ms"}');
	raises($name, 'bad', $sqlstate, 1000000);
	while_paused($name, sub { add($name, qw(1 2 bad 3)) });
	wait_sql($node, 'postgres', "SELECT count(*) FROM $name", 3, "$sqlstate of one entry, again and again: the others pass");
	wait_sql($node, 'postgres', "SELECT event->>'v', sqlstate, attempts, state FROM postpipe_dlq WHERE pipeline = '$name'", "bad|$sqlstate|3|dead", '... and it is dead in the end');
	add($name, 'bad');
	wait_sql($node, 'postgres', "SELECT count(*) FROM postpipe_dlq WHERE pipeline = '$name' AND state = 'dead'", 2, '... also when it comes alone');
	raises($name, '*', $sqlstate, 1000000);
	while_paused($name, sub { add($name, 4 .. 9) });
	my $attempts = 0;
	my $last = '';
	wait_for { my $next = sql("SELECT next_attempt_at FROM postpipe_workers WHERE pipeline = '$name'"); $attempts++ if $next ne $last; $last = $next; $attempts > 5 } "$name: some attempts";
	is(sql("SELECT state, reason_code FROM postpipe_stats WHERE pipeline = '$name'"), "retrying|sqlstate_$sqlstate", '... of every entry: the moment\'s');
	raises($name, '*', $sqlstate, 0);
	wait_sql($node, 'postgres', "SELECT count(*) FROM $name", 9, '... until it passes');
	is(sql("SELECT count(*) FROM postpipe_dlq WHERE pipeline = '$name'"), 2, '... with nothing more dead');
}
wait_sql($node, 'postgres', 'SELECT count(*) FROM in_turn', 4, 'out of reach for different reasons: all is applied in the end');
is(sql(q(SELECT entries_dead, entries_retried FROM postpipe_stats WHERE pipeline = 'in_turn')), '0|0', '... and nothing was a letter meanwhile');

# --- Triggers that do what a trigger should not. Each entry is in the table or a letter, and what forbids them all
# is the pipeline's: it stops, with nothing dead, and heals by itself.
# One that commits, of one entry and then of each.
sql(<<'SQL');
CREATE PROCEDURE commit_now() LANGUAGE plpgsql AS 'BEGIN COMMIT; END';
CREATE FUNCTION commit_inside() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_ARGV[0] IN (NEW.v, '*') THEN CALL public.commit_now(); END IF;
    RETURN NEW;
END $$;
SQL
table('commits');
sql(q(CREATE TRIGGER z BEFORE INSERT ON commits FOR EACH ROW EXECUTE FUNCTION commit_inside('bad')));
while_paused('commits', sub { add('commits', 1 .. 20, 'bad', 21 .. 40) });
settled('commits', 40, 'bad 2D000 dead', 'a trigger that commits, for one entry');
sql(q(CREATE OR REPLACE TRIGGER z BEFORE INSERT ON commits FOR EACH ROW EXECUTE FUNCTION commit_inside('*')));
while_paused('commits', sub { add('commits', 41 .. 240) });
wait_sql($node, 'postgres', q(SELECT state, reason_code FROM postpipe_stats WHERE pipeline = 'commits'), 'failed|error_threshold', 'a trigger that commits, for each entry: failed');
is(letters('commits'), 'bad 2D000 dead', '... and nothing more is dead');
sql('DROP TRIGGER z ON commits');
settled('commits', 240, 'bad 2D000 dead', '... until it is gone');

# One that writes over a connection of its own, which no roll-back takes back: the table has each entry once all the same.
sql(q(CREATE EXTENSION dblink; CREATE TABLE beside (v text)));
sql(<<"SQL");
CREATE FUNCTION write_beside() RETURNS trigger LANGUAGE plpgsql AS \$\$
BEGIN
    PERFORM public.dblink_exec('@{[ $node->connstr('postgres') =~ s/'/''/gr ]}', format('INSERT INTO public.beside VALUES (%L)', NEW.v));
    IF NEW.v = 'bad' THEN RAISE 'after it was written beside'; END IF;
    RETURN NEW;
END \$\$;
SQL
table('linked');
sql(q(CREATE TRIGGER z BEFORE INSERT ON linked FOR EACH ROW EXECUTE FUNCTION write_beside()));
while_paused('linked', sub { add('linked', 1 .. 10, 'bad', 11 .. 20) });
settled('linked', 20, 'bad P0001 dead', 'a trigger with dblink');
is(sql('SELECT count(DISTINCT v) FROM beside'), 21, '... which wrote beside, for the bad one as well');
sql('ALTER TABLE beside RENAME TO away');
add('linked', 21 .. 30);
wait_sql($node, 'postgres', q(SELECT state, reason_code FROM postpipe_stats WHERE pipeline = 'linked'), 'failed|sqlstate_42P01', '... and cannot any more: failed');
is(letters('linked'), 'bad P0001 dead', '... and nothing more is dead');
# Not in the middle of an attempt: an entry that failed before would be to blame then.
while_paused('linked', sub { sql('ALTER TABLE away RENAME TO beside') });
settled('linked', 30, 'bad P0001 dead', '... until it can');

# A constraint trigger that would fail at the commit fires before; one that puts it off again is refused by the server.
sql(<<'SQL');
CREATE FUNCTION refuse_late() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN IF NEW.v = ''bad'' THEN RAISE ''refused late''; END IF; RETURN NULL; END';
CREATE FUNCTION put_off() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN SET CONSTRAINTS ALL DEFERRED; RETURN NEW; END';
SQL
table('late');
sql('CREATE CONSTRAINT TRIGGER z AFTER INSERT ON late DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse_late()');
while_paused('late', sub { add('late', 1 .. 10, 'bad', 11 .. 20) });
settled('late', 20, 'bad P0001 dead', 'a constraint trigger that fails at the commit');
sql('CREATE TRIGGER y BEFORE INSERT ON late FOR EACH ROW EXECUTE FUNCTION put_off()');
while_paused('late', sub { add('late', 21 .. 30) });
wait_sql($node, 'postgres', q(SELECT state, reason_code FROM postpipe_stats WHERE pipeline = 'late'), 'failed|sqlstate_42501', 'one that is put off again: failed');
is(letters('late'), 'bad P0001 dead', '... and nothing more is dead');
sql('DROP TRIGGER y ON late');
settled('late', 30, 'bad P0001 dead', '... until it is not');

# --- Hundreds of poison entries: a transaction has few subtransactions whose XIDs stay; the limit of the server is 64.
sql(q(CREATE TABLE many (v int, top xid8 DEFAULT pg_current_xact_id(), CONSTRAINT odd CHECK (v % 3 > 0));
	SELECT postpipe_create_pipeline('many', 'stream:many', target => 'many', options => '{"error_threshold": 1}')));
while_paused('many', sub { add('many', 1 .. 1000) });
wait_sql($node, 'postgres', 'SELECT count(*) FROM many', 667, 'a third of 1000 is poison: the others pass');
is(sql(q(SELECT count(*) FROM postpipe_dlq WHERE pipeline = 'many')), 333, '... and these are dead');
my ($most, $transactions) = split /\|/, sql('SELECT max(n), count(*) FROM (SELECT count(DISTINCT xmin::text) n FROM many GROUP BY top) t');
cmp_ok($most, '<=', 64, 'with at most 64 subtransactions in a transaction');
cmp_ok($most, '>', 8, '... which were counted');
cmp_ok($transactions, '>', 1, '... of several transactions');

# What such a transaction has committed stays when a later one of the same batch is rolled back, and is not run again.
sql(<<'SQL');
CREATE TABLE parts (v text);
CREATE FUNCTION wait_or_raise() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.v LIKE 'bad%' THEN RAISE 'bad'; END IF;
    IF NEW.v = 'wait' THEN PERFORM pg_advisory_xact_lock(78); END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER wait_or_raise BEFORE INSERT ON parts FOR EACH ROW EXECUTE FUNCTION wait_or_raise();
SELECT postpipe_create_pipeline('parts', 'stream:parts', statement => 'INSERT INTO parts SELECT event->>$$v$$ FROM postpipe_batch');
SQL
wait_state('parts');
$session->('SELECT pg_advisory_lock(78)');
while_paused('parts', sub { add('parts', map({ ($_, "bad $_") } 1 .. 50), 'wait', map { ($_, "bad $_") } 51 .. 60) });
my $waits = q(SELECT pid FROM pg_stat_activity WHERE application_name LIKE '%parts/1' AND wait_event_type = 'Lock');
my $pid = wait_for { sql($waits) } 'the worker waits in the middle of a batch';
my $had = sql('SELECT count(*) FROM parts');
cmp_ok($had, '>', 0, '... of which some entries are committed');
cmp_ok($had, '<', 50, '... and others are not');
cmp_ok(sql(q(SELECT count(*) FROM postpipe_dlq WHERE pipeline = 'parts')), '>', 0, '... and some are dead');
sql("SELECT pg_cancel_backend($pid)");
wait_sql($node, 'postgres', q(SELECT last_error_sqlstate FROM postpipe_stats WHERE pipeline = 'parts'), '57014', 'what is open is rolled back');
wait_for { sql($waits) } '... and run again';
is(sql('SELECT count(*) FROM parts'), $had, '... and what is committed is not');
sql("SELECT pg_terminate_backend($pid)");
wait_for { my $new = sql($waits); $new && $new != $pid } 'another process runs what is left';
is(sql('SELECT count(DISTINCT v) FROM parts'), $had, '... too');
$session->('SELECT pg_advisory_unlock(78)');
wait_sql($node, 'postgres', 'SELECT count(*), count(DISTINCT v) FROM parts', '61|61', 'in the end each is applied once');
wait_sql($node, 'postgres', q(SELECT applied, dead, balance FROM postpipe_audit WHERE pipeline = 'parts'), '61|60|0', '... or dead');

# --- DDL under load: nothing is dead, nothing lost.
table('ddl');
for my $case (
	[ 'ALTER TABLE ddl ALTER n TYPE bigint', '' ],
	[ 'ALTER TABLE ddl ALTER n TYPE text', '' ],
	[ 'ALTER TABLE ddl RENAME v TO w', 'ALTER TABLE ddl RENAME w TO v' ],
	[ 'ALTER TABLE ddl DROP n', 'ALTER TABLE ddl ADD n int' ],
	[ 'ALTER TABLE ddl DROP CONSTRAINT ddl_pkey', 'ALTER TABLE ddl ADD PRIMARY KEY (v)' ],
	[ 'ALTER TABLE raises RENAME TO away', 'ALTER TABLE away RENAME TO raises' ])
{
	my ($do, $undo) = @$case;
	my $had = sql('SELECT count(*) FROM ddl');
	my $n = 0;
	for (1 .. 10)
	{
		$redis->pipeline(map { [ 'XADD', 'stream:ddl', '*', v => $had + ++$n, n => 1 ] } 1 .. 20);
		sql($do) if $_ == 5;
	}
	if ($undo)
	{
		wait_sql($node, 'postgres', q(SELECT state FROM postpipe_stats WHERE pipeline = 'ddl'), 'failed', "$do under load: failed") if $do !~ /DROP n/;
		sql($undo);
	}
	wait_sql($node, 'postgres', 'SELECT count(DISTINCT v), count(*) FROM ddl', join('|', ($had + $n) x 2), "$do under load: all rows");
	is(letters('ddl'), '', '... with nothing dead');
}
$session->(undef);
is(scalar log_lines($node, qr/was terminated by signal|PANIC/), 0, 'nothing has crashed');
$node->stop;
done_testing();

# A table with a trigger that raises what it is told to, and a pipeline into it.
sub table
{
	my ($name, $options) = @_;
	$options //= '{}';
	sql("SET default_transaction_read_only = off; CREATE TABLE $name (v text PRIMARY KEY, n int);
		CREATE TRIGGER raise BEFORE INSERT ON $name FOR EACH ROW EXECUTE FUNCTION raise();
		SELECT postpipe_create_pipeline('$name', 'stream:$name', target => '$name', options => '$options')");
	wait_state($name);
	return;
}

# From now on this value (*: each) raises this error, so many times.
sub raises
{
	my ($name, $v, $sqlstate, $times) = @_;
	sql("SELECT setval('raised', 1, false); TRUNCATE raises; INSERT INTO raises VALUES ('$v', '$sqlstate', $times)");
	return;
}

# Not in the midst of one, where some entries would still fail and others not.  Changes nothing of the pipeline.
sub between_attempts
{
	my ($name, $change) = @_;
	my $holder = pp_session($node);
	$holder->("BEGIN; SELECT postpipe_alter_pipeline('$name', workers => 1)");
	$change->();
	$holder->('ROLLBACK');
	$holder->(undef);
	return;
}

sub add
{
	my ($name, @values) = @_;
	$redis->pipeline(map { [ 'XADD', "stream:$name", '*', v => $_ ] } @values);
	return;
}

# So many rows, each once, these letters, nothing pending, and an audit that says so.
sub settled
{
	my ($name, $rows, $letters, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_sql($node, 'postgres', "SELECT count(*) FROM $name", $rows, "$what: the others pass");
	wait_for { pending($redis, "stream:$name", "postpipe_$name") == 0 } "$what: nothing is pending";
	is(letters($name), $letters, '... and these are dead');
	wait_sql($node, 'postgres', "SELECT applied, dead, balance FROM postpipe_audit WHERE pipeline = '$name'", "$rows|1|0", '... and every entry is accounted for');
	return;
}

# What is in the dead-letter table of a pipeline.
sub letters
{
	my ($name) = @_;
	return sql("SELECT string_agg(concat_ws(' ', event->>'v', sqlstate, state), '; ' ORDER BY id) FROM postpipe_dlq WHERE pipeline = '$name'");
}
