# What a worker has received it settles, whatever becomes of its connection: when it is asked again, Redis may not have it any
# more. A worker waits in a batch, with the next one read ahead; then its connection is given up for some reason, and Redis is
# emptied. TAP, because it needs a Redis that others empty, and workers that wait in a batch.

use strict;
use warnings;
use Postpipe::Test;
use Postpipe::Test::Pipelines qw(make xadds holding rows shows wait_state drop);

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('hands', redis => $redis);
my $session = pp_session($node);
sql('CREATE EXTENSION postpipe');
sql(q(SELECT postpipe_drop_pipeline('posts')));

# --- Another worker has the pipeline looked at as a whole.
{
	hold_one('others', 2, 10);
	my $reconnects = reconnects('others');
	my $other = sql(q(SELECT consumer FROM postpipe_workers WHERE pipeline = 'others' AND pid NOT IN (SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND NOT granted)));
	cut($other);
	wait_for { reconnects('others') == $reconnects + 1 } 'others: the other worker has lost its connection';
	$redis->command('FLUSHALL');
	release();
	rows('others', 60, 'others: what was read ahead is applied');
	goes_on('others', 60);
}

# --- Redis crashes, and has nothing when it is back.  A Unix socket says that with the first byte that is written to it.
{
	configure('postpipe.redis_url', $redis->unix_url);
	hold_one('crash', 1, 2);
	$redis->kill9;
	$redis->start;
	release();
	rows('crash', 52, 'crash: what was read ahead is applied');
	goes_on('crash', 52);
}

# --- The pipeline is to read another Redis.
{
	hold_one('url', 1, 2);
	my $second = Postpipe::Test::Redis->new;
	configure('postpipe.redis_url', $second->url);
	$redis->command('FLUSHALL');
	release();
	rows('url', 52, 'url: what was read ahead is applied');
	$redis = $second;
	goes_on('url', 52);
}

$node->stop;
done_testing();

# The first of n entries is in a worker's hand and waits, the second one it has read ahead, and nothing else is pending.
sub hold_one
{
	my ($p, $workers, $n) = @_;
	make($p, workers => $workers, options => '{"batch_size": 1}');
	holding($p);
	wait_state($p);
	$redis->pipeline(xadds($p, 50));
	rows($p, 50);
	wait_state($p);
	$session->('SELECT pg_advisory_lock(1)');
	$redis->pipeline([ 'MULTI' ], [ 'XADD', "stream:$p", '*', 'v', 'hold' ], xadds($p, $n - 1), [ 'EXEC' ]);
	wait_for { sql("SELECT count(*) FROM t_$p") == 50 + $n - 2 && pending($redis, "stream:$p", "postpipe_$p") == 2 } "$p: an entry is in hand, and one read ahead";
	return;
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

sub cut
{
	my ($name) = @_;
	my ($id) = $redis->command('CLIENT', 'LIST') =~ /^id=(\d+) [^\n]*\bname=\Q$name\E /m or die "no connection of $name";
	$redis->command('CLIENT', 'KILL', 'ID', $id);
	return;
}

sub reconnects { my ($p) = @_; return sql("SELECT reconnects FROM postpipe_stats WHERE pipeline = '$p'") }
