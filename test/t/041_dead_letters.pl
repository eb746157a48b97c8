# Entries that cannot be applied are tried again: from the table, with back-off, a bounded number of times, across restarts of
# both servers, and without setting a row back that a later entry wrote.
# TAP, because it needs a Redis, background workers and servers that are restarted.

use strict;
use warnings;
use Postpipe::Test;
use Postpipe::Test::Pipelines qw(letters wait_state);
use Time::HiRes ();

my $redis = Postpipe::Test::Redis->new(keep => 1);
my $node = pp_node('main', redis => $redis, conf => "postpipe.max_retries = 2\npostpipe.retry_delay = 200ms");
sql('CREATE EXTENSION postpipe');
sql(q(SELECT postpipe_drop_pipeline('posts')));

# --- A parent that arrives later; what never arrives is dead in the end, after 1 + max_retries attempts, each later than the one before.
sql(<<'SQL');
CREATE TABLE parent (id int PRIMARY KEY);
CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent);
CREATE TABLE runs (at timestamptz);
INSERT INTO parent VALUES (1);
SELECT postpipe_create_pipeline('child', 'stream:child', target => 'child', options => '{"max_retries": 20}');
CREATE TABLE counted (id text, n int);
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.id = 'bad' THEN RAISE 'refused'; END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER refuse BEFORE INSERT ON counted FOR EACH ROW EXECUTE FUNCTION refuse();
SELECT postpipe_create_pipeline('counted', 'stream:counted', statement => 'INSERT INTO counted SELECT event ->> $$id$$, 1 FROM postpipe_batch');
SQL
wait_state($_) for qw(child counted);
my $orphan = $redis->xadd('stream:child', id => 1, parent => 7);
$redis->xadd('stream:child', id => 2, parent => 1);
wait_sql($node, 'postgres', 'SELECT id FROM child', '2', 'an entry that fails holds nobody up');
wait_sql($node, 'postgres', q(SELECT state, sqlstate, attempts > 0, next_retry_at > last_failed_at, id FROM postpipe_dlq WHERE pipeline = 'child'),
	"retrying|23503|t|t|$orphan", 'it is a letter that is tried again');
wait_for { pending($redis, 'stream:child', 'postpipe_child') == 0 } 'and has left Redis';
is(stats('child', 'entries_applied, entries_dead, entries_retried'), '1|0|1', 'it counts as retried');
is(sql(q(SELECT applied, retrying, dead FROM postpipe_audit WHERE pipeline = 'child')), '1|1|0', '... in the audit, too');
sql('INSERT INTO parent VALUES (7)');
wait_sql($node, 'postgres', 'SELECT id, parent FROM child ORDER BY id', "1|7\n2|1", 'the parent is there: so is the child');
is(sql(q(SELECT count(*) FROM postpipe_dlq WHERE pipeline = 'child')), 0, '... and the letter is gone');
wait_sql($node, 'postgres', q(SELECT entries_applied, entries_dead, entries_retried FROM postpipe_stats WHERE pipeline = 'child'), '2|0|1', '... and counted as applied');

$redis->xadd('stream:counted', id => 'good');
$redis->xadd('stream:counted', id => 'bad');
wait_sql($node, 'postgres', q(SELECT state, attempts, next_retry_at, message FROM postpipe_dlq WHERE pipeline = 'counted'), 'dead|3||refused', 'dead after three attempts');
is(sql(q(SELECT last_failed_at - first_failed_at >= '600ms' FROM postpipe_dlq WHERE pipeline = 'counted')), 't', '... 200 ms and 400 ms apart');
is(stats('counted', 'entries_applied, entries_dead, entries_retried'), '1|1|1', '... and counted as both, once');

# --- The wait doubles up to an hour, and stays there however often an entry has failed.
sql(q(SELECT postpipe_create_pipeline('rare', 'stream:rare', options => '{"max_retries": 1000, "retry_delay": "40min"}',
	statement => 'INSERT INTO counted SELECT event ->> $$id$$, 1 FROM postpipe_batch')));
wait_state('rare');
$redis->xadd('stream:rare', id => 'bad');
letters('rare', 1);
my $waits = join ', ', map { "next_retry_at - last_failed_at >= '$_ min'" } 40, 60, 80;
is(sql("SELECT $waits FROM postpipe_dlq WHERE pipeline = 'rare'"), 't|f|f', 'a wait of 40 minutes');
for my $attempts (2, 3, 65)
{
	sql(q(SELECT postpipe_pause('rare')));
	wait_state('rare', 'paused');
	sql("UPDATE postpipe_dead_letter SET attempts = $attempts - 1, next_retry_at = now() WHERE pipeline = 'rare'");
	sql(q(SELECT postpipe_resume('rare')));
	wait_sql($node, 'postgres', "SELECT attempts, state, $waits FROM postpipe_dlq WHERE pipeline = 'rare'", "$attempts|retrying|t|t|f", "... and of an hour after attempt $attempts");
}

# --- What can never be applied is dead at once; with max_retries 0 everything is.
sql(q(SELECT postpipe_create_pipeline('once', 'stream:once', target => 'child', options => '{"max_retries": 0}')));
my $broken = $redis->xadd('stream:child', data => '[1]');
$redis->xadd('stream:once', id => 'x');
wait_sql($node, 'postgres', q(SELECT pipeline, state, attempts FROM postpipe_dlq WHERE pipeline IN ('child', 'once') ORDER BY 1), "child|dead|1\nonce|dead|1", 'dead at once');

# --- One that fails again and again does not hold up those with it, nor is anything applied twice.
sql(q(CREATE TABLE sums (id text PRIMARY KEY, n int NOT NULL)));
sql('CREATE TABLE divisor (n int); INSERT INTO divisor VALUES (1)');
sql(q(SELECT postpipe_create_pipeline('sums', 'stream:sums', options => '{"retry_delay": "300ms", "max_retries": 20}',
	statement => 'INSERT INTO sums AS s SELECT event ->> $$id$$, sum((event ->> $$n$$)::int / (SELECT n FROM divisor)) FROM postpipe_batch GROUP BY 1 ON CONFLICT (id) DO UPDATE SET n = s.n + excluded.n')));
wait_state('sums');
sql('UPDATE divisor SET n = 0');
$redis->xadd('stream:sums', id => 'a', n => 2) for 1 .. 40;
$redis->xadd('stream:sums', id => 'b', n => 'never');
wait_sql($node, 'postgres', q(SELECT count(*) FROM postpipe_dlq WHERE pipeline = 'sums' AND state = 'retrying'), 41, '41 letters');
sql('UPDATE divisor SET n = 1');
wait_sql($node, 'postgres', 'SELECT id, n FROM sums', 'a|80', '40 of them are applied, each once');
wait_sql($node, 'postgres', q(SELECT count(*), min(attempts) > 1 FROM postpipe_dlq WHERE pipeline = 'sums'), '1|t', '... and one is not');

# --- Restarts of both servers, in between.
sql('UPDATE divisor SET n = 0');
$redis->xadd('stream:sums', id => 'c', n => 1);
wait_sql($node, 'postgres', q(SELECT count(*) FROM postpipe_dlq WHERE pipeline = 'sums' AND sqlstate = '22012'), 1, 'a letter');
$node->stop('immediate');
$redis->kill9;
$redis->start;
$node->start;
sql('UPDATE divisor SET n = 1');
wait_sql($node, 'postgres', q(SELECT n FROM sums WHERE id = 'c'), 1, 'applied after restarts of both servers');

# Attempts are counted across them: no more than max_retries in all.
sql(q(SELECT postpipe_create_pipeline('restarts', 'stream:restarts', options => '{"max_retries": 3, "retry_delay": "500ms"}', statement => 'INSERT INTO counted SELECT event ->> $$id$$, 1 FROM postpipe_batch')));
wait_state('restarts');
$redis->xadd('stream:restarts', id => 'bad');
for my $restart (sub { $node->restart }, sub { $redis->kill9; $redis->start }, sub { $node->stop('immediate'); $node->start })
{
	my $attempts = sql(q(SELECT coalesce(max(attempts), 0) FROM postpipe_dlq WHERE pipeline = 'restarts'));
	wait_sql($node, 'postgres', "SELECT attempts > $attempts OR state = 'dead' FROM postpipe_dlq WHERE pipeline = 'restarts'", 't', 'one more attempt');
	$restart->();
}
wait_sql($node, 'postgres', q(SELECT state, attempts FROM postpipe_dlq WHERE pipeline = 'restarts'), 'dead|4', 'dead after one attempt and three more');

# --- Paused, nothing is tried; a pipeline that is broken counts nothing against its letters.
sql(q(SELECT postpipe_pause('sums')));
wait_state('sums', 'paused');
my $tried = sql(q(SELECT attempts FROM postpipe_dlq WHERE pipeline = 'sums'));
sql('ALTER TABLE sums RENAME TO away');
sql(q(UPDATE postpipe_dead_letter SET next_retry_at = now() WHERE pipeline = 'sums'));
$redis->xadd('stream:counted', id => 'meanwhile');
wait_sql($node, 'postgres', q(SELECT count(*) FROM counted WHERE id = 'meanwhile'), 1, 'another pipeline goes on');
is(sql(q(SELECT attempts FROM postpipe_dlq WHERE pipeline = 'sums')), $tried, 'a paused pipeline tries nothing');
sql(q(SELECT postpipe_resume('sums')));
wait_sql($node, 'postgres', q(SELECT last_error_sqlstate FROM postpipe_stats WHERE pipeline = 'sums'), '42P01', 'the table is gone');
is(sql(q(SELECT attempts, state FROM postpipe_dlq WHERE pipeline = 'sums')), "$tried|retrying", '... which is no attempt');
sql('ALTER TABLE away RENAME TO sums');
wait_sql($node, 'postgres', q(SELECT attempts > ) . $tried . q( FROM postpipe_dlq WHERE pipeline = 'sums'), 't', '... and it goes on when it is back');

# --- Order: what a later entry wrote is not set back, what it left open is filled.
sql(<<'SQL');
CREATE TABLE item (id int PRIMARY KEY, a text, b text, r text, n int, at timestamptz DEFAULT '2000-01-01');
CREATE TABLE gate (open boolean);
INSERT INTO gate VALUES (false);
CREATE FUNCTION gated() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.a LIKE 'old%' AND NOT (SELECT open FROM public.gate) THEN RAISE 'not yet'; END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER gated BEFORE INSERT OR UPDATE ON item FOR EACH ROW EXECUTE FUNCTION gated();
SELECT postpipe_create_pipeline('item', 'stream:item', target => 'item', options => '{"max_retries": 1000, "retry_delay": "200ms"}',
    columns => '{"r": {"merge": "replace"}, "n": {"merge": "greatest"}}');
SQL
wait_state('item');
my $old = $redis->xadd('stream:item', id => 1, a => 'old', b => 'old', r => 'old', n => 5, at => '2001-01-01');
letters('item', 1);
$redis->xadd('stream:item', id => 1, a => 'new', n => 3, at => '2002-02-02');
$redis->xadd('stream:item', id => 2, a => 'old 2', b => 'first');
wait_sql($node, 'postgres', 'SELECT * FROM item', '1|new|||3|2002-02-02 00:00:00+00', 'a later entry');
# In one batch, the bad one first; and one that nothing came after.
sql(q(SELECT postpipe_pause('item')));
wait_state('item', 'paused');
$redis->xadd('stream:item', id => 3, a => 'old 3', b => 'filled');
$redis->xadd('stream:item', id => 3, a => 'new 3');
$redis->xadd('stream:item', id => 4, a => 'old 4', b => 'alone');
sql(q(SELECT postpipe_resume('item')));
letters('item', 4);
is(sql(q(SELECT string_agg(event ->> 'id', ' ' ORDER BY event ->> 'id') FROM postpipe_dead_letter WHERE pipeline = 'item' AND overtaken)), '1 3', 'two were overtaken');
# Of two letters with one key, the later one wins as well.
$redis->xadd('stream:item', id => 4, a => 'old 4b');
letters('item', 5);
$node->restart;
$redis->xadd('stream:item', id => 2, a => 'new 2');
wait_sql($node, 'postgres', q(SELECT a FROM item WHERE id = 2), 'new 2', 'a later entry after a restart');
sql('UPDATE gate SET open = true');
letters('item', 0);
is(sql('SELECT * FROM item ORDER BY id'), "1|new|old||5|2002-02-02 00:00:00+00\n2|new 2|first|||2000-01-01 00:00:00+00\n3|new 3|filled|||2000-01-01 00:00:00+00\n4|old 4b|alone|||2000-01-01 00:00:00+00",
	'late entries only fill what is NULL');

# --- Every entry is somewhere; and nothing that is dead was tried meanwhile.
balance('child', '2|0|1|0');
balance('counted', '2|0|1|0');
balance('sums', '41|1|0|0');
balance('item', '8|0|0|0');
is(sql(q(SELECT attempts FROM postpipe_dlq WHERE pipeline = 'counted')), 3, 'what is dead is not tried again');

# --- A rewind reads again what is after it: the letters of those entries are discarded.
sql('UPDATE gate SET open = false');
my $again = $redis->xadd('stream:item', id => 9, a => 'old 9');
letters('item', 1);
sql(q(SELECT postpipe_pause('item')));
wait_state('item', 'paused');
sql("SELECT postpipe_rewind('item', to_id => '$old')");
is(sql(q(SELECT count(*) FROM postpipe_dlq WHERE pipeline = 'item')), 0, 'a rewind: the letter is discarded');
sql('UPDATE gate SET open = true');
sql(q(SELECT postpipe_resume('item')));
wait_sql($node, 'postgres', q(SELECT a FROM item WHERE id = 9), 'old 9', '... and its entry is applied by what is read again');

# --- The log: a letter is no line.
is(join("\n", log_lines($node, qr/(?<!Connection )refused|not yet|divi/)), '', 'no letter is in the log');
is(scalar log_lines($node, qr/was terminated by signal|PANIC/), 0, 'nothing has crashed');
pp_balanced($node);
$node->stop;
done_testing();

sub stats { my ($name, $columns) = @_; return sql("SELECT $columns FROM postpipe_stats WHERE pipeline = '$name'") }

# applied, retrying, dead and discarded, with everything accounted for.
sub balance
{
	my ($name, $counts) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_sql($node, 'postgres', "SELECT applied, retrying, dead, discarded, balance FROM postpipe_audit WHERE pipeline = '$name'", "$counts|0", "$name: the audit balances");
}
