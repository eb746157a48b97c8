# Postpipe::Test::Data: reads the sample events (test/data/*.resp) and says what has to come of them.
#
# It looks at the key of a post only, by the rules of the producers: flat fields, or a JSON object in `data` or `payload`.
package Postpipe::Test::Data;

use strict;
use warnings;
use JSON::PP ();

# Every command of a file in RESP, as a list of its arguments (bytes).
sub commands
{
	my ($file) = @_;
	my @commands;

	open(my $fh, '<:raw', $file) or die "$file: $!";
	while (defined(my $line = <$fh>))
	{
		my ($args) = $line =~ /^\*(\d+)\r\n$/ or die "$file: not a RESP array";
		my @command;
		for (1 .. $args)
		{
			my ($len) = (<$fh> // '') =~ /^\$(\d+)\r\n$/ or die "$file: not a RESP string";
			read($fh, my $value, $len + 2) == $len + 2 or die "$file: ends too early";
			push @command, substr($value, 0, $len);
		}
		push @commands, \@command;
	}
	return @commands;
}

# The event of an entry (a hash of its fields): the JSON object in it, else the entry itself.
sub event
{
	my ($fields) = @_;
	for my $name (qw(data payload))
	{
		my $event = defined $fields->{$name} && eval { JSON::PP->new->utf8->decode($fields->{$name}) };
		return $event if ref $event eq 'HASH';
	}
	return $fields;
}

sub first_of
{
	my ($event, @names) = @_;
	for my $name (@names)
	{
		return $event->{$name} if defined $event->{$name} && $event->{$name} ne '';
	}
	return undef;
}

# (number of entries, number of different posts) of these files together.
sub expected
{
	my $entries = 0;
	my %posts;
	for my $command (map { commands($_) } @_)
	{
		my (undef, undef, undef, %fields) = @$command;    # XADD key id field value ...
		my $event = event(\%fields);
		my $channel = first_of($event, 'channel_id');
		my $message = first_of($event, 'telegram_message_id', 'tg_message_id');
		die "a sample event without a key" unless defined $channel && defined $message;
		$posts{"$channel:$message"} = 1;
		$entries++;
	}
	return ($entries, scalar keys %posts);
}

1;
