# The stream changes under the pipeline: deleted and made anew, flushed, its group destroyed or moved from outside, trimmed
# ahead of the reader. New entries are applied, old ones not again, and the audit balances.
# TAP, because it needs a Redis stream that others change while background workers read it.

use strict;
use warnings;
use Postpipe::Test;
use Postpipe::Test::Pipelines qw(make xadds holding drop pause lag balanced);

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('epochs', redis => $redis);
sql('CREATE EXTENSION postpipe');
sql(q(SELECT postpipe_drop_pipeline('posts')));

# --- Deleted and made anew: with higher IDs, lower ones, the very same ones; fewer of them and more than before; while
# the pipeline runs and while it rests.
for my $case (
	[ 'higher', 'missed', map { "2000-$_" } 1 .. 5 ],
	[ 'higher_more', 'seen', map { "2000-$_" } 1 .. 50 ],
	[ 'lower', 'seen', map { "500-$_" } 1 .. 5 ],
	[ 'lower_more', 'missed', map { "500-$_" } 1 .. 50 ],
	[ 'same', 'seen', map { "1000-$_" } 1 .. 10 ],
	[ 'same_more', 'missed', map { "1000-$_" } 1 .. 50 ])
{
	my ($p, $how, @new) = @$case;
	make($p);
	add($p, $_, "old $_") for map { "1000-$_" } 1 .. 10;
	settled($p, 10);
	pause($p) if $how eq 'missed';
	$redis->transaction([ 'DEL', "stream:$p" ], (map { [ 'XADD', "stream:$p", $_, 'v', "new $_" ] } @new));
	sql("SELECT postpipe_resume('$p')") if $how eq 'missed';
	settled($p, 10 + @new);
	is(sql("SELECT count(*), count(DISTINCT v), sum((v LIKE 'new%')::int) FROM t_$p"), (10 + @new) . '|' . (10 + @new) . '|' . @new, "$p: every new entry is applied once");
	is(sql("SELECT count(*) FROM postpipe_audit WHERE pipeline = '$p'"), 2, "$p: a new epoch");
	balanced($p);
	add($p, '*', 'later');
	settled($p, 11 + @new);
	balanced($p);
	drop($p);
}

# --- FLUSHALL, and the same entries with the same content again: those are not applied again.
make('flushed');
add('flushed', "1000-$_", "v$_") for 1 .. 10;
settled('flushed', 10);
$redis->command('FLUSHALL');
add('flushed', "1000-$_", "v$_") for 6 .. 15;
settled('flushed', 15);
is(sql('SELECT count(*), count(DISTINCT v) FROM t_flushed'), '15|15', 'FLUSHALL and a producer that sends again: each entry once');
balanced('flushed');
drop('flushed');

# --- SWAPDB with an empty database, and back.
make('swapped');
add('swapped', "1000-$_", "v$_") for 1 .. 10;
settled('swapped', 10);
$redis->command('SWAPDB', 0, 1);
add('swapped', "500-$_", "w$_") for 1 .. 5;
settled('swapped', 15);
balanced('swapped');
$redis->command('SWAPDB', 0, 1);
add('swapped', "1000-$_", "v$_") for 11 .. 15;
settled('swapped', 20);
is(sql('SELECT count(DISTINCT v) FROM t_swapped'), 20, 'SWAPDB, and back: each entry once');
balanced('swapped');
drop('swapped');

# --- XGROUP DELCONSUMER of ours with pending entries, by somebody else: they are read by their range.
# While the pipeline rests, with and without a backlog behind them.
for my $behind (0, 500)
{
	my $p = "deleted_$behind";
	make($p, statement => "INSERT INTO t_$p SELECT event ->> 'v' FROM postpipe_batch, pg_sleep(0)", options => '{"batch_size": 10}');
	add($p, '*', "v$_") for 1 .. 5;
	settled($p, 5);
	my $consumer = sql("SELECT consumer FROM postpipe_workers WHERE pipeline = '$p'");
	sql("ALTER TABLE t_$p RENAME TO away");
	add_many($p, 20 + $behind);
	wait_for { pending($redis, "stream:$p", "postpipe_$p") > 0 } "$p: some are pending";
	pause($p);
	my $n = $redis->command('XGROUP', 'DELCONSUMER', "stream:$p", "postpipe_$p", $consumer);
	cmp_ok($n, '>', 0, "$p: the consumer is deleted, with what is pending");
	sql("ALTER TABLE away RENAME TO t_$p; SELECT postpipe_resume('$p')");
	settled($p, 25 + $behind);
	is(sql("SELECT count(DISTINCT v) FROM t_$p"), 25 + $behind, "$p: each entry once");
	is(lost($p), 0, "$p: nothing is lost");
	balanced($p);
	drop($p);
}
# Of a worker that is busy, and then goes, while another one goes on beyond; and the same with an immediate stop.
for my $p (qw(busy down))
{
	my $name = "postpipe_$p";
	make($p, workers => 2, options => '{"batch_size": 10}');
	holding($p);
	wait_for { add_many($p, 1); consumers($redis, "stream:$p", $name) == 2 } "$p: two consumers";
	my $session = pp_session($node);
	$session->('SELECT pg_advisory_lock(1)');
	my $stuck;
	add($p, '*', 'hold');
	wait_for { $stuck = sql("SELECT w.consumer FROM postpipe_workers w JOIN pg_stat_activity a USING (pid) WHERE w.pipeline = '$p' AND a.wait_event_type = 'Lock' LIMIT 1") } "$p: a worker is stuck";
	for my $round (1 .. 3)
	{
		add($p, '*', "$p $round");
		wait_sql($node, 'postgres', "SELECT count(*) FROM t_$p WHERE v = '$p $round'", 1, "$p: the other one goes on");
	}
	$node->stop('immediate') if $p eq 'down';
	is($redis->command('XGROUP', 'DELCONSUMER', "stream:$p", $name, $stuck), 1, "$p: its consumer is deleted, with an entry");
	$node->start if $p eq 'down';
	sql("SELECT pg_terminate_backend(pid) FROM postpipe_workers WHERE consumer = '$stuck'") if $p eq 'busy';
	$session->('SELECT pg_advisory_unlock(1)') if $p eq 'busy';
	my $n = $redis->command('XLEN', "stream:$p");
	settled($p, $n);
	is(sql("SELECT count(DISTINCT v) FROM t_$p"), $n, "$p: each entry once");
	is(lost($p), 0, "$p: nothing is lost");
	balanced($p);
	cmp_ok(scalar log_lines($node, qr/pipeline "$p", worker \d: a consumer of group "$name" was deleted by somebody/), '>', 0, "$p: the log says so") if $p eq 'busy';
	drop($p);
}

# --- XGROUP DESTROY; also with entries that were added before it is made again.
make('destroyed');
add('destroyed', '*', "v$_") for 1 .. 10;
settled('destroyed', 10);
$redis->transaction([ 'XGROUP', 'DESTROY', 'stream:destroyed', 'postpipe_destroyed' ], (map { [ 'XADD', 'stream:destroyed', '*', 'v', "w$_" ] } 1 .. 5));
settled('destroyed', 15);
is(sql('SELECT count(*), count(DISTINCT v) FROM t_destroyed'), '15|15', 'XGROUP DESTROY: each entry once');
is(sql(q(SELECT count(*) FROM postpipe_audit WHERE pipeline = 'destroyed')), 1, '... in one epoch');
balanced('destroyed');
# Made again by somebody else, at the end of the stream.
pause('destroyed');
$redis->pipeline([ 'XGROUP', 'DESTROY', 'stream:destroyed', 'postpipe_destroyed' ], (map { [ 'XADD', 'stream:destroyed', '*', 'v', "x$_" ] } 1 .. 5), [ 'XGROUP', 'CREATE', 'stream:destroyed', 'postpipe_destroyed', '$' ]);
sql(q(SELECT postpipe_resume('destroyed')));
settled('destroyed', 20);
balanced('destroyed');
drop('destroyed');

# --- Moved from outside, backward and forward, while it runs and while it rests, with one worker and with three.
for my $workers (1, 3)
{
	my $p = "moved_$workers";
	make($p, workers => $workers);
	add_many($p, 100);
	settled($p, 100);
	group_at($p, '0');
	wait_sql($node, 'postgres', "SELECT entries_deduplicated FROM postpipe_stats WHERE pipeline = '$p'", 100, "$p: set back: all come again");
	is(sql("SELECT count(*) FROM t_$p"), 100, '... and none is applied again');
	balanced($p);
	$redis->pipeline((map { [ 'XADD', "stream:$p", '*', 'v', "f$_" ] } 1 .. 1), [ 'MULTI' ], (map { [ 'XADD', "stream:$p", '*', 'v', "g$_" ] } 1 .. 50), [ 'XGROUP', 'SETID', "stream:$p", "postpipe_$p", '$' ], [ 'EXEC' ]);
	add($p, '*', 'after');
	settled($p, 152);
	is(sql("SELECT count(*), count(DISTINCT v) FROM t_$p"), '152|152', "$p: moved forward: what was passed over is applied once");
	balanced($p);
	pause($p);
	add_many($p, 30);
	group_at($p, '$');
	sql("SELECT postpipe_resume('$p')");
	settled($p, 182);
	balanced($p);
	drop($p);
}

# --- Set back with several workers at work: whoever is given an entry that another one holds waits for it.
make('overlap', workers => 4, options => '{"batch_size": 50}', statement => 'INSERT INTO t_overlap SELECT event ->> \'v\' FROM postpipe_batch, pg_sleep(0.002)');
wait_for { consumers($redis, 'stream:overlap', 'postpipe_overlap') == 4 } 'overlap: four consumers';
add_many('overlap', 2000);
for (1 .. 20)
{
	group_at('overlap', '0');
	$redis->command('PING') for 1 .. 50;
}
wait_for { $redis->command('XPENDING', 'stream:overlap', 'postpipe_overlap')->[0] == 0 && lag('overlap') == 0 } 'overlap: all is read and acknowledged';
is(sql('SELECT count(*), count(DISTINCT v) FROM t_overlap'), '2000|2000', 'overlap: each entry once');
balanced('overlap');
drop('overlap');

# --- Trimmed ahead of the reader: by some, by all, twice, and while it runs.
for my $workers (1, 2)
{
	my $p = "trimmed_$workers";
	make($p, workers => $workers);
	add_many($p, 20);
	settled($p, 20);
	pause($p);
	add_many($p, 100);
	$redis->command('XTRIM', "stream:$p", 'MAXLEN', 10);
	sql("SELECT postpipe_resume('$p')");
	settled($p, 30);
	is(lost($p), 90, "$p: 90 are lost");
	balanced($p);
	$redis->transaction((map { [ 'XADD', "stream:$p", '*', 'v', "m$_" ] } 1 .. 40), [ 'XTRIM', "stream:$p", 'MAXLEN', 5 ]);
	settled($p, 35);
	wait_sql($node, 'postgres', "SELECT sum(entries) FROM postpipe_lost_range WHERE pipeline = '$p'", 125, "$p: and 35 more, noticed while it runs");
	balanced($p);
	pause($p);
	add_many($p, 7);
	$redis->command('XTRIM', "stream:$p", 'MAXLEN', 0);
	sql("SELECT postpipe_resume('$p')");
	wait_sql($node, 'postgres', "SELECT sum(entries) FROM postpipe_lost_range WHERE pipeline = '$p'", 132, "$p: nothing is left of 7");
	balanced($p);
	add_many($p, 3);
	settled($p, 38);
	balanced($p);
	drop($p);
}

# --- An existing group is adopted: what others acknowledged is not applied, what is pending for them neither, until it is claimed.
add('adopted', '*', "v$_") for 1 .. 30;
$redis->command('XGROUP', 'CREATE', 'stream:adopted', 'postpipe_adopted', '0');
my $read = $redis->command('XREADGROUP', 'GROUP', 'postpipe_adopted', 'python', 'COUNT', 20, 'STREAMS', 'stream:adopted', '>');
my @ids = map { $_->[0] } @{ $read->[0][1] };
$redis->command('XACK', 'stream:adopted', 'postpipe_adopted', @ids[ 0 .. 9 ]);
make('adopted');
settled('adopted', 10);
is(sql('SELECT count(*) FROM t_adopted'), 10, 'adopted: what was not delivered is applied');
balanced('adopted');
$redis->command('XGROUP', 'SETID', 'stream:adopted', 'postpipe_adopted', '0');
wait_sql($node, 'postgres', q(SELECT entries_deduplicated FROM postpipe_stats WHERE pipeline = 'adopted'), 20, 'adopted: set back: what was acknowledged comes again');
wait_sql($node, 'postgres', q(SELECT count(*) FROM t_adopted), 20, '... and is not applied; what was pending for the other is');
balanced('adopted');
drop('adopted');

pp_balanced($node);
$node->stop;
done_testing();

sub add { my ($name, $id, $value) = @_; return $redis->command('XADD', "stream:$name", $id, 'v', $value) }
sub add_many { my ($name, $n) = @_; return $redis->pipeline(xadds($name, $n)) }
sub group_at { my ($name, $id) = @_; return $redis->command('XGROUP', 'SETID', "stream:$name", "postpipe_$name", $id) }

sub lost
{
	my ($name) = @_;
	return sql("SELECT coalesce(sum(entries), 0) FROM postpipe_lost_range WHERE pipeline = '$name'");
}

sub settled
{
	my ($name, $n) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_sql($node, 'postgres', "SELECT count(*) FROM t_$name", $n, "$name: $n rows");
}
