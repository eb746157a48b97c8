# Postpipe::Test::PythonWorker: the worker that was there before postpipe, as far as Redis and the table see it, in a child process.
#
#   my $python = Postpipe::Test::PythonWorker->new(redis => $redis, node => $node, group => ..., stream => ...);
#   $python->stop;      # in the middle of a batch
#
# It does what that worker does: a new consumer at each start; what others have left behind first, then new entries, ten at a time; one
# upsert and one XACK for each. And what it does wrong: an upsert that fails is either in the stream of dead letters or just
# acknowledged, and a stop leaves entries that are written and not acknowledged, and others that were only read.
package Postpipe::Test::PythonWorker;

use strict;
use warnings;
use JSON::PP ();
use Postpipe::Test;
use parent 'Postpipe::Test::Child';

my $started = 0;

sub new
{
	my ($class, %opt) = @_;
	return $class->SUPER::new(%opt, consumer => 'post-persist-' . ++$started);
}

sub work
{
	my ($self) = @_;
	$self->{client} = Postpipe::Test::Client->new($self->{redis}->port);
	$self->{psql} = pp_session($self->{node});
	until ($self->{stop})
	{
		my $claimed = $self->{client}->command('XAUTOCLAIM', @$self{qw(stream group consumer)}, 200, '0-0', 'COUNT', 10);
		$self->_handle($_) for @{ $claimed->[1] };
		my $new = $self->{client}->command('XREADGROUP', 'GROUP', @$self{qw(group consumer)}, 'COUNT', 10, 'BLOCK', 100, 'STREAMS', $self->{stream}, '>');
		$self->_handle($_) for $new ? @{ $new->[0][1] } : ();
	}
	$self->_leave;
	return $self->{psql}->(undef);
}

# Stopped in the middle of a batch: one entry is written and not acknowledged, the one after it is in the dead letters and not acknowledged,
# the others were only read. Those that no upsert takes come before, so that there always is one that is written.
sub _leave
{
	my ($self) = @_;
	while (1)
	{
		my $new = $self->{client}->command('XREADGROUP', 'GROUP', @$self{qw(group consumer)}, 'COUNT', 8, 'BLOCK', 1000, 'STREAMS', $self->{stream}, '>') or return;
		my @entries = @{ $new->[0][1] };
		while (my $entry = shift @entries)
		{
			next if $self->_upsert($entry);
			return @entries && $self->_to_dead_letters($entries[0], 'stopped');
		}
	}
}

sub _handle
{
	my ($self, $entry) = @_;
	my ($id, $fields) = @$entry;
	my %field = @$fields;
	my $error = ($field{fault} // '') eq 'swallowed' ? 'no connection' : $self->_upsert($entry);
	# An exception of its handler is logged, and the entry acknowledged; or it has been in the dead letters since it was tried three times.
	$self->_to_dead_letters($entry, $error) if $error && ($field{fault} // '') ne 'swallowed';
	# Dead-lettered twice: stopped before the XACK, and once more.
	$self->_to_dead_letters($entry, $error) if $error && ($field{fault} // '') eq 'twice';
	return $self->{client}->command('XACK', @$self{qw(stream group)}, $id);
}

sub _to_dead_letters
{
	my ($self, $entry, $error) = @_;
	return $self->{client}->command('XADD', "$self->{stream}:dlq", '*', original_stream => $self->{stream}, original_message_id => $entry->[0],
		error => $error, retry_count => 3, failed_at => '2026-01-01T00:00:00+00:00', @{ $entry->[1] });
}

# Returns what psql says of an error, or ''.
sub _upsert
{
	my ($self, $entry) = @_;
	my %field = @{ $entry->[1] };
	my %event = $field{data} ? %{ JSON::PP->new->utf8->decode($field{data}) } : %field;
	return 'the worker was out of luck' if ($field{fault} // '') =~ /^(?:dead|twice)$/;
	my ($text) = grep { defined } @event{qw(text content)};
	my ($message) = grep { defined } @event{qw(telegram_message_id tg_message_id)};
	my $said = $self->{psql}->("INSERT INTO posts (channel_id, telegram_message_id, content) VALUES ('$event{channel_id}', $message, '$text')
		ON CONFLICT (channel_id, telegram_message_id) DO UPDATE SET content = excluded.content");
	return $said =~ /ERROR: +(.*)/ ? $1 : '';
}

1;
