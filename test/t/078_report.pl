# `make -C monitoring report`: the page has what Prometheus has, a browser shows it, names of others do no harm, and what goes
# wrong is said. TAP, because it takes a server, a Redis, the exporter, Prometheus and a browser.

use strict;
use warnings;
use Compress::Zlib;
use FindBin;
use HTTP::Tiny;
use IPC::Run ();
use JSON::PP;
use PostgreSQL::Test::Utils;
use Postpipe::Test;
use Postpipe::Test::Prometheus;

need_programs(qw(prometheus prometheus-postgres-exporter chromium));

my $tmp = PostgreSQL::Test::Utils::tempdir_short();
my $hostile = q(s<script>document.title='owned'</script>&"'<);

# --- Traffic: one pipeline with entries that are good, repeated and bad, another one whose stream and group have names that are HTML.
my $redis = Postpipe::Test::Redis->new(keep => 1);
my $node = pp_node('report', redis => $redis);
my $start = int time;
sql('CREATE EXTENSION postpipe');
sql('CREATE ROLE prometheus LOGIN IN ROLE pg_monitor');
sql(q(SELECT postpipe_drop_pipeline('posts')));
sql(q(CREATE TABLE t (id int PRIMARY KEY, v text CHECK (v <> 'bad'))));
sql(q(SELECT postpipe_create_pipeline('m', 'stream:m', target => 't', options => '{"max_retries": 0}')));
sql("SELECT postpipe_create_pipeline('n', \$n\$stream:$hostile\$n\$, target => 't', consumer_group => \$n\$<b>&\$n\$)");
my $exporter = postgres_exporter($node, 'postgres');
my $prometheus = Postpipe::Test::Prometheus->new(targets => { 'localhost:9187' => $exporter->address }, interval => '2s');
wait_for { @{ $prometheus->query('stream_consumer_lag') } == 2 } 'Prometheus has both pipelines';

my $id = 0;
wait_for
{
	add('stream:m', $_ % 7 ? ++$id : $id) for 1 .. 50;
	@{ $prometheus->query('count_over_time((histogram_quantile(0.95, rate(postpipe_end_to_end_seconds_bucket[8s])) > 0)[1m:2s]) > 8') } == 1;
}
'Prometheus has traffic';
add('stream:m', 'bad') for 1 .. 3;
wait_for { @{ $prometheus->query('post_persist_total{pipeline="m", status="error"} == 3') } } '... and errors';

# --- Redis is away for a while, in which lag and pending are not known.
$redis->stop;
samples('postpipe_workers{pipeline="m"} unless on (datname, pipeline) stream_consumer_lag', 'Redis is away for some samples');
$redis->start;
samples('stream_consumer_lag{pipeline="m"}', '... and is back');
add('stream:m', ++$id);
wait_sql($node, 'postgres', q(SELECT lag + pending FROM postpipe_audit WHERE pipeline = 'm'), '0', 'all is applied');
my $applied = sql(q(SELECT applied FROM postpipe_audit WHERE pipeline = 'm'));
my $end = int samples(qq(sum by (pipeline) (post_persist_total{pipeline="m", status=~"ok|conflict"}) == $applied), '... and counted');
my @range = (PROMETHEUS => $prometheus->url, START => $start, END => $end);

# --- The page.
my ($status, $said, $error) = report(@range, OUT => "$tmp/report.html");
is("$status $error", '0 ', 'the report is made');
like($said, qr{^\Q$tmp\E/report\.html: 2 pipelines of }, '... and says so');
my $html = slurp_file("$tmp/report.html");
unlike($html, qr{<script|(?:src|href)="(?!#)|url\((?!#)|\@import}i, 'it has no program and needs nothing from elsewhere');
my $dom = browse("$tmp/report.html", '--dump-dom');
like($dom, qr{<title>postpipe, }, 'a browser reads it, and no name became a program');
like($html, qr{\Qs&lt;script&gt;document.title=&#39;owned&#39;&lt;/script&gt;&amp;&quot;&#39;&lt;\E}, 'the name of a stream that is HTML is text');
like($html, qr{, \Q&lt;b&gt;&amp;\E</bdi>}, '... that of a group as well');

my ($step, $window) = $dom =~ /a point every (\d+) s, rates and quantiles over (\d+) s/ or die 'the page does not say its step';
my %chart = map { (/id="([^"]+)"/)[0] => $_ } $dom =~ m{<svg class="chart".*?</svg>}gs;
is(join(' ', sort keys %chart), join(' ', sort map { my $p = $_; map { "p$p-$_" } qw(throughput backlog upsert end_to_end) } 1, 2), 'four charts for each pipeline');
is(scalar(grep { m{^<svg [^>]*role="img" aria-labelledby="(\S+) (\S+)".*<title id="\1">[^<]+</title>\s*<desc id="\2">[^<]+</desc>}s } values %chart), 8, '... with words for who does not see them');

# --- Each point is where Prometheus has it, by the numbers at the axes.
is_chart('p1-throughput', $_, qq(rate(post_persist_total{pipeline="m", status="$_"}[${window}s]))) for qw(ok conflict error);
is_chart('p1-backlog', lag => 'stream_consumer_lag{pipeline="m"}');
is_chart('p1-backlog', pending => 'stream_pending_size{pipeline="m"}');
for my $q (50, 95, 99)
{
	is_chart('p1-upsert', "p$q", quantile($q, 'post_persist_latency_seconds_bucket{pipeline="m", operation="upsert"}'));
	is_chart('p1-end_to_end', "p$q", quantile($q, 'postpipe_end_to_end_seconds_bucket{pipeline="m"}'));
}
cmp_ok(scalar(() = $chart{'p1-backlog'} =~ /class="band"/g), '>=', 2, 'what is not known is a gap, at the beginning and while Redis was away');
like($chart{'p2-upsert'}, qr/nothing was measured/, 'a pipeline without traffic has no latency');

# --- The totals: what the counters gained from their first sample on.
my %total = $dom =~ m{<tr><th scope="row"><a href="#p1">(.*?)</tr>}s ? $1 =~ m{data-total="(\w+)">([^<]*)<}g : ();
my %gain = map { ($_ => gain($_)) } qw(ok conflict error);
tr{,}{}d for values %total;
is("$total{applied} $total{conflict} $total{error} $total{dead} $total{lost}", join(' ', $gain{ok} + $gain{conflict}, @gain{qw(conflict error)}, 3, 0), 'the totals');
like("$total{upsert} $total{end_to_end}", qr/\A[\d.]+ \S*s [\d.]+ \S*s\z/, '... and quantiles of the whole');

# --- What a browser paints: in both schemes the colors of the lines, on the color of the page.
for my $scheme ([ light => 'ffffff', '0072b2' ], [ dark => '14171c', '56b4e9' ])
{
	my ($name, $background, $line) = @$scheme;
	browse("$tmp/report.html", "--screenshot=$tmp/$name.png", '--window-size=1000,700', '--hide-scrollbars', '--blink-settings=preferredColorScheme=' . ($name eq 'dark' ? 0 : 1));
	my %colors = colors("$tmp/$name.png");
	cmp_ok($colors{$background} // 0, '>', 200_000, "$name: the page has its color");
	cmp_ok($colors{$line} // 0, '>', 50, '... and lines are painted');
}

# --- The picture is of one pipeline.
($status, $said, $error) = report(@range, OUT => "$tmp/report.svg");
like("$status $error", qr/^2 report: an SVG file is of one pipeline, and there are 2: choose one by DATNAME and PIPELINE\n  DATNAME=postgres PIPELINE=m\n/, 'a picture of two pipelines is refused');
($status, $said, $error) = report(@range, OUT => "$tmp/report.svg", PIPELINE => 'm');
is("$status $error", '0 ', 'one of one pipeline is made');
unlike(browse("$tmp/report.svg", '--dump-dom'), qr/parsererror/, '... which a browser reads');

# --- What goes wrong.
fails('no Prometheus', qr/could not reach Prometheus at http:\/\/127\.0\.0\.1:1: .*refused\nCheck that it runs/, PROMETHEUS => 'http://x:secret@127.0.0.1:1');
# With its "?" it is this page that answers, whatever is asked for; at other paths an old exporter has a page and a newer one none.
fails('not Prometheus', qr/does not answer as Prometheus does: 200 .*\nCheck PROMETHEUS/, PROMETHEUS => 'http://' . $exporter->address . '/metrics?');
fails('a range without data', qr/has no sample of postpipe from 2020-01-01T00:00:00Z to 2020-01-01T01:00:00Z\nCheck LAST, or START and END/, @range, START => '2020-01-01', END => '2020-01-01T02:00+01:00');
fails('a filter that fits nothing', qr/with pipeline=~"nobody"\nCheck DATNAME and PIPELINE; in this range there are:\n  DATNAME=postgres PIPELINE=m\n/, @range, PIPELINE => 'nobody');
fails('a filter that is none', qr/refused a query: .*\nThe query was: .*\nCheck DATNAME and PIPELINE, which are regular expressions/, @range, PIPELINE => '(');
fails('a wrong duration', qr/LAST=1 hour is no duration such as/, LAST => '1 hour');
fails('two beginnings', qr/START and LAST are two ways/, @range, LAST => '1h');
done_testing();

sub add { my ($stream, $what) = @_; $redis->xadd($stream, id => $what eq 'bad' ? 0 : $what, v => $what); return }

# Waits until five scrapes had what is asked for; returns the time of the last one.
sub samples
{
	my ($promql, $what) = @_;
	my %at;
	wait_for
	{
		$at{ $_->{value}[1] } = 1 for @{ $prometheus->query(qq(timestamp(postpipe_workers{pipeline="m"}) and on (pipeline) ($promql))) };
		keys %at >= 5;
	}
	$what;
	return (sort { $b <=> $a } keys %at)[0];
}

# The exit status, what is said, and what is complained about without make's own lines.
sub report
{
	my (%variable) = @_;
	my ($stdout, $stderr);
	IPC::Run::run([ 'make', '-s', '-C', monitoring_dir(), 'report', map { "$_=$variable{$_}" } sort keys %variable ], '>', \$stdout, '2>', \$stderr);
	my $status = $? >> 8;
	return ($status, $stdout =~ s/^make.*\n//mgr, $stderr =~ s/^make.*\n//mgr);
}

sub fails
{
	my ($what, $expected, @variables) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my ($status, undef, $error) = report(@variables, OUT => "$tmp/never.html");
	like($error, $expected, $what);
	ok($status != 0 && !glob("$tmp/never*") && $error !~ /secret/, '... which makes no file');
	return;
}

sub quantile { my ($percent, $buckets) = @_; return 'histogram_quantile(' . $percent / 100 . ", rate($buckets\[${window}s]))" }

# What the browser prints; it has no folder of its own but here.
sub browse
{
	my ($file, @how) = @_;
	my ($stdout, $stderr);
	local @ENV{qw(HOME XDG_CONFIG_HOME XDG_CACHE_HOME)} = ($tmp) x 3;
	my $ok = IPC::Run::run([ qw(chromium --headless --no-sandbox --disable-gpu --disable-dev-shm-usage --enable-logging=stderr), "--user-data-dir=$tmp/browser", @how, "file://$file" ],
		'>', \$stdout, '2>', \$stderr, IPC::Run::timeout(180));
	ok($ok && $stderr !~ /CONSOLE/, "the browser opens the page without an error: @how") or diag($stderr);
	return $stdout;
}

# Value and time of a mark: "1.5k", "20 ms"; "10:30:00" is the one after the start.
sub marked
{
	my ($text) = @_;
	my %unit = (k => 1e3, M => 1e6, s => 1, ms => 1e-3, "\x{b5}s" => 1e-6, "\xc2\xb5s" => 1e-6);
	if (my ($hour, $minute, $second) = $text =~ /\A(\d\d):(\d\d)(?::(\d\d))?\z/)
	{
		my $midnight = $start - $start % 86400;
		my $at = $midnight + $hour * 3600 + $minute * 60 + ($second // 0);
		return $at < $start ? $at + 86400 : $at;
	}
	my ($number, $unit) = $text =~ /\A([\d.]+) ?(\S*)\z/ or die "no mark: $text";
	return $number * ($unit eq '' ? 1 : $unit{$unit} // die "no unit: $text");
}

# From a coordinate to a value, by two marks of the axis.
sub scale
{
	my ($svg, $axis, $log) = @_;
	my @marks = map { [ $_->[0], $log ? log marked($_->[1]) : marked($_->[1]) ] } marks($svg, $axis);
	my ($first, $last) = @marks[ 0, -1 ];
	my $slope = ($last->[1] - $first->[1]) / ($last->[0] - $first->[0]);
	return (sub { my $value = $first->[1] + ($_[0] - $first->[0]) * $slope; $log ? exp $value : $value }, abs $slope);
}

# The text at a horizontal mark is four pixels below its line.
sub marks
{
	my ($svg, $axis) = @_;
	my @marks;
	while ($svg =~ m{<text class="$axis" x="([\d.]+)" y="([\d.]+)"[^>]*>([^<]+)</text>}g)
	{
		push @marks, [ $axis eq 'x' ? $1 : $2 - 4, $3 ];
	}
	return @marks;
}

# The line has a point at each step at which Prometheus has a value, at its place, and no other one. A rate that Prometheus
# still tells when the samples have ended is none here.
sub is_chart
{
	my ($id, $name, $promql) = @_;
	my $log = $id =~ /upsert|end_to_end/;
	my $svg = $chart{$id};
	my ($time, $value, $slope) = ((scale($svg, 'x'))[0], scale($svg, 'y', $log));
	my %drawn;
	for my $d ($svg =~ m{data-series="$name" d="([^"]*)"}g)
	{
		$drawn{ sprintf '%.0f', $time->($1) } = $value->($2) while $d =~ /([\d.]+) ([\d.]+)/g;
	}
	my ($expected, @wrong) = (expected($promql));
	for my $at (sort keys %{ { %drawn, %$expected } })
	{
		my ($there, $here) = ($expected->{$at}, $drawn{$at});
		my $allowed = defined $there ? 0.2 * $slope * ($log ? $there : 1) + 1e-9 : 0;
		push @wrong, "$at: " . ($here // 'nothing') . ', not ' . ($there // 'nothing') unless defined $here && defined $there && abs($here - $there) <= $allowed;
	}
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok(!@wrong && keys %drawn > 3, "$id: $name is what Prometheus has, " . keys(%drawn) . ' points') or diag(join "\n", @wrong);
	return;
}

sub expected
{
	my ($promql) = @_;
	my $base = $promql =~ /^stream/ ? 'postpipe_workers{pipeline="m"}' : 'post_persist_total{pipeline="m", status="ok"}';
	my ($result) = @{ $prometheus->api('query_range', query => qq(sum($promql) and sum($base)), start => $start, end => $end, step => $step)->{result} };
	return { map { (sprintf('%.0f', $_->[0]) => $_->[1]) } grep { $_->[1] ne 'NaN' } @{ $result->{values} } };
}

# What a counter gained from its first to its last sample.
sub gain
{
	my ($state) = @_;
	my ($result) = @{ $prometheus->api('query_range', query => qq(post_persist_total{pipeline="m", status="$state"}), start => $start, end => $end, step => $step)->{result} };
	return $result->{values}[-1][1] - $result->{values}[0][1];
}

# How often each color is in a PNG of 8 bits: the filters of its lines are undone.
sub colors
{
	my ($file) = @_;
	my ($data, $pos, $packed, @header) = (slurp_file($file), 8, '');
	while ($pos < length $data)
	{
		my ($length, $type) = unpack 'N a4', substr $data, $pos, 8;
		@header = unpack 'N N C C', substr $data, $pos + 8, 10 if $type eq 'IHDR';
		$packed .= substr $data, $pos + 8, $length if $type eq 'IDAT';
		$pos += $length + 12;
	}
	my ($width, $height, $bits, $kind) = @header;
	my $bpp = { 2 => 3, 6 => 4 }->{$kind} // die "$file: color type $kind";
	my ($raw, %count) = (uncompress($packed));
	my @above = (0) x ($width * $bpp);
	for my $line (0 .. $height - 1)
	{
		my ($filter, @now) = unpack 'C*', substr $raw, $line * ($width * $bpp + 1), $width * $bpp + 1;
		unfilter($filter, $bpp, \@now, \@above);
		$count{ sprintf '%02x%02x%02x', @now[ $_ * $bpp .. $_ * $bpp + 2 ] }++ for 0 .. $width - 1;
		@above = @now;
	}
	return %count;
}

sub unfilter
{
	my ($filter, $bpp, $now, $above) = @_;
	for my $i (0 .. $#$now)
	{
		my ($left, $corner) = $i < $bpp ? (0, 0) : ($now->[ $i - $bpp ], $above->[ $i - $bpp ]);
		my $up = $above->[$i];
		my ($p, $guess) = ($left + $up - $corner);
		my ($a, $b, $c) = map { abs($p - $_) } $left, $up, $corner;
		$guess = (0, $left, $up, int(($left + $up) / 2), $a <= $b && $a <= $c ? $left : $b <= $c ? $up : $corner)[$filter];
		$now->[$i] = ($now->[$i] + $guess) & 255;
	}
	return;
}
