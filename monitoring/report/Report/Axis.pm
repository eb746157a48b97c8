# Report::Axis: where the marks of an axis are, what they are called, and how numbers and times are written.
#
# An axis is { min, max, ticks => [ [value, text, level], ... ] }; level 1 is a line without text. place() maps a value onto
# 0 ... 1.
package Report::Axis;

use strict;
use warnings;
use List::Util qw(first max min);
use POSIX qw(ceil floor strftime);

# Seconds between two marks of a time axis, such that marks fall on what a clock shows.
my @time_steps = (1, 2, 5, 10, 15, 30, map({ 60 * $_ } 1, 2, 5, 10, 15, 30), map({ 3600 * $_ } 1, 2, 3, 6, 12), map({ 86400 * $_ } 1, 2, 7, 14, 28, 91, 182, 364));

sub utc { my ($time) = @_; return strftime('%Y-%m-%dT%H:%M:%SZ', gmtime $time) }

# For people: 2026-01-31 12:00:00 to 12:15:00 UTC.
sub span
{
	my ($from, $to) = map { strftime('%Y-%m-%d %H:%M:%S', gmtime $_) } @_;
	my ($day) = split / /, $from;
	return "$from to " . $to =~ s/\A$day //r . ' UTC';
}

# At most `most` marks. The date is below the first mark, and below that of each midnight.
sub time_axis
{
	my ($from, $to, $most) = @_;
	my $step = (first { ($to - $from) / $_ <= $most } @time_steps) // $time_steps[-1];
	my $form = $step < 60 ? '%H:%M:%S' : '%H:%M';
	my ($day, @ticks) = ('');
	for (my $at = ceil($from / $step) * $step; $at <= $to; $at += $step)
	{
		my $date = strftime('%b %e', gmtime $at) =~ s/  / /r;
		push @ticks, [ $at, $step < 86400 ? strftime($form, gmtime $at) : $date, 0, $step < 86400 && $date ne $day ? $date : '' ];
		$day = $date;
	}
	return { min => $from, max => $to, ticks => \@ticks };
}

# From 0 on, with 4 to 6 marks at 1, 2 or 5 times a power of ten.
sub linear_axis
{
	my (@values) = @_;
	my $top = max(@values, 0) || 1;
	my $power = 10**floor(log($top / 5) / log(10) + 1e-9);
	my $step = $power * first { $top / ($power * $_) <= 5 } 1, 2, 5, 10;
	my $last = ceil($top / $step - 1e-9);
	return { min => 0, max => $last * $step, ticks => [ map { [ $_ * $step, number($_ * $step), 0 ] } 0 .. $last ] };
}

# Whole powers of ten, at least one; with few of them, 2 and 5 times each has a mark as well.
sub log_axis
{
	my (@values) = grep { $_ > 0 } @_;
	@values = (0.001, 1) unless @values;
	my ($low, $high) = (floor(log(min @values) / log(10) + 1e-9), ceil(log(max @values) / log(10) - 1e-9));
	$high = $low + 1 if $high <= $low;
	my @ticks;
	for my $power ($low .. $high)
	{
		my @times = $power == $high ? (1) : (1, 2, 5);
		push @ticks, map { [ $_ * 10**$power, $_ == 1 || $high - $low <= 2 ? duration($_ * 10**$power) : '', $_ == 1 ? 0 : 1 ] } @times;
	}
	return { min => 10**$low, max => 10**$high, log => 1, ticks => \@ticks };
}

# What is below a logarithmic axis, which has no 0, is at its foot.
sub place
{
	my ($axis, $value) = @_;
	return ($value - $axis->{min}) / ($axis->{max} - $axis->{min}) unless $axis->{log};
	return log(max($value, $axis->{min}) / $axis->{min}) / log($axis->{max} / $axis->{min});
}

# Short, for a mark: 1.5k.
sub number
{
	my ($value) = @_;
	for ([ 1e9, 'G' ], [ 1e6, 'M' ], [ 1e3, 'k' ])
	{
		return short($value / $_->[0]) . $_->[1] if abs($value) >= $_->[0] * (1 - 1e-9);
	}
	return short($value);
}

# Seconds in a unit that fits.
sub duration
{
	my ($seconds) = @_;
	for ([ 1, 's' ], [ 1e-3, 'ms' ])
	{
		return short($seconds / $_->[0]) . " $_->[1]" if $seconds >= $_->[0] * (1 - 1e-9);
	}
	return short($seconds / 1e-6) . " \x{b5}s";
}

sub short { my ($value) = @_; return 0 + sprintf '%.3g', $value }

# Exact, for a table: 1,234,567.
sub whole
{
	my ($value) = @_;
	my $text = sprintf '%.0f', $value;
	1 while $text =~ s/^(-?\d+)(\d{3})/$1,$2/;
	return $text;
}

1;
