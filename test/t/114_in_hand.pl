# What a worker has received it settles, whatever becomes of its connection: when it is asked again, Redis may not have it any
# more. A worker waits in a batch, or tries it again and again, with the next one read ahead; then its connection is given up for
# some reason, and Redis is emptied. TAP, because it needs a Redis that others empty, and workers that wait in a batch.

use strict;
use warnings;
use Postpipe::Test;
use Postpipe::Test::Pipelines qw(make xadds rows shows wait_state drop);

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('hands', redis => $redis);
my $session = pp_session($node);
my $batch_size = 1;
sql('CREATE EXTENSION postpipe');
sql(q(SELECT postpipe_drop_pipeline('posts')));
sql('CREATE SEQUENCE attempts');
sql(q(CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN
	IF NEW.v LIKE ''wait%'' THEN PERFORM pg_advisory_xact_lock(1); END IF;
	IF NEW.v LIKE ''other%'' THEN PERFORM pg_advisory_xact_lock(2); END IF;
	IF NEW.v LIKE ''fail%'' AND nextval(''public.attempts'') > 0 AND NOT pg_try_advisory_xact_lock(1) THEN RAISE lock_not_available; END IF;
	RETURN NEW; END'));

# --- Another worker has the pipeline looked at as a whole.
for my $how (qw(wait fail))
{
	my $p = "others_$how";
	my $rows = hold_one($p, $how, 2, 10);
	my $reconnects = reconnects($p);
	my $holder = $redis->command('XPENDING', "stream:$p", "postpipe_$p", '-', '+', 1)->[0][1];
	cut(sql("SELECT consumer FROM postpipe_workers WHERE pipeline = '$p' AND consumer <> '$holder'"));
	wait_for { reconnects($p) == $reconnects + 1 } "$p: the other worker has lost its connection";
	tried_again() if $how eq 'fail';
	$redis->command('FLUSHALL');
	release();
	rows($p, $rows, "$p: what was read ahead is applied");
	goes_on($p, $rows);
}

# --- The pipeline is looked at as a whole because of what the worker sees as it reads ahead: its group has another consumer.
{
	my $p = 'look';
	my $rows = hold_one($p, 'fail', 1, 2, [ 'XGROUP', 'CREATECONSUMER', "stream:$p", "postpipe_$p", 'python' ]);
	tried_again();
	$redis->command('FLUSHALL');
	release();
	rows($p, $rows, "$p: what was read ahead is applied");
	goes_on($p, $rows);
}

# --- A worker that waits for entries is told that the pipeline is to be looked at, and given one, before it can look at either.
for my $worker (1, 2)
{
	my $p = "late_$worker";
	make($p, workers => 2, options => '{"batch_size": 1}');
	my %consumer = reverse split /[|\n]/, sql("SELECT consumer, worker FROM postpipe_workers WHERE pipeline = '$p' AND worker > 0");
	wait_for { $redis->command('CLIENT', 'LIST') =~ /name=\Q$consumer{$_}\E .*flags=b/ } "$p: worker $_ waits in Redis" for 1, 2;
	my $pid = sql("SELECT pid FROM postpipe_workers WHERE pipeline = '$p' AND worker = $worker");
	kill('STOP', $pid);
	my $reconnects = reconnects($p);
	cut($consumer{ 3 - $worker });
	wait_for { reconnects($p) == $reconnects + 1 } "$p: the other worker has lost its connection";
	$redis->pipeline(xadds($p, 1));
	wait_for { pending($redis, "stream:$p", "postpipe_$p") == 1 } "$p: an entry is on its way to a worker that is stopped";
	$redis->command('FLUSHALL');
	kill('CONT', $pid);
	rows($p, 1, "$p: it is applied");
	goes_on($p, 1);
}

# --- A worker that has settled its batch sees that its consumer was deleted, and is given an entry with that answer, while another
# one has a batch in hand, so that nobody looks.
{
	my $p = 'answer';
	make($p, workers => 2, options => '{"batch_size": 1}');
	sql("CREATE TRIGGER hold BEFORE INSERT ON t_$p FOR EACH ROW EXECUTE FUNCTION hold()");
	wait_state($p);
	$session->('SELECT pg_advisory_lock(1), pg_advisory_lock(2)');
	$redis->pipeline([ 'XADD', "stream:$p", '*', 'v', 'wait' ], [ 'XADD', "stream:$p", '*', 'v', 'other' ]);
	my %entry;
	wait_for {
		%entry = map { $_->[1] => $_->[0] } @{ $redis->command('XPENDING', "stream:$p", "postpipe_$p", '-', '+', 10) };
		keys %entry == 2 && sql(q(SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted)) == 2
	} "$p: each worker has an entry in hand";
	my ($other) = sort { $entry{$b} cmp $entry{$a} } keys %entry;
	$redis->transaction([ 'XGROUP', 'DELCONSUMER', "stream:$p", "postpipe_$p", $other ], xadds($p, 1));
	$session->('SELECT pg_advisory_unlock(2)');
	rows($p, 2, "$p: what came with the answer is applied");
	$redis->command('FLUSHALL');
	release();
	rows($p, 3, "$p: the other one as well");
	goes_on($p, 3);
}

# --- Redis crashes, and has nothing when it is back.  A Unix socket says that with the first byte that is written to it.
{
	configure('postpipe.redis_url', $redis->unix_url);
	my $rows = hold_one('crash', 'wait', 1, 2);
	$redis->kill9;
	$redis->start;
	release();
	rows('crash', $rows, 'crash: what was read ahead is applied');
	goes_on('crash', $rows);
}

# --- The pipeline is to read another Redis; also while a batch is in hand that is not full, so that nothing is read ahead.
for my $case ([ 'wait', 1 ], [ 'fail', 1 ], [ 'fail', 5 ])
{
	my $how = $case->[0];
	$batch_size = $case->[1];
	my $p = "url_${how}_$batch_size";
	my $rows = hold_one($p, $how, 1, 2);
	my $second = Postpipe::Test::Redis->new;
	configure('postpipe.redis_url', $second->url);
	tried_again() if $how eq 'fail';
	$redis->command('FLUSHALL');
	release();
	rows($p, $rows, "$p: what was read ahead is applied");
	$redis = $second;
	goes_on($p, $rows);
}

$node->stop;
done_testing();

# The first of n entries is in a worker's hand and waits, or fails, another one it has read ahead, or has in the same batch, and
# nothing else is pending. Returns how many rows there are when both are applied. These commands come in the same step.
sub hold_one
{
	my ($p, $how, $workers, $n, @commands) = @_;
	make($p, workers => $workers, options => qq({"batch_size": $batch_size}));
	sql("CREATE TRIGGER hold BEFORE INSERT ON t_$p FOR EACH ROW EXECUTE FUNCTION hold()");
	wait_state($p);
	$redis->pipeline(xadds($p, 50));
	rows($p, 50);
	wait_state($p);
	my ($rows, $pending) = (50);
	wait_for {
		$session->('SELECT pg_advisory_lock(1)');
		$redis->transaction([ 'XADD', "stream:$p", '*', 'v', $how . ($rows += $n) ], xadds($p, $n - 1), @commands);
		wait_for {
			my @consumers = @{ $redis->command('XPENDING', "stream:$p", "postpipe_$p")->[3] // [] };
			$pending = @consumers == 1 && $consumers[0][1];
			$pending && sql("SELECT count(*) FROM t_$p") == $rows - $pending;
		} "$p: nobody else has anything";
		# Another worker may have been given all the others: once more, when all is applied.
		if ($pending < 2) { release(); rows($p, $rows) }
		$pending == 2;
	} "$p: an entry is in hand, and one read ahead";
	return $rows;
}

sub tried_again
{
	my $n = sql('SELECT last_value FROM attempts');
	return wait_for { sql('SELECT last_value FROM attempts') > $n + 1 } 'it has failed once more';
}

sub release { return $session->('SELECT pg_advisory_unlock(1)') }

# What is new is read as well, of a stream that is another one; nothing of the former one is lost that was read.
sub goes_on
{
	my ($p, $n) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$redis->pipeline(xadds($p, 3));
	rows($p, $n + 3);
	shows($p, '3|3|0|0', 'the epoch of the new stream has what is new');
	is(sql("SELECT count(*) FROM postpipe_lost WHERE pipeline = '$p'"), 0, "$p: nothing is lost");
	drop($p);
	return;
}

sub cut { my ($name) = @_; $redis->kill_client($name) or die "no connection of $name"; return }
sub reconnects { my ($p) = @_; return sql("SELECT reconnects FROM postpipe_stats WHERE pipeline = '$p'") }
