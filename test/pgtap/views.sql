-- Views: names, columns and types are fixed; a column may be appended, never changed, moved or dropped.
BEGIN;
SELECT no_plan();

CREATE FUNCTION pg_temp.columns_of(name) RETURNS text LANGUAGE sql AS $$
    SELECT string_agg(attname || ' ' || format_type(atttypid, atttypmod), ', ' ORDER BY attnum)
    FROM pg_attribute WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped
$$;
CREATE FUNCTION pg_temp.has_columns(view name, wanted text) RETURNS text LANGUAGE sql AS $$
    SELECT is(pg_temp.columns_of($1), regexp_replace($2, '\s+', ' ', 'g'), 'columns of ' || $1)
$$;

SELECT has_view('postpipe_stats');
SELECT pg_temp.has_columns('postpipe_stats',
'pipeline text, state text, reason_code text, reason text, stream text, consumer_group text, workers integer,
workers_wanted integer, entries_read bigint, entries_applied bigint, entries_conflicted bigint, entries_filtered bigint,
entries_deduplicated bigint, entries_dead bigint, entries_retried bigint, entries_lost bigint, entries_ingested bigint,
bytes_read bigint, batches bigint, pending bigint, lag bigint, lag_seconds double precision, oldest_pending_seconds
double precision, dead_letters bigint, oldest_dead_letter_at timestamp with time zone, entries_per_second double
precision, eta_seconds double precision, last_id postpipe_id, last_read_at timestamp with time zone, last_applied_at
timestamp with time zone, last_ack_at timestamp with time zone, reconnects bigint, worker_restarts bigint, last_error
text, last_error_sqlstate text, last_error_at timestamp with time zone, measured_at timestamp with time zone,
stats_reset timestamp with time zone');

SELECT has_view('postpipe_status');
SELECT pg_temp.has_columns('postpipe_status',
'pipeline text, state text, lag bigint, pending bigint, dead bigint, per_second numeric, behind interval, eta interval,
reason text');

SELECT has_view('postpipe_workers');
SELECT pg_temp.has_columns('postpipe_workers',
'pid integer, datname text, backend_type text, pipeline text, worker integer, owner text, state text, reason_code text,
reason text, consumer text, backend_start timestamp with time zone, state_change timestamp with time zone, last_read_at
timestamp with time zone, last_commit_at timestamp with time zone, last_ack_at timestamp with time zone, batch_entries
integer, batch_bytes bigint, batch_first_id postpipe_id, batch_last_id postpipe_id, batch_started_at timestamp with time
zone, redis text, redis_role text, redis_version text, redis_client_id bigint, reconnects bigint, restarts bigint,
next_attempt_at timestamp with time zone, memory_bytes bigint, last_error text, last_error_sqlstate text, last_error_at
timestamp with time zone');

SELECT has_view('postpipe_latency');
SELECT pg_temp.has_columns('postpipe_latency',
'pipeline text, operation text, count bigint, p50_seconds double precision, p95_seconds double precision, p99_seconds
double precision, max_seconds double precision');

SELECT has_view('postpipe_events');
SELECT pg_temp.has_columns('postpipe_events',
'at timestamp with time zone, pipeline text, pid integer, severity text, state text, reason_code text, sqlstate text,
message text, hint text, repeated bigint');

SELECT has_view('postpipe_metrics');
SELECT pg_temp.has_columns('postpipe_metrics', 'name text, labels jsonb, value double precision, type text, help text');

SELECT has_view('postpipe_histograms');
SELECT pg_temp.has_columns('postpipe_histograms',
'name text, labels jsonb, le double precision[], buckets bigint[], sum double precision, count bigint');

SELECT has_view('postpipe_pipelines');
SELECT pg_temp.has_columns('postpipe_pipelines',
'pipeline text, owner text, stream text, consumer_group text, redis text, target text, key text[], on_conflict text,
newer_by text, columns jsonb, event_types text[], statement text, generated boolean, search_path text, workers integer,
enabled boolean, enabled_reason text, options jsonb, created_at timestamp with time zone, altered_at timestamp with time
zone');

SELECT has_view('postpipe_dlq');
SELECT pg_temp.has_columns('postpipe_dlq',
'pipeline text, id postpipe_id, epoch integer, stream text, state text, sqlstate text, message text, detail text, hint
text, context text, schema_name text, table_name text, column_name text, constraint_name text, attempts integer,
first_failed_at timestamp with time zone, last_failed_at timestamp with time zone, next_retry_at timestamp with time
zone, added_at timestamp with time zone, worker integer, size_bytes bigint, event jsonb, fields bytea[]');

SELECT has_view('postpipe_audit');
SELECT pg_temp.has_columns('postpipe_audit',
'pipeline text, epoch integer, since_id postpipe_id, sealed_id postpipe_id, last_id postpipe_id, added bigint, applied
bigint, filtered bigint, retrying bigint, dead bigint, discarded bigint, lost bigint, pending bigint, lag bigint,
balance bigint, deduplicated bigint, ingested bigint, exact boolean, reason text, measured_at timestamp with time zone');

SELECT has_view('postpipe_lost');
SELECT pg_temp.has_columns('postpipe_lost',
'pipeline text, epoch integer, first_id postpipe_id, last_id postpipe_id, entries bigint, cause text, noticed_at timestamp with time zone');

-- Each can be read by the owner, and answers.
SELECT lives_ok('SELECT * FROM ' || v, v || ' can be read')
FROM unnest('{postpipe_stats,postpipe_status,postpipe_workers,postpipe_pipelines,postpipe_dlq,postpipe_audit,postpipe_lost}'::text[]) v;

-- A view hides nothing behind a function that the planner could push below its condition.
SELECT is(reloptions, '{security_barrier=true}', 'postpipe_dlq is a security barrier') FROM pg_class WHERE oid = 'postpipe_dlq'::regclass;

-- The one that people watch fits a terminal of 120 columns, as psql prints it, whatever the numbers and the reason are.
CREATE TEMP TABLE many AS
    SELECT (SELECT string_agg(format('%L::%s AS %I', CASE attname WHEN 'pipeline' THEN 'NAME' WHEN 'state' THEN 'retrying' WHEN 'reason' THEN repeat('reason ', 30)
        WHEN 'lag' THEN '123456789' WHEN 'pending' THEN '1234567' WHEN 'dead_letters' THEN '12345' WHEN 'entries_per_second' THEN '1234567890'
        WHEN 'lag_seconds' THEN '3599999' WHEN 'eta_seconds' THEN '3599999' END, format_type(atttypid, atttypmod), attname), ', ' ORDER BY attnum)
    FROM pg_attribute WHERE attrelid = 'postpipe_stats'::regclass AND attnum > 0) AS columns;
CREATE FUNCTION pg_temp.watch(VARIADIC names text[]) RETURNS SETOF text LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE 'CREATE OR REPLACE VIEW postpipe_stats AS ' || (SELECT string_agg('SELECT ' || replace(columns, 'NAME', n), ' UNION ALL ') FROM many, unnest(names) n);
    RETURN QUERY SELECT sum(greatest(length(key), width) + 3)::int - 1 || ' columns, reason ' || max(width) FILTER (WHERE key = 'reason')
    FROM (SELECT key, max(length(value)) AS width FROM postpipe_status s, json_each_text(row_to_json(s)) GROUP BY key) x;
END $$;
SELECT is(pg_temp.watch('posts'), '119 columns, reason 28', 'postpipe_status: a short name leaves 28 characters for the reason');
SELECT is(pg_temp.watch('posts', repeat('n', 20)), '120 columns, reason 17', '... a longer one less, so that the line fits');
SELECT is(pg_temp.watch('posts', repeat('n', 31)), '120 columns, reason 6', '... up to names of 31 letters');
SELECT is(pg_temp.watch('posts', repeat('n', 48)), '137 columns, reason 6', '... the longest name is not cut, and only that makes the line longer');
SELECT isnt_empty(format('SELECT FROM postpipe_status WHERE pipeline = %L', repeat('n', 48)), '... and its row is found by it');

SELECT * FROM finish();
ROLLBACK;
