# Postpipe::Test::Prometheus: a private Prometheus and the exporters it reads, with the files of monitoring/prometheus, of
# which only ports and intervals are changed; gone with the objects.
#
#   use Postpipe::Test::Prometheus;
#   need_programs(qw(prometheus prometheus-postgres-exporter));     # else the test is skipped
#   my $exporter = postgres_exporter($node, 'postgres', 'second');  # reads these databases as the role "prometheus"
#   my $prometheus = Postpipe::Test::Prometheus->new(targets => { 'localhost:9187' => $exporter->address });
#   wait_for { @{ $prometheus->query('up == 1') } == 1 } 'Prometheus reads it';
#   wait_for { !$prometheus->differences($node, 'postgres', 'second') } 'it has what postpipe_metrics has';
#   wait_for { "@{ $prometheus->firing('PostpipeNotRunning') }" eq 'second' } 'the alert fires';
#   $prometheus->api('metadata');                                   # any other path below /api/v1
#   $exporter->page;                                                # what the exporter serves
#   complaints($exporter->page);                                    # of promtool check metrics
package Postpipe::Test::Prometheus;

use strict;
use warnings;
use Exporter 'import';
use HTTP::Tiny;
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Postpipe::Test::Program;
use Test::More ();

our @EXPORT = qw(need_programs monitoring_dir postgres_exporter complaints);

my $http = HTTP::Tiny->new(timeout => 20);
my ($top) = map { s{/test/perl/Postpipe/Test/Prometheus\.pm$}{}r } __FILE__;

sub monitoring_dir { return "$top/monitoring" }

# Each program is in a Debian package of its name; promtool comes with prometheus.
sub need_programs
{
	my (@programs) = @_;
	for my $program (@programs)
	{
		Test::More::plan(skip_all => "$program is not installed (apt-get install @programs)")
		  unless grep { -x "$_/$program" } split /:/, $ENV{PATH};
	}
	return;
}

# What promtool check metrics says about a page of samples: '' if nothing.
sub complaints
{
	my ($page) = @_;
	my $file = PostgreSQL::Test::Utils::tempdir_short() . '/page.prom';
	append_to_file($file, $page);
	my $said = qx(promtool check metrics < $file 2>&1);
	return $? && $said eq '' ? "promtool: exit status $?" : $said;
}

# As docs have it, without what the exporter measures besides: its collectors, which each version has others of.
sub postgres_exporter
{
	my ($node, @databases) = @_;
	my @collectors = qx(prometheus-postgres-exporter --help 2>&1) =~ /^ +--(?:\[no-\])?collector\.(\w+)\s/mg;
	local $ENV{DATA_SOURCE_NAME} = join ',', map { "user=prometheus host=@{[$node->host]} port=@{[$node->port]} dbname=$_ sslmode=disable" } @databases;
	return Postpipe::Test::Prometheus::Exporter->new(
		sub {
			my ($address) = @_;
			return ('prometheus-postgres-exporter', "--web.listen-address=$address", "--extend.query-path=$top/monitoring/prometheus/postgres_exporter.yaml",
				qw(--disable-default-metrics --disable-settings-metrics), map { "--no-collector.$_" } @collectors);
		});
}

# new(targets => { address in prometheus.yml => address of a program here }, interval => '3s'): the jobs of other targets are
# left out, as docs have it.
sub new
{
	my ($class, %opt) = @_;
	my $self = bless { dir => PostgreSQL::Test::Utils::tempdir_short(), interval => '3s', %opt }, $class;

	$self->_copy('prometheus.yml', sub {
		my ($global, @jobs) = split /^(?=- job_name: )/m;
		my %jobs = map { /targets: \['(.+)'\]/ ? ($1 => $_) : () } @jobs;
		$_ = $global =~ s/: 15s/: $self->{interval}/gr;
		for my $target (sort keys %{ $self->{targets} })
		{
			die "prometheus.yml has no target $target" unless $jobs{$target};
			$_ .= $jobs{$target} =~ s/\Q$target\E/$self->{targets}{$target}/r;
		}
	});
	$self->_copy('alerts.yml', sub { s/for: \S+/for: 1s/g; s/\[5m\]/[20s]/g; });
	$self->{program} = Postpipe::Test::Prometheus::Exporter->new(
		sub {
			my ($address) = @_;
			return ('prometheus', "--config.file=$self->{dir}/prometheus.yml", "--storage.tsdb.path=$self->{dir}/data", "--web.listen-address=$address");
		});
	return $self;
}

# A copy of a file of the repository, changed in $_.
sub _copy
{
	my ($self, $file, $change) = @_;
	local $_ = slurp_file("$top/monitoring/prometheus/$file");
	$change->();
	append_to_file("$self->{dir}/$file", $_);
	return;
}

sub url { my ($self) = @_; return 'http://' . $self->{program}->address }
sub is_up { my ($self) = @_; return $self->{program}->is_up }
sub output { my ($self) = @_; return $self->{program}->output }

# Dies when the answer is an error or none.
sub api
{
	my ($self, $path, %form) = @_;
	my $url = $self->url . "/api/v1/$path" . (%form ? '?' . $http->www_form_urlencode(\%form) : '');
	my $answer = decode_json($http->get($url)->{content});
	die "$url: $answer->{error}" unless $answer->{status} eq 'success';
	return $answer->{data};
}

sub query { my ($self, $promql) = @_; return $self->api('query', query => $promql)->{result} }

# The databases of which an alert fires.
sub firing
{
	my ($self, $name) = @_;
	return [ sort map { $_->{labels}{datname} // '' } grep { $_->{labels}{alertname} eq $name && $_->{state} eq 'firing' } @{ $self->api('alerts')->{alerts} } ];
}

# All samples of a job that are ours.
sub samples
{
	my ($self, $job) = @_;
	$job //= 'postpipe';
	return $self->query(qq({job="$job", __name__=~"(post_persist|stream|postpipe)_.*"}));
}

# differences(node, databases ..., { job => 'postpipe' }): a line for each sample that Prometheus has and postpipe_metrics has
# not, or the other way round, or with another value. The times of the last measurement and of the last read change meanwhile.
sub differences
{
	my ($self, $node, @databases) = @_;
	my $opt = ref $databases[-1] ? pop @databases : {};
	my (%there, %here);

	$there{ _as_text($_->{metric}{__name__}, $_->{metric}) } = $_->{value}[1] + 0 for @{ $self->samples($opt->{job}) };
	for my $db (@databases)
	{
		for my $row (@{ decode_json($node->safe_psql($db, q(SELECT json_agg(m) FROM postpipe_metrics m WHERE value IS NOT NULL))) })
		{
			$here{ _as_text($row->{name}, $row->{labels}) } = $row->{value} + 0;
		}
	}
	return join "\n", map {
		my ($h, $t) = ($here{$_} // 'nothing', $there{$_} // 'nothing');
		$h eq $t || (/^postpipe_(?:measured|last_read)_timestamp_seconds/ && "$h$t" !~ /nothing/) || ("$h$t" !~ /nothing/ && abs($h - $t) < 1e-9 * abs($h)) ? () : "$_: $h here, $t there"
	} sort keys %{ { %here, %there } };
}

# One text per sample. A bucket's bound is a number, which each program writes in its own way.
sub _as_text
{
	my ($name, $labels) = @_;
	my %l = %$labels;
	delete @l{qw(__name__ job instance)};
	$l{le} = $l{le} eq '+Inf' ? 'Inf' : $l{le} + 0 if defined $l{le};
	return "$name " . join ',', map { "$_=$l{$_}" } sort keys %l;
}

# A program that serves a page at a private port.
package Postpipe::Test::Prometheus::Exporter;

use parent -norequire, 'Postpipe::Test::Program';

# new(sub { my ($address) = @_; return command })
sub new
{
	my ($class, $command) = @_;
	my $address = '127.0.0.1:' . PostgreSQL::Test::Cluster::get_free_port();
	my $self = $class->SUPER::new($command->($address));
	$self->{address} = $address;
	return $self;
}

sub address { my ($self) = @_; return $self->{address} }

# '' if it does not answer, or not with success.
sub page
{
	my ($self) = @_;
	my $answer = $http->get("http://$self->{address}/metrics");
	return $answer->{success} ? $answer->{content} : '';
}

1;
