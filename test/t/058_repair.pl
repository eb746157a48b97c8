# What nobody can account for is found and made good: entries that the group has passed over in whatever way, a database
# that was restored in the middle of something, a stream that was made anew at an awkward moment. What cannot be made good
# is in postpipe_lost. TAP, because it takes background workers, base backups, and a Redis that others change.
use strict;
use warnings;
use PostgreSQL::Test::Utils;
use Postpipe::Test;
use Postpipe::Test::Pipelines qw(make xadds drop pause resume wait_state balanced);

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('repair', redis => $redis, databases => 'postgres', allows_streaming => 1);
sql('CREATE EXTENSION postpipe');
sql(q(SELECT postpipe_drop_pipeline('posts')));

# --- A worker dies with entries in hand, and somebody has deleted its consumer: nothing is pending, nothing was passed
# over, and other workers have received what lies above.
{
	sql('CREATE TABLE free ()');
	make('row20', workers => 2, statement => q(INSERT INTO t_row20 SELECT event ->> 'v' FROM postpipe_batch,
		(SELECT pg_sleep(CASE WHEN EXISTS (SELECT FROM postpipe_batch WHERE event ->> 'v' = 'stuck') AND NOT EXISTS (SELECT FROM free) THEN 60 ELSE 0 END)) z));
	wait_for { consumers($redis, 'stream:row20', 'postpipe_row20') == 2 } 'row20: two workers';
	add('row20', 20);
	rows('row20', 20);
	my $id = $redis->xadd('stream:row20', v => 'stuck');
	my $consumer;
	wait_for { $consumer = $redis->command('XPENDING', 'stream:row20', 'postpipe_row20', $id, $id, 1)->[0][1] } 'row20: one is in hand';
	wait_for { add('row20', 1); sql('SELECT count(*) FROM t_row20') >= 25 } 'row20: the other worker goes on';
	my $sent = $redis->command('XLEN', 'stream:row20');
	$redis->command('XGROUP', 'DELCONSUMER', 'stream:row20', 'postpipe_row20', $consumer);
	sql('INSERT INTO free DEFAULT VALUES');
	my ($n) = $consumer =~ /:(\d+)$/;
	sql("SELECT pg_terminate_backend(pid) FROM postpipe_workers WHERE pipeline = 'row20' AND worker = $n");
	rows('row20', $sent, 'row20: it is applied by itself');
	balanced('row20');
	drop('row20');
}

# --- The group is moved forward, and the server crashes before anybody has noticed.
{
	make('crash', workers => 3);
	add('crash', 100);
	rows('crash', 100);
	$redis->transaction(xadds('crash', 50), [ 'XGROUP', 'SETID', 'stream:crash', 'postpipe_crash', '$' ]);
	add('crash', 30);
	wait_for { sql('SELECT count(*) FROM t_crash') >= 130 } 'crash: what came after is applied';
	$node->stop('immediate');
	$node->start;
	rows('crash', 180, 'crash: what was passed over as well');
	balanced('crash');
	drop('crash');
}

# --- The group is moved forward while several workers are behind: Redis does not say any more how many entries it has read, and
# what was passed over is read while there is still something to deliver.
if ($redis->cli('INFO', 'server') !~ /redis_version:6/)
{
	sql('CREATE TABLE fast ()');
	make('behind', workers => 2, options => '{"batch_size": 1}', statement => q(INSERT INTO t_behind SELECT event ->> 'v' FROM postpipe_batch,
		(SELECT pg_sleep(CASE WHEN EXISTS (SELECT FROM fast) THEN 0 ELSE 0.05 END)) z));
	wait_state('behind');
	add('behind', 3000);
	wait_for { sql('SELECT count(*) FROM t_behind') >= 10 } 'behind: they read';
	my @next = @{ $redis->command('XRANGE', 'stream:behind', '(' . delivered('behind'), '+', 'COUNT', 40) };
	$redis->command('XGROUP', 'SETID', 'stream:behind', 'postpipe_behind', $next[-1][0]);
	my $values = join ', ', map { "'$_->[1][1]'" } @next;
	wait_sql($node, 'postgres', "SELECT count(*) FROM t_behind WHERE v IN ($values)", 40, 'behind: what was passed over is applied');
	isnt(delivered('behind'), $redis->command('XREVRANGE', 'stream:behind', '+', '-', 'COUNT', 1)->[0][0], '... with more to deliver');
	sql('INSERT INTO fast DEFAULT VALUES');
	rows('behind', 3000);
	is(sql('SELECT count(DISTINCT v) FROM t_behind'), 3000, '... each once');
	balanced('behind');
	drop('behind');
}

# --- Entries that were deleted one by one before anybody read them are lost, and where they lay is known.
for my $case ([ 'passed_over', 1, 1, 4 ], [ 'passed_over_2', 2, 1, 4 ], [ 'unread', 1, 0, 4 ], [ 'unread_2', 2, 0, 4 ],
	[ 'passed_over_end', 1, 1, 9 ], [ 'unread_end', 1, 0, 9 ], [ 'unread_end_2', 2, 0, 9 ])
{
	my ($p, $workers, $forward, $n) = @$case;
	make($p, workers => $workers);
	add($p, 20);
	rows($p, 20);
	balanced($p);
	pause($p);
	my @ids = add($p, 10);
	$redis->command('XGROUP', 'SETID', "stream:$p", "postpipe_$p", '$') if $forward;
	$redis->command('XDEL', "stream:$p", $ids[$n]);
	resume($p);
	rows($p, 29);
	wait_sql($node, 'postgres', "SELECT entries, first_id <= '$ids[$n]', last_id FROM postpipe_lost WHERE pipeline = '$p'", "1|t|$ids[$n]", "$p: the one that is gone is lost, and its range known");
	balanced($p);
	add($p, 1);
	rows($p, 30);
	balanced($p);
	drop($p);
}

# --- A rewind while entries are pending: one epoch, and every number right.
{
	make('rewound');
	add('rewound', 50);
	rows('rewound', 50);
	$redis->command('XTRIM', 'stream:rewound', 'MAXLEN', 20);
	sql('ALTER TABLE t_rewound RENAME TO t_away');
	$redis->transaction(xadds('rewound', 10)); # one batch
	wait_for { pending($redis, 'stream:rewound', 'postpipe_rewound') == 10 } 'rewound: ten are pending';
	pause('rewound');
	sql('ALTER TABLE t_away RENAME TO t_rewound');
	is(sql(q(SELECT postpipe_rewind('rewound'))), 30, 'rewound: to the beginning');
	resume('rewound');
	rows('rewound', 80);
	balanced('rewound');
	add('rewound', 1);
	rows('rewound', 81);
	$node->restart;
	add('rewound', 1);
	rows('rewound', 82);
	balanced('rewound');
	is(sql(q(SELECT string_agg(cause, ' ' ORDER BY epoch) FROM postpipe_epoch WHERE pipeline = 'rewound')), 'first rewind', 'rewound: no other epoch begins');
	# To somewhere in the middle; and the group goes before it is read.
	pause('rewound');
	my $since = $redis->command('XRANGE', 'stream:rewound', '-', '+')->[19][0];
	is(sql("SELECT postpipe_rewind('rewound', '$since')"), 12, 'rewound: to the middle');
	$redis->command('XGROUP', 'DESTROY', 'stream:rewound', 'postpipe_rewound');
	resume('rewound');
	rows('rewound', 94);
	add('rewound', 1);
	rows('rewound', 95, 'rewound: what lies after that is applied again, and no more');
	drop('rewound');
}

# --- The stream is made anew before an entry of our own was read, in a group that somebody else had read.
for my $case ([ 'adopted_lower', 500 ], [ 'adopted_higher', 2000 ])
{
	my ($p, $ms) = @$case;
	$redis->pipeline(xadds($p, 30, 1000), [ 'XGROUP', 'CREATE', "stream:$p", "postpipe_$p", '$' ]);
	make($p);
	wait_state($p);
	pause($p);
	$redis->transaction([ 'DEL', "stream:$p" ], xadds($p, 5, $ms));
	resume($p);
	rows($p, 5, "$p: what is new is applied");
	balanced($p);
	drop($p);
}

# --- The stream is made anew, with lower IDs, and Redis does not let us make the group at first.
{
	$redis->pipeline(xadds('refused', 30, 1000), [ 'XGROUP', 'CREATE', 'stream:refused', 'postpipe_refused', '$' ]);
	make('refused');
	wait_state('refused');
	$redis->command('XADD', 'stream:refused', '1000-31', 'v', 'more');
	rows('refused', 1);
	$redis->transaction([ 'DEL', 'stream:refused' ], xadds('refused', 5, 500), [ 'CONFIG', 'SET', 'min-replicas-to-write', 1 ]);
	wait_sql($node, 'postgres', q(SELECT reason_code FROM postpipe_stats WHERE pipeline = 'refused'), 'redis_noreplicas', 'refused: Redis refuses');
	wait_sql($node, 'postgres', q(SELECT max(epoch) FROM postpipe_epoch WHERE pipeline = 'refused'), 2, 'refused: an epoch has begun');
	$redis->command('CONFIG', 'SET', 'min-replicas-to-write', 0);
	rows('refused', 6, 'refused: what is new is applied');
	balanced('refused');
	is(sql(q(SELECT max(epoch) FROM postpipe_epoch WHERE pipeline = 'refused')), 2, 'refused: in one epoch');
	drop('refused');
}

# --- The database is restored: to before its stream was made anew; to between a rewind and what it reads again; to before
# the pipeline's first start, in a group that others had read before.
{
	make($_) for qw(anew rewind);
	add('anew', 20);
	add('rewind', 50);
	rows('anew', 20);
	rows('rewind', 50);
	pause('rewind');
	sql(q(SELECT postpipe_rewind('rewind')));
	wait_for { pending($redis, "stream:$_", "postpipe_$_") == 0 } "$_: all is acknowledged" for qw(anew rewind);
	disable(1);
	$redis->pipeline(xadds('young', 10), [ 'XGROUP', 'CREATE', 'stream:young', 'postpipe_young', '$' ]);
	make('young');
	$node->backup('b');
	disable(0);
	$redis->command('DEL', 'stream:anew');
	wait_sql($node, 'postgres', q(SELECT max(epoch) FROM postpipe_epoch WHERE pipeline = 'anew'), 2, 'anew: an epoch begins');
	resume('rewind');
	rows('rewind', 100);
	add('anew', 30);
	add('rewind', 20);
	add('young', 40);
	rows('anew', 50);
	rows('rewind', 120);
	rows('young', 40);
	wait_for { pending($redis, "stream:$_", "postpipe_$_") == 0 } "$_: all is acknowledged" for qw(anew rewind young);
	$node->stop;
	system_or_bail('rm', '-rf', $node->data_dir);
	system_or_bail('cp', '-a', $node->backup_dir . '/b', $node->data_dir);
	my $from = log_offset($node);
	$node->start;
	disable(0);
	sql("SELECT postpipe_resume('$_', take_over => true)") for qw(anew rewind);
	rows('anew', 50, 'restored, anew: every entry once');
	rows('rewind', 120, 'restored, rewind: all is read again');
	is(sql('SELECT count(DISTINCT v) FROM t_rewind'), 70, '... each entry of it');
	rows('young', 40, 'restored to before its first start: what it had read, and not what others had');
	for my $p (qw(anew rewind young))
	{
		balanced($p);
		is(scalar log_lines($node, qr/WARNING.*"$p": \d+ entries that the group had passed over/, $from), 1, "$p: with a warning");
	}
	$node->restart;
	balanced($_) for qw(anew rewind young);
	rows('young', 40);
	is(scalar log_lines($node, qr/WARNING.*passed over/, $from), 3, 'a restart finds nothing more');
}

# --- A dump, restored elsewhere, that takes the group over: it has no record, so it says what can be done.
{
	my $away = pp_node('away', redis => $redis, fresh => 1, databases => 'postgres');
	my $file = PostgreSQL::Test::Utils::tempdir() . '/dump.sql';
	sql('DROP TABLE IF EXISTS posts'); # the built-in pipeline makes it as soon as there is the extension
	command_ok([ 'pg_dump', '-d', $node->connstr('postgres'), '-f', $file ], 'pg_dump');
	pp_balanced($node);
	$node->stop;
	command_ok([ 'psql', '-XAqt', '-v', 'ON_ERROR_STOP=1', '-d', $away->connstr('postgres'), '-f', $file ], 'into another server');
	$away->safe_psql('postgres', q(TRUNCATE t_young; SELECT postpipe_resume('young', take_over => true)));
	wait_sql($away, 'postgres', q(SELECT state FROM postpipe_stats WHERE pipeline = 'young'), 'idle', 'it takes the group over');
	is(scalar log_lines($away, qr/WARNING.*"young".*no record/), 1, '... with a warning');
	is(scalar log_lines($away, qr/HINT.*postpipe_rewind\('young'/), 1, '... that says what to do');
	$away->safe_psql('postgres', q(SELECT postpipe_pause('young'); SELECT postpipe_wait_state('young', 'paused'); SELECT postpipe_rewind('young'); SELECT postpipe_resume('young')));
	wait_sql($away, 'postgres', 'SELECT count(*), count(DISTINCT v) FROM t_young', '50|50', '... and then all is applied');
	pp_balanced($away);
	$away->stop;
}
done_testing();

# postpipe.enabled, so that nothing runs in what is backed up.
sub disable
{
	my ($off) = @_;
	configure('postpipe.enabled', $off ? 'off' : 'on');
	wait_sql($node, 'postgres', q(SELECT count(*) FROM postpipe_workers WHERE backend_type = 'worker'), 0, 'all workers have stopped') if $off;
	return;
}

sub add { my ($name, $n) = @_; return $redis->pipeline(xadds($name, $n)) }

# Up to where the group has delivered.
sub delivered
{
	my ($name) = @_;
	return { @{ $redis->command('XINFO', 'GROUPS', "stream:$name")->[0] } }->{'last-delivered-id'};
}

sub rows
{
	my ($name, $n, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_sql($node, 'postgres', "SELECT count(*) FROM t_$name", $n, $what // "$name: $n rows");
}
