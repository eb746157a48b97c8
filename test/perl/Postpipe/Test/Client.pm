# Postpipe::Test::Client: one lasting connection to a Redis, a fake one or a proxy, at a port of 127.0.0.1.
package Postpipe::Test::Client;

use strict;
use warnings;
use IO::Select;
use IO::Socket::INET;
use Postpipe::Test::Resp;

# Returns nothing when nobody listens. Seconds: how long receive waits at most (default 30).
sub new
{
	my ($class, $port, $seconds) = @_;
	my $socket = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port, Timeout => 5) or return;

	$socket->autoflush(1);
	return bless { port => $port, seconds => $seconds // 30, socket => $socket, buffer => '' }, $class;
}

# Sends commands (array references) in one write and does not wait for the replies.
sub send_only
{
	my ($self, @commands) = @_;
	$self->{socket}->print(map { Postpipe::Test::Resp::encode(@$_) } @commands) or die "redis: $!\n";
	return;
}

# Whether something arrives within these seconds.
sub answers
{
	my ($self, $seconds) = @_;
	return length $self->{buffer} || $self->_can_read($seconds);
}

# A child that ends, of which PostgreSQL::Test::Utils asks to be told, does not end the wait.
sub _can_read
{
	my ($self, $seconds) = @_;
	my $ready;

	do
	{
		$! = 0;
		$ready = IO::Select->new($self->{socket})->can_read($seconds);
	} while (!$ready && $!{EINTR});
	return $ready;
}

# The next reply; an error reply is a value (an object of Postpipe::Test::Resp::Error). Dies when the connection is lost.
sub receive
{
	my ($self) = @_;
	my $value;

	until ($value = Postpipe::Test::Resp::take(\$self->{buffer}))
	{
		$self->_can_read($self->{seconds}) or die "redis: no answer from port $self->{port}\n";
		sysread($self->{socket}, $self->{buffer}, 65536, length $self->{buffer})
		  or die "redis: lost the connection to port $self->{port}\n";
	}
	return $value->[0];
}

# One command and its reply; an error reply dies with its text.
sub command
{
	my ($self, @args) = @_;
	$self->send_only(\@args);
	my $reply = $self->receive;
	die "redis: $args[0]: $reply\n" if ref $reply eq 'Postpipe::Test::Resp::Error';
	return $reply;
}

1;
