# The audit counts each entry once, also one that is committed and not acknowledged yet; it sees the tables as they are now,
# as Redis is; and says why where it cannot know. TAP, because it needs Redis, synchronous replication and immediate stops.

use strict;
use warnings;
use IPC::Run ();
use Postpipe::Test;

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('audit', redis => $redis, allows_streaming => 1);
sql('CREATE EXTENSION postpipe');
sql(q(SELECT postpipe_drop_pipeline('posts')));
sql('CREATE TABLE target (v text)');
sql(q(SELECT postpipe_create_pipeline('audit', 'stream:audit', statement => 'INSERT INTO target SELECT event ->> $$v$$ FROM postpipe_batch')));
add(10);
audit('10|10|0|0|', 'at rest');

# --- A transaction that sees the tables as they were.
my $run = pp_session($node);
$run->('BEGIN ISOLATION LEVEL REPEATABLE READ');
is($run->('SELECT count(*) FROM target'), "10\n", 'repeatable read: a snapshot is taken');
add(100);
audit('110|110|0|0|', 'a hundred more');
is($run->('SELECT count(*) FROM target'), "10\n", 'the transaction does not see them');
is($run->(query()), "110|110|0|0|\n", '... and the audit there balances');
$run->('COMMIT');
$run->(undef);

# --- Committed, and the standby that has to confirm is not there: pending in Redis, and on record.
$node->append_conf('postgresql.conf', "synchronous_standby_names = 'nobody'");
$node->reload;
# The checkpointer puts it into force when it gets to it: then a commit waits.
wait_for
{
	my $commit = IPC::Run::start([ 'psql', '-Xqc', 'ANALYZE target', '-d', $node->connstr('postgres') ], '>', '/dev/null', '2>&1');
	my $waits;
	1 while $commit->pumpable && $commit->pump_nb && !($waits = sql(q(SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE query = 'ANALYZE target' AND wait_event = 'SyncRep')));
	$commit->finish;
	$waits;
}
'commits wait for it';
add(100);
wait_sql($node, 'postgres', 'SELECT count(*) FROM target', 210, 'committed');
audit('210|210|0|0|', 'not acknowledged: the audit balances');
is(pending($redis, 'stream:audit', 'postpipe_audit'), 100, '... while they are pending in Redis');
is(sql(q(SELECT pending FROM postpipe_stats WHERE pipeline = 'audit')), 100, '... which the statistics say');

# --- Nobody knows any more which of the pending ones are committed.
$node->safe_psql('postgres', q(SET synchronous_commit = local; SELECT postpipe_pause('audit')));
$node->stop('immediate');
$node->append_conf('postgresql.conf', "synchronous_standby_names = ''");
$node->start;
wait_sql($node, 'postgres', q(SELECT state FROM postpipe_stats WHERE pipeline = 'audit'), 'paused', 'paused');
wait_sql($node, 'postgres', q(SELECT balance IS NULL AND reason LIKE 'of the pending entries some may be settled%' FROM postpipe_audit WHERE pipeline = 'audit'), 't',
	'after a crash, paused: the balance is not known, and why');
sql(q(SELECT postpipe_resume('audit')));
audit('210|210|0|0|', 'read again: it balances');

pp_balanced($node);
$node->stop;
done_testing();

sub add { my ($n) = @_; $redis->pipeline(map { [ 'XADD', 'stream:audit', '*', 'v', "v$_" ] } 1 .. $n); return }
sub query { return q(SELECT added, applied, pending, balance, reason FROM postpipe_audit WHERE pipeline = 'audit') }

sub audit
{
	my ($expected, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_sql($node, 'postgres', query(), $expected, $what, 20);
}
