# Bench::Session: one psql or redis-cli that stays open, so that asking it often costs next to nothing.
package Bench::Session;

use strict;
use warnings;
use IO::Select;
use IPC::Open2;

my $mark = '--end-of-answer--';
my $look_seconds = 0.02;

sub psql
{
	my ($class, $database) = @_;
	return $class->_start("\\echo $mark\n", ';', 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d', $database // 'postgres');
}

sub redis
{
	my ($class, $port) = @_;
	return $class->_start("ECHO $mark\n", '', 'redis-cli', '-p', $port);
}

sub _start
{
	my ($class, $end, $terminator, @command) = @_;
	my $pid = open2(my $out, my $in, @command);
	return bless { pid => $pid, in => $in, out => $out, end => $end, terminator => $terminator }, $class;
}

# Sends one command and returns what is printed for it, without the last line feed. While it waits, "meanwhile" is called
# every now and then.
sub ask
{
	my ($self, $command, $meanwhile) = @_;
	my ($answer, $end) = ('', "$mark\n");
	my $ready = IO::Select->new($self->{out});

	print { $self->{in} } "$command$self->{terminator}\n$self->{end}";
	$self->{in}->flush;
	until (length $answer >= length $end && substr($answer, -length $end) eq $end)
	{
		if ($meanwhile)
		{
			$meanwhile->() until $ready->can_read($look_seconds);
		}
		sysread($self->{out}, $answer, 65536, length $answer) or die "failed: $command\n";
	}
	substr($answer, -length $end) = '';
	chomp $answer;
	return $answer;
}

sub close
{
	my ($self) = @_;
	CORE::close($self->{in});
	CORE::close($self->{out});
	waitpid($self->{pid}, 0);
	return;
}

1;
