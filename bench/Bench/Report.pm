# Bench::Report: what sections found, as a table and as JSON. Ratios come first.
package Bench::Report;

use strict;
use warnings;
use JSON::PP;

my $width = 62;

# One section, when it has ended.
sub section
{
	my ($name, $result) = @_;
	my $text = "\n$name: $result->{title}\n";

	$text .= figures($result->{figures}) if @{ $result->{figures} };
	if (@{ $result->{contenders} })
	{
		$text .= sprintf "\n%-${width}s %10s %8s %8s  %s\n", 'contender', 'entries/s', 'CPU s', 'MB', 'rounds';
		$text .= contender($_) for @{ $result->{contenders} };
	}
	$text .= "- $_\n" for @{ $result->{notes} };
	return $text;
}

# The targets of all sections, at the end.
sub targets
{
	my ($results) = @_;
	my @figures = grep { $_->{target} } map { @{ $results->{$_}{figures} } } sort keys %$results;
	return @figures ? "\nTargets\n" . figures(\@figures) : '';
}

sub figures
{
	my ($figures) = @_;
	my $text = sprintf "%-${width}s %10s %-6s  %-20s %s\n", '', 'median', '', 'target', 'rounds';

	for my $figure (@$figures)
	{
		my $goal = $figure->{target} ? $figure->{target} . ($figure->{reached} ? '' : ' MISSED') : '';
		my $line = sprintf "%-${width}s %10s %-6s  %-20s %s", $figure->{title}, number($figure->{median}), $figure->{unit}, $goal,
		  join(' ', map { number($_) } @{ $figure->{rounds} });
		$text .= $line =~ s/\s+\z//r . "\n";
	}
	return $text;
}

sub contender
{
	my ($row) = @_;
	my $cpu = defined $row->{cpu_seconds} ? sprintf('%.2f', $row->{cpu_seconds}) : '';
	my $memory = defined $row->{memory_kb} ? sprintf('%.1f', $row->{memory_kb} / 1024) : '';
	return sprintf "%-${width}s %10.0f %8s %8s  %s\n", $row->{title}, $row->{median}, $cpu, $memory,
	  join(' ', map { sprintf '%.0f', $_ } @{ $row->{rounds} });
}

# Two digits after the point, more where that would say nothing.
sub number
{
	my ($number) = @_;
	return $number == 0 || abs($number) >= 0.1 ? sprintf('%.2f', $number) =~ s/\.00\z//r : sprintf('%.2g', $number);
}

# Ratios and other figures of all sections first; the sections with everything follow.
sub json
{
	my ($results, $settings, $versions, $failed) = @_;
	my %first = (figures => 0, sections => 1);
	my %report = (settings => $settings, versions => $versions, failed => $failed, sections => {});
	my $coder = JSON::PP->new->pretty->canonical->indent_length(2)->sort_by(
		sub { ($first{$JSON::PP::a} // 9) <=> ($first{$JSON::PP::b} // 9) || $JSON::PP::a cmp $JSON::PP::b });

	for my $section (keys %$results)
	{
		my %result = %{ $results->{$section} };
		for my $figure (@{ delete $result{figures} })
		{
			my %copy = %$figure;
			$copy{reached} = $copy{reached} ? JSON::PP::true : JSON::PP::false if exists $copy{reached};
			$report{figures}{$section}{ delete $copy{name} } = \%copy;
		}
		$report{sections}{$section} = \%result;
	}
	return $coder->encode(\%report);
}

1;
