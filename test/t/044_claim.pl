# Entries that are pending for others: dead consumers of this cluster, foreign ones on request and by hand; what is gone.
# TAP, because it takes workers, a Redis with consumers of others, and databases that want the same group.
use strict;
use warnings;
use PostgreSQL::Test::Utils;
use Postpipe::Test;
use Postpipe::Test::Fault;

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('claim', redis => $redis, databases => 'postgres, other');
$node->safe_psql('postgres', 'CREATE DATABASE other');
$node->safe_psql($_, q(CREATE EXTENSION postpipe; SELECT postpipe_drop_pipeline('posts'))) for qw(postgres other);
my $system = sql('SELECT system_identifier FROM pg_control_system()');
my $database = sql(q(SELECT oid FROM pg_database WHERE datname = 'postgres'));

# --- 10,000 pending of a dead Python worker, at COUNT 100, with entries that are gone, a producer, and a worker that is killed.
{
	my @ids = fill('stream:big', 'big', 'python-1', 10_000);
	$redis->command('XREADGROUP', 'GROUP', 'big', 'python-2', 'COUNT', 500, 'STREAMS', 'stream:big', '>') if add('stream:big', 500);
	my @acknowledged = acknowledge_all('stream:big', 'big', 'python-2');
	is(scalar @acknowledged, 500, 'another one acknowledges what it has');
	my @gone = @ids[ 0, 1, 99, 100, 5000, 9998, 9999 ];
	$redis->command('XDEL', 'stream:big', @gone);
	add('stream:big', 1500);
	make('postgres', 'big', 'stream:big', options => '{"claim_foreign": true, "claim_idle": "1s", "batch_size": 200}');
	my $added = 0;
	my $killed = 0;
	wait_for {
		add('stream:big', 10);
		$added += 10;
		my $n = sql('SELECT count(*) FROM big');
		$killed ||= $n > 2500 && sql(q(SELECT pg_terminate_backend(pid) FROM postpipe_workers WHERE pipeline = 'big')) eq 't';
		$n >= 11_493 + $added - 10;
	} 'all of it is claimed and applied, and new entries between';
	ok($killed, 'while the worker was killed once');
	wait_sql($node, 'postgres', 'SELECT count(*), count(DISTINCT entry) FROM big', join('|', (11_493 + $added) x 2), 'each entry once');
	wait_for { pending($redis, 'stream:big', 'big') == 0 } 'nothing is pending any more';
	is(sql(qq(SELECT count(*) FROM big WHERE entry = ANY ('{@{[join ',', @acknowledged]}}'))), 0, 'what the other one acknowledged is not applied');
	is(lost('big'), join(' ', @gone), 'those that are gone are recorded as lost, with their IDs');
	is(sql(q(SELECT DISTINCT cause, entries FROM postpipe_lost WHERE pipeline = 'big')), 'deleted_while_pending|1', '... and the cause');
	balanced('big');
	is(sql(q(SELECT lost FROM postpipe_audit WHERE pipeline = 'big')), 7, '... with seven lost');
	drop('postgres', 'big');
}

# --- What is idle for a shorter time stays where it is, also between what is taken.
{
	my @ids = fill('stream:idle', 'idle', 'python-1', 450);
	my @old = map { $ids[ 2 * $_ ] } 0 .. 149;
	$redis->command('XCLAIM', 'stream:idle', 'idle', 'python-1', 0, @old, 'IDLE', 7_200_000, 'JUSTID');
	make('postgres', 'idle', 'stream:idle', options => '{"claim_foreign": true, "claim_idle": "1h"}');
	wait_sql($node, 'postgres', 'SELECT count(*) FROM idle', '150', 'what is idle beyond claim_idle is claimed');
	wait_for { pending_of('stream:idle', 'idle', 'python-1') == 300 } '... the rest is not';
	is(sql(qq(SELECT count(*) FROM idle WHERE entry = ANY ('{@{[join ',', @old]}}'))), 150, '... and they are those');
	# Without the option nothing is; by hand everything is.
	drop('postgres', 'idle');
	make('postgres', 'idle', 'stream:idle');
	wait_state('postgres', 'idle', 'idle');
	is(sql(q(SELECT postpipe_claim('idle'))), 0, 'by hand, with the default of postpipe.claim_idle: nothing');
	is(sql(q(SELECT postpipe_claim('idle', 'python-1', '0'))), 300, '... and without a limit all of it');
	wait_sql($node, 'postgres', 'SELECT count(*), count(DISTINCT entry) FROM idle', '450|450', '... which is applied, once');
	wait_for { pending($redis, 'stream:idle', 'idle') == 0 } 'and acknowledged';
	drop('postgres', 'idle');
}

# --- What is pending for a worker itself, and gone when it reads it again: lost; the others are applied.
{
	make('postgres', 'own', 'stream:own', consumer_group => 'own');
	wait_state('postgres', 'own', 'idle');
	my $own = sql(q(SELECT consumer FROM postpipe_workers WHERE pipeline = 'own'));
	sql(q(SELECT postpipe_pause('own')));
	wait_state('postgres', 'own', 'paused');
	my @ids = add_for('stream:own', 'own', $own, 5);
	$redis->command('XDEL', 'stream:own', @ids[ 1, 3 ]);
	sql(q(SELECT postpipe_resume('own')));
	wait_sql($node, 'postgres', q(SELECT string_agg(entry, ' ' ORDER BY entry::postpipe_id) FROM own), "@ids[0, 2, 4]", 'its own, with some gone: the others are applied');
	wait_for { pending($redis, 'stream:own', 'own') == 0 } '... all are acknowledged';
	is(lost('own'), "@ids[1, 3]", '... and those that are gone are lost');
	balanced('own');
	drop('postgres', 'own');
}

# --- Dead consumers of this cluster are taken over at once; those that may come back are not.
{
	my %dead = map { $_ => 1 } "postpipe:$system:$database:renamed:1", "postpipe:$system:4294967290:dead:1", "postpipe:$system:$database:dead:2",
	  "postpipe:$system:what is this";
	# A paused pipeline of this database, and one that reads another stream.
	make('postgres', 'resting', 'stream:dead', consumer_group => 'dead', enabled => 'false');
	make('postgres', 'elsewhere', 'stream:elsewhere', consumer_group => 'dead');
	my %alive = map { $_ => 1 } "postpipe:$system:$database:resting:1", "postpipe:1:$database:dead:2", 'python-1';
	$dead{"postpipe:$system:$database:elsewhere:1"} = 1;
	$redis->command('XGROUP', 'CREATE', 'stream:dead', 'dead', '0', 'MKSTREAM');
	for my $consumer (sort keys %dead, keys %alive)
	{
		add('stream:dead', 105);
		$redis->command('XREADGROUP', 'GROUP', 'dead', $consumer, 'COUNT', 105, 'STREAMS', 'stream:dead', '>');
	}
	wait_state('postgres', 'elsewhere', 'idle');
	drop('postgres', 'elsewhere');
	make('postgres', 'dead', 'stream:dead', consumer_group => 'dead');
	wait_sql($node, 'postgres', 'SELECT count(*), count(DISTINCT entry) FROM dead', '525|525', 'what is pending for dead consumers is applied at once');
	wait_for { pending($redis, 'stream:dead', 'dead') == 315 } '... and acknowledged';
	is(pending_of('stream:dead', 'dead', $_), 105, "not what is pending for $_") for sort keys %alive;
	# By hand: the foreign ones; never what another pipeline will settle itself.
	is(sql(q(SELECT postpipe_claim('dead', min_idle => '0'))), 210, 'by hand the foreign ones are claimed');
	is(pending_of('stream:dead', 'dead', "postpipe:$system:$database:resting:1"), 105, '... not those of a paused pipeline');
	like(error("SELECT postpipe_claim('dead', 'postpipe:$system:$database:resting:1', '0')"), qr/belongs to a worker of a pipeline.*settles what is pending for it when it runs/s,
		'... nor when asked for');
	like(error("SELECT postpipe_claim('dead', 'postpipe:$system:$database:dead:1', '0')"), qr/belongs to a worker of a pipeline.*runs, with PID \d+/s, 'nor its own');
	like(error(q(SELECT postpipe_claim('dead', 'nobody'))), qr/has no consumer "nobody".*postpipe_consumers\('dead'\)/s, 'one that is not there');
	wait_sql($node, 'postgres', 'SELECT count(*) FROM dead', '735', 'and applied');
	# A pipeline that is dropped leaves its entries to who reads the group, however busy that is.
	drop('postgres', 'resting');
	wait_for { add('stream:dead', 50); pending_of('stream:dead', 'dead', "postpipe:$system:$database:resting:1") == 0 } 'after a drop they are taken over, under load';
	# Nobody tells of these: consumers that were always dead, and an entry that is pending for the worker itself without its knowing.
	my ($gone, $own) = map { "postpipe:$system:$database:dead:$_" } 2, 1;
	my @told = (add_for('stream:dead', 'dead', $gone, 20), add_for('stream:dead', 'dead', $own, 20));
	wait_for { add('stream:dead', 50); sql("SELECT count(*) FROM dead WHERE entry = ANY ('{@{[join ',', @told]}}')") == 40 } 'what nobody tells of is found under load';
	my $n = $redis->command('XLEN', 'stream:dead');
	wait_sql($node, 'postgres', 'SELECT count(*), count(DISTINCT entry) FROM dead', "$n|$n", '... and each is applied once');
	wait_for { pending($redis, 'stream:dead', 'dead') == 0 } '... all of them';
	drop('postgres', 'dead');
}

# --- A consumer has the name of a worker that runs, but of another stream by now: that one will not settle what is pending for it.
# It is waited for, for a while; meanwhile to other cases.
make('postgres', 'moved', 'stream:moved');
fill('stream:former', 'former', "postpipe:$system:$database:moved:1", 5);
wait_state('postgres', 'moved', 'idle');
make('postgres', 'former', 'stream:former', consumer_group => 'former');

# --- A worker of a pipeline that was dropped is on its way out, with a batch that is committed and not acknowledged: whoever has
# the group from now on waits until it has left, and applies nothing that it has applied.
{
	make('postgres', 'leaver', 'stream:heir', consumer_group => 'heir', workers => 2);
	make('postgres', 'heir', 'stream:heir', consumer_group => 'heir', enabled => 'false');
	wait_state('postgres', 'leaver', 'idle');
	my ($first, $second) = map { "postpipe:$system:$database:leaver:$_" } 1, 2;
	wait_for { $redis->cli('CLIENT', 'LIST') =~ /name=\Q$_\E .*flags=b/ } 'a worker waits in Redis' for $first, $second;
	# Redis may give one entry to the one that is stopped, and no other.
	my $stopped = sql(qq(SELECT pid FROM postpipe_workers WHERE consumer = '$first'));
	kill('STOP', $stopped);
	my $fault = Postpipe::Test::Fault->new($node);
	$fault->set('after_commit:sleep:2000');
	add('stream:heir', 1) for 1 .. 2;
	wait_for { $fault->fired } 'the second worker has committed';
	kill('CONT', $stopped);
	my $applied = $redis->command('XPENDING', 'stream:heir', 'heir', '-', '+', 1, $second)->[0][0];
	drop('postgres', 'leaver');
	is(sql(qq(SELECT count(*) FROM leaver WHERE entry = '$applied')), 1, 'an entry is applied by a pipeline that is dropped');
	sql(q(SELECT postpipe_resume('heir', take_over => true)));
	wait_state('postgres', 'heir', 'idle');
	wait_for { pending($redis, 'stream:heir', 'heir') == 0 } '... and acknowledged, as it leaves';
	add('stream:heir', 1);
	wait_sql($node, 'postgres', 'SELECT count(*) > 0 FROM heir', 't', 'another one goes on');
	is(sql('SELECT count(*) FROM heir JOIN leaver USING (entry)'), 0, '... and applies nothing again');
	$fault->set('');
	drop('postgres', 'heir');
}

wait_sql($node, 'postgres', 'SELECT count(*), count(DISTINCT entry) FROM former', '5|5', 'what is pending for a worker that reads another stream now is applied');
wait_for { pending($redis, 'stream:former', 'former') == 0 } '... and acknowledged';
drop('postgres', $_) for qw(former moved);

# --- A pipeline of another database on the same group: one of the two is fenced, and touches nothing.
{
	make('other', 'sibling', 'stream:shared', consumer_group => 'shared');
	wait_state('other', 'sibling', 'idle');
	my $session = pp_session($node, 'other');
	$session->('BEGIN; LOCK TABLE sibling IN ACCESS EXCLUSIVE MODE');
	my @rows = add('stream:shared', 50);
	my $other = $node->safe_psql('other', q(SELECT consumer FROM postpipe_workers WHERE pipeline = 'sibling'));
	wait_for { pending_of('stream:shared', 'shared', $other) == 50 } 'it has a batch in hand';
	$redis->command('XCLAIM', 'stream:shared', 'shared', $other, 0, @rows, 'IDLE', 3_600_000, 'JUSTID');
	make('postgres', 'one', 'stream:shared', consumer_group => 'shared', options => '{"claim_foreign": true, "claim_idle": "1s", "reap_consumers": "0s"}');
	$redis->command('XGROUP', 'CREATECONSUMER', 'stream:shared', 'shared', 'python-1');
	wait_state('postgres', 'one', 'fenced');
	like(error("SELECT $_"), qr/belongs to another owner than pipeline "one".*take_over => true/s, "$_ of a fenced pipeline")
	  for q(postpipe_claim('one', min_idle => '0')), "postpipe_claim('one', '$other', '0')", q(postpipe_reap_consumers('one', '0')), q(postpipe_create_group('one'));
	$session->('COMMIT');
	$session->(undef);
	wait_sql($node, 'other', 'SELECT count(*) FROM sibling', '50', 'the owner applies what it has when it can');
	wait_for { pending($redis, 'stream:shared', 'shared') == 0 } 'and acknowledges it';
	is(consumers($redis, 'stream:shared', 'shared'), 2, 'the fenced one has no consumer, and has deleted none');
	is(sql('SELECT count(*) FROM one'), 0, '... and has read nothing');
	# What is pending for a paused pipeline is its own, also when another one owns the group now.
	$node->safe_psql('other', q(SELECT postpipe_pause('sibling')));
	wait_state('other', 'sibling', 'paused');
	my @unsettled = add_for('stream:shared', 'shared', $other, 10);
	sql(q(SELECT postpipe_resume('one', take_over => true)));
	wait_state('postgres', 'one', 'idle');
	is(sql(q(SELECT postpipe_claim('one', min_idle => '0'))), 0, 'what is pending for a paused one is its own');
	like(error("SELECT postpipe_claim('one', '$other', '0')"), qr/belongs to a worker of a pipeline/, '... also by its name');
	$redis->command('XCLAIM', 'stream:shared', 'shared', $other, 0, @rows[ 0 .. 9 ], 'FORCE', 'JUSTID');
	is(pending_of('stream:shared', 'shared', $other), 20, 'some of it is settled there');
	# Fenced: it acknowledges what it has settled, and the owner takes over the rest.
	$node->safe_psql('other', q(SELECT postpipe_resume('sibling')));
	wait_state('other', 'sibling', 'fenced');
	wait_sql($node, 'postgres', q(SELECT string_agg(entry, ' ' ORDER BY entry::postpipe_id) FROM one), join(' ', @unsettled), 'when it is fenced, the owner takes over what it has not settled');
	wait_for { pending($redis, 'stream:shared', 'shared') == 0 } 'nothing is pending any more';
	is($node->safe_psql('other', 'SELECT count(*) FROM sibling'), 50, '... and nothing was applied twice');
	balanced('one');
	drop('other', 'sibling');
	drop('postgres', 'one');
}

# --- Side by side with a Python worker, which then goes: what it has applied is not applied again, and not lost.
{
	make('postgres', 'beside', 'stream:beside', consumer_group => 'beside');
	wait_state('postgres', 'beside', 'idle');
	add('stream:beside', 10);
	wait_sql($node, 'postgres', 'SELECT count(*) FROM beside', '10', 'alone in the group');
	sql(q(SELECT postpipe_pause('beside'))) if wait_for { pending($redis, 'stream:beside', 'beside') == 0 } 'all is acknowledged';
	wait_state('postgres', 'beside', 'paused');
	my $python = sub {
		add_for('stream:beside', 'beside', 'python-1', 20);
		return acknowledge_all('stream:beside', 'beside', 'python-1');
	};
	is(scalar $python->(), 20, 'another worker takes its place for a while');
	is(sql(q(SELECT consumer, reaped FROM postpipe_reap_consumers('beside', '0'))), 'python-1|t', 'and is deleted');
	sql(q(SELECT postpipe_resume('beside')));
	wait_state('postgres', 'beside', 'idle');
	add('stream:beside', 1);
	wait_sql($node, 'postgres', 'SELECT count(*), count(DISTINCT entry) FROM beside', '11|11', 'what it has applied is not applied again');
	# The same while we read, too; then everything that it has read is trimmed.
	is(scalar $python->(), 20, 'it comes back') if wait_for { pending($redis, 'stream:beside', 'beside') == 0 } 'all is acknowledged';
	add('stream:beside', 1);
	wait_sql($node, 'postgres', 'SELECT count(*) FROM beside', '12', 'both read');
	# Seen when the stream is looked at, at the latest after half a minute without entries.
	$node->restart;
	wait_state('postgres', 'beside', 'idle');
	is(scalar $python->(), 20, 'and once more') if sql(q(SELECT postpipe_pause('beside'))) eq '' && wait_state('postgres', 'beside', 'paused');
	$redis->command('XTRIM', 'stream:beside', 'MAXLEN', 0);
	is($redis->command('XGROUP', 'DELCONSUMER', 'stream:beside', 'beside', 'python-1'), 0, 'somebody deletes it');
	sql(q(SELECT postpipe_resume('beside')));
	wait_state('postgres', 'beside', 'idle');
	add('stream:beside', 1);
	wait_sql($node, 'postgres', 'SELECT count(*), count(DISTINCT entry) FROM beside', '13|13', 'again nothing is applied that it had');
	is(sql(q(SELECT * FROM postpipe_lost WHERE pipeline = 'beside')), '', '... and nothing is lost');
	wait_for { pending($redis, 'stream:beside', 'beside') == 0 } 'all is acknowledged';
	balanced('beside');
	drop('postgres', 'beside');
}

# --- By hand: what is gone is recorded in the transaction, and acknowledged when it commits.
{
	make('postgres', 'hand', 'stream:hand', consumer_group => 'hand');
	wait_state('postgres', 'hand', 'idle');
	my $known = $redis->xadd('stream:hand', n => 0);
	wait_sql($node, 'postgres', 'SELECT count(*) FROM hand', '1', 'an entry is applied');
	wait_for { pending($redis, 'stream:hand', 'hand') == 0 } 'and acknowledged';
	sql(q(SELECT postpipe_pause('hand')));
	wait_state('postgres', 'hand', 'paused');
	my @ids = add_for('stream:hand', 'hand', 'python-1', 250);
	# One that is on record as applied is pending once more, and gone: it is not lost.
	$redis->command('XCLAIM', 'stream:hand', 'hand', 'python-1', 0, $known, 'FORCE', 'JUSTID');
	is(sql(q(SELECT id, consumer, in_ledger FROM postpipe_pending('hand', 2))), "$known|python-1|t\n$ids[0]|python-1|f", 'postpipe_pending tells which is on record');
	my @gone = @ids[ 3, 120, 249 ];
	$redis->command('XDEL', 'stream:hand', $known, @gone);
	like(error(q(BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT postpipe_claim('hand', 'python-1', '0'))), qr/isolation level read committed/, 'with an old snapshot: refused');
	is(sql(q(BEGIN; SELECT postpipe_claim('hand', 'python-1', '0'); ROLLBACK)), 247, 'a transaction that is rolled back');
	is(pending_of('stream:hand', 'hand', 'python-1'), 4, '... leaves what is gone pending');
	is(lost('hand'), '', '... and unrecorded');
	is(sql(<<'SQL'), '', 'a subtransaction that is rolled back');
DO $$ BEGIN
	PERFORM postpipe_claim('hand', 'python-1', '0');
	RAISE division_by_zero;
EXCEPTION WHEN division_by_zero THEN
	NULL;
END $$
SQL
	is(pending_of('stream:hand', 'hand', 'python-1'), 4, '... does so, too');
	sql(q(BEGIN; SAVEPOINT a; SAVEPOINT b; SELECT postpipe_claim('hand', 'python-1', '0'); RELEASE b; ROLLBACK TO a; COMMIT));
	is(lost('hand'), '', '... and one that was in it, and was not itself');
	# What is sent at commit is sent before the session says so.
	is(pending_of('stream:hand', 'hand', 'python-1'), 4, '... leaves what is gone pending as well');
	my $caught = pp_session($node);
	$caught->('BEGIN');
	$caught->(q(DO $$ BEGIN
		FOR i IN 1 .. 50 LOOP
			BEGIN PERFORM postpipe_claim('hand', 'nobody', '0'); EXCEPTION WHEN undefined_object THEN NULL; END;
		END LOOP;
	END $$));
	wait_for { $redis->cli('CLIENT', 'LIST') !~ /name=postpipe:function/ } 'errors that are caught leave no connection open';
	$caught->(undef);
	is(lost('hand'), '', '... and records nothing');
	is(sql(q(SET synchronous_commit = off; SELECT postpipe_claim('hand', 'python-1', '0'))), 0, 'a transaction that commits');
	is(lost('hand'), join(' ', @gone), '... records those that are gone, not the one that was applied');
	wait_for { pending_of('stream:hand', 'hand', 'python-1') == 0 } '... and acknowledges them';
	is(sql(q(SELECT postpipe_claim('hand', 'python-1', '0'))), 0, 'a second call finds nothing');
	sql(q(SELECT postpipe_resume('hand')));
	wait_sql($node, 'postgres', 'SELECT count(*), count(DISTINCT entry) FROM hand', '248|248', 'what was claimed is applied when the pipeline runs');
	wait_for { pending($redis, 'stream:hand', 'hand') == 0 } 'and acknowledged';
	balanced('hand');
	is(sql(q(SELECT entries_lost FROM postpipe_stats WHERE pipeline = 'hand')), 3, 'the numbers have them, too');
	# Recorded, and the XACK did not get through: the next call acknowledges, and records nothing twice.
	my $more = $redis->xadd('stream:hand', n => 1);
	wait_sql($node, 'postgres', 'SELECT count(*) FROM hand', '249', 'one more');
	wait_for { pending($redis, 'stream:hand', 'hand') == 0 } 'and acknowledged';
	$redis->command('XCLAIM', 'stream:hand', 'hand', 'python-1', 0, $more, 'FORCE', 'JUSTID');
	$redis->command('XDEL', 'stream:hand', $more);
	is(sql(q(SELECT postpipe_claim('hand', 'python-1', '0'))), 0, 'gone and on record');
	wait_for { pending($redis, 'stream:hand', 'hand') == 0 } '... is acknowledged';
	is(lost('hand'), join(' ', @gone), '... and nothing more is lost');
	# A worker that waits for new entries is told at once: its read, which would end by itself after 5 s, is ended.
	wait_state('postgres', 'hand', 'idle');
	add_for('stream:hand', 'hand', 'python-1', 1);
	wait_for { $redis->cli('CLIENT', 'LIST') =~ /name=postpipe:$system:\d+:hand:1 .*flags=b/ } 'the worker waits in Redis';
	my $unblocked = unblocked();
	sql(q(SELECT postpipe_claim('hand', min_idle => '0')));
	wait_sql($node, 'postgres', 'SELECT count(*) FROM hand', '250', 'what is claimed for a waiting worker is applied');
	cmp_ok(unblocked(), '>', $unblocked, '... whose read was ended for it');
	drop('postgres', 'hand');
}

# --- A Redis user who may not run scripts: the stream is served all the same, and it is said.
{
	$redis->command('ACL', 'SETUSER', 'plain', 'on', '>secret', '~*', '&*', '+@all', '-eval');
	fill('stream:acl', 'acl', 'python-1', 5);
	my $from = log_offset($node);
	sql(q(ALTER SYSTEM SET postpipe.redis_url = ') . $redis->url =~ s{//}{//plain:secret@}r . q('));
	$node->reload;
	make('postgres', 'acl', 'stream:acl', consumer_group => 'acl', options => '{"claim_foreign": true, "claim_idle": "1s"}');
	add('stream:acl', 3);
	wait_sql($node, 'postgres', 'SELECT count(*) FROM acl', '3', 'without EVAL new entries are applied');
	wait_for { log_lines($node, qr/pending entries of other consumers are not looked after: NOPERM/, $from) } 'and the log says what is not done';
	is(scalar log_lines($node, qr/HINT:.*\+xclaim .*\+eval/, $from), 1, '... with a hint, once');
	like(error("SELECT $_"), qr/NOPERM.*HINT:.*\+eval/s, "$_ says so") for q(postpipe_claim('acl', min_idle => '0')), q(postpipe_reap_consumers('acl', '0', 'python-1'));
	is(pending_of('stream:acl', 'acl', 'python-1'), 5, 'nothing was touched');
}
pp_balanced($node);
$node->stop('fast');
done_testing();

sub unblocked { return $redis->cli('INFO', 'commandstats') =~ /cmdstat_client(?:\|unblock)?:calls=(\d+)/ ? $1 : 0 }

# Adds so many entries, all at once, so that one that waits for entries is given them all; returns their IDs.
sub add
{
	my ($stream, $n) = @_;
	return $redis->transaction(map { [ 'XADD', $stream, '*', 'n', $_ ] } 1 .. $n);
}

# So many entries that are pending for a consumer; returns their IDs.
sub fill
{
	my ($stream, $group, $consumer, $n) = @_;
	$redis->command('XGROUP', 'CREATE', $stream, $group, '0', 'MKSTREAM');
	my @ids = add($stream, $n);
	$redis->command('XREADGROUP', 'GROUP', $group, $consumer, 'COUNT', $n, 'STREAMS', $stream, '>');
	return @ids;
}

# Adds so many entries, which this consumer receives, and returns their IDs. In one step: before a worker that waits for
# them, or one that has gone without Redis having noticed.
sub add_for
{
	my ($stream, $group, $consumer, $n) = @_;
	my @replies = $redis->transaction((map { [ 'XADD', $stream, '*', 'n', $_ ] } 1 .. $n),
		[ 'XREADGROUP', 'GROUP', $group, $consumer, 'COUNT', $n, 'STREAMS', $stream, '>' ]);
	return @replies[ 0 .. $n - 1 ];
}

sub pending_of
{
	my ($stream, $group, $consumer) = @_;
	return scalar @{ $redis->command('XPENDING', $stream, $group, '-', '+', 100_000, $consumer) };
}

sub acknowledge_all
{
	my ($stream, $group, $consumer) = @_;
	my @ids = map { $_->[0] } @{ $redis->command('XPENDING', $stream, $group, '-', '+', 100_000, $consumer) };
	$redis->command('XACK', $stream, $group, @ids);
	return @ids;
}

# A pipeline that appends the IDs to a table of its name, which has no key and would take any of them twice.
sub make
{
	my ($db, $name, $stream, %opt) = @_;
	my $more = join '', map { ", $_ => '$opt{$_}'" } sort keys %opt;
	$more .= ", consumer_group => '$name'" unless $opt{consumer_group};
	return $node->safe_psql($db, "CREATE TABLE IF NOT EXISTS $name (entry text); SELECT postpipe_create_pipeline('$name', '$stream',
		statement => 'INSERT INTO $name SELECT id FROM postpipe_batch'$more)");
}

sub drop { my ($db, $name) = @_; return $node->safe_psql($db, "SELECT postpipe_drop_pipeline('$name')") }

sub wait_state
{
	my ($db, $name, $state) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_sql($node, $db, "SELECT state FROM postpipe_stats WHERE pipeline = '$name'", $state, "$name is $state");
}

sub lost { my ($name) = @_; return sql("SELECT string_agg(first_id::text, ' ' ORDER BY first_id) FROM postpipe_lost WHERE pipeline = '$name' AND first_id = last_id") }

# At rest; Redis 6.2 does not tell how many entries were added.
sub balanced
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $expected = $redis->cli('INFO', 'server') =~ /redis_version:6/ ? 'f|' : 't|0';
	return wait_sql($node, 'postgres', "SELECT exact, balance FROM postpipe_audit WHERE pipeline = '$name' ORDER BY epoch DESC LIMIT 1", $expected,
		"$name: the audit balances");
}
