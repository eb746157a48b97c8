/*
 * sqlfuncs_histograms.c
 *		The functions under postpipe_latency and postpipe_histograms.
 */
#include "sqlfuncs.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"

#include "store.h"

PG_FUNCTION_INFO_V1(postpipe_latency_0_1);
PG_FUNCTION_INFO_V1(postpipe_histograms_0_1);

static const struct
{
	const char *name;
	const char *label;
	const char *value;
	const char *view; /* what postpipe_latency calls it; NULL: it is not in there */
} kinds[PP_HIST_NUM] = {
	[PP_HIST_UPSERT] = {"post_persist_latency_seconds", "operation", "upsert", "upsert"},
	[PP_HIST_ACK] = {"post_persist_latency_seconds", "operation", "ack", "ack"},
	[PP_HIST_BATCH] = {"post_persist_latency_seconds", "operation", "batch", "batch"},
	[PP_HIST_END_TO_END] = {"postpipe_end_to_end_seconds", NULL, NULL, "end_to_end"},
	[PP_HIST_PROCESSED] = {"post_persist_batch_size", "status", "processed", NULL},
	[PP_HIST_FAILED] = {"post_persist_batch_size", "status", "failed", NULL},
};

/* A copy of a pipeline's histograms; NULL: it has no slot, so nothing was observed. */
static PpHistograms *
copy_histograms(const PpPipeline *p)
{
	PpPipe *pipe = pp_pipe_find(MyDatabaseId, p->name);
	PpHistograms *copy;

	if (pipe == NULL)
		return NULL;
	copy = palloc(sizeof(PpHistograms));
	LWLockAcquire(&pipe->lock, LW_SHARED);
	*copy = pipe->histograms;
	LWLockRelease(&pipe->lock);
	return copy;
}

/* postpipe_latency: a row per pipeline and operation, of the last five to six minutes. */
Datum
postpipe_latency_0_1(PG_FUNCTION_ARGS)
{
	static const double quantiles[] = {0.5, 0.95, 0.99};
	PpSteady now = pp_steady_now();
	PpExtension ext;
	ListCell *lc;

	pp_require_preload();
	InitMaterializedSRF(fcinfo, 0);
	pp_require_extension(&ext);
	foreach (lc, pp_pipeline_list(&ext))
	{
		const PpPipeline *p = lfirst(lc);
		PpHistograms *h = copy_histograms(p);

		for (int kind = 0; kind < PP_HIST_LATENCIES; kind++)
		{
			PpRecent recent;
			uint64 count = h ? pp_histogram_recent(h, kind, now, &recent) : 0;
			PpRow row = {0};

			pp_row_text(&row, p->name);
			pp_row_text(&row, kinds[kind].view);
			pp_row_int8(&row, (int64) count, h == NULL);
			for (int i = 0; i < lengthof(quantiles); i++)
				pp_row_float8(&row,
							  count ? pp_histogram_quantile(kind, &recent, count, quantiles[i]) : 0,
							  count == 0);
			pp_row_float8(&row, count ? recent.max : 0, count == 0);
			pp_row_emit(fcinfo, &row);
		}
	}
	return (Datum) 0;
}

/* {"datname": …, "pipeline": …, "stream": …, "group": …}, and the histogram's own label */
static Datum
histogram_labels(const PpPipeline *p, int kind)
{
	Oid types[] = {TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID};
	Datum values[5] = {CStringGetTextDatum(p->name), CStringGetTextDatum(p->stream),
					   CStringGetTextDatum(p->group)};
	char nulls[] = "     ";
	bool isnull;

	if (kinds[kind].label == NULL)
		nulls[3] = nulls[4] = 'n';
	else
	{
		values[3] = CStringGetTextDatum(kinds[kind].label);
		values[4] = CStringGetTextDatum(kinds[kind].value);
	}
	SPI_execute_with_args(
		"SELECT jsonb_build_object('datname', current_database(), 'pipeline', $1, "
		"'stream', replace(regexp_replace($2, '^stream:', ''), ':', '.'), "
		"'group', $3) || CASE WHEN $4 IS NULL THEN '{}' ELSE "
		"jsonb_build_object($4, $5) END",
		5, types, values, nulls, true, 0);
	return SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);
}

/* The buckets that are shown, cumulative, without the one above all bounds. */
static void
put_buckets(PpRow *row, int kind, const PpHistogram *h)
{
	int n;
	const double *bounds = pp_histogram_bounds(kind, &n);
	Datum *le = palloc(n * sizeof(Datum));
	Datum *buckets = palloc(n * sizeof(Datum));
	uint64 below = 0;
	int shown = 0;

	for (int i = 0; i < n; i++)
	{
		below += h->counts[i];
		if (!pp_histogram_is_shown(kind, i))
			continue;
		le[shown] = Float8GetDatum(bounds[i]);
		buckets[shown++] = Int64GetDatum((int64) below);
	}
	pp_row_put(row,
			   PointerGetDatum(construct_array(le, shown, FLOAT8OID, sizeof(float8),
											   FLOAT8PASSBYVAL, TYPALIGN_DOUBLE)),
			   false);
	pp_row_put(row,
			   PointerGetDatum(construct_array(buckets, shown, INT8OID, sizeof(int64),
											   FLOAT8PASSBYVAL, TYPALIGN_DOUBLE)),
			   false);
}

/* postpipe_histograms: a row per pipeline and histogram. */
Datum
postpipe_histograms_0_1(PG_FUNCTION_ARGS)
{
	PpStoreScope store;
	PpExtension ext;
	List *pipelines;
	ListCell *lc;

	pp_require_preload();
	InitMaterializedSRF(fcinfo, 0);
	pp_require_extension(&ext);
	pipelines = pp_pipeline_list(&ext);
	pp_store_begin(&store, &ext);
	foreach (lc, pipelines)
	{
		const PpPipeline *p = lfirst(lc);
		PpHistograms *h = copy_histograms(p);

		for (int kind = 0; kind < PP_HIST_NUM && h != NULL; kind++)
		{
			PpRow row = {0};

			pp_row_text(&row, kinds[kind].name);
			pp_row_put(&row, histogram_labels(p, kind), false);
			put_buckets(&row, kind, &h->all[kind]);
			pp_row_float8(&row, h->all[kind].sum, false);
			pp_row_int8(&row, (int64) h->all[kind].count, false);
			pp_row_emit(fcinfo, &row);
		}
	}
	pp_store_end(&store);
	return (Datum) 0;
}
