# Nothing is acknowledged before it is durable: flushed, and replicated as configured; also what comes again as a duplicate.
# TAP, because it needs immediate stops and synchronous replication.

use strict;
use warnings;
use IPC::Run ();
use Postpipe::Test;

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('durable', redis => $redis, allows_streaming => 1, conf => "wal_writer_delay = 10s\nautovacuum = off");
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

# --- A disk that is slow: here the WAL writer, which sleeps. The worker goes on with the next batches, and what is not durable
# stays pending; but only for some batches.
$redis->command('DEL', 'stream:durable');
sql(<<'SQL');
CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_catalog.pg_advisory_xact_lock(7); RETURN NEW; END';
CREATE TRIGGER hold BEFORE INSERT ON target FOR EACH ROW WHEN (NEW.v IN ('v141', 'v351')) EXECUTE FUNCTION hold();
SELECT postpipe_create_pipeline('durable', 'stream:durable', statement => 'INSERT INTO target SELECT event ->> $$v$$ FROM postpipe_batch', options => '{"batch_size": 10, "lock_timeout": "0"}', enabled => false);
SQL
my ($in, $out) = ('', '');
my $holder = IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr('postgres') ], '<', \$in, '>', \$out, IPC::Run::timeout(60));
my $says = sub { my ($query) = @_; $out = ''; $in .= "$query;\n\\echo end\n"; $holder->pump until $out =~ /^end$/m; return };
$says->('SELECT pg_advisory_lock(7)');
add(300);
sql(q(SELECT postpipe_resume('durable')));
wait_sql($node, 'postgres', q(SELECT wait_event FROM pg_stat_activity WHERE backend_type LIKE 'postpipe worker%'), 'advisory', 'the fifth batch is held');
cmp_ok(unacknowledged(), '>=', 50, 'four are applied and not durable: pending, as is the one that is held, and the next');
is(applied(), 140, '... and their rows can be seen');
wait_sql($node, 'postgres', q(SELECT applied, pending, balance FROM postpipe_audit WHERE pipeline = 'durable'), '40|20|0', 'the audit counts each once');
$says->('SELECT pg_advisory_unlock(7), pg_advisory_lock(7)');
wait_sql($node, 'postgres', q(SELECT count(*), max(wait_event) FROM target, pg_stat_activity WHERE backend_type LIKE 'postpipe worker%'), '350|advisory', 'the 26th batch is held');
cmp_ok(unacknowledged(), '<=', 110, 'the worker has waited for the disk meanwhile');
$says->('SELECT pg_advisory_unlock(7)');
wait_for { applied() == $n && unacknowledged() == 0 } 'all is acknowledged in the end';
$node->stop('immediate');
$node->start;
is(sql('SELECT count(*), count(DISTINCT v) FROM target'), "$n|$n", '... and there after an immediate stop');
$holder->kill_kill;
sql(q(SELECT postpipe_drop_pipeline('durable')));
sql('DROP TRIGGER hold ON target');

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

sub sql { my ($query) = @_; return $node->safe_psql('postgres', $query) }

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
