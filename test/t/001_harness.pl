# The helpers themselves: private Redis, fake Redis, fault proxy and PostgreSQL node do what the other tests rely on.
# TAP, because all of it is processes and sockets outside a database.

use strict;
use warnings;
use PostgreSQL::Test::Utils;
use Postpipe::Test;
use Postpipe::Test::Data;

# --- Redis
my $redis = Postpipe::Test::Redis->new(conf => ['maxclients 100']);
like($redis->url, qr{^redis://127\.0\.0\.1:\d+$}, 'Redis has a URL');
isnt($redis->port, 6379, 'Redis has a port of its own');
is($redis->cli('PING'), 'PONG', 'redis-cli reaches it');
like($redis->cli('CONFIG', 'GET', 'maxclients'), qr/100/, 'a line of configuration is in force');
is($redis->cli('CONFIG', 'GET', 'appendonly'), "appendonly\nno", 'nothing is written to disk by default');

like($redis->xadd('s', a => 1, b => "two\r\nlines"), qr/^\d+-\d+$/, 'xadd returns the ID');
is($redis->xadd('s', { id => '99999999999999-7' }, a => "\0\xff"), '99999999999999-7', 'xadd with an ID');
is($redis->command('XLEN', 's'), 2, 'command returns a value');
is_deeply([ map { $_->[1] } @{ $redis->command('XRANGE', 's', '-', '+') } ],
	[ [ a => 1, b => "two\r\nlines" ], [ a => "\0\xff" ] ], 'bytes come back as they were');
ok(!eval { $redis->command('INCR', 's') }, 'an error reply dies');
like($@, qr/WRONGTYPE/, '... with its text');

is(consumers($redis, 's', 'g'), 0, 'no group: no consumers');
$redis->command('XGROUP', 'CREATE', 's', 'g', '0');
$redis->command('XREADGROUP', 'GROUP', 'g', $_, 'COUNT', '1', 'STREAMS', 's', '>') for qw(one two);
is(consumers($redis, 's', 'g'), 2, 'consumers');
is(pending($redis, 's', 'g'), 2, 'pending');

is($redis->pipe_file(sample_file('posts')), 300, 'a sample file is published');
is($redis->command('XLEN', 'stream:posts:parsed'), 300, '... and is in the stream');
is_deeply([ Postpipe::Test::Data::expected(map { sample_file($_) } qw(posts updates smoke)) ], [ 451, 301 ],
	'the number of different posts is computed from the data');

my $pid = $redis->pid;
$redis->freeze;
my $frozen = Postpipe::Test::Client->new($redis->port);
$frozen->send_only(['PING']);
ok(!$frozen->answers(0.1), 'a frozen Redis accepts a connection and does not answer');
$redis->thaw;
is($redis->cli('PING'), 'PONG', '... and goes on when it is thawed');
$redis->kill9;
ok(!kill(0, $pid), 'kill9 ends the process');
ok(!eval { $redis->cli('PING') }, 'redis-cli dies when nobody listens');
$redis->start;
is($redis->command('EXISTS', 's'), 0, 'a restart is an empty Redis');

my $kept = Postpipe::Test::Redis->new(keep => 1, password => 'secret');
$kept->xadd('s', a => 1);
$kept->kill9;
$kept->start;
is($kept->command('XLEN', 's'), 1, 'keep => 1 survives kill -9');
is($kept->cli('XLEN', 's'), '1', 'redis-cli knows the password');
like($kept->url, qr{^redis://:secret@}, 'and so does the URL');

# --- waiting
my $polls = 0;
my $value = wait_for { ++$polls == 3 ? 'third' : die 'not yet' } 'three polls';
is($value, 'third', 'wait_for returns the first true value');
is((Postpipe::Test::Wait::poll(sub { 0 }, 0.1))[1], 0, 'poll ends when the time is up');

# --- proxy
my $proxy = Postpipe::Test::Proxy->new(target => $redis->port);
is(run_cli($proxy->port, 'PING'), 'PONG', 'pass: redis-cli through the proxy');
is($proxy->stats->{conns}, 1, 'stats: one connection so far');
cmp_ok($proxy->stats->{c2s}, '>', 0, 'stats: bytes to Redis');
wait_for { $proxy->stats->{open} == 0 } 'the connection is forgotten';

my $big = 'x' x 3_000_000;
$redis->command('SET', 'big', $big);
is(length run_cli($proxy->port, 'GET', 'big'), 3_000_000, 'a large reply passes whole');

$proxy->command('refuse on');
like(run_cli($proxy->port, 'PING'), qr/reset|closed/i, 'refuse');
$proxy->command('pass');
is(run_cli($proxy->port, 'PING'), 'PONG', 'pass again');

my $client = Postpipe::Test::Client->new($proxy->port);
is($client->command('PING'), 'PONG', 'a lasting connection');
$proxy->command('stall both');
$client->send_only([ 'INCR', 'stalled' ]);
ok(!$client->answers(0.3), 'stall: no answer');
is($redis->command('EXISTS', 'stalled'), 0, '... and nothing reached Redis');
$proxy->command('pass');
is($client->receive, 1, '... but all does after pass');

$proxy->command('drop s2c');
$client->send_only([ 'INCR', 'dropped' ]);
ok(!$client->answers(0.3), 'drop: no answer');
is($redis->command('GET', 'dropped'), 1, '... but Redis got it');
$proxy->command('pass');
ok(!$client->answers(0.1), '... and it never comes');
is($client->command('PING'), 'PONG', '... the next one does');

$proxy->command('delay s2c 200');
$client->send_only([ 'PING' ]);
ok(!$client->answers(0.1), 'delay: not yet');
is($client->receive, 'PONG', '... then it is there');
$proxy->command('pass');
$proxy->command('dribble both');
is($client->command('ECHO', 'y' x 500), 'y' x 500, 'dribble: whole in the end');
$proxy->command('pass');
$proxy->command('dup s2c');
is($client->command('PING'), 'PONG', 'dup: the first answer');
is($client->receive, 'PONG', '... and the second');
$proxy->command('pass');
$client = Postpipe::Test::Client->new($proxy->port, 0.5);
$proxy->command('garble s2c 1000');
isnt(eval { $client->command('ECHO', 'z' x 50) } // 'not RESP', 'z' x 50, 'garble: another answer');
$proxy->command('pass');

$client = Postpipe::Test::Client->new($proxy->port);
$proxy->command('cut s2c 3');
ok(!eval { $client->command('PING') }, 'cut: connection lost');
is($client->{buffer}, '+PO', '... after three bytes');
$client = Postpipe::Test::Client->new($proxy->port);
$proxy->command('cuton c2s INCR before');
ok(!eval { $client->command('INCR', 'before') }, 'cuton before: connection lost');
is($redis->command('EXISTS', 'before'), 0, '... and Redis did not get it');
$client = Postpipe::Test::Client->new($proxy->port);
$proxy->command('cuton c2s INCR after 2');
is($client->command('INCR', 'after'), 1, 'cuton after 2: the first passes');
ok(!eval { $client->command('INCR', 'after') }, '... the second loses the connection');
wait_for { $redis->command('GET', 'after') eq 2 } 'Redis got the second as well';
is($proxy->stats->{cuts}, 3, 'stats: cuts');

my $seen = PostgreSQL::Test::Utils::tempdir() . '/seen';
$client = Postpipe::Test::Client->new($proxy->port);
$proxy->command(qq(gate c2s XACK printf %s "\$FP_DATA" > $seen; false));
is($client->command('XACK', 'nostream', 'g', '1-0'), 0, 'gate: the command passes');
like(slurp_file($seen), qr/XACK\r\n.*nostream/s, '... after the script saw it');
is_deeply([ @{ $proxy->stats }{qw(gate_run gate_fail)} ], [ 1, 1 ], '... and its failure is counted');
$proxy->command('pass');
$proxy->command('rst');
ok(!eval { $client->command('PING') }, 'rst: connection lost');
$proxy->command('target ' . $kept->port);
like(run_cli($proxy->port, 'PING'), qr/NOAUTH/, 'target: another Redis');
ok(!eval { $proxy->command('nonsense') }, 'an unknown command is refused');
$proxy->stop;
ok(!Postpipe::Test::Client->new($proxy->port), 'stop: nobody listens');
$proxy->start;
ok(Postpipe::Test::Client->new($proxy->port), 'start: listens again');

# --- fake Redis
my $fake = Postpipe::Test::FakeRedis->new(
	replies => {
		'GET' => [ "\$1\r\na\r\n", "\$1\r\nb\r\n" ],
		'ECHO' => sub { "+code $_[1]\r\n" },
		'XGROUP CREATE' => "-BUSYGROUP Consumer Group name already exists\r\n",
	});
is(run_cli($fake->port, 'PING'), 'PONG', 'fake: a default');
is(join(' ', map { run_cli($fake->port, 'GET', 'k') } 1 .. 3), 'a b b', 'a list is taken one by one, the last one stays');
is(run_cli($fake->port, 'ECHO', 'x'), 'code x', 'a code reference');
like(run_cli($fake->port, 'XGROUP', 'CREATE', 's', 'g', '$'), qr/^BUSYGROUP/, 'command and subcommand');
like(run_cli($fake->port, 'NOPE'), qr/unknown command 'NOPE'/, 'an unknown command');
is_deeply([ $fake->commands('ECHO') ], [ [ 'ECHO', 'x' ] ], 'commands are logged');
$fake->set(ECHO => "-LOADING Redis is loading\r\n");
like(run_cli($fake->port, 'ECHO', 'x'), qr/LOADING/, 'set, while it runs');
$fake->set(ECHO => undef);
like(run_cli($fake->port, 'ECHO', 'x'), qr/unknown command/, 'set to undef: the default');

$client = Postpipe::Test::Client->new($fake->port);
$client->send_only([ 'XREADGROUP', 'GROUP', 'g', 'c', 'BLOCK', '200', 'STREAMS', 's', '>' ]);
$client->send_only([ 'PING' ]);
ok(!$client->answers(0.1), 'a blocking read waits');
is_deeply([ $client->receive, $client->receive ], [ undef, 'PONG' ], '... and what follows comes after it');
$fake->set(PING => { send => "+PO", close => 1 });
ok(!eval { $client->command('PING') }, 'close in the middle of a reply');
is($client->{buffer}, '+PO', '... what was sent has arrived');
$fake->set(PING => { silent => 1 });
$client = Postpipe::Test::Client->new($fake->port);
$client->send_only([ 'PING' ]);
ok(!$client->answers(0.1), 'silent');
$fake->mode('garbage', "\x00\x01garbage\r\n");
ok(!eval { Postpipe::Test::Client->new($fake->port)->command('PING') }, 'garbage');
like($@, qr/not RESP/, '... is no RESP');
$fake->mode('silent');
$client = Postpipe::Test::Client->new($fake->port);
$client->send_only([ 'PING' ]);
ok(!$client->answers(0.1), 'mode silent: accepts and never answers');
$fake->mode('reset');
ok(!eval { Postpipe::Test::Client->new($fake->port)->command('PING') }, 'mode reset');
$fake->mode('close');
ok(!eval { Postpipe::Test::Client->new($fake->port)->command('PING') }, 'mode close');

# --- PostgreSQL
my $node = pp_node('harness', redis => $redis, conf => "work_mem = '5MB'\n");
is($node->safe_psql('postgres', 'SHOW shared_preload_libraries'), 'postpipe', 'the node preloads postpipe');
is($node->safe_psql('postgres', 'SHOW work_mem'), '5MB', 'and has the lines of conf');
my $from = log_offset($node);
$node->safe_psql('postgres', q(DO $$BEGIN RAISE LOG 'a line of the harness'; END$$));
is(scalar log_lines($node, qr/LOG:  a line of the harness/, $from), 1, 'log_lines finds it');
is(scalar log_lines($node, qr/LOG:  a line/, log_offset($node)), 0, 'log_lines looks behind the offset only');
wait_sql($node, 'postgres', 'SELECT 1', '1', 'wait_sql');
my $second = pp_node('second', redis => $proxy, fresh => 1);
my $identifier = 'SELECT system_identifier FROM pg_control_system()';
isnt($second->safe_psql('postgres', $identifier), $node->safe_psql('postgres', $identifier), 'fresh: another system identifier');

done_testing();

# What redis-cli prints, or its error.
sub run_cli
{
	my ($port, @args) = @_;
	my ($stdout, $stderr);
	IPC::Run::run([ 'redis-cli', '-h', '127.0.0.1', '-p', $port, @args ], '>', \$stdout, '2>', \$stderr);
	chomp(my $text = "$stdout$stderr");
	return $text;
}
