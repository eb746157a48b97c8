# What answers in the place of Redis and means harm, or is broken: whatever it sends, the connection is closed with a
# reason, the server stays up and small, and the pipeline goes on when Redis is itself again. TAP, because the answers
# come from a server of the test, and because memory and start time of processes are looked at.

use strict;
use warnings;
use PostgreSQL::Test::Utils;
use Postpipe::Test;
use Postpipe::Test::Hits;

my $megabyte = 1 << 20;
my $fake = Postpipe::Test::FakeRedis->new;
my $node = pp_node('main', redis => $fake);
my $hits = Postpipe::Test::Hits->new(node => $node, redis => $fake);
my $postmaster = $node->safe_psql('postgres', 'SELECT pg_postmaster_start_time()');
$hits->sql(q(SELECT postpipe_drop_pipeline('posts')));
$hits->shows(qr/^idle/, 'a Redis that answers');

# What it sends instead of a reply, and what of that is to be shown. An entry is [ID, [name, value]].
my $entry = "*2\r\n\$3\r\n5-0\r\n*2\r\n\$1\r\nn\r\n\$1\r\n1\r\n";
my @hostile = (
	[ 'an array of 2^31 items' => "*2147483647\r\n", qr/redis_reply_too_large\|[^|]*too large/ ],
	[ 'arrays that are too large together' => "*1000000\r\n" x 6, qr/redis_reply_too_large/ ],
	[ 'an array of -5 items' => "*-5\r\n", qr/redis_protocol\|/ ],
	[ 'the head of a string of 2 GB' => "\$2000000000\r\nxxxx", qr/redis_reply_too_large/ ],
	[ 'a string of 500 MB in an array' => "*2\r\n\$1\r\nx\r\n\$500000000\r\nxxxx", qr/redis_reply_too_large/ ],
	[ 'a length that is no number' => "\$12x\r\nabc\r\n", qr/redis_protocol\|/ ],
	[ 'a string of -5 bytes' => "\$-5\r\n", qr/redis_protocol\|/ ],
	[ 'a string longer than it says' => "*1\r\n\$3\r\nabcdef\r\n", qr/redis_protocol\|/ ],
	[ 'an endless status' => { send => '+' . 'y' x $megabyte, times => 60 }, qr/redis_protocol\|[^|]*line of more than/ ],
	[ 'an endless error' => { send => '-' . 'y' x $megabyte, times => 60 }, qr/redis_protocol\|[^|]*line of more than/ ],
	[ 'an endless number' => { send => ':' . '1' x $megabyte, times => 60 }, qr/redis_protocol\|/ ],
	[ 'arrays in arrays' => "*1\r\n" x 5000 . ":1\r\n", qr/redis_protocol\|/ ],
	[ 'a type that is none' => "?what\r\n", qr/redis_protocol\|/ ],
	[ 'what was not asked for: a map' => "%1\r\n+a\r\n:1\r\n", qr/redis_protocol\|/ ],
	[ 'a number for entries' => ":5\r\n", qr/redis_protocol\|[^|]*shape/ ],
	[ 'a status for entries' => "+OK\r\n", qr/redis_protocol\|[^|]*shape/ ],
	[ 'an array of numbers for entries' => "*2\r\n:1\r\n:2\r\n", qr/redis_protocol\|[^|]*shape/ ],
	[ 'a number for a list of entries' => "*1\r\n*2\r\n\$1\r\ns\r\n:5\r\n", qr/redis_protocol\|[^|]*shape/ ],
	[ 'an entry without fields' => "*1\r\n*2\r\n\$1\r\ns\r\n*1\r\n*1\r\n\$3\r\n5-0\r\n", qr/redis_protocol\|[^|]*shape/ ],
	[ 'an ID that is none' => "*1\r\n*2\r\n\$1\r\ns\r\n*1\r\n*2\r\n\$3\r\nxyz\r\n*0\r\n", qr/redis_protocol\|[^|]*shape/ ],
	[ 'an ID twice' => "*1\r\n*2\r\n\$1\r\ns\r\n*2\r\n$entry$entry", qr/redis_protocol\|[^|]*shape/ ],
	[ 'an error in place of entries' => "*1\r\n*2\r\n\$1\r\ns\r\n-LOADING\r\n", qr/redis_protocol\|[^|]*shape/ ],
	[ 'an end in the middle' => { send => "*3\r\n:1\r\n", close => 1 }, qr/redis_closed\|/ ],
	[ 'bytes that are no text' => "-WEIRD \xff\xfe\x01 text\r\n", qr/redis_error\|WEIRD \?\?\? text/ ],
	[ 'more than was asked for' => "*-1\r\n+more\r\n", qr/redis_protocol\|[^|]*nothing was asked for/ ],
	[ 'more than was asked for, behind new entries' => { by => { '>' => "*1\r\n*2\r\n\$1\r\ns\r\n*1\r\n$entry+more\r\n" } }, qr/redis_protocol\|[^|]*nothing was asked for/ ]);

# --- The worker, from its first read on. It closes the connection, says why, and is well again when Redis is.
my $large = 0;
for my $case (@hostile)
{
	my ($what, $reply, $shown) = @$case;
	my $status = '';
	$hits->pause;
	$fake->set(XREADGROUP => $reply);
	$hits->sql(q(SELECT postpipe_resume('hits')));
	wait_for { ($status = $hits->status) =~ /^retrying/ } "$what: noticed";
	like($status, qr/^retrying\|$shown/, "$what: shown");
	my $memory = memory($hits->worker('pid'));
	$large = $memory if $memory > $large;
	$fake->set(XREADGROUP => undef);
	$hits->shows(qr/^idle/, "$what: over");
}
cmp_ok($large, '<', 200, 'the worker never took 200 MB');
is($hits->sql('SELECT count(*) FROM hits'), 0, 'nothing was applied');

# A page of pending entries that is longer than was asked for, when an epoch begins.
$fake->set(
	'XINFO GROUPS' => "*1\r\n*6\r\n\$4\r\nname\r\n\$12\r\npostpipe_new\r\n\$7\r\npending\r\n:1\r\n\$17\r\nlast-delivered-id\r\n\$3\r\n9-9\r\n",
	XPENDING => "*200000\r\n" . join '', map { sprintf "*4\r\n\$%d\r\n%d-0\r\n\$1\r\nc\r\n:1\r\n:1\r\n", length($_) + 2, $_ } 1 .. 200000);
$hits->sql(q(SELECT postpipe_create_pipeline('new', 'stream:new', statement => 'SELECT 1 FROM postpipe_batch')));
wait_sql($node, 'postgres', q(SELECT state, reason_code FROM postpipe_stats WHERE pipeline = 'new'), 'retrying|redis_protocol', 'a page of pending entries that is too long');
$hits->sql(q(SELECT postpipe_drop_pipeline('new')));
$fake->set('XINFO GROUPS' => undef, XPENDING => undef);

# The owner's key was written by somebody else between a look at it and the transaction that writes it.
$hits->pause;
$fake->set(EXEC => "*-1\r\n");
$hits->sql(q(SELECT postpipe_resume('hits')));
$hits->shows(qr/^retrying\|owner_changed\|another owner of consumer group "postpipe_hits" came first/, 'another owner came first');
$fake->set(EXEC => undef);
$hits->shows(qr/^idle/, '... and has gone');

# To be fenced is for good, so one look at the key is not enough: a reply may have been garbled.
$hits->pause;
my ($nonce, $owner) = split /\|/, $hits->sql(q(SELECT nonce, format('%s:%s:hits', system_identifier, oid) FROM postpipe_progress, pg_control_system(), pg_database WHERE pipeline = 'hits' AND datname = 'postgres'));
$fake->set(HGETALL => [ map { Postpipe::Test::Resp::encode(nonce => $_, owner => $owner) } 'garbled', $nonce ]);
$hits->sql(q(SELECT postpipe_resume('hits')));
$hits->shows(qr/^idle\|\|\|the owner of consumer group "postpipe_hits" has just changed/, 'an owner that is another one at the second look');
$fake->set(HGETALL => undef);

# --- Functions, which ask for other things: whatever comes, they say that it is not what they have asked for.
$hits->pause;
my $found = "*1\r\n$entry";
my $python = "*1\r\n*6\r\n" . bulk('name') . bulk('python') . bulk('pending') . ":%d\r\n" . bulk('idle') . ":9\r\n";
my $ends = join '', map { bulk("$_-entry") . "*2\r\n" . bulk($_ eq 'first' ? '1-1' : '9-9') . "*0\r\n" } qw(first last);
for my $case (
	[ q(postpipe_consumers('hits')), 'XINFO CONSUMERS' ],
	[ q(postpipe_pending('hits')), XPENDING => [ "*1\r\n*4\r\n" . bulk('5-0') . ":1\r\n:1\r\n:1\r\n" ] ],
	[ q(postpipe_claim('hits', min_idle => '0')), EVAL => [ "*3\r\n:1\r\n:1\r\n" . bulk('5-0'), map { "*4\r\n:1\r\n:1\r\n$_" } bulk('5-0') . ":1\r\n", bulk('5-0') . "*1\r\n:1\r\n", bulk('x') . "*0\r\n" ],
		'XINFO CONSUMERS' => sprintf($python, 1) ],
	[ q(postpipe_reap_consumers('hits', '0')), EVAL => [ "*0\r\n", "*2\r\n" . "*3\r\n:1\r\n:1\r\n:1\r\n" x 2, "*1\r\n*3\r\n:1\r\n:1\r\n+OK\r\n" ], 'XINFO CONSUMERS' => sprintf($python, 0) ],
	[ q(postpipe_peek('hits')), XRANGE => [] ],
	[ q(postpipe_peek('hits')), XPENDING => [], XRANGE => [ $found, "*0\r\n" ] ],
	[ q(postpipe_backfill('hits')), XRANGE => [] ],
	[ q(postpipe_backfill('hits')), XPENDING => [], XRANGE => [ $found, "*0\r\n" ] ],
	[ q(postpipe_skip('hits', '5-0')), XRANGE => [] ],
	[ q(postpipe_rewind('hits', '5-5')), XRANGE => [], 'XINFO STREAM' => "*8\r\n" . bulk('length') . ":5\r\n" . bulk('last-generated-id') . bulk('9-9') . $ends ])
{
	my ($call, $command, $more, %others) = @$case;
	for my $reply (":5\r\n", "+OK\r\n", "*-1\r\n", "*1\r\n:1\r\n", "*1\r\n*0\r\n", "*1\r\n*1\r\n" . bulk('x'), @{ $more // [] })
	{
		$fake->set(%others, $command => $reply);
		like(error("SELECT * FROM $call"), qr/ERROR:  Redis: .*shape that was not expected/, "$call: $command: " . $reply =~ s/\r\n/ /gr);
	}
	$fake->set(map { $_ => undef } $command, keys %others);
}
$hits->sql(q(SELECT postpipe_resume('hits')));
$hits->shows(qr/^idle/, 'nothing has come of it');

# --- Names and numbers that are shown are text, whatever Redis sends.
my $info = "# Server\r\nredis_version:7\xff\t1\r\nrun_id:" . 'f' x 40 . "\r\nrole:ma\xc3(er\r\n";
$fake->set(INFO => '$' . length($info) . "\r\n$info\r\n", HGETALL => Postpipe::Test::Resp::encode(nonce => 'x', owner => "1:2:\xff\nLOG:  forged", instance => "h\xfe"));
my $from = log_offset($node);
$hits->sql(q(SELECT postpipe_pause('hits'); SELECT postpipe_wait_state('hits', 'paused'); SELECT postpipe_resume('hits')));
$hits->shows(qr/^fenced\|fenced\|[^|]*belongs to 1:2:\?\?LOG:  forged/, 'an owner that is no text');
is($hits->worker(q(redis_version || ' ' || redis_role)), '7??1 ma?(er', 'a version and a role that are none');
is(scalar log_lines($node, qr/\xff|\xfe|^LOG:  forged/, $from), 0, '... and not in the log');
$fake->set(INFO => undef, HGETALL => undef);
$hits->pause;

# --- The supervisor, which alone talks to Redis now. What comes after the last reply is not waited for.
my $good = "*4\r\n:0\r\n\$-1\r\n\$-1\r\n*-1\r\n";
$fake->set(XPENDING => [ "$good*1000\r\n", $good ]);
my $n = $fake->commands;
my @then;
wait_for
{
	my @all = map { join ' ', @$_[ 0 .. 1 ] } $fake->commands;
	my ($asked) = grep { $all[$_] =~ /^XPENDING/ } $n .. $#all;
	# It asks all in one step, which EXEC ends, and how much memory the stream takes.
	defined $asked && (@then = grep { !/^(?:EXEC|MEMORY USAGE)/ } @all[ $asked + 1 .. $#all ]) > 0;
}
'it was asked';
is($then[0], 'CLIENT SETNAME', 'the supervisor: more than was asked for closes the connection at once');
wait_sql($node, 'postgres', q(SELECT severity, sqlstate, message FROM postpipe_events WHERE pipeline IS NULL AND message LIKE 'lag and pending%nothing was%'),
	'ERROR|08006|lag and pending are not known: Redis sent a reply that nothing was asked for', '... which is an event');
is($hits->sql(q(SELECT count(*) FROM postpipe_workers WHERE backend_type = 'supervisor' AND last_error LIKE 'lag and pending are not known: %')), 1, '... and its last error');
$fake->set(XPENDING => undef, 'XINFO STREAM' => "-NOPERM no XINFO\r\n");
wait_sql($node, 'postgres', q(SELECT count(*) FROM postpipe_events WHERE message = 'lag and pending of pipeline "hits" are not known: NOPERM no XINFO'), '1', 'what is refused is an event, too');

# What it says of that, round after round, takes no memory. A look at it wakes the supervisor, which begins anew then.
my $supervisor = $hits->sql(q(SELECT pid FROM postpipe_workers WHERE backend_type = 'supervisor'));
my $repeated = q(SELECT max(repeated) FROM postpipe_events WHERE message LIKE '%NOPERM no XINFO');
my ($used) = reverse map { turn_memory() } 1 .. 2;
my $rounds = $hits->sql($repeated);
wait_for { $hits->sql($repeated) >= $rounds + 3 } 'it is refused again and again';
cmp_ok(turn_memory() - $used, '<', 200, '... and takes no more memory for it');

# One supervisor for each answer, so that they need not come one after the other.
my @answers = grep { $_->[0] !~ /entr|error|no text/ } @hostile;
my @databases = map { "s$_" } 1 .. 8;
$fake->set(XPENDING => undef, 'XINFO STREAM' => [ (map { $_->[1] } @answers), "*4\r\n\$6\r\nlength\r\n:0\r\n\$17\r\nlast-generated-id\r\n\$3\r\n9-0\r\n" ]);
$node->safe_psql('postgres', "CREATE DATABASE $_ TEMPLATE template0") for @databases;
$node->safe_psql($_, 'CREATE EXTENSION postpipe') for @databases;
$node->safe_psql('postgres', q(ALTER SYSTEM SET postpipe.databases = ') . join(', ', 'postgres', @databases) . q('));
$node->reload;
my $asked = grep { "@$_[0 .. 1]" eq 'XINFO STREAM' } $fake->commands;
wait_for { (grep { "@$_[0 .. 1]" eq 'XINFO STREAM' } $fake->commands) > $asked + @answers } 'all answers were given';
wait_for { $node->safe_psql($_, q(SELECT measured_at > now() - interval '10 s' FROM postpipe_stats)) eq 't' } "$_: it measures again" for @databases;
$large = (sort { $a <=> $b } map { memory($_) } split /\n/, $hits->sql(q(SELECT pid FROM postpipe_workers WHERE backend_type = 'supervisor')))[-1];
cmp_ok($large, '<', 200, 'no supervisor took 200 MB');

is($node->safe_psql('postgres', 'SELECT pg_postmaster_start_time()'), $postmaster, 'the server was never harmed');
is(scalar log_lines($node, qr/terminated by signal|PANIC|exited with exit code [^01]/), 0, 'no process crashed');
$node->stop;
done_testing();

sub bulk { return '$' . length($_[0]) . "\r\n$_[0]\r\n" }

# The most memory that a process has had, in MB.
sub memory
{
	my ($pid) = @_;
	return slurp_file("/proc/$pid/status") =~ /^VmHWM:\s+(\d+) kB/m ? $1 / 1024 : 0;
}

# Bytes in use in what the supervisor empties with each turn.
sub turn_memory
{
	my $log = log_offset($node);
	my @lines;
	$hits->sql("SELECT pg_log_backend_memory_contexts($supervisor)");
	wait_for { @lines = log_lines($node, qr/postpipe turn: /, $log) } 'the supervisor tells its memory';
	return "@lines" =~ /(\d+) used/ ? $1 : 'unknown';
}
