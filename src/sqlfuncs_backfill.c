/*
 * sqlfuncs_backfill.c
 *		postpipe_backfill(): a range of the stream through the pipeline's statement, in the caller's
 *		transaction, into its target or another table.  The group is not touched.
 *
 * Into the target go entries that the pipeline has not settled and that its workers will not read any
 * more: what others have acknowledged, or what came before the group.  What is unread or pending is left
 * to the workers; so is what a group without other consumers has passed over, because they find it
 * (repair.c), and would not know that it was applied here.  Those entries are none of the epoch's, so they
 * are counted as postpipe_ingest() counts its events, and are on record there: a second call finds them.
 *
 * Redis is asked first and the tables afterwards, page by page: what a worker settles meanwhile is on
 * record then.
 */
#include "sqlfuncs.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#include "apply_internal.h"
#include "event.h"

#define MAX_WARNINGS 10 /* entries that fail are named, so many of them */

PG_FUNCTION_INFO_V1(postpipe_backfill);

typedef struct Backfill
{
	PpExtension ext;
	PpPipeline *p;
	PpApply *a;
	PpRedis *conn;
	PpStreamFacts group;
	bool others;    /* it has consumers that are not the pipeline's */
	bool repaired;  /* the workers find what the group has passed over */
	bool elsewhere; /* into another table: all entries, and nothing is on record */
	bool again;     /* also what is settled */
	int64 entries;
	int64 left; /* to the workers */
	int64 applied;
	int64 deduplicated;
	int64 failed;
} Backfill;

/* What failed is not on record. */
static void
forget(Backfill *b, const PpEntry *entry)
{
	Oid types[] = {TEXTOID, pp_id_type_oid(&b->ext)};
	Datum values[] = {CStringGetTextDatum(b->p->name), PointerGetDatum(&entry->id)};

	(void) pp_store_execute(&b->ext,
							psprintf("DELETE FROM %1$s.postpipe_ingested WHERE pipeline = $1 "
									 "AND id OPERATOR(%1$s.=) $2",
									 b->ext.schema_name),
							2, types, values, NULL);
}

/* Has the group consumers that are none of the pipeline's? */
static bool
has_others(const Backfill *b)
{
	PpConsumer *consumers;
	int n;

	if (!b->group.group_exists)
		return false;
	consumers = pp_function_consumers(b->conn, b->p, &n);
	return pp_function_has_others(b->p, consumers, n);
}

/*
 * Do the workers find what the group has passed over?  That it has other consumers is noted, as a worker
 * would: if they leave before one has seen them, what they have acknowledged must not be read again after
 * it was applied here.
 */
static bool
is_repaired(const Backfill *b)
{
	Oid types[] = {TEXTOID};
	Datum values[] = {CStringGetTextDatum(b->p->name)};
	PpStoreScope store;
	bool alone;
	bool isnull;

	pp_store_begin(&store, &b->ext);
	SPI_execute_with_args(psprintf("SELECT p.shared FROM %1$s.postpipe_epoch e "
								   "JOIN %1$s.postpipe_progress p USING (pipeline) "
								   "WHERE pipeline = $1 AND e.base_known AND e.epoch = (SELECT "
								   "max(epoch) FROM %1$s.postpipe_epoch WHERE pipeline = $1)",
								   b->ext.schema_name),
						  1, types, values, NULL, false, 0);
	alone = SPI_processed > 0 &&
			!DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	pp_store_end(&store);
	if (alone && b->others)
		pp_store_note_progress(&b->ext, b->p->name, "shared");
	return alone && !b->others;
}

/* Sets skipped[i] of those of the IDs, in stream order, that no worker has come to since postpipe_skip(). */
static void
find_skipped(const Backfill *b, const PpId *ids, int n, bool *skipped)
{
	PpStoreScope store;
	Oid types[] = {TEXTOID, get_array_type(pp_id_type_oid(&b->ext))};
	Datum values[] = {CStringGetTextDatum(b->p->name), pp_store_id_array(&b->ext, ids, n)};

	pp_store_begin(&store, &b->ext);
	SPI_execute_with_args(psprintf("SELECT id FROM %1$s.postpipe_dead_letter WHERE pipeline = $1 "
								   "AND undelivered AND id OPERATOR(%1$s.=) ANY ($2)",
								   b->ext.schema_name),
						  2, types, values, NULL, false, 0);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool isnull;
		Datum id = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull);
		const PpId *found =
			bsearch(DatumGetPointer(id), ids, n, sizeof(PpId), pp_id_compare_pointers);

		skipped[found - ids] = true;
	}
	pp_store_end(&store);
}

/* Which entries of a page are to be run: the others get a verdict, and are counted. */
static void
choose(Backfill *b, PpBatch *batch)
{
	PpId *ids = pp_function_page_ids(batch);
	bool *pending = palloc0(batch->n * sizeof(bool));
	bool *settled = palloc0(batch->n * sizeof(bool));
	bool *skipped = palloc0(batch->n * sizeof(bool));

	if (b->group.group_exists)
		pp_function_find_pending(b->conn, b->p, ids, batch->n, pending);
	pp_ledger_settled(&b->ext, b->p->name, ids, batch->n, settled);
	find_skipped(b, ids, batch->n, skipped);
	for (int i = 0; i < batch->n; i++)
	{
		PpEntry *entry = &batch->entries[i];
		bool unread = !settled[i] && (pending[i] || b->repaired ||
									  pp_id_compare(entry->id, b->group.last_delivered) > 0);

		if (unread)
			b->left++;
		else if (skipped[i])
			b->deduplicated++;
		else if (entry->verdict != PP_VERDICT_FILTERED && !b->again &&
				 (settled[i] || !pp_function_record_ingested(&b->ext, b->p, &entry->id, 1)))
			b->deduplicated++;
		else
			continue;
		entry->verdict = PP_VERDICT_DUPLICATE;
		entry->error = NULL;
	}
}

/* Says which entry failed and why, and goes on. */
static void
warn(const Backfill *b, const PpEntry *entry)
{
	char id[PP_ID_LEN];

	if (b->failed > MAX_WARNINGS)
		return;
	pp_id_print(entry->id, id);
	ereport(
		WARNING,
		(errcode(entry->error->sqlstate), errmsg("entry %s: %s", id, entry->error->message),
		 entry->error->detail ? errdetail_internal("%s", entry->error->detail) : 0,
		 b->failed == MAX_WARNINGS ? errhint("Further entries that fail are only counted.") : 0));
}

static void
count(Backfill *b, PpBatch *batch)
{
	for (int i = 0; i < batch->n; i++)
	{
		PpEntry *entry = &batch->entries[i];

		b->applied += entry->verdict == PP_VERDICT_APPLIED;
		if (entry->verdict != PP_VERDICT_DEAD)
			continue;
		b->failed++;
		if (!b->elsewhere && !b->again)
			forget(b, entry);
		warn(b, entry);
	}
}

static void
run_page(Backfill *b, PpBatch *batch)
{
	for (int i = 0; i < batch->n; i++)
		pp_event_normalize(&batch->entries[i], b->p->event_types);
	if (!b->elsewhere)
		choose(b, batch);
	(void) pp_function_isolate(b->a, batch);
	b->entries += batch->n;
	count(b, batch);
}

static void
run_range(Backfill *b, PpRange *range)
{
	PpBatch batch = {0};
	MemoryContext old;

	batch.cxt = AllocSetContextCreate(b->a->cxt, "postpipe backfill page", ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(batch.cxt);
	while (pp_function_next_page(b->conn, range, INT_MAX, &batch))
	{
		CHECK_FOR_INTERRUPTS();
		run_page(b, &batch);
		MemoryContextSwitchTo(batch.cxt);
	}
	MemoryContextSwitchTo(old);
}

/* Another table in place of the target. */
static void
take_table(Backfill *b, Oid table)
{
	pp_check_may_act_as(b->p->owner);
	if (b->p->target == NULL)
		ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						errmsg("pipeline \"%s\" has a statement of its own, which names its tables",
							   b->p->name),
						errhint("Without into_table, the entries go through that statement.")));
	if (get_rel_name(table) == NULL)
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_TABLE), errmsg("into_table does not exist")));
	b->p->target = quote_qualified_identifier(get_namespace_name(get_rel_namespace(table)),
											  get_rel_name(table));
	b->elsewhere = true;
	(void) pp_check_definition(&b->ext, b->p, false);
}

static Datum
make_row(FunctionCallInfo fcinfo, const Backfill *b)
{
	Datum values[] = {Int64GetDatum(b->entries), Int64GetDatum(b->applied),
					  Int64GetDatum(b->deduplicated), Int64GetDatum(b->failed)};
	bool nulls[lengthof(values)] = {0};
	TupleDesc desc;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls));
}

/* postpipe_backfill(pipeline, from_id, to_id, into_table, again) */
Datum
postpipe_backfill(PG_FUNCTION_ARGS)
{
	char *from = PG_ARGISNULL(1) ? "-" : pp_text_arg(fcinfo, 1);
	char *to = PG_ARGISNULL(2) ? "+" : pp_text_arg(fcinfo, 2);
	Backfill b = {.again = !PG_ARGISNULL(4) && PG_GETARG_BOOL(4)};
	MemoryContext cxt;
	PpRange range;

	pp_require_preload();
	PreventCommandIfReadOnly("postpipe_backfill()");
	pp_require_read_committed("postpipe_backfill()");
	b.p = pp_function_lock_pipeline(fcinfo, &b.ext, AccessShareLock);
	range = pp_function_range(b.p, from, to);
	pp_function_refuse_deferred("postpipe_backfill()");
	b.conn = pp_function_connect(b.p);
	b.group = pp_function_group(b.conn, b.p);
	b.others = has_others(&b);
	if (!PG_ARGISNULL(3))
		take_table(&b, PG_GETARG_OID(3));
	else
		b.repaired = is_repaired(&b);
	cxt = AllocSetContextCreate(CurrentMemoryContext, "postpipe backfill", ALLOCSET_DEFAULT_SIZES);
	b.a = pp_function_apply_begin(cxt, &b.ext, b.p);
	PG_TRY();
	{
		run_range(&b, &range);
	}
	PG_FINALLY();
	{
		pp_function_apply_end(b.a);
	}
	PG_END_TRY();
	pp_redis_close(b.conn);
	MemoryContextDelete(cxt);
	if (!b.elsewhere && b.again && b.applied > 0)
		(void) pp_function_record_ingested(&b.ext, b.p, NULL, b.applied);
	if (!b.elsewhere)
		pp_function_count(b.p->name, PP_COUNT_INGESTED, b.applied);
	if (b.left > 0)
		ereport(NOTICE, (errmsg(INT64_FORMAT " entries were left to the workers, which have not "
											 "settled them yet",
								b.left)));
	PG_RETURN_DATUM(make_row(fcinfo, &b));
}
