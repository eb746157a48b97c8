/*
 * compact.c
 *		Keeps the ledger small: merges rows of small batches, and prunes what is old.
 *
 * Worker 1 does it between batches, a bounded piece at a time.  Rows of one epoch and worker are
 * merged until they are as large as that of a full batch, so that entries which come one by one cost
 * no more than others.  Then, or when they are old, their sums go to the epoch, and they are closed.
 * Closed rows older than the option ledger_retention go: up to pruned_id an ID is a duplicate by
 * definition then, but for the holes, which are pending and not on record.
 *
 * Sealed is the ID up to which the group has delivered everything and nothing is pending.
 *
 * The closed row with the highest sequence of each worker stays: Redis is compared with it (owner_known.c).
 */
#include "worker_internal.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "pgstat.h"
#include "storage/itemptr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#include "ledger_ids.h"
#include "process.h"
#include "stats.h"

#define PAGE_ROWS   1000
#define FULL_BYTES  4096  /* of IDs: a row with so many is not merged any more */
#define MAX_HOLES   10000 /* with more entries pending, nothing is pruned */
#define BATCHES_DUE 1000
#define MINUTE_MS   60000

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

static int64
get_number(HeapTuple row, TupleDesc desc, int column)
{
	bool isnull;
	Datum value = SPI_getbinval(row, desc, column, &isnull);

	return SPI_gettypeid(desc, column) == INT4OID ? DatumGetInt32(value) : DatumGetInt64(value);
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

/* What is closed. */
typedef struct Close
{
	TimestampTz before;
	bool more;
} Close;

/*
 * Closes a page of rows that are too large to be merged, or old.  Their sums go to their epochs: when a
 * ledger is opened or audited, only the rows that are open are to be added up.
 */
static void
close_rows(PpApply *a, void *arg)
{
	Close *closed = arg;
	const PpLedger *ledger = pp_apply_ledger(a);
	Oid types[] = {TEXTOID, INT4OID, TIMESTAMPTZOID, INT4OID};
	Datum values[] = {CStringGetTextDatum(ledger->pipeline), Int32GetDatum(FULL_BYTES),
					  TimestampTzGetDatum(closed->before), Int32GetDatum(PAGE_ROWS)};
	bool isnull;

	SPI_execute_with_args(
		psprintf("WITH page AS (UPDATE %1$s.postpipe_ledger SET summed = true WHERE ctid = ANY "
				 "(ARRAY(SELECT ctid FROM %1$s.postpipe_ledger WHERE pipeline = $1 AND NOT summed "
				 "AND (octet_length(ids) >= $2 OR settled_at <= $3) LIMIT $4)) RETURNING epoch, "
				 "applied, filtered, dead, discarded, lost, last_id), "
				 "sums AS (UPDATE %1$s.postpipe_epoch e SET applied = e.applied + s.applied, "
				 "filtered = e.filtered + s.filtered, dead = e.dead + s.dead, "
				 "discarded = e.discarded + s.discarded, lost = e.lost + s.lost, "
				 "last_id = greatest(e.last_id, s.last_id) FROM (SELECT epoch, sum(applied) AS "
				 "applied, sum(filtered) AS filtered, sum(dead) AS dead, sum(discarded) AS "
				 "discarded, sum(lost) AS lost, %1$s.max(last_id) AS last_id FROM page "
				 "GROUP BY epoch) s WHERE e.pipeline = $1 AND e.epoch = s.epoch) "
				 "SELECT count(*) FROM page",
				 ledger->ext->schema_name),
		4, types, values, NULL, false, 0);
	closed->more = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1,
											   &isnull)) == PAGE_ROWS;
}

/* Merges a page of the other ones. *arg becomes true when there may be more. */
static void
merge(PpApply *a, void *arg)
{
	const PpLedger *ledger = pp_apply_ledger(a);
	Oid types[] = {TEXTOID, INT4OID, INT4OID};
	Datum values[] = {CStringGetTextDatum(ledger->pipeline), Int32GetDatum(FULL_BYTES),
					  Int32GetDatum(PAGE_ROWS)};
	SPITupleTable *table;
	uint64 total;
	Merged group = {0};
	PpId first = {0, 0};

	/* As a page is deleted whole and written again, a row alone in its group is written as it was. */
	SPI_execute_with_args(
		psprintf("WITH page AS (DELETE FROM %1$s.postpipe_ledger WHERE ctid = ANY (ARRAY("
				 "SELECT ctid FROM %1$s.postpipe_ledger WHERE pipeline = $1 AND NOT summed "
				 "AND octet_length(ids) < $2 ORDER BY epoch, worker, settled_at LIMIT $3)) "
				 "RETURNING *) SELECT epoch, worker, applied, filtered, dead, discarded, lost, "
				 "sequence, settled_at, first_id, ids FROM page ORDER BY epoch, worker, settled_at",
				 ledger->ext->schema_name),
		3, types, values, NULL, false, 0);
	table = SPI_tuptable;
	total = SPI_processed;
	*(bool *) arg |= total == PAGE_ROWS;
	for (uint64 i = 0; i <= total; i++)
	{
		HeapTuple row = i < total ? table->vals[i] : NULL;
		int32 epoch = row ? (int32) get_number(row, table->tupdesc, 1) : -1;
		int32 worker = row ? (int32) get_number(row, table->tupdesc, 2) : -1;
		bool isnull;

		if (group.rows > 0 &&
			(epoch != group.epoch || worker != group.worker || group.bytes >= 2 * FULL_BYTES))
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
			first = *(PpId *) DatumGetPointer(SPI_getbinval(row, table->tupdesc, 10, &isnull));
		group.epoch = epoch;
		group.worker = worker;
		for (int s = 0; s < 5; s++)
			group.sums[s] += get_number(row, table->tupdesc, 3 + s);
		group.sequence = Max(group.sequence, get_number(row, table->tupdesc, 8));
		group.settled_at = get_number(row, table->tupdesc, 9);
		add_ids(&group, DatumGetByteaPP(SPI_getbinval(row, table->tupdesc, 11, &isnull)));
	}
}

/* What is pruned, and up to where. */
typedef struct Prune
{
	PpId sealed;    /* everything up to here is settled */
	PpId delivered; /* … or at least delivered */
	TimestampTz before;
	PpId upto; /* 0-0: nothing of this incarnation of the stream */
	PpId *holes;
	int num_holes;
	bool more;
} Prune;

/*
 * The closed rows that were settled up to $2; of the stream as it is now, those up to the ID $3.  Rows of what
 * the stream was before say nothing of its IDs.
 */
#define INCARNATION \
	"(SELECT max(epoch) FROM %1$s.postpipe_epoch i WHERE i.pipeline = $1 AND NOT i.again)"
#define OLD_ROWS                                                                                                \
	"FROM %1$s.postpipe_ledger l WHERE pipeline = $1 AND summed AND settled_at <= $2 AND (epoch < " INCARNATION \
	" OR last_id OPERATOR(%1$s.<=) $3) AND sequence < (SELECT max(sequence) FROM "                              \
	"%1$s.postpipe_ledger m WHERE m.pipeline = $1 AND m.worker = l.worker AND m.summed) "

/* Which rows will go?  Up to *before from now on, and of this incarnation up to the ID *upto. */
static void
find_old(PpApply *a, void *arg)
{
	Prune *prune = arg;
	const PpLedger *ledger = pp_apply_ledger(a);
	Oid types[] = {TEXTOID, TIMESTAMPTZOID, pp_id_type_oid(ledger->ext), INT4OID};
	Datum values[] = {CStringGetTextDatum(ledger->pipeline), TimestampTzGetDatum(prune->before),
					  PointerGetDatum(&prune->delivered), Int32GetDatum(PAGE_ROWS)};
	TupleDesc desc;
	HeapTuple row;
	bool none;
	Datum value;

	SPI_execute_with_args(
		psprintf("SELECT max(settled_at), %1$s.max(last_id) FILTER (WHERE epoch >= " INCARNATION
				 "), count(*) FROM (SELECT settled_at, last_id, epoch " OLD_ROWS
				 "ORDER BY settled_at LIMIT $4) s",
				 ledger->ext->schema_name),
		4, types, values, NULL, true, 0);
	row = SPI_tuptable->vals[0];
	desc = SPI_tuptable->tupdesc;
	prune->more = get_number(row, desc, 3) == PAGE_ROWS;
	value = SPI_getbinval(row, desc, 2, &none);
	prune->upto = none ? (PpId){0, 0} : *(PpId *) DatumGetPointer(value);
	value = SPI_getbinval(row, desc, 1, &none);
	prune->before = none ? 0 : DatumGetTimestampTz(value);
}

/*
 * Of what is pending, what is on record is no hole: it was settled, and its acknowledgement has not
 * come.  Its row may go now, and then its ID is that of a duplicate.
 */
static void
leave_out_settled(PpLedger *ledger, Prune *prune)
{
	PpEntry *entries = palloc0((prune->num_holes + 1) * sizeof(PpEntry));
	PpEntry **pointers = palloc((prune->num_holes + 1) * sizeof(PpEntry *));
	int n = prune->num_holes;

	for (int i = 0; i < n; i++)
	{
		entries[i].id = prune->holes[i];
		entries[i].nfields = -1;
		entries[i].verdict = PP_VERDICT_GONE;
		pointers[i] = &entries[i];
	}
	pp_ledger_lookup(ledger, pointers, n);
	prune->num_holes = 0;
	for (int i = 0; i < n; i++)
		if (entries[i].verdict != PP_VERDICT_DUPLICATE)
			prune->holes[prune->num_holes++] = entries[i].id;
}

/* Deletes the rows, and raises the mark. */
static void
delete_old(PpApply *a, void *arg)
{
	Prune *prune = arg;
	PpLedger *ledger = pp_apply_ledger(a);
	Oid id_type = pp_id_type_oid(ledger->ext);
	Oid types[] = {TEXTOID, TIMESTAMPTZOID, id_type, get_array_type(id_type)};
	Datum values[4];

	leave_out_settled(ledger, prune);
	values[0] = CStringGetTextDatum(ledger->pipeline);
	values[1] = TimestampTzGetDatum(prune->before);
	values[2] = PointerGetDatum(&prune->upto);
	values[3] = pp_store_id_array(ledger->ext, prune->holes, prune->num_holes);
	SPI_execute_with_args(
		psprintf("WITH page AS (DELETE " OLD_ROWS "RETURNING last_id, epoch) "
				 "UPDATE %1$s.postpipe_progress SET holes = $4, pruned_id = greatest(pruned_id, "
				 "(SELECT %1$s.max(last_id) FROM page WHERE epoch >= " INCARNATION ")) "
				 "WHERE pipeline = $1",
				 ledger->ext->schema_name),
		4, types, values, NULL, false, 0);
}

/* Notes what is sealed. */
static void
seal(PpApply *a, void *sealed)
{
	const PpLedger *ledger = pp_apply_ledger(a);
	Oid types[] = {TEXTOID, pp_id_type_oid(ledger->ext)};
	Datum values[] = {CStringGetTextDatum(ledger->pipeline), PointerGetDatum(sealed)};

	SPI_execute_with_args(psprintf("UPDATE %s.postpipe_progress SET sealed_id = $2 "
								   "WHERE pipeline = $1",
								   ledger->ext->schema_name),
						  2, types, values, NULL, false, 0);
}

/*
 * What is pending up to prune->upto.  False: Redis failed.  If there is too much, nothing is pruned:
 * prune->before is 0.
 */
static bool
get_holes(PpWorker *w, MemoryContext cxt, Prune *prune, PpRedisError *error)
{
	PpReply *reply;
	PpId none = {0, 0};

	prune->num_holes = 0;
	if (pp_id_is_zero(prune->upto))
		return true;
	pp_stream_send_pending(w->redis, w->def->stream, w->def->group, none, prune->upto,
						   MAX_HOLES + 1);
	if (!pp_consume_receive(w, PP_REPLY_ARRAY, &reply, error))
		return false;
	if (reply->len > MAX_HOLES)
	{
		prune->before = 0;
		return true;
	}
	prune->holes = MemoryContextAlloc(cxt, (reply->len + 1) * sizeof(PpId));
	for (size_t i = 0; i < reply->len; i++)
		if (!pp_stream_parse_pending(&reply->items[i], &prune->holes[prune->num_holes++], error))
			return false;
	return true;
}

/*
 * Where the group stands, and after that what is pending: so what is sealed.  Nothing, where neither can
 * be known.
 */
static bool
get_sealed(PpWorker *w, Prune *prune, PpRedisError *error)
{
	PpStreamFacts facts;
	PpReply *reply;
	PpId none = {0, 0};
	PpId oldest;

	pp_stream_send_group(w->redis, w->def->stream);
	pp_stream_send_pending(w->redis, w->def->stream, w->def->group, none, PP_ID_MAX, 1);
	if ((reply = pp_consume_receive_any(w, error)) == NULL ||
		!pp_stream_parse_group(reply, w->def->group, &facts, error) ||
		!pp_consume_receive(w, PP_REPLY_ARRAY, &reply, error))
		return false;
	prune->delivered = prune->sealed = facts.last_delivered;
	if (reply->len == 0)
		return true;
	if (!pp_stream_parse_pending(&reply->items[0], &oldest, error))
		return false;
	if (pp_id_compare(oldest, facts.last_delivered) <= 0)
		prune->sealed = pp_id_previous(oldest);
	return true;
}

static bool
transact(PpWorker *w, PpWork work, void *arg)
{
	PpEntryError *error;
	PpOutcome outcome = pp_apply_transaction(w->apply, work, arg, &error);

	if (outcome == PP_OUTCOME_GONE)
		pp_worker_stop(w, "definition_changed", "the definition has changed or is gone");
	if (outcome != PP_OUTCOME_DONE)
		pp_report_error(w->pipe, error->sqlstate, error->message);
	return outcome == PP_OUTCOME_DONE;
}

/* Is there anything to do?  After so many batches; and a while after the last one. */
static bool
is_due(PpWorker *w)
{
	uint64 batches = pg_atomic_read_u64(&w->pipe->counters[PP_COUNT_BATCHES]);

	if (batches == w->compact.batches)
		return false;
	return w->compact.more || batches - w->compact.batches >= BATCHES_DUE ||
		   TimestampDifferenceExceeds(w->compact.at, GetCurrentTimestamp(), w->compact.every_ms);
}

/*
 * pp_compact_run
 *		Does a bounded piece of it, if it is due.  Outside a transaction, with no reply outstanding; a
 *		batch may be in hand.  False with *error: the connection failed.
 */
bool
pp_compact_run(PpWorker *w, PpRedisError *error)
{
	PpCompact *c = &w->compact;
	MemoryContext old;
	Prune prune = {.sealed = {0, 0}};
	Close closed = {0};
	bool ok;

	if (c->cxt == NULL)
	{
		c->cxt = AllocSetContextCreate(w->cxt, "postpipe compact", ALLOCSET_DEFAULT_SIZES);
		c->retention_ms = pp_ledger_retention_ms(w->def);
		c->every_ms = (int) Min(Max(c->retention_ms, 1000), MINUTE_MS);
		c->at = GetCurrentTimestamp();
	}
	if (!is_due(w))
		return true;
	pp_process_activity(true, "compacting the ledger");
	old = MemoryContextSwitchTo(c->cxt);
	pp_redis_reply_target(w->redis, c->cxt, (size_t) 64 * 1024 * 1024);
	c->more = false;
	closed.before = prune.before = GetCurrentTimestamp() - c->retention_ms * INT64CONST(1000);
	ok = get_sealed(w, &prune, error);
	if (ok && transact(w, seal, &prune.sealed) && transact(w, close_rows, &closed) &&
		transact(w, merge, &c->more) && transact(w, find_old, &prune) && prune.before != 0 &&
		(ok = get_holes(w, c->cxt, &prune, error)) && prune.before != 0 &&
		transact(w, delete_old, &prune))
		c->more |= prune.more;
	c->more |= closed.more;
	if (!c->more)
		c->batches = pg_atomic_read_u64(&w->pipe->counters[PP_COUNT_BATCHES]);
	c->at = GetCurrentTimestamp();
	MemoryContextSwitchTo(old);
	MemoryContextReset(c->cxt);
	pgstat_report_stat(false);
	return ok;
}

/* How long the worker may wait before it is due, at most max_ms. */
long
pp_compact_due_ms(PpWorker *w, long max_ms)
{
	TimestampTz due = TimestampTzPlusMilliseconds(w->compact.at, w->compact.every_ms);

	if (pg_atomic_read_u64(&w->pipe->counters[PP_COUNT_BATCHES]) == w->compact.batches)
		return max_ms;
	return Min(max_ms, TimestampDifferenceMilliseconds(GetCurrentTimestamp(), due));
}
