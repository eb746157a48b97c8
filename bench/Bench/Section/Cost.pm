# What it costs to have postpipe: pgbench while it is idle, an idle minute, and the ledger's part of the work.
package Bench::Section::Cost;

use strict;
use warnings;
use Bench::Meter;
use Bench::Pipeline;
use Bench::Posts;
use Bench::Rounds;
use List::Util qw(sum0);
use Time::HiRes qw(sleep);

my $database = 'bench_cost';
my @ledger_functions = qw(pp_ledger_record pp_ledger_lookup pp_event_hash);

sub run
{
	my ($stage) = @_;
	my $pipeline = Bench::Pipeline->posts($stage);
	my $rounds = Bench::Rounds->new($stage, 'the cost of having it');
	my $scale = $stage->quick ? 1 : 10;

	$stage->sql("CREATE DATABASE $database");
	$stage->run("pgbench -i -q -s $scale $database 2>&1");
	$stage->empty('posts');
	$pipeline->resume;
	$rounds->compare(contenders => [
		idle => sub { $stage->restart_server; $pipeline->wait_state('idle'); pgbench($stage) },
		# Twice: the difference between these two is noise.
		map { $_ => sub { $stage->restart_server("shared_preload_libraries=''"); pgbench($stage) } } qw(without without_again)
	]);

	$rounds->ratio('idle_to_not_loaded', 'pgbench, postpipe idle / not loaded', 'idle', 'without', 'at least', 0.97)
	  ->ratio('noise', 'pgbench, not loaded / not loaded', 'without_again', 'without')
	  ->contender('idle', 'pgbench transactions, postpipe idle')
	  ->contender('without', 'pgbench transactions, not loaded')
	  ->contender('without_again', 'pgbench transactions, not loaded, again');
	idle($stage, $pipeline, $rounds);
	$stage->restart_server;
	$pipeline->pause;
	$stage->sql("DROP DATABASE $database");
	ledger($stage, $pipeline, $rounds);
	return $rounds->result;
}

sub pgbench
{
	my ($stage) = @_;
	my $seconds = $stage->quick ? 2 : 8;
	$stage->write_out;
	my $output = $stage->run("pgbench -n -c 2 -T $seconds $database 2>&1");
	my ($rate) = $output =~ /tps = ([\d.]+)/ or die "pgbench: $output\n";
	return { entries => int($rate * $seconds), seconds => $seconds, rate => $rate };
}

# Asked from another database, so that the numbers of the one with the pipelines are those of postpipe alone.
sub idle
{
	my ($stage, $pipeline, $rounds) = @_;
	my $seconds = $stage->option('idle');
	my $statements = $stage->sql("SELECT count(*) FROM pg_available_extensions WHERE name = 'pg_stat_statements'");
	my $libraries = $statements ? 'shared_preload_libraries="postpipe,pg_stat_statements"' : 'shared_preload_libraries=postpipe';

	$stage->restart_server($libraries, 'autovacuum=off', $statements ? 'pg_stat_statements.track=all' : ());
	$pipeline->wait_state('idle');
	my @processes = map { $_->[0] } $stage->rows('SELECT pid FROM postpipe_workers WHERE pid IS NOT NULL');
	$stage->write_out;

	my $other = Bench::Session->psql($database);
	$other->ask('CREATE EXTENSION pg_stat_statements') if $statements;
	my $look = sub {
		my %look = (
			wal_bytes => $other->ask("SELECT pg_current_wal_insert_lsn() - '0/0'"),
			transactions => $other->ask("SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = 'postgres'"),
			cpu_ms => 1000 * (Bench::Meter->new(@processes)->total),
			sleeps => sum0(map { Bench::Meter::sleeps($_) } @processes));
		$look{statements} = $other->ask(<<~'END') if $statements;
			SELECT coalesce(sum(calls), 0) FROM pg_stat_statements
			WHERE dbid = (SELECT oid FROM pg_database WHERE datname = 'postgres')
			END
		return \%look;
	};
	# The first look tidies pages of the catalogs that it reads, and so writes WAL.
	$look->();
	settle($other);
	my $before = $look->();
	sleep($seconds);
	my $after = $look->();
	$other->ask('DROP EXTENSION pg_stat_statements') if $statements;
	$other->close;

	my %title = (wal_bytes => 'WAL bytes', transactions => 'transactions', statements => 'SQL statements',
		cpu_ms => 'CPU of all processes');
	for my $name (grep { exists $before->{$_} } qw(statements transactions wal_bytes cpu_ms))
	{
		my ($unit, $bound) = $name eq 'cpu_ms' ? ('ms', 10) : ('', 0);
		$rounds->once("idle_$name", "idle for $seconds seconds: $title{$name}", $unit, $after->{$name} - $before->{$name},
			'at most', $bound);
	}
	my $sleeps = $after->{sleeps} - $before->{sleeps};
	$rounds->once('idle_sleeps', '... they wake up', 'times', $sleeps)
	  ->once('idle_waking_ms', '... CPU of a process that wakes up as often and does nothing', 'ms',
		$sleeps * waking_ms($seconds * @processes / ($sleeps || 1), $seconds / 3));
	$rounds->note('Launcher, supervisor and ' . (@processes - 2) . ' worker; once.');
	$rounds->note('SQL statements were not counted: pg_stat_statements is not installed.') if !$statements;
	return;
}

# What it takes of the CPU to wake up: most of an idle minute, where nothing of a process is in a cache any more by then.
sub waking_ms
{
	my ($pause, $seconds) = @_;
	my $pid = fork // die "could not fork: $!\n";
	if (!$pid)
	{
		sleep($pause) while 1;
	}
	my $look = sub { return (1000 * Bench::Meter::cpu_seconds($pid), Bench::Meter::sleeps($pid)) };

	sleep($pause);
	my ($ms_before, $sleeps_before) = $look->();
	sleep($seconds);
	my ($ms, $sleeps) = $look->();
	kill 'KILL', $pid;
	waitpid($pid, 0);
	return ($ms - $ms_before) / (($sleeps - $sleeps_before) || 1);
}

# Until what came before, our own doings too, is written: nothing has come for a turn of the background writer, which notes
# the running transactions every 15 seconds if anything was written since.
sub settle
{
	my ($session) = @_;
	my $lsn = '';

	for (1 .. 5)
	{
		my $now = $session->ask('SELECT pg_current_wal_insert_lsn()');
		return if $now eq $lsn;
		$lsn = $now;
		sleep(16);
	}
	return;
}

# There is no switch to leave the ledger out, so its part is taken from a profile of the worker, where perf may make one.
sub ledger
{
	my ($stage, $pipeline, $rounds) = @_;
	my $posts = Bench::Posts->new($stage, entries => $stage->entries(1));

	if (system('perf record -o perf.data --call-graph dwarf -- true >/dev/null 2>&1') != 0)
	{
		return $rounds->note('The ledger\'s part was left out: perf is not there or may not profile.');
	}
	$posts->publish;
	$stage->empty('posts');
	my $last_id = $pipeline->last_id;
	$pipeline->resume;
	$stage->wait_for('the worker', sub { $pipeline->pids }, 0.01);
	my ($pid) = $pipeline->pids;
	my $perf = $stage->start_program('perf', 'record', '-q', '--call-graph', 'dwarf,16384', '-F', '499', '-o', 'perf.data', '-p', $pid);
	$pipeline->wait_acknowledged($last_id);
	kill 'INT', $perf;
	waitpid($perf, 0);
	$pipeline->pause;

	my $report = $stage->run('perf report -i perf.data --stdio --children --no-inline -g none --percent-limit 0 --sort symbol 2>/dev/null');
	unlink 'perf.data', "output.$perf";
	my %share = map { /^\s*([\d.]+)%\s+[\d.]+%\s+\[\.\]\s+(\w+)/ ? ($2 => $1) : () } split /\n/, $report;
	if (!grep { defined } @share{@ledger_functions})
	{
		return $rounds->note('The ledger\'s part was left out: its functions are not in the profile, which is too short or has no names.');
	}
	my $sum = 0;
	$sum += $_ for grep { defined } @share{@ledger_functions};
	return $rounds->once('ledger_share', 'CPU of a worker for the ledger', '%', $sum)
	  ->note('The ledger: ' . join(', ', map { "$_ " . ($share{$_} // 0) . ' %' } @ledger_functions)
		  . ', with all that they call; once.');
}

1;
