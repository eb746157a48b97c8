# postpipe_wait(): the producer's read-your-writes.
# TAP, because it needs a Redis, background workers and sessions that wait.

use strict;
use warnings;
use Postpipe::Test;

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('wait', redis => $redis, conf => "postpipe.max_retries = 0\nautovacuum = off");
sql('CREATE EXTENSION postpipe');
sql(<<'SQL');
SELECT postpipe_drop_pipeline('posts');
CREATE TABLE t (id int PRIMARY KEY, n int);
CREATE TABLE gate (n int);
SELECT postpipe_create_pipeline('p', 'stream:p', target => 't', event_types => '{wanted}');
SELECT postpipe_create_pipeline('two', 'stream:two', target => 't', workers => 2, options => '{"max_retries": 20, "retry_delay": "200ms"}');
SQL
sql(qq(SELECT postpipe_wait_state('$_', 'idle'))) for qw(p two);

# Each row is there when the wait ends, with one worker and with two.
my $session = pp_session($node);
my $n = 0;
for my $p (qw(p two))
{
	my $missed = 0;
	for (1 .. 100)
	{
		my $id = $redis->xadd("stream:$p", id => ++$n, event_type => 'wanted');
		my $waited = $session->("SELECT postpipe_wait('$p', '$id')");
		$missed++ unless $waited =~ /^t$/m && $session->("SELECT count(*) FROM t WHERE id = $n") =~ /^1$/m;
	}
	is($missed, 0, "$p: 100 rows are there when it is waited for them");
}

# One that was there long ago, one that is filtered, several who wait, and one in a batch.
my @ids = map { $redis->xadd('stream:p', id => ++$n, event_type => 'wanted') } 1 .. 10;
is(sql("SELECT postpipe_wait('p', '$_')"), 't', 'an entry of several') for @ids[ 9, 0, 5 ];
my $other = $redis->xadd('stream:p', id => 1000, event_type => 'other');
is(sql("SELECT postpipe_wait('p', '$other')"), 't', 'a filtered one');
sql(q(SELECT postpipe_pause('p'); SELECT postpipe_wait_state('p', 'paused')));
my $late = $redis->xadd('stream:p', id => ++$n, event_type => 'wanted');
my ($stdout, $stderr);
(undef, $stdout, $stderr) = $node->psql('postgres', "SELECT postpipe_wait('p', '$late', '0')");
is($stdout, 'f', 'no time at all');
like($stderr, qr/NOTICE:  pipeline "p" is paused/, '... and it is said that it is paused');
my @waiting = map { pp_start($node, "SELECT postpipe_wait('p', '$late', '100 s')") } 1 .. 3;
my $asleep = q(SELECT count(*) FROM pg_stat_activity WHERE query ~ 'postpipe_wait\W' AND pid <> pg_backend_pid() AND wait_event_type = 'Extension' AND state = 'active');
wait_sql($node, 'postgres', $asleep, 3, 'three wait');
is(sql(q(SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE query ~ 'postpipe_wait\W' AND a.pid <> pg_backend_pid() AND locktype = 'relation' AND mode <> 'AccessShareLock')), 0, '... and lock nothing');
sql(q(SELECT postpipe_resume('p')));
is($_->(), 't', 'resumed: it is there') for @waiting;

# The worker is terminated meanwhile.
my $lock = pp_session($node);
$lock->('BEGIN; LOCK TABLE t');
my $held = $redis->xadd('stream:p', id => ++$n, event_type => 'wanted');
my $waiter = pp_start($node, "SELECT postpipe_wait('p', '$held', '100 s')");
wait_sql($node, 'postgres', q(SELECT count(*) FROM pg_locks WHERE relation = 't'::regclass AND NOT granted), 1, 'the worker is held up');
wait_sql($node, 'postgres', $asleep, 1, 'one waits');
sql(q(SELECT pg_terminate_backend(pid) FROM postpipe_workers WHERE pipeline = 'p'));
$lock->('COMMIT');
is($waiter->(), 't', 'another worker has applied it');

# What will never be applied is told at once; what may be, is waited for.
my $bad = $redis->xadd('stream:p', id => 'x', event_type => 'wanted');
(undef, $stdout, $stderr) = $node->psql('postgres', "SELECT postpipe_wait('p', '$bad', '100 s')");
is($stdout, 'f', 'a dead letter');
like($stderr, qr/WARNING:  entry $bad of pipeline "p" was not applied: it is dead\n.*HINT:  See postpipe_dlq/, '... with a warning');
sql('ALTER TABLE t ADD CONSTRAINT known CHECK (n IS NULL OR n < 5)');
my $retried = $redis->xadd('stream:two', id => ++$n, n => 7);
wait_sql($node, 'postgres', q(SELECT state FROM postpipe_dlq WHERE pipeline = 'two'), 'retrying', 'a letter that is tried again');
$waiter = pp_start($node, "SELECT postpipe_wait('two', '$retried', '100 s')");
wait_sql($node, 'postgres', $asleep, 1, '... is waited for');
sql('ALTER TABLE t DROP CONSTRAINT known');
is($waiter->(), 't', '... until it is applied');

# One that was trimmed before it was read: when time is up it is said, because others of its range may be there.
# Redis 6.2 does not tell that any is gone.
if ($redis->cli('INFO', 'server') !~ /redis_version:6/)
{
	sql(q(SELECT postpipe_pause('p'); SELECT postpipe_wait_state('p', 'paused')));
	my $trimmed = $redis->xadd('stream:p', id => ++$n, event_type => 'wanted');
	$redis->command('XTRIM', 'stream:p', 'MAXLEN', 0);
	sql(q(SELECT postpipe_resume('p')));
	wait_sql($node, 'postgres', q(SELECT count(*) FROM postpipe_lost WHERE pipeline = 'p'), 1, 'an entry is lost');
	(undef, $stdout, $stderr) = $node->psql('postgres', "SELECT postpipe_wait('p', '$trimmed', '10 ms')");
	is($stdout, 'f', '... and waited for');
	like($stderr, qr/WARNING:  entry $trimmed of pipeline "p" may be lost, as others around it are\n.*HINT:  See postpipe_lost/, '... with a warning in the end');
}

# Cancelled; an ID that is not there; a pipeline that is not there; another isolation level.
$waiter = pp_start($node, "SELECT postpipe_wait('p', '99999999999999-0', '100 s')");
wait_sql($node, 'postgres', $asleep, 1, 'an entry that is not there is waited for');
sql(q(SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query ~ 'postpipe_wait\W' AND pid <> pg_backend_pid() AND state = 'active'));
like($waiter->(), qr/canceling statement due to user request/, '... until it is cancelled');
for my $case ([ "SELECT postpipe_wait('nobody', '1-0')", qr/pipeline "nobody" does not exist/ ], [ "SELECT postpipe_wait('p', 'x')", qr/invalid input syntax for type .*postpipe_id/ ],
	[ "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT postpipe_wait('p', '1-0')", qr/must be called in a transaction with isolation level read committed/ ])
{
	(undef, undef, $stderr) = $node->psql('postgres', $case->[0]);
	like($stderr, $case->[1], $case->[0]);
}
$_->(undef) for $session, $lock;
pp_balanced($node);
$node->stop;
done_testing();
