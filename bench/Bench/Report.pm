# Bench::Report: what is said about the rounds. Ratios come first: machines are noisy, ratios of one round hold.
package Bench::Report;

use strict;
use warnings;
use JSON::PP;

# What the project promises (see README.md): the ratio, and on which side of it the measured one has to be.
my @targets = (
	[ 'postpipe_to_copy', 'throughput, postpipe / COPY', 'at least', 0.8 ],
	[ 'postpipe_to_client', 'throughput, postpipe / C client', 'at least', 1.3 ],
	[ 'memory_end_to_begin', 'memory of the worker, end / begin', 'at most', 1.1 ],
	[ 'latency_p50_ms', 'latency of one entry, p50 in ms', 'at most', 5 ],
	[ 'latency_to_insert', 'latency p50, XADD to row / INSERT', undef, undef ]);

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

# From the list of rounds, as measure collects them, to what is printed.
sub summarize
{
	my ($rounds, $option, $versions) = @_;
	my $each = sub { my ($get) = @_; return [ map { rounded($get->($_)) } @$rounds ] };
	my %ratios = (
		postpipe_to_copy => $each->(sub { $_[0]{copy}{seconds} / $_[0]{postpipe}{seconds} }),
		postpipe_to_client => $each->(sub { $_[0]{client}{seconds} / $_[0]{postpipe}{seconds} }),
		memory_end_to_begin => $each->(sub { my $kb = $_[0]{postpipe}{memory_kb}; $kb->{end} / $kb->{begin} }),
		latency_p50_ms => $each->(sub { $_[0]{latency}{stream}{p50} }),
		latency_to_insert => $each->(sub { $_[0]{latency}{stream}{p50} / $_[0]{latency}{insert}{p50} }));

	my %report = (settings => { map { $_ => $option->{$_} } qw(entries rounds latency seed batch) }, versions => $versions);
	for my $target (@targets)
	{
		my ($name, undef, $side, $bound) = @$target;
		my $median = median(@{ $ratios{$name} });

		$report{ratios}{$name} = { median => $median, rounds => $ratios{$name} };
		next unless defined $side;
		$report{ratios}{$name}{target} = "$side $bound";
		$report{ratios}{$name}{reached} =
		  ($side eq 'at least' ? $median >= $bound : $median <= $bound) ? JSON::PP::true : JSON::PP::false;
	}

	for my $name (qw(postpipe copy client))
	{
		my $rates = $each->(sub { $option->{entries} / $_[0]{$name}{seconds} });
		$report{throughput}{$name} = {
			entries_per_second => median(@$rates), rounds => $rates,
			cpu_seconds => median(@{ $each->(sub { $_[0]{$name}{cpu_seconds} }) })
		};
	}
	for my $name (qw(stream insert))
	{
		for my $share (qw(p50 p99))
		{
			$report{latency_ms}{$name}{$share} = median(@{ $each->(sub { $_[0]{latency}{$name}{$share} }) });
		}
	}
	for my $when (qw(begin middle end peak))
	{
		$report{memory_kb}{$when} = median(@{ $each->(sub { $_[0]{postpipe}{memory_kb}{$when} }) });
	}
	return \%report;
}

sub table
{
	my ($report) = @_;
	my ($settings, $versions) = @$report{qw(settings versions)};
	my $text = sprintf "\n%-36s %8s  %-15s %s\n", 'ratio', 'median', 'target', 'rounds';

	for my $target (@targets)
	{
		my ($name, $title) = @$target;
		my $ratio = $report->{ratios}{$name};
		my $goal = $ratio->{target} ? $ratio->{target} . ($ratio->{reached} ? '' : ' MISSED') : '';
		$text .= sprintf "%-36s %8.2f  %-15s %s\n", $title, $ratio->{median}, $goal,
		  join(' ', map { sprintf '%.2f', $_ } @{ $ratio->{rounds} });
	}

	$text .= sprintf "\n%-36s %8s  %-15s %s\n", 'throughput, entries/s', 'median', 'CPU seconds', 'rounds';
	my %title = (postpipe => 'postpipe, one worker', copy => 'COPY FROM a file on the server', client => 'C client and its backend');
	for my $name (qw(postpipe copy client))
	{
		my $row = $report->{throughput}{$name};
		$text .= sprintf "%-36s %8.0f  %-15.1f %s\n", $title{$name}, @$row{qw(entries_per_second cpu_seconds)},
		  join(' ', map { sprintf '%.0f', $_ } @{ $row->{rounds} });
	}

	$text .= sprintf "\n%-36s %8s %8s\n", 'latency, ms', 'p50', 'p99';
	$text .= sprintf "%-36s %8.2f %8.2f\n", 'XADD to visible row', @{ $report->{latency_ms}{stream} }{qw(p50 p99)};
	$text .= sprintf "%-36s %8.2f %8.2f\n", 'INSERT and commit of one row', @{ $report->{latency_ms}{insert} }{qw(p50 p99)};

	$text .= sprintf "\n%-36s %8s %8s %8s %8s\n", 'private memory of the worker, MB', qw(begin middle end peak);
	$text .= sprintf "%-36s %8.1f %8.1f %8.1f %8.1f\n", '', map { $report->{memory_kb}{$_} / 1024 } qw(begin middle end peak);

	$text .= "\n$settings->{entries} flat posts, $settings->{rounds} rounds; PostgreSQL $versions->{postgresql},"
	  . " Redis $versions->{redis}, postpipe $versions->{postpipe}\n";
	return $text;
}

# Ratios first, here too: the rest follows in the order of the alphabet.
sub json
{
	my ($report) = @_;
	my %first = (ratios => 0, throughput => 1, latency_ms => 2, memory_kb => 3);
	my $coder = JSON::PP->new->pretty->indent_length(2)->sort_by(
		sub { ($first{$JSON::PP::a} // 9) <=> ($first{$JSON::PP::b} // 9) || $JSON::PP::a cmp $JSON::PP::b });
	return $coder->encode($report);
}

# For the message when a wait was in vain: what the extension says about itself.
sub state
{
	my ($sql) = @_;
	return $sql->ask("SELECT 'postpipe_stats: ' || coalesce(string_agg(s::text, E'\\n'), 'empty') FROM postpipe_stats s") . "\n";
}

1;
