/*
 * sqlfuncs_ingest.c
 *		postpipe_ingest(): events through the pipeline's statement, without Redis.
 *
 * All of it is the caller's transaction.  Nothing of the stream is touched, neither its ledger nor its
 * audit: an ID that is given here names a call, not an entry of the stream.
 *
 * What came in is counted in postpipe_ingested, a row for each call, so that calls do not wait for each
 * other.  A row with an ID makes a client's retry exact: the second one to insert it waits for the first
 * one's transaction, and finds out how that ended.  Now and then a call adds up the rows that are not
 * needed any more: those without an ID, and those that are older than the ledger is kept.
 */
#include "sqlfuncs.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "common/pg_prng.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "apply_internal.h"
#include "event.h"
#include "event_object.h"

#define CHUNK      1000 /* events that are run together, at most */
#define TIDY_CALLS 64   /* one of so many adds up rows … */
#define TIDY_ROWS  1000 /* … at most so many of each kind */

PG_FUNCTION_INFO_V1(postpipe_ingest);

/*
 * The IDs of n events that have none: the time, and a sequence that Redis does not reach, nor another
 * backend at the same time.  Returns the first one.
 */
static PpId
fresh_ids(int n)
{
	static PpId next;
	PpId now = pp_id_at_time(GetCurrentTimestamp());
	PpId first;

	now.seq = UINT64CONST(1) << 63 | (uint64) MyProcPid << 32;
	first = pp_id_max(now, next);
	next = (PpId){first.ms, first.seq + n};
	return first;
}

static void
check_object(const Jsonb *event, int at, bool in_array)
{
	if (JB_ROOT_IS_OBJECT(event))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 in_array ? errmsg("event %d of the array is not a JSON object", at + 1)
					  : errmsg("event is not a JSON object"),
			 errhint("An event is an object, such as {\"id\": 1}, or an array of objects.")));
}

/* The events as entries of a batch, filtered as those of the stream are; *wanted says how many are left. */
static void
make_batch(Jsonb *event, const PpPipeline *p, PpBatch *batch, int *wanted)
{
	bool is_array = JB_ROOT_IS_ARRAY(event) && !JB_ROOT_IS_SCALAR(event);
	JsonbIterator *it = JsonbIteratorInit(&event->root);
	JsonbValue value;

	batch->n = is_array ? JB_ROOT_COUNT(event) : 1;
	batch->entries = MemoryContextAllocExtended(batch->cxt, Max(batch->n, 1) * sizeof(PpEntry),
												MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	*wanted = 0;
	if (is_array)
		(void) JsonbIteratorNext(&it, &value, true); /* the array begins */
	for (int i = 0; i < batch->n; i++)
	{
		PpEntry *entry = &batch->entries[i];
		Jsonb *one;

		if (is_array)
			(void) JsonbIteratorNext(&it, &value, true);
		one = is_array ? JsonbValueToJsonb(&value) : event;
		check_object(one, i, is_array);
		entry->event = pp_object_of_jsonb(one);
		pp_event_filter(entry, p->event_types);
		*wanted += entry->verdict == PP_VERDICT_OPEN;
	}
}

static void
number_entries(PpBatch *batch, const PpId *given)
{
	PpId first = given ? *given : fresh_ids(batch->n);

	if (batch->n > 0 && first.seq + (batch->n - 1) < first.seq)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("id is too high for %d events", batch->n),
				 errdetail("The events of an array have consecutive IDs, from this one on.")));
	for (int i = 0; i < batch->n; i++)
		batch->entries[i].id = (PpId){first.ms, first.seq + i};
}

/* Adds up rows that nobody else is about to. */
static void
tidy(const PpExtension *ext, const PpPipeline *p)
{
	Oid types[] = {TEXTOID, FLOAT8OID};
	Datum values[] = {CStringGetTextDatum(p->name),
					  Float8GetDatum((double) pp_ledger_retention_ms(p) / 1000)};

	pp_store_execute(
		ext,
		psprintf("WITH old AS (DELETE FROM %1$s.postpipe_ingested WHERE ctid = ANY (ARRAY("
				 "SELECT ctid FROM %1$s.postpipe_ingested WHERE pipeline = $1 AND id IS NULL "
				 "LIMIT %2$d FOR UPDATE SKIP LOCKED) || ARRAY("
				 "SELECT ctid FROM %1$s.postpipe_ingested WHERE pipeline = $1 AND id IS NOT NULL "
				 "AND ingested_at < now() - make_interval(secs => $2) "
				 "LIMIT %2$d FOR UPDATE SKIP LOCKED)) RETURNING epoch, applied) "
				 "INSERT INTO %1$s.postpipe_ingested (pipeline, epoch, applied) "
				 "SELECT $1, epoch, sum(applied) FROM old GROUP BY epoch",
				 ext->schema_name, TIDY_ROWS),
		2, types, values, NULL);
}

static void
run_chunk(PpApply *a, PpBatch *batch)
{
	PpStoreScope store;

	pp_function_run(a, batch);
	pp_store_begin(&store, a->ext);
	pp_overtaken_mark(a, batch);
	pp_store_end(&store);
}

static void
run(const PpExtension *ext, PpPipeline *p, PpBatch *batch)
{
	PpStoreScope store;
	PpApply *a = pp_function_apply_begin(batch->cxt, ext, p);

	PG_TRY();
	{
		pp_store_begin(&store, ext);
		if (pp_posts_owns(p))
			pp_posts_create_table(ext, p);
		pp_ledger_load_epochs(&a->ledger);
		pp_store_end(&store);
		for (int first = 0; first < batch->n; first += CHUNK)
		{
			PpBatch chunk = *batch;

			CHECK_FOR_INTERRUPTS();
			chunk.entries += first;
			chunk.n = Min(batch->n - first, CHUNK);
			run_chunk(a, &chunk);
		}
	}
	PG_FINALLY();
	{
		pp_function_apply_end(a);
	}
	PG_END_TRY();
}

/* postpipe_ingest(pipeline, event, id): how many of the events were applied. */
Datum
postpipe_ingest(PG_FUNCTION_ARGS)
{
	PpExtension ext;
	PpPipeline *p;
	PpId *id = PG_ARGISNULL(2) ? NULL : (PpId *) PG_GETARG_POINTER(2);
	MemoryContext old;
	PpBatch batch = {0};
	int wanted;

	PreventCommandIfReadOnly("postpipe_ingest()");
	p = pp_function_lock_pipeline(fcinfo, &ext, AccessShareLock);
	if (PG_ARGISNULL(1))
		ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("event must not be NULL")));
	pp_function_refuse_deferred("postpipe_ingest()");
	batch.cxt =
		AllocSetContextCreate(CurrentMemoryContext, "postpipe ingest", ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(batch.cxt);
	make_batch(PG_GETARG_JSONB_P(1), p, &batch, &wanted);
	number_entries(&batch, id);
	if ((id != NULL || wanted > 0) && !pp_function_record_ingested(&ext, p, id, wanted))
		wanted = 0;
	else if (wanted > 0)
	{
		run(&ext, p, &batch);
		pp_function_count(p->name, PP_COUNT_INGESTED, wanted);
		/* With a snapshot that is kept, what somebody else has added up meanwhile is an error. */
		if (!IsolationUsesXactSnapshot() && pg_prng_uint32(&pg_global_prng_state) % TIDY_CALLS == 0)
			tidy(&ext, p);
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(batch.cxt);
	PG_RETURN_INT64(wanted);
}
