# Worker 1 looks at the stream while the other workers of its pipeline hold still: it waits for those that have something in hand, and
# not for those that cannot be reached; and who comes late begins with what it has found.
# TAP, because it takes several workers, some of them stopped, and a Redis that others change.

use strict;
use warnings;
use Postpipe::Test;
use Postpipe::Test::Pipelines qw(make holding drop rows);

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('still', redis => $redis);
sql('CREATE EXTENSION postpipe');
sql(q(SELECT postpipe_drop_pipeline('posts')));
my $serial = 0;

# --- What a worker has in hand when its consumer is deleted is not read by its range before that worker has committed it.
start('busy');
my $session = hold_second('busy');
my $n = $redis->command('XLEN', 'stream:busy');
my $from = log_offset($node);
is($redis->command('XGROUP', 'DELCONSUMER', 'stream:busy', 'postpipe_busy', stuck('w.consumer', 'busy')), 1, 'busy: a consumer is deleted, with an entry that its worker has in hand');
wait_for { add('busy', '*'); $n++; log_lines($node, qr/a consumer of group "postpipe_busy" was deleted by somebody/, $from) } '... which is noticed';
is(sql(q(SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'postpipe worker' AND wait_event_type = 'Lock')), 1, '... and the entry is not applied by another one meanwhile');
$session->('SELECT pg_advisory_unlock(1)');
$session->(undef);
rows('busy', $n, 'busy: each entry once');
shows_epochs('busy', "1 first $n 0");
drop('busy');

# --- A worker that has read the ledger, and begins when there is another epoch by now, reads the ledger again.
start('late');
$redis->command('XGROUP', 'CREATECONSUMER', 'stream:late', 'postpipe_late', 'python');
wait_for { add('late', '*'); sql(q(SELECT shared FROM postpipe_progress WHERE pipeline = 'late')) eq 't' } 'late: the group has another consumer';
$n = $redis->command('XLEN', 'stream:late');
rows('late', $n);
$session = pp_session($node);
$session->('BEGIN; LOCK TABLE postpipe_lost_range');
end_worker('late', 2);
my $late = waiting('late', 2);
kill('STOP', $late);
$session->('COMMIT');
$session->(undef);
$redis->command('XGROUP', 'DELCONSUMER', 'stream:late', 'postpipe_late', 'python');
end_worker('late', 1);
wait_sql($node, 'postgres', q(SELECT max(epoch) FROM postpipe_epoch WHERE pipeline = 'late' AND base_known), 2, 'late: an epoch begins while a worker is on its way');
kill('CONT', $late);
both_apply('late');
shows_epochs('late', "1 first $n -, 2 other_consumers_left @{[ $redis->command('XLEN', 'stream:late') - $n ]} 0");
drop('late');

# --- All workers have gone, and the stream is another one when they come back: the first that is there waits for worker 1.
start('gone');
add('gone', map { "1000-$_" } 2 .. 10);
rows('gone', 10);
# The first worker has ended more often, and so comes back later.
end_worker('gone', 1) for 1 .. 2;
my @consumers = split /\n/, sql(q(SELECT consumer FROM postpipe_workers WHERE pipeline = 'gone' ORDER BY worker));
my $supervisor = sql(q(SELECT pid FROM postpipe_workers WHERE backend_type = 'supervisor'));
kill('STOP', $supervisor);
sql(q(SELECT pg_terminate_backend(pid) FROM postpipe_workers WHERE pipeline = 'gone'));
wait_sql($node, 'postgres', q(SELECT count(*) FROM postpipe_workers WHERE pipeline = 'gone'), 0, 'gone: no worker is left');
wait_for { $redis->command('INFO', 'clients') =~ /^blocked_clients:0\r$/m } '... and nobody waits in Redis';
# It begins with the same ID as before, and its group has the same consumers, and has read nothing.
$redis->transaction([ 'DEL', 'stream:gone' ], (map { [ 'XADD', 'stream:gone', "1000-$_", 'v', 'v' . ++$serial ] } 1 .. 20),
	[ 'XGROUP', 'CREATE', 'stream:gone', 'postpipe_gone', 0 ], (map { [ 'XGROUP', 'CREATECONSUMER', 'stream:gone', 'postpipe_gone', $_ ] } @consumers));
kill('CONT', $supervisor);
rows('gone', 30, '... when the stream is made anew');
shows_epochs('gone', '1 first 10 -, 2 stream_made_anew 20 0');
drop('gone');

# --- A worker that Redis does not let in holds nobody up.
start('alone');
my $had = () = $redis->command('CLIENT', 'LIST') =~ /^id=/mg;
my (undef, $max) = @{ $redis->command('CONFIG', 'GET', 'maxclients') };
$redis->command('CONFIG', 'SET', 'maxclients', $had - 1);
$redis->command('CLIENT', 'KILL', 'ID', client('alone', 2));
wait_for {
	my $second = client('alone', 2);
	$redis->pipeline([ 'CLIENT', 'KILL', 'ID', $second ]) if $second;
	!$second && client('alone', 1);
} 'alone: the first worker is connected again, and the second one is not';
add('alone', ('*') x 3);
rows('alone', 4, '... and goes on without it');
ok(!client('alone', 2), '... while Redis does not let that one in');
$redis->command('CONFIG', 'SET', 'maxclients', $max);
wait_for { client('alone', 2) } '... until it does';
both_apply('alone');
drop('alone');

pp_balanced($node);
$node->stop;
done_testing();

# A pipeline with two workers that both read, and one entry.
sub start
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	make($name, workers => 2, options => '{"batch_size": 1}');
	holding($name);
	wait_for { consumers($redis, "stream:$name", "postpipe_$name") == 2 } "$name: two consumers";
	add($name, '1000-1');
	rows($name, 1);
	wait_for { pending($redis, "stream:$name", "postpipe_$name") == 0 } "$name: it is acknowledged";
	return;
}

sub add { my ($name, @ids) = @_; return $redis->pipeline(map { [ 'XADD', "stream:$name", $_, 'v', 'v' . ++$serial ] } @ids) }

# The worker of the pipeline that waits for a lock: a column of postpipe_workers.
sub stuck { my ($column, $name) = @_; return sql("SELECT $column FROM postpipe_workers w JOIN pg_stat_activity a USING (pid) WHERE w.pipeline = '$name' AND a.wait_event_type = 'Lock'") }

# The second worker has an entry in hand until the session that is returned unlocks it.
sub hold_second
{
	my ($name) = @_;
	my $session = pp_session($node);
	for (1 .. 50)
	{
		my $n = $redis->command('XLEN', "stream:$name");
		$session->('SELECT pg_advisory_lock(1)');
		$redis->xadd("stream:$name", v => 'hold ' . ++$serial);
		my $worker = wait_for { stuck('worker', $name) } "$name: a worker is stuck";
		last if $worker == 2;
		$session->('SELECT pg_advisory_unlock(1)');
		rows($name, $n + 1);
	}
	return $session;
}

# Each of the workers applies something.
sub both_apply
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $session = pp_session($node);
	$session->('SELECT pg_advisory_lock(1)');
	$redis->xadd("stream:$name", v => 'hold ' . ++$serial);
	wait_for { stuck('worker', $name) } "$name: a worker is stuck";
	add($name, ('*') x 3);
	rows($name, $redis->command('XLEN', "stream:$name") - 1, '... and the other one goes on');
	$session->('SELECT pg_advisory_unlock(1)');
	$session->(undef);
	return rows($name, $redis->command('XLEN', "stream:$name"), '... and both have applied what they had');
}

# Ends a worker, and waits for the next process.
sub end_worker
{
	my ($name, $worker) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $pid = sql("SELECT pid FROM postpipe_workers WHERE pipeline = '$name' AND worker = $worker");
	sql("SELECT pg_terminate_backend($pid)");
	return wait_for { sql("SELECT pid <> $pid FROM postpipe_workers WHERE pipeline = '$name' AND worker = $worker") eq 't' } "$name: worker $worker comes again";
}

# Waits until this worker waits for a lock; its PID.
sub waiting
{
	my ($name, $worker) = @_;
	return wait_for { sql("SELECT pid FROM pg_stat_activity WHERE application_name = 'postpipe worker $name/$worker' AND wait_event_type = 'Lock'") } "$name: worker $worker waits for a lock";
}

# The ID of a worker's connection to Redis, if it has one.
sub client { my ($name, $worker) = @_; return $redis->command('CLIENT', 'LIST') =~ /^id=(\d+) .* name=\S+:$name:$worker /m ? $1 : undef }

# Of each epoch: what it began with, how many entries were applied, and the balance.
sub shows_epochs
{
	my ($name, $expected) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_sql($node, 'postgres', "SELECT string_agg(concat_ws(' ', epoch, cause, a.applied, coalesce(balance::text, '-')), ', ' ORDER BY epoch)
		FROM postpipe_audit a JOIN postpipe_epoch USING (pipeline, epoch) WHERE pipeline = '$name'", $expected, "$name: its epochs", 30);
}
