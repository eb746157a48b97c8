/*
 * compact.c
 *		Keeps the ledger small: merges rows of small batches, and prunes what is old.
 *
 * Worker 1 does it between batches, a bounded piece at a time.  Rows of one epoch and worker are
 * merged until they are as large as that of a full batch, so that entries which come one by one cost
 * no more than others.  Then, or when they are old, their sums go to the epoch, and they are closed.
 * Closed rows older than the option ledger_retention go: up to pruned_id an ID is a duplicate by
 * definition then, but for the holes, which are pending and not on record.  So in a group that is ours
 * alone, what is left of the stream up to there is looked through before: if the group has passed over an
 * entry, worker 1 reads the stream from there on (repair.c).
 *
 * Sealed is the ID up to which the group has delivered everything and nothing is pending.
 *
 * The closed row with the highest sequence of each worker stays: Redis is compared with it (owner_known.c).
 */
#include "worker_internal.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "pgstat.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#include "compact_internal.h"
#include "process.h"
#include "stats.h"

#define MAX_HOLES 10000 /* with more entries pending, nothing is pruned */
#define BATCHES_DUE \
	200 /* entries wait some 2 ms for a round of so many, and 10 ms for one of 1000 */
#define PRUNE_DUE 1000
#define MINUTE_MS 60000

/* What is closed. */
typedef struct Close
{
	TimestampTz before;
	PpId from;
	bool more;
} Close;

/* Reads the option that matters here.  At the start, and after a reload, which lets all that is due after a while be due. */
void
pp_compact_configure(PpWorker *w)
{
	PpCompact *c = &w->compact;

	c->retention_ms = pp_ledger_retention_ms(w->def);
	c->every_ms = (int) Min(Max(c->retention_ms, 1000), MINUTE_MS);
	c->due_at = c->cxt == NULL ? pp_steady_in(c->every_ms) : (PpSteady){0};
	if (c->cxt == NULL)
		c->cxt = AllocSetContextCreate(w->cxt, "postpipe compact", ALLOCSET_DEFAULT_SIZES);
}

/*
 * Closes a page of rows that are too large to be merged, or old.  Their sums go to their epochs: when a
 * ledger is opened or audited, only the rows that are open are to be added up.
 */
static void
close_rows(PpApply *a, void *arg)
{
	Close *closed = arg;
	const PpLedger *ledger = pp_apply_ledger(a);
	Oid types[] = {TEXTOID, INT4OID, TIMESTAMPTZOID, INT4OID, pp_id_type_oid(ledger->ext)};
	Datum values[] = {CStringGetTextDatum(ledger->pipeline), Int32GetDatum(PP_COMPACT_FULL_BYTES),
					  TimestampTzGetDatum(closed->before), Int32GetDatum(PP_COMPACT_PAGE_ROWS),
					  PointerGetDatum(&closed->from)};

	pp_store_by_index();
	SPI_execute_with_args(
		psprintf(
			"WITH page AS (UPDATE %1$s.postpipe_ledger SET summed = true WHERE ctid = ANY "
			"(ARRAY(SELECT ctid FROM %1$s.postpipe_ledger WHERE pipeline = $1 AND NOT summed "
			"AND last_id OPERATOR(%1$s.>=) $5 AND (octet_length(ids) >= $2 OR settled_at <= $3) LIMIT $4)) RETURNING epoch, "
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
		5, types, values, NULL, false, 0);
	closed->more = pp_store_get_number(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1) ==
				   PP_COMPACT_PAGE_ROWS;
}

/* What is pruned, and up to where. */
typedef struct Prune
{
	PpId sealed;    /* everything up to here is settled */
	PpId delivered; /* … or at least delivered */
	TimestampTz before;
	PpId upto; /* of this incarnation of the stream; 0-0: nothing */
	PpIdList holes;
	bool more;
} Prune;

/*
 * The closed rows that were settled up to $2; of the stream as it is now, those up to the ID $3.  Rows of what
 * the stream was before say nothing of its IDs.  What was no batch (sequence 0), as the row of a discard, is the
 * last of none.
 */
#define INCARNATION                                                                                           \
	"(SELECT max(epoch) FROM %1$s.postpipe_epoch i WHERE i.pipeline = $1 AND NOT i.again AND i.cause <> ALL " \
	"('{other_consumers_left,stream_went_back}'))"
#define OLD_ROWS                                                                                                \
	"FROM %1$s.postpipe_ledger l WHERE pipeline = $1 AND summed AND settled_at <= $2 AND (epoch < " INCARNATION \
	" OR last_id OPERATOR(%1$s.<=) $3) AND (sequence = 0 OR sequence < (SELECT max(sequence) FROM "             \
	"%1$s.postpipe_ledger m WHERE m.pipeline = $1 AND m.worker = l.worker AND m.summed)) "

/*
 * Which rows will go?  Up to *before from now on, and of this incarnation up to the ID *upto: no less than what is
 * pruned already, because the holes up to there are found anew, and these rows may lie below, as that of a hole
 * that was settled late, or be of what the stream was before.
 */
static void
find_old(PpApply *a, void *arg)
{
	Prune *prune = arg;
	const PpLedger *ledger = pp_apply_ledger(a);
	Oid types[] = {TEXTOID, TIMESTAMPTZOID, pp_id_type_oid(ledger->ext), INT4OID};
	Datum values[] = {CStringGetTextDatum(ledger->pipeline), TimestampTzGetDatum(prune->before),
					  PointerGetDatum(&prune->delivered), Int32GetDatum(PP_COMPACT_PAGE_ROWS)};
	TupleDesc desc;
	HeapTuple row;

	SPI_execute_with_args(
		psprintf(
			"SELECT max(settled_at), greatest(%1$s.max(last_id) FILTER (WHERE epoch >= " INCARNATION
			"), (SELECT pruned_id FROM %1$s.postpipe_progress WHERE pipeline = $1)), count(*) "
			"FROM (SELECT settled_at, last_id, epoch " OLD_ROWS "ORDER BY settled_at LIMIT $4) s",
			ledger->ext->schema_name),
		4, types, values, NULL, true, 0);
	row = SPI_tuptable->vals[0];
	desc = SPI_tuptable->tupdesc;
	prune->more = pp_store_get_number(row, desc, 3) == PP_COMPACT_PAGE_ROWS;
	prune->upto = pp_store_get_id(row, desc, 2);
	prune->before = pp_store_get_number(row, desc, 1);
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

	/*
	 * Of what is pending, what is on record is no hole: it was settled, and its acknowledgement has not
	 * come.  Its row may go now, and then its ID is that of a duplicate.
	 */
	pp_compact_leave_out_settled(a, &prune->holes);
	values[0] = CStringGetTextDatum(ledger->pipeline);
	values[1] = TimestampTzGetDatum(prune->before);
	values[2] = PointerGetDatum(&prune->upto);
	values[3] = pp_store_id_array(ledger->ext, prune->holes.ids, prune->holes.n);
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
	prune->holes.ids = MemoryContextAlloc(cxt, (reply->len + 1) * sizeof(PpId));
	for (size_t i = 0; i < reply->len; i++)
		if (!pp_stream_parse_pending(&reply->items[i], &prune->holes.ids[prune->holes.n++], error))
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

/* The whole ledger is looked at a while after it was, and when there was more to do than fits into a round. */
static bool
is_whole_due(const PpCompact *c)
{
	return c->more || pp_steady_is_due(c->due_at);
}

/* Is there anything to do? */
static bool
is_due(PpWorker *w)
{
	PpCompact *c = &w->compact;
	uint64 batches = pg_atomic_read_u64(&w->pipe->counters[PP_COUNT_BATCHES]);

	return c->more || batches - c->batches >= BATCHES_DUE ||
		   (batches != c->whole && is_whole_due(c));
}

/* Seals, and prunes if anything is old. False with *error: the connection failed. */
static bool
seal_and_prune(PpWorker *w, TimestampTz before, PpRedisError *error)
{
	PpCompact *c = &w->compact;
	Prune prune = {.before = before};

	pp_redis_reply_target(w->redis, c->cxt, PP_COMPACT_REPLY);
	if (!get_sealed(w, &prune, error))
		return false;
	if (!pp_worker_try(w, seal, &prune.sealed) || !pp_worker_try(w, find_old, &prune) ||
		prune.before == 0)
		return true;
	if (!get_holes(w, c->cxt, &prune, error) ||
		(prune.before != 0 && !pp_compact_verify(w, &prune.holes, &prune.upto, error)))
		return false;
	if (prune.before != 0 && pp_worker_try(w, delete_old, &prune))
		c->more |= prune.more;
	return true;
}

/* Is a round due?  Then it begins. */
static bool
begin_round(PpWorker *w)
{
	PpCompact *c = &w->compact;
	bool whole = is_whole_due(c);

	if (!is_due(w))
		return false;
	c->found = pg_atomic_read_u64(&w->pipe->counters[PP_COUNT_BATCHES]);
	if (whole || c->found - c->pruned >= PRUNE_DUE)
		c->pruned = c->found;
	if (whole)
	{
		c->from = (PpId){0, 0};
		c->whole = c->found;
		c->due_at = pp_steady_in(c->every_ms);
	}
	c->more = false;
	return true;
}

/*
 * pp_compact_run
 *		Does a bounded piece of it, if it is due: one step of three, or of the two before pruning, because entries
 *		wait meanwhile.
 *		Outside a transaction, with no reply outstanding; a batch may be in hand.  False with *error: the
 *		connection failed.
 */
bool
pp_compact_run(PpWorker *w, PpRedisError *error)
{
	PpCompact *c = &w->compact;
	MemoryContext old;
	Close closed = {0};
	bool goes_on = false;
	bool ok = true;

	if (c->step == PP_COMPACT_CLOSE && !begin_round(w))
		return true;
	pp_process_activity(true, "compacting the ledger");
	old = MemoryContextSwitchTo(c->cxt);
	closed.from = c->from;
	closed.before = GetCurrentTimestamp() - c->retention_ms * INT64CONST(1000);
	switch (c->step)
	{
		case PP_COMPACT_CLOSE:
			goes_on = pp_worker_try(w, close_rows, &closed);
			c->more |= closed.more;
			break;
		case PP_COMPACT_MERGE:
			goes_on = pp_worker_try(w, pp_compact_merge, c) && c->pruned == c->found;
			break;
		case PP_COMPACT_PRUNE:
			ok = seal_and_prune(w, closed.before, error);
			break;
	}
	c->step = goes_on ? c->step + 1 : PP_COMPACT_CLOSE;
	if (!goes_on && !c->more)
		c->batches = c->found;
	MemoryContextSwitchTo(old);
	MemoryContextReset(c->cxt);
	pp_redis_reply_target(w->redis, c->cxt, PP_COMPACT_REPLY); /* replies to XACKs may come next */
	pgstat_report_stat(false);
	return ok;
}

/* How long the worker may wait before it is due, at most max_ms. */
long
pp_compact_due_ms(PpWorker *w, long max_ms)
{
	PpCompact *c = &w->compact;

	if (c->step != PP_COMPACT_CLOSE || is_due(w))
		return 0;
	if (pg_atomic_read_u64(&w->pipe->counters[PP_COUNT_BATCHES]) == c->whole)
		return max_ms;
	return Min(max_ms, pp_steady_left(c->due_at));
}
