# What must not be forgotten before something else is durable or settled: entries that were read by their range, the
# acknowledgement of what a pipeline has settled that loses its group, and entries that a worker has in hand while somebody else
# finds them gone. TAP, because it takes crashes of the server, a standby that does not confirm, and workers that wait in a batch.
use strict;
use warnings;
use Postpipe::Test;
use Postpipe::Test::Fault;
use Postpipe::Test::Pipelines qw(make holding rows pause resume wait_state drop);

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('forgotten', redis => $redis, conf => 'wal_writer_delay = 10s');
my $session = pp_session($node);
sql('CREATE EXTENSION postpipe');
sql(q(SELECT postpipe_drop_pipeline('posts')));

# --- While worker 2 has an entry in hand, somebody takes it away, and it goes from the stream: worker 1 does not take it for lost.
{
	make('hand', workers => 2, options => '{"batch_size": 1, "claim_foreign": true, "claim_idle": "1s"}');
	holding('hand');
	wait_for { add('hand', 'v'); consumers($redis, 'stream:hand', 'postpipe_hand') == 2 } 'hand: two consumers';
	my ($id, $n, %states) = (undef, 0);
	wait_for {
		hold();
		$id = add('hand', 'hold ' . ++$n);
		wait_for { waiting() } 'hand: a worker waits';
		my $consumer = $redis->command('XPENDING', 'stream:hand', 'postpipe_hand', $id, $id, 1)->[0][1];
		$states{$consumer} = sql(q(SELECT state FROM postpipe_stats WHERE pipeline = 'hand'));
		my $found = keys %states == 2 && $consumer =~ /:2$/;
		release() unless $found;
		$found;
	} 'hand: worker 2 has an entry in hand';
	is(join(' ', values %states), 'running running', 'hand: a pipeline is at work while one of its workers is, whichever');
	my $mark = add('hand', 'mark');
	wait_sql($node, 'postgres', q(SELECT count(*) FROM t_hand WHERE v = 'mark'), 1, 'hand: worker 1 goes on');
	wait_for { pending($redis, 'stream:hand', 'postpipe_hand') == 1 } 'hand: and acknowledges';
	take_away('hand', $id, [ 'XCLAIM', 'stream:hand', 'postpipe_hand', 'python', 0, $mark, 'IDLE', 3_600_000, 'FORCE', 'JUSTID' ]);
	wait_for { !@{ $redis->command('XPENDING', 'stream:hand', 'postpipe_hand', $mark, $mark, 1) } } 'hand: worker 1 takes over what the other consumer has';
	is(sql('SELECT count(*) FROM postpipe_lost'), 0, 'hand: what another worker has in hand is not lost');
	release();
	wait_sql($node, 'postgres', qq(SELECT count(*) FROM t_hand WHERE v = 'hold $n'), 1, 'hand: it is applied');
	wait_for { pending($redis, 'stream:hand', 'postpipe_hand') == 0 } 'hand: and acknowledged';
	is(sql('SELECT count(*) FROM postpipe_lost'), 0, 'hand: and still not lost');
	drop('hand');
}

# --- An entry that was pending for a consumer that somebody has deleted: the server stops at once when it has been read.
{
	make('range', workers => 2, options => '{"batch_size": 10}');
	holding('range');
	wait_for { add('range', 'v'); consumers($redis, 'stream:range', 'postpipe_range') == 2 } 'range: two consumers';
	wait_state('range');
	# As where it is not known what the epoch began with: then nobody counts.
	sql(q(UPDATE postpipe_epoch SET base_added = NULL WHERE pipeline = 'range'));
	hold();
	add('range', 'hold');
	my $stuck;
	wait_for { $stuck = sql(q(SELECT w.consumer FROM postpipe_workers w JOIN pg_stat_activity a USING (pid) WHERE w.pipeline = 'range' AND a.wait_event_type = 'Lock')) } 'range: a worker waits';
	for my $round (1 .. 3)
	{
		add('range', "round $round");
		wait_sql($node, 'postgres', "SELECT count(*) FROM t_range WHERE v = 'round $round'", 1, 'range: the other one goes on');
	}
	wait_for { pending($redis, 'stream:range', 'postpipe_range') == 1 } 'range: and acknowledges';
	is($redis->command('XGROUP', 'DELCONSUMER', 'stream:range', 'postpipe_range', $stuck), 1, 'range: the consumer is deleted, with an entry');
	# So that nobody else makes it durable; it does not heed a stop.
	kill('STOP', sql(q(SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter')));
	is(sql("SELECT pg_terminate_backend(pid, 60000) FROM postpipe_workers WHERE consumer = '$stuck'"), 't', 'range: its worker goes');
	release();
	wait_sql($node, 'postgres', q(SELECT count(*) FROM t_range WHERE v = 'hold'), 1, 'range: it is read by its range');
	wait_sql($node, 'postgres', q(SELECT count(*) FROM postpipe_workers WHERE pipeline = 'range' AND state = 'idle'), 2, 'range: both read again');
	$node->stop('immediate');
	$node->start;
	wait_sql($node, 'postgres', q(SELECT count(*) FROM t_range WHERE v = 'hold'), 1, 'range: it is there after a crash');
	$session = pp_session($node);
	drop('range');
}

# --- A group that is gone with all that was known of its stream: the server stops at once when it is made anew.
{
	make('made');
	add('made', "a$_") for 1 .. 3;
	rows('made', 3);
	sql(q(SELECT postpipe_pause('made')));
	wait_state('made', 'paused');
	add('made', "b$_") for 1 .. 2;
	$redis->pipeline([ 'XTRIM', 'stream:made', 'MAXLEN', 0 ], [ 'XGROUP', 'DESTROY', 'stream:made', 'postpipe_made' ]);
	kill('STOP', sql(q(SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter')));
	sql(q(SELECT postpipe_resume('made')));
	wait_state('made');
	my $known = q(SELECT (SELECT string_agg(cause, ' ' ORDER BY epoch) FROM postpipe_epoch WHERE pipeline = 'made')
		|| (SELECT format(', %s lost, balance %s', count(*), (SELECT coalesce(max(balance)::text, 'not known') FROM postpipe_audit WHERE pipeline = 'made'))
			FROM postpipe_lost WHERE pipeline = 'made'));
	my $told = 'first group_gone, 0 lost, balance not known';
	is(sql($known), $told, 'made: what is gone cannot be told');
	$node->stop('immediate');
	$node->start;
	wait_state('made');
	is(sql($known), $told, 'made: nor after a crash');
	$session = pp_session($node);
	drop('made');
}

# --- A pipeline that loses its group while a standby does not confirm, so that it cannot acknowledge what it has settled.
{
	$node->append_conf('postgresql.conf', "wal_level = replica\nmax_wal_senders = 2");
	$node->restart;
	make('from', consumer_group => 'both');
	add('from', "a$_") for 1 .. 5;
	rows('from', 5);
	wait_for { pending($redis, 'stream:from', 'both') == 0 } 'from: all is acknowledged';
	configure('synchronous_standby_names', 'nobody');
	local $ENV{PGOPTIONS} = '-c synchronous_commit=local';
	wait_sql($node, 'postgres', 'SHOW synchronous_standby_names', 'nobody', 'from: a standby has to confirm');
	$redis->transaction((map { [ 'XADD', 'stream:from', '*', 'v', "b$_" ] } 1 .. 5)); # one batch: it waits behind that
	rows('from', 10);
	wait_for { sync_wait() } 'from: waits for the standby';
	sql('CREATE TABLE t_to (v text)');
	sql(q(SELECT postpipe_create_pipeline('to', 'stream:from', consumer_group => 'both', statement => $$INSERT INTO t_to SELECT event ->> 'v' FROM postpipe_batch$$)));
	wait_state('to', 'fenced');
	sql(q(SELECT postpipe_resume('to', take_over => true)));
	wait_for { $redis->command('HGET', 'postpipe:{stream:from}:both', 'owner') =~ /:to$/ } 'to: takes the group over';
	for (1 .. 6)
	{
		wait_for { sync_wait() || is_fenced() } 'from: waits again';
		last if is_fenced();
		sql(q(SELECT pg_cancel_backend(pid) FROM postpipe_workers WHERE pipeline = 'from'));
	}
	ok(!is_fenced(), 'from: its waits are cancelled, and it does not leave');
	configure('synchronous_standby_names', '');
	wait_state('from', 'fenced');
	add('from', "c$_") for 1 .. 3;
	wait_sql($node, 'postgres', q(SELECT count(*) FROM t_to WHERE v LIKE 'c%'), 3, 'to: reads what comes');
	wait_for { pending($redis, 'stream:from', 'both') == 0 } 'to: all is acknowledged';
	is(sql(q(SELECT string_agg(v, ' ') FROM t_to WHERE v NOT LIKE 'c%')), '', 'to: what the other one has settled is not applied again');
}

# --- A pipeline that has lost its group while it was paused: its first transaction is the one that settles what it leaves.
{
	my $fault = Postpipe::Test::Fault->new($node);
	make('late', consumer_group => 'either');
	add('late', "a$_") for 1 .. 5;
	rows('late', 5);
	my $consumer = sql(q(SELECT consumer FROM postpipe_workers WHERE pipeline = 'late'));
	wait_for { pending($redis, 'stream:late', 'either') == 0 } 'late: all is acknowledged';
	pause('late');
	my @ids = map { $_->[0] } @{ $redis->command('XRANGE', 'stream:late', '-', '+') };
	$redis->command('XCLAIM', 'stream:late', 'either', $consumer, 0, @ids, 'FORCE', 'JUSTID'); # as if it were not
	sql('CREATE TABLE t_heir (v text)');
	sql(q(SELECT postpipe_create_pipeline('heir', 'stream:late', consumer_group => 'either', statement => $$INSERT INTO t_heir SELECT event ->> 'v' FROM postpipe_batch$$)));
	wait_state('heir', 'fenced');
	sql(q(SELECT postpipe_resume('heir', take_over => true)));
	wait_state('heir');
	my $from = log_offset($node);
	$fault->set('before_commit:memory');
	resume('late');
	wait_for { $fault->fired } 'late: that transaction fails';
	wait_state('late', 'fenced');
	is(join("\n", log_lines($node, qr/terminated by signal|reinitializing/, $from)), '', 'late: which is an error, and no crash');
	wait_for { pending($redis, 'stream:late', 'either') == 0 } 'late: what it has settled is acknowledged';
	is(sql('SELECT count(*) FROM t_heir'), 0, 'late: and not applied again');
}

pp_balanced($node);
$node->stop;
done_testing();

sub add { my ($p, $v) = @_; return $redis->command('XADD', "stream:$p", '*', 'v', $v) }

sub hold { return $session->('SELECT pg_advisory_lock(1)') }
sub release { return $session->('SELECT pg_advisory_unlock(1)') }
sub waiting { return sql(q(SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted)) == 1 }

# An entry is pending for another consumer, as if for long, and gone from the stream; further commands come with that.
sub take_away
{
	my ($p, $id, @more) = @_;
	$redis->transaction([ 'XCLAIM', "stream:$p", "postpipe_$p", 'python', 0, $id, 'IDLE', 3_600_000, 'JUSTID' ], [ 'XDEL', "stream:$p", $id ], @more);
	return;
}

sub sync_wait { return sql(q(SELECT count(*) FROM pg_stat_activity a JOIN postpipe_workers w USING (pid) WHERE w.pipeline = 'from' AND a.wait_event = 'SyncRep')) }
sub is_fenced { return sql(q(SELECT state FROM postpipe_stats WHERE pipeline = 'from')) eq 'fenced' }
