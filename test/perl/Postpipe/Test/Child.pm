# Postpipe::Test::Child: a process of the test that works beside it until it is stopped; gone with the object.
#
#   my $child = Postpipe::Test::Child->new(work => sub { my ($self) = @_; until ($self->{stop}) { ... } });
#   $child->stop;      # and wait until it has finished what is under way
#
# Or a class of its own, with a method `work`. When new returns, the child can be stopped; what dies in it is printed.
package Postpipe::Test::Child;

use strict;
use warnings;
use POSIX ();

sub new
{
	my ($class, %opt) = @_;
	my $self = bless { %opt, owner => $$ }, $class;

	pipe(my $ready, my $told) or die "pipe: $!";
	$self->{pid} = fork // die "fork: $!";
	if ($self->{pid} == 0)
	{
		# _exit, because nothing of the test may be run or destroyed here.
		$SIG{PIPE} = 'IGNORE';
		$SIG{INT} = 'DEFAULT';
		$SIG{TERM} = sub { $self->{stop} = 1 };
		syswrite($told, 'x');
		eval { $self->work; 1 } or print STDERR ref($self), ": $@";
		POSIX::_exit(0);
	}
	sysread($ready, my $byte, 1);
	return $self;
}

sub pid { return $_[0]->{pid} }
sub work { my ($self) = @_; return $self->{work}->($self) }

sub stop
{
	my ($self) = @_;
	my $pid = delete $self->{pid} or return;

	kill('TERM', $pid);
	waitpid($pid, 0);
	return;
}

sub DESTROY
{
	my ($self) = @_;
	local ($?, $@, $!);
	return unless $self->{owner} == $$ && $self->{pid};
	kill('KILL', $self->{pid});
	waitpid($self->{pid}, 0);
	return;
}

1;
