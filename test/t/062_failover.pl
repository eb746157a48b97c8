# What a failover forgets, and what is acknowledged when: a stale replica of Redis and a standby that lags are promoted, an XACK
# or its reply is lost, and PostgreSQL is asked at each XACK whether what it names is committed and flushed.
# TAP, because it takes replicas, a standby, and a proxy between them.

use strict;
use warnings;
use Postpipe::Test '!sql';
use Postpipe::Test::Pipelines qw(definition);
use Postpipe::Test::Proxy;

my $redis = Postpipe::Test::Redis->new;
my $replica = Postpipe::Test::Redis->new;
my $proxy = Postpipe::Test::Proxy->new(target => $redis->port);
my $node = pp_node('main', redis => $proxy, allows_streaming => 1, conf => 'wal_writer_delay = 10s');
sql('CREATE EXTENSION postpipe');
sql(q(SELECT postpipe_drop_pipeline('posts')));

# --- At each XACK: are all of its entries rows, and have the commits of these rows left memory?  The WAL that can be read is
# what is flushed; the WAL writer sleeps, and commits do not wait.
SKIP:
{
	my (undef, undef, $error) = $node->psql('postgres', 'CREATE EXTENSION pg_walinspect');
	skip "no pg_walinspect: $error", 3 if $error;
	sql('ALTER DATABASE postgres SET synchronous_commit = off');
	sql('CREATE TABLE gated (id text PRIMARY KEY)');
	make('gated', 'INSERT INTO gated SELECT id FROM postpipe_batch', '{"synchronous_commit": "off", "batch_size": 50}');
	my $start = sql('SELECT pg_current_wal_lsn()');
	my $script = PostgreSQL::Test::Utils::tempdir() . '/gate';
	PostgreSQL::Test::Utils::append_to_file($script, <<"SH");
#!/bin/sh
ids=\$(printf %s "\$FP_DATA" | grep -oE '[0-9]{13}-[0-9]+' | tr '\\n' ' ')
psql -XAtq -d '@{[$node->connstr('postgres')]}' -v ids="\$ids" <<'SQL' | grep -qx t
WITH acked AS (SELECT unnest(string_to_array(trim(:'ids'), ' ')) AS id),
	stored AS (SELECT g.xmin::text FROM acked JOIN gated g USING (id)),
	flushed AS (SELECT xid::text FROM pg_get_wal_records_info('$start', pg_current_wal_flush_lsn()) WHERE resource_manager = 'Transaction' AND record_type LIKE 'COMMIT%')
SELECT (SELECT count(*) FROM stored) = (SELECT count(*) FROM acked) AND NOT EXISTS (SELECT FROM stored WHERE xmin NOT IN (SELECT xid FROM flushed))
SQL
SH
	chmod 0755, $script;
	$proxy->command("gate c2s XACK $script");
	# Little by little, with some XACKs each time; and a backlog, of which what waits for the disk is acknowledged together.
	my $rows = 0;
	for my $entries ((60) x 20, 1200)
	{
		$redis->pipeline(map { [ 'XADD', 'stream:gated', '*', 'n', $_ ] } 1 .. $entries);
		$rows += $entries;
		wait_for { sql('SELECT count(*) FROM gated') == $rows && pending($redis, 'stream:gated', 'gated') == 0 } "gate: $rows are there and acknowledged";
	}
	my $stats = $proxy->command('pass');
	cmp_ok($stats->{gate_run}, '>=', 20, "PostgreSQL was asked at each of $stats->{gate_run} XACKs");
	is($stats->{gate_fail}, 0, '... and each time all was committed and flushed');
	sql('ALTER DATABASE postgres RESET synchronous_commit');
	sql(q(SELECT postpipe_drop_pipeline('gated')));
}

# --- The XACK is lost, or its reply.
sql('CREATE TABLE t (v text)');
make('t', q(INSERT INTO t SELECT event ->> 'v' FROM postpipe_batch));
my $n = 0;
for my $what ('before', 'after')
{
	add($redis, 5);
	complete("XACK, $what: before the cut");
	my $deduplicated = sql('SELECT entries_deduplicated FROM postpipe_stats');
	$proxy->command("cuton c2s XACK $what");
	add($redis, 5);
	wait_for { $proxy->stats->{cuts} == ($what eq 'before' ? 1 : 2) } "XACK, $what: cut";
	complete("XACK, $what: after it");
	wait_for { pending($redis, 'stream:t', 't') == 0 } "XACK, $what: all is acknowledged";
	is(sql('SELECT entries_deduplicated FROM postpipe_stats') - $deduplicated, 5, "XACK, $what: what came again is known") if $what eq 'before';
	balanced("XACK, $what");
}

# --- A replica without the last moments is promoted. It has ten entries whose delivery and XACK it has not heard of, and has not
# heard of twenty others; it gives five of their IDs away anew.
$replica->command('REPLICAOF', '127.0.0.1', $redis->port);
wait_for { in_step() } 'a replica';
sql(q(SELECT postpipe_pause('t')));
wait_sql($node, 'postgres', 'SELECT state FROM postpipe_stats', 'paused', 'paused');
add($redis, 10);
wait_for { in_step() } 'the replica has ten entries that nobody has read';
$replica->command('REPLICAOF', 'NO', 'ONE');
sql(q(SELECT postpipe_resume('t')));
complete('the first ten');
my $time = (split /-/, $redis->command('XINFO', 'STREAM', 'stream:t')->[7])[0] + 1000;
add($redis, 20, map { "$time-$_" } 1 .. 20);
complete('twenty more');
wait_for { pending($redis, 'stream:t', 't') == 0 } 'all is acknowledged';
$proxy->command('target ' . $replica->port);
$redis->stop;
add($replica, 5, map { "$time-$_" } 1 .. 5);
complete('five other entries under IDs that were given before');
add($replica, 5);
complete('... and new ones');
wait_for { pending($replica, 'stream:t', 't') == 0 } '... are acknowledged';
balanced('the replica');

# --- A standby that lags is promoted: it does not wait for it, and what it lacks is read again.
$node->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'base', has_streaming => 1);
$standby->append_conf('postgresql.conf', "postpipe.redis_url = '" . $proxy->url . "'");
$standby->start;
add($replica, 5);
complete('with a standby');
$node->wait_for_catchup('standby', 'replay');
$standby->append_conf('postgresql.conf', "primary_conninfo = ''");
$standby->reload;
wait_sql($node, 'postgres', 'SELECT count(*) FROM pg_stat_replication', 0, 'it hears of nothing more');
add($replica, 20);
complete('twenty that it lacks');
wait_for { pending($replica, 'stream:t', 't') == 0 } '... are acknowledged';
is($standby->safe_psql('postgres', 'SELECT count(*) FROM t'), $n - 20, 'it lacks them');
$node->stop('immediate');
$standby->promote;
$node = $standby;
complete('promoted: they are read again, by their range');
is(scalar log_lines($standby, qr/WARNING:.*20 entries that the group had passed over were read/), 1, '... which is said');
add($replica, 5);
complete('... and new ones');
balanced('the standby');
is(sql('SELECT count(*) FROM postpipe_lost'), 0, 'nothing is lost');
pp_balanced($standby);
$standby->stop;
done_testing();

sub sql { my ($query) = @_; return $node->safe_psql('postgres', $query) }

sub make
{
	my ($name, $statement, $options) = @_;
	return sql(definition($name, consumer_group => $name, statement => $statement, options => $options // '{}'));
}

sub add
{
	my ($to, $count, @ids) = @_;
	return $to->pipeline(map { [ 'XADD', 'stream:t', $ids[ $_ - 1 ] // '*', 'v', 'v' . ++$n ] } 1 .. $count);
}

sub complete
{
	my ($what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_sql($node, 'postgres', 'SELECT count(*), count(DISTINCT v) FROM t', "$n|$n", "$what: each entry once");
}

sub balanced
{
	my ($what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_sql($node, 'postgres', q(SELECT balance FROM postpipe_audit WHERE pipeline = 't' ORDER BY epoch DESC LIMIT 1), 0, "$what: the audit balances");
}

# The replica has all that the other one has.
sub in_step
{
	my %at = map { $_ => $_->cli('INFO', 'replication') } $redis, $replica;
	return $at{$replica} =~ /master_link_status:up/ && ($at{$redis} =~ /master_repl_offset:(\d+)/)[0] == ($at{$replica} =~ /slave_repl_offset:(\d+)/)[0];
}
