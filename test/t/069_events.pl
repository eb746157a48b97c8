# postpipe_events: what happened, in its order, and what comes again and again once.
# TAP, because it needs a Redis and background workers that fail.

use strict;
use warnings;
use Postpipe::Test;

my $redis = Postpipe::Test::Redis->new(keep => 1);
my $node = pp_node('events', redis => $redis, databases => 'postgres, other');
sql('CREATE EXTENSION postpipe');
sql(q(SELECT postpipe_drop_pipeline('posts'); CREATE TABLE t (id int); SELECT postpipe_create_pipeline('p', 'stream:p', target => 't')));
wait_sql($node, 'postgres', q(SELECT postpipe_wait_state('p', 'idle')), 't', 'it runs');
is(sql(q(SELECT string_agg(state, ' ' ORDER BY at) ~ 'starting idle$' FROM postpipe_events WHERE pipeline = 'p' AND pid = (SELECT pid FROM postpipe_workers WHERE pipeline = 'p'))), 't', 'a worker that starts');
my $n = sql('SELECT count(*) FROM postpipe_events');
$redis->xadd('stream:p', id => $_) for 1 .. 20;
wait_sql($node, 'postgres', 'SELECT count(*) FROM t', 20, '20 entries');
wait_sql($node, 'postgres', q(SELECT state FROM postpipe_stats), 'idle', 'idle again');
is(sql('SELECT count(*) FROM postpipe_events'), $n, 'entries are no events');

# A pause with its reason; a table that is gone, with attempts that are one event; it is back.
sql(q(SELECT postpipe_pause('p', 'for the night')));
sql(q(SELECT postpipe_wait_state('p', 'paused')));
is(sql(q(SELECT severity, state, reason_code, message FROM postpipe_events WHERE pipeline = 'p' AND state = 'paused')), 'LOG|paused|paused|for the night', 'a pause');
sql(q(SELECT postpipe_resume('p')));
sql(q(SELECT postpipe_wait_state('p', 'idle')));
sql('ALTER TABLE t RENAME TO away');
$redis->xadd('stream:p', id => 21);
wait_sql($node, 'postgres', q(SELECT repeated > 2 FROM postpipe_events WHERE pipeline = 'p' AND sqlstate = '42P01'), 't', 'an error that comes again and again');
is(sql(q(SELECT count(*) FROM postpipe_events WHERE pipeline = 'p' AND sqlstate = '42P01')), 1, '... is one event');
is(sql(q(SELECT severity, state, message, at > now() - interval '1 min' FROM postpipe_events WHERE sqlstate = '42P01')), 'ERROR||target table public.t of pipeline "p" does not exist|t', '... with its message, and when it was last');
is(sql(q(SELECT count(*) FROM postpipe_events WHERE pipeline = 'p' AND state = 'failed' AND reason_code = 'sqlstate_42P01' AND hint <> '')), 1, '... the state is failed, with a hint');
sql('ALTER TABLE away RENAME TO t');
wait_sql($node, 'postgres', 'SELECT count(*) FROM t', 21, 'it is back');
wait_sql($node, 'postgres', q(SELECT state FROM postpipe_events WHERE pipeline = 'p' AND severity = 'LOG' ORDER BY at DESC LIMIT 1) =~ s/state FROM/state IN ('idle', 'running') FROM/r, 't', 'the last event says so');

# Redis is away; no password is shown; another database has its own.
$redis->stop;
wait_sql($node, 'postgres', q(SELECT count(*) > 0 FROM postpipe_events WHERE pipeline = 'p' AND state = 'retrying' AND reason_code LIKE 'redis%'), 't', 'Redis is away');
$node->safe_psql('postgres', 'CREATE DATABASE other');
$node->safe_psql('other', 'CREATE EXTENSION postpipe');
is($node->safe_psql('other', q(SELECT count(*) FROM postpipe_events WHERE pipeline = 'p')), 0, 'another database does not see them');
is(sql(q(SELECT count(*) FROM (SELECT FROM postpipe_events OFFSET 256) x)), 0, 'there are 256 at most');
is(sql(q(SELECT bool_and(at IS NOT NULL AND pid > 0 AND repeated >= 0 AND (severity = 'ERROR') = (state IS NULL)) FROM postpipe_events)), 't', 'each has what it must have');
$node->stop;
done_testing();
