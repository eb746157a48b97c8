# Redis as it is set up elsewhere: users with few rights, replicas, a cluster's node, a server that evicts, or is busy with a
# script, a database with a number; and somebody who acknowledges our entries. TAP, because each needs a real Redis of its own.

use strict;
use warnings;
use FindBin;
use PostgreSQL::Test::Utils;
use Postpipe::Test;
use Postpipe::Test::Hits;

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('main', redis => $redis->url(db => 3));
$redis->command('SELECT', 3);
my $hits = Postpipe::Test::Hits->new(node => $node, redis => $redis, options => '{"batch_size": 10}');
my $from = 0;
$hits->publish(10);
$hits->settled('to begin with');

# --- Another database after each connect: the same key in database 0 has other entries.
$redis->command('SELECT', 0);
$redis->command('XADD', $hits->stream, '1-1', 'n', 'of database 0');
$redis->command('XGROUP', 'CREATE', $hits->stream, $hits->group, '0');
$redis->command('SELECT', 3);
for my $round (1 .. 3)
{
	my $client = $hits->worker('redis_client_id');
	$redis->command('CLIENT', 'KILL', 'ID', $client);
	wait_for { ($hits->worker('redis_client_id') || $client) != $client } "killed, round $round: another connection";
	$hits->publish(5);
}
$hits->settled('database 3, and not 0');
like($redis->cli('CLIENT', 'LIST'), qr/name=\Q@{[ $hits->worker('consumer') ]}\E .* db=3 /, 'which Redis confirms');

# --- Somebody else acknowledges what is in hand: the reply to our XACK is less than we asked for.
$from = log_offset($node);
my $session = $hits->session;
$session->('BEGIN; LOCK TABLE hits');
my @ids = $hits->publish(5);
$hits->stuck;
# The first one is in hand, whatever else is.
is($redis->command('XACK', $hits->stream, $hits->group, $ids[0]), 1, 'one is acknowledged by somebody else');
$session->('COMMIT');
$session->(undef);
$hits->publish(5);
$hits->settled('XACK returns fewer');
is(join("\n", log_lines($node, qr/./, $from)), '', '... which is no fault');

# --- Busy with a script. The first seconds it does not answer at all; then it says why.
$redis->command('CONFIG', 'SET', 'busy-reply-threshold', 100);
my $script = Postpipe::Test::Client->new($redis->port);
$script->send_only([ 'EVAL', 'while true do end', 0 ]);
$hits->shows(qr/^retrying\|redis_busy\|BUSY (?:Redis|Valkey) is busy running a script[^|]*SCRIPT KILL/, 'BUSY: shown, with the command that ends it');
Postpipe::Test::Client->new($redis->port)->command('SCRIPT', 'KILL');
wait_for { $redis->command('SELECT', 3) } 'the script has ended';
$hits->publish(5);
$hits->settled('BUSY');

# --- A replica that has lost its master, and does not serve what it has
$from = log_offset($node);
$redis->command('CONFIG', 'SET', 'replica-serve-stale-data', 'no');
$redis->command('REPLICAOF', '127.0.0.1', 1);
$hits->shows(qr/^retrying\|redis_masterdown\|MASTERDOWN /, 'MASTERDOWN: shown');
$hits->attempts(2);
is(scalar log_lines($node, qr/retrying: MASTERDOWN/, $from), 1, '... and said once');
like(join("\n", log_lines($node, qr/HINT/, $from)), qr/must name the master/, '... with what to do');
$redis->command('REPLICAOF', 'NO', 'ONE');
$hits->publish(5);
$hits->settled('MASTERDOWN');

# --- Eviction: said when the worker connects, once, and only where a stream can be evicted
sub evicts
{
	my ($policy, $limit, $expected) = @_;
	$redis->command('CONFIG', 'SET', 'maxmemory-policy', $policy);
	$redis->command('CONFIG', 'SET', 'maxmemory', $limit);
	$from = log_offset($node);
	$hits->fresh;
	my $client = $hits->worker('redis_client_id');
	$redis->command('CLIENT', 'KILL', 'ID', $client);
	wait_for { ($hits->worker('redis_client_id') || $client) != $client } "$policy: connected again";
	return is(scalar log_lines($node, qr/WARNING: .*pipeline "hits": Redis may evict the stream.*maxmemory-policy is $policy/, $from), $expected,
		"maxmemory-policy $policy, maxmemory $limit: " . ($expected ? 'a warning' : 'no warning'));
}
evicts('allkeys-lru', '1gb', 1);
evicts('allkeys-lru', 0, 0);
evicts('volatile-lru', '1gb', 0);
evicts('allkeys-random', '1gb', 1);
evicts('noeviction', '1gb', 0);
$hits->publish(5);
$hits->settled('after all policies');
is($hits->sql('SELECT count(*) FROM postpipe_dlq'), 0, 'nothing of it was an entry\'s fault');

# --- A user who may do nothing, and then exactly what the hint says
$redis->command('ACL', 'SETUSER', 'few', 'on', '>secret', '+select');
(my $url = $redis->url(db => 3)) =~ s{redis://}{redis://few:secret\@};
$node->append_conf('postgresql.conf', "postpipe.redis_url = '$url'");
$from = log_offset($node);
$node->reload;
$hits->shows(qr/^failed\|redis_noperm\|NOPERM /, 'NOPERM: shown');
wait_for { log_lines($node, qr/HINT:  The Redis user needs: /, $from) } '... with a hint';
my ($rights) = (log_lines($node, qr/HINT:  The Redis user needs: /, $from))[0] =~ /ACL SETUSER <user> (.*?);/;
my @rights = map { s/<stream>/stream:hits/r } split / /, $rights;
my ($all) = (log_lines($node, qr/HINT:  The Redis user needs: /, $from))[0] =~ /(ACL SETUSER .*)/;
# The pipeline of posts, though paused, is looked at as well, and its stream is none of these rights.
$hits->sql("SELECT postpipe_drop_pipeline('posts')");
$redis->command('ACL', 'SETUSER', 'few', @rights);
$redis->command('ACL', 'LOG', 'RESET');
$hits->publish(5);
$hits->settled('with what the hint says it works');
my $python = sub { $redis->command('XREADGROUP', 'GROUP', $hits->group, 'python', 'COUNT', 2, 'STREAMS', $hits->stream, '>') };
$hits->sql("SELECT postpipe_pause('hits')");
$hits->sql("SELECT postpipe_wait_state('hits', 'paused')");
$hits->publish(4);
$python->();
is($hits->sql("SELECT count(*) FROM postpipe_consumers('hits')"), 2, '... to look at consumers');
is($hits->sql("SELECT count(*) FROM postpipe_pending('hits')"), 2, '... and what is pending');
is($hits->sql("SELECT postpipe_claim('hits', min_idle => '0')"), 2, '... to claim');
$hits->sql("SELECT postpipe_resume('hits')");
$hits->settled('... to apply what was claimed');
is($hits->sql("SELECT count(*) FROM postpipe_reap_consumers('hits', '0') WHERE reaped"), 1, '... to delete a consumer');
$hits->sql("SELECT postpipe_pause('hits')");
$hits->sql("SELECT postpipe_wait_state('hits', 'paused')");
is($hits->sql("SELECT postpipe_rewind('hits', to_id => '$hits->{ids}[-3]')"), 2, '... to rewind');
$hits->sql("SELECT postpipe_resume('hits')");
wait_sql($node, 'postgres', 'SELECT count(*) FROM hits', @{ $hits->{ids} } + 2, '... to apply that again');
$hits->fresh;
is($hits->sql("SELECT count(*) FROM postpipe_peek('hits') WHERE status = 'applied'"), 10, '... to peek');
is($hits->sql("SELECT entries - deduplicated FROM postpipe_backfill('hits')"), 0, '... to backfill');
is($hits->sql("SELECT postpipe_skip('hits', '$hits->{ids}[0]')"), 'f', '... to skip');
is($hits->sql("SELECT postpipe_create_group('hits')"), 'f', '... to make the group');
is(join(' ', map { my %entry = @$_; "$entry{reason} $entry{object}" } @{ $redis->command('ACL', 'LOG') }), '', '... and nothing was refused');

# Some functions need more. The hint has that, and the manual the same.
my %for;
$for{$1} = $2 while $all =~ /(postpipe_\w+) ([^,.]+)/g;
is(join(' ', sort keys %for), 'postpipe_check postpipe_publish postpipe_selftest postpipe_test', 'the functions that need more');
my ($manual) = slurp_file("$FindBin::RealBin/../../docs/operations.md") =~ /^## What Redis must allow\n(.*?)^## /ms;
is(join(' ', $manual =~ /[~+][a-z<][\w|>:*]*/g), join(' ', $all =~ /[~+][a-z<][\w|>:*]*/g), 'docs/operations.md has all rights of the hint, in its order');
# The servers of the tests run without fsync; and Redis 6.2 does not tell what a user may do.
my $known = $redis->cli('INFO', 'server') =~ /redis_version:6/ ? "'settings', 'rights'" : "'settings'";
for ([ postpipe_test => "SELECT count(*) FROM postpipe_test('hits', 1) WHERE ok", 1 ], [ postpipe_selftest => 'SELECT count(*) FROM postpipe_selftest() WHERE NOT ok', 0 ],
	[ postpipe_check => "SELECT string_agg(check_name || ': ' || detail, '; ') FROM postpipe_check() WHERE status <> 'ok' AND check_name NOT IN ($known)", '' ],
	[ postpipe_publish => q(SELECT postpipe_wait('hits', postpipe_publish('hits', '{"n": 1000}'))), 't' ])
{
	my ($function, $sql, $result) = @$_;
	my @more = split / /, $for{$function};
	$redis->command('ACL', 'SETUSER', 'few', @more);
	# Until nothing moves the audit has no balance.
	wait_sql($node, 'postgres', $sql, $result, "... $function has all that it needs");
	$redis->command('ACL', 'SETUSER', 'few', map { s/\+/-/r } grep { !/\|/ } @more);
}
$hits->sql("SELECT postpipe_drop_pipeline('hits', destroy_group => true)");
wait_for { $redis->command('EXISTS', 'postpipe:{stream:hits}:postpipe_hits') == 0 } '... and to give the group back';
my @refused = map { my %entry = @$_; "$entry{reason} $entry{object}" } @{ $redis->command('ACL', 'LOG') };
is("@refused", '', 'and nothing was refused meanwhile');
$node->stop;

# --- A node of a cluster that serves no slot; then it serves all
my $cluster = Postpipe::Test::Redis->new(conf => ['cluster-enabled yes']);
$node = pp_node('cluster', redis => $cluster);
$hits = Postpipe::Test::Hits->new(node => $node, redis => $cluster);
$hits->shows(qr/^retrying\|redis_clusterdown\|CLUSTERDOWN /, 'CLUSTERDOWN: shown');
like(join("\n", log_lines($node, qr/HINT/)), qr/Redis Cluster is not supported/, '... with a hint');
$cluster->command('CLUSTER', 'ADDSLOTSRANGE', 0, 16383);
wait_for { $cluster->cli('CLUSTER', 'INFO') =~ /cluster_state:ok/ } 'one node with all slots';
$hits->publish(5);
$hits->settled('a cluster of one node');
$node->stop;

# --- What calls itself a Redis, and announces more than there is memory: refused at the announcement, and no memory is taken.
my $fake = Postpipe::Test::FakeRedis->new;
$node = pp_node('fake', redis => $fake);
$hits = Postpipe::Test::Hits->new(node => $node, redis => $redis);
$hits->shows(qr/^idle/, 'a fake Redis that is well');
my $peak = sub { my ($kb) = slurp_file('/proc/' . $hits->worker('pid') . '/status') =~ /VmHWM:\s+(\d+) kB/; return $kb };
my $before = $peak->();
my $nested = join '', map { "*1\r\n" } 1 .. 50;
for my $bad ("*2147483647\r\n", "*1\r\n*2\r\n\$1\r\ns\r\n*2147483646\r\n", "\$2147483647\r\n", "*-5\r\n", "\$-5\r\n", ":99999999999999999999\r\n", $nested)
{
	$fake->set(XREADGROUP => $bad);
	my $what = substr($bad, 0, 20) =~ s/\r\n/ /gr;
	$hits->shows(qr/^retrying\|redis_(?:protocol|io|timeout|reply_too_large)\|/, "$what: shown");
	$fake->set(XREADGROUP => undef);
	$hits->shows(qr/^idle/, "$what: and it heals");
}
cmp_ok($peak->() - $before, '<', 64 * 1024, 'which took no memory to speak of');
is(scalar log_lines($node, qr/PANIC|terminated by signal|exited with exit code [^01]/), 0, 'and no process crashed');

done_testing();
