# What Redis does wrong in everyday life: the worker says it once with the cause, shows it in postpipe_stats, and heals
# by itself with every entry applied exactly once. TAP, because Redis has to be started, stopped, frozen and replaced
# under a running server.

use strict;
use warnings;
use File::Path qw(remove_tree);
use PostgreSQL::Test::Utils;
use Postpipe::Test;
use Postpipe::Test::Hits;

my $redis = Postpipe::Test::Redis->new(keep => 1, start => 0);
my $proxy = Postpipe::Test::Proxy->new(target => $redis->port);
my $fake = Postpipe::Test::FakeRedis->new;

# --- PostgreSQL before Redis
$proxy->stop;
my $node = pp_node('main', redis => $proxy);
my $postmaster = $node->safe_psql('postgres', 'SELECT pg_postmaster_start_time()');
my $hits = Postpipe::Test::Hits->new(node => $node, redis => $redis);
$hits->shows(qr/^retrying\|redis_connect\|could not connect to \S+: Connection refused\|could not connect/, 'no Redis yet: shown');
$hits->attempts(4, 'it tries again and again');
is(said(qr/could not connect/), 1, 'no Redis yet: said once');
$proxy->start;
$redis->start;
loaded();
$hits->publish(10);
$hits->settled('PostgreSQL was first');
is(said(qr/idle|running/), 1, 'it says once that it is well again');
like($hits->status, qr/^(?:idle|running)\|\|\|could not connect/, 'last_error stays, the reason goes');

# --- Redis before PostgreSQL
$node->stop;
$hits->publish(10);
my $from = log_offset($node);
$node->start;
$postmaster = $node->safe_psql('postgres', 'SELECT pg_postmaster_start_time()');
$hits->settled('Redis was first');
is(said(qr/retrying|failed/), 0, 'Redis was first: nothing to complain of');

# --- gone, and back with all data
begin();
$hits->publish(30);
$redis->kill9;
$hits->shows(qr/^retrying\|redis_\w+\|[^|]+\|[^|]/, 'killed: shown');
$redis->start;
loaded();
$hits->publish(10);
$hits->settled('Redis came back with its data');

# --- refused
begin();
$proxy->stop;
$hits->shows(qr/^retrying\|redis_connect\|could not connect.*Connection refused/, 'refused: shown');
$hits->publish(5);
$hits->attempts(4);
is(said(qr/retrying: could not connect/), 1, 'refused: said once');
$proxy->start;
$hits->settled('refused');

# --- accepted and reset
begin();
$proxy->command('refuse on');
$proxy->command('rst');
$hits->shows(qr/^retrying\|redis_(?:io|closed|connect)\|[^|]*(?:reset|closed)/i, 'reset: shown');
$hits->publish(5);
$hits->attempts(3);
$proxy->command('pass');
$hits->settled('reset');

# --- accepted and never answered
begin();
$fake->mode('silent');
elsewhere();
$hits->publish(5);
$hits->shows(qr/^retrying\|redis_timeout\|[^|]*did not answer[^|]*\|[^|]*did not answer/, 'silent: shown');
is(said(qr/retrying: .*did not answer/), 1, 'silent: said once');
back();
$hits->settled('silent');

# --- closed in the middle of a reply
begin();
for my $n (0, 1, 4, 5, 17, 40, 100, 300)
{
	my $cuts = $proxy->stats->{cuts};
	$proxy->command("cut s2c $n");
	$hits->publish(7);
	wait_for { $proxy->stats->{cuts} > $cuts } "the reply is cut after $n bytes";
	$hits->settled("cut after $n bytes");
	# Every other time with the back-off that is left, so that cuts also meet the log-in.
	begin() if $n > 1;
}

# --- LOADING
begin();
$redis->pipeline(map { [ 'SET', "key$_", $_ ] } 1 .. 2000);
$hits->publish(10);
$redis->cli('BGREWRITEAOF');    # loaded as an RDB, which is interrupted often enough to answer
wait_for
{
	$redis->cli('INFO', 'persistence') =~ /aof_rewrite_in_progress:0/ && glob($redis->dir . '/appendonlydir/*.2.base.rdb')
}
'the file is rewritten';
$redis->stop;
push @{ $redis->{conf} }, 'key-load-delay 5000', 'loading-process-events-interval-bytes 1024';
$redis->start(loading => 1);
$hits->shows(qr/^retrying\|redis_loading\|LOADING [^|]*\|LOADING/, 'LOADING: shown');
is(said(qr/retrying: LOADING/), 1, 'LOADING: said once');
$redis->cli('CONFIG', 'SET', 'key-load-delay', 0);
splice @{ $redis->{conf} };
loaded();
$hits->publish(3);
$hits->settled('LOADING');

# --- gone, and back without data
begin();
$redis->stop;
remove_tree($redis->dir . '/appendonlydir');
$redis->start;
loaded();
$hits->publish(10);
$hits->settled('Redis came back empty');

# --- NOAUTH, WRONGPASS: the password comes with ALTER SYSTEM and a reload
begin();
$redis->cli('CONFIG', 'SET', 'requirepass', 'secret');
$redis->{password} = 'secret';
kill_clients();
$hits->shows(qr/^failed\|redis_auth\|NOAUTH [^|]*\|NOAUTH/, 'NOAUTH: shown');
$hits->attempts(3);
is(said(qr/failed: NOAUTH/), 1, 'NOAUTH: said once');
like(join("\n", log_lines($node, qr/HINT/, $from)), qr/Check postpipe\.redis_url/, 'NOAUTH: says which setting');
$hits->publish(5);
configure('postpipe.redis_url', 'redis://:wrong-one@127.0.0.1:' . $proxy->port);
$hits->shows(qr/^failed\|redis_auth\|WRONGPASS [^|]*\|WRONGPASS/, 'WRONGPASS: shown');
cmp_ok(said(qr/failed: /), '<=', 3, 'WRONGPASS: said once for each cause');
configure('postpipe.redis_url', 'redis://:secret@127.0.0.1:' . $proxy->port);
$hits->settled('password in postpipe.redis_url');
begin();
$redis->cli('CONFIG', 'SET', 'requirepass', 'another');
$redis->{password} = 'another';
kill_clients();
$hits->shows(qr/^failed\|redis_auth\|WRONGPASS/, 'the password has changed: shown');
$hits->publish(5);
my $file = PostgreSQL::Test::Utils::tempdir() . '/password';
append_to_file($file, "another\n");
configure('postpipe.redis_password_file', $file);
$hits->settled('postpipe.redis_password_file');
is(scalar(grep { /secret|another|wrong-one/ } log_lines($node, qr/postpipe/)), 0, 'no password is in the log');
$redis->cli('CONFIG', 'SET', 'requirepass', '');
delete $redis->{password};
configure('postpipe.redis_password_file', '');
configure('postpipe.redis_url', $proxy->url);

# --- a reload with another URL while the log-in hangs
begin();
my $fake2 = Postpipe::Test::FakeRedis->new(mode => ['silent']);
$proxy->command('target ' . $fake2->port);
$proxy->command('rst');
my $consumer = $hits->worker('consumer');
wait_for { grep { "@$_" eq "CLIENT SETNAME $consumer" } $fake2->commands } 'the worker hangs in the log-in';
configure('postpipe.redis_url', $redis->url);
$hits->publish(5);
$hits->settled('another URL while the log-in hangs');
crashed('another URL while the log-in hangs');
configure('postpipe.redis_url', $proxy->url);
back();

# ... while XGROUP CREATE does, and while a read does
for my $case (
	[ 'XGROUP', XREADGROUP => "-NOGROUP No such key\r\n", 'XINFO GROUPS' => "*0\r\n", 'XGROUP CREATE' => { silent => 1 } ],
	[ 'XREADGROUP', XREADGROUP => { silent => 1 } ])
{
	my ($command, %replies) = @$case;
	begin();
	my $hung = Postpipe::Test::FakeRedis->new(replies => \%replies);
	$proxy->command('target ' . $hung->port);
	$proxy->command('rst');
	wait_for { $hung->commands($command) } "it hangs in $command";
	configure('postpipe.redis_url', $redis->url);
	$hits->publish(5);
	$hits->settled("another URL while $command hangs");
	crashed("another URL while $command hangs");
	configure('postpipe.redis_url', $proxy->url);
	back();
}

# --- Redis has no connection for one of two workers
begin();
my $picky = Postpipe::Test::FakeRedis->new(replies => { 'XINFO GROUPS' => "*1\r\n" . Postpipe::Test::Resp::encode(name => 'postpipe_two', 'last-delivered-id' => '0-0') });
configure('postpipe.redis_url', $picky->url);
my $two = Postpipe::Test::Hits->new(node => $node, redis => $picky, name => 'two', workers => 2);
my $idle = q(SELECT count(*) FROM postpipe_workers WHERE pipeline = 'two' AND state = 'idle');
wait_sql($node, 'postgres', $idle, '2', 'two workers run');
my ($first, $second) = split /\n/, $two->sql(q(SELECT consumer FROM postpipe_workers WHERE pipeline = 'two' ORDER BY worker));
my $connects = sub { my ($name) = @_; return scalar grep { "@$_" eq "CLIENT SETNAME $name" } $picky->commands };
$picky->set('CLIENT SETNAME' => { by => { $second => "-ERR max number of clients reached\r\n" } });
$two->sql(q(SELECT pg_terminate_backend(pid) FROM postpipe_workers WHERE pipeline = 'two' AND worker = 2));
my ($before1, $before2) = map { $connects->($_) } $first, $second;
wait_for { $connects->($second) > $before2 + 4 } 'the second is refused again and again';
is($connects->($first), $before1, '... which is no reason for the first one to connect anew');
$picky->set('CLIENT SETNAME' => undef);
wait_sql($node, 'postgres', $idle, '2', '... and then is served');
$two->sql(q(SELECT postpipe_drop_pipeline('two')));
configure('postpipe.redis_url', $proxy->url);
back();

# --- NOGROUP
begin();
$redis->cli('XGROUP', 'DESTROY', $hits->stream, $hits->group);
$hits->publish(5);
$hits->settled('XGROUP DESTROY');
is(said(qr/made consumer group/), 1, 'XGROUP DESTROY: said that the group was made');
begin();
$redis->cli('DEL', $hits->stream);
$hits->publish(5);
$hits->settled('DEL of the stream');
begin();
$redis->cli('FLUSHALL');
$hits->publish(5);
$hits->settled('FLUSHALL');
cmp_ok(said(qr/retrying|failed/), '<=', 1, 'FLUSHALL: said at most once');

# --- NOGROUP with two batches in hand: the second is committed, and its XACK not sent yet, when the group is made anew
my $session = $hits->session;
my $big = Postpipe::Test::Hits->new(node => $node, redis => $redis, name => 'big', options => '{"batch_size": 10000}');
$big->shows(qr/^idle/, 'a pipeline with large batches');
$big->sql("SELECT postpipe_pause('big')");
$big->sql("SELECT postpipe_wait_state('big', 'paused')");
$big->publish(20000);
$session->('BEGIN; LOCK TABLE big');
$big->sql("SELECT postpipe_resume('big')");
$big->stuck;
wait_for { pending($redis, $big->stream, $big->group) == 20000 } 'two batches are in hand';
$redis->pipeline([ 'CONFIG', 'SET', 'slowlog-log-slower-than', 0 ], [ 'CONFIG', 'SET', 'slowlog-max-len', 100000 ],
	[ 'XGROUP', 'DESTROY', $big->stream, $big->group ]);
$session->('COMMIT');
$big->settled('the group is destroyed with two batches in hand');
my %known = map { $_ => 1 } @{ $big->{ids} };
my @acks;
wait_for
{
	@acks = map { $_->[3] } grep { $_->[3][0] eq 'XACK' } @{ $redis->command('SLOWLOG', 'GET', -1) };
	@acks >= 2;
}
'XACK was sent';
$redis->command('CONFIG', 'SET', 'slowlog-log-slower-than', -1);
# The slow log shows the first words of a long command, and then how many were left out.
is_deeply([ grep { !$known{$_} && !/more arguments/ } map { @{$_}[ 3 .. $#$_ ] } @acks ], [], '... for entries that exist only');
crashed('the group is destroyed with two batches in hand');
$big->sql("SELECT postpipe_drop_pipeline('big')");

# --- READONLY
begin();
$redis->cli('REPLICAOF', '127.0.0.1', '1');
$hits->shows(qr/^retrying\|redis_readonly\|READONLY [^|]*\|READONLY/, 'READONLY: shown');
$hits->attempts(3);
is(said(qr/retrying: READONLY/), 1, 'READONLY: said once');
$redis->cli('REPLICAOF', 'NO', 'ONE');
$hits->publish(5);
$hits->settled('READONLY');

# --- WRONGTYPE
begin();
$redis->pipeline([ 'DEL', $hits->stream ], [ 'SET', $hits->stream, 'x' ]);
$hits->shows(qr/^failed\|redis_wrongtype\|WRONGTYPE [^|]*\|WRONGTYPE/, 'WRONGTYPE: shown');
$hits->attempts(3);
is(said(qr/failed: WRONGTYPE/), 1, 'WRONGTYPE: said once');
$redis->cli('DEL', $hits->stream);
$hits->publish(5);
$hits->settled('WRONGTYPE');

# --- NOREPLICAS, of the XACK first: committed, not acknowledged
begin();
$session->('BEGIN; LOCK TABLE hits');
$hits->publish(5);
$hits->stuck;
$redis->cli('CONFIG', 'SET', 'min-replicas-to-write', 1);
$session->('COMMIT');
$hits->shows(qr/^retrying\|redis_noreplicas\|NOREPLICAS [^|]*\|NOREPLICAS/, 'NOREPLICAS: shown');
$hits->attempts(3);
is(said(qr/retrying: NOREPLICAS/), 1, 'NOREPLICAS: said once');
$redis->cli('CONFIG', 'SET', 'min-replicas-to-write', 0);
$hits->publish(5);
$hits->settled('NOREPLICAS');
$session->(undef);

# --- MISCONF, to PING as well
begin();
my $misconf = "-MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.\r\n";
$fake->mode('answer');
$fake->set(XREADGROUP => $misconf, XACK => $misconf, PING => $misconf);
elsewhere();
$hits->publish(5);
$hits->shows(qr/^retrying\|redis_misconf\|MISCONF [^|]*\|MISCONF/, 'MISCONF: shown');
$hits->attempts(3);
is(said(qr/retrying: MISCONF/), 1, 'MISCONF: said once');
back();
$hits->settled('MISCONF');

# --- two causes in turn
begin();
$fake->set(PING => undef, XACK => undef, XREADGROUP => [ map { ("-LOADING Redis is loading\r\n", "-BUSY Redis is busy\r\n") } 1 .. 10 ]);
elsewhere();
$hits->shows(qr/^retrying\|redis_(?:loading|busy)/, 'two causes in turn: shown');
$hits->attempts(5);
cmp_ok(said(qr/retrying: LOADING/), '<=', 1, 'two causes in turn: the one is said once');
cmp_ok(said(qr/retrying: BUSY/), '<=', 1, 'two causes in turn: and so is the other');
back();
$hits->publish(5);
$hits->settled('two causes in turn');

# --- what is no RESP
begin();
$fake->mode('garbage', "HTTP/1.1 400 Bad Request\r\n\r\n");
elsewhere();
$hits->publish(5);
$hits->shows(qr/^retrying\|redis_protocol\|[^|]*could not be understood/, 'garbage: shown');
$hits->attempts(3);
is(said(qr/retrying: .*could not be understood/), 1, 'garbage: said once');
back();
$hits->settled('garbage');

# --- maxclients
begin();
$redis->cli('CONFIG', 'SET', 'maxclients', 1);
$hits->publish(5);    # on the connection of the test, which is there already
$proxy->command('rst');
$hits->shows(qr/^retrying\|redis_maxclients\|ERR max number of clients[^|]*\|ERR max/, 'maxclients: shown');
$redis->command('CONFIG', 'SET', 'maxclients', 1000);
$hits->settled('maxclients');

# --- UNBLOCKED, and connections that are killed under load
begin();
my $reconnects = $hits->worker('reconnects');
wait_for { $redis->cli('CLIENT', 'UNBLOCK', $hits->worker('redis_client_id'), 'ERROR') eq '1' } 'UNBLOCK of a client that blocks';
$hits->shows(qr/\|UNBLOCKED/, 'UNBLOCKED: shown in last_error');
$hits->publish(5);
$hits->settled('UNBLOCKED');
$hits->fresh;
for my $round (1 .. 5)
{
	my $id = $hits->worker('redis_client_id');
	$hits->publish(20);
	kill_clients();
	$hits->publish(20);
	wait_for { ($hits->worker('redis_client_id') || $id) != $id } "killed, round $round: another connection";
}
$hits->settled('CLIENT KILL');
is(consumers($redis, $hits->stream, $hits->group), 1, 'still one consumer');

# --- one byte at a time
begin();
$proxy->command('dribble s2c');
$hits->publish(10, text => 'x' x 100);
$hits->settled('dribble');
$proxy->command('pass');

# --- every reply twice
begin();
$proxy->command('dup s2c');
$hits->publish(10);
$hits->shows(qr/\|[^|]*(?:nothing was asked for|not a number|not expected|understood)[^|]*$/, 'dup: noticed');
$proxy->command('pass');
$hits->publish(10);
$hits->settled('dup');

# --- an answer that comes later than it is waited for: Redis has handed out what does not arrive
begin();
$hits->forget;
$proxy->command('delay s2c 6000');
$hits->publish(10);
$hits->shows(qr/^retrying\|redis_timeout\|[^|]*did not answer[^|]*\|[^|]*did not answer/, 'late: shown');
cmp_ok(pending($redis, $hits->stream, $hits->group), '>', $hits->sql('SELECT count(*) FROM hits'), 'late: Redis has answered with entries that were not received');
is(said(qr/retrying: .*did not answer/), 1, 'late: said once');
$proxy->command('pass');
$hits->publish(10);
$hits->settled('late');

# --- half-open: neither side ever hears of the other
begin();
$proxy->command('drop both');
$hits->publish(10);
$hits->shows(qr/^retrying\|redis_timeout\|[^|]*did not answer/, 'half-open: shown');
$proxy->command('pass');
$hits->publish(10);
$hits->settled('half-open');
wait_for { clients() == 1 } 'half-open: the old connection is gone';
is(consumers($redis, $hits->stream, $hits->group), 1, 'half-open: one consumer');

# --- another connection in the worker's own process, opened and closed while it has its own
begin();
$hits->sql(q(CREATE FUNCTION peek() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN PERFORM count(*) FROM public.postpipe_peek('hits'); RETURN NULL; END $$;
	CREATE TRIGGER peek AFTER INSERT ON hits FOR EACH STATEMENT EXECUTE FUNCTION peek()));
$reconnects = $hits->worker('reconnects');
for my $i (1 .. 3)
{
	$hits->publish(1);
	$hits->settled("a trigger that looks at Redis, $i");
}
is($hits->worker('reconnects'), $reconnects, '... while the worker keeps its connection, and hears what comes on it');
my $worker = $hits->worker('pid');
is(scalar(grep { (readlink // '') =~ /eventpoll/ } glob "/proc/$worker/fd/*"), 2, 'sets of sockets are closed with their connections: two are left, that of the latch and the one in use');

is($node->safe_psql('postgres', 'SELECT pg_postmaster_start_time()'), $postmaster, 'the server was never harmed');
is($hits->sql('SELECT count(*) FROM postpipe_dlq'), 0, 'no fault of Redis is an entry\'s');
is(scalar log_lines($node, qr/exited with exit code [^01]/), 0, 'every process left with code 0 or 1');

done_testing();

# A case begins: all is well, the back-off is at its start, the log is read from here.
sub begin
{
	$hits->fresh;
	$from = log_offset($node);
	return;
}

# Lines of the worker since then.
sub said
{
	my ($regex) = @_;
	return scalar log_lines($node, qr/LOG:.*pipeline "hits", worker 1: .*?(?:$regex)/, $from // 0);
}

# Redis is the fake one from now on; the real one again.
sub elsewhere { $proxy->command('target ' . $fake->port); $proxy->command('rst'); return }
sub back { $proxy->command('target ' . $redis->port); $proxy->command('rst'); return }

# A crash of one process is a restart of all, which nothing else here would notice.
sub crashed
{
	my ($what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is(join("\n", log_lines($node, qr/terminated by signal|PANIC/, $from)), '', "$what: no crash");
}

# Redis has loaded its data.
sub loaded
{
	wait_for { $redis->command('PING') eq 'PONG' && $redis->cli('INFO', 'persistence') =~ /loading:0/ } 'Redis has loaded its data';
	return;
}

# Every connection, that of the test as well.
sub kill_clients
{
	$redis->cli('CLIENT', 'KILL', 'TYPE', 'normal');
	delete $redis->{client};
	return;
}

# Connections of the worker, as Redis sees them.
sub clients
{
	my $consumer = $hits->worker('consumer');
	return scalar grep { /name=\Q$consumer\E / } split /\n/, $redis->cli('CLIENT', 'LIST');
}
