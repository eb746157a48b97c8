# Postpipe::Test::Torture::Producer: a process that publishes entries straight to Redis, not through the proxy, in
# bursts of random size and format, and keeps a log from which the checker knows what has to be where.
#
#   my $producer = Postpipe::Test::Torture::Producer->new(number => 1, seed => 42, port => $redis->port, file => $path);
#   $producer->stop;
#   my @entries = Postpipe::Test::Torture::Producer::read_log($path);
#
# Each entry has a uid. The log has a line "add" before it is sent, and a line "id" when Redis has answered: an XADD whose
# answer was lost may have happened or not. Kinds:
#   ok        applied everywhere
#   bad       cannot be applied anywhere: no number where one has to be, a NUL, no UTF-8, JSON that is no object
#   late      refers to a row that may come later, by a foreign key of some targets
#   filtered  of an event type that posts does not take
package Postpipe::Test::Torture::Producer;

use strict;
use warnings;
use IO::Handle;
use JSON::PP ();
use Postpipe::Test::Client;
use parent 'Postpipe::Test::Child';
use Time::HiRes qw(sleep);

use constant STREAM => 'stream:torture';
use constant POSTS => 'stream:posts:parsed';
use constant CHANNELS => 4;
use constant MESSAGES => 400;

sub new
{
	my ($class, %opt) = @_;
	return $class->SUPER::new(rate => 1, %opt, sequence => 0);
}

# The entries of a log, in the order in which they were sent: {uid, stream, kind, n, channel, message, views, id}, the
# last one only when Redis has answered; refused => 1 when it answered with an error.
sub read_log
{
	my ($file) = @_;
	my (@entries, %by_uid);

	open(my $fh, '<', $file) or return;
	while (my $line = <$fh>)
	{
		chomp $line;
		my ($what, $uid, @rest) = split /\t/, $line, -1;
		if ($what eq 'add')
		{
			my %entry = (uid => $uid);
			@entry{qw(stream kind n channel message views)} = @rest;
			push @entries, $by_uid{$uid} = \%entry;
		}
		elsif ($what eq 'id') { $by_uid{$uid}{id} = $rest[0] }
		else { $by_uid{$uid}{refused} = 1 }
	}
	return @entries;
}

# From here on in the child.

sub work
{
	my ($self) = @_;
	my $client;

	srand($self->{seed});
	open(my $log, '>>', $self->{file}) or die "$self->{file}: $!";
	$log->autoflush(1);
	my $parent = getppid();
	until ($self->{stop} || getppid() != $parent)
	{
		my @burst = map { $self->_entry } 1 .. $self->_burst_size;
		$client //= Postpipe::Test::Client->new($self->{port}, 3);
		if (!$client)
		{
			sleep(0.05);
			next;
		}
		print $log map { join("\t", 'add', @{$_}{qw(uid stream kind n channel message views)}) . "\n" } @burst;
		my $ok = eval {
			$client->send_only(map { [ 'XADD', $_->{stream}, '*', @{ $_->{fields} } ] } @burst);
			for my $entry (@burst)
			{
				my $reply = $client->receive;
				print $log ($reply =~ /^\d+-\d+$/ ? "id\t$entry->{uid}\t$reply\n" : "refused\t$entry->{uid}\n");
			}
			1;
		};
		undef $client unless $ok;
		sleep(rand(0.3) / $self->{rate});
	}
	return;
}

sub _burst_size { my @sizes = (1, 3, 10, 50, 200); return 1 + int rand $sizes[ rand @sizes ] }

# A random entry: what the checker has to know, and the fields to publish.
sub _entry
{
	my ($self) = @_;
	my $uid = "u$self->{number}x" . ++$self->{sequence};

	return rand() < 0.4 ? _post($uid) : $self->_hit($uid);
}

# For the stream of the three torture pipelines.
sub _hit
{
	my ($self, $uid) = @_;
	my %entry = (uid => $uid, stream => STREAM, kind => 'ok', n => 1 + int rand 9, channel => '', message => '', views => 0);
	my %event = (uid => $uid, n => "$entry{n}", pad => _pad());
	my $dice = rand;

	if ($dice < 0.004)
	{
		@entry{qw(kind fields)} = ('bad', _bad(\%event));
		return \%entry;
	}
	if ($dice < 0.008)
	{
		$entry{kind} = 'late';
		$event{parent} = '' . (1 + int rand 20);
	}
	$entry{fields} = _format($uid, \%event);
	return \%entry;
}

sub _bad
{
	my ($event) = @_;
	my $uid = $event->{uid};
	my @ways = (
		{ %$event, n => 'not a number' },
		{ %$event, pad => "a\0b" },
		{ %$event, pad => "\xff\xfe" },
		{ uid => $uid, data => _json({ %$event, n => [] }) },
		{ uid => $uid, data => '[1, 2]' },
		{ uid => $uid, payload => '{"n": ' });
	my $fields = $ways[ rand @ways ];
	return [ map { $_ => $fields->{$_} } sort keys %$fields ];
}

# For stream:posts:parsed. Few keys, so that later entries meet earlier ones, in one batch as well.
sub _post
{
	my ($uid) = @_;
	my $channel = 'channel_' . int rand CHANNELS;
	my $message = 1 + int rand MESSAGES;
	my %entry = (uid => $uid, stream => POSTS, kind => 'ok', n => 0, channel => $channel, message => $message, views => int rand 1000);
	my %event = (
		post_id => "$channel:$message",
		channel_id => $channel,
		telegram_message_id => "$message",
		text => "$uid " . _pad(),
		urls => '[]',
		posted_at => '2025-10-29T00:00:00+03:00',
		views_count => "$entry{views}");
	my $dice = rand;

	if ($dice < 0.005)
	{
		$entry{kind} = 'bad';
		$event{telegram_message_id} = 'none';
	}
	elsif ($dice < 0.02)
	{
		$entry{kind} = 'filtered';
		$entry{fields} = [ uid => $uid, event_type => 'post.deleted', data => _json(\%event) ];
		return \%entry;
	}
	$entry{fields} = _format($uid, \%event);
	return \%entry;
}

# The three formats of events.md: flat fields, JSON in one field, an envelope.
sub _format
{
	my ($uid, $event) = @_;
	my $format = int rand 4;

	return [ uid => $uid, map { $_ => $event->{$_} } grep { $_ ne 'uid' } sort keys %$event ] if $format < 2;
	return [ uid => $uid, data => _json($event) ] if $format == 2;
	return [ event_type => 'post.created', source => 'torture', uid => $uid, payload => _json($event) ];
}

sub _json { return JSON::PP->new->canonical->encode($_[0]) }

sub _pad
{
	my $dice = rand;
	return 'x' x ($dice < 0.6 ? int rand 40 : $dice < 0.998 ? int rand 1500 : 50_000 + int rand 150_000);
}

1;
