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

our @EXPORT_OK = qw(definition make drop pause resume wait_state letters balanced);

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

# Waits until everything is accounted for in the epoch that is open.
sub balanced
{
	my ($name, $seconds) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_sql($Postpipe::Test::nodes[0], 'postgres', "SELECT balance FROM postpipe_audit WHERE pipeline = '$name' ORDER BY epoch DESC LIMIT 1", 0, "$name: the audit balances", $seconds);
}

1;
