# What an epoch begins with, and what the one before it ends with: entries that are trimmed unread while an epoch begins are
# lost and not forgotten; what another life of the stream has is read from its beginning, wherever its group was put; what was
# settled so long ago that its rows are pruned stays settled. TAP, because it needs a Redis that others change while
# background workers rest.

use strict;
use warnings;
use PostgreSQL::Test::Utils;
use Postpipe::Test;
use Postpipe::Test::Pipelines qw(xadds drop pause resume rows shows lost lag);

my $redis = Postpipe::Test::Redis->new(keep => 1);
my $node = pp_node('bases', redis => $redis);
sql('CREATE EXTENSION postpipe');
sql(q(SELECT postpipe_drop_pipeline('posts')));

for my $workers (1, 2)
{
	# --- Another life of the stream, with entries trimmed before anybody looks: fewer of them than before, and in a group
	# that somebody has made at its end.
	my $p = "anew_$workers";
	make($p, workers => $workers);
	add($p, 50);
	rows($p, 50);
	pause($p);
	$redis->pipeline([ 'DEL', "stream:$p" ], xadds($p, 40), [ 'XTRIM', "stream:$p", 'MAXLEN', 10 ]);
	resume($p);
	rows($p, 60);
	shows($p, '40|10|30|0', 'made anew and trimmed: what is gone is lost');
	is(lost($p), '2 stream_made_anew 30 f', '... in the new epoch, in a range');
	pause($p);
	$redis->pipeline([ 'DEL', "stream:$p" ], xadds($p, 20), [ 'XGROUP', 'CREATE', "stream:$p", "postpipe_$p", '$' ], xadds($p, 3));
	resume($p);
	rows($p, 83, "$p: made anew with the group at its end: all is read");
	shows($p, '23|23|0|0', '... and accounted for');
	pause($p);
	$redis->pipeline([ 'DEL', "stream:$p" ], xadds($p, 20), [ 'XTRIM', "stream:$p", 'MAXLEN', 5 ], [ 'XGROUP', 'CREATE', "stream:$p", "postpipe_$p", '$' ], xadds($p, 1));
	resume($p);
	rows($p, 89, "$p: the same, and trimmed: what is left is read");
	shows($p, '21|6|15|0', '... and the rest is lost');

	# --- More entries than before, so that it may be the same stream: then there is no balance.
	pause($p);
	$redis->pipeline([ 'DEL', "stream:$p" ], xadds($p, 400), [ 'XTRIM', "stream:$p", 'MAXLEN', 10 ]);
	resume($p);
	rows($p, 99, "$p: made anew, with more entries");
	wait_sql($node, 'postgres', "SELECT added, applied, lost, balance, reason FROM postpipe_audit WHERE pipeline = '$p' ORDER BY epoch DESC LIMIT 1",
		'|10|0||how many entries the epoch began with could not be determined', '... of which it cannot be told how many were not read');
	drop($p);

	# --- The same, and somebody has made the group again: it has no consumers, and stands elsewhere.
	for my $at ('0', '$')
	{
		$p = 'group_at_' . ($at eq '$' ? 'end' : 'begin') . "_$workers";
		make($p, workers => $workers);
		add($p, 50);
		rows($p, 50);
		pause($p);
		$redis->pipeline([ 'DEL', "stream:$p" ], xadds($p, 400), [ 'XTRIM', "stream:$p", 'MAXLEN', 10 ], [ 'XGROUP', 'CREATE', "stream:$p", "postpipe_$p", $at ]);
		resume($p);
		rows($p, 60, "$p: made anew with its group, with more entries");
		wait_sql($node, 'postgres', "SELECT added, applied, lost, balance, reason FROM postpipe_audit WHERE pipeline = '$p' ORDER BY epoch DESC LIMIT 1",
			'|10|0||how many entries the epoch began with could not be determined', '... of which it cannot be told how many were not read');
		is(lost($p), '', '... and nothing is said to be lost');
		drop($p);
	}

	# --- Of the life before all entries were lost, so that none of them is known; then it is made anew with as many, or is gone.
	for my $n (9, 0)
	{
		$p = "only_lost_${n}_$workers";
		make($p, workers => $workers);
		pause($p);
		$redis->pipeline(xadds($p, 9), [ 'XTRIM', "stream:$p", 'MAXLEN', 0 ]);
		resume($p);
		shows($p, '9|0|9|0', 'all is lost');
		pause($p);
		$redis->pipeline([ 'DEL', "stream:$p" ], xadds($p, $n));
		resume($p);
		is(sql("SELECT postpipe_wait_state('$p', 'running')"), 't', "$p: runs");
		add($p, 3);
		rows($p, $n + 3);
		shows($p, join('|', $n + 3, $n + 3, 0, 0), "what comes then is another stream's");
		is(lost($p), '1 first 9 f', '... and nothing else is lost');
		drop($p);
	}

	# --- A rewind of another life of the stream, at which nobody has looked: what is gone of it would be in no table.
	$p = "unseen_$workers";
	make($p, workers => $workers);
	add($p, 50);
	rows($p, 50);
	pause($p);
	$redis->pipeline([ 'DEL', "stream:$p" ], xadds($p, 12), [ 'XTRIM', "stream:$p", 'MAXLEN', 4 ], [ 'XGROUP', 'CREATE', "stream:$p", "postpipe_$p", '$' ]);
	like(error("SELECT postpipe_rewind('$p')"), qr/stream of pipeline "$p" is not the one that was read/, "$p: no rewind of a stream that is not known");
	resume($p);
	is(sql("SELECT postpipe_wait_state('$p', 'running')"), 't', '... until the pipeline has been resumed');
	pause($p);
	is(sql("SELECT postpipe_rewind('$p')"), 4, '... and paused again');
	is(lost($p), '2 stream_made_anew 8 f', '... when it is known what it lacks');
	resume($p);
	shows($p, '4|4|0|0', '... and all of it is read');
	is(sql("SELECT count(DISTINCT v) FROM t_$p"), 54, '... none of it left out');
	drop($p);

	# --- Redis restarts empty while a worker waits for its table.
	$p = "locked_$workers";
	make($p, workers => $workers);
	add($p, 50);
	rows($p, 50);
	my $session = pp_session($node);
	$session->("BEGIN; LOCK TABLE t_$p");
	$redis->transaction(xadds($p, 5)); # one batch
	wait_for { pending($redis, "stream:$p", "postpipe_$p") == 5 } "$p: five are in hand";
	$redis->command('FLUSHALL');
	$redis->transaction(xadds($p, 40), [ 'XTRIM', "stream:$p", 'MAXLEN', 10 ]);
	$session->('COMMIT');
	$session->(undef);
	rows($p, 65);
	shows($p, '40|10|30|0', 'emptied behind a lock, and trimmed: what is gone is lost');
	drop($p);

	# --- Another life of the stream, and a worker that waits for entries is given the last one of it before it looks. That is on
	# record then, and it says nothing of those before it. With IDs of now, or with lower ones.
	for my $case ([ 20 ], [ 60 ], [ 20, 1 ], [ 60, 1 ])
	{
		my ($n, $ms) = @$case;
		$p = join '_', 'waiting', @$case, $workers;
		make($p, workers => $workers);
		add($p, 50);
		rows($p, 50);
		shows($p, '50|50|0|0', 'all is read');
		$redis->transaction([ 'DEL', "stream:$p" ], xadds($p, $n, $ms), [ 'XGROUP', 'CREATE', "stream:$p", "postpipe_$p", '$' ], xadds($p, 1, $ms && $ms + 1));
		rows($p, 51 + $n, "$p: made anew under a worker that waits: all is read");
		shows($p, "$n|$n|0|0", '... and accounted for, but for the one that was settled before');
		is(lost($p), '', '... and nothing is lost');
		drop($p);
	}

	# --- Redis is empty for a while, and then has the stream again: what was trimmed of it is not lost.
	$p = "away_$workers";
	make($p, workers => $workers);
	add($p, 50);
	rows($p, 50);
	$redis->command('XTRIM', "stream:$p", 'MAXLEN', 10);
	pause($p);
	$redis->command('RENAME', "stream:$p", 'away');
	resume($p);
	wait_sql($node, 'postgres', "SELECT base_known FROM postpipe_epoch WHERE pipeline = '$p' AND epoch = 2", 't', "$p: the stream is gone");
	pause($p);
	$redis->command('RENAME', 'away', "stream:$p");
	resume($p);
	add($p, 5);
	rows($p, 55);
	shows($p, '5|5|0|0', 'the stream is back');
	is(lost($p), '', '... and nothing is lost');
	drop($p);

	# --- The same while it reads, and what is new comes in the same moment: no lower ID tells. What was read of it may be pending
	# still, so that it is known as settled only when it has come again.
	for my $pending (0, 50)
	{
		$p = "swapped_${pending}_$workers";
		make($p, workers => $workers);
		my @ids = add($p, 50);
		rows($p, 50);
		acknowledged($p);
		my $consumer = sql("SELECT consumer FROM postpipe_workers WHERE pipeline = '$p' AND worker = $workers");
		my @claim = $pending ? [ 'XCLAIM', "stream:$p", "postpipe_$p", $consumer, 0, @ids, 'FORCE', 'JUSTID' ] : ();
		$redis->transaction(@claim, [ 'RENAME', "stream:$p", 'away' ]);
		wait_sql($node, 'postgres', "SELECT base_known FROM postpipe_epoch WHERE pipeline = '$p' AND epoch = 2", 't', "$p: the stream is gone");
		add($p, 30);
		rows($p, 80);
		acknowledged($p);
		$redis->transaction([ 'RENAME', 'away', "stream:$p" ], xadds($p, 10));
		rows($p, 90);
		wait_sql($node, 'postgres', "SELECT string_agg(cause, ' ' ORDER BY epoch) FROM postpipe_epoch WHERE pipeline = '$p'", 'first stream_gone stream_went_back', "$p: the stream is back");
		add($p, 5);
		rows($p, 95);
		wait_sql($node, 'postgres', "SELECT balance FROM postpipe_audit WHERE pipeline = '$p' ORDER BY epoch DESC LIMIT 1", 0, '... and the audit balances');
		is(lost($p), '', '... and nothing is lost');
		drop($p);
	}

	# --- A rewind: what was trimmed before it is lost in the epoch that ends, what is trimmed after it in the new one.
	for my $when (qw(before after))
	{
		$p = "rewound_${when}_$workers";
		make($p, workers => $workers);
		my @ids = add($p, 50);
		rows($p, 50);
		pause($p);
		add($p, 500);
		$redis->command('XTRIM', "stream:$p", 'MAXLEN', 10) if $when eq 'before';
		is(sql("SELECT postpipe_rewind('$p', to_id => '$ids[49]')"), $when eq 'before' ? 10 : 500, "$p: rewound");
		$redis->command('XTRIM', "stream:$p", 'MAXLEN', 10) if $when eq 'after';
		resume($p);
		rows($p, 60);
		shows($p, $when eq 'before' ? '10|10|0|0' : '500|10|490|0', "trimmed $when the rewind");
		is(lost($p), $when eq 'before' ? '1 first 490 f' : '2 rewind 490 f', '... and lost in its epoch');
		drop($p);
	}

	# --- Another consumer, that does nothing: what is trimmed unread is lost, while it is there and when it leaves.
	$p = "shared_$workers";
	make($p, workers => $workers);
	add($p, 50);
	rows($p, 50);
	$redis->command('XGROUP', 'CREATECONSUMER', "stream:$p", "postpipe_$p", 'python');
	wait_for { add($p, 1); sql("SELECT shared FROM postpipe_progress WHERE pipeline = '$p'") eq 't' } "$p: it is seen";
	rows($p, my $n = $redis->command('XLEN', "stream:$p"));
	shows($p, "$n|$n|0|0", 'nothing is lost');
	pause($p);
	add($p, 500);
	$redis->command('XTRIM', "stream:$p", 'MAXLEN', 10);
	resume($p);
	rows($p, $n += 10);
	shows($p, ($n + 490) . "|$n|490|0", 'trimmed unread, with another consumer');
	is(lost($p), '1 first 490 f', '... and its range is known');
	pause($p);
	add($p, 500);
	$redis->command('XTRIM', "stream:$p", 'MAXLEN', 10);
	$redis->command('XGROUP', 'DELCONSUMER', "stream:$p", "postpipe_$p", 'python');
	resume($p);
	rows($p, $n += 10);
	shows($p, '10|10|0|0', 'the other one leaves: an epoch begins');
	is(lost($p), '1 first 490 f, 1 first 490 f', '... and the one that ends has what was trimmed until then');
	is(sql("SELECT string_agg(cause, ' ' ORDER BY epoch) FROM postpipe_epoch WHERE pipeline = '$p'"), 'first other_consumers_left', '... in two epochs');
	# After a restart of the server nobody knows how far Redis's count is off: how many is not told.
	$redis->command('XGROUP', 'CREATECONSUMER', "stream:$p", "postpipe_$p", 'python');
	wait_for { add($p, 1); sql("SELECT shared FROM postpipe_progress WHERE pipeline = '$p'") eq 't' } "$p: another one comes";
	pause($p);
	add($p, 500);
	$redis->command('XTRIM', "stream:$p", 'MAXLEN', 10);
	$node->restart;
	resume($p);
	wait_sql($node, 'postgres', "SELECT entries IS NULL, cause FROM postpipe_lost WHERE pipeline = '$p' AND epoch = 2", 't|trimmed_before_read', "$p: after a restart: the range");
	wait_sql($node, 'postgres', "SELECT balance IS NULL, reason FROM postpipe_audit WHERE pipeline = '$p' AND epoch = 2", 't|how many entries are lost could not be determined; see postpipe_lost', '... and no balance');
	drop($p);
}

# --- The ledger has pruned what is set back: by hand, when the other consumer leaves; and by a Redis that is started from files
# which are older than the ledger's memory.
make($_, workers => 2, options => '{"ledger_retention": "1min", "batch_size": 1}') for qw(left back);
$redis->command('XGROUP', 'CREATECONSUMER', 'stream:left', 'postpipe_left', 'python');
pause('left');
pause('back');
add($_, 500) for qw(left back);
my ($files, $older) = map { $redis->dir . "/$_" } qw(appendonlydir older);
system_or_bail('cp', '-a', $files, $older);
for my $p (qw(left back))
{
	resume($p);
	rows($p, 500);
	my $n = 500;
	for my $round (1 .. 3)
	{
		sql("UPDATE postpipe_ledger SET settled_at = settled_at - interval '2 minutes' WHERE pipeline = '$p'");
		add($p, 1100);
		rows($p, $n += 1100);
	}
	my $id = $redis->command('XRANGE', "stream:$p", '-', '+', 'COUNT', 500)->[499][0];
	is(sql("SELECT pruned_id > '$id' FROM postpipe_progress WHERE pipeline = '$p'"), 't', "$p: the first 500 are pruned");
}
pause('left');
$redis->command('XGROUP', 'SETID', 'stream:left', 'postpipe_left', 0);
$redis->command('XGROUP', 'DELCONSUMER', 'stream:left', 'postpipe_left', 'python');
resume('left');
add('left', 1);
rows('left', 3801, 'left: set back, and the other consumer has left: nothing is applied again');
wait_for { pending($redis, 'stream:left', 'postpipe_left') == 0 && lag('left') == 0 } 'left: all is read';
rows('left', 3801, '... in the end');
shows('left', '1|1|0|0', 'what was settled is not of the new epoch');
$redis->kill9;
system_or_bail('rm', '-rf', $files);
rename($older, $files) or die "$files: $!";
$redis->start;
my ($new) = xadds('back', 1);
$redis->pipeline($new);
wait_sql($node, 'postgres', "SELECT count(*) FROM t_back WHERE v = '$new->[-1]'", 1, 'back: what is new is applied');
wait_for { pending($redis, 'stream:back', 'postpipe_back') == 0 && lag('back') == 0 } 'back: all is read';
rows('back', 3801, 'back: Redis has its older files: nothing is applied again');
shows('back', '1|1|0|0', 'what was settled is not of the new epoch');
is(sql(q(SELECT string_agg(cause, ' ' ORDER BY epoch) FROM postpipe_epoch WHERE pipeline = 'back')), 'first stream_went_back', '... which began because the stream went back');

pp_balanced($node);
$node->stop;
done_testing();

sub make
{
	my ($name, %opt) = @_;
	Postpipe::Test::Pipelines::make($name, %opt);
	wait_sql($node, 'postgres', "SELECT state FROM postpipe_stats WHERE pipeline = '$name'", 'idle', "$name reads");
	return;
}

sub acknowledged
{
	my ($p) = @_;
	return wait_for { pending($redis, "stream:$p", "postpipe_$p") == 0 } "$p: all is acknowledged";
}

sub add { my ($name, $n) = @_; return $redis->pipeline(xadds($name, $n)) }
