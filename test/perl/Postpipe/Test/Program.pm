# Postpipe::Test::Program: a server of others that a test needs, in a child process, gone with the object.
#
#   my $exporter = Postpipe::Test::Program->new('prometheus-postgres-exporter', "--web.listen-address=127.0.0.1:$port");
#   $exporter->output;         # what it has said so far
package Postpipe::Test::Program;

use strict;
use warnings;
use POSIX ();
use PostgreSQL::Test::Utils;

sub new
{
	my ($class, @command) = @_;
	my $self = bless { log => PostgreSQL::Test::Utils::tempdir_short() . '/log', owner => $$ }, $class;

	$self->{pid} = fork // die "fork: $!";
	if ($self->{pid} == 0)
	{
		open(STDIN, '<', '/dev/null');
		open(STDOUT, '>', $self->{log});
		open(STDERR, '>&', \*STDOUT);
		exec(@command) or POSIX::_exit(127);
	}
	return $self;
}

sub output { my ($self) = @_; return -e $self->{log} ? slurp_file($self->{log}) : '' }

# False: it has ended by itself.
sub is_up { my ($self) = @_; return waitpid($self->{pid}, POSIX::WNOHANG()) == 0 }

sub DESTROY
{
	my ($self) = @_;
	local ($?, $@, $!);
	return unless $self->{owner} == $$;
	kill('KILL', $self->{pid});
	waitpid($self->{pid}, 0);
	return;
}

1;
