# A row that is larger than can be, and processes that get no more memory: what cannot be applied is a letter, what only the moment
# forbids waits with its reason, and nothing crashes. TAP, because a worker's limits are set and lifted while it runs.

use strict;
use warnings;
use IPC::Run ();
use PostgreSQL::Test::Utils;
use Postpipe::Test;
use Postpipe::Test::Pipelines qw(make drop pause resume wait_state balanced);

use constant MB => 1024 * 1024;

my $redis = Postpipe::Test::Redis->new;
my $proxy = Postpipe::Test::Proxy->new(target => $redis->port);
my $node = pp_node('memory', redis => $proxy);
sql('CREATE EXTENSION postpipe');
sql(q(SELECT postpipe_drop_pipeline('posts')));

# --- A row of more than 1 GB is a letter; what is around it is applied, and the worker gives the memory back.
sql('CREATE TABLE t_wide (v text, a text, b text)');
sql(q(SELECT postpipe_create_pipeline('wide', 'stream:wide', options => '{"max_retries": 0}', statement => $$INSERT INTO t_wide
	SELECT event ->> 'v', repeat('a', n), repeat('b', n) FROM (SELECT *, coalesce((event ->> 'n')::int, 0) AS n FROM postpipe_batch) e$$)));
wait_state('wide');
pause('wide');
add('wide', 1);
add('wide', 2, n => 540_000_000);
add('wide', 3);
resume('wide');
wait_sql($node, 'postgres', q(SELECT string_agg(v, ' ' ORDER BY v) FROM t_wide), '1 3', 'a row of more than 1 GB: what is around it is applied');
is(sql(q(SELECT state, event ->> 'v' FROM postpipe_dlq)), 'dead|2', '... and it is a letter');
like(sql('SELECT message FROM postpipe_dlq'), qr/size|length|exceed|too (?:large|big)/, '... that says why');
is_small('wide');
balanced('wide');
sql('SELECT postpipe_discard($$wide$$)');
drop('wide');

# --- The worker gets no more memory: an entry that fails for that alone is tried again, and the others pass.
make('grow', options => '{"retry_delay": "1s"}', statement => q(INSERT INTO t_grow SELECT event ->> 'v' FROM postpipe_batch WHERE length(repeat('x', coalesce((event ->> 'n')::int, 0))) >= 0));
make('other');
wait_state($_) for qw(grow other);
pause('grow');
add('grow', $_, $_ == 5 ? (n => 120 * MB) : ()) for 1 .. 9;
resume('grow');
wait_sql($node, 'postgres', q(SELECT count(*) FROM t_grow), 9, 'a statement that takes 120 MB');
wait_state('grow');
my $pid = worker('grow');
limit($pid, 40);
add('grow', 10 + $_, $_ == 5 ? (n => 120 * MB) : ()) for 1 .. 9;
wait_sql($node, 'postgres', q(SELECT state, sqlstate, event ->> 'v' FROM postpipe_dlq), 'retrying|53200|15', 'there are only 40 MB: a letter that is tried again');
wait_sql($node, 'postgres', q(SELECT count(*) FROM t_grow), 17, '... and the others pass');
unlimit($pid);
wait_sql($node, 'postgres', q(SELECT count(*), count(DISTINCT v) FROM t_grow), '18|18', 'there is memory again: it is applied');
is(worker('grow'), $pid, '... by the same process');
balanced('grow');

# --- A reply of Redis that it has no memory for says nothing of an entry.
limit($pid, 20);
add_large('grow', 25);
add('grow', 20);
wait_sql($node, 'postgres', q(SELECT state, reason ~* 'memory' FROM postpipe_stats WHERE pipeline = 'grow'), 'retrying|t', 'no memory for a reply: retrying, and why');
add('other', 1);
wait_sql($node, 'postgres', 'SELECT count(*) FROM t_other', 1, '... while others flow');
unlimit($pid);
wait_sql($node, 'postgres', q(SELECT count(*), count(DISTINCT v), max(length(v)) FROM t_grow), '20|20|33554432', 'there is memory again: all is applied');
is(sql('SELECT count(*) FROM postpipe_dlq'), 0, '... and nothing is dead');
is(worker('grow'), $pid, '... by the same process');
balanced('grow');

# --- Not one page more, while it applies, and while it connects again and again.
limit($pid, 0);
for my $round (1 .. 5)
{
	add('grow', "$round.$_") for 1 .. 200;
	my $connections = $proxy->stats->{conns};
	$proxy->command('rst');
	wait_for { $proxy->stats->{conns} > $connections } "round $round: it connects, or somebody does";
}
unlimit($pid);
wait_sql($node, 'postgres', q(SELECT count(*), count(DISTINCT v) FROM t_grow), '1020|1020', 'not a page more for a while: all is applied');
balanced($_) for qw(grow other);

# --- A process that starts has as little.
my ($postmaster) = split /\n/, slurp_file($node->data_dir . '/postmaster.pid');
limit($postmaster, 20);
sql("SELECT pg_terminate_backend($pid)");
wait_for { my $now = worker('grow'); $now && $now != $pid } 'another worker, with little';
add('grow', "last.$_") for 1 .. 200;
unlimit($postmaster);
unlimit(worker('grow'));
wait_sql($node, 'postgres', q(SELECT count(*), count(DISTINCT v) FROM t_grow), '1220|1220', '... all is applied');
balanced('grow');
is(sql('SELECT count(*) FROM postpipe_dlq'), 0, 'nothing is dead');
is(scalar log_lines($node, qr/terminated by signal|PANIC|reinitializing/), 0, 'nothing has crashed');
pp_balanced($node);
$node->stop;
done_testing();

sub add { my ($name, $v, @more) = @_; return $redis->xadd("stream:$name", v => $v, @more) }

# 2^n bytes, made where they are: on their way to Redis they would be several times in memory.
sub add_large
{
	my ($name, $n) = @_;
	return $redis->command('EVAL', q(local s = 'x' for _ = 1, ARGV[1] do s = s .. s end return redis.call('XADD', KEYS[1], '*', 'v', s)), 1, "stream:$name", $n);
}

sub worker { my ($name) = @_; return sql("SELECT pid FROM postpipe_workers WHERE pipeline = '$name'") }

# So many MB more than the process has now, and no more.
sub limit
{
	my ($process, $mb) = @_;
	my ($has) = slurp_file("/proc/$process/status") =~ /^VmSize:\s+(\d+) kB/m;
	return prlimit($process, $has * 1024 + $mb * MB);
}

sub unlimit { my ($process) = @_; return prlimit($process, 'unlimited') }

# The soft limit alone can be lifted again.
sub prlimit
{
	my ($process, $bytes) = @_;
	my $out = '';
	IPC::Run::run([ 'prlimit', '--pid', $process, "--as=$bytes:" ], '>', \$out, '2>&1') or die "prlimit: $out";
	return;
}

# What the worker needed for that is given back.
sub is_small
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $status = '/proc/' . worker($name) . '/status';
	return wait_for
	{
		my ($has) = slurp_file($status) =~ /^RssAnon:\s+(\d+) kB/m;
		$has < 100 * 1024
	}
	"$name: the worker is small again";
}
