/*
 * sqlfuncs_peek.c
 *		postpipe_peek(): entries of the stream, as the pipeline sees them, and what became of each.
 *
 * Redis is asked first and the tables afterwards: what is pending or unread may be settled meanwhile,
 * and then the tables know.  What has a letter is dead or retrying, what is on record is settled, what
 * is neither is pending or unread, if Redis says so.
 */
#include "sqlfuncs.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "event.h"
#include "event_object.h"
#include "ledger.h"
#include "store.h"

PG_FUNCTION_INFO_V1(postpipe_peek);

/* What is known of an entry of a page. */
typedef struct Look
{
	bool pending;
	bool settled;
	const char *letter; /* its state; NULL: it has none */
} Look;

/* Finds the letters of the page; of several with one ID, the latest epoch's counts. */
static void
find_letters(const PpExtension *ext, const PpPipeline *p, PpId *ids, int n, Look *looks)
{
	PpStoreScope store;
	MemoryContext cxt = CurrentMemoryContext;
	Oid types[] = {TEXTOID, get_array_type(pp_id_type_oid(ext))};
	Datum values[] = {CStringGetTextDatum(p->name), pp_store_id_array(ext, ids, n)};

	pp_store_begin(&store, ext);
	SPI_execute_with_args(psprintf("SELECT id, state FROM %1$s.postpipe_dead_letter "
								   "WHERE pipeline = $1 AND id OPERATOR(%1$s.=) ANY ($2) "
								   "ORDER BY epoch",
								   ext->schema_name),
						  2, types, values, NULL, false, 0);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple tuple = SPI_tuptable->vals[i];
		bool isnull;
		Datum id = SPI_getbinval(tuple, SPI_tuptable->tupdesc, 1, &isnull);
		PpId *found = bsearch(DatumGetPointer(id), ids, n, sizeof(PpId), pp_id_compare_pointers);

		looks[found - ids].letter =
			MemoryContextStrdup(cxt, SPI_getvalue(tuple, SPI_tuptable->tupdesc, 2));
	}
	pp_store_end(&store);
}

/* NULL: acknowledged, and not by this pipeline. */
static const char *
status_of(const PpEntry *entry, const Look *look, const PpStreamFacts *facts)
{
	if (look->letter != NULL)
		return look->letter;
	if (look->settled)
		return entry->verdict == PP_VERDICT_FILTERED ? "filtered" : "applied";
	if (look->pending)
		return "pending";
	if (!facts->group_exists || pp_id_compare(entry->id, facts->last_delivered) > 0)
		return "unread";
	return NULL;
}

static void
emit_page(FunctionCallInfo fcinfo, const PpPipeline *p, const PpStreamFacts *facts, PpBatch *batch,
		  const Look *looks)
{
	for (int i = 0; i < batch->n; i++)
	{
		PpEntry *entry = &batch->entries[i];
		PpRow row = {0};

		pp_event_normalize(entry, p->event_types);
		pp_row_id(&row, entry->id, false);
		pp_row_time(&row, pp_id_time(entry->id));
		for (int j = 0; j < 2; j++)
		{
			const PpObject *object = j == 0 ? entry->event : entry->envelope;

			pp_row_put(&row, object ? JsonbPGetDatum(pp_object_jsonb(object)) : (Datum) 0,
					   object == NULL);
		}
		pp_row_text(&row, status_of(entry, &looks[i], facts));
		pp_row_emit(fcinfo, &row);
	}
}

static void
peek_page(FunctionCallInfo fcinfo, const PpExtension *ext, const PpPipeline *p, PpRedis *conn,
		  const PpStreamFacts *facts, PpBatch *batch)
{
	PpId *ids = pp_function_page_ids(batch);
	Look *looks = palloc0(batch->n * sizeof(Look));
	bool *settled = palloc(batch->n * sizeof(bool));
	bool *pending = palloc0(batch->n * sizeof(bool));

	if (facts->group_exists)
		pp_function_find_pending(conn, p, ids, batch->n, pending);
	pp_ledger_settled(ext, p->name, ids, batch->n, settled);
	for (int i = 0; i < batch->n; i++)
		looks[i] = (Look){pending[i], settled[i], NULL};
	find_letters(ext, p, ids, batch->n, looks);
	emit_page(fcinfo, p, facts, batch, looks);
}

/* postpipe_peek(pipeline, from_id, to_id, max_entries): XRANGE, and what became of each entry. */
Datum
postpipe_peek(PG_FUNCTION_ARGS)
{
	int left;
	PpBatch batch = {0};
	MemoryContext old;
	PpStreamFacts facts;
	PpExtension ext;
	PpPipeline *p;
	PpRange range;
	PpRedis *conn;

	pp_require_preload();
	InitMaterializedSRF(fcinfo, 0);
	pp_require_extension(&ext);
	p = pp_require_pipeline(&ext, text_to_cstring(PG_GETARG_TEXT_PP(0)));
	left = pp_positive_arg(fcinfo, 3, "max_entries");
	range = pp_function_range(p, text_to_cstring(PG_GETARG_TEXT_PP(1)),
							  text_to_cstring(PG_GETARG_TEXT_PP(2)));
	conn = pp_function_connect(p);
	facts = pp_function_group(conn, p);
	batch.cxt =
		AllocSetContextCreate(CurrentMemoryContext, "postpipe peek", ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(batch.cxt);
	while (left > 0 && pp_function_next_page(conn, &range, left, &batch))
	{
		CHECK_FOR_INTERRUPTS();
		peek_page(fcinfo, &ext, p, conn, &facts, &batch);
		left -= batch.n;
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(batch.cxt);
	pp_redis_close(conn);
	return (Datum) 0;
}
