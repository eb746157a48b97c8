/*
 * batch_relation.c
 *		postpipe_batch: the relation that a statement reads, made of the entries of a batch.
 *
 * It is an ephemeral named relation registered with SPI, as the transition tables of triggers are.
 * The executor wants a tuplestore for that, which is filled only for a plan that cannot take its rows
 * from the entries themselves (batch_scan.c).
 */
#include "batch_relation.h"

#include <limits.h>

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "event_object.h"

#define NAME "postpipe_batch"

/* The descriptor of the relation, in the current memory context. */
TupleDesc
pp_batch_descriptor(const PpExtension *ext)
{
	TupleDesc desc = CreateTemplateTupleDesc(PP_BATCH_COLUMNS);

	TupleDescInitEntry(desc, PP_BATCH_ID, "id", pp_id_type_oid(ext), -1, 0);
	TupleDescInitEntry(desc, PP_BATCH_ORD, "ord", INT4OID, -1, 0);
	TupleDescInitEntry(desc, PP_BATCH_STREAM, "stream", TEXTOID, -1, 0);
	TupleDescInitEntry(desc, PP_BATCH_EVENT, "event", JSONBOID, -1, 0);
	TupleDescInitEntry(desc, PP_BATCH_ENVELOPE, "envelope", JSONBOID, -1, 0);
	TupleDescInitEntry(desc, PP_BATCH_ADDED_AT, "added_at", TIMESTAMPTZOID, -1, 0);
	return desc;
}

/*
 * pp_batch_register
 *		Makes the relation known to SPI, which must be connected, until pp_batch_unregister().  It lives in
 *		the current memory context, and is empty until pp_batch_fill().  estimate: of its rows, for the
 *		planner.
 */
PpBatchRelation *
pp_batch_register(TupleDesc desc, const char *stream, PpEntry **entries, int n, double estimate)
{
	PpBatchRelation *batch = palloc0(sizeof(PpBatchRelation));
	MemoryContext old;
	int rc;

	batch->entries = entries;
	batch->n = n;
	batch->stream = CStringGetTextDatum(stream);
	batch->enr.md.name = NAME;
	batch->enr.md.reliddesc = InvalidOid;
	batch->enr.md.tupdesc = desc;
	batch->enr.md.enrtype = ENR_NAMED_TUPLESTORE;
	batch->enr.md.enrtuples = estimate;
	batch->enr.reldata = tuplestore_begin_heap(false, false, INT_MAX / 2);
	/* SPI's list of relations must live as long as SPI's connection, not as long as this run. */
	old = MemoryContextSwitchTo(TopTransactionContext);
	rc = SPI_register_relation(&batch->enr);
	MemoryContextSwitchTo(old);
	if (rc != SPI_OK_REL_REGISTER)
		elog(ERROR, "could not register relation %s: %s", NAME, SPI_result_code_string(rc));
	return batch;
}

/* Also when there is none. */
void
pp_batch_unregister(void)
{
	(void) SPI_unregister_relation(NAME);
}

/* The relation, where a query was given it; else NULL. */
PpBatchRelation *
pp_batch_find(QueryEnvironment *env)
{
	return (PpBatchRelation *) get_ENR(env, NAME);
}

/* A value of the row of entry i, perhaps in the current memory context. */
Datum
pp_batch_value(const PpBatchRelation *batch, int i, PpBatchColumn column, bool *isnull)
{
	PpEntry *entry = batch->entries[i];

	*isnull = false;
	switch (column)
	{
		case PP_BATCH_ID:
			return PointerGetDatum(&entry->id);
		case PP_BATCH_ORD:
			return Int32GetDatum(i + 1);
		case PP_BATCH_STREAM:
			return batch->stream;
		case PP_BATCH_EVENT:
			return JsonbPGetDatum(pp_object_jsonb(entry->event));
		case PP_BATCH_ENVELOPE:
			*isnull = entry->envelope == NULL;
			return *isnull ? (Datum) 0 : JsonbPGetDatum(pp_object_jsonb(entry->envelope));
		case PP_BATCH_ADDED_AT:
			return TimestampTzGetDatum(pp_id_time(entry->id));
	}
	pg_unreachable();
}

/* Puts all rows into the tuplestore. */
void
pp_batch_fill(PpBatchRelation *batch)
{
	MemoryContext row =
		AllocSetContextCreate(CurrentMemoryContext, "postpipe row", ALLOCSET_DEFAULT_SIZES);
	Datum values[PP_BATCH_COLUMNS];
	bool nulls[PP_BATCH_COLUMNS];

	for (int i = 0; i < batch->n; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(row);

		for (int c = 0; c < PP_BATCH_COLUMNS; c++)
			values[c] = pp_batch_value(batch, i, c + 1, &nulls[c]);
		tuplestore_putvalues(batch->enr.reldata, batch->enr.md.tupdesc, values, nulls);
		MemoryContextSwitchTo(old);
		MemoryContextReset(row);
	}
	MemoryContextDelete(row);
}
