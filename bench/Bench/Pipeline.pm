# Bench::Pipeline: a pipeline of postpipe, paused between the runs.
package Bench::Pipeline;

use strict;
use warnings;
use Bench::Meter;
use List::Util qw(max min);
use Time::HiRes qw(time);

# Between two looks: little to do for the cores that two workers share with Redis while much is left, a twentieth of the time that
# it has taken; and once all is read, often enough to see the end of what takes a second.
my $far_look_seconds = 0.1;
my $look_seconds = 0.01;
my $last_look_seconds = 0.002;

# The built-in one, made by CREATE EXTENSION together with its table.
sub posts
{
	my ($class, $stage) = @_;
	return $class->_new($stage, name => 'posts', stream => 'stream:posts:parsed', group => 'post_persist_workers');
}

# One of a section: with the rest of the arguments of postpipe_create_pipeline, as SQL, and an empty stream of its own.
sub create
{
	my ($class, $stage, $name, $arguments) = @_;
	my $self = $class->_new($stage, name => $name, stream => "stream:bench:$name", group => "postpipe_$name");
	$stage->sql("SELECT postpipe_create_pipeline('$name', stream => '$self->{stream}', enabled => false, $arguments)");
	return $self;
}

# One that does with another table what the pipeline posts does with posts.
sub like_posts
{
	my ($class, $stage, $name, $table) = @_;
	my ($columns, $newer_by) = @{ ($stage->rows(<<~'END'))[0] };
		SELECT quote_literal(columns), quote_literal(newer_by) FROM postpipe_pipelines WHERE pipeline = 'posts'
		END
	return $class->create($stage, $name, "target => '$table', key => '{channel_id,telegram_message_id}',"
		  . " on_conflict => 'newer', newer_by => $newer_by, columns => $columns");
}

sub _new
{
	my ($class, $stage, %arg) = @_;
	return bless { stage => $stage, workers => 1, %arg }, $class;
}

sub pause
{
	my ($self) = @_;
	$self->{stage}->sql("SELECT postpipe_pause('$self->{name}', 'bench')");
	$self->wait_state('paused');
	return;
}

sub resume
{
	my ($self) = @_;
	$self->{stage}->sql("SELECT postpipe_resume('$self->{name}')");
	return;
}

sub wait_state
{
	my ($self, $state) = @_;
	my $reached = $self->{stage}->sql("SELECT postpipe_wait_state('$self->{name}', '$state')");
	die "pipeline \"$self->{name}\" did not become $state\n" if $reached ne 't';
	return;
}

# Number of workers and options, of a paused pipeline: they are read when it is resumed.
sub configure
{
	my ($self, %set) = @_;
	my $options = $set{options} // '{}';
	$self->{workers} = $set{workers} // 1;
	$self->{stage}->sql("UPDATE postpipe_pipeline SET workers = $self->{workers}, options = '$options'"
		  . " WHERE pipeline = '$self->{name}'");
	return;
}

sub drop
{
	my ($self) = @_;
	$self->{stage}->sql("SELECT postpipe_drop_pipeline('$self->{name}', destroy_group => true, discard_dead => true)");
	$self->{stage}->redis("DEL $self->{stream}");
	return;
}

sub pids
{
	my ($self) = @_;
	return split /\n/,
	  $self->{stage}->sql("SELECT pid FROM postpipe_workers WHERE pipeline = '$self->{name}' AND pid IS NOT NULL");
}

# The name under which worker 1 reads; the pipeline has to be running.
sub consumer
{
	my ($self) = @_;
	return $self->{stage}->sql("SELECT consumer FROM postpipe_workers WHERE pipeline = '$self->{name}' AND worker = 1");
}

# From the resume, so the start of the workers is included, to the moment when Redis has the acknowledgement of the last
# entry, so everything is durable. Redis is asked, because that costs the server nothing and is what other clients wait
# for too.
sub drain
{
	my ($self) = @_;
	my $meter = Bench::Meter->new;
	my $last_id = $self->last_id;
	my @processors = Bench::Meter::processor_ticks();
	my $start = time;

	$self->resume;
	my $entries = $self->wait_acknowledged($last_id, sub {
		$meter->add($self->pids) if $meter->pids < $self->{workers};
		$meter->look;
	});
	my $seconds = time - $start;
	my %used = ($meter->result, Bench::Meter::processors_since(@processors));
	$meter->pids or die "no worker of pipeline \"$self->{name}\" was found\n";
	$self->pause;
	return { entries => $entries, seconds => $seconds, %used, memory => $meter->memory_profile };
}

# Until all that is in the stream is read and acknowledged; returns how many entries are in it.
sub wait_acknowledged
{
	my ($self, $last_id, $meanwhile) = @_;
	my $stage = $self->{stage};
	my $length = $stage->redis("XLEN $self->{stream}");
	my $start = time;
	my $left;
	my $look = sub { $meanwhile->() if $meanwhile; my $info = $self->group_info; $left = $info->{lag} || 0; return $info };
	my $pause = sub { $left > $length / 10 ? max($look_seconds, min($far_look_seconds, (time - $start) / 20)) : $look_seconds };

	$stage->wait_for('the last entry', sub { $look->()->{'last-delivered-id'} eq $last_id }, $pause);
	$stage->wait_for('the last acknowledgement', sub { $look->()->{pending} == 0 }, $last_look_seconds);
	return $length;
}

sub last_id
{
	my ($self) = @_;
	my ($id) = split /\n/, $self->{stage}->redis("XREVRANGE $self->{stream} + - COUNT 1");
	return $id // die "stream \"$self->{stream}\" is empty\n";
}

# What XINFO GROUPS says about our group: redis-cli prints names and values on lines of their own.
sub group_info
{
	my ($self) = @_;
	my @lines = split /\n/, $self->{stage}->redis("XINFO GROUPS $self->{stream}");
	my @groups;

	while (my ($name, $value) = splice(@lines, 0, 2))
	{
		push @groups, {} if $name eq 'name';
		$groups[-1]{$name} = $value if @groups;
	}
	my ($ours) = grep { $_->{name} eq $self->{group} } @groups;
	return $ours // { 'last-delivered-id' => '', pending => 0 };
}

1;
