# Postpipe::Test::Proxy: a TCP proxy that misbehaves on command, between postpipe and a Redis.
#
#   my $proxy = Postpipe::Test::Proxy->new(target => $redis->port);
#   pp_node('main', redis => $proxy);
#   $proxy->command('stall both');
#
# DIR is c2s (to Redis), s2c (from Redis) or both.
#   pass                      forward everything (default); releases what was stalled
#   refuse on|off             accept, then reset at once
#   rst                       reset every open connection
#   stall DIR                 half-open: keep the connections, forward nothing (the bytes are kept and sent on pass)
#   drop DIR                  black hole: swallow the bytes
#   delay DIR MS              hold each chunk back
#   dribble DIR               one byte per write
#   rate DIR BYTES            no more than that in a second
#   garble DIR PERMILLE       flip one bit in PERMILLE of the bytes
#   noise DIR PERMILLE        the same, but not inside of strings, where nobody could see it; connections made from now on
#   cut DIR N                 reset after N more bytes (0: at the next byte)
#   cuton DIR PATTERN before|after [COUNT]  reset when PATTERN is seen for the COUNTth time (before: not forwarded)
#   dup DIR                   send each chunk twice
#   gate DIR PATTERN SHELL    run SHELL (the bytes are in $FP_DATA) before a chunk with PATTERN is forwarded
#   target PORT               where new connections go, from now on
#   stats
# Every command returns a hash reference: conns (all so far), open, c2s and s2c (bytes), gate_run, gate_fail (SHELL did
# not end with 0), cuts.
package Postpipe::Test::Proxy;

use strict;
use warnings;
use parent 'Postpipe::Test::Server';
use IO::Socket::INET;
use List::Util qw(max min);
use Socket qw(IPPROTO_TCP TCP_NODELAY);
use Time::HiRes ();

use constant DRIBBLE_SECONDS => 0.0005;
use constant QUEUE_BYTES => 1 << 20;
use constant RATE_BYTES => 1 << 14;    # written at once

sub new
{
	my ($class, %opt) = @_;
	return $class->SUPER::new(
		%opt,
		refuse => 0,
		modes => { c2s => {}, s2c => {} },
		stats => { conns => 0, c2s => 0, s2c => 0, gate_run => 0, gate_fail => 0, cuts => 0 },
		pipes => {});
}

sub command { my ($self, $line) = @_; return $self->request('command', $line) }
sub stats { return $_[0]->command('stats') }

# From here on in the child. A connection is two pipes; each has the socket it reads (its key in {pipes}), the one it
# writes, and a queue of [when, bytes].

sub request_command
{
	my ($self, $line) = @_;
	my ($command, $direction, @args) = split ' ', $line;
	my @modes = map { $self->{modes}{$_} } ($direction // '') eq 'both' ? qw(c2s s2c) : grep { ($direction // '') eq $_ } qw(c2s s2c);

	if ($command eq 'pass') { $self->{modes} = { c2s => {}, s2c => {} }; $self->{refuse} = 0 }
	elsif ($command eq 'refuse') { $self->{refuse} = $direction eq 'on' }
	elsif ($command eq 'rst') { $self->_reset($_) for my @all = values %{ $self->{pipes} } }
	elsif ($command eq 'target') { $self->{target} = $direction }
	elsif ($command eq 'stats') { }
	elsif (!@modes) { die "proxy: what is \"$line\"?\n" }
	elsif ($command =~ /^(?:stall|drop|dribble|dup)$/) { $_->{$command} = 1 for @modes }
	elsif ($command =~ /^(?:delay|garble|noise|cut|rate)$/) { $_->{$command} = $args[0] for @modes }
	elsif ($command eq 'cuton') { $_->{cuton} = { pattern => $args[0], when => $args[1], count => $args[2] // 1 } for @modes }
	elsif ($command eq 'gate') { $_->{gate} = { pattern => $args[0], shell => (split ' ', $line, 4)[3] } for @modes }
	else { die "proxy: what is \"$line\"?\n" }
	return { %{ $self->{stats} }, open => keys(%{ $self->{pipes} }) / 2 };
}

sub accepted
{
	my ($self, $client) = @_;
	my $server = $self->{refuse} ? undef : IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $self->{target}, Timeout => 5);

	return $self->reset_connection($client) unless $server;
	$server->blocking(0);
	$server->setsockopt(IPPROTO_TCP, TCP_NODELAY, 1);
	my $c2s = { direction => 'c2s', from => $client, to => $server, queue => [], bytes => 0, at => 0 };
	my $s2c = { direction => 's2c', from => $server, to => $client, queue => [], bytes => 0, at => 0 };
	$_->{framing} = $self->{modes}{ $_->{direction} }{noise} ? { skip => 0, line => '' } : undef for $c2s, $s2c;
	$c2s->{back} = $s2c;
	$s2c->{back} = $c2s;
	$self->{pipes}{$client} = $c2s;
	$self->{pipes}{$server} = $s2c;
	$self->{stats}{conns}++;
	return;
}

sub _forget
{
	my ($self, $pipe) = @_;
	my $back = $pipe->{back} or return 0;

	delete @{ $self->{pipes} }{ $pipe->{from}, $pipe->{to} };
	delete $_->{back} for $pipe, $back;    # a cycle of references
	return 1;
}

sub _reset
{
	my ($self, $pipe) = @_;
	return unless $self->_forget($pipe);
	$self->reset_connection($_) for $pipe->{from}, $pipe->{to};
	return;
}

sub interests
{
	my ($self) = @_;
	my $now = Time::HiRes::time();
	my (@read, @write, @due);

	for my $pipe (values %{ $self->{pipes} })
	{
		next if $self->{modes}{ $pipe->{direction} }{stall};
		push @read, $pipe->{from} unless $pipe->{eof} || $pipe->{bytes} > QUEUE_BYTES;
		next unless @{ $pipe->{queue} };
		my $at = max($pipe->{queue}[0][0], $pipe->{at});
		if ($at <= $now) { push @write, $pipe->{to} }
		else { push @due, $at - $now }
	}
	return (\@read, \@write, min(@due));
}

sub timers { }

sub readable
{
	my ($self, $socket) = @_;
	my $pipe = $self->{pipes}{$socket} or return;
	my $n = sysread($socket, my $data, 65536);

	return $!{EAGAIN} ? undef : $self->_reset($pipe) unless defined $n;
	if ($n == 0)
	{
		$pipe->{eof} = 1;
		return $self->_end_of_file($pipe);
	}
	return $self->_forward($pipe, $data);
}

# One chunk through the faults of its direction, into the queue.
sub _forward
{
	my ($self, $pipe, $data) = @_;
	my $mode = $self->{modes}{ $pipe->{direction} };

	return if $mode->{drop};
	if ($mode->{gate} && index($data, $mode->{gate}{pattern}) >= 0)
	{
		local $ENV{FP_DATA} = $data =~ tr/\0//dr;
		$self->{stats}{gate_run}++;
		$self->{stats}{gate_fail}++ if system('sh', '-c', $mode->{gate}{shell}) != 0;
	}
	if ($mode->{cuton} && index($data, $mode->{cuton}{pattern}) >= 0 && --$mode->{cuton}{count} <= 0)
	{
		my $when = (delete $mode->{cuton})->{when};
		$self->{stats}{cuts}++;
		return $self->_reset($pipe) if $when eq 'before';
		$pipe->{reset_after} = 1;
	}
	if ($mode->{garble})
	{
		for my $i (0 .. length($data) - 1)
		{
			next if rand(1000) >= $mode->{garble};
			substr($data, $i, 1) = chr(ord(substr($data, $i, 1)) ^ 1 << int rand 8);
		}
	}
	$data = _add_noise($pipe->{framing}, $data, $mode->{noise}) if $mode->{noise} && $pipe->{framing};
	if (defined $mode->{cut})
	{
		if (length $data >= $mode->{cut})
		{
			$data = substr($data, 0, delete $mode->{cut});
			$pipe->{reset_after} = 1;
			$self->{stats}{cuts}++;
		}
		else { $mode->{cut} -= length $data }
	}
	$data .= $data if $mode->{dup};
	$self->{stats}{ $pipe->{direction} } += length $data;
	$pipe->{bytes} += length $data;
	push @{ $pipe->{queue} }, [ Time::HiRes::time() + ($mode->{delay} // 0) / 1000, $data ];
	return $self->_write($pipe);
}

# Flips bits in type bytes, numbers and ends of lines: what has to be noticed. {skip}: bytes of a string that are still to
# come; {line}: a line that has begun.
sub _add_noise
{
	my ($framing, $data, $permille) = @_;
	my $position = 0;

	while ($position < length $data)
	{
		if ($framing->{skip} > 0)
		{
			my $n = min($framing->{skip}, length($data) - $position);
			$framing->{skip} -= $n;
			$position += $n;
			next;
		}
		my $byte = substr($data, $position, 1);
		$framing->{line} .= $byte;
		substr($data, $position, 1) = chr(ord($byte) ^ 1 << int rand 8) if rand(1000) < $permille;
		$position++;
		next unless $framing->{line} =~ /\r\n\z/;
		$framing->{skip} = $1 + 2 if $framing->{line} =~ /^\$(\d+)\r/;
		$framing->{line} = '';
	}
	return $data;
}

sub writable
{
	my ($self, $socket) = @_;
	my $back = $self->{pipes}{$socket} or return;
	return $self->_write($back->{back});
}

sub _write
{
	my ($self, $pipe) = @_;

	while (my $chunk = $pipe->{queue}[0])
	{
		my $now = Time::HiRes::time();
		my $mode = $self->{modes}{ $pipe->{direction} };
		return if $mode->{stall} || $now < max($chunk->[0], $pipe->{at});
		$pipe->{at} = $now + DRIBBLE_SECONDS if $mode->{dribble};
		my $most = $mode->{dribble} ? 1 : $mode->{rate} ? RATE_BYTES : length $chunk->[1];
		my $n = length $chunk->[1] ? syswrite($pipe->{to}, $chunk->[1], $most) : 0;
		return $!{EAGAIN} ? undef : $self->_reset($pipe) unless defined $n;
		$pipe->{at} = $now + $n / $mode->{rate} if $mode->{rate};
		substr($chunk->[1], 0, $n, '');
		$pipe->{bytes} -= $n;
		shift @{ $pipe->{queue} } unless length $chunk->[1];
	}
	return $self->_reset($pipe) if $pipe->{reset_after};
	return $self->_end_of_file($pipe);
}

# What was read is written, then the end of file is passed on; both ways ended: the connection is gone.
sub _end_of_file
{
	my ($self, $pipe) = @_;

	return if !$pipe->{eof} || @{ $pipe->{queue} };
	shutdown($pipe->{to}, 1) unless $pipe->{ended}++;
	my $back = $pipe->{back};
	return unless $back && $back->{ended};
	$self->_forget($pipe);
	close($_) for $pipe->{from}, $pipe->{to};
	return;
}

1;
