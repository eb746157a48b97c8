# Postpipe::Test::FakeRedis: a Redis that answers what the test says. It logs every command that it receives.
#
#   my $fake = Postpipe::Test::FakeRedis->new(replies => {XREADGROUP => "-LOADING Redis is loading\r\n"});
#   $fake->set(XREADGROUP => [ "-NOGROUP x\r\n", $nil ]);            # while it runs; undef goes back to the default
#   $fake->mode('silent');
#   my @all = $fake->commands;  my @acks = $fake->commands('XACK');  # array references, in the order of arrival
#
# A reply is found by "COMMAND SUBCOMMAND", then "COMMAND", then '*', in upper case. It is one of
#   bytes                       sent as they are
#   [reply, reply, ...]         taken one by one, the last one stays
#   sub { my @command = @_; … } its result is a reply (only in new, because the server is another process)
#   {send => bytes, close => 1} sent, then the connection is closed (in the middle of a reply, say); reset => 1: with RST
#   {silent => 1}               no answer
#   {by => {text => reply, …}}  the one whose text is in one of the command's words; the default where there is none
#   {after => seconds, send => bytes}
#   {times => n, send => bytes}
# Modes: 'answer'; 'silent' accepts and never answers; 'close' closes at the first byte; 'reset' accepts and resets;
# 'garbage' answers everything with the bytes of mode('garbage', $bytes).
package Postpipe::Test::FakeRedis;

use strict;
use warnings;
use parent 'Postpipe::Test::Server';
use List::Util qw(min);
use PostgreSQL::Test::Utils;
use Postpipe::Test::Resp;
use Storable ();
use Time::HiRes ();

# XINFO GROUPS: groups that have read everything.
sub _groups
{
	my (@names) = @_;
	my @groups = map { "*6\r\n" . join '', _bulk('name'), _bulk($_), _bulk('pending'), ":0\r\n", _bulk('last-delivered-id'), _bulk('0-0') } @names;
	return '*' . @groups . "\r\n" . join '', @groups;
}

# The owner keys, hashes.
my %hashes;

sub _hash_command
{
	my ($name, $key, @args) = @_;
	my $hash = $hashes{$key} //= {};

	return Postpipe::Test::Resp::encode(%$hash) if $name eq 'HGETALL';
	return defined $hash->{ $args[0] } ? _bulk($hash->{ $args[0] }) : "\$-1\r\n" if $name eq 'HGET';
	return ':' . ($hash->{ $args[0] } += $args[1]) . "\r\n" if $name eq 'HINCRBY';
	return ':' . (grep { defined } delete @$hash{@args}) . "\r\n" if $name eq 'HDEL';
	my %new = @args;
	@$hash{ keys %new } = values %new;
	return ':' . keys(%new) . "\r\n";
}

sub _bulk { return '$' . length($_[0]) . "\r\n$_[0]\r\n" }

# How an idle, empty, healthy Redis answers. A blocking read returns nil when its time is up, not at once.
my %default = (
	'PING' => "+PONG\r\n",
	'AUTH' => "+OK\r\n",
	'SELECT' => "+OK\r\n",
	'WATCH' => "+OK\r\n",
	'MULTI' => "+OK\r\n",
	(map { $_ => \&_hash_command } qw(HGET HGETALL HSET HINCRBY HDEL)),
	'CLIENT ID' => ":1\r\n",
	'CLIENT SETNAME' => "+OK\r\n",
	'CLIENT KILL' => ":0\r\n",
	'CLIENT LIST' => "\$0\r\n\r\n",
	'ROLE' => "*3\r\n\$6\r\nmaster\r\n:0\r\n*0\r\n",
	'INFO' => sub {
		my $text = join "\r\n", '# Server', 'redis_version:7.0.15', 'run_id:' . 'f' x 40, 'role:master', 'loading:0', '';
		return '$' . length($text) . "\r\n$text\r\n";
	},
	'XGROUP CREATE' => "+OK\r\n",
	'XACK' => sub { ':' . (@_ - 3) . "\r\n" },
	'XLEN' => ":0\r\n",
	# The summary, or with more words a list.
	'XPENDING' => sub { @_ > 3 ? "*0\r\n" : "*4\r\n:0\r\n\$-1\r\n\$-1\r\n*-1\r\n" },
	'XRANGE' => "*0\r\n",
	# The stream is empty, and what was in it was added long before the last ID; 6.2 says no more.
	'XINFO STREAM' => "*4\r\n\$6\r\nlength\r\n:0\r\n\$17\r\nlast-generated-id\r\n\$15\r\n9999999999999-0\r\n",
	'XINFO GROUPS' => _groups(qw(post_persist_workers postpipe_hits)),
	'XINFO CONSUMERS' => "*0\r\n",
	'XAUTOCLAIM' => "*3\r\n\$3\r\n0-0\r\n*0\r\n*0\r\n",
	'XREADGROUP' => sub {
		my @command = @_;
		for my $i (0 .. $#command - 1)
		{
			return { after => $command[ $i + 1 ] / 1000, send => "*-1\r\n" } if uc $command[$i] eq 'BLOCK';
		}
		return "*-1\r\n";
	},
	'*' => sub { "-ERR unknown command '$_[0]'\r\n" },
);

sub new
{
	my ($class, %opt) = @_;
	return $class->SUPER::new(
		replies => {},
		mode => ['answer'],
		logfile => PostgreSQL::Test::Utils::tempdir_short() . '/commands',
		%opt,
		clients => {});
}

sub set { my ($self, %replies) = @_; return $self->request('set', %replies) }
sub mode { my ($self, @mode) = @_; return $self->request('mode', @mode) }
sub connections { return $_[0]->request('connections') }
sub logfile { return $_[0]->{logfile} }

# The commands received up to now, or those of one name, each an array reference.
sub commands
{
	my ($self, $name) = @_;
	my @commands;

	return unless -e $self->{logfile};
	my $log = slurp_file($self->{logfile});
	while (my $command = Postpipe::Test::Resp::take(\$log))
	{
		push @commands, $command->[0] if !defined $name || uc $command->[0][0] eq uc $name;
	}
	return @commands;
}

# From here on in the child.

sub request_set
{
	my ($self, %replies) = @_;
	for my $name (keys %replies)
	{
		if (defined $replies{$name}) { $self->{replies}{ uc $name } = $replies{$name} }
		else { delete $self->{replies}{ uc $name } }
	}
	return 1;
}

sub request_mode { my ($self, @mode) = @_; $self->{mode} = \@mode; return 1 }
sub request_connections { return scalar keys %{ $_[0]->{clients} } }

sub accepted
{
	my ($self, $socket) = @_;
	return $self->reset_connection($socket) if $self->{mode}[0] eq 'reset';
	$self->{clients}{$socket} = { socket => $socket, in => '', out => '', later => [] };
	return;
}

sub _drop
{
	my ($self, $client, $reset) = @_;
	delete $self->{clients}{ $client->{socket} };
	return $reset ? $self->reset_connection($client->{socket}) : close($client->{socket});
}

sub interests
{
	my ($self) = @_;
	my @clients = values %{ $self->{clients} };
	my @due = map { $_->{later}[0]{at} } grep { @{ $_->{later} } } @clients;
	my $timeout = @due ? min(@due) - Time::HiRes::time() : undef;

	return (
		[ map { $_->{socket} } @clients ],
		[ map { $_->{socket} } grep { length $_->{out} } @clients ],
		defined $timeout && $timeout < 0 ? 0 : $timeout);
}

sub timers
{
	my ($self) = @_;
	$self->_flush($_) for my @all = values %{ $self->{clients} };
	return;
}

sub readable
{
	my ($self, $socket) = @_;
	my $client = $self->{clients}{$socket} or return;
	my $n = sysread($socket, $client->{in}, 65536, length $client->{in});

	return if !defined $n && $!{EAGAIN};
	return $self->_drop($client) if !$n || $self->{mode}[0] eq 'close';
	while (my $command = eval { Postpipe::Test::Resp::take(\$client->{in}) })
	{
		open(my $log, '>>:raw', $self->{logfile}) or die "$self->{logfile}: $!";
		print $log Postpipe::Test::Resp::encode(@{ $command->[0] });
		close($log);
		$self->_answer($client, @{ $command->[0] });
	}
	return;
}

# Answers are sent in the order of the commands, as Redis does: a blocking one holds up those after it.
sub _answer
{
	my ($self, $client, @command) = @_;
	my ($mode, $bytes) = @{ $self->{mode} };

	return if $mode eq 'silent';
	my $reply = $mode eq 'garbage' ? { send => $bytes } : $self->_reply_in_turn($client, @command);
	return if $reply->{silent};
	push @{ $client->{later} }, { %$reply, at => Time::HiRes::time() + ($reply->{after} // 0) };
	return $self->_flush($client);
}

# What is said within MULTI is queued, and done at EXEC, unless the test has a reply of its own to that.
sub _reply_in_turn
{
	my ($self, $client, @command) = @_;
	my $name = uc $command[0];

	delete $client->{queue} if $name eq 'EXEC' && exists $self->{replies}{EXEC};
	if ($name eq 'EXEC' && $client->{queue})
	{
		my @replies = map { my $reply = $self->_reply(@$_); ref $reply ? $reply : { send => $reply } } @{ delete $client->{queue} };
		return { (map { %$_ } @replies), send => '*' . @replies . "\r\n" . join '', map { $_->{send} // '' } @replies };
	}
	if ($client->{queue})
	{
		push @{ $client->{queue} }, \@command;
		return { send => "+QUEUED\r\n" };
	}
	my $reply = $self->_reply(@command);
	$client->{queue} = [] if $name eq 'MULTI' && $reply eq "+OK\r\n";
	return ref $reply ? $reply : { send => $reply };
}

sub _reply
{
	my ($self, @command) = @_;
	my $name = uc $command[0];
	my @names = (@command > 1 ? "$name " . uc $command[1] : (), $name, '*');

	for my $replies ($self->{replies}, \%default)
	{
		for my $key (grep { exists $replies->{$_} } @names)
		{
			my $reply = $replies->{$key};
			if (ref $reply eq 'HASH' && $reply->{by})
			{
				my ($text) = grep { my $text = $_; grep { index($_, $text) >= 0 } @command } keys %{ $reply->{by} };
				next unless defined $text;
				$reply = $reply->{by}{$text};
			}
			$reply = @$reply > 1 ? shift @$reply : $reply->[0] if ref $reply eq 'ARRAY';
			return ref $reply eq 'CODE' ? $reply->(@command) : $reply;
		}
	}
	return;
}

sub writable
{
	my ($self, $socket) = @_;
	my $client = $self->{clients}{$socket} or return;
	return $self->_flush($client);
}

sub _flush
{
	my ($self, $client) = @_;

	while (1)
	{
		if (length $client->{out})
		{
			my $n = syswrite($client->{socket}, $client->{out});
			return $!{EAGAIN} ? undef : $self->_drop($client) unless defined $n;
			substr($client->{out}, 0, $n, '');
			return if length $client->{out};
		}
		return $self->_drop($client, $client->{end} eq 'reset') if $client->{end};
		my $next = $client->{later}[0];
		return if !$next || $next->{at} > Time::HiRes::time();
		shift @{ $client->{later} };
		$client->{out} = ($next->{send} // '') x ($next->{times} // 1);
		$client->{end} = $next->{reset} ? 'reset' : $next->{close} ? 'close' : '';
	}
}

1;
