-- Functions that SQL may call: argument names, types, defaults and results are fixed.
BEGIN;
SELECT no_plan();

CREATE FUNCTION pg_temp.has_signature(name name, arguments text, result text) RETURNS SETOF text LANGUAGE sql AS $$
    SELECT is(pg_get_function_arguments(oid), regexp_replace($2, '\s+', ' ', 'g'), 'arguments of ' || $1) FROM pg_proc WHERE proname = $1
    UNION ALL
    SELECT is(pg_get_function_result(oid), $3, 'result of ' || $1) FROM pg_proc WHERE proname = $1
$$;

SELECT pg_temp.has_signature('postpipe_create_pipeline',
'pipeline text, stream text, target text DEFAULT NULL::text, statement text DEFAULT NULL::text, consumer_group text DEFAULT NULL::text,
key text[] DEFAULT NULL::text[], on_conflict text DEFAULT ''update''::text, newer_by text DEFAULT NULL::text, columns jsonb DEFAULT NULL::jsonb,
event_types text[] DEFAULT NULL::text[], start_id text DEFAULT ''0''::text, start_time timestamp with time zone DEFAULT NULL::timestamp with time zone,
workers integer DEFAULT 1, redis text DEFAULT NULL::text, owner text DEFAULT NULL::text, enabled boolean DEFAULT true,
options jsonb DEFAULT ''{}''::jsonb, if_not_exists boolean DEFAULT false', 'text');
SELECT pg_temp.has_signature('postpipe_alter_pipeline',
'pipeline text, target text DEFAULT NULL::text, statement text DEFAULT NULL::text, key text[] DEFAULT NULL::text[], on_conflict text DEFAULT NULL::text,
newer_by text DEFAULT NULL::text, columns jsonb DEFAULT NULL::jsonb, event_types text[] DEFAULT NULL::text[], workers integer DEFAULT NULL::integer,
redis text DEFAULT NULL::text, owner text DEFAULT NULL::text, options jsonb DEFAULT NULL::jsonb, reset text[] DEFAULT NULL::text[], new_name text DEFAULT NULL::text', 'text');
SELECT pg_temp.has_signature('postpipe_drop_pipeline',
'pipeline text, if_exists boolean DEFAULT false, destroy_group boolean DEFAULT false, discard_dead boolean DEFAULT false', 'boolean');
SELECT pg_temp.has_signature('postpipe_pause', 'pipeline text, reason text DEFAULT NULL::text', 'void');
SELECT pg_temp.has_signature('postpipe_resume', 'pipeline text, take_over boolean DEFAULT false', 'void');
SELECT pg_temp.has_signature('postpipe_wait_state', 'pipeline text, state text, timeout interval DEFAULT ''00:00:30''::interval', 'boolean');
SELECT pg_temp.has_signature('postpipe_test',
'pipeline text, entries integer DEFAULT 10, from_id text DEFAULT NULL::text, statement text DEFAULT NULL::text,
OUT id postpipe_id, OUT ok boolean, OUT sqlstate text, OUT message text, OUT detail text, OUT result jsonb', 'SETOF record');
SELECT pg_temp.has_signature('postpipe_peek',
'pipeline text, from_id text DEFAULT ''-''::text, to_id text DEFAULT ''+''::text, max_entries integer DEFAULT 10,
OUT id postpipe_id, OUT added_at timestamp with time zone, OUT event jsonb, OUT envelope jsonb, OUT status text', 'SETOF record');
SELECT pg_temp.has_signature('postpipe_wait', 'pipeline text, id postpipe_id, timeout interval DEFAULT ''00:00:10''::interval', 'boolean');
SELECT pg_temp.has_signature('postpipe_rewind',
'pipeline text, to_id text DEFAULT NULL::text, to_time timestamp with time zone DEFAULT NULL::timestamp with time zone', 'bigint');
SELECT pg_temp.has_signature('postpipe_backfill',
'pipeline text, from_id text DEFAULT ''-''::text, to_id text DEFAULT ''+''::text, into_table regclass DEFAULT NULL::regclass, again boolean DEFAULT false,
OUT entries bigint, OUT applied bigint, OUT deduplicated bigint, OUT failed bigint', 'record');
SELECT pg_temp.has_signature('postpipe_replay',
'pipeline text, ids postpipe_id[] DEFAULT NULL::postpipe_id[], sqlstate text DEFAULT NULL::text, since timestamp with time zone DEFAULT NULL::timestamp with time zone,
until timestamp with time zone DEFAULT NULL::timestamp with time zone, max_entries integer DEFAULT NULL::integer, OUT matched bigint, OUT applied bigint, OUT failed bigint', 'record');
SELECT pg_temp.has_signature('postpipe_discard',
'pipeline text, ids postpipe_id[] DEFAULT NULL::postpipe_id[], sqlstate text DEFAULT NULL::text, since timestamp with time zone DEFAULT NULL::timestamp with time zone,
until timestamp with time zone DEFAULT NULL::timestamp with time zone, max_entries integer DEFAULT NULL::integer, reason text DEFAULT NULL::text', 'bigint');
SELECT pg_temp.has_signature('postpipe_consumers',
'pipeline text, OUT consumer text, OUT pending bigint, OUT idle_seconds double precision, OUT inactive_seconds double precision, OUT ours boolean,
OUT pid integer', 'SETOF record');
SELECT pg_temp.has_signature('postpipe_pending',
'pipeline text, max_entries integer DEFAULT 100, OUT id postpipe_id, OUT consumer text, OUT idle_seconds double precision, OUT delivery_count bigint,
OUT in_ledger boolean', 'SETOF record');
SELECT pg_temp.has_signature('postpipe_create_group', 'pipeline text, start_id text DEFAULT ''0''::text', 'boolean');
SELECT pg_temp.has_signature('postpipe_claim', 'pipeline text, consumer text DEFAULT NULL::text, min_idle interval DEFAULT NULL::interval', 'bigint');
SELECT pg_temp.has_signature('postpipe_reap_consumers',
'pipeline text, min_idle interval DEFAULT ''01:00:00''::interval, only_consumer text DEFAULT NULL::text, dry_run boolean DEFAULT false,
OUT consumer text, OUT idle_seconds double precision, OUT pending bigint, OUT reaped boolean', 'SETOF record');
SELECT pg_temp.has_signature('postpipe_skip', 'pipeline text, id postpipe_id, reason text DEFAULT NULL::text', 'boolean');
SELECT pg_temp.has_signature('postpipe_publish', 'pipeline text, event jsonb, max_len bigint DEFAULT NULL::bigint', 'postpipe_id');
SELECT pg_temp.has_signature('postpipe_ingest', 'pipeline text, event jsonb, id postpipe_id DEFAULT NULL::postpipe_id', 'bigint');
SELECT pg_temp.has_signature('postpipe_check',
'for_pipeline text DEFAULT NULL::text, OUT pipeline text, OUT check_name text, OUT status text, OUT detail text, OUT hint text', 'SETOF record');
SELECT pg_temp.has_signature('postpipe_selftest',
'timeout interval DEFAULT ''00:00:30''::interval, OUT step text, OUT ok boolean, OUT detail text', 'SETOF record');
SELECT pg_temp.has_signature('postpipe_reset_stats', 'pipeline text DEFAULT NULL::text', 'void');
SELECT pg_temp.has_signature('postpipe_redis_validator', 'options text[], catalog oid', 'void');
SELECT pg_temp.has_signature('postpipe_version', 'OUT library text, OUT sql text, OUT hiredis text, OUT tls boolean', 'record');
SELECT pg_temp.has_signature('postpipe_prometheus', '', 'SETOF text');
SELECT pg_temp.has_signature('postpipe_id_time', 'id postpipe_id', 'timestamp with time zone');
SELECT pg_temp.has_signature('postpipe_id_cmp', 'postpipe_id, postpipe_id', 'integer');
SELECT pg_temp.has_signature('postpipe_id_hash', 'postpipe_id', 'integer');

-- Each function under a view has the version of its row type in its name, and returns a set.
SELECT is_empty($$
    SELECT proname FROM pg_proc WHERE proname LIKE 'postpipe%' AND proretset AND proname !~ '_0_1$'
        AND proname NOT IN ('postpipe_check', 'postpipe_selftest', 'postpipe_test', 'postpipe_peek', 'postpipe_consumers', 'postpipe_pending', 'postpipe_reap_consumers', 'postpipe_prometheus') $$, 'the functions under views are versioned');
SELECT is_empty($$
    SELECT proname FROM pg_proc WHERE proname ~ '^postpipe_.*_0_1$' AND prosrc <> proname $$, '... and so are their symbols');

SELECT * FROM finish();
ROLLBACK;
