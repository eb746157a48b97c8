/*
 * sqlfuncs_metrics.c
 *		The function under postpipe_metrics, and the text that Prometheus reads.
 *
 * Every sample is a row of postpipe_metrics.  Most of them are numbers of the other views, read through
 * these, so that all of them say the same; what is not known is NULL, and is left out of the text.  The
 * stream's label is its name without "stream:", with dots: dashboards of before have posts.parsed.
 */
#include "sqlfuncs.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/snapmgr.h"

#include "guc.h"
#include "store.h"

PG_FUNCTION_INFO_V1(postpipe_metrics_0_1);
PG_FUNCTION_INFO_V1(postpipe_prometheus);

static Datum
text_array(Datum *elems, int n)
{
	return PointerGetDatum(construct_array(elems, n, TEXTOID, -1, false, TYPALIGN_INT));
}

static Datum
int8_array(Datum *elems, int n)
{
	return PointerGetDatum(
		construct_array(elems, n, INT8OID, sizeof(int64), FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
}

/*
 * What no view has, as parameters: of each pipeline the entries, consumers, bytes and time of the oldest
 * pending entry (ms) that were measured (-1: not known), and of each SQLSTATE of each pipeline how many
 * entries died with it.
 */
static void
get_unviewed(const List *pipelines, Datum *values)
{
	int n = list_length(pipelines);
	Datum *names = palloc(Max(n, 1) * sizeof(Datum));
	Datum *measured[4];
	Datum *error_names = palloc(Max(n, 1) * PP_ERROR_CODES * sizeof(Datum));
	Datum *codes = palloc(Max(n, 1) * PP_ERROR_CODES * sizeof(Datum));
	Datum *counts = palloc(Max(n, 1) * PP_ERROR_CODES * sizeof(Datum));
	int num_errors = 0;
	ListCell *lc;

	for (int i = 0; i < lengthof(measured); i++)
		measured[i] = palloc(Max(n, 1) * sizeof(Datum));
	foreach (lc, pipelines)
	{
		const PpPipeline *p = lfirst(lc);
		PpPipe *pipe = pp_pipe_find(MyDatabaseId, p->name);
		PpErrorCount errors[PP_ERROR_CODES];
		PpMeasured m = {0};
		int i = foreach_current_index(lc);
		int num = 0;

		if (pipe != NULL)
		{
			LWLockAcquire(&pipe->lock, LW_SHARED);
			m = pipe->measured;
			num = pipe->num_errors;
			memcpy(errors, pipe->errors, sizeof(errors));
			LWLockRelease(&pipe->lock);
		}
		names[i] = CStringGetTextDatum(p->name);
		measured[0][i] = Int64GetDatum(m.at != 0 ? m.standing.length : -1);
		measured[1][i] = Int64GetDatum(m.at != 0 ? m.consumers : -1);
		measured[2][i] = Int64GetDatum(m.at != 0 ? m.bytes : -1);
		measured[3][i] = Int64GetDatum(
			m.at != 0 && !pp_id_is_zero(m.oldest_pending) ? (int64) m.oldest_pending.ms : -1);
		for (int e = 0; e < num; e++)
		{
			error_names[num_errors] = names[i];
			codes[num_errors] = CStringGetTextDatum(
				errors[e].sqlstate ? unpack_sql_state(errors[e].sqlstate) : "other");
			counts[num_errors++] = Int64GetDatum((int64) errors[e].entries);
		}
	}
	values[0] = text_array(names, n);
	for (int i = 0; i < lengthof(measured); i++)
		values[1 + i] = int8_array(measured[i], n);
	values[5] = text_array(error_names, num_errors);
	values[6] = text_array(codes, num_errors);
	values[7] = int8_array(counts, num_errors);
}

/*
 * All samples: name, labels, value, type, help; families together, a histogram's samples in the order
 * that the text format wants, and `family` and `place` for that.
 */
static const char metrics_query[] =
	"WITH pipelines AS MATERIALIZED (SELECT s.*, m.stream_entries, m.consumers, m.stream_bytes, "
	"m.oldest_pending, "
	"jsonb_build_object('datname', current_database(), 'pipeline', s.pipeline, 'stream', "
	"replace(regexp_replace(s.stream, '^stream:', ''), ':', '.'), 'group', s.consumer_group) AS base "
	"FROM %1$s.postpipe_stats s LEFT JOIN (SELECT u.pipeline, nullif(u.entries, -1) AS "
	"stream_entries, nullif(u.consumers, -1) AS consumers, nullif(u.bytes, -1) AS stream_bytes, "
	"nullif(u.oldest, -1) / 1000.0 AS oldest_pending FROM "
	"unnest($1, $2, $3, $4, $5) AS u (pipeline, entries, consumers, bytes, oldest)) m USING (pipeline)), "
	"letters AS (SELECT pipeline, state, count(*) AS n, min(first_failed_at) AS oldest "
	"FROM %1$s.postpipe_dead_letter GROUP BY pipeline, state), "
	"samples AS ("
	"SELECT v.name, p.base || v.labels AS labels, v.value, v.type, v.help, v.name AS family, "
	"0 AS place, 0::float8 AS le FROM pipelines p, LATERAL (VALUES "
	"('post_persist_total', '{\"status\": \"ok\"}'::jsonb, (entries_applied - "
	"entries_conflicted)::float8, 'counter', 'Entries settled, by outcome; each entry once.'), "
	"('post_persist_total', '{\"status\": \"conflict\"}', entries_conflicted, 'counter', 'Entries "
	"settled, by outcome; each entry once.'), "
	"('post_persist_total', '{\"status\": \"error\"}', entries_dead, 'counter', 'Entries settled, by "
	"outcome; each entry once.'), "
	"('stream_pending_size', '{}', pending, 'gauge', 'Entries delivered and not acknowledged.'), "
	"('stream_consumer_lag', '{}', lag, 'gauge', 'Entries not delivered to the group yet.'), "
	"('postpipe_lag_seconds', '{}', lag_seconds, 'gauge', 'How far the group is behind the newest "
	"entry.'), "
	"('postpipe_oldest_pending_timestamp_seconds', '{}', oldest_pending, 'gauge', 'When the oldest "
	"pending entry was added.'), "
	"('postpipe_last_read_timestamp_seconds', '{}', extract(epoch FROM last_read_at), 'gauge', 'When "
	"Redis answered a read last, be it with nothing.'), "
	"('postpipe_last_commit_timestamp_seconds', '{}', extract(epoch FROM last_applied_at), 'gauge', "
	"'When a batch was committed last.'), "
	"('postpipe_measured_timestamp_seconds', '{}', extract(epoch FROM measured_at), 'gauge', 'When "
	"Redis was asked last for pending and lag.'), "
	"('postpipe_entries_read_total', '{}', entries_read, 'counter', 'Deliveries of entries.'), "
	"('postpipe_entries_retried_total', '{}', entries_retried, 'counter', 'Entries that failed and "
	"will be tried again.'), "
	"('postpipe_entries_lost_total', '{}', entries_lost, 'counter', 'Entries that Redis no longer "
	"had.'), "
	"('postpipe_entries_deduplicated_total', '{}', entries_deduplicated, 'counter', 'Deliveries of "
	"entries that were settled already.'), "
	"('postpipe_entries_filtered_total', '{}', entries_filtered, 'counter', 'Entries of other event "
	"types.'), "
	"('postpipe_entries_ingested_total', '{}', entries_ingested, 'counter', 'Events that were applied "
	"from SQL, and not by the stream.'), "
	"('postpipe_bytes_read_total', '{}', bytes_read, 'counter', 'Bytes of the entries read.'), "
	"('postpipe_batches_total', '{}', batches, 'counter', 'Batches committed.'), "
	"('postpipe_workers', '{}', workers, 'gauge', 'Workers running.'), "
	"('postpipe_workers_wanted', '{}', workers_wanted, 'gauge', 'Workers configured.'), "
	"('postpipe_consumers', '{}', consumers, 'gauge', 'Consumers in the group.'), "
	"('postpipe_stream_entries', '{}', stream_entries, 'gauge', 'Entries in the stream.'), "
	"('postpipe_stream_memory_bytes', '{}', stream_bytes, 'gauge', 'Memory of the stream in Redis.'), "
	"('postpipe_redis_reconnects_total', '{}', reconnects, 'counter', 'Connections made to Redis "
	"after the first.'), "
	"('postpipe_worker_restarts_total', '{}', worker_restarts, 'counter', 'Workers started after the "
	"first.')) v (name, labels, value, type, help) "
	"UNION ALL SELECT 'postpipe_state', p.base || jsonb_build_object('state', t.state), (p.state = "
	"t.state)::int, 'gauge', '1 for the state that the pipeline is in.', 'postpipe_state', 0, 0 "
	"FROM pipelines p, unnest('{stopped,starting,idle,running,retrying,paused,waiting,failed,"
	"disarmed,fenced}'::text[]) t (state) "
	"UNION ALL SELECT v.name, p.base || jsonb_build_object('state', t.state), v.value, 'gauge', "
	"v.help, v.name, 0, 0 FROM pipelines p CROSS JOIN unnest('{retrying,dead}'::text[]) t (state) "
	"LEFT JOIN letters l ON l.pipeline = p.pipeline AND l.state = t.state, LATERAL (VALUES "
	"('postpipe_dead_letters', coalesce(l.n, 0)::float8, 'Dead letters now, by state.'), "
	"('postpipe_oldest_dead_letter_timestamp_seconds', extract(epoch FROM l.oldest), 'When the "
	"oldest of them failed first.')) v (name, value, help) "
	"UNION ALL SELECT 'postpipe_info', jsonb_build_object('datname', current_database(), 'version', "
	"v.library, 'redis_version', coalesce(w.redis_version, ''), 'hiredis_version', v.hiredis), 1, "
	"'gauge', 'Versions.', 'postpipe_info', 0, 0 FROM %1$s.postpipe_version() v LEFT JOIN (SELECT "
	"DISTINCT redis_version FROM %1$s.postpipe_workers WHERE datname = current_database() AND "
	"redis_version IS NOT NULL) w ON true "
	"UNION ALL SELECT 'post_persist_dlq_total', p.base || jsonb_build_object('base_event', p.base -> "
	"'stream', 'error_code', u.code), u.n, 'counter', 'Entries that died, by SQLSTATE.', "
	"'post_persist_dlq_total', 0, 0 FROM pipelines p JOIN unnest($6, $7, $8) AS u (pipeline, code, n) "
	"USING (pipeline) "
	"UNION ALL SELECT 'postpipe_audit_balance', p.base, a.balance, 'gauge', 'Entries that nothing "
	"accounts for; 0 is well.', 'postpipe_audit_balance', 0, 0 FROM pipelines p JOIN (SELECT DISTINCT "
	"ON (pipeline) pipeline, balance FROM %1$s.postpipe_audit ORDER BY pipeline, epoch DESC) a "
	"USING (pipeline) "
	"UNION ALL SELECT h.name || s.suffix, h.labels || s.labels, s.value, 'histogram', CASE h.name "
	"WHEN 'post_persist_batch_size' THEN 'Entries in a batch.' WHEN 'post_persist_latency_seconds' "
	"THEN 'Duration of one step of a batch.' ELSE 'From the ID of an entry to the commit of its "
	"row.' END, h.name, s.place, s.le FROM %1$s.postpipe_histograms h, LATERAL ("
	"SELECT '_bucket', jsonb_build_object('le', h.le[i]::text), h.buckets[i]::float8, 1, h.le[i] "
	"FROM generate_subscripts(h.le, 1) i UNION ALL VALUES "
	"('_bucket', '{\"le\": \"+Inf\"}'::jsonb, h.count::float8, 1, 'Infinity'::float8), "
	"('_sum', '{}', h.sum, 2, 0), ('_count', '{}', h.count, 3, 0)) s (suffix, labels, value, place, "
	"le)) "
	"SELECT name, labels, value, type, help, family, lag(family) OVER w IS DISTINCT FROM family "
	"FROM samples WINDOW w AS (ORDER BY family, labels - 'le', place, le) "
	"ORDER BY family, labels - 'le', place, le";

/* Leaves the samples in SPI_tuptable; pp_store_end() is to be called. */
static void
read_metrics(PpStoreScope *store)
{
	Oid types[] = {TEXTARRAYOID, INT8ARRAYOID, INT8ARRAYOID, INT8ARRAYOID,
				   INT8ARRAYOID, TEXTARRAYOID, TEXTARRAYOID, INT8ARRAYOID};
	Datum values[lengthof(types)];
	PpExtension ext;
	List *pipelines;

	pp_require_preload();
	pp_require_extension(&ext);
	pipelines = pp_pipeline_list(&ext);
	pp_store_begin(store, &ext);
	/* Rows are few and estimates are high: to compile the query would take twenty times its time. */
	pp_guc_set_for_call("jit", "off");
	pp_guc_set_for_call("extra_float_digits", "1"); /* the bounds of buckets are texts */
	get_unviewed(pipelines, values);
	PushActiveSnapshot(GetLatestSnapshot());
	SPI_execute_with_args(psprintf(metrics_query, ext.schema_name), lengthof(types), types, values,
						  NULL, true, 0);
	PopActiveSnapshot();
}

/* postpipe_metrics: a row per sample. */
Datum
postpipe_metrics_0_1(PG_FUNCTION_ARGS)
{
	PpStoreScope store;

	InitMaterializedSRF(fcinfo, 0);
	read_metrics(&store);
	pp_row_emit_result(fcinfo);
	pp_store_end(&store);
	return (Datum) 0;
}

/* {name="value",…} with what has to be escaped in a value. */
static void
append_labels(StringInfo line, Jsonb *labels)
{
	JsonbIterator *it = JsonbIteratorInit(&labels->root);
	JsonbIteratorToken token;
	JsonbValue v;
	char separator = '{';

	while ((token = JsonbIteratorNext(&it, &v, false)) != WJB_DONE)
	{
		if (token == WJB_KEY)
			appendStringInfo(line, "%c%.*s=\"", separator, v.val.string.len, v.val.string.val);
		if (token != WJB_VALUE)
			continue;
		for (int i = 0; i < v.val.string.len; i++)
		{
			char c = v.val.string.val[i];

			if (c == '\\' || c == '"' || c == '\n')
				appendStringInfoChar(line, '\\');
			appendStringInfoChar(line, c == '\n' ? 'n' : c);
		}
		appendStringInfoChar(line, '"');
		separator = ',';
	}
	appendStringInfoChar(line, '}');
}

static void
emit_line(FunctionCallInfo fcinfo, const char *line)
{
	PpRow row = {0};

	pp_row_text(&row, line);
	pp_row_emit(fcinfo, &row);
}

/* postpipe_prometheus(): the samples that are known, in the text exposition format, a row per line. */
Datum
postpipe_prometheus(PG_FUNCTION_ARGS)
{
	PpStoreScope store;

	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	read_metrics(&store);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple row = SPI_tuptable->vals[i];
		TupleDesc desc = SPI_tuptable->tupdesc;
		StringInfoData line;
		bool unknown;
		bool isnull;
		Datum value = SPI_getbinval(row, desc, 3, &unknown);
		char *family = SPI_getvalue(row, desc, 6);

		if (DatumGetBool(SPI_getbinval(row, desc, 7, &isnull)))
		{
			emit_line(fcinfo, psprintf("# HELP %s %s", family, SPI_getvalue(row, desc, 5)));
			emit_line(fcinfo, psprintf("# TYPE %s %s", family, SPI_getvalue(row, desc, 4)));
		}
		if (unknown)
			continue;
		initStringInfo(&line);
		appendStringInfoString(&line, SPI_getvalue(row, desc, 1));
		append_labels(&line, DatumGetJsonbP(SPI_getbinval(row, desc, 2, &isnull)));
		appendStringInfo(&line, " %.17g", DatumGetFloat8(value));
		emit_line(fcinfo, line.data);
	}
	pp_store_end(&store);
	return (Datum) 0;
}
