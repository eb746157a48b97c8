# The wall clock is set while the server runs, by hours: what is due after a while is due when it was meant to be. Only what a
# table says counts by the new time. TAP, because the clock is one that the test sets, by a library that is loaded into the
# server.
use strict;
use warnings;
use PostgreSQL::Test::Utils;
use Postpipe::Test;
use Postpipe::Test::Pipelines qw(definition make rows wait_state);

my $dir = PostgreSQL::Test::Utils::tempdir_short();
append_to_file("$dir/clock.c", <<'C');
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

/* The file CLOCK_OFFSET has by how many seconds the wall clock is wrong; as it is at each look. */
static const volatile long *offset;

__attribute__((constructor)) static void
map_offset(void)
{
	offset = mmap(NULL, sizeof(long), PROT_READ, MAP_SHARED, open(getenv("CLOCK_OFFSET"), O_RDONLY), 0);
	if (offset == MAP_FAILED)
		abort();
}

int
clock_gettime(clockid_t clock, struct timespec *now)
{
	int rc = syscall(SYS_clock_gettime, clock, now);

	if (clock == CLOCK_REALTIME)
		now->tv_sec += *offset;
	return rc;
}

int
gettimeofday(struct timeval *restrict now, void *restrict zone)
{
	struct timespec ts;
	int rc = clock_gettime(CLOCK_REALTIME, &ts);

	now->tv_sec = ts.tv_sec;
	now->tv_usec = ts.tv_nsec / 1000;
	return rc;
}
C
plan(skip_all => 'no compiler') if system("cc -shared -fPIC -o $dir/clock.so $dir/clock.c 2>$dir/cc.log") != 0;
append_to_file("$dir/offset", pack('l!', 0));

my $redis = Postpipe::Test::Redis->new(keep => 1);
my $node = pp_node('clock', redis => $redis, start => 0);
{
	local $ENV{LD_PRELOAD} = "$dir/clock.so";
	local $ENV{CLOCK_OFFSET} = "$dir/offset";
	$node->start;
}
sql('CREATE EXTENSION postpipe');
sql(q(SELECT postpipe_drop_pipeline('posts')));
make('p', options => '{"claim_foreign": true, "claim_idle": "1s"}');
wait_state('p');
my $n = 0;
arrives('before');

# --- Set back during a back-off: Redis is away.
$redis->stop;
wait_sql($node, 'postgres', q(SELECT state FROM postpipe_workers WHERE pipeline = 'p' AND next_attempt_at > clock_timestamp() + interval '1 s'), 'retrying', 'a worker backs off');
set_clock(-1);
$redis->start;
arrives('Redis is back');
wait_sql($node, 'postgres', q(SELECT measured_at < clock_timestamp() + interval '1 min' FROM postpipe_stats WHERE pipeline = 'p'), 't', '... and its numbers are asked for again');

# --- Set back while a worker that has gone is to be started again.
is(sql(q(SELECT pg_terminate_backend(pid, 60000) FROM postpipe_workers WHERE pipeline = 'p')), 't', 'a worker goes');
set_clock(-2);
arrives('it is started again');

# --- Set back while pending entries of others are to be looked after: of a foreign consumer, and of a dead one of this server. A
# group that has a consumer more is looked at for that, so they are there before.
my @others = ('python', sql(q(SELECT format('postpipe:%s:%s:gone:1', system_identifier, d.oid) FROM pg_control_system(), pg_database d WHERE datname = 'postgres')));
add_for($_) for @others;
rows('p', $n, 'what is pending for others is taken over');
set_clock(-3);
add_for($_) for @others;
rows('p', $n, '... and again, after the clock was set back');

# --- Set back while a function waits.
my $waiting = pp_start($node, q(SELECT postpipe_wait('p', '9000000000000-0', '5 s')));
asleep();
set_clock(-4);
is($waiting->(), 'f', 'postpipe_wait ends when its time is up');

# --- Set forward: what is waited for has its time still. A letter's time is in its row, and has come.
sql(q(CREATE TABLE t_l (v text CHECK (v <> 'bad'))));
sql(definition('l', target => 't_l', options => '{"retry_delay": "1h", "max_retries": 9}'));
$redis->xadd('stream:l', v => 'good');
rows('l', 1);
$redis->xadd('stream:l', v => 'bad');
wait_sql($node, 'postgres', q(SELECT state, attempts FROM postpipe_dlq WHERE pipeline = 'l'), 'retrying|1', 'a letter that is due in an hour');
$waiting = pp_start($node, q(SELECT postpipe_wait('p', '8000000000000-0', '1 h')));
asleep();
set_clock(0);
wait_sql($node, 'postgres', q(SELECT attempts FROM postpipe_dlq WHERE pipeline = 'l'), '2', 'it is tried again, as its row says');
wait_sql($node, 'postgres', q(SELECT measured_at > clock_timestamp() - interval '1 min' FROM postpipe_stats WHERE pipeline = 'p'), 't', 'some time passes');
$redis->xadd('stream:p', { id => '8000000000000-0' }, v => ++$n);
is($waiting->(), 't', 'postpipe_wait has waited');
rows('p', $n);
pp_balanced($node);
$node->stop;
done_testing();

# So many hours off.
sub set_clock
{
	my ($hours) = @_;
	open(my $fh, '+<:raw', "$dir/offset") or die "$dir/offset: $!";
	print $fh pack('l!', 3600 * $hours);
	close($fh) or die "$dir/offset: $!";
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is(sql("SELECT round((extract(epoch FROM clock_timestamp()) - @{[time]}) / 3600)"), $hours, "the clock is $hours hours off");
}

sub arrives
{
	my ($what) = @_;
	$redis->xadd('stream:p', v => ++$n);
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return rows('p', $n, "$what: an entry arrives");
}

# An entry that is pending for this consumer; nobody else can have it before.
sub add_for
{
	my ($consumer) = @_;
	$redis->transaction([ 'XADD', 'stream:p', '*', v => ++$n ], [ 'XREADGROUP', 'GROUP', 'postpipe_p', $consumer, 'STREAMS', 'stream:p', '>' ]);
	return;
}

sub asleep
{
	return wait_sql($node, 'postgres', q(SELECT count(*) FROM pg_stat_activity WHERE query ~ 'postpipe_wait\W' AND pid <> pg_backend_pid() AND wait_event_type = 'Extension' AND state = 'active'), 1, 'a function waits');
}
