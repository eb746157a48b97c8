# Report::Page: the HTML page of a run, and the SVG file of one pipeline. Both need nothing from elsewhere and no program.
package Report::Page;

use strict;
use warnings;
use Report::Axis;
use Report::Chart;

my @columns = (
	[ applied => 'Applied', 'whole' ],
	[ conflict => 'Conflicts', 'whole' ],
	[ error => 'Errors', 'whole' ],
	[ dead => 'Dead at the end', 'whole' ],
	[ lost => 'Lost', 'whole' ],
	[ lag => 'Largest lag', 'whole' ],
	[ upsert => 'p95 of an upsert', 'duration' ],
	[ end_to_end => 'p95 end to end', 'duration' ]);

sub escape { return Report::Chart::escape(@_) }

sub style
{
	return Report::Chart::style() . <<'END';
:root{color-scheme:light dark}
body{margin:0;background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1240px;margin:0 auto;padding:16px 20px 40px}
h1{font-size:24px;margin:8px 0 0}
h2{font-size:19px;margin:36px 0 0;overflow-wrap:anywhere}
p{margin:4px 0 12px;color:var(--soft)}
a{color:var(--c0)}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
caption{text-align:left;color:var(--soft);padding:0 0 6px}
th,td{padding:6px 10px;border-bottom:1px solid var(--grid);text-align:right;vertical-align:bottom;font-weight:400}
thead th{color:var(--soft);font-size:13px;line-height:1.3}
th[scope=row],thead th:first-child{text-align:left;font-weight:600;padding-left:0;overflow-wrap:anywhere}
td.bad{color:var(--c1);font-weight:600}
td.unknown{color:var(--soft)}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(420px,100%),1fr));gap:20px 28px}
.chart{width:100%;max-width:760px;height:auto;display:block}
@media print{.chart{break-inside:avoid}}
END
}

# "postgres / posts", and where it was scraped when that tells two apart.
sub name
{
	my ($pipeline) = @_;
	return "$pipeline->{datname} / $pipeline->{pipeline}" . ($pipeline->{server} ne '' ? " ($pipeline->{server})" : '');
}

sub html
{
	my ($run) = @_;
	my $range = Report::Axis::span(@$run{qw(from to)});
	my @pipelines = @{ $run->{pipelines} };
	my $charts = join '', map { section($run, $pipelines[$_], 'p' . ($_ + 1)) } 0 .. $#pipelines;

	return <<"END";
<!DOCTYPE html>
<html lang="en" class="postpipe">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>postpipe, $range</title>
<style>
@{[ style() ]}</style>
</head>
<body>
<svg width="0" height="0" style="position:absolute" aria-hidden="true">@{[ Report::Chart::defs() ]}</svg>
<main>
<h1>postpipe</h1>
<p>$range, from @{[ escape($run->{source}) ]}; a point every $run->{step} s, rates and quantiles over $run->{window} s</p>
@{[ totals(@pipelines) ]}
$charts</main>
</body>
</html>
END
}

sub totals
{
	my (@pipelines) = @_;
	my $head = join '', map { qq(<th scope="col">$_->[1]</th>) } @columns;
	my $rows = join '', map { row($pipelines[$_], 'p' . ($_ + 1)) } 0 .. $#pipelines;
	return <<"END" =~ s/\n\z//r;
<div class="wide"><table>
<caption>Entries that were counted between the first and the last sample of this range; those that met a row with their key are applied, and conflicts as well.</caption>
<thead><tr><th scope="col">Database / pipeline</th>$head</tr></thead>
<tbody>
$rows</tbody>
</table></div>
END
}

sub row
{
	my ($pipeline, $id) = @_;
	my $cells = join '', map { cell($_->[0], $pipeline->{total}{ $_->[0] }, $_->[2]) } @columns;
	return qq(<tr><th scope="row"><a href="#$id"><bdi>@{[ escape(name($pipeline)) ]}</bdi></a></th>$cells</tr>\n);
}

sub cell
{
	my ($name, $value, $form) = @_;
	return qq(<td class="unknown" data-total="$name">not known</td>) unless defined $value;
	my $bad = $name =~ /^(?:error|dead|lost)$/ && $value > 0 ? ' class="bad"' : '';
	return qq(<td$bad data-total="$name">@{[ Report::Axis->can($form)->($value) ]}</td>);
}

sub section
{
	my ($run, $pipeline, $id) = @_;
	my %seen;
	my $streams = join '; ', grep { $_ ne '' && !$seen{$_}++ } @{ $pipeline->{streams} };
	my $charts = join '', map { Report::Chart::svg($_, $run, id => "$id-$_->{id}", of => name($pipeline), width => 560, height => 250) } @{ $pipeline->{charts} };
	return qq(<section aria-labelledby="$id">\n<h2 id="$id"><bdi>@{[ escape(name($pipeline)) ]}</bdi></h2>\n)
	  . qq(<p>stream, group: <bdi>@{[ escape($streams) ]}</bdi></p>\n<div class="charts">\n$charts</div>\n</section>\n);
}

# The charts of one pipeline, two by two; small enough to be read at its own size within a page of text.
sub svg
{
	my ($run) = @_;
	my ($pipeline) = @{ $run->{pipelines} };
	my ($width, $height, $top) = (430, 230, 34);
	my @charts = @{ $pipeline->{charts} };
	my ($all_width, $all_height) = (2 * $width + 20, $top + $height * int((@charts + 1) / 2));
	my $title = escape(sprintf 'Pipeline %s of %s, %s', @$pipeline{qw(pipeline datname)}, Report::Axis::span(@$run{qw(from to)}));
	my $inner = join '', map {
		Report::Chart::svg($charts[$_], $run, id => $charts[$_]{id}, of => name($pipeline), width => $width, height => $height,
			x => $_ % 2 ? $width + 20 : 0, y => $top + $height * int($_ / 2))
	} 0 .. $#charts;

	return <<"END";
<svg xmlns="http://www.w3.org/2000/svg" class="postpipe" width="$all_width" height="$all_height" viewBox="0 0 $all_width $all_height" role="img" aria-labelledby="title">
<title id="title">$title</title>
<style>
@{[ Report::Chart::style() ]}</style>
@{[ Report::Chart::defs() ]}
<rect width="100%" height="100%" style="fill:var(--bg)"/>
<g class="chart"><text class="name" x="4" y="20">$title</text></g>
$inner</svg>
END
}

1;
