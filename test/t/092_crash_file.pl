# What a worker notes of what it applies is forgotten when that is over. So neither a process that is killed later nor an entry that
# crashes it now and then, with attempts between that end in order, is taken for one that crashes it each time.
# TAP, because the server crashes. Needs a library with fault points (src/fault.h).

use strict;
use warnings;
use Postpipe::Test;
use Postpipe::Test::Fault;
use Postpipe::Test::Hits;

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('main', redis => $redis);
my $fault = Postpipe::Test::Fault->new($node);
my $hits = Postpipe::Test::Hits->new(node => $node, redis => $redis, options => '{"max_retries": 1000, "retry_delay": "700ms"}');
$hits->shows(qr/^idle/, 'the pipeline is idle');
sql(<<'SQL');
CREATE TABLE bad (id text);
GRANT SELECT ON bad TO hits_owner;
CREATE FUNCTION check_row() RETURNS trigger LANGUAGE plpgsql AS
	'BEGIN
		IF EXISTS (SELECT FROM public.bad WHERE id = ''later'') THEN RAISE serialization_failure; END IF;
		IF EXISTS (SELECT FROM public.bad WHERE id IN (NEW.id, ''*'')) THEN RAISE ''bad''; END IF;
		RETURN NEW;
	END';
CREATE TRIGGER check_row BEFORE INSERT ON hits FOR EACH ROW EXECUTE FUNCTION check_row();
SQL

# --- What is committed: a worker that is killed while it waits for entries applied nothing.
$hits->publish(3);
$hits->settled('three entries');
my $from = log_offset($node);
kill_worker('an idle worker is killed');
$hits->shows(qr/^idle/, 'the pipeline is idle again');
is(join("\n", log_lines($node, qr/the process before died/, $from)), '', '... and no entry is suspected');

# --- What was rolled back: a worker that is killed while it waits to try again applies nothing.
sql(q(INSERT INTO bad VALUES ('later')));
$hits->publish(5);
$hits->shows(qr/^retrying\|sqlstate_40001/, 'a batch is rolled back');
wait_sql($node, 'postgres', q(SELECT max(next_attempt_at) > clock_timestamp() + interval '1 s' FROM postpipe_workers WHERE pipeline = 'hits'), 't', '... and tried again only later');
$from = log_offset($node);
kill_worker('the worker is killed then');
sql('DELETE FROM bad');
$hits->settled('it is tried again');
is(join("\n", log_lines($node, qr/the process before died/, $from)), '', '... and no entry is suspected');

# --- Suspects that were applied are none any more: the same entries, after a rewind, are a batch like any other.
my $before = $hits->{ids}[-1];
$hits->forget;
$hits->pause;
wait_for { $redis->command('INFO', 'clients') =~ /^blocked_clients:0\r$/m } 'nobody waits in Redis';
$hits->publish(20);
my $session = $hits->session;
$session->('BEGIN; LOCK TABLE bad');
sql(q(SELECT postpipe_resume('hits')));
$hits->stuck;
kill_worker('a worker is killed with a batch in hand');
$session->(undef);
$hits->settled('killed');
is(batches(), 20, '... the batch is applied one by one');
$hits->pause;
sql('TRUNCATE hits');
sql("SELECT postpipe_rewind('hits', to_id => '$before')");
sql(q(SELECT postpipe_resume('hits')));
$hits->settled('rewound');
is(batches(), 21, '... and then as one');

# --- A letter that crashes the process now and then, and fails as usual between: it is tried again and again, as is the pipeline.
sql(q(INSERT INTO bad VALUES ('*')));
$hits->publish(1);
wait_sql($node, 'postgres', 'SELECT state FROM postpipe_dlq', 'retrying', 'a letter');
$from = log_offset($node);
for my $round (1 .. 6)
{
	sql('UPDATE postpipe_dead_letter SET attempts = 0');    # or the wait doubles
	$fault->set('before_commit:kill');
	wait_for { $fault->fired && log_lines($node, qr/all server processes terminated; reinitializing/, $from) == $round } "crash $round";
	wait_sql($node, 'postgres', q(SELECT last_failed_at > backend_start FROM postpipe_dlq, postpipe_workers w WHERE w.pipeline = 'hits'), 't', '... and another attempt');
}
is(sql('SELECT state, message FROM postpipe_dlq'), 'retrying|bad', 'no entry is to blame for six crashes that were not in a row');
is(join("\n", log_lines($node, qr/crashed each time it applied something/, $from)), '', '... nor is the pipeline');
sql('TRUNCATE bad');
$hits->settled('mended');
pp_balanced($node);
$node->stop;
done_testing();

sub batches { return sql(q(SELECT batches FROM postpipe_stats WHERE pipeline = 'hits')) }

# Returns when the server has restarted its processes.
sub kill_worker
{
	my ($what) = @_;
	my $offset = log_offset($node);
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	kill('KILL', $hits->worker('pid'));
	wait_for { log_lines($node, qr/all server processes terminated; reinitializing/, $offset) } $what;
	return wait_for { sql('SELECT true') } '... and the server is there again';
}
