# Events from SQL: postpipe_publish into the stream, postpipe_ingest past it. TAP, because it needs a Redis that goes away,
# background workers, and sessions that wait for each other.

use strict;
use warnings;
use Postpipe::Test;
use Postpipe::Test::Pipelines qw(wait_state);

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('direct', redis => $redis, conf => 'log_error_verbosity = terse');
sql(<<'SQL');
CREATE EXTENSION postpipe;
SELECT postpipe_drop_pipeline('posts');
CREATE ROLE app LOGIN;
CREATE ROLE member LOGIN IN ROLE app;
CREATE ROLE other LOGIN;
GRANT EXECUTE ON FUNCTION postpipe_publish, postpipe_ingest TO app, other;
CREATE TABLE item (id int PRIMARY KEY, v text, n numeric, who text DEFAULT current_user || ' ' || current_setting('TimeZone'), CONSTRAINT v CHECK (v <> 'bad'));
ALTER TABLE item OWNER TO app;
SELECT postpipe_create_pipeline('item', 'stream:item', target => 'item', owner => 'app', event_types => '{made,changed}');
CREATE TABLE raw (entry postpipe_id, event jsonb, envelope jsonb, added_at timestamptz, stream text);
SELECT postpipe_create_pipeline('raw', 'stream:raw', statement => 'INSERT INTO raw SELECT id, event, envelope, added_at, stream FROM postpipe_batch');
CREATE TABLE counted (id int PRIMARY KEY, n int);
SELECT postpipe_create_pipeline('counted', 'stream:counted', workers => 2, statement =>
	'INSERT INTO counted AS c SELECT (event ->> ''id'')::int, count(*) FROM postpipe_batch GROUP BY 1 ON CONFLICT (id) DO UPDATE SET n = c.n + excluded.n');
SQL
wait_state($_) for qw(item raw counted);

# --- One key, written in several ways: they take effect one after the other, as from the stream.
is(sql(q(SELECT postpipe_ingest('item', '[{"id": "1", "v": "a", "event_type": "made"}, {"id": "01", "v": "b", "event_type": "made"}, {"id": " 1", "v": "c", "event_type": "made"}]'))), 3, 'one key, written in three ways');
is(sql('SELECT id, v FROM item'), '1|c', '... the last one counts');
sql('TRUNCATE item');

# --- An event takes what one of another key has left before it: they take effect in their order then.
sql(q(CREATE TABLE seat (id int PRIMARY KEY, place int UNIQUE); SELECT postpipe_create_pipeline('seat', 'stream:seat', target => 'seat', enabled => false)));
is(sql(q(SELECT postpipe_ingest('seat', '[{"id": 1, "place": 1}, {"id": 1, "place": 2}, {"id": 2, "place": 1}]'))), 3, 'a value that one event leaves to another');
is(sql(q(SELECT * FROM seat ORDER BY id)), "1|2\n2|1", '... is that of the second one');
like(error(q(SELECT postpipe_ingest('seat', '[{"id": 1, "place": 3}, {"id": 1, "place": 4}, {"id": 3, "place": 1}]'))), qr/violates unique constraint "seat_place_key"/, '... and an error where it is not left');
is(sql(q(SELECT * FROM seat ORDER BY id)), "1|2\n2|1", '... which leaves all as it was');

# --- Publish: what comes back is the very same event.
my $event = q({"id": 1, "n": 1.50, "big": 123456789012345678901234567890.5, "deep": {"a": [1, "ä\\u0001\"", null, true]}, "data": {"x": 1}, "payload": "p", "": ""});
my $id = sql(qq(SELECT postpipe_publish('raw', \$j\$$event\$j\$)));
like($id, qr/^\d+-\d+$/, 'publish says the ID');
wait_sql($node, 'postgres', qq(SELECT entry, event = \$j\$$event\$j\$, event::text = \$j\$$event\$j\$::jsonb::text, envelope IS NULL FROM raw), "$id|t|t|t", 'the pipeline reads the same event');
is(scalar @{ $redis->command('XRANGE', 'stream:raw', $id, $id)->[0][1] }, 2, '... from one field');
sql(q(BEGIN; SELECT postpipe_publish('raw', '{"id": 2}'); ROLLBACK));
wait_sql($node, 'postgres', 'SELECT count(*) FROM raw', 2, 'it is sent at once: a rollback does not take it back');
sql(q(SELECT count(postpipe_publish('raw', jsonb_build_object('id', i), max_len => 100)) FROM generate_series(1, 1000) i));
cmp_ok($redis->command('XLEN', 'stream:raw'), '<', 1002, 'max_len trims');
like(error("SELECT $_->[0]"), $_->[1], "$_->[0]") for
	[ q(postpipe_publish('raw', '[{"id": 1}]')), qr/event is not a JSON object.*HINT/s ], [ q(postpipe_publish('raw', '1')), qr/event is not a JSON object/ ],
	[ q(postpipe_publish('raw', NULL)), qr/event must not be NULL/ ], [ q(postpipe_publish(NULL, '{}')), qr/pipeline must not be NULL/ ],
	[ q(postpipe_publish('nope', '{}')), qr/pipeline "nope" does not exist/ ], [ q(postpipe_publish('raw', '{}', 0)), qr/max_len must be positive/ ];
like(error(q(SET ROLE other; SELECT postpipe_publish('item', '{}'))), qr/must be a member of role "app"/, 'publish by somebody else');
like(error(q(SET default_transaction_read_only = on; SELECT postpipe_publish('raw', '{}'))), qr/read-only transaction/, 'publish in a read-only transaction');
like(sql(q(SET ROLE member; SELECT postpipe_publish('item', '{"id": 900}'))), qr/-/, 'publish by a member of the owner');
$redis->command('CONFIG', 'SET', 'maxmemory', 1);
like(error(q(SELECT postpipe_publish('raw', '{}'))), qr/OOM.*HINT:.*maxmemory/s, 'a Redis that is full');
$redis->command('CONFIG', 'SET', 'maxmemory', 0);
$redis->command('ACL', 'SETUSER', 'default', '-xadd');
like(error(q(SELECT postpipe_publish('raw', '{}'))), qr/NOPERM.*HINT:.*\+xadd/s, 'a user who may not');
$redis->command('ACL', 'SETUSER', 'default', '+xadd');
sql(q(UPDATE postpipe_pipeline SET database_oid = 1 WHERE pipeline = 'raw'));
like(error(q(SELECT postpipe_publish('raw', '{}'))), qr/comes from another server or database/, 'a copy of the database does not write into the stream');
sql(q(UPDATE postpipe_pipeline SET database_oid = (SELECT oid FROM pg_database WHERE datname = 'postgres') WHERE pipeline = 'raw'));
wait_state('raw');

# --- Ingest: as the pipeline would run it.
is(sql(q(SELECT postpipe_ingest('item', '{"id": 1, "v": "a", "n": 1.5}'))), 1, 'ingest of an object');
is(sql('SELECT id, v, n, who FROM item WHERE id = 1'), '1|a|1.5|app UTC', '... as the owner of the table, with the settings of a batch');
is(sql(q(SET ROLE member; SELECT postpipe_ingest('item', '[{"id": 2, "v": "b"}, {"id": 2, "v": "c", "event_type": "changed"}, {"id": 3, "event_type": "gone"}]'))), 2,
	'an array, of which one is filtered');
is(sql('SELECT string_agg(concat(id, v, who), $$ $$ ORDER BY id) FROM item WHERE id IN (2, 3)'), '2capp UTC', '... in its order');
is(sql(q(SELECT postpipe_ingest('item', '[]'))), 0, 'an empty array');
is(sql(q(SELECT postpipe_ingest('raw', (SELECT jsonb_agg(jsonb_build_object('i', i)) FROM generate_series(1, 2500) i)))), 2500, 'a long one');
is(sql(q(SELECT count(DISTINCT entry), count(DISTINCT event), min(event ->> 'i') FROM raw WHERE event ? 'i')), '2500|2500|1', '... each with an ID of its own');
is(sql(q(SELECT bool_and(abs(extract(epoch FROM added_at - now())) < 3600 AND stream = 'stream:raw') FROM raw WHERE event ? 'i')), 't', '... of now');
like(error("SELECT $_->[0]"), $_->[1], "$_->[0]") for
	[ q(postpipe_ingest('item', '3')), qr/event is not a JSON object.*HINT/s ], [ q(postpipe_ingest('item', '[{}, 3]')), qr/event 2 of the array is not a JSON object/ ],
	[ q(postpipe_ingest('item', NULL)), qr/event must not be NULL/ ], [ q(postpipe_ingest('nope', '{}')), qr/pipeline "nope" does not exist/ ],
	[ q(postpipe_ingest('item', '[{}, {}]', '1-18446744073709551615')), qr/id is too high for 2 events/ ];
is(sql(q(SELECT postpipe_ingest('item', '{"id": 12}', '18446744073709551615-18446744073709551615'))), 1, 'the last ID that there is');
like(error(q(SELECT postpipe_ingest('item', '[{}, {}]', '18446744073709551615-18446744073709551615'))), qr/id is too high for 2 events/, '... and none after it');
is(sql(q(SELECT postpipe_ingest('item', '[]', '18446744073709551615-18446744073709551615'))), 0, '... and an empty array has none');
like(error(q(SET ROLE other; SELECT postpipe_ingest('item', '{}'))), qr/must be a member of role "app"/, 'ingest by somebody else');
like(error(q(SET default_transaction_read_only = on; SELECT postpipe_ingest('item', '{}'))), qr/read-only transaction/, 'ingest in a read-only transaction');

# --- An error is the caller's, with all that the call did.
like(error(q(SELECT postpipe_ingest('item', '[{"id": 10, "v": "good"}, {"id": 11, "v": "bad"}]', '5-1'))), qr/violates check constraint "v"/, 'an error of the statement');
is(sql('SELECT count(*) FROM item WHERE id IN (10, 11)'), 0, '... takes all events of the call with it');
is(sql(q(SELECT count(*) FROM postpipe_dlq)), 0, '... and makes no dead letter');
is(sql(q(SELECT postpipe_ingest('item', '{"id": 10, "v": "good"}', '5-1'))), 1, '... nor a record of its ID');
is(sql('SELECT current_user'), sql('SELECT session_user'), 'the role is the caller\'s again');

# --- A retry with the same ID.
is(sql(q(SELECT postpipe_ingest('counted', '{"id": 1}', '7-1'))), 1, 'with an ID');
is(sql(q(SELECT postpipe_ingest('counted', '{"id": 1}', '7-1'))), 0, '... the second call does nothing');
is(sql(q(SELECT postpipe_ingest('counted', '[{"id": 1}, {"id": 1}]', '7-2'))), 2, 'an array with an ID');
is(sql(q(SELECT postpipe_ingest('counted', '{"id": 1}', '7-3'))), 1, '... which is one ID, and not two');
is(sql(q(SELECT postpipe_ingest('item', '{"id": 7}', '7-1'))), 1, 'another pipeline has its own');
is(sql(q(SELECT n FROM counted WHERE id = 1)), 4, 'each was counted once');
for my $end (qw(COMMIT ROLLBACK))
{
	my ($one, $two) = (pp_session($node), pp_session($node));
	my ($key, $n) = $end eq 'COMMIT' ? ('8-1', 0) : ('8-2', 1);
	my $call = "SELECT postpipe_ingest('counted', '{\"id\": 2}', '$key')";
	is($one->("BEGIN; $call"), "1\n", "one call before $end");
	my $pid = $two->('SELECT pg_backend_pid()');
	my $other = pp_start($node, "SET application_name = 'second'; $call");
	wait_sql($node, 'postgres', q(SELECT count(*) FROM pg_stat_activity WHERE application_name = 'second' AND wait_event_type = 'Lock'), 1, '... the other one waits');
	is($two->(q(SELECT postpipe_ingest('counted', '{"id": 3}', '8-9'))) =~ /^[01]$/m, 1, '... one with another ID does not');
	$one->($end);
	is($other->(), $n, "... and applies $n after $end");
	$_->(undef) for $one, $two;
}
is(sql('SELECT string_agg(n::text, $$ $$ ORDER BY id) FROM counted'), '4 2 1', 'each was counted once');

# --- What a retry of an older letter does to a row that was ingested since: nothing.
sql(q(CREATE TABLE late (id int PRIMARY KEY, v text, w text); SELECT postpipe_create_pipeline('late', 'stream:late', target => 'late', options => '{"retry_delay": "1h"}')));
wait_state('late');
sql(q(ALTER TABLE late ADD CONSTRAINT v CHECK (v <> 'bad')));
$redis->xadd('stream:late', id => 1, v => 'bad', w => 'filled');
$redis->xadd('stream:late', id => 2, v => 'good');
wait_sql($node, 'postgres', q(SELECT count(*) FROM postpipe_dlq WHERE pipeline = 'late'), 1, 'a letter');
is(sql(q(SELECT postpipe_ingest('late', '{"id": 1, "v": "newer"}'))), 1, '... its key is ingested');
sql('ALTER TABLE late DROP CONSTRAINT v');
is(sql(q(SELECT applied FROM postpipe_replay('late'))), 1, '... then it is replayed');
is(sql('SELECT v, w FROM late WHERE id = 1'), 'newer|filled', '... and only fills what is NULL');

# --- Numbers: with the commit; and the audit of the stream is not touched.
is(sql(q(SELECT entries_ingested FROM postpipe_stats WHERE pipeline = 'counted')), 7, 'entries_ingested');
sql(q(BEGIN; SELECT postpipe_ingest('counted', '{"id": 9}'); ROLLBACK;
	BEGIN; SAVEPOINT a; SELECT postpipe_ingest('counted', '{"id": 8}'); RELEASE a; SAVEPOINT b; SELECT postpipe_ingest('counted', '{"id": 9}'); ROLLBACK TO b;
	SELECT postpipe_ingest('counted', '{"id": 8}'); COMMIT));
is(sql(q(SELECT entries_ingested FROM postpipe_stats WHERE pipeline = 'counted')), 9, '... what was rolled back is not counted');
is(sql(q(SELECT ingested, applied FROM postpipe_audit WHERE pipeline = 'counted')), '9|0', 'postpipe_audit.ingested');
wait_for
{
	sql(q(SELECT count(postpipe_ingest('counted', '{"id": 5}')) FROM generate_series(1, 50)));
	sql(q(SELECT count(*) < 50 FROM postpipe_ingested WHERE pipeline = 'counted' AND id IS NULL)) eq 't';
}
'rows are added up';
{
	my $other = pp_session($node);
	$other->(q(BEGIN; SELECT FROM postpipe_ingested FOR UPDATE));
	is(sql(q(SET lock_timeout = '5s'; SELECT count(postpipe_ingest('counted', '{"id": 5}')) FROM generate_series(1, 300))), 300, '... without waiting for somebody else who does that');
	$other->('COMMIT');
	$other->(undef);
}
is(sql(q(SELECT ingested - (SELECT sum(n) FROM counted) FROM postpipe_audit WHERE pipeline = 'counted')), 0, '... and nothing is lost of them');
is(sql(q(SELECT postpipe_ingest('counted', '{"id": 1}', '7-1'))), 0, '... and the IDs stay');
sql(q(UPDATE postpipe_ingested SET ingested_at = now() - interval '8 days'));
wait_for
{
	sql(q(SELECT postpipe_ingest('counted', '{"id": 5}')));
	sql(q(SELECT count(*) FROM postpipe_ingested WHERE pipeline = 'counted' AND id IS NOT NULL)) == 0;
}
'IDs are kept as long as the ledger';

# --- Producers move there and back while entries are in the stream, and Redis goes away: nothing is lost or doubled.
my $before = sql(q(SELECT coalesce(sum(n), 0) FROM counted));
my $published = 0;
my $publish = sub { my ($n) = @_; $published += $n; $redis->pipeline(map { [ 'XADD', 'stream:counted', '*', 'id', 100 + $_ ] } 1 .. $n) };
my $ingest = sub { my ($n) = @_; sql("SELECT sum(postpipe_ingest('counted', jsonb_build_object('id', 100 + i))) FROM generate_series(1, $n) i") };
$publish->(3000);
$ingest->(200);
$publish->(500);
configure('postpipe.enabled', 'off');
wait_sql($node, 'postgres', q(SELECT count(*) FROM postpipe_workers WHERE backend_type LIKE '%worker%'), 0, 'postpipe.enabled = off');
$publish->(300);
$redis->freeze;
is($ingest->(300), 300, 'ingest without workers and without Redis');
like(error(q(SELECT postpipe_publish('counted', '{}'))), qr/Redis: /, '... while publish says that Redis is away');
$redis->thaw;
configure('postpipe.enabled');
$publish->(700);
wait_sql($node, 'postgres', q(SELECT applied FROM postpipe_audit WHERE pipeline = 'counted'), $published, 'back again: all of the stream is applied');
is(sql('SELECT sum(n) FROM counted') - $before, $published + 500, '... each event once, whichever way it came');
is(sql(q(SELECT n FROM counted WHERE id = 150)), 1 + 1 + 1 + 1 + 1 + 1, '... in each of the six moves');

# --- From a trigger of another pipeline, in its worker, whose own statement goes on with what it knows of its table.
sql(<<'SQL');
CREATE TABLE chained (id int PRIMARY KEY, v text);
CREATE FUNCTION chain() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM public.postpipe_ingest('item', pg_catalog.jsonb_build_object('id', 1000 OPERATOR(pg_catalog.+) NEW.id)); RETURN NULL; END $$;
CREATE TRIGGER chain AFTER INSERT ON chained FOR EACH ROW EXECUTE FUNCTION chain();
SELECT postpipe_create_pipeline('chained', 'stream:chained', target => 'chained');
SQL
wait_state('chained');
$redis->xadd('stream:chained', id => 1, v => 'x', w => 'y');
wait_sql($node, 'postgres', 'SELECT count(*) FROM item WHERE id = 1001', 1, 'a trigger ingests');
sql('ALTER TABLE chained ADD w text');
$redis->xadd('stream:chained', id => 2, v => 'x', w => 'y');
wait_sql($node, 'postgres', 'SELECT w FROM chained WHERE id = 2', 'y', '... and the column that was added since is filled');
is(sql('SELECT count(*) FROM item WHERE id = 1002'), 1, '... with the trigger');

pp_balanced($node);
$node->stop;

# --- The main job, where there never was a Redis and nothing runs: the table is made.
my $alone = pp_node('alone', conf => 'postpipe.enabled = off');
$alone->safe_psql('postgres', 'CREATE EXTENSION postpipe');
is($alone->safe_psql('postgres', q(SELECT postpipe_ingest('posts', '[{"id": "p1", "channel_id": "c", "telegram_message_id": 1, "text": "old"}, {"id": "p1", "channel_id": "c", "telegram_message_id": 1, "text": "new"}]'))),
	2, 'ingest into posts, without its table');
is($alone->safe_psql('postgres', 'SELECT content FROM posts'), 'new', '... the later one wins');
$alone->stop;
done_testing();
