# What Prometheus gets through prometheus-postgres-exporter, from two databases with a pipeline of the same name; and the alerts.
# TAP, because it takes a server, a Redis, the exporter and Prometheus itself.

use strict;
use warnings;
use FindBin;
use PostgreSQL::Test::Utils;
use Postpipe::Test '!sql';
use Postpipe::Test::Prometheus;

need_programs(qw(prometheus prometheus-postgres-exporter));

my $dir = monitoring_dir() . '/prometheus';

# --- The rules, without any server; each has a severity, says what it is, and has its section in the manual.
command_ok([ 'promtool', 'check', 'rules', "$dir/alerts.yml" ], 'promtool check rules');
command_ok([ 'promtool', 'test', 'rules', "$dir/alerts_test.yml" ], 'promtool test rules');
my (undef, @alerts) = split /^  - alert: /m, slurp_file("$dir/alerts.yml");
my $manual = slurp_file("$FindBin::RealBin/../../docs/operations.md");
for my $alert (@alerts)
{
	my ($name) = $alert =~ /^(\w+)\n/;
	like($alert, qr/^    labels: \{severity: (?:warning|critical)\}\n    annotations:\n      summary: ".+"\n      description: ".+"\n      runbook_url: docs\/operations\.md#alert-\L$name\E$/m, "$name: severity, annotations");
	like($manual, qr/^### Alert $name$/m, '... and its section');
}

# --- Two databases whose samples differ in datname alone: the stream's label is its name without "stream:", with dots. One
# has a dead letter, the other one that is tried again, and an entry that somebody else holds.
my $redis = Postpipe::Test::Redis->new(keep => 1);
my $node = pp_node('prometheus', redis => $redis, databases => 'postgres, second');
my %streams = (postgres => 'stream:m:parsed', second => 'm:parsed');
my %retries = (postgres => 0, second => 100);
my %held = (postgres => 0, second => 1);
sql('postgres', 'CREATE DATABASE second');
sql('postgres', 'CREATE ROLE prometheus LOGIN IN ROLE pg_monitor');
$redis->command('XGROUP', 'CREATE', $streams{second}, 'g', '0', 'MKSTREAM');
add('second', 8);
$redis->command('XREADGROUP', 'GROUP', 'g', 'python', 'COUNT', 1, 'STREAMS', $streams{second}, '>');
for my $db (sort keys %streams)
{
	sql($db, 'CREATE EXTENSION postpipe');
	sql($db, q(SELECT postpipe_drop_pipeline('posts')));
	sql($db, q(CREATE TABLE t (id int PRIMARY KEY, v text CHECK (v <> 'bad'))));
	sql($db, qq(SELECT postpipe_create_pipeline('m', '$streams{$db}', target => 't', consumer_group => 'g', options => '{"max_retries": $retries{$db}, "retry_delay": "1h"}')));
}
add('postgres', 1 .. 20, 1 .. 5, 'bad');
add('second', 1 .. 7, 'bad');
wait_sql($node, 'postgres', 'SELECT applied, dead, pending, lag FROM postpipe_audit', '25|1|0|0', 'traffic');
wait_sql($node, 'second', 'SELECT applied, retrying, pending, lag FROM postpipe_audit', '7|1|1|0', '... in both');

# --- The text for node_exporter's textfile collector.
is(complaints(sql('postgres', 'SELECT * FROM postpipe_prometheus()') . "\n"), '', 'promtool check metrics has no complaint about postpipe_prometheus()');

# --- The exporter, as docs have it, and Prometheus with the files of the repository; only ports and intervals are others.
my $exporter = postgres_exporter($node, sort keys %streams);
my $prometheus = Postpipe::Test::Prometheus->new(targets => { 'localhost:9187' => $exporter->address });
wait_for { $exporter->page =~ /^stream_pending_size\{/m } 'the exporter answers';
is(complaints($exporter->page), '', 'promtool check metrics has no complaint about the exporter');
wait_for { @{ query('up == 1') } == 1 } 'Prometheus reads it';

# --- Every sample that is known arrives, with its labels and its value, and nothing else does.
for my $db (sort keys %streams)
{
	wait_sql($node, $db, q(SELECT sum(value) FROM postpipe_metrics WHERE name IN ('stream_pending_size', 'stream_consumer_lag')), $held{$db}, "$db is at rest");
}
my $wrong;
wait_for { !($wrong = $prometheus->differences($node, sort keys %streams)) } 'Prometheus has the samples of postpipe_metrics' or diag($wrong);
is(join(' ', names_without_value()), '', 'each name was seen with a value');
wait_for { @{ query("postpipe_${_}_timestamp_seconds > time() - 600") } == 2 } "$_, which changes meanwhile" for qw(measured last_read);
my $metadata = $prometheus->api('metadata');
for my $line (split /\n/, sql('postgres', q(SELECT DISTINCT CASE WHEN type = 'histogram' THEN regexp_replace(name, '_(bucket|sum|count)$', '') ELSE name END, type FROM postpipe_metrics ORDER BY 1)))
{
	my ($name, $type) = split /\|/, $line;
	# The type is kept under the name that the exporter gave.
	my $known = $metadata->{ $name =~ /^postpipe_(?:state|info)$/ ? "${name}_current" : $name };
	is($known && $known->[0]{type}, $type, "$name is a $type");
}

# --- Quantiles.
my $next = 1000;
my $quantile = 'histogram_quantile(0.95, sum without (datname) (rate(post_persist_latency_seconds_bucket{operation="upsert"}[30s])))';
wait_for
{
	add($_, $next++) for sort keys %streams;
	my ($answer) = @{ query("$quantile > 0") };
	$answer && $answer->{value}[1] ne '+Inf';
}
'histogram_quantile gives a number';

# --- Break it, see it, mend it.
wait_for { "@{ firing('EventPipelineDLQ') }" eq 'postgres' } 'a dead letter is an alert, one that is tried again is none';
is_deeply(firing('PostpipeNotRunning'), [], 'all pipelines run');
sql('second', 'ALTER TABLE t RENAME TO away');
add('second', $next++);
wait_for { "@{ firing('PostpipeNotRunning') }" eq 'second' } 'the table is gone: the alert fires, of that database alone';
sql('second', 'ALTER TABLE away RENAME TO t');
wait_for { !@{ firing('PostpipeNotRunning') } } 'the table is back: it is resolved';

# --- What is not known is absent, and no NaN; what is known stays.
wait_for { @{ query('postpipe_consumers > 0') } == 2 } 'consumers are known';
$redis->stop;
wait_for { @{ query('postpipe_consumers or stream_pending_size or stream_consumer_lag') } == 0 && @{ query('postpipe_workers == 1') } == 2 }
'Redis is away: what it alone knows is absent, and the workers are still there';
is(name_of_a_nan(), undef, '... and no sample is NaN');
wait_for { "@{ firing('PostpipeRetrying') }" eq 'postgres second' } '... and it is an alert';
$redis->start;
wait_for { !@{ firing('PostpipeRetrying') } && @{ query('postpipe_consumers') } == 2 } 'Redis is back';

# --- The server is away.
pp_balanced($node, $_) for sort keys %streams;
$node->stop;
wait_for { @{ firing('PostpipeMetricsAbsent') } } 'the server is away: there are no metrics, which is an alert';
ok($exporter->is_up && $prometheus->is_up, 'the programs of others run to the end');
done_testing();

sub sql { my ($db, $query) = @_; return $node->safe_psql($db, $query) }

sub add
{
	my ($db, @ids) = @_;
	$redis->xadd($streams{$db}, id => $_ eq 'bad' ? 99 : $_, v => $_) for @ids;
	return;
}

sub query { my ($promql) = @_; return $prometheus->query($promql) }
sub firing { my ($name) = @_; return $prometheus->firing($name) }

sub name_of_a_nan
{
	my ($nan) = grep { $_->{value}[1] eq 'NaN' } @{ $prometheus->samples };
	return $nan && $nan->{metric}{__name__};
}

sub names_without_value
{
	my %seen;
	for my $db (sort keys %streams)
	{
		for my $line (split /\n/, sql($db, 'SELECT name, bool_or(value IS NOT NULL)::int FROM postpipe_metrics GROUP BY 1'))
		{
			my ($name, $has) = split /\|/, $line;
			$seen{$name} += $has;
		}
	}
	return grep { !$seen{$_} } sort keys %seen;
}
