# Postpipe::Test::Server: what FakeRedis and Proxy share, a TCP server in a child process that the test drives.
#
# The child runs one loop over all its sockets and timers. The test talks to it through a socket pair: request(@words)
# calls request_<word>(...) in the child and returns its value. A subclass has these methods, all called in the child:
#   accepted($socket)       a new connection
#   readable($socket), writable($socket)
#   interests()             (array of sockets to read, array of sockets to write, seconds until the next timer or undef)
#   timers()                called in every turn of the loop
package Postpipe::Test::Server;

use strict;
use warnings;
use IO::Handle;
use IO::Select;
use IO::Socket::INET;
use List::Util qw(min);
use POSIX ();
use PostgreSQL::Test::Cluster;
use Socket qw(:DEFAULT IPPROTO_TCP TCP_NODELAY);
use Storable ();

sub new
{
	my ($class, %opt) = @_;
	my $self = bless { port => PostgreSQL::Test::Cluster::get_free_port(), %opt, owner => $$ }, $class;

	$self->start;
	return $self;
}

sub port { return $_[0]->{port} }
sub pid { return $_[0]->{pid} }
sub url { return "redis://127.0.0.1:$_[0]->{port}" }

# Begins to listen (again, after stop): the port accepts connections when this returns.
sub start
{
	my ($self) = @_;

	die 'it is running' if $self->{pid};
	my $listener = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => $self->{port}, Listen => 128, ReuseAddr => 1)
	  or die "cannot listen on port $self->{port}: $!";
	socketpair(my $ours, my $theirs, AF_UNIX, SOCK_STREAM, PF_UNSPEC) or die "socketpair: $!";
	my $parent = $$;
	$self->{pid} = fork // die "fork: $!";
	if ($self->{pid} == 0)
	{
		# _exit, because nothing of the test may be run or destroyed here.
		close($ours);
		$SIG{$_} = 'DEFAULT' for qw(INT TERM CHLD);
		eval { $self->_loop($listener, $theirs, $parent); 1 } or print STDERR ref($self), ": $@";
		POSIX::_exit(0);
	}
	$self->{control} = $ours;
	return $self;
}

# Stops listening and closes every connection: the port refuses from now on.
sub stop
{
	my ($self) = @_;
	my $pid = delete $self->{pid} or return;

	delete $self->{control};
	kill('KILL', $pid);
	waitpid($pid, 0);
	return;
}

sub request
{
	my ($self, @words) = @_;
	_send($self->{control}, \@words);
	my ($value, $error) = @{ _receive($self->{control}) // die ref($self) . ' has died' };
	die $error if defined $error;
	return $value;
}

sub _send
{
	my ($socket, $message) = @_;
	my $bytes = pack('N/a*', Storable::nfreeze($message));
	while (length $bytes)
	{
		my $n = syswrite($socket, $bytes);
		return unless defined $n || $!{EINTR};
		substr($bytes, 0, $n // 0, '');
	}
	return;
}

sub _receive
{
	my ($socket) = @_;
	my $read = sub {
		my ($want) = @_;
		my $bytes = '';
		while (length $bytes < $want)
		{
			my $n = sysread($socket, $bytes, $want - length $bytes, length $bytes);
			return unless $n || $!{EINTR};
		}
		return $bytes;
	};
	my $length = $read->(4) // return;
	return Storable::thaw($read->(unpack('N', $length)));
}

sub _loop
{
	my ($self, $listener, $control, $parent) = @_;

	while (1)
	{
		my ($read, $write, $timeout) = $self->interests;
		my ($readable, $writable) = IO::Select->select(IO::Select->new($listener, $control, @$read),
			IO::Select->new(@$write), undef, min(0.5, $timeout // 0.5));

		# The test is gone, also if something else inherited its end of the socket pair.
		return if getppid() != $parent;

		$self->timers;
		for my $socket (@{ $readable // [] })
		{
			if ($socket == $listener)
			{
				my $new = $listener->accept or next;
				$new->blocking(0);
				$new->setsockopt(IPPROTO_TCP, TCP_NODELAY, 1);
				$self->accepted($new);
			}
			elsif ($socket == $control)
			{
				my ($word, @args) = @{ _receive($control) // return };
				my $method = "request_$word";
				my $value = eval { $self->$method(@args) };
				_send($control, [ $value, $@ ne '' ? $@ : undef ]);
			}
			else
			{
				$self->readable($socket) if $socket->opened;
			}
		}
		for my $socket (@{ $writable // [] })
		{
			$self->writable($socket) if $socket->opened;
		}
	}
}

# Closes a connection so that the other side gets "connection reset", not an end of file.
sub reset_connection
{
	my ($self, $socket) = @_;
	$socket->setsockopt(SOL_SOCKET, SO_LINGER, pack('ii', 1, 0)) if $socket->opened;
	close($socket);
	return;
}

sub DESTROY
{
	my ($self) = @_;
	local ($?, $@, $!);
	$self->stop if ($self->{owner} // 0) == $$;
	return;
}

1;
