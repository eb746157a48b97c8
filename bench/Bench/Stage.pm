# Bench::Stage: what every section works with: the options, the two private servers, and ways to do something and to know
# what it took. PGHOST and so on say where PostgreSQL is, the programs of this folder are in the current one.
package Bench::Stage;

use strict;
use warnings;
use Bench::Meter;
use Bench::Session;
use JSON::PP;
use List::Util qw(max);
use POSIX qw(WNOHANG _exit);
use Time::HiRes qw(time sleep);

my $patience_seconds = 900;
my $look_seconds = 0.02;

# The programs' name for their sessions: see common.h and consumer.py.
my $application = 'bench';

sub new
{
	my ($class, %option) = @_;
	my $self = bless { option => \%option, checksums => {} }, $class;
	$self->connect;
	return $self;
}

sub option { my ($self, $name) = @_; return $self->{option}{$name} }
sub quick { my ($self) = @_; return $self->{option}{quick} }
sub redis_port { my ($self) = @_; return $self->{option}{redis} }

# A share of --entries, for sections in which an entry takes longer than in the main comparison.
sub entries
{
	my ($self, $share) = @_;
	return max(50, int($self->{option}{entries} * $share));
}

sub connect
{
	my ($self) = @_;
	$self->{sql} = Bench::Session->psql;
	$self->{redis} //= Bench::Session->redis($self->redis_port);
	return;
}

sub sql { my ($self, @command) = @_; return $self->{sql}->ask(@command) }
sub redis { my ($self, $command) = @_; return $self->{redis}->ask($command) }

# Lists of rows, and of values in them, as psql -At prints them.
sub rows { my ($self, $query) = @_; return map { [ split /\|/, $_, -1 ] } split /\n/, $self->sql($query) }

# The server again, with settings for its command line; without any it is as bench/run has started it.
sub restart_server
{
	my ($self, @settings) = @_;
	my $options = join ' ', '', map { "-c $_" } @settings;

	$self->{sql}->close;
	$self->run("pg_ctl -D $self->{option}{data} -l $self->{option}{data}/../postgres.log -w -t 60 -m fast"
		  . " -o '$options' restart >/dev/null");
	$self->connect;
	return;
}

# A new backlog. The stream stays the same one, as in production, so the old entries are trimmed and the key is not
# deleted: all groups have read them.
sub load_stream
{
	my ($self, $stream, $file, $entries) = @_;
	$self->redis("XTRIM $stream MAXLEN 0");
	$self->publish($file);
	my $length = $self->redis("XLEN $stream");
	die "stream \"$stream\" has $length entries, not $entries\n" if $length != $entries;

	# A snapshot now, so that the next automatic one does not fall into a run.
	$self->redis('BGSAVE');
	$self->wait_for('the snapshot of Redis', sub { $self->redis('INFO persistence') =~ /rdb_bgsave_in_progress:0/ });
	return;
}

sub publish
{
	my ($self, $file) = @_;
	$self->run('redis-cli -p ' . $self->redis_port . " --pipe <$file >/dev/null");
	return;
}

# The same start for each: an empty table, and nothing left to write from the run before.
sub empty
{
	my ($self, @tables) = @_;
	$self->sql('TRUNCATE ' . join(', ', @tables));
	$self->write_out;
	return;
}

# Nothing is left to write, by the server or the kernel. What the kernel wrote half a minute later, the generated posts first,
# held every fsync up for a tenth of a second.
sub write_out
{
	my ($self) = @_;
	$self->sql('CHECKPOINT');
	$self->run('sync');
	return;
}

# Nothing of a table and its indexes is in the system's memory any more; what is in the server's buffers stays there.
sub forget_table
{
	my ($self, $table) = @_;
	my @files = map { $_->[0] } $self->rows("SELECT pg_relation_filepath(oid) FROM pg_class WHERE oid = '$table'::regclass"
		  . " UNION ALL SELECT pg_relation_filepath(indexrelid) FROM pg_index WHERE indrelid = '$table'::regclass");

	$self->write_out;
	$self->run("dd if=$_ iflag=nocache count=0 2>/dev/null") for map { glob "$self->{option}{data}/$_*" } @files;
	return;
}

# A command in a session of its own, because the others begin with a new process, too, which has not mapped the server's
# buffers yet: seconds without the connecting, and what its backend needed.
sub timed_sql
{
	my ($self, $command) = @_;
	my $session = Bench::Session->psql;
	my $meter = Bench::Meter->new($session->ask('SELECT pg_backend_pid()'));
	my $start = time;
	my $answer = $session->ask($command, sub { $meter->look });
	my $seconds = time - $start;
	my %used = $meter->result;

	$session->close;
	return { seconds => $seconds, %used, answer => $answer };
}

# One of the programs: what it has printed as JSON, with the seconds that it took from start to end (own_seconds are those
# that it says itself), and the CPU time and memory of itself and its backend. It has to say its CPU time itself, because
# it is gone when it has ended.
sub timed_program
{
	my ($self, @command) = @_;
	my $meter = Bench::Meter->new;
	my $start = time;
	my $pid = $self->start_program(@command);
	my ($backend, $ended);

	$meter->add($pid);
	until (($ended = waitpid($pid, WNOHANG)) == $pid)
	{
		sleep($look_seconds);
		if (!$backend)
		{
			$backend = $self->sql("SELECT pid FROM pg_stat_activity WHERE application_name = '$application'");
			$meter->add($backend) if $backend;
		}
		$meter->look;
	}
	my $seconds = time - $start;
	die "failed: @command\n" if $? != 0;
	my $printed = decode_json($self->output_of($pid));
	my %used = $meter->result;
	return {
		%$printed, own_seconds => $printed->{seconds}, seconds => $seconds, memory_kb => $used{memory_kb},
		cpu_seconds => $printed->{cpu_seconds} + $printed->{backend_cpu_seconds}
	};
}

# Starts a program with its output in a file of its own.
sub start_program
{
	my ($self, @command) = @_;
	my $pid = fork // die "could not fork: $!\n";
	return $pid if $pid;

	if (open(STDOUT, '>', "output.$$"))
	{
		exec { $command[0] } @command;
	}
	warn "could not start $command[0]: $!\n";
	_exit(1);
}

sub output_of
{
	my ($self, $pid) = @_;
	open(my $file, '<', "output.$pid") or die "could not read what process $pid has printed: $!\n";
	my $text = do { local $/; <$file> };
	unlink "output.$pid";
	return $text;
}

sub stop_program
{
	my ($self, $pid) = @_;
	kill 'TERM', $pid;
	waitpid($pid, 0);
	unlink "output.$pid";
	return;
}

# pause: seconds between two looks at the condition, or what returns them.
sub wait_for
{
	my ($self, $what, $condition, $pause) = @_;
	my $deadline = time + $patience_seconds;

	until ($condition->())
	{
		die "gave up waiting for $what\n" . $self->sql('SELECT s FROM postpipe_stats s') . "\n" if time > $deadline;
		sleep(ref $pause ? $pause->() : $pause // 0.1);
	}
	return;
}

# Runs a program and returns what it printed.
sub run
{
	my ($self, @command) = @_;
	my $command = join ' ', @command;
	my $output = `$command`;
	die "failed: $command\n" if $? != 0;
	return $output;
}

sub progress
{
	my ($self, @words) = @_;
	print STDERR "@words\n";
	return;
}

1;
