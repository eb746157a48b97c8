# Postpipe::Test::Pipelines: what tests do with the pipelines of their server, the one that they made first (see sql() of
# Postpipe::Test). Each reads a stream of its own, stream:<name>.
#
#   use Postpipe::Test::Pipelines qw(make pause resume balanced drop);
#   make('p', workers => 2);       # v of each entry goes into the table t_p
#   pause('p'); ... resume('p');
#   balanced('p');
#   drop('p');
package Postpipe::Test::Pipelines;

use strict;
use warnings;
use Exporter 'import';
use Postpipe::Test;

our @EXPORT_OK = qw(definition make xadds holding drop pause resume while_paused wait_state letters rows shows lost lag balanced);

# The SQL that creates a pipeline with these arguments.
sub definition
{
	my ($name, %opt) = @_;
	return "SELECT postpipe_create_pipeline('$name', " . join(', ', "'stream:$name'", map { "$_ => \$q\$$opt{$_}\$q\$" } sort keys %opt) . ')';
}

# A pipeline and its table; `statement` is another one than the usual.
sub make
{
	my ($name, %opt) = @_;
	sql("CREATE TABLE t_$name (v text)");
	sql(definition($name, statement => "INSERT INTO t_$name SELECT event ->> 'v' FROM postpipe_batch", %opt));
	return;
}

# Commands that add n entries of which no two are alike; with IDs of this millisecond, or of now.
sub xadds
{
	my ($name, $n, $ms) = @_;
	return map { [ 'XADD', "stream:$name", $ms ? "$ms-$_" : '*', 'v', 's' . ++our $serial ] } 1 .. $n;
}

# From now on an entry of it whose v begins with "hold" waits for the advisory lock 1.
sub holding
{
	my ($name) = @_;
	sql("CREATE OR REPLACE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN IF NEW.v LIKE ''hold%'' THEN PERFORM pg_advisory_xact_lock(1); END IF; RETURN NEW; END';
		CREATE TRIGGER hold BEFORE INSERT ON t_$name FOR EACH ROW EXECUTE FUNCTION hold()");
	return;
}

sub drop { my ($name) = @_; sql("SELECT postpipe_drop_pipeline('$name'); DROP TABLE t_$name"); return }

# Returns when no transaction of it is open any more.
sub pause
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	sql("SELECT postpipe_pause('$name')");
	return wait_state($name, 'paused');
}

sub resume { my ($name) = @_; sql("SELECT postpipe_resume('$name')"); return }

# What is published meanwhile is there when it goes on.
sub while_paused
{
	my ($name, $publish) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	pause($name);
	$publish->();
	return resume($name);
}

sub wait_state
{
	my ($name, $state) = (@_, 'idle');
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is(sql("SELECT postpipe_wait_state('$name', '$state')"), 't', "$name: $state");
}

# Waits until it has n dead letters.
sub letters
{
	my ($name, $n) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_sql($Postpipe::Test::nodes[0], 'postgres', "SELECT count(*) FROM postpipe_dlq WHERE pipeline = '$name'", $n, "$name: $n letters");
}

# Waits until its table has n rows, each of its own.
sub rows
{
	my ($name, $n, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_sql($Postpipe::Test::nodes[0], 'postgres', "SELECT count(*), count(DISTINCT v) FROM t_$name", "$n|$n", $what // "$name: $n rows", 60);
}

# Waits for added, applied, lost and balance of the epoch that is open.
sub shows
{
	my ($name, $numbers, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_sql($Postpipe::Test::nodes[0], 'postgres', "SELECT added, applied, lost, balance FROM postpipe_audit WHERE pipeline = '$name' ORDER BY epoch DESC LIMIT 1", $numbers, "$name: $what", 30);
}

# What is lost: in which epoch, what that began with, how many, and whether the range is empty.
sub lost
{
	my ($name) = @_;
	return sql("SELECT string_agg(format('%s %s %s %s', epoch, e.cause, entries, l.first_id > l.last_id), ', ' ORDER BY noticed_at) FROM postpipe_lost l JOIN postpipe_epoch e USING (pipeline, epoch) WHERE pipeline = '$name'");
}

# -1: not known.
sub lag { my ($name) = @_; return sql("SELECT coalesce(lag, -1) FROM postpipe_stats WHERE pipeline = '$name'") }

# Waits until everything is accounted for in the epoch that is open.
sub balanced
{
	my ($name, $seconds) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_sql($Postpipe::Test::nodes[0], 'postgres', "SELECT balance FROM postpipe_audit WHERE pipeline = '$name' ORDER BY epoch DESC LIMIT 1", 0, "$name: the audit balances", $seconds);
}

1;
