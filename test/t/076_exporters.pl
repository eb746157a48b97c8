# What Prometheus gets through prometheus-sql-exporter and through node_exporter's textfile collector, from two databases with
# a pipeline of the same name, set up as monitoring/README.md says. (prometheus-postgres-exporter: 072_prometheus.pl.)
# TAP, because it takes a server, a Redis, the exporters and Prometheus itself.

use strict;
use warnings;
use JSON::PP;
use PostgreSQL::Test::Utils;
use Postpipe::Test '!sql';
use Postpipe::Test::Prometheus;

need_programs(qw(prometheus prometheus-sql-exporter prometheus-node-exporter));

my $tmp = PostgreSQL::Test::Utils::tempdir_short();
my $readme = slurp_file(monitoring_dir() . '/README.md');
my @jobs = qw(postpipe-sql postpipe-textfile);
my %streams = (postgres => 'stream:m:parsed', second => 'm:parsed');
my @databases = sort keys %streams;

# --- Two databases whose samples differ in datname alone, with dead letters of two error codes. The role logs in as in the
# manual, by the name of the system user, which is another one here.
my $redis = Postpipe::Test::Redis->new(keep => 1);
my $node = pp_node('exporters', redis => $redis, databases => join(', ', @databases), start => 0, conf => 'postpipe.max_retries = 0');
my $system_user = getpwuid($>);
my $hba = $node->data_dir . '/pg_hba.conf';
my $before = slurp_file($hba);
unlink $hba;
append_to_file($hba, from_readme(qr/^local all prometheus .*$/m) . "\n$before");
append_to_file($node->data_dir . '/pg_ident.conf', from_readme(qr/^postpipe postgres prometheus$/m) =~ s/postgres/"$system_user"/r . "\n");
$node->start;
sql('postgres', 'CREATE DATABASE second');
sql('postgres', from_readme(qr/^CREATE ROLE prometheus .*;$/m));
for my $db (@databases)
{
	sql($db, 'CREATE EXTENSION postpipe');
	sql($db, q(SELECT postpipe_drop_pipeline('posts')));
	sql($db, q(CREATE TABLE t (id int PRIMARY KEY, v text NOT NULL CHECK (v <> 'bad'))));
	sql($db, qq(SELECT postpipe_create_pipeline('m', '$streams{$db}', target => 't', consumer_group => 'g')));
	$redis->xadd($streams{$db}, id => 99, v => 'bad');
	$redis->xadd($streams{$db}, id => 98);
}
my $next = 0;
add('postgres') for 1 .. 20;
add('second') for 1 .. 7;
wait_sql($node, 'postgres', 'SELECT applied, dead, pending, lag FROM postpipe_audit', '20|2|0|0', 'traffic');
wait_sql($node, 'second', 'SELECT applied, dead, pending, lag FROM postpipe_audit', '7|2|0|0', '... in both');
is(sql($_, q(SELECT count(*) FROM postpipe_metrics WHERE name = 'post_persist_dlq_total')), 2, "two error codes in $_") for @databases;

# --- The programs, with the files and commands of the manual; only paths, ports and intervals are others.
my $write_files = from_readme(qr/^for db in .*?^done$/ms);
mkdir "$tmp/textfile";
$write_files =~ s{/var/lib/prometheus/node-exporter}{$tmp/textfile} or die 'the folder of the text files';
my ($status, $said) = write_files();
is($status, 0, 'the files are written') or diag($said);
my $node_exporter = Postpipe::Test::Prometheus::Exporter->new(
	sub { ('prometheus-node-exporter', "--web.listen-address=$_[0]", "--collector.textfile.directory=$tmp/textfile", qw(--collector.disable-defaults --collector.textfile --web.disable-exporter-metrics)) });

my $config = slurp_file(monitoring_dir() . '/prometheus/sql_exporter.yml');
$config =~ s/interval: 15s/interval: 3s/;
is($config =~ s{host=/run/postgresql}{"host=" . $node->host . "&port=" . $node->port}ge, 2, 'two connections');
append_to_file("$tmp/sql_exporter.yml", $config);
$ENV{CONFIG} = "$tmp/sql_exporter.yml";
my $sql_exporter = Postpipe::Test::Prometheus::Exporter->new(sub { ('prometheus-sql-exporter', "-web.listen-address=$_[0]") });
my $prometheus = Postpipe::Test::Prometheus->new(targets => { 'localhost:9237' => $sql_exporter->address, 'localhost:9100' => $node_exporter->address });
wait_for { @{ query('up == 1') } == 2 } 'Prometheus reads both';

# --- Every sample that is known arrives, with its labels and its value, and nothing else does.
at_rest();
is(complaints($node_exporter->page), '', 'promtool check metrics has no complaint about node_exporter');
my $of_ours = join '', $sql_exporter->page =~ /^((?:# \w+ )?sql_postpipe[ {].*\n)/mg;
my %complaints = map { $_ => 1 } split /\n/, complaints($of_ours);
is_deeply([ keys %complaints ], ['sql_postpipe non-histogram metrics should not have "le" label'], '... and one about our samples in sql_exporter, that a gauge has buckets');

# --- Types and texts: all of them, or one gauge.
my ($of_sql, $of_textfile) = map { metadata($_) } @jobs;
my $families = q(SELECT json_agg(DISTINCT jsonb_build_object('type', type, 'help', help,
	'name', CASE WHEN type = 'histogram' THEN regexp_replace(name, '_(bucket|sum|count)$', '') ELSE name END)) FROM postpipe_metrics WHERE value IS NOT NULL);
for my $row (@{ decode_json(sql('postgres', $families)) })
{
	is_deeply($of_textfile->{ $row->{name} }, [ $row->{type}, $row->{help} ], "$row->{name} is a $row->{type}, and what it is");
}
is($of_sql->{sql_postpipe}[0], 'gauge', 'all that comes through sql_exporter is a gauge');
is_deeply([ grep { /^(?:post_persist|stream|postpipe)_/ } keys %$of_sql ], [], '... under one name');

# --- Quantiles, also from buckets that are called gauges.
for my $job (@jobs)
{
	my $quantile = qq(histogram_quantile(0.95, sum without (datname) (rate(post_persist_latency_seconds_bucket{job="$job", operation="upsert"}[30s]))));
	wait_for
	{
		add($_) for @databases;
		write_files();
		my ($answer) = @{ query("$quantile > 0") };
		$answer && $answer->{value}[1] ne '+Inf';
	}
	"$job: histogram_quantile gives a number";
}

# --- Two files that have different texts for a name: an error, which newer versions of node_exporter tell by another name.
my $error = '{job="postpipe-textfile", __name__=~"promhttp_metric_handler_errors_total|node_textfile_scrape_error"} > 0';
is_deeply(query($error), [], 'node_exporter has no error');
append_to_file("$tmp/textfile/z.prom", qq(# HELP stream_pending_size Another text.\n# TYPE stream_pending_size gauge\nstream_pending_size{datname="third"} 1\n));
wait_for { @{ query($error) } } 'two HELP texts: it tells an error';
like($node_exporter->output, qr/stream_pending_size .*Another text/, '... its log has a line');
unlike($node_exporter->page, qr/"third"/, '... and it leaves out the samples of one file');
unlink "$tmp/textfile/z.prom";

# --- The server is away. Old numbers stay in both ways, so that none is absent; what tells that they are old is an alert.
at_rest();
pp_balanced($node, $_) for @databases;
is(@{ query('sql_exporter_last_scrape_failed{query="postpipe"} == 0') }, 2, 'sql_exporter says of each database that it could ask it');
my %old = map { $_ => values_of($_) } @jobs;
my @files = map { "$tmp/textfile/postpipe-$_.prom" } @databases;
my @texts = map { slurp_file($_) } @files;
$node->stop;
($status, $said) = write_files();
isnt($status, 0, 'the server is away: the files cannot be written');
like($said, qr/No such file or directory/, '... for that reason');
is_deeply([ map { slurp_file($_) } @files ], \@texts, '... and stay as they were');
wait_for { !grep { mtime($_) != (stat $_)[9] } @files } '... with their age';
wait_for { @{ query('sql_exporter_last_scrape_failed{query="postpipe"} == 1') } == 2 } 'sql_exporter says that it could not ask';
my $now = time;
for my $job (@jobs)
{
	wait_for { @{ query(qq(timestamp(stream_pending_size{job="$job"}) > $now)) } == 2 } "$job: it was scraped after that";
	is_deeply(values_of($job), $old{$job}, '... and has the old numbers');
}
wait_for { "@{ $prometheus->firing('PostpipeMetricsOld') }" eq 'postgres second' } 'an alert for each database of sql_exporter';
utime time - 600, time - 600, $files[0];
wait_for { "@{ $prometheus->firing('PostpipeMetricsOld') }" eq ' postgres second' } '... and for a file that is ten minutes old';
is_deeply($prometheus->firing('PostpipeMetricsAbsent'), [], '... nothing is absent');

# --- It is back.
$node->start;
($status, $said) = write_files();
is($status, 0, 'the server is back: the files are written') or diag($said);
wait_for { @{ query('sql_exporter_last_scrape_failed{query="postpipe"} == 0') } == 2 && !@{ $prometheus->firing('PostpipeMetricsOld') } } '... sql_exporter asks again, and no alert is left';
at_rest();
ok($sql_exporter->is_up && $node_exporter->is_up && $prometheus->is_up, 'the programs of others run to the end');
$node->stop;
done_testing();

sub sql { my ($db, $query) = @_; return $node->safe_psql($db, $query) }
sub query { my ($promql) = @_; return $prometheus->query($promql) }
sub add { my ($db) = @_; return $redis->xadd($streams{$db}, id => 100 + $next++, v => 'v') }

sub from_readme
{
	my ($regex) = @_;
	$readme =~ /($regex)/ or die "monitoring/README.md has no $regex";
	return $1;
}

# What the timer does: the exit status, and what it said.
sub write_files
{
	local @ENV{qw(PGHOST PGPORT)} = ($node->host, $node->port);
	my $output = '';
	IPC::Run::run([ 'sh', '-c', $write_files ], '>', \$output, '2>&1');
	return ($?, $output);
}

# Both ways have what the view has.
sub at_rest
{
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_sql($node, $_, q(SELECT count(*) FROM postpipe_metrics WHERE name IN ('stream_pending_size', 'stream_consumer_lag') AND value = 0 OR name = 'postpipe_state' AND value = 1 AND labels ->> 'state' = 'idle'), 3, "$_ is at rest") for @databases;
	for my $job (@jobs)
	{
		my $wrong;
		wait_for
		{
			write_files();
			!($wrong = $prometheus->differences($node, @databases, { job => $job }));
		}
		"$job: the samples of postpipe_metrics" or diag($wrong);
	}
	return;
}

# { name that the exporter gave => [type, help] }
sub metadata
{
	my ($job) = @_;
	return { map { $_->{metric} => [ @$_{qw(type help)} ] } @{ $prometheus->api('targets/metadata', match_target => qq({job="$job"})) } };
}

sub values_of
{
	my ($job) = @_;
	my $json = JSON::PP->new->canonical;
	return { map { $json->encode($_->{metric}) => $_->{value}[1] } grep { $_->{metric}{__name__} !~ /^postpipe_(?:measured|last_read)_timestamp_seconds$/ } @{ $prometheus->samples($job) } };
}

sub mtime { my ($file) = @_; return query(qq(node_textfile_mtime_seconds{file="$file"}))->[0]{value}[1] }
