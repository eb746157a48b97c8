/*
 * epoch.c
 *		The epochs of a pipeline: how often its stream became another one, or was set back.
 *
 * An epoch is opened by a rewind from SQL, and when the stream was made anew, or is an older state
 * of itself after a failover.  After a rewind, what older epochs settled is applied again; else it
 * still counts, and an epoch is there for the audit alone: it says from which number of entries on
 * this one accounts for them.
 */
#include "ledger.h"

#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

/* The causes of epochs that begin because the stream is not as it was. */
static PpLife
life_of(const char *cause)
{
	if (strcmp(cause, "stream_went_back") == 0)
		return PP_LIFE_OLDER;
	if (strcmp(cause, "stream_made_anew") == 0 || strcmp(cause, "stream_gone") == 0)
		return PP_LIFE_OTHER;
	if (strcmp(cause, "stream_unclear") == 0 || strcmp(cause, "group_gone") == 0)
		return PP_LIFE_UNCLEAR;
	return PP_LIFE_SAME;
}

/* Takes the current epoch, and those that were opened by a rewind, from the query's result. */
static void
read_epochs(PpLedger *ledger)
{
	bool isnull;

	if (ledger->rewinds != NULL)
		pfree(ledger->rewinds);
	ledger->rewinds = MemoryContextAlloc(ledger->cxt, (SPI_processed + 1) * sizeof(PpRewind));
	ledger->num_rewinds = 0;
	ledger->many_lives = false;
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple row = SPI_tuptable->vals[i];
		TupleDesc desc = SPI_tuptable->tupdesc;

		ledger->epoch = (int) pp_store_get_number(row, desc, 1);
		ledger->base_known = DatumGetBool(SPI_getbinval(row, desc, 2, &isnull));
		ledger->life = life_of(SPI_getvalue(row, desc, 5));
		ledger->many_lives |= ledger->life >= PP_LIFE_OTHER;
		if (DatumGetBool(SPI_getbinval(row, desc, 3, &isnull)))
		{
			PpRewind *rewind = &ledger->rewinds[ledger->num_rewinds++];

			rewind->epoch = ledger->epoch;
			rewind->since = pp_store_get_id(row, desc, 4);
		}
	}
}

/* Finds the current epoch, and those that were opened by a rewind. SPI must be connected. */
void
pp_ledger_load_epochs(PpLedger *ledger)
{
	Oid types[] = {TEXTOID};
	Datum values[] = {CStringGetTextDatum(ledger->pipeline)};

	SPI_execute_with_args(psprintf("SELECT epoch, base_known, again, since_id, cause "
								   "FROM %s.postpipe_epoch WHERE pipeline = $1 ORDER BY epoch",
								   ledger->ext->schema_name),
						  1, types, values, NULL, false, 0);
	read_epochs(ledger);
}

/* The rows that may be merged: few, but entries wait while what was left of others is passed, so once. */
#define OPEN                                                                                     \
	"open AS (SELECT epoch, worker, last_id, sequence, applied + filtered + dead + discarded + " \
	"lost AS settled FROM %1$s.postpipe_ledger WHERE pipeline = $1 AND NOT summed)"

/*
 * The highest ID on record in an epoch or a later one.  No index has that, but of all rows that are not
 * open each epoch has it.
 */
#define HIGHEST(since)                                                                      \
	"(SELECT %1$s.max(last_id) FROM (SELECT epoch, last_id FROM %1$s.postpipe_epoch WHERE " \
	"pipeline = $1 UNION ALL SELECT epoch, last_id FROM open) r WHERE r.epoch >= " since ")"

/* The highest ID since the stream was made anew or went back, and the last batch of worker $3. */
#define TOP                                                                                \
	HIGHEST("(SELECT max(epoch) FROM %1$s.postpipe_epoch i WHERE i.pipeline = $1 AND NOT " \
			"i.again AND i.cause <> 'other_consumers_left')")
#define SEQUENCE                                                                          \
	"greatest((SELECT max(sequence) FROM open WHERE worker = $3), (SELECT max(sequence) " \
	"FROM %1$s.postpipe_ledger l WHERE l.pipeline = $1 AND l.summed AND l.worker = $3))"

/*
 * What the epoch has settled so far, and where it began; and the highest ID on record since the epoch
 * `rewound`, 0-0 if there is none.
 */
static PpId
read_sums(PpLedger *ledger, int rewound)
{
	Oid types[] = {TEXTOID, INT4OID, INT4OID, INT4OID};
	Datum values[] = {CStringGetTextDatum(ledger->pipeline), Int32GetDatum(ledger->epoch),
					  Int32GetDatum(ledger->worker), Int32GetDatum(rewound)};
	const char *s = ledger->ext->schema_name;
	TupleDesc desc;
	HeapTuple row;

	pp_store_by_index();
	SPI_execute_with_args(
		psprintf(
			"WITH " OPEN " SELECT coalesce(e.base_added, -1), "
			"(e.applied + e.filtered + e.dead + e.discarded + e.lost + "
			"coalesce((SELECT sum(settled) FROM open WHERE epoch = $2), 0) + "
			"coalesce((SELECT sum(entries) FROM %1$s.postpipe_lost_range r "
			"WHERE r.pipeline = $1 AND r.epoch = $2 AND cause = 'trimmed_before_read'), 0)"
			")::bigint, " TOP ", " SEQUENCE ", p.pruned_id, cardinality(p.holes)::bigint, "
			"p.shared::int::bigint, p.sealed_id, " HIGHEST(
				"$4") " "
					  "FROM %1$s.postpipe_epoch e JOIN %1$s.postpipe_progress p USING (pipeline) "
					  "WHERE e.pipeline = $1 AND e.epoch = $2",
			s),
		lengthof(types), types, values, NULL, false, 0);
	row = SPI_tuptable->vals[0];
	desc = SPI_tuptable->tupdesc;
	ledger->base = pp_store_get_number(row, desc, 1);
	ledger->settled = pp_store_get_number(row, desc, 2);
	ledger->top = pp_store_get_id(row, desc, 3);
	ledger->sequence = pp_store_get_number(row, desc, 4);
	ledger->pruned = pp_store_get_id(row, desc, 5);
	ledger->num_holes = pp_store_get_number(row, desc, 6);
	ledger->shared = pp_store_get_number(row, desc, 7) != 0;
	ledger->sealed = pp_store_get_id(row, desc, 8);
	return pp_store_get_id(row, desc, 9);
}

/*
 * pp_ledger_open
 *		Finds the pipeline's epoch, opens the first one where there is none, and returns the ID above
 *		which nothing is on record that counts (0-0: nothing is at all).  SPI must be connected.
 */
PpId
pp_ledger_open(PpLedger *ledger)
{
	Oid types[] = {TEXTOID};
	Datum values[] = {CStringGetTextDatum(ledger->pipeline)};
	const char *s = ledger->ext->schema_name;
	const PpRewind *last;
	PpId mark;

	SPI_execute_with_args(psprintf("WITH progress AS (INSERT INTO %s.postpipe_progress (pipeline) "
								   "VALUES ($1) ON CONFLICT DO NOTHING) "
								   "INSERT INTO %s.postpipe_epoch (pipeline, epoch, cause) "
								   "VALUES ($1, 1, 'first') ON CONFLICT DO NOTHING",
								   s, s),
						  1, types, values, NULL, false, 0);
	pp_ledger_load_epochs(ledger);
	last = ledger->num_rewinds > 0 ? &ledger->rewinds[ledger->num_rewinds - 1] : NULL;
	mark = read_sums(ledger, last ? last->epoch : 0);
	ledger->reached = mark;
	if (last != NULL && pp_id_compare(last->since, mark) > 0)
		mark = last->since;
	if (pp_id_compare(ledger->top, ledger->reached) < 0)
		ledger->reached = ledger->top;
	if (pp_id_compare(ledger->pruned, mark) > 0)
		mark = ledger->pruned;
	return mark;
}

/* The highest ID of the stream as it is now that is known to be settled; 0-0: none. */
PpId
pp_ledger_highest(const PpLedger *ledger)
{
	return pp_id_max(ledger->top, ledger->pruned);
}

/*
 * pp_ledger_set_base
 *		Notes what the epoch begins with, once, before its first entry is read: how many entries had
 *		been added to the stream that it does not account for (-1: not provable); the ID up to which
 *		entries are settled or none of ours (0-0: none), and of those the ones that are pending all
 *		the same, in stream order.  SPI must be connected.
 */
void
pp_ledger_set_base(PpLedger *ledger, const PpBase *base)
{
	Oid id_type = pp_id_type_oid(ledger->ext);
	Oid types[] = {TEXTOID, INT4OID, INT8OID, id_type, get_array_type(id_type)};
	Datum values[5];
	char nulls[] = "     ";

	values[0] = CStringGetTextDatum(ledger->pipeline);
	values[1] = Int32GetDatum(ledger->epoch);
	values[2] = Int64GetDatum(base->added);
	values[3] = PointerGetDatum(&base->settled);
	values[4] = pp_store_id_array(ledger->ext, base->holes, base->num_holes);
	nulls[2] = base->added < 0 ? 'n' : ' ';
	nulls[3] = pp_id_is_zero(base->settled) ? 'n' : ' ';
	SPI_execute_with_args(
		psprintf("WITH epoch AS (UPDATE %1$s.postpipe_epoch SET base_known = true, base_added = $3 "
				 "WHERE pipeline = $1 AND epoch = $2) "
				 "UPDATE %1$s.postpipe_progress SET pruned_id = $4, pruned_epoch = $2, "
				 "sealed_id = NULL, holes = $5 WHERE pipeline = $1",
				 ledger->ext->schema_name),
		5, types, values, nulls, false, 0);
	ledger->base_known = true;
	ledger->base = base->added;
	ledger->pruned = base->settled;
	ledger->sealed = (PpId){0, 0};
	ledger->num_holes = base->num_holes;
}

/* Notes whether the group has other consumers. SPI must be connected. */
void
pp_ledger_set_shared(PpLedger *ledger, bool shared)
{
	Oid types[] = {TEXTOID, BOOLOID};
	Datum values[] = {CStringGetTextDatum(ledger->pipeline), BoolGetDatum(shared)};

	SPI_execute_with_args(psprintf("UPDATE %s.postpipe_progress SET shared = $2 "
								   "WHERE pipeline = $1",
								   ledger->ext->schema_name),
						  2, types, values, NULL, false, 0);
	ledger->shared = shared;
}

/*
 * pp_ledger_start_epoch
 *		Opens an epoch because the stream is another one, or an older state of it.  Only look-ups get
 *		more thorough by it: what older epochs settled still counts.  SPI must be connected.
 */
void
pp_ledger_start_epoch(PpLedger *ledger, const char *cause)
{
	(void) pp_ledger_new_epoch(ledger->ext, ledger->pipeline, (PpId){0, 0}, cause, false);
	(void) pp_ledger_open(ledger);
}

/*
 * pp_ledger_new_epoch
 *		Opens an epoch.  With `again`, epochs before it no longer count: what they
 *		settled will be applied again.  Returns its number.
 */
int
pp_ledger_new_epoch(const PpExtension *ext, const char *pipeline, PpId since, const char *cause,
					bool again)
{
	PpStoreScope store;
	Oid types[] = {TEXTOID, TEXTOID, BOOLOID, pp_id_type_oid(ext)};
	Datum values[] = {CStringGetTextDatum(pipeline), CStringGetTextDatum(cause),
					  BoolGetDatum(again), PointerGetDatum(&since)};
	int epoch;

	pp_store_begin(&store, ext);
	SPI_execute_with_args(
		psprintf(
			"INSERT INTO %1$s.postpipe_epoch (pipeline, epoch, cause, again, "
			"since_id) SELECT $1, coalesce(max(epoch), 1) + 1, $2, $3, $4 FROM %1$s.postpipe_epoch "
			"WHERE pipeline = $1 RETURNING epoch",
			ext->schema_name),
		4, types, values, NULL, false, 0);
	epoch = (int) pp_store_get_number(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
	pp_store_end(&store);
	return epoch;
}

/* Deletes all that is kept of a pipeline, but for its definition. From a backend. */
void
pp_ledger_forget(const PpExtension *ext, const char *pipeline)
{
	static const char *const tables[] = {"postpipe_ledger",     "postpipe_epoch",
										 "postpipe_lost_range", "postpipe_dead_letter",
										 "postpipe_ingested",   "postpipe_progress"};
	Oid types[] = {TEXTOID};
	Datum values[] = {CStringGetTextDatum(pipeline)};

	for (int i = 0; i < lengthof(tables); i++)
		pp_store_execute(
			ext, psprintf("DELETE FROM %s.%s WHERE pipeline = $1", ext->schema_name, tables[i]), 1,
			types, values, NULL);
}
