# What is not an entry's fault costs no entry: a look-up in the ledger that fails, and what is wrong with the pipeline while only
# one entry is there to show it.
# TAP, because it needs a Redis, background workers and several sessions.

use strict;
use warnings;
use Postpipe::Test;
use Postpipe::Test::Fault;

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('main', redis => $redis, conf => "postpipe.retry_delay = 200ms");
sql('CREATE EXTENSION postpipe');
sql(q(SELECT postpipe_drop_pipeline('posts')));

# --- A batch that may be on record is not applied before the ledger has said so, whatever goes wrong with asking it: neither
# when the wait for its table is cancelled, long after a run of a statement that has a timeout, ...
sql(q(CREATE TABLE t (id text)));
sql(q(SELECT postpipe_create_pipeline('p', 'stream:p', statement => 'INSERT INTO t SELECT id FROM postpipe_batch', options => '{"statement_timeout": "300ms"}')));
$redis->pipeline(map { [ 'XADD', 'stream:p', '*', 'n', $_ ] } 1 .. 20);
wait_sql($node, 'postgres', 'SELECT count(*) FROM t', 20, 'twenty entries');
wait_for { pending($redis, 'stream:p', 'postpipe_p') == 0 } 'and acknowledged';
wait_sql($node, 'postgres', q(SELECT now() - last_applied_at > interval '400 ms' FROM postpipe_stats), 't', 'longer ago than the timeout');
my $session = pp_session($node);
$session->('BEGIN; LOCK TABLE postpipe_ledger');
$redis->command('XGROUP', 'SETID', 'stream:p', 'postpipe_p', '0');
$redis->xadd('stream:p', n => 21);
my $waits = q(SELECT count(*) FROM pg_locks WHERE relation = 'postpipe_ledger'::regclass AND NOT granted);
wait_sql($node, 'postgres', $waits, 1, 'the worker waits for the ledger');
sql(q(SELECT pg_cancel_backend(pid) FROM postpipe_workers WHERE backend_type = 'worker'));
wait_sql($node, 'postgres', q(SELECT state, reason_code FROM postpipe_stats), 'retrying|sqlstate_57014', 'cancelled: it is tried again');
wait_sql($node, 'postgres', $waits, 1, '... and waits again');
$session->('COMMIT');
settled('the ledger is free', 21);

# --- ... nor when a row of it is damaged.
sql(q(CREATE TABLE copy AS SELECT ctid AS at, ids FROM postpipe_ledger));
sql(q(UPDATE postpipe_ledger SET ids = '\x02'));
$redis->command('XGROUP', 'SETID', 'stream:p', 'postpipe_p', '0');
$redis->xadd('stream:p', n => 22);
wait_sql($node, 'postgres', q(SELECT state, reason_code FROM postpipe_stats), 'failed|sqlstate_XX001', 'a damaged row of the ledger: failed');
is(sql('SELECT count(*) FROM t'), 21, '... and nothing is applied');
is(sql('SELECT count(*) FROM postpipe_dlq'), 0, '... and nothing dead');
sql(q(UPDATE postpipe_ledger l SET ids = o.ids FROM (SELECT row_number() OVER (ORDER BY at) n, ids FROM copy) o,
	(SELECT ctid c, row_number() OVER (ORDER BY ctid) n FROM postpipe_ledger) x WHERE l.ctid = x.c AND x.n = o.n));
settled('the row is mended', 22);
$session->(undef);
sql(q(SELECT postpipe_drop_pipeline('p')));

# --- A lone entry is not to blame for what any other would fail with: a trigger's table that is away. Nor is it with one that is
# bad by itself, nor are letters. With or without a key, and with a statement.
sql(<<'SQL');
CREATE TABLE noted (v text);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO public.noted VALUES (NEW.v); RETURN NEW; END';
CREATE TABLE keyed (id int PRIMARY KEY, v text);
CREATE TABLE append (id int, v text);
CREATE TABLE own (id int, v text);
CREATE TABLE fresh (id int PRIMARY KEY, v text);
SELECT postpipe_create_pipeline(t, 'stream:' || t, target => t, options => '{"max_retries": 0}') FROM unnest('{keyed,append}'::text[]) t;
SELECT postpipe_create_pipeline('own', 'stream:own', statement => 'INSERT INTO own SELECT (event->>''id'')::int, event->>''v'' FROM postpipe_batch', options => '{"max_retries": 0}');
SELECT postpipe_create_pipeline('fresh', 'stream:fresh', target => 'fresh');
SQL
for my $name (qw(keyed append own fresh))
{
	sql("CREATE TRIGGER note AFTER INSERT ON $name FOR EACH ROW EXECUTE FUNCTION note()");
	sql("SELECT postpipe_wait_state('$name', 'idle')");
	next if $name eq 'fresh';
	$redis->xadd("stream:$name", id => 1, v => 'x');
	wait_sql($node, 'postgres', "SELECT count(*) FROM $name", 1, "$name: one that passes");
}
sql('ALTER TABLE noted RENAME TO away');
for my $name (qw(keyed append own))
{
	$redis->xadd("stream:$name", id => 2, v => 'x');
	stopped($name, '42P01');
	is(letters($name), '', '... and nothing is dead');
}
# Where nothing has passed in this process it cannot be told: the entry is a letter, and what is tried then does not count.
$redis->xadd('stream:fresh', id => 2, v => 'x');
wait_sql($node, 'postgres', q(SELECT state, sqlstate, attempts, next_retry_at < now() - interval '2 seconds' FROM postpipe_dlq WHERE pipeline = 'fresh'), 'retrying|42P01|1|t', 'fresh: a letter that is not counted');
sql('ALTER TABLE away RENAME TO noted');
for my $name (qw(keyed append own))
{
	wait_sql($node, 'postgres', "SELECT count(*) FROM $name", 2, "$name: heals by itself");
	is(letters($name), '', '... with nothing dead');
}
wait_sql($node, 'postgres', 'SELECT count(*) FROM fresh', 1, 'fresh: applied after all');

# Two, one of which is bad by itself; and letters.
for my $name (qw(keyed append))
{
	sql('ALTER TABLE noted RENAME TO away');
	together($name, sub { $redis->xadd("stream:$name", id => 3, v => 'x'); $redis->xadd("stream:$name", id => 'bad', v => 'x') });
	stopped($name, '42P01');
	is(letters($name), '', '... and nothing is dead');
	sql('ALTER TABLE away RENAME TO noted');
	wait_sql($node, 'postgres', "SELECT count(DISTINCT id) FROM $name", 3, '... and heals by itself');
	is(letters($name), 'bad 22P02 dead', '... with one dead');
}
# A letter of something else.
sql(q(CREATE TABLE later (id int PRIMARY KEY, v text, CONSTRAINT v CHECK (v <> 'early')); CREATE TRIGGER note AFTER INSERT ON later FOR EACH ROW EXECUTE FUNCTION note();
	SELECT postpipe_create_pipeline('later', 'stream:later', target => 'later', options => '{"max_retries": 2, "retry_delay": "1s"}')));
$redis->xadd('stream:later', id => 1, v => 'x');
wait_sql($node, 'postgres', 'SELECT count(*) FROM later', 1, 'later: one that passes');
$redis->xadd('stream:later', id => 2, v => 'early');
wait_sql($node, 'postgres', q(SELECT attempts FROM postpipe_dlq WHERE pipeline = 'later'), 1, '... and a letter');
sql('ALTER TABLE later DROP CONSTRAINT v; ALTER TABLE noted RENAME TO away');
wait_sql($node, 'postgres', q(SELECT last_error_sqlstate FROM postpipe_stats WHERE pipeline = 'later'), '42P01', 'its retry meets what is away');
for my $try (1 .. 2)
{
	my $at = sql(q(SELECT last_error_at FROM postpipe_stats WHERE pipeline = 'later'));
	wait_sql($node, 'postgres', "SELECT last_error_at > '$at' FROM postpipe_stats WHERE pipeline = 'later'", 't', "... again, $try");
}
is(sql(q(SELECT attempts, state, sqlstate FROM postpipe_dlq WHERE pipeline = 'later')), '1|retrying|23514', '... which is no attempt');
sql('ALTER TABLE away RENAME TO noted');
wait_sql($node, 'postgres', 'SELECT count(*) FROM later', 2, '... and passes in the end');

# --- One that fails alone with such an error, and is to blame, does not hold the pipeline up.
sql(<<'SQL');
CREATE ROLE tenant;
GRANT CREATE ON SCHEMA public TO tenant;
SET ROLE tenant;
CREATE TABLE rls (id int PRIMARY KEY, v text);
ALTER TABLE rls ENABLE ROW LEVEL SECURITY;
ALTER TABLE rls FORCE ROW LEVEL SECURITY;
CREATE POLICY p ON rls USING (true) WITH CHECK (v <> 'foreign');
RESET ROLE;
SELECT postpipe_create_pipeline('rls', 'stream:rls', target => 'rls', options => '{"max_retries": 1, "retry_delay": "2s"}');
SQL
$redis->xadd('stream:rls', id => 1, v => 'ours');
wait_sql($node, 'postgres', 'SELECT count(*) FROM rls', 1, 'row security: one that passes');
$redis->xadd('stream:rls', id => 2, v => 'foreign');
wait_sql($node, 'postgres', q(SELECT state, sqlstate, attempts FROM postpipe_dlq WHERE pipeline = 'rls'), 'dead|42501|2', 'one that does not is dead in the end');
is(sql(q(SELECT count(*) FROM rls)), 1, '... and what was tried to tell has left nothing');
$redis->xadd('stream:rls', id => 3, v => 'ours');
wait_sql($node, 'postgres', 'SELECT count(*) FROM rls', 2, '... and the pipeline goes on');

# --- Out of memory while an entry is looked at says nothing of it.
my $fault = Postpipe::Test::Fault->new($node);
my $pid = sql(q(SELECT pid FROM postpipe_workers WHERE pipeline = 'rls'));
$fault->set('in_normalize:memory:2');
$redis->xadd('stream:rls', id => 4, v => 'ours');
wait_sql($node, 'postgres', 'SELECT count(*) FROM rls', 3, 'out of memory twice: applied');
is($fault->fired, 2, '... after it was');
is(sql(q(SELECT last_error_sqlstate FROM postpipe_stats WHERE pipeline = 'rls')), '53200', '... with a word about it');
$fault->set('in_normalize:memory:100');
$redis->xadd('stream:rls', id => 5, v => 'ours');
wait_sql($node, 'postgres', q(SELECT state, sqlstate FROM postpipe_dlq WHERE pipeline = 'rls' AND sqlstate = '53200'), 'retrying|53200', 'again and again: a letter that is tried again');
$fault->set('');
wait_sql($node, 'postgres', 'SELECT count(*) FROM rls', 4, '... and applied');
is(sql(q(SELECT pid FROM postpipe_workers WHERE pipeline = 'rls')), $pid, '... by the same process');
is(scalar log_lines($node, qr/was terminated by signal|PANIC/), 0, 'nothing has crashed');

# --- When the process dies of the entry that passed before, the one that is judged is not to blame.
sql(<<'SQL');
CREATE FUNCTION fail_as_c(text) RETURNS void LANGUAGE c STRICT AS 'postpipe', 'postpipe_fault_fail';
CREATE TABLE dies (id int PRIMARY KEY, v text);
CREATE TABLE armed ();
CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.id = 1 AND pg_catalog.to_regclass('public.armed') IS NULL THEN PERFORM public.fail_as_c('kill'); END IF;
    IF NEW.id = 2 THEN RAISE 'not this one' USING ERRCODE = '42501'; END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER die BEFORE INSERT ON dies FOR EACH ROW EXECUTE FUNCTION die();
SELECT postpipe_create_pipeline('dies', 'stream:dies', target => 'dies', options => '{"max_retries": 0}');
SQL
my $first = $redis->xadd('stream:dies', id => 1, v => 'x');
wait_sql($node, 'postgres', 'SELECT count(*) FROM dies', 1, 'one that passes');
sql('DROP TABLE armed');
$redis->xadd('stream:dies', id => 2, v => 'x');
wait_sql($node, 'postgres', q(SELECT event->>'id', sqlstate, message FROM postpipe_dlq WHERE pipeline = 'dies'), '2|42501|not this one', 'the other is dead for what it did itself');
is(scalar log_lines($node, qr/was terminated by signal/), 1, '... after one crash');
is(scalar log_lines($node, qr/the process before died while it applied entry $first alone/), 1, '... of which the first one is told');
$redis->xadd('stream:dies', id => 3, v => 'x');
wait_sql($node, 'postgres', 'SELECT count(*) FROM dies', 2, 'and it goes on');
$node->stop;
done_testing();

# What is in the dead-letter table of a pipeline.
sub letters
{
	my ($name) = @_;
	return sql("SELECT string_agg(concat_ws(' ', event->>'id', sqlstate, state), '; ' ORDER BY id) FROM postpipe_dlq WHERE pipeline = '$name'");
}

sub stopped
{
	my ($name, $sqlstate) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_sql($node, 'postgres', "SELECT state, reason_code FROM postpipe_stats WHERE pipeline = '$name'", "failed|sqlstate_$sqlstate", "$name: stopped");
}

# Publishes while the pipeline waits for its table, so that it is one batch. A pause would end the process that knows what passed.
sub together
{
	my ($name, $publish) = @_;
	my $lock = pp_session($node);
	$lock->("BEGIN; LOCK TABLE $name");
	$redis->xadd("stream:$name", id => 1, v => 'again');
	wait_sql($node, 'postgres', "SELECT count(*) FROM pg_locks WHERE relation = '$name'::regclass AND NOT granted", 1, "$name: held up");
	$publish->();
	$lock->('COMMIT');
	$lock->(undef);
	return;
}

# Each entry is in t, once, and acknowledged.
sub settled
{
	my ($when, $n) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_sql($node, 'postgres', 'SELECT count(DISTINCT id) FROM t', $n, "$when: all are applied");
	wait_for { pending($redis, 'stream:p', 'postpipe_p') == 0 } "$when: all are acknowledged";
	return is(sql('SELECT count(*) FROM t'), $n, "$when: each once");
}
