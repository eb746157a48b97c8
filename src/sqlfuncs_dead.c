/*
 * sqlfuncs_dead.c
 *		postpipe_replay() and postpipe_discard(): dead letters by hand.
 *
 * Both work in the caller's transaction.  A replay takes the locks that a batch takes (extension,
 * pipeline in AccessShareLock) and locks the letters, which the worker's own retries then leave
 * alone.  It runs the statement as the pipeline does: same role, same settings, the same search for
 * the entries that fail, in subtransactions.  What the moment or the pipeline is to blame for is
 * thrown; then nothing has happened.
 */
#include "sqlfuncs.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "tcop/utility.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#include "apply_internal.h"

PG_FUNCTION_INFO_V1(postpipe_replay);
PG_FUNCTION_INFO_V1(postpipe_discard);

#define FILTER_ARGS 6
#define CHUNK       1000 /* letters that are run together, at most … */
#define CHUNK_BYTES ((size_t) 16 * 1024 * 1024)

/* The arguments after the pipeline, as parameters $1 to $6 of a query. */
typedef struct Filter
{
	Oid types[FILTER_ARGS];
	Datum values[FILTER_ARGS];
	char nulls[FILTER_ARGS + 1];
} Filter;

static void
read_filter(FunctionCallInfo fcinfo, const PpExtension *ext, Filter *filter)
{
	const Oid types[] = {TEXTOID,        get_array_type(pp_id_type_oid(ext)),
						 TEXTOID,        TIMESTAMPTZOID,
						 TIMESTAMPTZOID, INT4OID};

	memset(filter, 0, sizeof(*filter));
	for (int i = 0; i < FILTER_ARGS; i++)
	{
		filter->types[i] = types[i];
		filter->nulls[i] = PG_ARGISNULL(i) ? 'n' : ' ';
		filter->values[i] = PG_ARGISNULL(i) ? (Datum) 0 : PG_GETARG_DATUM(i);
	}
	if (!PG_ARGISNULL(5) && PG_GETARG_INT32(5) < 0)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("max_entries must not be negative")));
}

/*
 * "… FROM postpipe_dead_letter WHERE …", locked, with the filter's parameters.  Not the letter of an entry
 * that was skipped and that a worker is still to come to; with `sealed`, it is taken where none will.
 */
static char *
selection(const PpExtension *ext, const char *columns, bool sealed)
{
	const char *s = ext->schema_name;

	return psprintf("SELECT %s FROM %s.postpipe_dead_letter d WHERE pipeline = $1 "
					"AND ($2 IS NULL OR id OPERATOR(%s.=) ANY ($2)) "
					"AND ($3 IS NULL OR sqlstate = $3) "
					"AND ($4 IS NULL OR first_failed_at >= $4) "
					"AND ($5 IS NULL OR first_failed_at < $5) "
					"AND (NOT undelivered%s) "
					"ORDER BY id USING OPERATOR(%s.<), epoch LIMIT $6 FOR UPDATE",
					columns, s, s,
					sealed ? psprintf(" OR id OPERATOR(%s.<=) (SELECT sealed_id FROM "
									  "%s.postpipe_progress WHERE pipeline = $1)",
									  s, s)
						   : "",
					s);
}

/* The letters that match, locked. */
static PpLetterKey *
lock_letters(const PpExtension *ext, Filter *filter, int *n)
{
	PpStoreScope store;
	MemoryContext cxt = CurrentMemoryContext;
	PpLetterKey *keys;

	pp_store_begin(&store, ext);
	SPI_execute_with_args(selection(ext, "epoch, id, size_bytes", false), FILTER_ARGS,
						  filter->types, filter->values, filter->nulls, false, 0);
	keys = pp_dead_letter_keys(cxt, n);
	pp_store_end(&store);
	return keys;
}

/* Runs the statement over a chunk of letters and records what came of it; returns its size. */
static int
replay_chunk(PpApply *a, PpLetterKey *keys, int n, PpBatch *batch, PpApplyResult *total)
{
	PpStoreScope store;
	int taken;

	MemoryContextReset(batch->cxt);
	pp_store_begin(&store, a->ext);
	taken = pp_retry_make_batch(a, keys, Min(n, CHUNK), CHUNK_BYTES, batch);
	pp_store_end(&store);
	total->conflicted += pp_function_isolate(a, batch);
	pp_store_begin(&store, a->ext);
	pp_retry_record(a, batch, true);
	pp_overtaken_mark(a, batch);
	pp_store_end(&store);
	for (int i = 0; i < batch->n; i++)
	{
		total->applied += batch->entries[i].verdict == PP_VERDICT_APPLIED;
		total->filtered += batch->entries[i].verdict == PP_VERDICT_FILTERED;
		total->dead += batch->entries[i].verdict == PP_VERDICT_DEAD;
	}
	return taken;
}

static void
replay(const PpExtension *ext, PpPipeline *p, PpLetterKey *keys, int n, PpApplyResult *total)
{
	MemoryContext cxt =
		AllocSetContextCreate(CurrentMemoryContext, "postpipe replay", ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(cxt);
	PpApply *a = pp_function_apply_begin(cxt, ext, p);
	PpBatch batch = {0};

	batch.cxt = AllocSetContextCreate(cxt, "postpipe replay batch", ALLOCSET_DEFAULT_SIZES);
	pp_overtaken_watch_all(a);
	PG_TRY();
	{
		for (int done = 0; done < n;)
		{
			CHECK_FOR_INTERRUPTS();
			done += replay_chunk(a, keys + done, n - done, &batch, total);
		}
	}
	PG_FINALLY();
	{
		pp_function_apply_end(a);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
	MemoryContextDelete(cxt);
}

/* postpipe_replay(pipeline, ids, sqlstate, since, until, max_entries) */
Datum
postpipe_replay(PG_FUNCTION_ARGS)
{
	PpExtension ext;
	PpPipeline *p;
	PpApplyResult total = {0};
	TupleDesc desc;
	Filter filter;
	PpLetterKey *keys;
	Datum values[3];
	bool nulls[3] = {0};
	int n;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	PreventCommandIfReadOnly("postpipe_replay()");
	p = pp_function_lock_pipeline(fcinfo, &ext, AccessShareLock);
	read_filter(fcinfo, &ext, &filter);
	pp_function_refuse_deferred("postpipe_replay()");
	pp_function_hash_letters(&ext, p);
	keys = lock_letters(&ext, &filter, &n);
	if (n > 0)
	{
		replay(&ext, p, keys, n, &total);
		pp_function_count(p->name, PP_COUNT_APPLIED, total.applied);
		pp_function_count(p->name, PP_COUNT_CONFLICTED, total.conflicted);
		pp_function_count(p->name, PP_COUNT_FILTERED, total.filtered);
	}
	values[0] = Int64GetDatum(n);
	values[1] = Int64GetDatum(total.applied);
	values[2] = Int64GetDatum(total.dead);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}

/* postpipe_discard(pipeline, ids, sqlstate, since, until, max_entries, reason) */
Datum
postpipe_discard(PG_FUNCTION_ARGS)
{
	PpStoreScope store;
	PpExtension ext;
	PpPipeline *p;
	char *reason = pp_text_arg(fcinfo, 6);
	Filter filter;
	int64 n;

	PreventCommandIfReadOnly("postpipe_discard()");
	p = pp_function_lock_pipeline(fcinfo, &ext, AccessShareLock);
	read_filter(fcinfo, &ext, &filter);
	pp_store_begin(&store, &ext);
	n = pp_dead_letter_discard(&ext, selection(&ext, "epoch, id", true), FILTER_ARGS, filter.types,
							   filter.values, filter.nulls);
	pp_store_end(&store);
	if (n > 0)
		ereport(LOG, (errmsg("postpipe pipeline \"%s\": " INT64_FORMAT
							 " dead letters were discarded by %s%s%s",
							 p->name, n, GetUserNameFromId(GetUserId(), true), reason ? ": " : "",
							 reason ? reason : "")));
	PG_RETURN_INT64(n);
}
