# Under load: DDL that takes long or strong locks, on the target and on our own tables; signals by the thousand; crashes of other
# processes. Also what can be seen of plans and of the back-off. TAP, because it needs processes, signals and time.

use strict;
use warnings;
use PostgreSQL::Test::Utils;
use Postpipe::Test;
use Postpipe::Test::Child;
use Postpipe::Test::Hits;
use Time::HiRes ();

my $redis = Postpipe::Test::Redis->new;
my $proxy = Postpipe::Test::Proxy->new(target => $redis->port);
my $node = pp_node('main', redis => $proxy,
	conf => "shared_preload_libraries = 'postpipe, pg_stat_statements'\npg_stat_statements.track = all\npg_stat_statements.track_planning = on\n");
my $hits = Postpipe::Test::Hits->new(node => $node, redis => $redis, options => '{"batch_size": 5}');
$hits->shows(qr/^idle/, 'the pipeline is idle');

# --- The statement is planned once, and not once per batch.
$hits->sql('CREATE EXTENSION pg_stat_statements');
for my $batch (1 .. 30)
{
	$hits->publish(1);
	wait_sql($node, 'postgres', 'SELECT count(*) FROM hits', $batch, "batch $batch");
}
my ($plans, $calls) = split /\|/, $hits->sql(q(SELECT sum(plans), sum(calls) FROM pg_stat_statements WHERE query LIKE 'INSERT INTO public.hits SELECT%'));
cmp_ok($calls, '>=', 30, 'thirty batches are thirty runs of the statement');
cmp_ok($plans, '<=', 4, '... which was planned when the pipeline was made and when the worker started');

# --- Long and strong locks while entries come all the time
my @own = split /\n/, $hits->sql(q(SELECT c.oid::regclass FROM pg_class c JOIN pg_depend d ON d.objid = c.oid AND d.classid = 'pg_class'::regclass AND d.deptype = 'e'
	WHERE c.relkind = 'r' ORDER BY 1));
cmp_ok(scalar @own, '>=', 6, 'our own tables');
my $publisher = publisher();
for my $statement ('CREATE INDEX CONCURRENTLY hits_id ON hits (id)', 'REINDEX TABLE CONCURRENTLY hits', 'VACUUM FULL hits', 'CLUSTER hits USING hits_id', 'ANALYZE hits',
	'DROP INDEX CONCURRENTLY hits_id', map { ("REINDEX TABLE CONCURRENTLY $_", "VACUUM FULL $_", "REINDEX TABLE $_") } @own)
{
	my (undef, undef, $stderr) = $node->psql('postgres', '', on_error_die => 0, timeout => 60, extra_params => [ '-c', "SET statement_timeout = '30s'", '-c', $statement ]);
	is($stderr, '', "under load: $statement");
}
$publisher->();
$hits->settled('after all of that');

# --- Signals by the thousand, to all of our processes, while they also have to connect again and again
my $start = $hits->sql('SELECT pg_postmaster_start_time()');
$publisher = publisher();
my $sent = 0;
my $until = Time::HiRes::time() + 5;
while (Time::HiRes::time() < $until)
{
	my @pids = split /\n/, $node->safe_psql('template1', q(SELECT pid FROM pg_stat_activity WHERE backend_type LIKE 'postpipe%'));
	for my $turn (1 .. 200)
	{
		$sent += kill($_, @pids) for qw(HUP INT USR1);
		Time::HiRes::usleep(200);
	}
	kill('TERM', $pids[ $sent % @pids ]) if @pids;
	$proxy->command('rst');
}
$publisher->();
cmp_ok($sent, '>', 100, 'signals were sent');
$hits->settled('after the signals');
is($hits->sql('SELECT count(*) FROM postpipe_dlq'), 0, '... and no entry was at fault');
is($hits->sql('SELECT pg_postmaster_start_time()'), $start, '... the server is the same');
is(scalar log_lines($node, qr/PANIC|terminated by signal|exited with exit code [^01]/), 0, '... and no process crashed');

# --- Other processes crash: the server restarts all of its processes, ours among them
for my $case ([ 'kill -9 of a session', 'KILL', q(SELECT pg_backend_pid()) ], [ 'ABRT of the checkpointer', 'ABRT', q(SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer') ])
{
	my ($what, $signal, $query) = @$case;
	my $from = log_offset($node);
	my $session = $hits->session;
	my ($victim) = $session->($query) =~ /^(\d+)/m;
	$hits->publish(200);
	kill($signal, $victim);
	wait_for { log_lines($node, qr/all server processes terminated; reinitializing/, $from) } "$what: one crash restart";
	$session->(undef);
	$hits->publish(20);
	$hits->settled($what);
	wait_sql($node, 'postgres', q(SELECT string_agg(backend_type, ', ' ORDER BY backend_type) FROM pg_stat_activity WHERE backend_type ~ '^postpipe'),
		'postpipe launcher, postpipe supervisor, postpipe worker', '... and each of our processes is there once');
}

# --- The back-off has jitter: waits are not the nominal ones, and not the same in all workers.
$hits->sql("SELECT postpipe_drop_pipeline('hits')");
my $many = Postpipe::Test::Hits->new(node => $node, redis => $redis, name => 'many', workers => 4);
wait_sql($node, 'postgres', q(SELECT count(*) FROM postpipe_workers WHERE pipeline = 'many' AND state = 'idle'), 4, 'four workers');
$proxy->stop;
my %at;
wait_for
{
	for my $row (split /\n/, $hits->sql(q(SELECT worker, extract(epoch FROM next_attempt_at) FROM postpipe_workers WHERE pipeline = 'many' AND next_attempt_at IS NOT NULL)))
	{
		my ($worker, $time) = split /\|/, $row;
		$at{$worker}{$time} = 1;
	}
	4 == grep { keys %$_ >= 6 } values %at;
}
'six attempts of each worker';
my ($n, $nominal) = (0, 0);
for my $times (values %at)
{
	my @times = sort { $a <=> $b } keys %$times;
	for my $wait (map { 1000 * ($times[$_] - $times[ $_ - 1 ]) } 1 .. $#times)
	{
		$n++;
		$nominal++ if grep { abs($wait - $_) < 0.03 * $_ } map { 100 * 2**$_ } 0 .. 5;
	}
}
cmp_ok($nominal, '<', $n / 2, "of $n waits few are a power of two");
$proxy->start;
$many->publish(10);
$many->settled('Redis is back');

done_testing();

# Publishes a few entries every now and then from another process; what it returns ends it and remembers their IDs.
sub publisher
{
	my $last = ($redis->command('XREVRANGE', $hits->stream, '+', '-', 'COUNT', 1))->[0][0];
	my $port = $redis->port;
	my $stream = $hits->stream;
	my $work = sub {
		my ($self) = @_;
		my $client = Postpipe::Test::Client->new($port);
		until ($self->{stop})
		{
			$client->command('XADD', $stream, '*', n => $_) for 1 .. 7;
			Time::HiRes::usleep(5000);
		}
	};
	my $child = Postpipe::Test::Child->new(work => $work);
	return sub {
		$child->stop;
		push @{ $hits->{ids} }, map { $_->[0] } @{ $redis->command('XRANGE', $stream, "($last", '+') };
		return;
	};
}
