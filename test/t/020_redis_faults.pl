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
$hits->attempts(3);
cmp_ok(said(qr/retrying/), '<=', 3, 'killed: said once for each cause');
$redis->start;
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
$hits->attempts(4);
cmp_ok(said(qr/retrying/), '<=', 3, 'reset: said once for each cause');
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
$redis->stop;
push @{ $redis->{conf} }, 'key-load-delay 5000', 'loading-process-events-interval-bytes 1024';
$redis->start;
$hits->shows(qr/^retrying\|redis_loading\|LOADING [^|]*\|LOADING/, 'LOADING: shown');
is(said(qr/retrying: LOADING/), 1, 'LOADING: said once');
$redis->cli('CONFIG', 'SET', 'key-load-delay', 0);
splice @{ $redis->{conf} };
wait_for { $redis->command('PING') } 'it is loaded';
$hits->publish(3);
$hits->settled('LOADING');

# --- gone, and back without data
begin();
$redis->stop;
remove_tree($redis->dir . '/appendonlydir');
$redis->start;
$hits->publish(10);
$hits->settled('Redis came back empty');

# --- NOAUTH, WRONGPASS: the password comes with ALTER SYSTEM and a reload
begin();
$redis->cli('CONFIG', 'SET', 'requirepass', 'secret');
$redis->{password} = 'secret';
$redis->cli('CLIENT', 'KILL', 'TYPE', 'normal');
$hits->shows(qr/^failed\|redis_auth\|NOAUTH [^|]*\|NOAUTH/, 'NOAUTH: shown');
$hits->attempts(3);
is(said(qr/failed: NOAUTH/), 1, 'NOAUTH: said once');
like(join("\n", log_lines($node, qr/HINT/, $from)), qr/Check postpipe\.redis_url/, 'NOAUTH: says which setting');
$hits->publish(5);
setting(redis_url => 'redis://:wrong-one@127.0.0.1:' . $proxy->port);
$hits->shows(qr/^failed\|redis_auth\|WRONGPASS [^|]*\|WRONGPASS/, 'WRONGPASS: shown');
cmp_ok(said(qr/failed: /), '<=', 3, 'WRONGPASS: said once for each cause');
setting(redis_url => 'redis://:secret@127.0.0.1:' . $proxy->port);
$hits->settled('password in postpipe.redis_url');
begin();
$redis->cli('CONFIG', 'SET', 'requirepass', 'another');
$redis->{password} = 'another';
$redis->cli('CLIENT', 'KILL', 'TYPE', 'normal');
$hits->shows(qr/^failed\|redis_auth\|WRONGPASS/, 'the password has changed: shown');
$hits->publish(5);
my $file = PostgreSQL::Test::Utils::tempdir() . '/password';
append_to_file($file, "another\n");
setting(redis_password_file => $file);
$hits->settled('postpipe.redis_password_file');
is(scalar(grep { /secret|another|wrong-one/ } log_lines($node, qr/postpipe/)), 0, 'no password is in the log');
$redis->cli('CONFIG', 'SET', 'requirepass', '');
delete $redis->{password};
setting(redis_password_file => '');
setting(redis_url => $proxy->url);

# --- a reload with another URL while the log-in hangs
begin();
$fake->mode('silent');
elsewhere();
wait_for { $fake->connections } 'the worker hangs in the log-in';
wait_for { ($hits->worker('next_attempt_at') // '') eq '' || $fake->connections >= 2 } 'both do';
setting(redis_url => $redis->url);
$hits->publish(5);
$hits->settled('another URL while the log-in hangs');
setting(redis_url => $proxy->url);
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

# --- NOGROUP with a batch in hand: committed, and its XACK not sent yet
begin();
my $session = $hits->session;
$session->('BEGIN; LOCK TABLE hits');
$hits->publish(1);
$hits->stuck;
$hits->publish(900);
$redis->cli('XGROUP', 'DESTROY', $hits->stream, $hits->group);
$redis->cli('XGROUP', 'CREATE', $hits->stream, $hits->group, '0');
$session->('COMMIT');
$hits->settled('the group is made anew with a batch in hand');
begin();
$session->('BEGIN; LOCK TABLE hits');
$hits->publish(1);
$hits->stuck;
$hits->publish(900);
$session->('COMMIT; BEGIN; LOCK TABLE hits');
$redis->cli('XGROUP', 'DESTROY', $hits->stream, $hits->group);
$session->('COMMIT');
$hits->settled('the group is destroyed with a batch in hand');

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
$redis->cli('CLIENT', 'UNBLOCK', $hits->worker('redis_client_id'), 'ERROR');
$hits->shows(qr/\|UNBLOCKED/, 'UNBLOCKED: shown in last_error');
$hits->publish(5);
$hits->settled('UNBLOCKED');
$hits->fresh;
for my $round (1 .. 5)
{
	my $id = $hits->worker('redis_client_id');
	$hits->publish(20);
	$redis->cli('CLIENT', 'KILL', 'TYPE', 'normal');
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

is($node->safe_psql('postgres', 'SELECT pg_postmaster_start_time()'), $postmaster, 'the server was never harmed');
is(scalar(() = $hits->sql('SELECT 1 FROM postpipe_dlq')), 0, 'no fault of Redis is an entry\'s');
is(scalar log_lines($node, qr/PANIC|FATAL:.*postpipe|terminated by signal|exited with exit code (?!1\b)/), 0, 'no crash is in the log');

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

sub setting
{
	my ($name, $value) = @_;
	$node->safe_psql('postgres', "ALTER SYSTEM SET postpipe.$name = '$value'");
	$node->reload;
	return;
}

# Connections of the worker, as Redis sees them.
sub clients
{
	my $consumer = $hits->worker('consumer');
	return scalar grep { /name=\Q$consumer\E / } split /\n/, $redis->cli('CLIENT', 'LIST');
}
