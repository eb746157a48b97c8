# Stopping, cancelling, reloading and DDL of other databases are served at once, whatever Redis does at that moment: idle
# in a blocking read, hung in connect, log-in, read or XACK, or gone. TAP, because servers are stopped and killed.

use strict;
use warnings;
use PostgreSQL::Test::Utils;
use Postpipe::Test;
use Postpipe::Test::Hits;

# A generous bound: what is wrong here hangs for the 5 or 8 seconds of our own time-outs, or for ever.
use constant SERVED => 4;

my $redis = Postpipe::Test::Redis->new;
my $fake = Postpipe::Test::FakeRedis->new;
my $proxy = Postpipe::Test::Proxy->new(target => $redis->port);
my $node = pp_node('main', redis => $proxy);
my $hits = Postpipe::Test::Hits->new(node => $node, redis => $redis);
$hits->shows(qr/^idle/, 'the pipeline is idle');

# How Redis is when it has to be served; each leaves the worker in that state.
my $fake_id = '1700000000000-1';
my @states = (
	[ 'idle, blocked in a read' => sub { }, qr/^waiting for entries/ ],
	[ 'frozen in a read' => sub { wait_for { $redis->cli('CLIENT', 'LIST') =~ /name=postpipe:\S+:hits:1 .*flags=b/ } 'the worker is blocked in a read'; $redis->freeze }, qr/^waiting for entries/ ],
	[ 'silent from the connection on' => sub { $fake->mode('silent'); elsewhere() }, qr/^connecting/ ],
	[ 'silent in the log-in' => sub { fake_with('CLIENT ID' => { silent => 1 }) }, qr/^connecting/ ],
	[ 'silent in the read' => sub { fake_with(XREADGROUP => { silent => 1 }) }, qr/./ ],
	[
		'silent in the XACK' =>
		  sub { fake_with(XREADGROUP => [ "*0\r\n", entry_reply($fake_id), { silent => 1 } ], XACK => { silent => 1 }) },
		qr/./
	],
	[ 'gone' => sub { $proxy->stop }, qr/^waiting to connect/ ]);

for my $state (@states)
{
	my ($name, $make, $activity) = @$state;

	make($name, $make, $activity);

	# A reload, a cancel and other databases: nothing of it ends the worker.
	my $pid = $hits->worker('pid');
	$node->append_conf('postgresql.conf', "postpipe.retry_delay = " . (5000 + $$ % 1000) . "\n");
	$node->reload;
	is($hits->sql("SELECT bool_and(pg_cancel_backend(pid)) FROM postpipe_workers"), 't', "$name: cancel of all processes");
	served("$name: CREATE and DROP DATABASE of others", 'CREATE DATABASE other', 'DROP DATABASE other');
	is($hits->worker('pid'), $pid, "$name: the worker is still the same");

	# SIGTERM: it goes and comes back.
	$hits->sql("SELECT pg_terminate_backend($pid)");
	wait_for { !kill(0, $pid) } "$name: terminated: it goes", SERVED;
	wait_for { ($hits->worker('pid') || $pid) != $pid } "$name: ... and comes back";

	# Shutdown, fast and immediate, with the state made anew because the worker is a new one.
	for my $mode (qw(fast immediate))
	{
		back();
		$hits->shows(qr/^idle/, "$name: idle again");
		make($name, $make, $activity);
		stop_server($name, $mode);
		back();
		$node->start;
	}
	$hits->shows(qr/^idle/, "$name: idle after the restart");
}
push @{ $hits->{ids} }, $fake_id;    # read, applied and never acknowledged, again and again
$hits->publish(5);
$hits->settled('after all of it');

# --- cancel of the statement: nothing is an entry's fault
$hits->sql(q(CREATE FUNCTION wait_for_me() RETURNS trigger LANGUAGE plpgsql AS
	$$BEGIN PERFORM pg_catalog.pg_advisory_xact_lock_shared(42); RETURN NEW; END$$;
	CREATE TRIGGER wait_for_me BEFORE INSERT ON hits FOR EACH ROW EXECUTE FUNCTION wait_for_me();));
my $session = $hits->session;
$session->('SELECT pg_advisory_lock(42)');
$hits->publish(1);
for my $cancel (1 .. 3)
{
	$hits->stuck("cancel $cancel: a batch is being applied");
	my $waits_since = "SELECT waitstart FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
	my $waiting = $hits->sql($waits_since);
	$hits->sql('SELECT pg_cancel_backend(' . $hits->worker('pid') . ')');
	wait_for
	{
		my $now = $hits->sql($waits_since);
		$now && $now ne $waiting or $hits->sql('SELECT count(*) FROM postpipe_dlq');
	}
	"cancel $cancel: it tries again";
	last if $hits->sql('SELECT count(*) FROM postpipe_dlq');
}
is($hits->sql('SELECT count(*) FROM postpipe_dlq'), 0, 'a cancel dead-letters nothing');
$session->('SELECT pg_advisory_unlock(42)');
$session->(undef);
$hits->sql('DROP TRIGGER wait_for_me ON hits');
$hits->settled('cancel of the statement');

# --- the postmaster dies while Redis hangs: nothing is left that would keep it from starting again
for my $state (@states[ 1, 2, 5 ])
{
	my ($name, $make, $activity) = @$state;
	make($name, $make, $activity);
	my @pids = processes();
	$node->kill9;
	wait_for { !grep { kill(0, $_) } @pids } "$name: no process outlives the postmaster";
	back();
	wait_for { $node->start(fail_ok => 1) } "$name: the server starts again";
	$hits->shows(qr/^idle/, "$name: idle again after kill -9 of the postmaster");
}
$hits->publish(5);
$hits->settled('after kill -9 of the postmaster');

done_testing();

# One reply of XREADGROUP with one entry.
sub entry_reply
{
	my ($id) = @_;
	my @parts = map { '$' . length($_) . "\r\n$_\r\n" } $hits->stream, $id, 'n', '1';
	return "*1\r\n*2\r\n$parts[0]*1\r\n*2\r\n$parts[1]*2\r\n$parts[2]$parts[3]";
}

sub elsewhere { $proxy->command('target ' . $fake->port); $proxy->command('rst'); return }

sub fake_with
{
	my (%replies) = @_;
	$fake->mode('answer');
	$fake->set((map { $_ => undef } qw(XREADGROUP XACK), 'CLIENT ID'), %replies);
	elsewhere();
	return;
}

# Redis is well again.
sub back
{
	$redis->thaw;
	$proxy->start unless $proxy->pid;
	$proxy->command('target ' . $redis->port);
	$proxy->command('rst');
	return;
}

sub make
{
	my ($name, $make, $activity) = @_;
	my $commands = $fake->commands;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$make->();
	if ($name =~ /silent in the (read|XACK)/)
	{
		my $last = $1 eq 'read' ? 'XREADGROUP' : 'XACK';
		my $before = $commands;
		wait_for { grep { $_->[0] eq $last } ($fake->commands)[ $before .. $fake->commands - 1 ] } "$name: that is where it is";
		return;
	}
	wait_for { $hits->sql('SELECT query FROM pg_stat_activity WHERE pid = ' . $hits->worker('pid')) =~ $activity }
	"$name: that is where it is";
	return;
}

# These statements end within the bound, one after the other.
sub served
{
	my ($what, @statements) = @_;
	for my $statement (@statements)
	{
		my ($status, undef, $stderr) = $node->psql('postgres', "SET statement_timeout = '" . SERVED . "s'; $statement", on_error_die => 0);
		is("$status $stderr", '0 ', "$what: $statement");
	}
	return;
}

# All processes of the server.
sub processes
{
	my ($postmaster) = split /\n/, slurp_file($node->data_dir . '/postmaster.pid');
	my @children = split /\s+/, slurp_file("/proc/$postmaster/task/$postmaster/children");
	return ($postmaster, @children);
}

sub stop_server
{
	my ($name, $mode) = @_;
	my @pids = processes();
	my $from = log_offset($node);
	my ($stdout, $stderr);
	my $stopped = IPC::Run::run([ 'pg_ctl', '-D', $node->data_dir, '-m', $mode, '-t', SERVED, 'stop' ], '>', \$stdout, '2>', \$stderr);

	ok($stopped, "$name: stop -m $mode") or diag($stdout . $stderr);
	$node->_update_pid(0);
	# pg_ctl waits for the PID file to go only.
	wait_for { !grep { kill(0, $_) } @pids } "$name: stop -m $mode leaves nothing running", SERVED;
	is(scalar log_lines($node, qr/postpipe.* (?:FATAL|ERROR): /, $from), 0, 'stop -m fast is no error')
	  if "$name $mode" eq 'gone fast';
	return;
}
