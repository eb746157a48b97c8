# DROP EXTENSION at the moment in which a process of ours has just found the extension, and before it has read the
# definitions: it waits for the end of the drop and finds nothing, which is no error. What is dropped may be an extension
# that was created while the process waited for an earlier drop.

use strict;
use warnings;
use Postpipe::Test;
use Postpipe::Test::Hits;

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('races', redis => $redis);
$node->safe_psql('postgres', 'CREATE EXTENSION postpipe');
my $hits = Postpipe::Test::Hits->new(node => $node, redis => $redis);
my ($one, $two) = ($hits->session, $hits->session);
$_->('SET client_min_messages = error') for $one, $two;
$hits->publish(1);
$hits->settled('on a good day');
my $from = log_offset($node);

# --- a worker that starts: the server makes it wait when it has connected
my $before = $hits->worker('pid');
$node->safe_psql('postgres', 'ALTER SYSTEM SET post_auth_delay = 3');
$node->reload;
wait_for { log_lines($node, qr/post_auth_delay/, $from) } 'whoever connects waits';
$one->("SELECT pg_terminate_backend($before)");
my $after;
wait_for
{
	($after) = $one->("SELECT pid FROM postpipe_workers WHERE pipeline = 'hits' AND pid NOT IN (0, $before)") =~ /(\d+)/
}
'a worker starts';
$one->('BEGIN; DROP EXTENSION postpipe CASCADE');
$two->('ALTER SYSTEM RESET post_auth_delay');
$node->reload;
waits_for_lock($after, 'the worker waits for the end of the drop');
$one->('COMMIT');
gone('a worker that starts');

# --- a worker that has found its pipeline gone and looks again, the extension being there anew and dropped again
$one->('CREATE EXTENSION postpipe');
$hits->create;
$hits->publish(1);
wait_for { pending($redis, $hits->stream, $hits->group) == 0 } 'it runs again';
my $worker = $hits->worker('pid');
$one->('BEGIN; DROP EXTENSION postpipe CASCADE');
$hits->publish(1);
waits_for_lock($worker, 'the worker waits for the drop');
drop_anew($worker);
gone('a worker that finds its pipeline gone');

# --- the supervisor, the same
$one->('CREATE EXTENSION postpipe');
my $of_supervisor = "SELECT pid FROM postpipe_workers WHERE datname = 'postgres' AND backend_type = 'supervisor'";
my $supervisor = $node->safe_psql('postgres', $of_supervisor);
$one->('BEGIN; DROP EXTENSION postpipe CASCADE');
$node->reload;
waits_for_lock($supervisor, 'the supervisor waits for the drop');
drop_anew($supervisor);
gone('the supervisor');

# --- ... when the database's lock_timeout is shorter than the drop
$one->('CREATE EXTENSION postpipe; ALTER DATABASE postgres SET lock_timeout = 100');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($supervisor)");
$one->('RESET lock_timeout');
my $killed = $supervisor;
wait_for { ($supervisor) = $one->("$of_supervisor AND pid NOT IN (0, $killed)") =~ /(\d+)/ } 'another supervisor';
wait_sql($node, 'template1', "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'postpipe worker'", '1', '... has started its workers');
$one->('BEGIN; DROP EXTENSION postpipe CASCADE');
$node->reload;
wait_sql($node, 'template1', "SELECT count(*) FROM pg_locks WHERE pid = $supervisor AND NOT granted AND clock_timestamp() - waitstart > '150 ms'",
	'1', 'it waits longer than that');
$one->('COMMIT');
gone('a supervisor with a lock_timeout');

# --- an error would have ended it
$one->('CREATE EXTENSION postpipe');
is($node->safe_psql('postgres', $of_supervisor), $supervisor, 'it is the supervisor of before');

done_testing();

sub waits_for_lock
{
	my ($pid, $what) = @_;
	wait_sql($node, 'template1', "SELECT count(*) FROM pg_locks WHERE pid = $pid AND NOT granted", '1', $what);
	return;
}

# While this process waits for the drop of session one, and before it goes on: CREATE EXTENSION and the next drop.
sub drop_anew
{
	my ($pid) = @_;
	kill STOP => $pid;
	$one->('COMMIT');
	$one->('CREATE EXTENSION postpipe');
	$two->('BEGIN; DROP EXTENSION postpipe CASCADE');
	kill CONT => $pid;
	waits_for_lock($pid, '... and for the next one');
	$two->('COMMIT');
	return;
}

sub gone
{
	my ($who) = @_;
	wait_sql($node, 'template1', "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'postpipe worker'", '0', "$who: no worker is left");
	is(join("\n", log_lines($node, qr/ERROR/, $from)), '', "$who: no error");
	$from = log_offset($node);
	return;
}
