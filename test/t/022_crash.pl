# Nothing is lost and nothing is applied twice when a worker, or the whole server, dies under load. TAP, because processes
# are killed and the server has to come back.

use strict;
use warnings;
use PostgreSQL::Test::Utils;
use Postpipe::Test;
use Postpipe::Test::Hits;

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('main', redis => $redis);
my $hits = Postpipe::Test::Hits->new(node => $node, redis => $redis, options => '{"batch_size": 7}');
$hits->shows(qr/^idle/, 'the pipeline is idle');

# --- kill -9 of the worker: by design of PostgreSQL the server restarts all its processes
for my $round (1 .. 3)
{
	my $from = log_offset($node);
	my $pid = $hits->worker('pid');
	$hits->publish(100);
	kill('KILL', $pid);
	$hits->publish(100);
	wait_for { log_lines($node, qr/all server processes terminated; reinitializing/, $from) }
	"kill -9 of the worker, round $round: one crash restart";
	wait_for { ($hits->worker('pid') || $pid) != $pid } "round $round: the worker is back";
	$hits->settled("kill -9 of the worker, round $round");
}
wait_sql($node, 'postgres', q(SELECT string_agg(backend_type || ' ' || coalesce(pipeline, ''), ', ' ORDER BY pid) IS NOT NULL
	AND count(*) FILTER (WHERE backend_type = 'launcher') = 1 AND count(*) FILTER (WHERE backend_type = 'supervisor') = 1
	AND count(*) FILTER (WHERE backend_type = 'worker') = 1 FROM postpipe_workers), 't', 'one launcher, one supervisor, one worker');
is($hits->sql(q(SELECT string_agg(backend_type, ', ' ORDER BY backend_type) FROM pg_stat_activity WHERE backend_type ~ '^postpipe')),
	'postpipe launcher, postpipe supervisor, postpipe worker', 'and no process that the postmaster revived');

# --- with a batch in hand, not committed
my $session = $hits->session;
$session->('BEGIN; LOCK TABLE hits');
$hits->publish(30);
$hits->stuck;
kill('KILL', $hits->worker('pid'));
$session->(undef);
$hits->settled('kill -9 with a batch in hand');

# --- kill -9 of the postmaster
for my $round (1 .. 2)
{
	$hits->publish(100);
	my ($postmaster) = split /\n/, slurp_file($node->data_dir . '/postmaster.pid');
	my @pids = split /\s+/, slurp_file("/proc/$postmaster/task/$postmaster/children");
	$node->kill9;
	$hits->publish(100);
	wait_for { !grep { kill(0, $_) } @pids } "kill -9 of the postmaster, round $round: nothing is left";
	wait_for { $node->start(fail_ok => 1) } "round $round: the server starts again";
	$hits->settled("kill -9 of the postmaster, round $round");
}

# --- immediate stop
for my $round (1 .. 2)
{
	$hits->publish(100);
	$node->stop('immediate');
	$hits->publish(100);
	$node->start;
	$hits->settled("immediate stop, round $round");
}

# --- what was delivered and never acknowledged comes first, all pages of it (seven to a page)
sub pause
{
	$hits->sql("SELECT postpipe_pause('hits')");
	is($hits->sql("SELECT postpipe_wait_state('hits', 'paused')"), 't', 'paused');
	return;
}
my $consumer = $hits->worker('consumer');
# Of an empty table the order of ctid is that of the rows; of one with room in its pages it may not be.
$hits->forget;
like($consumer, qr/^postpipe:\d+:\d+:hits:1$/, 'the name of the consumer: system identifier, database, pipeline, number');
pause();
$hits->publish(40);
$redis->cli('XREADGROUP', 'GROUP', $hits->group, $consumer, 'COUNT', 40, 'STREAMS', $hits->stream, '>');
is(pending($redis, $hits->stream, $hits->group), 40, 'six pages are pending');
$hits->publish(10);
$hits->sql("SELECT postpipe_resume('hits')");
$hits->settled('own pending entries');
is($hits->sql('SELECT string_agg(id, \' \' ORDER BY ctid) FROM hits'),
	join(' ', @{ $hits->{ids} }), 'they were applied first, in stream order');

# ... also those that were applied and not acknowledged: a duplicate is acknowledged and not applied
pause();
my @again = @{ $hits->{ids} }[ -30 .. -1 ];
$redis->command('XGROUP', 'SETID', $hits->stream, $hits->group, $hits->{ids}[-31]);
$redis->cli('XREADGROUP', 'GROUP', $hits->group, $consumer, 'COUNT', 30, 'STREAMS', $hits->stream, '>');
is(pending($redis, $hits->stream, $hits->group), 30, 'thirty are pending that are applied');
my $deduplicated = $hits->sql("SELECT entries_deduplicated FROM postpipe_stats WHERE pipeline = 'hits'");
$hits->sql("SELECT postpipe_resume('hits')");
wait_sql($node, 'postgres', "SELECT entries_deduplicated - $deduplicated FROM postpipe_stats WHERE pipeline = 'hits'",
	'30', 'they are counted as duplicates');
$hits->settled('applied and not acknowledged');

# --- fifty restarts, and not one consumer more
my $last = $hits->worker('pid');
for my $restart (1 .. 50)
{
	$hits->publish(1);
	$hits->sql("SELECT postpipe_pause('hits')");
	$hits->sql("SELECT postpipe_wait_state('hits', 'paused'); SELECT postpipe_resume('hits')");
}
$hits->settled('fifty restarts');
is(consumers($redis, $hits->stream, $hits->group), 1, 'fifty restarts: one consumer');
isnt($hits->worker('pid'), $last, 'it was another process');
for my $restart (1 .. 2)
{
	my $pid = $hits->worker('pid');
	$hits->publish(10);
	$hits->sql("SELECT pg_terminate_backend($pid)");
	wait_for { my $now = $hits->worker('pid'); $now && $now != $pid } "terminated $restart: another worker";
}
$hits->settled('terminated');
is(consumers($redis, $hits->stream, $hits->group), 1, 'terminated: one consumer');
is($hits->sql('SELECT count(*) FROM postpipe_dlq'), 0, 'no crash is an entry\'s fault');

done_testing();
