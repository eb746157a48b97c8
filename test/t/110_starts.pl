# A process of ours that fails while it starts, or that cannot even be made: wherever it fails, its parent tries again, in a
# while, and it costs no other process and no entry. TAP, because processes are made to fail, and the server may not make any.
# Needs a library with fault points (src/fault.h).

use strict;
use warnings;
use IPC::Run ();
use PostgreSQL::Test::Utils;
use Postpipe::Test;
use Postpipe::Test::Fault;
use Postpipe::Test::Hits;

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('starts', redis => $redis, databases => 'postgres, one');
my $fault = Postpipe::Test::Fault->new($node);
my $hits = Postpipe::Test::Hits->new(node => $node, redis => $redis);
$hits->shows(qr/^idle/, 'the pipeline is idle');

# --- A worker: with its slot taken and nothing else, in its main function, before it connects to Redis, in its first transaction.
# What fails in a transaction is tried again by the same process. Where one crashes, the session that it was started by may be gone
# before it has its answer.
for my $case (map { my $point = $_; map { [ $point, $_ ] } qw(error fatal kill) } qw(at_attach at_start at_connect at_prepare))
{
	my ($point, $how) = @$case;
	my $from = log_offset($node);
	$hits->pause;
	$fault->set("$point:$how");
	$hits->publish(10);
	error(q(SELECT postpipe_resume('hits')));
	wait_for { $fault->fired } "$point, $how: the worker was there";
	$hits->settled("$point, $how");
	is(scalar log_lines($node, qr/all server processes terminated; reinitializing/, $from), $how eq 'kill' ? 1 : 0, '... and the server has crashed only if it had to');
	is(scalar log_lines($node, qr/exited with exit code [^01]/, $from), 0, '... and every exit code is 0 or 1');
}
is($hits->sql('SELECT count(*) FROM postpipe_dlq'), 0, 'no entry is to blame');

# --- A supervisor, and the launcher.
for my $kind (qw(supervisor launcher))
{
	for my $how (qw(error kill))
	{
		my $from = log_offset($node);
		my $process = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'postpipe $kind' AND (datname = 'postgres' OR datname IS NULL)";
		my $before = $hits->sql($process);
		$fault->set("at_attach:$how");
		error("SELECT pg_terminate_backend($before)");
		wait_for { $fault->fired } "$kind, $how: it was there";
		wait_for { my $now = $hits->sql($process); $now && $now != $before } "$kind, $how: another one runs";
		$hits->publish(10);
		$hits->settled("$kind, $how");
		is(scalar log_lines($node, qr/all server processes terminated; reinitializing/, $from), $how eq 'kill' ? 1 : 0, '... and the server has crashed only if it had to');
	}
}
whole('after all of that');

# --- The database is dropped while its worker starts.
for my $point (qw(at_attach at_start))
{
	$node->safe_psql('postgres', 'CREATE DATABASE one');
	my $one = Postpipe::Test::Hits->new(node => $node, redis => $redis, db => 'one', name => 'one');
	$one->shows(qr/^idle/, "$point: a pipeline of another database is idle");
	$one->pause;
	$fault->set("$point:sleep:600000");
	$one->sql(q(SELECT postpipe_resume('one')));
	wait_for { $fault->fired } '... and its worker starts, which takes long';
	my $from = log_offset($node);
	my ($rc, undef, $stderr) = $node->psql('postgres', 'DROP DATABASE one WITH (FORCE)', on_error_die => 0);
	is("$rc $stderr", '0 ', '... when the database is dropped');
	$fault->set('');
	wait_sql($node, 'postgres', q(SELECT count(*) FROM postpipe_workers WHERE datname = 'one'), 0, '... with all of its processes');
	is(scalar log_lines($node, qr/terminated by signal|reinitializing/, $from), 0, '... and none has crashed');
	$redis->command('DEL', $one->stream);
}
$hits->publish(10);
$hits->settled('the other pipeline goes on');

# --- The server cannot make any process: the limit of processes is that of the user, and so always reached.
my ($postmaster) = split /\n/, slurp_file($node->data_dir . '/postmaster.pid');
my $limit = limit();
my $session = $hits->session;
$session->('SELECT 1'); # it is connected
for my $kind (qw(worker supervisor launcher))
{
	my $from = log_offset($node);
	limit(1);
	$session->("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'postpipe $kind' AND (datname = 'postgres' OR datname IS NULL)");
	$hits->publish(10);
	wait_for { log_lines($node, qr/could not fork (?:"?background )?worker"? process/, $from) } "$kind: no process can be made";
	like($session->(q(SELECT state FROM postpipe_stats WHERE pipeline = 'hits')), qr/^(?:starting|stopped|idle|running)$/m, '... and the views answer');
	limit($limit);
	$hits->settled("$kind: one can be made again");
	is(scalar log_lines($node, qr/terminated by signal|reinitializing|PANIC/, $from), 0, '... and none has crashed');
}
$session->(undef);
whole('after that, too');
pp_balanced($node);
$node->stop;
done_testing();

# Sets how many processes the server's user may have for the server to make one more, or returns that.
sub limit
{
	my ($n) = @_;
	my $out = '';
	my @what = defined $n ? ("--nproc=$n:") : qw(--nproc --noheadings --output SOFT);
	IPC::Run::run([ 'prlimit', '--pid', $postmaster, @what ], '>', \$out, '2>&1') or die "prlimit: $out";
	chomp $out;
	return $out;
}

# Each process is there, once.
sub whole
{
	my ($what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_sql($node, 'postgres', q(SELECT string_agg(backend_type || coalesce(' ' || datname, ''), ', ' ORDER BY backend_type) FROM pg_stat_activity WHERE backend_type ~ '^postpipe'),
		'postpipe launcher, postpipe supervisor postgres, postpipe worker postgres', "$what: each process is there, once");
	return is(consumers($redis, $hits->stream, $hits->group), 1, '... with one consumer');
}
