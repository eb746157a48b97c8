# What workers notice of their stream while they read, and what they must not take for a fault: several workers at full load,
# one of them slow; a network that cuts their questions into pieces; a group that is moved under a blocked reader; entries so
# large that the stream cannot be looked at often. TAP, because it needs Redis and background workers.

use strict;
use warnings;
use Postpipe::Test;
use Postpipe::Test::Pipelines qw(make drop pause);
use Time::HiRes ();

my $redis = Postpipe::Test::Redis->new;
my $proxy = Postpipe::Test::Proxy->new(target => $redis->port);
my $node = pp_node('watch', redis => $proxy);
my $serial = 0;
my %added;
sql('CREATE EXTENSION postpipe');
sql(q(SELECT postpipe_drop_pipeline('posts')));

# --- The stream is deleted and made anew under two workers: both learn what it is now.
make('anew', workers => 2);
add('anew', 300);
settled('anew');
for my $how ([ 'DEL', 'stream:anew' ], ['FLUSHALL'])
{
	$redis->command(@$how);
	add('anew', 5);
	settled('anew');
	calm('anew', "after $how->[0] nobody connects again and again", 4);
}
balanced('anew');
drop('anew');

# --- Several workers at full load: nothing is wrong, so nobody looks at the stream as a whole.
make('load', workers => 4, options => '{"batch_size": 100}', statement => q(INSERT INTO t_load SELECT event ->> 'v' FROM postpipe_batch, pg_sleep(0.02)));
wait_for { consumers($redis, 'stream:load', 'postpipe_load') == 4 } 'four workers';
my $before = reconnects('load');
for (1 .. 30)
{
	add('load', 1000);
	sql('SELECT 1');
}
settled('load', 60);
is(reconnects('load') - $before, 0, 'full load of four workers: none connects again');
balanced('load');
drop('load');

# --- One of two has a slow statement, and the next batch on its way: the other goes on.
make('slow', workers => 2, options => '{"batch_size": 10}', statement => q(WITH z AS MATERIALIZED
	(SELECT CASE WHEN EXISTS (SELECT FROM postpipe_batch WHERE event ->> 'v' = 'stuck') THEN pg_advisory_xact_lock_shared(7) END)
	INSERT INTO t_slow SELECT event ->> 'v' FROM postpipe_batch, z));
wait_for { consumers($redis, 'stream:slow', 'postpipe_slow') == 2 } 'two workers';
add('slow', 20);
settled('slow');
$before = reconnects('slow');
my $gate = pp_session($node);
$gate->('SELECT pg_advisory_lock(7);');
$redis->transaction([ 'XADD', 'stream:slow', '*', 'v', 'stuck' ], (map { [ 'XADD', 'stream:slow', '*', 'v', "m$_" ] } 1 .. 45));
wait_sql($node, 'postgres', q(SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory'), 1, 'a worker is slow');
wait_sql($node, 'postgres', 'SELECT count(*) >= 46 FROM t_slow', 't', 'the other has applied what was given to it');
# For as long as Redis is asked for its numbers some times, which is longer than an answer may take.
for my $i (1 .. 5)
{
	my $measured = sql(q(SELECT coalesce(measured_at, '-infinity') FROM postpipe_stats WHERE pipeline = 'slow'));
	$redis->command('XADD', 'stream:slow', '*', 'v', "during $i");
	wait_sql($node, 'postgres', "SELECT count(*) FROM t_slow WHERE v = 'during $i'", 1, "$i: what comes meanwhile is applied");
	wait_sql($node, 'postgres', "SELECT measured_at > '$measured' FROM postpipe_stats WHERE pipeline = 'slow'", 't', "$i: Redis was asked again");
}
is(sql(q(SELECT count(*) FROM t_slow WHERE v = 'stuck')), 0, '... while the other is slow still');
is(reconnects('slow') - $before, 0, '... by a worker that does not connect again');
$gate->('SELECT pg_advisory_unlock(7);');
$added{slow} += 46 + 5;
settled('slow');
balanced('slow');
drop('slow');

# --- Questions that arrive in pieces, with entries added and read between: nothing is taken for lost.
make('pieces', workers => 3, options => '{"batch_size": 20}');
wait_for { consumers($redis, 'stream:pieces', 'postpipe_pieces') == 3 } 'three workers';
$proxy->command('dribble c2s');
for (1 .. 300)
{
	add('pieces', 5);
	select(undef, undef, undef, 0.01);
}
$proxy->command('pass');
settled('pieces', 60);
calm('pieces', 'in pieces: then it is calm', 3);
is(lost('pieces'), 0, 'in pieces: nothing is lost');
is(sql(q(SELECT max(epoch) FROM postpipe_audit WHERE pipeline = 'pieces')), 1, '... and it is the same stream');
balanced('pieces');
drop('pieces');

# --- Moved forward under a reader that blocks, with one and with two workers: what was passed over is there, and is read.
for my $workers (1, 2)
{
	my $p = "blocked_$workers";
	make($p, workers => $workers);
	wait_for { consumers($redis, "stream:$p", "postpipe_$p") == $workers } "$p: all workers";
	add($p, 5);
	settled($p);
	calm($p, "$p: they block", 3);
	$redis->transaction((map { [ 'XADD', "stream:$p", '*', 'v', "b$_" ] } 1 .. 2), [ 'XGROUP', 'SETID', "stream:$p", "postpipe_$p", '$' ],
		[ 'XADD', "stream:$p", '*', 'v', 'b3' ]);
	$added{$p} += 3;
	settled($p);
	is(lost($p), 0, "$p: moved forward under a blocked reader: nothing is lost");
	balanced($p);

	# ... to an ID that the stream has not reached: it would deliver nothing until then
	my $from = log_offset($node);
	$redis->command('XGROUP', 'SETID', "stream:$p", "postpipe_$p", '9999999999999-0');
	wait_for { log_lines($node, qr/WARNING.*"$p".* stood at 9999999999999-0/, $from) } "$p: set into the future: said";
	add($p, 5);
	settled($p);
	is(lost($p), 0, "$p: ... nothing is lost");
	balanced($p);
	$redis->transaction((map { [ 'XADD', "stream:$p", '*', 'v', "f$_" ] } 1 .. 5), [ 'XGROUP', 'SETID', "stream:$p", "postpipe_$p", '9999999999999-0' ]);
	$added{$p} += 5;
	settled($p);
	is(lost($p), 0, "$p: ... nor with unread entries");
	balanced($p);
	drop($p);
}

# --- Trimmed so that some were read and some not, and others moved over: each is counted as what it is.
make('mixed');
add('mixed', 10);
settled('mixed');
pause('mixed');
add('mixed', 100);
$redis->pipeline([ 'XGROUP', 'SETID', 'stream:mixed', 'postpipe_mixed', '$' ], [ 'XTRIM', 'stream:mixed', 'MAXLEN', 40 ]);
sql(q(SELECT postpipe_resume('mixed')));
wait_sql($node, 'postgres', 'SELECT count(*) FROM t_mixed', 50, 'moved forward and trimmed: what is left is read');
wait_sql($node, 'postgres', q(SELECT sum(entries) FROM postpipe_lost WHERE pipeline = 'mixed'), 60, '... the rest is lost');
balanced('mixed');
drop('mixed');

# --- Large entries at both ends of the stream: it is looked at less often, and nothing fails.
make('large', options => '{"ledger_retention": "1min", "batch_size": 1}', statement => q(INSERT INTO t_large SELECT left(event ->> 'v', 20) FROM postpipe_batch));
$redis->command('XADD', 'stream:large', '*', 'v', 'x' x (40 * 1024 * 1024));
$added{large} = 1;
settled('large', 60);
my $sent = sent();
for (1 .. 40)
{
	add('large', 1);
	settled_quietly('large');
}
cmp_ok(sent() - $sent, '<', 20 * 40 * 1024 * 1024, 'the 40 MB at the head are not read for each entry');
$redis->command('XADD', 'stream:large', '*', 'v', 'y' x (40 * 1024 * 1024));
$added{large}++;
settled('large', 60);
$before = reconnects('large');
my $from = log_offset($node);
my $pruned = q(SELECT coalesce(pruned_id, '0-0') FROM postpipe_progress WHERE pipeline = 'large');
my $at = sql($pruned);
for (1 .. 3)
{
	sql("UPDATE postpipe_ledger SET settled_at = settled_at - interval '10 minutes' WHERE pipeline = 'large'");
	add('large', 1100);
	$redis->command('XADD', 'stream:large', '*', 'v', 'z' x (40 * 1024 * 1024));
	$added{large}++;
	settled('large', 60);
}
isnt(sql($pruned), $at, 'more than 64 MB at both ends: the ledger is compacted all the same');
wait_sql($node, 'postgres', q(SELECT measured_at > now() - interval '1 minute' FROM postpipe_stats WHERE pipeline = 'large'), 't', '... the stream is measured');
is(reconnects('large') - $before, 0, '... and nobody has to connect again');
is(join("\n", log_lines($node, qr/larger than|redis_/, $from)), '', '... nor to complain');
balanced('large', 60);

pp_balanced($node);
$node->stop;
done_testing();

sub add
{
	my ($name, $n) = @_;
	$redis->pipeline(map { [ 'XADD', "stream:$name", '*', 'v', 's' . ++$serial ] } 1 .. $n);
	$added{$name} += $n;
	return;
}

# Each entry that was added is in the table, once.
sub settled
{
	my ($name, $seconds) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_sql($node, 'postgres', "SELECT count(*) >= $added{$name} FROM t_$name", 't', "$name: all of $added{$name} are applied", $seconds // 15);
	return is(sql("SELECT count(*) FROM t_$name"), $added{$name}, '... once');
}

sub settled_quietly { my ($name) = @_; wait_for { sql("SELECT count(*) FROM t_$name") >= $added{$name} } "$name: the next one"; return }

sub reconnects { my ($name) = @_; return sql("SELECT reconnects FROM postpipe_stats WHERE pipeline = '$name'") }
sub lost { my ($name) = @_; return sql("SELECT coalesce(sum(entries), 0) FROM postpipe_lost_range WHERE pipeline = '$name'") }
sub sent { return ($redis->cli('INFO', 'stats') =~ /total_net_output_bytes:(\d+)/)[0] }
sub reads { return ($redis->cli('INFO', 'commandstats') =~ /cmdstat_xreadgroup:calls=(\d+)/)[0] }

# So many reads later, the workers have not connected again more than once each.
sub calm
{
	my ($name, $what, $turns) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my ($reads, $reconnects) = (reads() + $turns, reconnects($name));
	wait_for { reads() >= $reads } "$name: $turns reads";
	return cmp_ok(reconnects($name) - $reconnects, '<=', 2, $what);
}

sub balanced
{
	my ($name, $seconds) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return Postpipe::Test::Pipelines::balanced($name, $seconds // 15);
}
