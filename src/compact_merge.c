/*
 * compact_merge.c
 *		Merges rows of small batches in the ledger, those of one epoch and worker, until they are as
 *		large as that of a full batch.
 */
#include "compact_internal.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "ledger_ids.h"

/* Rows that become one. */
typedef struct Merged
{
	int32 epoch;
	int32 worker;
	int64 sums[5]; /* applied, filtered, dead, discarded, lost */
	int64 sequence;
	TimestampTz settled_at;
	int rows;
	Size bytes;
	PpIdHash *ids;
	int n;
	int size;
} Merged;

static int
compare_ids(const void *a, const void *b)
{
	return pp_id_compare(((const PpIdHash *) a)->id, ((const PpIdHash *) b)->id);
}

static void
add_ids(Merged *group, const bytea *ids)
{
	PpIdsReader reader;
	PpIdHash next;

	pp_ids_begin(&reader, ids);
	while (pp_ids_next(&reader, &next))
	{
		if (group->n == group->size)
		{
			group->size = Max(2 * group->size, 1024);
			group->ids = group->ids == NULL ? palloc(group->size * sizeof(PpIdHash))
											: repalloc(group->ids, group->size * sizeof(PpIdHash));
		}
		group->ids[group->n++] = next;
	}
	group->bytes += VARSIZE_ANY_EXHDR(ids);
}

/* Writes the one row.  Rows of corrections alone have no IDs, and lie where the first one lay. */
static void
write_group(const PpLedger *ledger, Merged *group, PpId first)
{
	Oid id_type = pp_id_type_oid(ledger->ext);
	Oid types[] = {TEXTOID, INT4OID, INT4OID, id_type, id_type,  INT4OID,       INT4OID,
				   INT4OID, INT4OID, INT4OID, INT8OID, BYTEAOID, TIMESTAMPTZOID};
	Datum values[13];
	PpId last = first;

	qsort(group->ids, group->n, sizeof(PpIdHash), compare_ids);
	if (group->n > 0)
	{
		first = group->ids[0].id;
		last = group->ids[group->n - 1].id;
	}
	values[0] = CStringGetTextDatum(ledger->pipeline);
	values[1] = Int32GetDatum(group->epoch);
	values[2] = Int32GetDatum(group->worker);
	values[3] = PointerGetDatum(&first);
	values[4] = PointerGetDatum(&last);
	for (int i = 0; i < 5; i++)
		values[5 + i] = Int32GetDatum((int32) group->sums[i]);
	values[10] = Int64GetDatum(group->sequence);
	values[11] = PointerGetDatum(pp_ids_encode(group->ids, group->n));
	values[12] = TimestampTzGetDatum(group->settled_at);
	SPI_execute_with_args(psprintf("INSERT INTO %s.postpipe_ledger (pipeline, epoch, worker, "
								   "first_id, last_id, applied, filtered, dead, discarded, lost, "
								   "sequence, ids, settled_at) VALUES ($1, $2, $3, $4, $5, $6, $7, "
								   "$8, $9, $10, $11, $12, $13)",
								   ledger->ext->schema_name),
						  13, types, values, NULL, false, 0);
}

/*
 * pp_compact_merge
 *		Merges a page of the rows that are not closed, and not too large.  Says whether there may be more, or
 *		else where the first of them lay.  In a transaction, with SPI connected.
 */
void
pp_compact_merge(PpApply *a, void *arg)
{
	const PpLedger *ledger = pp_apply_ledger(a);
	PpCompact *c = arg;
	Oid types[] = {TEXTOID, INT4OID, INT4OID, pp_id_type_oid(ledger->ext)};
	Datum values[] = {CStringGetTextDatum(ledger->pipeline), Int32GetDatum(PP_COMPACT_FULL_BYTES),
					  Int32GetDatum(PP_COMPACT_PAGE_ROWS), PointerGetDatum(&c->from)};
	SPITupleTable *table;
	uint64 total;
	Merged group = {0};
	PpId first = {0, 0};
	PpId lowest = PP_ID_MAX;

	pp_store_by_index();
	/* As a page is deleted whole and written again, a row alone in its group is written as it was. */
	SPI_execute_with_args(
		psprintf(
			"WITH page AS (DELETE FROM %1$s.postpipe_ledger WHERE ctid = ANY (ARRAY("
			"SELECT ctid FROM %1$s.postpipe_ledger WHERE pipeline = $1 AND NOT summed "
			"AND last_id OPERATOR(%1$s.>=) $4 AND octet_length(ids) < $2 ORDER BY epoch, worker, settled_at LIMIT $3)) "
			"RETURNING *) SELECT epoch, worker, applied, filtered, dead, discarded, lost, "
			"sequence, settled_at, first_id, ids, last_id FROM page ORDER BY epoch, worker, settled_at",
			ledger->ext->schema_name),
		4, types, values, NULL, false, 0);
	table = SPI_tuptable;
	total = SPI_processed;
	for (uint64 i = 0; i <= total; i++)
	{
		HeapTuple row = i < total ? table->vals[i] : NULL;
		int32 epoch = row ? (int32) pp_store_get_number(row, table->tupdesc, 1) : -1;
		int32 worker = row ? (int32) pp_store_get_number(row, table->tupdesc, 2) : -1;
		PpId last;
		bool isnull;

		if (group.rows > 0 && (epoch != group.epoch || worker != group.worker ||
							   group.bytes >= 2 * PP_COMPACT_FULL_BYTES))
		{
			write_group(ledger, &group, first);
			group.rows = group.n = 0;
			group.bytes = 0;
			group.sequence = 0;
			memset(group.sums, 0, sizeof(group.sums));
		}
		if (row == NULL)
			break;
		if (group.rows++ == 0)
			first = pp_store_get_id(row, table->tupdesc, 10);
		last = pp_store_get_id(row, table->tupdesc, 12);
		if (pp_id_compare(last, lowest) < 0)
			lowest = last;
		group.epoch = epoch;
		group.worker = worker;
		for (int s = 0; s < 5; s++)
			group.sums[s] += pp_store_get_number(row, table->tupdesc, 3 + s);
		group.sequence = Max(group.sequence, pp_store_get_number(row, table->tupdesc, 8));
		group.settled_at = pp_store_get_number(row, table->tupdesc, 9);
		add_ids(&group, DatumGetByteaPP(SPI_getbinval(row, table->tupdesc, 11, &isnull)));
	}
	if (total == PP_COMPACT_PAGE_ROWS)
		c->more = true;
	else if (total > 0)
		c->from = lowest;
}
