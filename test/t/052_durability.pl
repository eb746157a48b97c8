# Nothing is acknowledged before it is durable: flushed, and replicated as configured; also what comes again as a duplicate.
# TAP, because it needs immediate stops and synchronous replication.

use strict;
use warnings;
use Postpipe::Test;

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('durable', redis => $redis, allows_streaming => 1, conf => 'wal_writer_delay = 10s');
sql('CREATE EXTENSION postpipe');
sql(q(SELECT postpipe_drop_pipeline('posts')));
sql('CREATE TABLE target (v text)');
my $n = 0;

# --- Asynchronous commits: an immediate stop right after an acknowledgement. The WAL writer sleeps, so nobody else flushes.
sql(q(ALTER DATABASE postgres SET synchronous_commit = off));
sql(q(SELECT postpipe_create_pipeline('durable', 'stream:durable', statement => 'INSERT INTO target SELECT event ->> $$v$$ FROM postpipe_batch',
	options => '{"synchronous_commit": "off"}')));
for my $round (1 .. 5)
{
	add(20);
	wait_for { applied() == $n && unacknowledged() == 0 } "round $round: everything is acknowledged";
	$node->stop('immediate');
	$node->start;
	is(sql('SELECT count(*), count(DISTINCT v) FROM target'), "$n|$n", "round $round: ... and there after an immediate stop");
}
sql(q(SELECT postpipe_drop_pipeline('durable')));
sql(q(ALTER DATABASE postgres RESET synchronous_commit));

# --- A synchronous standby that is not there.
$redis->command('DEL', 'stream:durable');
sql(q(SELECT postpipe_create_pipeline('durable', 'stream:durable', statement => 'INSERT INTO target SELECT event ->> $$v$$ FROM postpipe_batch')));
add(1);
wait_for { applied() == $n && unacknowledged() == 0 } 'one before';
$node->append_conf('postgresql.conf', "synchronous_standby_names = 'nobody'");
# After a reload, commits wait when the checkpointer has come to it; after a start, at once.
$node->restart;
add(10);
waits('a commit waits for the standby');
is(unacknowledged(), 10, '... and nothing is acknowledged');

my $from = log_offset($node);
psql_async('SELECT pg_cancel_backend(pid) FROM postpipe_workers WHERE backend_type = $$worker$$');
wait_for { log_lines($node, qr/canceling wait for synchronous replication/, $from) > 0 } 'the wait is cancelled';
waits('cancelled: it waits again');
is(unacknowledged(), 10, '... and nothing is acknowledged');

my $pid = worker();
psql_async("SELECT pg_terminate_backend($pid)");
wait_for { !kill(0, $pid) } 'terminated: it goes';
wait_for { my $new = worker(); $new && $new != $pid } '... and another one comes';
waits('the duplicates wait as well');
is(unacknowledged(), 10, '... and are not acknowledged');

$node->stop('immediate');
$node->start;
waits('after a restart in the middle of it the duplicates wait');
is(unacknowledged(), 10, '... and are not acknowledged');
is(applied(), $n, 'they are rows, once');

$node->append_conf('postgresql.conf', "synchronous_standby_names = ''");
$node->reload;
wait_for { unacknowledged() == 0 } 'nobody is asked for any more: acknowledged';

# --- While commits are not durable, the worker goes on with the next batches; but only for eight of them.
sql(q(SELECT postpipe_alter_pipeline('durable', options => '{"batch_size": 10}')));
sql(q(SELECT postpipe_pause('durable')));
sql(q(SELECT postpipe_wait_state('durable', 'paused')));
my $before = $n;
add(300);
$node->append_conf('postgresql.conf', "synchronous_standby_names = 'nobody'");
$node->restart;
psql_async(q(SELECT postpipe_resume('durable')));
waits('the worker waits for the standby');
is(applied() - $before, 80, '... with eight batches applied');
is(unacknowledged(), 90, '... which are pending, as is the one in hand');
$node->stop('immediate');
$node->start;
waits('after an immediate stop it waits with what was pending');
$node->append_conf('postgresql.conf', "synchronous_standby_names = ''");
$node->reload;
wait_for { unacknowledged() == 0 && applied() == $n } 'nobody is asked for any more: all is applied and acknowledged';
is(sql('SELECT count(DISTINCT v) FROM target'), $n, '... once');

# --- A standby that is there, and goes: what it has not, is not acknowledged.
$node->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'base', has_streaming => 1);
$standby->append_conf('postgresql.conf', "postpipe.redis_url = '" . $redis->url . "'");
$standby->start;
$node->append_conf('postgresql.conf', "synchronous_standby_names = 'standby'");
$node->restart;
add(10);
wait_for { unacknowledged() == 0 && applied() == $n } 'with the standby: acknowledged';
is($standby->safe_psql('postgres', 'SELECT count(*) > 0 FROM target'), 't', 'it has rows');
is($redis->cli('CLIENT', 'LIST') =~ /postpipe:\S+ / ? scalar(() = $redis->cli('CLIENT', 'LIST') =~ /name=postpipe:\S+:1 /g) : 0, 1, 'and nobody of the standby reads Redis');
$standby->stop('immediate');
add(10);
waits('without it a commit waits');
is(unacknowledged(), 10, '... and nothing is acknowledged');
$standby->start;
wait_for { unacknowledged() == 0 && applied() == $n } 'it is back: acknowledged';
$node->stop('immediate');
$standby->promote;
wait_sql($standby, 'postgres', 'SELECT count(*), count(DISTINCT v) FROM target', "$n|$n", 'promoted: it has all that was acknowledged');
$standby->append_conf('postgresql.conf', "synchronous_standby_names = ''");
$standby->reload;
add(10);
wait_sql($standby, 'postgres', 'SELECT count(*), count(DISTINCT v) FROM target', "$n|$n", '... and goes on by itself');
wait_sql($standby, 'postgres', 'SELECT balance FROM postpipe_audit ORDER BY epoch DESC LIMIT 1', 0, 'the audit balances');

$standby->stop;
done_testing();

# A commit of the session that asks would wait as well, so it asks for nothing to be written.
sub psql_async { my ($query) = @_; return $node->safe_psql('postgres', "SET synchronous_commit = off; $query") }

sub add
{
	my ($count) = @_;
	$redis->pipeline(map { [ 'XADD', 'stream:durable', '*', 'v', 'v' . ++$n ] } 1 .. $count);
	return;
}

sub applied { return $node->safe_psql('postgres', 'SELECT count(*) FROM target') }
sub unacknowledged { return pending($redis, 'stream:durable', 'postpipe_durable') }
sub worker { return $node->safe_psql('postgres', q(SELECT pid FROM postpipe_workers WHERE pipeline = 'durable' AND pid > 0)) }

sub waits
{
	my ($what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_sql($node, 'postgres', q(SELECT wait_event FROM pg_stat_activity WHERE backend_type LIKE 'postpipe worker%'), 'SyncRep', $what);
}
