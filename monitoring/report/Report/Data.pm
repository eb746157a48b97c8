# Report::Data: what is asked of Prometheus, and what a page needs of it: for each pipeline its charts and its totals.
#
# What is not known stays unknown. A measure that was not scraped is absent here, also where Prometheus would go on with the
# last value for five minutes: `last_over_time(x[w])` ends when Prometheus itself was away, `and x` when the exporter was.
package Report::Data;

use strict;
use warnings;
use List::Util qw(max min);
use POSIX qw(ceil);
use Report::Axis;

my @identity = qw(job instance datname pipeline);
my $by = join ', ', @identity;

# What is there of each pipeline at all times, whatever Redis does.
my $always = 'postpipe_workers';

# In a chart, more points than pixels would only make it larger.
my $most_points = 300;

# A chart is one expression; %s(name{labels}) are filled in by promql(). Series are told apart by a label or by a name.
my @charts = (
	{ id => 'throughput', title => 'Throughput', unit => 'entries per second', gaps => 1, series => [ map { [ $_, rate("post_persist_total", qq(status="$_")) ] } qw(ok error conflict) ] },
	{ id => 'backlog', title => 'Lag and pending', unit => 'entries', gaps => 1, series => [ [ lag => gauge('stream_consumer_lag') ], [ pending => gauge('stream_pending_size') ] ] },
	{ id => 'upsert', title => 'Latency of an upsert', unit => 'seconds, logarithmic', log => 1, series => quantiles('post_persist_latency_seconds_bucket', 'operation="upsert"') },
	{ id => 'end_to_end', title => 'Latency end to end', unit => 'seconds, logarithmic', log => 1, series => quantiles('postpipe_end_to_end_seconds_bucket', '') });

# The expressions have <w> for the window of time and <f> for the filters, which only a run knows.
sub rate { my ($name, $labels) = @_; return "sum by ($by) (rate($name\{$labels<f>}[<w>]) and $name\{$labels<f>})" }
sub gauge { my ($name) = @_; return "sum by ($by) (last_over_time($name\{<f>}[<w>]) and $name\{<f>})" }

sub quantiles
{
	my ($name, $labels) = @_;
	return [ map { [ 'p' . 100 * $_, "histogram_quantile($_, sum by ($by, le) (rate($name\{$labels<f>}[<w>]) and $name\{$labels<f>}))" ] } 0.5, 0.95, 0.99 ];
}

# collect(prometheus, from, to, datname, pipeline): the last two are regular expressions as in Prometheus, or undef for all.
sub collect
{
	my ($prometheus, %option) = @_;
	my $run = { %option, prometheus => $prometheus, filter => filter(%option), source => $prometheus->name };

	$run->{step} = max(1, ceil(($run->{to} - $run->{from}) / $most_points));
	$run->{pipelines} = pipelines($run);
	nothing($run) unless @{ $run->{pipelines} };
	$run->{interval} = interval($run);
	$run->{step} = max($run->{step}, ceil($run->{interval}));
	# A rate takes two samples; with four, one that is late makes no gap. Nothing between two points may be left out.
	$run->{window} = max($run->{step}, ceil(4 * $run->{interval}));
	add_chart($run, $_) for @charts;
	add_totals($run);
	return $run;
}

sub filter
{
	my (%option) = @_;
	return join '', map { defined $option{$_} ? qq(,$_=~) . quote($option{$_}) : () } qw(datname pipeline);
}

sub quote
{
	my ($text) = @_;
	return '"' . $text =~ s/(["\\])/\\$1/gr =~ s/\n/\\n/gr . '"';
}

sub promql
{
	my ($run, $expression) = @_;
	my $window = $run->{window} // 0;
	return $expression =~ s/\{<f>/{@{[ $run->{filter} =~ s{\A,}{}r ]}/gr =~ s/<f>/$run->{filter}/gr =~ s/<w>/${window}s/gr;
}

sub ask
{
	my ($run, $expression) = @_;
	return $run->{prometheus}->range(promql($run, $expression), @$run{qw(from to step)});
}

sub key { my ($metric) = @_; return join "\0", map { $metric->{$_} // '' } @identity }

# The pipelines that had samples in the range, each with the streams and groups that it had, and when it was known first.
sub pipelines
{
	my ($run) = @_;
	my %found;
	for my $series (ask($run, "group by ($by, stream, group) ($always\{<f>})"))
	{
		my $metric = $series->{metric};
		my $pipeline = $found{ key($metric) } //= { (map { $_ => $metric->{$_} // '' } @identity), key => key($metric), charts => [], total => {} };
		my @times = map { $_->[0] } @{ $series->{points} };
		$pipeline->{from} = min(@times, $pipeline->{from} // ());
		$pipeline->{to} = max(@times, $pipeline->{to} // ());
		push @{ $pipeline->{streams} }, join ', ', grep { defined } @$metric{qw(stream group)};
	}
	my @all = sort { $a->{datname} cmp $b->{datname} || $a->{pipeline} cmp $b->{pipeline} || $a->{key} cmp $b->{key} } values %found;
	# Where Prometheus comes by its numbers is worth a word only when it has several ways.
	my %servers = map { ("$_->{job} $_->{instance}" => 1) } @all;
	$_->{server} = keys %servers > 1 ? "$_->{job} $_->{instance}" : '' for @all;
	return \@all;
}

# Seconds between two scrapes: the one in the middle of those that were seen last.
sub interval
{
	my ($run) = @_;
	my $last = max map { $_->{to} } @{ $run->{pipelines} };
	my @between;
	for my $series ($run->{prometheus}->at(promql($run, "$always\{<f>}[10m]"), $last))
	{
		my @times = map { $_->[0] } @{ $series->{points} };
		push @between, map { $times[$_] - $times[ $_ - 1 ] } 1 .. $#times;
	}
	@between = sort { $a <=> $b } @between;
	return @between ? $between[ @between / 2 ] : 15;
}

sub add_chart
{
	my ($run, $chart) = @_;
	my %points;
	for my $index (0 .. $#{ $chart->{series} })
	{
		$points{ key($_->{metric}) }[$index] = $_->{points} for ask($run, $chart->{series}[$index][1]);
	}
	for my $pipeline (@{ $run->{pipelines} })
	{
		my $lines = $points{ $pipeline->{key} } // [];
		push @{ $pipeline->{charts} }, { %$chart, series => [ map { { name => $chart->{series}[$_][0], points => $lines->[$_] // [] } } 0 .. $#{ $chart->{series} } ] };
	}
	return;
}

# The totals of the range. What is not known is not there.
sub add_totals
{
	my ($run) = @_;
	my %counter = (ok => 'post_persist_total{status="ok"<f>}', conflict => 'post_persist_total{status="conflict"<f>}',
		error => 'post_persist_total{status="error"<f>}', lost => 'postpipe_entries_lost_total{<f>}');
	my %gauge = (dead => 'postpipe_dead_letters{state="dead"<f>}', lag => 'stream_consumer_lag{<f>}');
	my $range = $run->{to} - $run->{from};

	for my $name (sort keys %counter) { each_total($run, $name, [ ask($run, "sum by ($by) ($counter{$name})") ], \&increase) }
	each_total($run, dead => [ ask($run, "sum by ($by) ($gauge{dead})") ], sub { $_[0][-1][1] });
	each_total($run, lag => [ ask($run, "sum by ($by) (max_over_time($gauge{lag}\[$run->{step}s]))") ], sub { max map { $_->[1] } @{ $_[0] } });
	for my $operation ([ upsert => 'post_persist_latency_seconds_bucket{operation="upsert"<f>}' ], [ end_to_end => 'postpipe_end_to_end_seconds_bucket{<f>}' ])
	{
		my $p95 = "histogram_quantile(0.95, sum by ($by, le) (increase($operation->[1]\[${range}s])))";
		each_total($run, $operation->[0], [ $run->{prometheus}->at(promql($run, $p95), $run->{to}) ], sub { $_[0][-1][1] });
	}
	for my $total (map { $_->{total} } @{ $run->{pipelines} })
	{
		$total->{applied} = $total->{ok} + $total->{conflict} if defined $total->{ok} && defined $total->{conflict};
	}
	return;
}

sub each_total
{
	my ($run, $name, $series, $total) = @_;
	my %points = map { (key($_->{metric}) => $_->{points}) } @$series;
	for my $pipeline (@{ $run->{pipelines} })
	{
		my $known = $points{ $pipeline->{key} };
		$pipeline->{total}{$name} = scalar $total->($known) if $known && @$known;
	}
	return;
}

# How much a counter grew. Prometheus's increase() would extrapolate to a number that never was; a counter that falls began
# anew with 0. What it had at the first sample is from before.
sub increase
{
	my ($points) = @_;
	return if @$points < 2;
	my $sum = 0;
	for my $index (1 .. $#$points)
	{
		my ($before, $now) = map { $_->[1] } @$points[ $index - 1, $index ];
		$sum += $now < $before ? $now : $now - $before;
	}
	return $sum;
}

# Says why there is nothing: a filter that fits nothing is another mistake than a scrape that does not work.
sub nothing
{
	my ($run) = @_;
	my $message = sprintf "Prometheus at %s has no sample of postpipe from %s to %s", $run->{source}, map { Report::Axis::utc($_) } @$run{qw(from to)};
	if ($run->{filter} ne '')
	{
		my $filter = $run->{filter} =~ s/\A,//r;
		local $run->{filter} = '';
		my @others = map { "  DATNAME=$_->{datname} PIPELINE=$_->{pipeline}\n" } @{ pipelines($run) };
		die "$message with $filter\nCheck DATNAME and PIPELINE; in this range there are:\n" . join('', @others) if @others;
	}
	die "$message\nCheck LAST, or START and END; on Prometheus's page, that up{job=\"postpipe\"} is 1 and that $always has a value.\n";
}

1;
