# Bench::Rounds: contenders one after another, round by round, and what is to be said about them.
#
# Each contender is a function that does its work once and returns { entries, seconds } and, where they are known,
# cpu_seconds and memory_kb. What a section returns in the end is:
#
#	title, notes	text
#	figures			[{ name, title, unit, rounds, median, target, side, bound, reached }]: ratios, and other numbers by themselves
#	contenders		[{ name, title, entries, rounds, median, cpu_seconds, memory_kb }]: entries per second
package Bench::Rounds;

use strict;
use warnings;
use Bench::Meter;

sub new
{
	my ($class, $stage, $title, $count) = @_;
	return bless {
		stage => $stage, count => $count // $stage->option('rounds'), rounds => [],
		result => { title => $title, figures => [], contenders => [], notes => [] }
	}, $class;
}

# Runs "before" and all contenders, a list of names and functions, in each round. Each contender is once the first, once
# the last: whatever slows a machine down over time then hits all.
sub compare
{
	my ($self, %arg) = @_;
	my %contenders = @{ $arg{contenders} };
	my @order = grep { !ref } @{ $arg{contenders} };

	for my $round (0 .. $self->{count} - 1)
	{
		my @before = Bench::Meter::processor_ticks();

		$arg{before}->() if $arg{before};
		for my $name (@order)
		{
			my $result = $self->{rounds}[$round]{$name} = $contenders{$name}->($round);
			$result->{rate} //= $result->{entries} / $result->{seconds} if $result->{seconds};
			$self->{stage}->progress(sprintf '%d: %-16s %8.0f/s', $round + 1, $name, $result->{rate}) if $result->{rate};
		}
		push @order, shift @order;
		$self->note_stolen(@before);
	}
	return $self;
}

# A round in which the host of a virtual machine has taken much of the processors' time says little of the contenders.
sub note_stolen
{
	my ($self, @before) = @_;
	my %part = Bench::Meter::processors_since(@before) or return;

	push @{ $self->{stolen} }, rounded(100 * $part{stolen});
	return;
}

# A number that is taken within each round: machines are noisy, ratios of one round hold.
sub figure
{
	my ($self, $name, $title, $unit, $get, $side, $bound) = @_;
	my @values = map { rounded($get->($_)) } @{ $self->{rounds} };
	$self->value($name, $title, $unit, \@values, $side, $bound);
	return $self;
}

# One that comes from elsewhere, with the rounds that it had.
sub value
{
	my ($self, $name, $title, $unit, $values, $side, $bound) = @_;
	my $median = median(@$values);
	my %figure = (name => $name, title => $title, unit => $unit, rounds => $values, median => $median);

	if (defined $side)
	{
		$figure{target} = "$side $bound";
		$figure{reached} = $side eq 'at least' ? $median >= $bound : $median <= $bound;
	}
	push @{ $self->{result}{figures} }, \%figure;
	return $self;
}

# One that was taken once.
sub once
{
	my ($self, $name, $title, $unit, $number, $side, $bound) = @_;
	return $self->value($name, $title, $unit, [ rounded($number) ], $side, $bound);
}

# The rate of one contender against that of another.
sub ratio
{
	my ($self, $name, $title, $one, $other, $side, $bound) = @_;
	return $self->figure($name, $title, '', sub { $_[0]{$one}{rate} / $_[0]{$other}{rate} }, $side, $bound);
}

sub contender
{
	my ($self, $name, $title) = @_;
	my @results = map { $_->{$name} } @{ $self->{rounds} };
	my @rates = map { rounded($_->{rate}) } @results;
	my %row = (name => $name, title => $title, entries => $results[0]{entries}, rounds => \@rates, median => median(@rates));

	for my $used (qw(cpu_seconds memory_kb))
	{
		my @values = grep { defined } map { $_->{$used} } @results;
		$row{$used} = rounded(median(@values)) if @values;
	}
	push @{ $self->{result}{contenders} }, \%row;
	return $self;
}

sub note
{
	my ($self, @lines) = @_;
	push @{ $self->{result}{notes} }, @lines;
	return $self;
}

sub result
{
	my ($self) = @_;
	$self->value('stolen', "the processors' time that the host took, in each round", '%', $self->{stolen}) if $self->{stolen};
	return $self->{result};
}

sub median
{
	my @sorted = sort { $a <=> $b } @_;
	return @sorted % 2 ? $sorted[ @sorted / 2 ] : ($sorted[ @sorted / 2 - 1 ] + $sorted[ @sorted / 2 ]) / 2;
}

sub rounded
{
	my ($number) = @_;
	return 0 + sprintf('%.4g', $number);
}

1;
