# Report::Chart: one chart as SVG: title, unit, legend, axes, lines. What is not known is a gap in a line, and a hatched band
# where the chart as a whole says something at all times (gaps => 1) and knows nothing.
package Report::Chart;

use strict;
use warnings;
use List::Util qw(max min);
use Report::Axis;

# Room around the plot, for what is written there.
my %room = (left => 52, right => 30, top => 52, bottom => 36);

# Estimated, as nobody measures text here; of the font size in style().
my $letter = 6.6;

# Colors are from the set of Okabe and Ito, which people who see few colors tell apart, with their light forms on dark; each
# line has a pattern of its own besides.
sub style
{
	return <<'END';
.postpipe{--bg:#fff;--fg:#1b1f24;--soft:#57606a;--grid:#d8dee4;--axis:#8c959f;--c0:#0072b2;--c1:#d55e00;--c2:#008060;--gap:#8c959f}
@media (prefers-color-scheme:dark){.postpipe{--bg:#14171c;--fg:#e6e8eb;--soft:#a3acb6;--grid:#2d333b;--axis:#6e7781;--c0:#56b4e9;--c1:#f0a030;--c2:#3fd0a4;--gap:#8c959f}}
.chart text{font:12px system-ui,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;fill:var(--soft)}
.chart .title{font-size:14px;font-weight:600;fill:var(--fg)}
.chart .name{fill:var(--fg)}
.chart .grid{stroke:var(--grid);fill:none}
.chart .minor{stroke-dasharray:1 3}
.chart .axis{stroke:var(--axis);fill:none}
.chart .line{fill:none;stroke-width:1.8;stroke-linejoin:round;stroke-linecap:round}
.chart .s0{stroke:var(--c0)}
.chart .s1{stroke:var(--c1);stroke-dasharray:6 4}
.chart .s2{stroke:var(--c2);stroke-dasharray:1 4;stroke-width:2.6}
.chart .dot{stroke-width:4;stroke-dasharray:none}
.postpipe .hatch{stroke:var(--gap);stroke-width:1}
END
}

# The pattern of the bands is in a document once.
sub defs { return '<defs><pattern id="unknown" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><path class="hatch" d="M0 0V6"/></pattern></defs>' }

sub escape
{
	my ($text) = @_;
	my %entity = ('&' => '&amp;', '<' => '&lt;', '>' => '&gt;', '"' => '&quot;', "'" => '&#39;');
	# XML has no way to write these.
	$text =~ s/[^\t\n\r\x20-\x{d7ff}\x{e000}-\x{fffd}\x{10000}-\x{10ffff}]/\x{fffd}/g;
	return $text =~ s/([&<>"'])/$entity{$1}/gr;
}

# svg(chart, run, id => unique in the document, width, height, x, y: within another SVG)
sub svg
{
	my ($chart, $run, %opt) = @_;
	my @values = map { $_->[1] } map { @{ $_->{points} } } @{ $chart->{series} };
	my $plot = {
		%opt,
		run => $run,
		right => $opt{width} - $room{right},
		bottom => $opt{height} - $room{bottom},
		time => Report::Axis::time_axis(@$run{qw(from to)}, int(($opt{width} - $room{left} - $room{right}) / 80)),
		y => $chart->{log} ? Report::Axis::log_axis(@values) : Report::Axis::linear_axis(@values) };
	my $place = defined $opt{x} ? qq( x="$opt{x}" y="$opt{y}") : '';

	return qq(<svg class="chart" id="$opt{id}"$place width="$opt{width}" height="$opt{height}" viewBox="0 0 $opt{width} $opt{height}" role="img" aria-labelledby="$opt{id}-title $opt{id}-desc">\n)
	  . qq(<title id="$opt{id}-title">@{[ escape("$chart->{title}, $opt{of}") ]}</title>\n<desc id="$opt{id}-desc">@{[ escape(in_words($chart)) ]}</desc>\n)
	  . heading($chart, $plot) . ($chart->{gaps} ? bands($chart, $plot) : '') . axes($plot) . lines($chart, $plot)
	  . (@values ? '' : nothing($chart, $plot)) . "</svg>\n";
}

sub x_of { my ($plot, $time) = @_; return coordinate($room{left} + Report::Axis::place($plot->{time}, $time) * ($plot->{right} - $room{left})) }
sub y_of { my ($plot, $value) = @_; return coordinate($plot->{bottom} - Report::Axis::place($plot->{y}, $value) * ($plot->{bottom} - $room{top})) }

# A tenth of a pixel is more than is seen.
sub coordinate { my ($value) = @_; return 0 + sprintf '%.1f', $value }

# For those who do not see it.
sub in_words
{
	my ($chart) = @_;
	my $say = $chart->{log} ? \&Report::Axis::duration : \&Report::Axis::number;
	return "In $chart->{unit}. " . join ' ', map {
		my @values = map { $_->[1] } @{ $_->{points} };
		@values ? sprintf('%s: from %s to %s, at the end %s.', $_->{name}, map { $say->($_) } min(@values), max(@values), $values[-1]) : "$_->{name}: not known."
	} @{ $chart->{series} };
}

sub heading
{
	my ($chart, $plot) = @_;
	my $svg = qq(<text class="title" x="4" y="16">@{[ escape($chart->{title}) ]}</text><text x="$plot->{right}" y="16" text-anchor="end">@{[ escape($chart->{unit}) ]}</text>\n);
	my $x = $room{left};
	for my $index (0 .. $#{ $chart->{series} })
	{
		my $name = $chart->{series}[$index]{name};
		$svg .= qq(<path class="line s$index" d="M$x 34h24"/><text class="name" x="@{[ $x + 30 ]}" y="38">@{[ escape($name) ]}</text>\n);
		$x += 48 + int($letter * length $name);
	}
	return $svg unless $chart->{gaps};
	return $svg . qq(<rect fill="url(#unknown)" x="$x" y="28" width="24" height="12"/><text class="name" x="@{[ $x + 30 ]}" y="38">not known</text>\n);
}

sub axes
{
	my ($plot) = @_;
	my ($left, $right, $top, $bottom) = (@room{qw(left)}, $plot->{right}, $room{top}, $plot->{bottom});
	my $svg = '';
	for my $tick (@{ $plot->{y}{ticks} })
	{
		my $y = y_of($plot, $tick->[0]);
		$svg .= qq(<path class="grid@{[ $tick->[2] ? ' minor' : '' ]}" d="M$left ${y}H$right"/>);
		$svg .= qq(<text class="y" x="@{[ $left - 6 ]}" y="@{[ $y + 4 ]}" text-anchor="end">@{[ escape($tick->[1]) ]}</text>) if $tick->[1] ne '';
		$svg .= "\n";
	}
	for my $tick (@{ $plot->{time}{ticks} })
	{
		my $x = x_of($plot, $tick->[0]);
		$svg .= qq(<path class="axis" d="M$x ${bottom}v4"/><text class="x" x="$x" y="@{[ $bottom + 16 ]}" text-anchor="middle">$tick->[1]</text>);
		$svg .= qq(<text x="$x" y="@{[ $bottom + 30 ]}" text-anchor="middle">$tick->[3]</text>) if $tick->[3];
		$svg .= "\n";
	}
	return $svg . qq(<path class="axis" d="M$left ${top}V${bottom}H$right"/>\n);
}

# Runs of points without a gap: a step more than the step is one.
sub runs
{
	my ($run, $points) = @_;
	my @runs;
	for my $point (@$points)
	{
		if (@runs && $point->[0] - $runs[-1][-1][0] <= 1.5 * $run->{step}) { push @{ $runs[-1] }, $point }
		else { push @runs, [$point] }
	}
	return @runs;
}

# The first series is drawn last, on top; a point that is alone is a dot.
sub lines
{
	my ($chart, $plot) = @_;
	my $svg = '';
	for my $index (reverse 0 .. $#{ $chart->{series} })
	{
		my $series = $chart->{series}[$index];
		my ($path, $dots) = ('', '');
		for my $run (runs($plot->{run}, $series->{points}))
		{
			my @at = map { x_of($plot, $_->[0]) . ' ' . y_of($plot, $_->[1]) } @$run;
			if (@at == 1) { $dots .= "M$at[0]h0" }
			else { $path .= 'M' . join 'L', @at }
		}
		my $title = '<title>' . escape($series->{name}) . '</title>';
		$svg .= qq(<path class="line s$index" data-series="@{[ escape($series->{name}) ]}" d="$path">$title</path>\n) if $path;
		$svg .= qq(<path class="line dot s$index" data-series="@{[ escape($series->{name}) ]}" d="$dots">$title</path>\n) if $dots;
	}
	return $svg;
}

# Where no series of the chart has a point.
sub bands
{
	my ($chart, $plot) = @_;
	my ($from, $to, $step) = @{ $plot->{run} }{qw(from to step)};
	my %known = map { $_->[0] => [ $_->[0] ] } map { @{ $_->{points} } } @{ $chart->{series} };
	my @known = runs($plot->{run}, [ map { $known{$_} } sort { $a <=> $b } keys %known ]);
	my ($at, @bands) = ($from);
	for my $run (@known)
	{
		push @bands, [ $at, $run->[0][0] ];
		$at = $run->[-1][0];
	}
	# The last step may end before the range does.
	push @bands, [ $at, $to ] if $to - $at >= $step || !@known;
	return join '', map {
		my ($left, $right) = map { x_of($plot, $_) } @$_;
		$right > $left ? qq(<rect class="band" fill="url(#unknown)" opacity=".5" x="$left" y="$room{top}" width="@{[ coordinate($right - $left) ]}" height="@{[ $plot->{bottom} - $room{top} ]}"/>\n) : ''
	} @bands;
}

sub nothing
{
	my ($chart, $plot) = @_;
	my ($x, $y) = (int(($room{left} + $plot->{right}) / 2), int(($room{top} + $plot->{bottom}) / 2));
	my $text = $chart->{gaps} ? 'not known' : 'nothing was measured';
	return qq(<text class="name nothing" x="$x" y="$y" text-anchor="middle">$text</text>\n);
}

1;
