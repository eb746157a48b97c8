/*
 * ledger.c
 *		Which entries are settled: one compact row per batch, written in the batch's transaction.
 *
 * A high-water mark would be wrong for a consumer group: one worker holds 100, another commits 200,
 * the first dies, and 100 would be skipped.  So the ledger knows single entries, by ID and by a
 * hash of the content.
 * What was settled before the epoch began is not in its rows: an ID at or below progress.pruned_id
 * that is not one of the holes (pending at that time) is a duplicate by definition.
 */
#include "ledger.h"

#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "ledger_ids.h"
#include "news.h"

#define DEFAULT_DAYS 7

/* How long the pipeline's rows are kept. */
int64
pp_ledger_retention_ms(const PpPipeline *p)
{
	return pp_pipeline_option_interval(p, "ledger_retention",
									   (int64) DEFAULT_DAYS * 24 * 3600 * 1000);
}

/* The entry with this ID, or NULL; entries are in stream order. */
static PpEntry *
find_entry(PpEntry **entries, int n, PpId id)
{
	int lo = 0;

	while (lo < n)
	{
		int mid = (lo + n) / 2;
		int order = pp_id_compare(entries[mid]->id, id);

		if (order == 0)
			return entries[mid];
		if (order < 0)
			lo = mid + 1;
		else
			n = mid;
	}
	return NULL;
}

/*
 * Does the record of an entry in this epoch still count?  Not when the pipeline was rewound to an
 * ID before it since: it is to be applied again.
 */
static bool
record_counts(const PpLedger *ledger, int epoch, PpId id)
{
	for (int i = 0; i < ledger->num_rewinds; i++)
		if (ledger->rewinds[i].epoch > epoch && pp_id_compare(id, ledger->rewinds[i].since) > 0)
			return false;
	return true;
}

/*
 * Marks those of `entries` that a ledger row of this epoch has; with `ever`, also those that are to be
 * applied again.
 */
static void
mark_duplicates(const PpLedger *ledger, int epoch, const bytea *ids, PpEntry **entries, int n,
				bool ever)
{
	PpIdsReader reader;
	PpIdHash next;
	PpEntry *other = NULL;
	char id[PP_ID_LEN];

	pp_ids_begin(&reader, ids);
	while (pp_ids_next(&reader, &next))
	{
		/* What is gone from the stream has no content to compare: the ID decides. */
		PpEntry *entry = find_entry(entries, n, next.id);

		if (entry == NULL || (!ever && !record_counts(ledger, epoch, next.id)))
			continue;
		if (entry->nfields >= 0 && entry->hash != next.hash)
		{
			other = epoch == ledger->epoch ? entry : other;
			continue;
		}
		entry->verdict = PP_VERDICT_DUPLICATE;
		entry->on_record = Max(entry->on_record, epoch);
	}
	if (other == NULL || ever || !pp_is_news("other_entry"))
		return;
	pp_id_print(other->id, id);
	ereport(WARNING,
			(errmsg("postpipe pipeline \"%s\": entry %s is not the one that was settled under "
					"this ID, so it is applied as a new one",
					ledger->pipeline, id),
			 errhint("Something writes this stream with IDs that were used before.")));
}

/*
 * Marks those of `entries` that were settled before the epoch began, or so long ago that their rows
 * are pruned.  Asked after the rows: they are pruned and the mark is raised in one transaction.
 */
static void
mark_pruned(PpLedger *ledger, PpEntry **entries, int n)
{
	Oid types[] = {TEXTOID};
	Datum values[] = {CStringGetTextDatum(ledger->pipeline)};
	char *sql = NULL;
	bool isnull;
	PpId pruned;
	Datum *holes;
	int num_holes;

	if (ledger->plans[PP_LEDGER_PLAN_PRUNED] == NULL)
		sql = psprintf("SELECT pruned_id, holes FROM %s.postpipe_progress WHERE pipeline = $1 "
					   "AND pruned_id IS NOT NULL",
					   ledger->ext->schema_name);
	if (pp_store_execute_plan(&ledger->plans[PP_LEDGER_PLAN_PRUNED], sql, 1, types, values, NULL) ==
		0)
		return;
	pruned = pp_store_get_id(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
	if (pp_id_compare(entries[0]->id, pruned) > 0)
		return;
	deconstruct_array(
		DatumGetArrayTypeP(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2, &isnull)),
		pp_id_type_oid(ledger->ext), sizeof(PpId), false, TYPALIGN_DOUBLE, &holes, NULL,
		&num_holes);
	for (int i = 0, hole = 0; i < n && pp_id_compare(entries[i]->id, pruned) <= 0; i++)
	{
		int order = 1;

		/* Both are in stream order. */
		while (hole < num_holes &&
			   (order = pp_id_compare(*(PpId *) DatumGetPointer(holes[hole]), entries[i]->id)) < 0)
			hole++;
		if (order == 0)
			continue;
		entries[i]->verdict = PP_VERDICT_DUPLICATE;
		entries[i]->on_record = ledger->epoch;
	}
}

/* Marks those of `entries`, in stream order, that the ledger's rows have. */
static void
look_up_rows(PpLedger *ledger, PpEntry **entries, int n, bool ever)
{
	Oid id_type = pp_id_type_oid(ledger->ext);
	Oid types[] = {TEXTOID, id_type, id_type};
	Datum values[3];
	char *sql = NULL;

	values[0] = CStringGetTextDatum(ledger->pipeline);
	values[1] = PointerGetDatum(&entries[0]->id);
	values[2] = PointerGetDatum(&entries[n - 1]->id);
	if (ledger->plans[PP_LEDGER_PLAN_LOOKUP] == NULL)
		sql = psprintf("SELECT ids, epoch FROM " PP_LEDGER_ROWS " l WHERE pipeline = $1 "
					   "AND last_id OPERATOR(%1$s.>=) $2 AND first_id OPERATOR(%1$s.<=) $3",
					   ledger->ext->schema_name);
	pp_store_execute_plan(&ledger->plans[PP_LEDGER_PLAN_LOOKUP], sql, 3, types, values, NULL);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool isnull;
		HeapTuple row = SPI_tuptable->vals[i];
		Datum ids = SPI_getbinval(row, SPI_tuptable->tupdesc, 1, &isnull);
		Datum epoch = SPI_getbinval(row, SPI_tuptable->tupdesc, 2, &isnull);

		mark_duplicates(ledger, DatumGetInt32(epoch), DatumGetByteaPP(ids), entries, n, ever);
	}
	SPI_freetuptable(SPI_tuptable);
}

/*
 * pp_ledger_lookup
 *		Gives the verdict "duplicate" to those of `entries`, in stream order, that are settled
 *		already.  SPI must be connected.
 */
void
pp_ledger_lookup(PpLedger *ledger, PpEntry **entries, int n)
{
	if (n == 0)
		return;
	look_up_rows(ledger, entries, n, false);
	mark_pruned(ledger, entries, n);
}

/* The same for a batch, but for what an earlier attempt has settled. */
void
pp_ledger_lookup_batch(PpLedger *ledger, PpBatch *batch)
{
	PpEntry **entries = palloc(Max(batch->n, 1) * sizeof(PpEntry *));
	int n = 0;

	for (int i = 0; i < batch->n; i++)
		if (!batch->entries[i].settled)
			entries[n++] = &batch->entries[i];
	pp_ledger_lookup(ledger, entries, n);
	pfree(entries);
}

/* Was this very entry ever settled, be it that it is to be applied again?  Changes its verdict. */
bool
pp_ledger_knows(PpLedger *ledger, PpEntry *entry)
{
	look_up_rows(ledger, &entry, 1, true);
	return entry->verdict == PP_VERDICT_DUPLICATE;
}

/*
 * pp_ledger_last_up_to
 *		An entry on record, most likely the last one of those up to this ID, whether or not it counts; 0-0: there
 *		is none.  SPI must be connected.
 */
PpId
pp_ledger_last_up_to(PpLedger *ledger, PpId id)
{
	Oid types[] = {TEXTOID, pp_id_type_oid(ledger->ext)};
	Datum values[] = {CStringGetTextDatum(ledger->pipeline), PointerGetDatum(&id)};

	/* One look into each index. */
	SPI_execute_with_args(
		psprintf(
			"SELECT greatest((SELECT %1$s.max(last_id) FROM %1$s.postpipe_ledger WHERE pipeline = $1 "
			"AND NOT summed AND last_id OPERATOR(%1$s.<=) $2), (SELECT %1$s.max(last_id) FROM "
			"%1$s.postpipe_ledger WHERE pipeline = $1 AND summed AND last_id OPERATOR(%1$s.<=) $2))",
			ledger->ext->schema_name),
		2, types, values, NULL, true, 1);
	return pp_store_get_id(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
}

/*
 * pp_ledger_record_lost
 *		Records that `entries` entries (-1: not known how many) of the range are lost, and why.  SPI
 *		must be connected.
 */
void
pp_ledger_record_lost(PpLedger *ledger, PpId first, PpId last, int64 entries, const char *cause)
{
	Oid id_type = pp_id_type_oid(ledger->ext);
	Oid types[] = {TEXTOID, INT4OID, id_type, id_type, INT8OID, TEXTOID};
	Datum values[] = {CStringGetTextDatum(ledger->pipeline),
					  Int32GetDatum(ledger->epoch),
					  PointerGetDatum(&first),
					  PointerGetDatum(&last),
					  Int64GetDatum(entries),
					  CStringGetTextDatum(cause)};
	char nulls[] = "      ";
	char *sql = NULL;

	nulls[4] = entries < 0 ? 'n' : ' ';
	if (ledger->plans[PP_LEDGER_PLAN_LOST] == NULL)
		sql = psprintf("INSERT INTO %s.postpipe_lost_range "
					   "(pipeline, epoch, first_id, last_id, entries, cause) "
					   "VALUES ($1, $2, $3, $4, $5, $6)",
					   ledger->ext->schema_name);
	pp_store_execute_plan(&ledger->plans[PP_LEDGER_PLAN_LOST], sql, 6, types, values, nulls);
}

/* Their IDs and hashes, as they are stored. */
static bytea *
encode(PpEntry **entries, int n)
{
	PpIdHash *ids = palloc(n * sizeof(PpIdHash));

	for (int i = 0; i < n; i++)
		ids[i] = (PpIdHash){entries[i]->id, entries[i]->hash};
	return pp_ids_encode(ids, n);
}

/*
 * Entries that an older epoch settled are in the stream all the same (a replica had not heard of
 * their acknowledgement): this epoch begins with so many more that are none of its own.
 */
static void
raise_base(PpLedger *ledger, int carried)
{
	Oid types[] = {TEXTOID, INT4OID, INT4OID};
	Datum values[] = {CStringGetTextDatum(ledger->pipeline), Int32GetDatum(ledger->epoch),
					  Int32GetDatum(carried)};

	SPI_execute_with_args(psprintf("UPDATE %s.postpipe_epoch SET base_added = base_added + $3 "
								   "WHERE pipeline = $1 AND epoch = $2",
								   ledger->ext->schema_name),
						  3, types, values, NULL, false, 0);
}

/*
 * pp_ledger_record
 *		Records these entries, in stream order, by their verdicts.  In the transaction that settles
 *		them; SPI must be connected.  Of duplicates only those must be passed that no row of this
 *		epoch has.
 */
void
pp_ledger_record(PpLedger *ledger, PpEntry **entries, int n)
{
	Oid id_type = pp_id_type_oid(ledger->ext);
	Oid types[] = {TEXTOID, INT4OID, INT4OID, id_type, id_type, INT4OID,
				   INT4OID, INT4OID, INT4OID, INT8OID, BYTEAOID};
	Datum values[11];
	int counts[PP_VERDICT_DEAD + 1] = {0};
	char *sql = NULL;

	if (n == 0)
		return;
	for (int i = 0; i < n; i++)
	{
		counts[entries[i]->verdict]++;
		if (entries[i]->verdict == PP_VERDICT_GONE)
			pp_ledger_record_lost(ledger, entries[i]->id, entries[i]->id, 1,
								  "deleted_while_pending");
	}
	if (counts[PP_VERDICT_DUPLICATE] > 0)
		raise_base(ledger, counts[PP_VERDICT_DUPLICATE]);
	ledger->recorded = ledger->sequence + 1;
	values[0] = CStringGetTextDatum(ledger->pipeline);
	values[1] = Int32GetDatum(ledger->epoch);
	values[2] = Int32GetDatum(ledger->worker);
	values[3] = PointerGetDatum(&entries[0]->id);
	values[4] = PointerGetDatum(&entries[n - 1]->id);
	values[5] = Int32GetDatum(counts[PP_VERDICT_APPLIED]);
	values[6] = Int32GetDatum(counts[PP_VERDICT_FILTERED]);
	values[7] = Int32GetDatum(counts[PP_VERDICT_DEAD]);
	values[8] = Int32GetDatum(counts[PP_VERDICT_GONE]);
	values[9] = Int64GetDatum(ledger->recorded);
	values[10] = PointerGetDatum(encode(entries, n));
	if (ledger->plans[PP_LEDGER_PLAN_RECORD] == NULL)
		sql = psprintf("INSERT INTO %s.postpipe_ledger (pipeline, epoch, worker, first_id, "
					   "last_id, applied, filtered, dead, lost, sequence, ids) "
					   "VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
					   ledger->ext->schema_name);
	pp_store_execute_plan(&ledger->plans[PP_LEDGER_PLAN_RECORD], sql, 11, types, values, NULL);
}

/*
 * pp_ledger_adjust
 *		Dead letters of an epoch, the first and the last of them with these IDs, were applied or
 *		filtered after all.  In the transaction that does it; SPI must be connected.  Their IDs are on
 *		record since they failed, so the row has none.
 */
void
pp_ledger_adjust(PpLedger *ledger, int epoch, PpId first, PpId last, int applied, int filtered)
{
	Oid id_type = pp_id_type_oid(ledger->ext);
	Oid types[] = {TEXTOID, INT4OID, INT4OID, id_type, id_type,
				   INT4OID, INT4OID, INT4OID, BYTEAOID};
	Datum values[] = {
		CStringGetTextDatum(ledger->pipeline),
		Int32GetDatum(epoch),
		Int32GetDatum(ledger->worker),
		PointerGetDatum(&first),
		PointerGetDatum(&last),
		Int32GetDatum(applied),
		Int32GetDatum(filtered),
		Int32GetDatum(-applied - filtered),
		PointerGetDatum(pp_ids_encode(NULL, 0)),
	};

	SPI_execute_with_args(psprintf("INSERT INTO %s.postpipe_ledger (pipeline, epoch, worker, "
								   "first_id, last_id, applied, filtered, dead, lost, ids) "
								   "VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 0, $9)",
								   ledger->ext->schema_name),
						  lengthof(types), types, values, NULL, false, 0);
}

/* The transaction of pp_ledger_record() is committed. */
void
pp_ledger_committed(PpLedger *ledger)
{
	ledger->sequence = Max(ledger->sequence, ledger->recorded);
}
