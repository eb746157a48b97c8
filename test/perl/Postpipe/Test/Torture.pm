# Postpipe::Test::Torture: the randomized crash test. A round has its own PostgreSQL and Redis, producers that publish all
# the time, and random faults; then everything is healed, and the checker counts every entry.
#
#   Postpipe::Test::Torture->new(seed => 42, seconds => 30)->faults_round;
#   Postpipe::Test::Torture->new(seed => 42)->stops_round(50);
#
# Everything random comes from the seed; when things happen does not, so the same seed need not meet the same moment.
# Pipelines, all of them through the proxy:
#   hits      append-only, no key, two workers          stream:torture
#   solo      the same with one worker
#   counter   SET n = n + ..., two workers
#   posts     the default one                           stream:posts:parsed
package Postpipe::Test::Torture;

use strict;
use warnings;
use Postpipe::Test;
use Postpipe::Test::Torture::Checker;
use Postpipe::Test::Torture::Faults;
use Postpipe::Test::Torture::Producer;
use PostgreSQL::Test::Utils;
use Time::HiRes ();

use constant STREAM => Postpipe::Test::Torture::Producer::STREAM;
use constant POSTS => Postpipe::Test::Torture::Producer::POSTS;
use constant HEAL_SECONDS => 60;

my $rounds = 0;
my %workers = (hits => 2, solo => 1, counter => 2, posts => 1);
my %entries_of = (hits => STREAM, solo => STREAM, counter => STREAM, posts => POSTS);

# new(seed, seconds => 30, only => [names of faults], verbose => 0, conf => lines)
sub new
{
	my ($class, %opt) = @_;
	my $self = bless {
		seconds => 30,
		only => [],
		verbose => 0,
		conf => '',
		%opt,
		producers => [],
		killed => {},      # pid => 1: processes that we killed
		healing => [],     # [when, what, code]: what ends a fault that is under way
		diary => [],
		began => Time::HiRes::time(),
		stale => 0         # Redis has lost entries
	}, $class;

	$rounds++;
	srand($self->{seed});
	$self->{dir} = PostgreSQL::Test::Utils::tempdir('torture');
	$self->_set_up;
	return $self;
}

sub node { return $_[0]->{node} }
sub redis { return $_[0]->{redis} }
sub proxy { return $_[0]->{proxy} }
sub pipelines { return sort keys %workers }
sub workers { return $workers{ $_[1] } }
sub stream { return $entries_of{ $_[1] } }
sub group { return $_[1] eq 'posts' ? 'post_persist_workers' : "postpipe_$_[1]" }
sub logs { my ($self) = @_; return map { "$self->{dir}/producer$_" } 1 .. $self->{logs} // 0 }

# What was done to the servers, with the seconds since the start: shown when the round fails.
sub tell
{
	my ($self, $text) = @_;
	my $line = sprintf('%6.2f %s', Time::HiRes::time() - $self->{began}, $text);

	push @{ $self->{diary} }, $line;
	Test::More::note($line);
	diag($line) if $self->{verbose};
	return;
}

# SQL as the superuser; undef when that fails, as it may while the server is being tortured.
sub try_sql
{
	my ($self, $sql) = @_;
	local $ENV{PGCONNECT_TIMEOUT} = 5;
	local $ENV{PGOPTIONS} = '-c lock_timeout=2s -c statement_timeout=10s';
	my ($status, $out) = eval { $self->{node}->psql('postgres', $sql, timeout => 20, on_error_die => 0) };

	return defined $status && $status == 0 ? $out : undef;
}

# Waits a random time of at most so many seconds.
sub breathe { my ($self, $seconds) = @_; Time::HiRes::sleep(rand $seconds); return }

sub _set_up
{
	my ($self) = @_;
	my $commit = rand() < 0.5 ? 'off' : 'on';

	$self->{redis} = Postpipe::Test::Redis->new(keep => 1);
	$self->{proxy} = Postpipe::Test::Proxy->new(target => $self->{redis}->port);
	$self->{node} = pp_node("torture$rounds", redis => $self->{proxy}, conf => <<"CONF");
synchronous_commit = $commit
postpipe.max_retries = 2
postpipe.retry_delay = '500ms'
autovacuum_naptime = 1s
log_checkpoints = off
$self->{conf}
CONF
	$self->tell("synchronous_commit = $commit");
	$self->{node}->safe_psql('postgres', <<'SQL');
CREATE EXTENSION postpipe;
CREATE ROLE torturer;
CREATE TABLE parents (id int PRIMARY KEY);
INSERT INTO parents VALUES (0);
CREATE TABLE hits (id text NOT NULL, uid text NOT NULL, n int NOT NULL, parent int NOT NULL REFERENCES parents, length int);
CREATE TABLE solo (LIKE hits, FOREIGN KEY (parent) REFERENCES parents);
CREATE TABLE counter (n bigint NOT NULL, entries bigint NOT NULL);
INSERT INTO counter VALUES (0, 0);
CREATE TABLE weather (sqlstate text, seconds float NOT NULL);
INSERT INTO weather VALUES (NULL, 0);
CREATE FUNCTION meet_weather() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
	code text;
	delay float;
BEGIN
	SELECT sqlstate, seconds FROM public.weather INTO code, delay;
	IF delay > 0 THEN
		PERFORM pg_sleep(delay);
	END IF;
	IF code IS NOT NULL THEN
		RAISE EXCEPTION 'bad weather' USING ERRCODE = code;
	END IF;
	RETURN NULL;
END $$;
CREATE TRIGGER meet_weather AFTER INSERT ON hits FOR EACH STATEMENT EXECUTE FUNCTION meet_weather();
CREATE TRIGGER meet_weather AFTER INSERT ON solo FOR EACH STATEMENT EXECUTE FUNCTION meet_weather();
CREATE TRIGGER meet_weather AFTER UPDATE ON counter FOR EACH STATEMENT EXECUTE FUNCTION meet_weather();
GRANT SELECT ON parents, weather TO torturer;
ALTER TABLE hits OWNER TO torturer;
ALTER TABLE solo OWNER TO torturer;
ALTER TABLE counter OWNER TO torturer;
ALTER TABLE parents OWNER TO torturer;
SQL
	$self->_create_pipelines;
	# With synchronous_commit off the first fault may take what was only just committed, and a pipeline that was never
	# there cannot be settled: a checkpoint makes all of it durable.
	$self->{node}->safe_psql('postgres', 'CHECKPOINT');
	return;
}

sub _create_pipelines
{
	my ($self) = @_;
	my $rows = q(INSERT INTO public.%s SELECT id::text, event->>'uid', (event->>'n')::int, coalesce((event->>'parent')::int, 0),
		length(event->>'pad') FROM postpipe_batch);
	my %statement = (
		hits => sprintf($rows, 'hits'),
		solo => sprintf($rows, 'solo'),
		counter => q(UPDATE public.counter c SET n = c.n + b.n, entries = c.entries + b.entries
			FROM (SELECT coalesce(sum((event->>'n')::int), 0) AS n, count(*) AS entries FROM postpipe_batch) b));

	for my $name (sort keys %statement)
	{
		my @sizes = (1, 7, 100, 1000);
		my $size = $sizes[ 1 + int rand 3 ];
		my $lock = rand() < 0.5 ? ', "lock_timeout": "300ms"' : '';
		$self->{node}->safe_psql('postgres', "SELECT postpipe_create_pipeline('$name', '@{[STREAM]}', statement => \$s\$$statement{$name}\$s\$,
			workers => $workers{$name}, owner => 'torturer', options => '{\"batch_size\": $size$lock}')");
		$self->tell("$name: batch_size $size$lock");
	}
	return;
}

sub _start_producers
{
	my ($self, $n, $rate) = @_;

	for my $number (1 .. $n)
	{
		push @{ $self->{producers} }, Postpipe::Test::Torture::Producer->new(
			number => $number,
			seed => $self->{seed} + 1000 * $number,
			rate => $rate,
			port => $self->{redis}->port,
			file => "$self->{dir}/producer$number");
	}
	$self->{logs} = $n;
	return;
}

sub _stop_producers
{
	my ($self) = @_;
	$_->stop for splice @{ $self->{producers} };
	return;
}

# Later, in so many seconds, or when the faults end, this ends a fault.
sub heal_later
{
	my ($self, $seconds, $what, $code) = @_;
	push @{ $self->{healing} }, [ Time::HiRes::time() + $seconds, $what, $code ];
	return;
}

sub _heal_due
{
	my ($self, $all) = @_;
	my $now = Time::HiRes::time();

	for my $heal (splice @{ $self->{healing} })
	{
		if (!$all && $heal->[0] > $now)
		{
			push @{ $self->{healing} }, $heal;
			next;
		}
		$self->tell("  $heal->[1] ends");
		eval { $heal->[2]->(); 1 } or $self->tell("  $heal->[1]: $@");
	}
	return;
}

# One round: faults of all kinds for some seconds, then everything has to be right.
sub faults_round
{
	my ($self) = @_;
	my $faults = Postpipe::Test::Torture::Faults->new($self);

	$self->_start_producers(2, 1 + rand 5);
	my $end = Time::HiRes::time() + $self->{seconds};
	while (Time::HiRes::time() < $end)
	{
		$self->_heal_due;
		$faults->one;
		$self->breathe(1.2);
	}
	$self->_heal_due(1);
	$faults->heal_all;
	$self->_stop_producers;
	return $self->_finish;
}

# Waits until everything is settled, and checks.
sub _finish
{
	my ($self) = @_;
	my $checker = Postpipe::Test::Torture::Checker->new($self);
	my $began = Time::HiRes::time();
	my $ok;

	$self->tell('healed');
	if ($ok = $checker->settled(HEAL_SECONDS))
	{
		$self->tell(sprintf('settled after %.1f s', Time::HiRes::time() - $began));
		$ok = $checker->check;
	}
	$ok = $checker->check_end && $ok;
	$self->{proxy}->stop;
	$self->{redis}->kill9;
	if (!$ok)
	{
		diag("seed $self->{seed}, what was done:\n", map { "  $_\n" } @{ $self->{diary} });
		diag("files: $self->{dir}, ", $self->{node}->logfile);
	}
	return $ok;
}

# Immediate stops under load, with synchronous_commit = off: what was acknowledged before the stop has its row after it.
sub stops_round
{
	my ($self, $stops) = @_;
	my ($node, $redis) = @{$self}{qw(node redis)};
	my $checker = Postpipe::Test::Torture::Checker->new($self);
	my ($acknowledged, $lost) = (0, 0);
	my @watched = qw(hits solo);

	$node->safe_psql('postgres', 'ALTER SYSTEM SET synchronous_commit = off');
	$node->reload;
	$self->_start_producers(2, 4);
	for my $stop (1 .. $stops)
	{
		my %before = map { $_ => $checker->acknowledged($_) } @watched;
		for my $name (@watched)
		{
			wait_for { $checker->acknowledged($name) > $before{$name} } "stop $stop: entries of $name are acknowledged";
		}
		$self->breathe(0.3);
		$node->stop('immediate');
		my %acknowledged = map { my $name = $_; $name => [ $checker->acknowledged_ids($name) ] } @watched;
		$node->start;
		for my $name (sort keys %acknowledged)
		{
			my @missing = $checker->without_row($name, @{ $acknowledged{$name} });
			$acknowledged += @{ $acknowledged{$name} };
			$lost += @missing;
			diag("stop $stop: $name has no row for @missing[0 .. ($#missing > 4 ? 4 : $#missing)]") if @missing;
		}
	}
	$self->_stop_producers;
	is($lost, 0, "$stops immediate stops: each of $acknowledged entries that were acknowledged has its row");
	return $self->_finish && !$lost;
}

1;
