# Postpipe::Test::Hits: a pipeline that shows whether every entry was applied exactly once.
#
#   my $hits = Postpipe::Test::Hits->new(node => $node, redis => $redis);
#   $hits->publish(20);                      # remembers the IDs
#   ... a fault ...
#   $hits->settled('after the fault');       # every ID is in the table or in postpipe_dlq, once, and nothing is pending
#
# The statement is an INSERT without any key into the table `hits`: an entry that is applied twice is there twice. It runs
# as the role hits_owner, which is no superuser.
# The pipeline `posts` of that database is paused, so that the log and the numbers are those of this pipeline.
package Postpipe::Test::Hits;

use strict;
use warnings;
use Postpipe::Test '!sql';

# new(node, redis, db => 'postgres', name => 'hits', options => '{}', workers => 1)
sub new
{
	my ($class, %opt) = @_;
	my $self = bless { db => 'postgres', name => 'hits', options => '{}', workers => 1, %opt, ids => [] }, $class;

	$self->create;
	return $self;
}

sub stream { return "stream:$_[0]{name}" }
sub group { return "postpipe_$_[0]{name}" }
sub sql { my ($self, $sql) = @_; return $self->{node}->safe_psql($self->{db}, $sql) }

# The extension, the table and the pipeline. Again after DROP EXTENSION or in a database made anew.
sub create
{
	my ($self) = @_;

	# In one transaction, so that no worker of `posts` comes in between and makes its table.
	$self->sql("BEGIN; CREATE EXTENSION IF NOT EXISTS postpipe; SELECT postpipe_pause('posts'); COMMIT;
		DO \$\$BEGIN CREATE ROLE hits_owner; EXCEPTION WHEN duplicate_object THEN NULL; END\$\$;
		CREATE TABLE IF NOT EXISTS public.$self->{name} (id text);
		ALTER TABLE public.$self->{name} OWNER TO hits_owner;");
	$self->create_pipeline;
	return;
}

sub create_pipeline
{
	my ($self) = @_;

	$self->sql("SELECT postpipe_create_pipeline('$self->{name}', '@{[ $self->stream ]}', workers => $self->{workers}, owner => 'hits_owner',
		options => '$self->{options}', statement => 'INSERT INTO public.$self->{name} SELECT id::text FROM postpipe_batch')");
	return;
}

# Publishes n entries in one write and remembers their IDs, which it returns.
sub publish
{
	my ($self, $n, @more) = @_;
	my @ids = $self->{redis}->pipeline(map { [ 'XADD', $self->stream, '*', n => $_, @more ] } 1 .. $n // 1);

	for my $id (@ids)
	{
		die "XADD: $id" unless $id =~ /^\d+-\d+$/;
	}
	push @{ $self->{ids} }, @ids;
	return @ids;
}

# What was published up to now is of no interest any more.
sub forget { my ($self) = @_; $self->sql("TRUNCATE public.$self->{name}"); $self->{ids} = []; return }

# Waits until as many rows and dead letters are there as were published; then each ID once, and nothing pending.
sub settled
{
	my ($self, $what, $seconds) = @_;
	my $all = "SELECT id FROM public.$self->{name} UNION ALL SELECT id::text FROM postpipe_dlq WHERE pipeline = '$self->{name}'";
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	wait_for { $self->sql("SELECT count(*) FROM ($all) x") >= @{ $self->{ids} } } "$what: all entries arrive", $seconds
	  or return;
	wait_for { pending($self->{redis}, $self->stream, $self->group) == 0 } "$what: nothing is pending";

	my %count = map { $_ => 1 } @{ $self->{ids} };
	my (@twice, @unknown);
	for my $row (split /\n/, $self->sql("SELECT id, count(*) FROM ($all) x GROUP BY id"))
	{
		my ($id, $n) = split /\|/, $row;
		push @unknown, $id unless delete $count{$id};
		push @twice, "$id: $n" if $n != 1;
	}
	return is_deeply({ lost => [ sort keys %count ], twice => \@twice, unknown => \@unknown },
		{ lost => [], twice => [], unknown => [] }, "$what: every entry is there exactly once");
}

# postpipe_stats of this pipeline: state|reason_code|reason|last_error
sub status
{
	my ($self) = @_;
	return $self->sql("SELECT concat_ws('|', state, coalesce(reason_code, ''), coalesce(reason, ''), coalesce(last_error, ''))
		FROM postpipe_stats WHERE pipeline = '$self->{name}'");
}

# Waits until postpipe_stats shows this, a regular expression for what status() returns.
sub shows
{
	my ($self, $regex, $what, $seconds) = @_;
	my $status = '';
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	wait_for { ($status = $self->status) =~ $regex } $what, $seconds;
	return like($status, $regex, $what);
}

# One column of postpipe_workers, of worker 1.
sub worker
{
	my ($self, $column) = @_;
	return $self->sql("SELECT $column FROM postpipe_workers WHERE pipeline = '$self->{name}' AND datname = current_database() AND worker = 1");
}

# Waits until the worker has tried so many times more to reach Redis, or to apply a batch.
sub attempts
{
	my ($self, $n, $what) = @_;
	my %seen;
	return wait_for { my $at = $self->worker('next_attempt_at'); $seen{$at}++ if $at; keys %seen > $n } $what // "$n more attempts";
}

# Returns when its worker has gone.
sub pause
{
	my ($self) = @_;

	$self->sql("SELECT postpipe_pause('$self->{name}')");
	$self->sql("SELECT postpipe_wait_state('$self->{name}', 'paused')");
	return;
}

# A worker with a back-off that begins anew, so that the next case need not wait for what this one left.
sub fresh
{
	my ($self) = @_;

	$self->pause;
	$self->sql("SELECT postpipe_resume('$self->{name}')");
	$self->shows(qr/^idle/, "$self->{name} is idle");
	return;
}

# A psql that stays: my $run = $hits->session; $run->('BEGIN; LOCK TABLE hits'); ... $run->('COMMIT'); $run->(undef) ends it.
sub session
{
	my ($self, $db) = @_;
	return pp_session($self->{node}, $db // $self->{db});
}

# Waits until the worker waits for a lock in SQL: it has a batch in hand, and has asked for the next.
sub stuck
{
	my ($self, $what) = @_;
	return wait_sql($self->{node}, $self->{db}, "SELECT count(*) > 0 FROM pg_stat_activity WHERE backend_type = 'postpipe worker'
		AND datname = current_database() AND wait_event_type = 'Lock'", 't', $what // 'the worker waits for a lock');
}

1;
