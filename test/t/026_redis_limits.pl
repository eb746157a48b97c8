# A Redis that works, within limits: a slow link, a limit for what it keeps for a client, no memory for anything new.
# Whatever can be read is read. TAP, because limits are set in Redis and on the way to it under a running server.

use strict;
use warnings;
use PostgreSQL::Test::Utils;
use Postpipe::Test;
use Postpipe::Test::Hits;

my $redis = Postpipe::Test::Redis->new;
my $proxy = Postpipe::Test::Proxy->new(target => $redis->port);
my $node = pp_node('main', redis => $proxy, conf => 'postpipe.max_retries = 0');
my $hits = Postpipe::Test::Hits->new(node => $node, redis => $redis);

# --- A batch takes longer on its way than Redis may be silent.
before();
$hits->publish(400, text => 'x' x 40_000);
my $from = log_offset($node);
$proxy->command('rate s2c 2000000');
resume();
$hits->settled('a slow link');
is(scalar log_lines($node, qr/retrying/, $from), 0, '... and nothing went wrong');
# So does an answer to what measures.
before();
$hits->publish(1, text => 'x' x 14_000_000);
my $since = $hits->sql('SELECT clock_timestamp()');
wait_sql($node, 'postgres', "SELECT lag FROM postpipe_stats WHERE measured_at > '$since' AND pipeline = 'hits'", '1', '... it is measured');
is($hits->sql(q(SELECT count(*) FROM postpipe_events WHERE message LIKE 'lag and pending%')), 0, '... and Redis is not taken for silent');
$proxy->command('pass');
resume();
$hits->settled('a large entry');

# --- An entry that is longer than all else that is measured: XINFO STREAM shows it whole. Other pipelines are measured, too.
$hits->sql(q(CREATE TABLE near (id int); SELECT postpipe_create_pipeline('near', 'stream:near', target => 'near')));
$redis->xadd('stream:near', id => 1);
wait_sql($node, 'postgres', 'SELECT count(*) FROM near', '1', 'a pipeline beside it');
before();
$hits->publish(1, text => 'x' x 68_000_000);
$since = $hits->sql('SELECT clock_timestamp()');
wait_sql($node, 'postgres', "SELECT string_agg(format('%s %s %s', pipeline, lag, pending), ', ' ORDER BY pipeline) FROM postpipe_stats WHERE measured_at > '$since' AND pipeline <> 'posts'",
	'hits 1 0, near 0 0', 'an entry of 68 MB: all pipelines are measured');
is($hits->sql(q(SELECT count(*) FROM postpipe_events WHERE message LIKE 'lag and pending%')), 0, '... and nothing was wrong');
resume();
$hits->settled('an entry of 68 MB');
$hits->sql(q(SELECT postpipe_drop_pipeline('near')));
$redis->command('XTRIM', 'stream:hits', 'MAXLEN', 0);

# --- Redis closes the connection of a client that has more to take than this.
before();
$redis->command('CONFIG', 'SET', 'client-output-buffer-limit', 'normal 1000000 0 0');
$hits->publish(200, text => 'x' x 40_000);
resume();
$hits->settled('a limit for what is kept for a client');
$redis->command('CONFIG', 'SET', 'client-output-buffer-limit', 'normal 0 0 0');

# --- No memory: Redis refuses what needs some. What is there can be read, and gives memory back.
$hits->sql('CREATE TABLE full_up (id int PRIMARY KEY)');
$hits->sql(q(SELECT postpipe_create_pipeline('full_up', 'stream:full', target => 'full_up')));
$redis->xadd('stream:full', id => 0);
wait_sql($node, 'postgres', 'SELECT count(*) FROM full_up', '1', 'before');
$hits->sql(q(SELECT postpipe_pause('full_up'); SELECT postpipe_wait_state('full_up', 'paused')));
$redis->xadd('stream:full', id => $_ == 250 ? 'bad' : $_) for 1 .. 499;
$redis->command('CONFIG', 'SET', 'maxmemory', 1);
$hits->sql(q(SELECT postpipe_resume('full_up')));
wait_sql($node, 'postgres', q(SELECT (SELECT count(*) FROM full_up), (SELECT count(*) FROM postpipe_dlq)), '499|1', 'no memory: entries are applied, and dead-lettered');
wait_for { pending($redis, 'stream:full', 'postpipe_full_up') == 0 } '... and acknowledged';
wait_sql($node, 'postgres', q(SELECT state FROM postpipe_stats WHERE pipeline = 'full_up'), 'idle', '... and nothing is wrong');
$hits->sql(q(SELECT postpipe_create_pipeline('unborn', 'stream:full', target => 'full_up')));
wait_sql($node, 'postgres', q(SELECT state, reason_code, left(reason, 4) FROM postpipe_stats WHERE pipeline = 'unborn'), 'retrying|redis_oom|OOM ', '... but for a group that is new: shown');
$hits->sql(q(SELECT postpipe_drop_pipeline('unborn')));
# Another server with the same data could not be told from this one.
$redis->command('CONFIG', 'SET', 'maxmemory', 0);
my $key = 'postpipe:{stream:full}:postpipe_full_up';
wait_for { $redis->command('HGET', $key, 'client') == $hits->sql(q(SELECT redis_client_id FROM postpipe_workers WHERE pipeline = 'full_up')) } 'with memory again the connection is noted';
$hits->sql(q(SELECT postpipe_pause('full_up'); SELECT postpipe_wait_state('full_up', 'paused')));
$redis->command('HSET', $key, instance => 'elsewhere');
$redis->command('CONFIG', 'SET', 'maxmemory', 1);
$hits->sql(q(SELECT postpipe_resume('full_up')));
wait_sql($node, 'postgres', q(SELECT state, reason_code FROM postpipe_stats WHERE pipeline = 'full_up'), 'retrying|redis_oom', 'a key that another server wrote is not read on');
$redis->command('CONFIG', 'SET', 'maxmemory', 0);
$redis->xadd('stream:full', id => 500);
wait_sql($node, 'postgres', 'SELECT max(id) FROM full_up', '500', '... until it can be written');

# --- Large entries are read in smaller numbers: as many as the setting allows together, or the option of a pipeline.
my %batches = (usual => 2, small => 11);
$hits->sql("CREATE TABLE $_ (id int); SELECT postpipe_create_pipeline('$_', 'stream:large', target => '$_', enabled => false)") for keys %batches;
$hits->sql(q(SELECT postpipe_alter_pipeline('usual', options => '{"batch_size": 10}');
	SELECT postpipe_alter_pipeline('small', options => '{"batch_size": 10, "batch_bytes": "64kB"}')));
$redis->xadd('stream:large', id => $_, text => 'x' x 40_000) for 1 .. 20;
for my $name (sort keys %batches)
{
	$hits->sql("SELECT postpipe_resume('$name')");
	wait_sql($node, 'postgres', "SELECT count(*) FROM $name", '20', "$name: large entries are applied");
	wait_sql($node, 'postgres', "SELECT batches FROM postpipe_stats WHERE pipeline = '$name'", $batches{$name}, "... in $batches{$name} batches, once it is known how large they are");
}

# --- Waiting for a state costs no memory, however many states pass by.
my $wait = pp_start($node, q(SELECT postpipe_wait_state('hits', 'paused', '1 hour')));
my $waiting = q(FROM pg_stat_activity WHERE query LIKE 'SELECT postpipe_wait_state%');
wait_sql($node, 'postgres', "SELECT count(*) $waiting", '1', 'a session waits for a state');
my $pid = sql("SELECT pid $waiting");
my $memory = memory($pid);
for my $n (1 .. 200)
{
	$hits->publish(1);
	wait_for { $hits->sql('SELECT count(*) FROM hits') == @{ $hits->{ids} } } 'applied';
}
cmp_ok(memory($pid) - $memory, '<', 5, '... and takes no memory for it');
$hits->sql(q(SELECT postpipe_pause('hits')));
is($wait->(), 't', '... and sees it');
$node->stop;
done_testing();

# A case begins: nothing is read until resume().
sub before
{
	$hits->pause;
	return;
}

sub resume { $hits->sql(q(SELECT postpipe_resume('hits'))); return }

# What a process has in memory, in MB.
sub memory
{
	my ($pid) = @_;
	return slurp_file("/proc/$pid/status") =~ /^RssAnon:\s+(\d+) kB/m ? $1 / 1024 : 0;
}
