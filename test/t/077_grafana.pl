# The dashboard for Grafana: against Grafana's own types, its structure, and each of its queries in a Prometheus that reads
# a server with traffic of every kind. TAP, because it takes a server, a Redis, the exporter, Prometheus and a compiler.

use strict;
use warnings;
use CPAN::Meta::YAML;
use JSON::PP;
use List::Util qw(any uniq);
use PostgreSQL::Test::Utils;
use Postpipe::Test;
use Postpipe::Test::Prometheus;

need_programs(qw(prometheus prometheus-postgres-exporter));

my $dir = monitoring_dir();
my $file = "$dir/grafana/dashboards/event_pipeline.json";
my $text = slurp_file($file);
my $json = JSON::PP->new->utf8->canonical->indent->indent_length(2)->space_after;
my $dashboard = $json->decode($text);
my @panels = grep { $_->{type} ne 'row' } @{ $dashboard->{panels} };
my %variables = map { $_->{name} => $_ } @{ $dashboard->{templating}{list} };
my @annotations = @{ $dashboard->{annotations}{list} };
my %rules = slurp_file("$dir/prometheus/alerts.yml") =~ /^  - alert: (\w+)\n    expr: (.*?)\n    (?:for|labels):/msg;

# A name and where it is from, for each query.
my @queries = ((map { my $p = $_; map { { of => "$p->{title}, $_->{refId}", %$_ } } @{ $p->{targets} } } @panels),
	map { { of => "annotation $_->{name}", expr => $_->{expr} } } @annotations);

is($json->encode($dashboard), $text, 'keys are sorted, two spaces indent');
subtest 'the types of Grafana' => \&check_types;
subtest 'the dashboard' => \&check_dashboard;
check_panel($_) for @panels;
check_query($_) for @queries;
subtest 'alerts' => \&check_alerts;
subtest 'provisioning' => \&check_provisioning;

# --- Three pipelines: entries of each outcome, one that is tried again, and one whose table is gone, so that entries stay pending.
my $redis = Postpipe::Test::Redis->new(keep => 1);
my $node = pp_node('grafana', redis => $redis);
my %retries = (work => 0, again => 100, held => 0);
sql('CREATE ROLE prometheus LOGIN IN ROLE pg_monitor');
sql('CREATE EXTENSION postpipe');
sql(q(SELECT postpipe_drop_pipeline('posts')));
for my $name (sort keys %retries)
{
	sql(qq(CREATE TABLE $name (id int PRIMARY KEY, v text CHECK (v <> 'bad'))));
	sql(qq(SELECT postpipe_create_pipeline('$name', 'stream:$name', target => '$name', event_types => '{made}', options => '{"max_retries": $retries{$name}, "retry_delay": "1h"}')));
}
my $next = 1;
add($_, made => $next++, 'good') for (sort keys %retries) x 3;
add('work', made => 1, 'again');
add($_, made => $next++, 'bad') for qw(work again);
add('work', other => $next++, 'unwanted');
wait_sql($node, 'postgres', q(SELECT applied, filtered, dead, pending, lag FROM postpipe_audit WHERE pipeline = 'work'), '4|1|1|0|0', 'entries of each outcome');
wait_sql($node, 'postgres', q(SELECT applied, retrying, pending, lag FROM postpipe_audit WHERE pipeline = 'again'), '3|1|0|0', 'one that is tried again');
wait_sql($node, 'postgres', q(SELECT applied, pending, lag FROM postpipe_audit WHERE pipeline = 'held'), '3|0|0', 'one before its table goes');
sql('ALTER TABLE held RENAME TO away');
add('held', made => $next++, 'good');
wait_sql($node, 'postgres', q(SELECT state FROM postpipe_stats WHERE pipeline = 'held'), 'failed', '... and after');

# --- Each query gives numbers, and so does each part of it: one that falls back on 0 would hide a name that does not exist.
my $exporter = postgres_exporter($node, 'postgres');
my $prometheus = Postpipe::Test::Prometheus->new(targets => { 'localhost:9187' => $exporter->address });
my %known = map { $_ => 1 } split /\n/, sql('SELECT DISTINCT name FROM postpipe_metrics');
wait_for { @{ $prometheus->firing('EventPipelineDLQ') } } 'a dead letter is an alert';
CHOICE: for my $choice ([ 'All', '.+', '.+' ], [ 'some', 'postgres', '(work|again|held)' ])
{
	my ($what, $datname, $pipeline) = @$choice;
	my %value = (datname => $datname, pipeline => $pipeline, __rate_interval => '12s', __range => '1m');
	for my $query (@queries)
	{
		my $expr = substitute($query->{expr}, %value);
		my $empty;
		my $found = wait_for { traffic(); !defined($empty = first_empty($expr, $query->{instant})) } "$what: $query->{of}: numbers";
		# The others would most likely wait as long.
		$found or diag("nothing for $empty"), last CHOICE;
		pass("$what: $query->{of}: numbers");
	}
	for my $name (qw(datname pipeline))
	{
		my ($selector, $label) = substitute($variables{$name}{query}, %value) =~ /^label_values\((.+), (\w+)\)$/;
		my $values = $prometheus->api("label/$label/values", 'match[]' => $selector);
		is("@$values", $name eq 'datname' ? 'postgres' : join(' ', sort keys %retries), "$what: the values of \$$name");
	}
}

# --- All metrics are drawn, and only what there is.
my %drawn = map { family($_) => 1 } map { names($_->{expr}) } @queries;
my %families = map { family($_) => 1 } keys %known;
is(join(' ', grep { !$drawn{$_} } sort keys %families), '', 'each metric is in the dashboard');
is(join(' ', grep { !$families{$_} } sort keys %drawn), 'ALERTS', 'each metric of the dashboard exists');

sql('ALTER TABLE away RENAME TO held');
wait_sql($node, 'postgres', q(SELECT sum(pending + lag) FROM postpipe_audit), '0', 'the table is back');
pp_balanced($node);
done_testing();

sub add
{
	my ($stream, $type, $id, $v) = @_;
	return $redis->xadd("stream:$stream", event_type => $type, id => $id, v => $v);
}

# A rate takes entries that are settled meanwhile.
sub traffic
{
	add($_, made => $next++, 'good') for qw(work again);
	add('work', made => 1, 'again');
	return;
}

sub names { my ($expr) = @_; return uniq $expr =~ /(\w+)\{/g }
sub family { my ($name) = @_; return $name =~ s/_(?:bucket|sum|count)$//r }
sub substitute { my ($expr, %value) = @_; return $expr =~ s/\$(\w+)/$value{$1} \/\/ die "unknown variable $1"/ger }

# The first of a query's selectors, or the query itself, that gives no number.
sub first_empty
{
	my ($expr, $instant) = @_;
	for my $selector ($expr =~ /(\w+\{[^{}]*\})/g)
	{
		return $selector unless @{ $prometheus->query($selector) };
	}
	my $found = $instant ? $prometheus->query($expr) : $prometheus->api('query_range', query => $expr, start => time - 60, end => time, step => 3)->{result};
	return (any { $_->[1] !~ /NaN|Inf/ } map { $instant ? $_->{value} : @{ $_->{values} } } @$found) ? undef : $expr;
}

# The file as a constant of a program, which the compiler has to accept; and, so that this says something, with an error.
sub check_types
{
	my $npm = "$dir/../test/npm";
	plan(skip_all => 'the modules of test/npm are not installed (test/setup, with npm)') unless -x "$npm/node_modules/.bin/tsc";
	my %variant = (
		good => $text,
		'a value that is none of an enum' => $text =~ s/"mode": "absolute"/"mode": "absolut"/r,
		'a key that a query has not' => $text =~ s/"expr": "time/"exp": "time/r,
		'a kind of panel that is gone' => $text =~ s/"type": "timeseries"/"type": "graph"/r);
	my $tmp = PostgreSQL::Test::Utils::tempdir_short();
	my @names = sort keys %variant;
	append_to_file("$tmp/tsconfig.json", $json->encode({ extends => "$npm/tsconfig.json", files => [ map { "$_.ts" } 0 .. $#names ] }));
	append_to_file("$tmp/$_.ts", "import type { DashboardFile } from '$npm/dashboard';\n($variant{$names[$_]}) satisfies DashboardFile;\n") for 0 .. $#names;
	my $said = qx('$npm/node_modules/.bin/tsc' --pretty false -p '$tmp' 2>&1);
	for my $i (0 .. $#names)
	{
		my ($error) = $said =~ /^(?:\S*\/)?$i\.ts(\(.*)$/m;
		if ($names[$i] eq 'good') { is($error, undef, 'the dashboard is one') or diag($said) }
		else { like($error // 'accepted', qr/error TS/, "$names[$i] is an error") }
	}
}

sub check_dashboard
{
	is($dashboard->{uid}, 'event-pipeline-health', 'UID');
	is_deeply([ map { $_->{title} } grep { $_->{type} eq 'row' } @{ $dashboard->{panels} } ],
		[ 'Is it well', 'How far behind', 'How fast', 'What failed', 'Redis and workers' ], 'rows');
	like($dashboard->{refresh}, qr/^\d+s$/, 'refresh');
	my @ids = map { $_->{id} } @{ $dashboard->{panels} };
	is(scalar(uniq @ids), scalar @ids, 'no id twice');
	is_deeply([ map { $_->{name} } @{ $dashboard->{templating}{list} } ], [qw(datasource datname pipeline)], 'variables');
	is("$variables{datasource}{type} $variables{datasource}{query}", 'datasource prometheus', '... the data source');
	ok($variables{$_}{multi} && $variables{$_}{includeAll}, "... $_: several or all") for qw(datname pipeline);
	is(join(' ', grep { $_ ne '${datasource}' } map { $_->{datasource}{uid} } @panels, @annotations, @variables{qw(datname pipeline)}), '', 'all of the data source that is chosen');

	# 24 columns are 1280 pixels at least: a number has 200 of them, a graph 400. No two panels have a cell in common.
	my %taken;
	for my $p (@{ $dashboard->{panels} })
	{
		my ($x, $y, $w, $h) = @{ $p->{gridPos} }{qw(x y w h)};
		ok($w >= ($p->{type} eq 'stat' ? 4 : 8) && $x + $w <= 24, "$p->{title}: width");
		my @twice = grep { $taken{$_}++ } map { my $row = $_; map { "$_/$row" } $x .. $x + $w - 1 } $y .. $y + $h - 1;
		is("@twice", '', '... nothing above or below it');
	}
}

sub check_panel
{
	my ($p) = @_;
	my $defaults = $p->{fieldConfig}{defaults};
	subtest $p->{title} => sub {
		like($p->{description}, qr/^\S.{10,}\.$/, 'description');
		ok($defaults->{unit}, 'unit');
		my ($bound) = $p->{description} =~ /Alert \w+ above (\d+(?:\.\d+)?)/;
		my @steps = @{ $defaults->{thresholds}{steps} // [] };
		ok(@steps > 1, 'a threshold') if $p->{type} eq 'stat' || $bound;
		ok($defaults->{custom}{thresholdsStyle}, '... that is drawn') if $bound;
		my @refs = map { $_->{refId} } @{ $p->{targets} };
		is(scalar(uniq @refs), scalar @refs, 'each query has its own letter');
		ok(($p->{type} =~ /^(?:stat|table)$/) == ($_->{instant} // 0), "query $_->{refId}: now, or a range") for @{ $p->{targets} };
		ok($_->{legendFormat}, "query $_->{refId}: legend") for grep { !$_->{instant} } @{ $p->{targets} };
	};
}

# The variables are in each selector.
sub check_query
{
	my ($query) = @_;
	my @selectors = $query->{expr} =~ /\w+\{([^{}]*)\}/g;
	ok(@selectors, "$query->{of}: selects");
	is(join(' ', grep { !/datname=~"\$datname\|?".*pipeline=~"\$pipeline\|?"/ } @selectors), '', '... by the variables');
}

# Each alert has a panel that shows why, with the bound of its rule, and is one of the annotations.
sub check_alerts
{
	my ($pattern) = $annotations[0]{expr} =~ /alertname=~"([^"]+)"/;
	ok(keys %rules > 10, 'the rules are read');
	for my $name (sort keys %rules)
	{
		like($name, qr/^(?:$pattern)$/, "$name is an annotation");
		my @shown = grep { $_->{description} =~ /\b$name\b/ } @panels;
		ok(@shown, '... and is named by a panel');
		for my $p (@shown)
		{
			my ($bound) = $p->{description} =~ /$name above (\d+(?:\.\d+)?)/ or next;
			like($rules{$name}, qr/> \Q$bound\E(?![\d.])/, "... above $bound");
			is($p->{fieldConfig}{defaults}{thresholds}{steps}[-1]{value}, $bound, "... as in '$p->{title}'");
		}
	}
}

sub check_provisioning
{
	my ($source, $provider) = map { CPAN::Meta::YAML->read("$dir/grafana/provisioning/$_.yml")->[0] } qw(datasources/prometheus dashboards/postpipe);
	is("$source->{apiVersion} $provider->{apiVersion}", '1 1', 'version');
	is($source->{datasources}[0]{type}, 'prometheus', 'the data source');
	my ($interval) = slurp_file("$dir/prometheus/prometheus.yml") =~ /scrape_interval: (\w+)/;
	is($source->{datasources}[0]{jsonData}{timeInterval}, $interval, '... with the interval of prometheus.yml');
	is($provider->{providers}[0]{type}, 'file', 'the dashboards');
	like(slurp_file("$dir/README.md"), qr/\Q$provider->{providers}[0]{options}{path}\E/, '... in the folder that the manual names');
}
