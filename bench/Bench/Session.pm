# Bench::Session: one psql or redis-cli that stays open, so that asking it often costs next to nothing.
package Bench::Session;

use strict;
use warnings;
use IPC::Open2;

my $mark = '--end-of-answer--';

sub psql
{
	my ($class) = @_;
	return $class->_start("\\echo $mark\n", ';', 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d', 'postgres');
}

sub redis
{
	my ($class, $socket) = @_;
	return $class->_start("ECHO $mark\n", '', 'redis-cli', '-s', $socket);
}

sub _start
{
	my ($class, $end, $terminator, @command) = @_;
	my $pid = open2(my $out, my $in, @command);
	return bless { pid => $pid, in => $in, out => $out, end => $end, terminator => $terminator }, $class;
}

# Sends one command and returns what is printed for it, without the last line feed.
sub ask
{
	my ($self, $command) = @_;
	my $answer = '';

	print { $self->{in} } "$command$self->{terminator}\n$self->{end}";
	$self->{in}->flush;
	while (defined(my $line = readline $self->{out}))
	{
		if ($line eq "$mark\n")
		{
			chomp $answer;
			return $answer;
		}
		$answer .= $line;
	}
	die "failed: $command\n";
}

1;
