-- Who may do what: PUBLIC sees his own definitions and dead letters, pg_monitor reads the numbers, the rest is granted by the owner.
BEGIN;
SELECT no_plan();
CREATE ROLE postpipe_nobody;
CREATE ROLE postpipe_monitor IN ROLE pg_monitor;
CREATE ROLE postpipe_operator;
CREATE ROLE postpipe_reader IN ROLE pg_read_all_data;

CREATE TEMP TABLE wanted (object text, nobody boolean, monitor boolean);
INSERT INTO wanted VALUES
    ('postpipe_definition_changed', false, false), ('postpipe_create_pipeline', false, false), ('postpipe_alter_pipeline', false, false), ('postpipe_drop_pipeline', false, false), ('postpipe_pause', false, false),
    ('postpipe_resume', false, false), ('postpipe_wait_state', false, false), ('postpipe_wait', false, false), ('postpipe_test', false, false), ('postpipe_backfill', false, false), ('postpipe_check', false, true), ('postpipe_selftest', false, false), ('postpipe_peek', false, false), ('postpipe_rewind', false, false),
    ('postpipe_replay', false, false), ('postpipe_discard', false, false),
    ('postpipe_consumers', false, false), ('postpipe_pending', false, false), ('postpipe_create_group', false, false),
    ('postpipe_claim', false, false), ('postpipe_skip', false, false), ('postpipe_publish', false, false), ('postpipe_ingest', false, false), ('postpipe_reap_consumers', false, false), ('postpipe_lost_0_1', false, true), ('postpipe_lost', false, true),
    ('postpipe_reset_stats', false, false), ('postpipe_redis_validator', false, false), ('postpipe_version', false, true), ('postpipe_stats_0_1', false, true), ('postpipe_workers_0_1', false, true), ('postpipe_audit_0_1', false, true),
    ('postpipe_pipelines_0_1', true, true), ('postpipe_pipeline_owner', true, true), ('postpipe_id_time', true, true), ('postpipe_id_cmp', true, true),
    ('postpipe_stats', false, true), ('postpipe_status', false, true), ('postpipe_workers', false, true), ('postpipe_audit', false, true),
    ('postpipe_latency_0_1', false, true), ('postpipe_events_0_1', false, true), ('postpipe_events', false, true), ('postpipe_metrics_0_1', false, true), ('postpipe_histograms_0_1', false, true), ('postpipe_prometheus', false, true),
    ('postpipe_latency', false, true), ('postpipe_metrics', false, true), ('postpipe_histograms', false, true),
    ('postpipe_pipelines', true, true), ('postpipe_dlq', true, true),
    ('postpipe_pipeline', false, false), ('postpipe_dead_letter', false, false), ('postpipe_ledger', false, false),
    ('postpipe_epoch', false, false), ('postpipe_progress', false, false), ('postpipe_lost_range', false, false),
    ('postpipe_ingested', false, false);
SELECT set_eq($$ SELECT relname::text FROM pg_class WHERE relname LIKE 'postpipe%' AND relkind IN ('r', 'v') $$,
    $$ SELECT object FROM wanted WHERE to_regclass(object) IS NOT NULL $$, 'every relation is in the list below');
SELECT is(has_function_privilege('postpipe_nobody', p.oid, 'EXECUTE'), nobody, object || ': EXECUTE by PUBLIC')
FROM wanted JOIN pg_proc p ON proname = object;
SELECT is(has_function_privilege('postpipe_monitor', p.oid, 'EXECUTE'), monitor, object || ': EXECUTE by pg_monitor')
FROM wanted JOIN pg_proc p ON proname = object;
SELECT is(has_table_privilege('postpipe_nobody', c.oid, 'SELECT'), nobody, object || ': SELECT by PUBLIC')
FROM wanted JOIN pg_class c ON relname = object;
SELECT is(has_table_privilege('postpipe_monitor', c.oid, 'SELECT'), monitor, object || ': SELECT by pg_monitor')
FROM wanted JOIN pg_class c ON relname = object;
SELECT is(has_table_privilege(r, c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER'), false, object || ': nothing else by ' || r)
FROM wanted JOIN pg_class c ON relname = object, unnest('{postpipe_nobody,postpipe_monitor}'::name[]) r;

-- What is granted works: a function under a view is checked against the reader.
SET LOCAL ROLE postpipe_monitor;
SELECT lives_ok('SELECT * FROM ' || v, 'pg_monitor reads ' || v)
FROM unnest('{postpipe_stats,postpipe_status,postpipe_workers,postpipe_audit,postpipe_lost,postpipe_pipelines,postpipe_dlq}'::text[]) v;
SELECT lives_ok('SELECT * FROM postpipe_version()', 'pg_monitor asks for the version');
SELECT lives_ok('SELECT * FROM postpipe_check()', 'pg_monitor asks the doctor');
SELECT throws_ok('SELECT * FROM postpipe_dead_letter', '42501', NULL, 'pg_monitor does not read dead letters');
SELECT throws_ok('SELECT * FROM postpipe_pipeline', '42501', NULL, 'pg_monitor does not read the table of definitions');
SELECT throws_ok($$ SELECT postpipe_pause('posts') $$, '42501', NULL, 'pg_monitor does not pause');
SELECT isnt_empty('SELECT FROM postpipe_pipelines', 'pg_monitor sees all definitions');
SET LOCAL ROLE postpipe_nobody;
SELECT is_empty('SELECT FROM postpipe_pipelines', 'a definition is shown to members of its owner only');
SELECT lives_ok('SELECT * FROM ' || v, 'anybody reads ' || v) FROM unnest('{postpipe_pipelines,postpipe_dlq}'::text[]) v;
SELECT throws_ok('SELECT * FROM ' || v, '42501', NULL, 'nobody reads ' || v)
FROM unnest('{postpipe_stats,postpipe_status,postpipe_workers,postpipe_audit,postpipe_lost,postpipe_dead_letter,postpipe_ledger,postpipe_epoch,postpipe_progress,postpipe_lost_range,postpipe_ingested}'::text[]) v;
SELECT throws_ok($$ SELECT postpipe_resume('posts') $$, '42501', NULL, 'nobody resumes');
SELECT throws_ok($$ SELECT postpipe_wait_state('posts', 'idle', '0s') $$, '42501', NULL, 'nobody waits');
SELECT throws_ok($$ SELECT * FROM postpipe_version() $$, '42501', NULL, 'nobody asks for the version');
RESET ROLE;

-- A right to call a function is no right on somebody else's pipeline.
GRANT EXECUTE ON FUNCTION postpipe_pause, postpipe_resume, postpipe_drop_pipeline, postpipe_wait_state, postpipe_rewind, postpipe_create_pipeline,
    postpipe_consumers, postpipe_pending, postpipe_create_group, postpipe_claim, postpipe_reap_consumers, postpipe_replay, postpipe_discard, postpipe_publish, postpipe_ingest, postpipe_skip, postpipe_backfill, postpipe_test, postpipe_peek TO postpipe_operator;
SET LOCAL ROLE postpipe_operator;
SELECT throws_ok(format('SELECT %s', call), '42501', NULL, call || ' by one who does not own it')
FROM unnest(ARRAY['postpipe_pause(''posts'')', 'postpipe_test(''posts'')', 'postpipe_backfill(''posts'')', 'postpipe_peek(''posts'')', 'postpipe_resume(''posts'')', 'postpipe_resume(''posts'', true)', 'postpipe_drop_pipeline(''posts'')',
    'postpipe_consumers(''posts'')', 'postpipe_pending(''posts'')', 'postpipe_create_group(''posts'')', 'postpipe_claim(''posts'')',
    'postpipe_reap_consumers(''posts'')', 'postpipe_rewind(''posts'')', 'postpipe_replay(''posts'')', 'postpipe_discard(''posts'')', 'postpipe_publish(''posts'', ''{}'')', 'postpipe_ingest(''posts'', ''{}'')', 'postpipe_skip(''posts'', ''1-1'')', 'postpipe_wait_state(''posts'', ''idle'', ''0s'')']) call;
SELECT throws_ok($$ INSERT INTO postpipe_pipeline (pipeline, owner, stream, consumer_group, search_path) VALUES ('x', 10, 's', 'g', '') $$, '42501', NULL,
    'definitions are not written by hand');
RESET ROLE;

-- Dead letters: rows are for members of the pipeline's owner, and for those who may read all data.
CREATE ROLE postpipe_owner;
CREATE ROLE postpipe_member IN ROLE postpipe_owner;
GRANT USAGE, CREATE ON SCHEMA public TO postpipe_owner;
CREATE TABLE postpipe_target (id int PRIMARY KEY);
ALTER TABLE postpipe_target OWNER TO postpipe_owner;
SELECT isnt(postpipe_create_pipeline('owned', 'stream:owned', target => 'postpipe_target', owner => 'postpipe_owner', enabled => false), NULL, 'a pipeline of a role');
INSERT INTO postpipe_dead_letter (pipeline, epoch, id, stream, state, sqlstate, message, attempts, first_failed_at, last_failed_at, added_at, size_bytes)
SELECT p, 1, '1-1', 's', 'dead', '22P02', 'payload', 1, now(), now(), now(), 1 FROM unnest('{owned,posts}'::text[]) p;
SELECT set_eq('SELECT pipeline FROM postpipe_dlq', '{posts,owned}'::text[], 'the superuser sees all dead letters');
SET LOCAL ROLE postpipe_owner;
SELECT set_eq('SELECT pipeline FROM postpipe_dlq', '{owned}'::text[], 'the owner sees his own');
SET LOCAL ROLE postpipe_member;
SELECT set_eq('SELECT pipeline FROM postpipe_dlq', '{owned}'::text[], 'so does a member of the owner');
SELECT set_eq('SELECT pipeline FROM postpipe_pipelines', '{owned}'::text[], '... and the definition');
SET LOCAL ROLE postpipe_nobody;
SELECT is_empty('SELECT pipeline FROM postpipe_dlq', 'nobody else sees any');
SET LOCAL ROLE postpipe_monitor;
SELECT is_empty('SELECT pipeline FROM postpipe_dlq', 'nor does pg_monitor: payloads are not for monitoring');
SET LOCAL ROLE postpipe_reader;
SELECT set_eq('SELECT pipeline FROM postpipe_dlq', '{posts,owned}'::text[], 'pg_read_all_data does');
SELECT set_eq('SELECT pipeline FROM postpipe_pipelines', '{posts,owned}'::text[], '... and all definitions');
RESET ROLE;

-- No password reaches those who may read settings.
SET LOCAL ROLE postpipe_nobody;
SELECT throws_ok('SHOW postpipe.redis_url', '42501', NULL, 'postpipe.redis_url is for superusers');
SELECT throws_ok('SHOW postpipe.redis_password_file', '42501', NULL, 'so is postpipe.redis_password_file');
RESET ROLE;

SELECT * FROM finish();
ROLLBACK;
