# Bench::Meter: CPU seconds and private memory of the processes that do the work, taken from /proc while they run.
package Bench::Meter;

use strict;
use warnings;
use List::Util qw(max sum0);
use POSIX ();

# Processes that are there now: their CPU time counts from now on.
sub new
{
	my ($class, @pids) = @_;
	my $self = bless { before => {}, cpu => {}, memory => [] }, $class;
	$self->{before}{$_} = cpu_seconds($_) for @pids;
	$self->look;
	return $self;
}

# One that has been started for the work: all of its time counts.
sub add
{
	my ($self, @pids) = @_;
	$self->{before}{$_} //= 0 for @pids;
	return;
}

sub pids { my ($self) = @_; return keys %{ $self->{before} } }

# To be called often: memory of all at one time is what counts, and of a process that ends the last look.
sub look
{
	my ($self) = @_;
	my $memory = 0;

	for my $pid ($self->pids)
	{
		$self->{cpu}{$pid} = cpu_seconds($pid) // $self->{cpu}{$pid};
		$memory += anonymous_kb($pid) // 0;
	}
	push @{ $self->{memory} }, $memory if $memory;
	return;
}

sub result
{
	my ($self) = @_;
	$self->look;
	return (
		cpu_seconds => sum0(map { ($self->{cpu}{$_} // 0) - $self->{before}{$_} } $self->pids),
		memory_kb => max(0, @{ $self->{memory} }));
}

# CPU seconds since these processes began.
sub total
{
	my ($self) = @_;
	$self->look;
	return sum0(map { $_ // 0 } values %{ $self->{cpu} });
}

# Begin is the second tenth of the time: the first batch has been through all code by then, and its memory is the worker's
# normal size. The most of each tenth: a single look meets the worker anywhere in a batch, when its memory is returned, too.
sub memory_profile
{
	my ($self) = @_;
	my @memory = @{ $self->{memory} };
	my $most = sub {
		my ($from, $to) = map { int(@memory * $_) } @_;
		return max(@memory[ $from .. max($from, $to - 1) ]);
	};

	return { begin => $most->(0.1, 0.2), end => $most->(0.9, 1), peak => max(@memory) };
}

# User and system time of a process of ours; undef when it is gone. From the scheduler where it says so, in nanoseconds:
# the other one counts clock ticks.
sub cpu_seconds
{
	my ($pid) = @_;
	if (open(my $exact, '<', "/proc/$pid/schedstat"))
	{
		my ($nanoseconds) = split ' ', (<$exact> // '');
		return $nanoseconds / 1e9 if $nanoseconds;
	}
	open(my $stat, '<', "/proc/$pid/stat") or return;
	# The name in parentheses may hold anything: count from behind it.
	my @fields = split ' ', ((<$stat> // return) =~ s/.*\)//sr);
	return ($fields[11] + $fields[12]) / POSIX::sysconf(POSIX::_SC_CLK_TCK());
}

# How often a process of ours has gone to sleep; 0 when it is gone.
sub sleeps
{
	my ($pid) = @_;
	open(my $status, '<', "/proc/$pid/status") or return 0;
	my ($times) = map { /^voluntary_ctxt_switches:\s+(\d+)/ } <$status>;
	return $times // 0;
}

# What all processors have done since the machine was started, in clock ticks: the last is what the host of a virtual
# machine gave to others while there was something to run. Empty where the system does not tell.
sub processor_ticks
{
	open(my $stat, '<', '/proc/stat') or return;
	my (undef, @ticks) = split ' ', (<$stat> // '');
	return @ticks[ 0 .. 7 ];
}

# Parts of their time since they had done that: when something ran, and when the host had taken them.
sub processors_since
{
	my (@before) = @_;
	my @now = processor_ticks() or return;
	my @ticks = map { $now[$_] - $before[$_] } 0 .. $#now;
	my $all = sum0(@ticks) || 1;

	return (busy => sum0(@ticks[ 0 .. 2, 5, 6 ]) / $all, stolen => $ticks[-1] / $all);
}

# Without the shared buffers, which every process maps little by little, and without the program's own file pages.
sub anonymous_kb
{
	my ($pid) = @_;
	open(my $status, '<', "/proc/$pid/status") or return;
	my ($kb) = map { /^RssAnon:\s+(\d+)/ } <$status>;
	return $kb;
}

1;
