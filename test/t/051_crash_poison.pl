# An entry that crashes the server process is found and dead-lettered after three crash restarts at most; a process that
# dies of something else costs no entry. TAP, because the server crashes. Needs a library with fault points (src/fault.h).

use strict;
use warnings;
use PostgreSQL::Test::Utils;
use Postpipe::Test;
use Postpipe::Test::Fault;
use Postpipe::Test::Hits;

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('main', redis => $redis);
my $fault = Postpipe::Test::Fault->new($node);
my $hits = Postpipe::Test::Hits->new(node => $node, redis => $redis);
$hits->shows(qr/^idle/, 'the pipeline is idle');
sql(<<'SQL');
CREATE FUNCTION fail(text) RETURNS void AS '$libdir/postpipe', 'postpipe_fault_fail' LANGUAGE C;
CREATE TABLE poison (id text, action text);
GRANT SELECT ON poison TO hits_owner;
CREATE FUNCTION check_row() RETURNS trigger LANGUAGE plpgsql AS
	'BEGIN PERFORM public.fail(action) FROM public.poison WHERE poison.id = NEW.id; RETURN NEW; END';
CREATE TRIGGER check_row BEFORE INSERT ON hits FOR EACH ROW EXECUTE FUNCTION check_row();
SQL
my $dead = "SELECT string_agg(concat_ws('|', id, state, sqlstate, message, detail), E'\\n' ORDER BY id) FROM postpipe_dlq";
my $message = 'XX000|the server process crashed while it applied this entry';

# One in a thousand: in the batch, alone, alone again.
my ($id) = poisoned(1000, segv => 666);
crashes(3, sub { resume(); $hits->settled('one of 1000') }, 'one of 1000 crashes the process');
is(sql($dead), "$id|dead|$message|It crashed 3 times, and 2 of them with this entry alone.", 'its dead letter');
is(sql("SELECT entries_applied || ' ' || entries_dead FROM postpipe_stats WHERE pipeline = 'hits'") =~ /^\d+ 1$/, 1, 'it is counted once');
balanced();
crashes(0, sub { $hits->publish(100); $hits->settled('the next 100') }, 'the pipeline flows');
forget();

# Nothing else was with it: two crashes tell as much.
($id) = poisoned(1, kill => 0);
crashes(2, sub { resume(); $hits->settled('a batch of one') }, 'it is alone in its batch, and the signal is SIGKILL');
is(sql($dead), "$id|dead|$message|It crashed 2 times, and 2 of them with this entry alone.", 'its dead letter');
forget();

# Two of them, and one of another kind.
my @ids = poisoned(50, segv => 10, 'exit' => 30);
$hits->publish(1, data => '[]');
crashes(5, sub { resume(); $hits->settled('two of 50') }, 'two of 50, one of which exits with a code of its own');
is(sql("SELECT string_agg(id::text, ' ' ORDER BY id) FROM postpipe_dlq WHERE message LIKE '%crashed%'"), "@ids", 'these two');
forget();

# In a batch that is split because of another entry.
@ids = poisoned(50, bad => 10, segv => 30);
crashes(3, sub { resume(); $hits->settled('in a split') }, 'it comes after an entry that fails as usual');
is(sql("SELECT string_agg(sqlstate, ' ' ORDER BY id) FROM postpipe_dlq"), 'P0001 XX000', 'two dead letters');
forget();

# A dead letter that crashes the process when it is tried again.
($id) = poisoned(20, bad => 10);
resume();
$hits->settled('a letter');
is(sql("SELECT state, sqlstate FROM postpipe_dlq"), 'retrying|P0001', 'it is to be tried again');
sql("SELECT postpipe_pause('hits')");
sql("SELECT postpipe_wait_state('hits', 'paused')");
sql("UPDATE poison SET action = 'segv'; UPDATE postpipe_dead_letter SET next_retry_at = now()");
crashes(2, sub { resume(); wait_sql($node, 'postgres', $dead, "$id|dead|$message|It crashed 2 times, and 2 of them with this entry alone.", 'it is dead') }, 'a retry');
crashes(0, sub { $hits->publish(10); $hits->settled('after a retry') }, 'the pipeline flows');
forget();

# All of them: the server is spared, until somebody mends it.
@ids = poisoned(5, map { (segv => $_) } 0 .. 4);
crashes(6, sub { resume(); $hits->shows(qr/^failed\|crash_loop\|the server process crashed each time/, 'it waits') }, 'all of 5');
is(sql("SELECT string_agg(id::text, ' ' ORDER BY id) FROM postpipe_dlq"), "@ids[0, 1]", 'two are dead');
sql("TRUNCATE poison; SELECT postpipe_pause('hits'); SELECT postpipe_resume('hits')");
$hits->settled('mended');
is(sql("SELECT string_agg(id, ' ' ORDER BY id) FROM hits"), "@ids[2 .. 4]", 'the others are applied');
forget();

# --- Not the entries' fault.
in_hand(40, sub { kill('KILL', $hits->worker('pid')) });
$hits->settled('killed with a batch in hand');
is(sql("SELECT batches FROM postpipe_stats WHERE pipeline = 'hits'"), 40, 'killed: the batch is applied one by one');
in_hand(40, sub { $node->stop('immediate'); $node->start });
$hits->settled('immediate stop');
is(sql("SELECT batches FROM postpipe_stats WHERE pipeline = 'hits'"), 1, 'immediate stop: the batch is applied as one');
in_hand(40, sub {
	my $from = log_offset($node);
	kill('KILL', sql("SELECT pid FROM pg_stat_activity WHERE backend_type = 'postpipe launcher'"));
	wait_for { log_lines($node, qr/all server processes terminated; reinitializing/, $from) } 'the launcher dies';
});
$hits->settled("another process's crash");
is(sql("SELECT batches FROM postpipe_stats WHERE pipeline = 'hits'"), 1, "another process's crash: the batch is applied as one");
my $before = sql("SELECT batches FROM postpipe_stats WHERE pipeline = 'hits'");
in_hand(40, sub { sql("SELECT pg_terminate_backend(@{[ $hits->worker('pid') ]})") });
$hits->settled('terminated');
is(sql("SELECT batches - $before FROM postpipe_stats WHERE pipeline = 'hits'"), 1, 'terminated: the batch is applied as one');
$before = sql("SELECT batches FROM postpipe_stats WHERE pipeline = 'hits'");
$fault->set('before_commit:fatal');
$hits->publish(40);
$hits->settled('FATAL');
is($fault->fired, 1, 'FATAL before a commit');
$fault->set('');
is(sql("SELECT batches - $before < 40 FROM postpipe_stats WHERE pipeline = 'hits'"), 't', 'FATAL: the batch is not applied one by one');
is(sql($dead), '', 'nothing is dead-lettered');

# --- What is suspected outlives a stop, and a change of the definition gives another chance.
sql('ALTER SYSTEM SET restart_after_crash = off');
$node->reload;
poisoned(1, segv => 0);
resume();
for my $start (1 .. 2)
{
	stopped("crash $start");
	$node->append_conf('postgresql.conf', 'postpipe.enabled = off') if $start == 2;
	$node->start(fail_ok => $start == 1);
}
sql("TRUNCATE poison; SELECT postpipe_pause('hits'); SELECT postpipe_resume('hits')");
$node->append_conf('postgresql.conf', 'postpipe.enabled = on');
$node->reload;
$hits->settled('mended and resumed after two crashes');
is(sql($dead), '', 'nothing is dead-lettered');

# --- The files.
my $directory = $node->data_dir . '/postpipe';
my ($file) = grep { /\.hits\.1$/ } files();
is((stat $directory)[2] & 0777, 0700, 'the folder belongs to the server alone');
is((stat "$directory/$file")[2] & 0777, 0600, 'so does a file');
$node->stop;
for my $content ('', 'x', 'x' x 4096, "\xff" x (-s "$directory/$file"))
{
	open(my $fh, '>:raw', "$directory/$file") or die $!;
	print $fh $content;
	close($fh) or die $!;
	$node->start;
	$hits->publish(3);
	$hits->settled('a damaged file of ' . length($content) . ' bytes');
	is(sql("SELECT batches <= 3 FROM postpipe_stats WHERE pipeline = 'hits'"), 't', 'it is ignored');
	$node->stop;
}
unlink map { "$directory/$_" } files();
rmdir $directory or die $!;
open(my $fh, '>', $directory) or die $!;
close($fh);
my $from = log_offset($node);
$node->start;
$hits->publish(3);
$hits->settled('no folder');
is(scalar log_lines($node, qr/could not \w+ file "postpipe\/\d+\.hits\.1": Not a directory/, $from), 1, 'without it: one line in the log');
$node->stop;
unlink $directory or die $!;
$node->start;
$hits->shows(qr/^idle/, 'idle');
is(scalar(grep { /\.hits\./ } files()), 1, 'there is a file again');
sql("SELECT postpipe_drop_pipeline('hits')");
wait_for { !grep { /\.hits\./ } files() } 'no file is left of a pipeline that is dropped';

done_testing();

# What it starts may crash before the session has its answer.
sub resume { return error("SELECT postpipe_resume('hits')") }

sub files { opendir(my $dir, $node->data_dir . '/postpipe') or die $!; return grep { !/^\./ } readdir $dir }

# Publishes n entries while the pipeline is paused, those at these positions with something that goes wrong; their IDs.
sub poisoned
{
	my ($n, @at) = @_;
	my @poisoned;

	sql("SELECT postpipe_pause('hits'); SELECT postpipe_wait_state('hits', 'paused')");
	# A read that still waits there for the worker that has gone would take the first of them.
	wait_for { $redis->command('INFO', 'clients') =~ /^blocked_clients:0\r$/m } 'nobody waits in Redis';
	my @published = $hits->publish($n);
	while (my ($action, $position) = splice(@at, 0, 2))
	{
		push @poisoned, $published[$position];
		sql("INSERT INTO poison VALUES ('$published[$position]', '$action')");
	}
	return @poisoned;
}

# How often the server restarts all its processes meanwhile.
sub crashes
{
	my ($n, $do, $what) = @_;
	my $from = log_offset($node);
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	$do->();
	is(scalar log_lines($node, qr/all server processes terminated; reinitializing/, $from), $n, "$what: $n crash restarts");
	return;
}

# A fault while the worker waits for a lock, in a trigger, in the middle of n entries.
sub in_hand
{
	my ($n, $do) = @_;
	my $session = $hits->session;

	$session->('BEGIN; LOCK TABLE poison');
	poisoned($n);
	resume();
	$hits->stuck;
	$do->();
	$session->(undef);
	return;
}

sub balanced
{
	return wait_sql($node, 'postgres', "SELECT balance FROM postpipe_audit WHERE pipeline = 'hits' ORDER BY epoch DESC LIMIT 1", '0',
		'the audit balances');
}

sub forget { sql("TRUNCATE poison; DELETE FROM postpipe_dead_letter"); return $hits->forget }

# Until the server has stopped by itself.
sub stopped
{
	my ($what) = @_;
	wait_for { !-e $node->data_dir . '/postmaster.pid' } "$what: the server stops";
	$node->_update_pid(0);
	return;
}
