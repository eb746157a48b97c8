# What the tables say where several things come together: a prune beside holes, a rewind beside others, and a Redis that has gone back
# while a worker holds what it was given last. TAP, because it needs a Redis that others change while background workers rest.

use strict;
use warnings;
use PostgreSQL::Test::Utils;
use Postpipe::Test;
use Postpipe::Test::Pipelines qw(xadds drop letters pause resume rows shows lost lag);

my $redis = Postpipe::Test::Redis->new(keep => 1);
my $node = pp_node('edges', redis => $redis);
sql('CREATE EXTENSION postpipe');
sql(q(SELECT postpipe_drop_pipeline('posts')));

# --- What is pending for another consumer stays a hole, whatever is pruned.
my @ids = add('holes', 5);
$redis->command('XGROUP', 'CREATE', 'stream:holes', 'postpipe_holes', 0);
read_by('python', 'holes', 3);
make('holes', options => '{"ledger_retention": "1min", "batch_size": 1}');
rows('holes', 2);
is(holes('holes'), "{$ids[0],$ids[1],$ids[2]}", 'three are holes');
hand_over('holes', $ids[0]);
rows('holes', 3);
add('holes', 1);
rows('holes', 4);
# The row of an ID below what is pruned already is the only one that goes; that of the last batch stays.
sql("UPDATE postpipe_ledger l SET settled_at = settled_at - interval '2 minutes' WHERE pipeline = 'holes' AND (last_id = '$ids[0]' OR sequence = (SELECT max(sequence) FROM postpipe_ledger))");
add('holes', 1001);
rows('holes', 1005);
sql('SELECT pg_reload_conf()');    # what is due after a while is due now
wait_sql($node, 'postgres', "SELECT count(*) FROM postpipe_ledger WHERE pipeline = 'holes' AND first_id = '$ids[0]'", 0, 'the row of the first one is pruned');
is(holes('holes'), "{$ids[1],$ids[2]}", 'the others are holes still');
hand_over('holes', $ids[1]);
rows('holes', 1006, 'a hole that is handed over is applied');

# The same where only rows of what the stream was before go.
pause('holes');
$redis->command('DEL', 'stream:holes');
my @anew = add('holes', 3);
$redis->command('XGROUP', 'CREATE', 'stream:holes', 'postpipe_holes', 0);
read_by('python', 'holes', 2);
resume('holes');
rows('holes', 1007, 'made anew');
sql("UPDATE postpipe_ledger SET settled_at = settled_at - interval '2 minutes' WHERE pipeline = 'holes' AND epoch = 1");
my $before = sql("SELECT count(*) FROM postpipe_ledger WHERE pipeline = 'holes' AND epoch = 1");
add('holes', 1001);
rows('holes', 2008);
wait_sql($node, 'postgres', "SELECT count(*) < $before AND coalesce(bool_and(summed), true) FROM postpipe_ledger WHERE pipeline = 'holes' AND epoch = 1", 't', 'rows of the stream before are pruned');
is(holes('holes'), "{$anew[0],$anew[1]}", 'both are holes still');
hand_over('holes', $anew[0]);
rows('holes', 2009, '... and applied when they are handed over');
drop('holes');

# --- More entries are pending for another consumer than are noted as holes: nothing is pruned.
make('full', options => '{"ledger_retention": "1min", "batch_size": 1}');
pause('full');
my @full = add('full', 10_002);
read_by('python', 'full', 10_002);
resume('full');
add('full', 3);
rows('full', 3);
sql(q(UPDATE postpipe_ledger SET settled_at = settled_at - interval '2 minutes' WHERE pipeline = 'full'));
my $sealed = sql(q(SELECT xmin FROM postpipe_progress WHERE pipeline = 'full'));
add('full', 1001);
rows('full', 1004);
wait_sql($node, 'postgres', "SELECT xmin <> '$sealed' FROM postpipe_progress WHERE pipeline = 'full'", 't', 'full: what is old is pruned now, if anything is');
add('full', 1);
rows('full', 1005);
hand_over('full', $full[-1]);
rows('full', 1006, 'full: the last one of those that are pending is applied when it is handed over');
drop('full');

# --- What a discard leaves in the sums is no batch that was read, and goes when it is old.
make('sums', options => '{"ledger_retention": "1min", "batch_size": 1, "max_retries": 0}');
sql(q(ALTER TABLE t_sums ADD CHECK (v <> 'bad')));
$redis->xadd('stream:sums', v => 'bad');
letters('sums', 1);
is(sql(q(SELECT postpipe_discard('sums'))), 1, 'a letter is discarded');
sql(q(UPDATE postpipe_ledger SET settled_at = settled_at - interval '2 minutes' WHERE pipeline = 'sums'));
add('sums', 1001);
rows('sums', 1001);
wait_sql($node, 'postgres', q(SELECT count(*) FROM postpipe_ledger WHERE pipeline = 'sums' AND settled_at < now() - interval '1 minute' AND worker = 0), 0, '... and its row is pruned', 30);
is(sql(q(SELECT applied, dead, discarded FROM postpipe_audit WHERE pipeline = 'sums')), '1001|0|1', '... but counted');
drop('sums');

for my $workers (1, 2)
{
	# --- A rewind that takes long, while the stream is trimmed: what goes meanwhile is not forgotten.
	my $p = "slow_$workers";
	make($p, workers => $workers);
	my @ids = add($p, 50);
	rows($p, 50);
	pause($p);
	add($p, 500);
	my $lock = pp_session($node);
	$lock->('BEGIN; LOCK TABLE postpipe_dead_letter');
	my $rewind = pp_start($node, "SELECT postpipe_rewind('$p', to_id => '$ids[39]')");
	wait_sql($node, 'postgres', q(SELECT count(*) FROM pg_locks WHERE relation = 'postpipe_dead_letter'::regclass AND NOT granted), 1, "$p: the rewind waits");
	$redis->command('XTRIM', "stream:$p", 'MAXLEN', 10);
	$lock->('COMMIT');
	$lock->(undef);
	$rewind->();
	resume($p);
	rows($p, 60);
	shows($p, '510|10|500|0', 'trimmed while the rewind waited');
	drop($p);

	# --- Others have read while the pipeline was paused: what they have settled is not lost.
	$p = "others_$workers";
	make($p, workers => $workers);
	@ids = add($p, 50);
	rows($p, 50);
	pause($p);
	resume($p);
	add($p, 1);
	rows($p, 51);
	pause($p);
	add($p, 20);
	read_by('python', $p, 20, 1);
	add($p, 30);
	$redis->command('XTRIM', "stream:$p", 'MAXLEN', 10);
	sql("SELECT postpipe_rewind('$p', to_id => '$ids[49]')");
	is(lost($p), '1 first 20 f', "$p: only what nobody has read is lost");
	resume($p);
	rows($p, 61);
	drop($p);

	# --- A group at the beginning of a stream of which nothing is gone, or of which all was gone before, with another consumer.
	for my $gone (0, 10)
	{
		$p = "fresh_${gone}_$workers";
		add($p, $gone) if $gone;
		$redis->command('XTRIM', "stream:$p", 'MAXLEN', 0);
		$redis->command('XGROUP', 'CREATE', "stream:$p", "postpipe_$p", 0, 'MKSTREAM');
		$redis->command('XGROUP', 'CREATECONSUMER', "stream:$p", "postpipe_$p", 'python');
		make($p, workers => $workers);
		pause($p);
		add($p, 5);
		resume($p);
		rows($p, 5);
		is(lost($p), '', "$p: nothing was lost since");
		shows($p, '5|5|0|0', 'all is read');
		drop($p);
	}

	# --- A rewind to an ID that the group has not reached.
	$p = "forward_$workers";
	make($p, workers => $workers);
	@ids = add($p, 50);
	rows($p, 50);
	pause($p);
	push @ids, add($p, 20);
	is(sql("SELECT postpipe_rewind('$p', to_id => '$ids[59]')"), 10, "$p: rewound forward");
	is(sql("SELECT epoch, entries, first_id > '$ids[49]', last_id = '$ids[59]', cause FROM postpipe_lost WHERE pipeline = '$p'"), '1|10|t|t|passed_over_by_rewind', "$p: what is passed over is told");
	resume($p);
	rows($p, 60);
	shows($p, '10|10|0|0', 'the rest is read');
	# By a time: the range of what is trimmed afterwards begins with it.
	pause($p);
	my ($ms) = $ids[59] =~ /^(\d+)/;
	sql("SELECT postpipe_rewind('$p', to_time => to_timestamp($ms / 1000.0))");
	$redis->command('XTRIM', "stream:$p", 'MAXLEN', 0);
	add($p, 1);
	resume($p);
	rows($p, 61);
	is(sql("SELECT entries, first_id, last_id > '$ids[69]' FROM postpipe_lost WHERE pipeline = '$p' AND epoch = 3"), scalar(grep { /^$ms-/ } @ids) + scalar(grep { /^(\d+)/ && $1 > $ms } @ids) . "|$ms-0|t", '... and not after what was settled before it');
	drop($p);

	# --- The same of a group that was made at the stream's end, and has been given nothing yet: what is before it is not passed over.
	$p = "at_end_$workers";
	@ids = add($p, 20);
	$redis->command('XGROUP', 'CREATE', "stream:$p", "postpipe_$p", '$');
	make($p, workers => $workers);
	pause($p);
	is(sql("SELECT postpipe_rewind('$p', to_id => '$ids[19]')"), 0, "$p: rewound to where it stands");
	is(lost($p), '', '... and nothing is lost');
	push @ids, add($p, 3);
	is(sql("SELECT postpipe_rewind('$p', to_id => '$ids[20]')"), 2, '... and forward');
	is(lost($p), '2 rewind 1 f', '... over one entry');
	resume($p);
	rows($p, 2);
	shows($p, '2|2|0|0', 'the rest is read');
	drop($p);

	# --- A rewind of a group that somebody has moved forward.
	$p = "moved_$workers";
	make($p, workers => $workers);
	@ids = add($p, 50);
	rows($p, 50);
	pause($p);
	push @ids, add($p, 500);
	$redis->command('XGROUP', 'SETID', "stream:$p", "postpipe_$p", '$');
	$redis->command('XTRIM', "stream:$p", 'MAXLEN', 10);
	sql("SELECT postpipe_rewind('$p', to_id => '$ids[544]')");
	is(sql("SELECT string_agg(format('%s %s %s', epoch, entries, cause), ', ' ORDER BY cause DESC) FROM postpipe_lost WHERE pipeline = '$p'"),
		'1 490 trimmed_before_read, 1 5 passed_over_by_rewind', "$p: what nobody was given is told");
	resume($p);
	rows($p, 55);
	shows($p, '5|5|0|0', 'the rest is read');
	drop($p);
}

# --- Redis has gone back to when a worker was given what it has not settled since.
add('older', 20);
$redis->command('XGROUP', 'CREATE', 'stream:older', 'postpipe_older', '$');
make('older', workers => 2, options => '{"batch_size": 1, "lock_timeout": "1s"}', unique => 1);
add('older', 10);
rows('older', 10);
my $session = pp_session($node);
my $n = 10;
for (1 .. 50)
{
	my ($new) = xadds('older', 1);
	my $v = $new->[-1];
	$session->("BEGIN; INSERT INTO t_older VALUES ('$v')");
	$redis->pipeline($new);
	wait_for { pending($redis, 'stream:older', 'postpipe_older') == 1 } "$v is in hand";
	my ($who) = map { $_->[1] } @{ $redis->command('XPENDING', 'stream:older', 'postpipe_older', '-', '+', 1) };
	last if $who =~ /:1$/;
	$session->('ROLLBACK');
	rows('older', ++$n);
}
wait_sql($node, 'postgres', q(SELECT count(*) FROM postpipe_workers WHERE pipeline = 'older' AND worker = 1 AND state = 'retrying'), 1, 'worker 1 waits for a lock');
my ($files, $older) = map { $redis->dir . "/$_" } qw(appendonlydir older);
system_or_bail('cp', '-a', $files, $older);
add('older', 1);
rows('older', ++$n, 'the other one goes on');
$redis->kill9;
pause('older');    # nothing is in hand then
$session->('ROLLBACK');
$session->(undef);
system_or_bail('rm', '-rf', $files);
rename($older, $files) or die "$files: $!";
$redis->start;
resume('older');
add('older', 1);
rows('older', $n + 2, 'what was given away last, and what is new');
wait_for { pending($redis, 'stream:older', 'postpipe_older') == 0 && lag('older') == 0 } 'all is read';
rows('older', $n + 2, '... and nothing from before the pipeline began');
shows('older', '2|2|0|0', 'both are of a new epoch');
is(sql(q(SELECT string_agg(cause, ' ' ORDER BY epoch) FROM postpipe_epoch WHERE pipeline = 'older')), 'first stream_went_back', '... that began because the stream went back');
drop('older');

pp_balanced($node);
$node->stop;
done_testing();

# One of which nothing is given twice, if its table has a key.
sub make
{
	my ($name, %opt) = @_;
	my $key = delete $opt{unique} ? 'PRIMARY KEY' : '';
	Postpipe::Test::Pipelines::make($name, %opt);
	sql("ALTER TABLE t_$name ADD $key (v)") if $key;
	wait_sql($node, 'postgres', "SELECT state FROM postpipe_stats WHERE pipeline = '$name'", 'idle', "$name reads");
	return;
}

sub add { my ($name, $n) = @_; return $redis->pipeline(xadds($name, $n)) }
sub holes { my ($name) = @_; return sql("SELECT holes FROM postpipe_progress WHERE pipeline = '$name'") }

# Another consumer of the group reads so many, and acknowledges them perhaps.
sub read_by
{
	my ($who, $name, $n, $ack) = @_;
	my $reply = $redis->command('XREADGROUP', 'GROUP', "postpipe_$name", $who, 'COUNT', $n, 'STREAMS', "stream:$name", '>');
	my @ids = map { $_->[0] } @{ $reply->[0][1] };
	$redis->command('XACK', "stream:$name", "postpipe_$name", @ids) if $ack;
	return;
}

# What is pending for another consumer is given to worker 1.
sub hand_over
{
	my ($name, $id) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	pause($name);
	my ($consumer) = grep { /:1$/ } map { my %c = @$_; $c{name} } @{ $redis->command('XINFO', 'CONSUMERS', "stream:$name", "postpipe_$name") };
	is(scalar @{ $redis->command('XCLAIM', "stream:$name", "postpipe_$name", $consumer, 0, $id, 'JUSTID') }, 1, "$name: $id is handed over");
	resume($name);
	return;
}
