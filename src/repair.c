/*
 * repair.c
 *		Entries that the group has passed over, and entries that are gone.
 *
 * Every entry that was added up to the one that was delivered last is settled, or pending, or was
 * there before the epoch began.  What is not was passed over by the group: it was moved forward from
 * outside, or what was pending was forgotten with its consumer, or the database has gone back in time
 * and Redis has not; or it is gone from the stream.  So before anybody reads, worker 1
 *
 *	1. reads the range that the workers have not received, or all of it when the database has gone
 *	   back, or a consumer of ours was deleted;
 *	2. where it can be told how many entries were added up to there, compares; and if some are
 *	   missing, reads all that may hold them and compares again;
 *	3. records as lost what is missing still.
 *
 * While it works, it looks at what the supervisor measures: where everything is delivered and nothing
 * pending, and fewer entries are on record than were added, it has the pipeline looked at again.
 *
 * All of it in a group that is ours alone: in a shared one, what we do not know of is somebody else's.
 */
#include "worker_internal.h"

#include "durable.h"
#include "held.h"
#include "news.h"
#include "process.h"
#include "stats.h"

#define PENDING_PAGE 1000
#define CHECK_MS     10000 /* between two looks at what is on record */

/*
 * pp_repair_get_pending
 *		XPENDING from `after` on: the IDs of a page, in stream order, as entries without content.  A
 *		page that is not full is the last one.
 */
bool
pp_repair_get_pending(PpWorker *w, PpId after, PpId last, PpBatch *page, PpRedisError *error)
{
	PpReply *reply;

	pp_consume_begin_replies(w);
	page->n = 0;
	pp_stream_send_pending(w->redis, w->def->stream, w->def->group, after, last, PENDING_PAGE);
	if (!pp_consume_receive(w, PP_REPLY_ARRAY, &reply, error))
		return false;
	/* Callers go on after the last one, and count on pages that are full. */
	if (reply->len > PENDING_PAGE)
		return pp_stream_unexpected(error, "XPENDING");
	page->entries = MemoryContextAllocZero(w->batches[0].cxt, Max(reply->len, 1) * sizeof(PpEntry));
	for (size_t i = 0; i < reply->len; i++)
	{
		PpEntry *entry = &page->entries[page->n++];

		entry->nfields = -1;
		if (!pp_stream_parse_pending(&reply->items[i], &entry->id, error))
			return false;
	}
	return true;
}

/* Takes out of a batch what is pending: it will be delivered again by itself. */
static void
leave_out_pending(PpBatch *batch, const PpReply *pending)
{
	int kept = 0;
	size_t next = 0;
	PpRedisError ignored;

	for (int i = 0; i < batch->n; i++)
	{
		PpId id = {0, 0};
		int order = -1;

		while (next < pending->len &&
			   pp_stream_parse_pending(&pending->items[next], &id, &ignored) &&
			   (order = pp_id_compare(id, batch->entries[i].id)) < 0)
			next++;
		if (next == pending->len || order != 0)
			batch->entries[kept++] = batch->entries[i];
	}
	batch->n = kept;
}

/*
 * What was read by its range is in no list of Redis's, and what tells that it has to be read is forgotten
 * when that is done: so it has to be durable first.  False: the connection was closed meanwhile.
 */
static bool
make_durable(PpWorker *w, XLogRecPtr lsn)
{
	while (!pp_durable_wait(lsn))
	{
		pp_process_sleep(100, PP_WAIT_WORKER_RETRY);
		pp_worker_look_around(w);
		if (!pp_redis_is_open(w->redis))
			return false;
	}
	return true;
}

/*
 * Applies what lies in after..last, is not pending and not on record.  Redis is asked what is pending
 * before it is asked for the entries, and the ledger last: so nothing falls between.  *seen becomes
 * how many entries there are.
 */
static bool
apply_range(PpWorker *w, PpId after, PpId last, int64 *seen, PpRedisError *error)
{
	PpBatch *batch = &w->batches[0];
	XLogRecPtr lsn = InvalidXLogRecPtr;

	*seen = 0;
	while (pp_id_compare(after, last) < 0)
	{
		PpReply *pending;
		PpReply *range;

		pp_consume_begin_replies(w);
		pp_stream_send_pending(w->redis, w->def->stream, w->def->group, after, last, w->count);
		pp_stream_send_range(w->redis, w->def->stream, after, last, w->count);
		if (!pp_consume_receive(w, PP_REPLY_ARRAY, &pending, error) ||
			!pp_consume_receive(w, PP_REPLY_ARRAY, &range, error) ||
			!pp_stream_parse_range(range, batch, error))
			return false;
		if (batch->n == 0)
			break;
		after = batch->entries[batch->n - 1].id;
		*seen += batch->n;
		leave_out_pending(batch, pending);
		batch->look_up = true;
		if (batch->n > 0)
		{
			pp_consume_apply(w, batch);
			lsn = w->ack_new.lsn;
			w->ack_new.n = 0; /* they are not pending */
		}
		pp_worker_look_around(w);
		if (!pp_redis_is_open(w->redis))
			return false;
	}
	return XLogRecPtrIsInvalid(lsn) || make_durable(w, lsn);
}

/*
 * pp_repair_has_shrunk
 *		Has an entry gone from the stream since it was looked at?  Before 7.0, Redis does not tell.
 */
bool
pp_repair_has_shrunk(PpWorker *w, const PpStreamFacts *facts, bool *shrunk, PpRedisError *error)
{
	PpStreamFacts now;

	if (!pp_open_get_facts(w, &now, error))
		return false;
	*shrunk = facts->added >= 0 && now.added - now.length != facts->added - facts->length;
	return true;
}

/* A part of the stream that was read, up to what was delivered last. */
typedef struct Range
{
	PpId after;
	int64 entries; /* that are there; -1: not known */
} Range;

/* Reads what lies after range->after, and says so where something was missing. */
static bool
read_range(PpWorker *w, const PpStreamFacts *facts, Range *range, PpRedisError *error)
{
	uint64 before = pp_pipe_settled(w->pipe);
	uint64 applied;
	bool shrunk = false;

	if (!apply_range(w, range->after, facts->last_delivered, &range->entries, error) ||
		(pp_id_compare(range->after, facts->last_delivered) < 0 &&
		 !pp_repair_has_shrunk(w, facts, &shrunk, error)))
		return false;
	/* Some that were there when it was looked at were not counted. */
	if (shrunk)
		range->entries = -1;
	applied = pp_pipe_settled(w->pipe) - before;
	if (applied > 0 && pp_is_news(w->went_back ? "went_back" : "passed_over"))
		ereport(w->went_back ? WARNING : LOG,
				(errmsg("postpipe pipeline \"%s\": " UINT64_FORMAT " entries that the group had "
						"passed over were read from the stream",
						w->def->name, applied),
				 w->went_back ? errdetail("The database has gone back in time.") : 0));
	pp_held_seed(w->pipe, facts->last_delivered);
	return true;
}

static void
look_up(PpApply *a, void *arg)
{
	pp_ledger_lookup_batch(pp_apply_ledger(a), arg);
}

/*
 * How many entries are pending that this epoch has not settled?  One that an older epoch has is not
 * in the sums of this one until it comes again.
 */
static bool
count_unsettled(PpWorker *w, PpId last, int64 *unsettled, PpRedisError *error)
{
	int epoch = pp_apply_ledger(w->apply)->epoch;
	PpId after = {0, 0};
	PpBatch page;

	*unsettled = 0;
	do
	{
		if (!pp_repair_get_pending(w, after, last, &page, error))
			return false;
		if (page.n == 0)
			break;
		pp_worker_transact(w, look_up, &page);
		for (int i = 0; i < page.n; i++)
			*unsettled += page.entries[i].verdict != PP_VERDICT_DUPLICATE ||
						  page.entries[i].on_record < epoch;
		after = page.entries[page.n - 1].id;
	} while (page.n == PENDING_PAGE);
	return true;
}

/*
 * How many entries were ever added up to the one that was delivered last?  -1: cannot be told.  Redis's
 * own count is not asked: after it has loaded a rewritten file, it is that of the rewrite.  But when
 * the range began before the first entry that is left, we have counted.
 */
static int64
find_position(const PpStreamFacts *facts, const Range *range)
{
	if (facts->added < 0)
		return -1;
	if (pp_id_compare(facts->last_delivered, facts->last_entry) >= 0)
		return facts->added;
	if (pp_id_compare(facts->first_entry, facts->last_delivered) > 0)
		return facts->added - facts->length;
	if (pp_id_compare(facts->first_entry, range->after) > 0 && range->entries >= 0)
		return facts->added - facts->length + range->entries;
	return -1;
}

/*
 * How many entries are missing?  Where the position cannot be told it is taken to be what is on
 * record, so that none is.
 */
static bool
find_missing(PpWorker *w, const PpStreamFacts *facts, const Range *range, int64 *position,
			 int64 *missing, PpRedisError *error)
{
	const PpLedger *ledger = pp_apply_ledger(w->apply);
	int64 unsettled;
	int64 known;

	*missing = 0;
	*position = find_position(facts, range);
	pp_worker_open_ledger(w);
	if (!w->pipe->exclusive || ledger->base < 0 || facts->added < 0)
		return true;
	if (!count_unsettled(w, facts->last_delivered, &unsettled, error))
		return false;
	known = ledger->base + ledger->settled + unsettled;
	if (*position < 0)
		*position = known;
	*missing = *position - known;
	return true;
}

/* The database has gone back, and there is nothing that can be done by itself. */
static void
warn_shared(PpWorker *w)
{
	ereport(WARNING,
			(errmsg("postpipe pipeline \"%s\": the database has gone back in time, and the group "
					"\"%s\" has not",
					w->def->name, w->def->group),
			 errdetail("The group has other consumers too, so it cannot be told which entries are "
					   "missing here."),
			 errhint("postpipe_rewind('%s', ...) applies entries again.", w->def->name)));
}

/*
 * After which ID do entries lie that are missing and gone from the stream?  `top`: the highest one on
 * record when we came, that counts.
 */
static PpId
lost_after(const PpWorker *w, const PpStreamFacts *facts, PpId top)
{
	if (!pp_id_is_zero(w->pipe->accounted) &&
		pp_id_compare(w->pipe->accounted, facts->last_delivered) <= 0)
		return w->pipe->accounted;
	/* Everything that is left lies above it: then most likely what is missing does as well. */
	if (pp_stream_is_gone_up_to(facts, top))
		return top;
	return pp_apply_ledger(w->apply)->pruned;
}

/*
 * pp_repair
 *		Makes good what is said at the top of the file.  *position becomes the number of entries that
 *		were ever added up to the one that was delivered last, -1 if it cannot be told.
 */
bool
pp_repair(PpWorker *w, const PpStreamFacts *facts, int64 *position, PpRedisError *error)
{
	PpLedger *ledger = pp_apply_ledger(w->apply);
	PpId top = pp_id_max(ledger->reached, ledger->pruned);
	/* Below it everything is settled, but for the holes. */
	PpId bottom = ledger->num_holes > 0 ? (PpId){0, 0} : ledger->pruned;
	Range range = {.after = pp_id_max(pp_held_seen(w->pipe), ledger->pruned)};
	int64 missing;

	w->looked_at = pp_steady_now();
	if (w->went_back || w->pipe->consumer_gone)
		range.after = bottom;
	else if (w->compact.passed_over && pp_id_compare(w->compact.verified, range.after) < 0)
		range.after = w->compact.verified;
	if (!w->pipe->exclusive)
	{
		if (w->went_back && pp_id_compare(range.after, facts->last_delivered) < 0)
			warn_shared(w);
		range.after = facts->last_delivered;
		return find_missing(w, facts, &range, position, &missing, error);
	}
	if (!read_range(w, facts, &range, error) ||
		!find_missing(w, facts, &range, position, &missing, error))
		return false;
	if (missing > 0 && pp_id_compare(bottom, range.after) < 0)
	{
		range.after = bottom;
		if (!read_range(w, facts, &range, error) ||
			!find_missing(w, facts, &range, position, &missing, error))
			return false;
	}
	if (missing > 0)
	{
		pp_watch_lost(w, lost_after(w, facts, top), facts, missing);
		ledger->settled += missing;
	}
	if (find_position(facts, &range) >= 0 && ledger->base >= 0)
		w->pipe->accounted = facts->last_delivered;
	w->compact.passed_over = false;
	w->compact.verified = ledger->pruned;
	return true;
}

static void
reload(PpApply *a, void *arg)
{
	(void) pp_ledger_open(pp_apply_ledger(a));
}

/*
 * pp_repair_is_wanted
 *		Is an entry missing, although nothing is left to deliver and nothing pending?  Between batches;
 *		while no entry comes, the tables are not asked.
 */
bool
pp_repair_is_wanted(PpWorker *w)
{
	PpLedger *ledger = pp_apply_ledger(w->apply);
	PpPipe *pipe = w->pipe;
	PpMeasured m;

	LWLockAcquire(&pipe->lock, LW_SHARED);
	m = pipe->measured;
	LWLockRelease(&pipe->lock);
	if (m.at == 0 || !pp_steady_is_before(w->looked_at, m.taken_at) || m.pending != 0 ||
		m.lag != 0 || m.standing.added < 0 || m.standing.added == w->checked_added ||
		!pipe->exclusive || ledger->base < 0 || !pp_steady_passed(w->checked_at, CHECK_MS))
		return false;
	w->checked_at = pp_steady_now();
	w->checked_added = m.standing.added;
	pp_worker_transact(w, reload, NULL);
	if (m.standing.added == ledger->base + ledger->settled)
		pipe->accounted = pp_ledger_highest(ledger);
	return m.standing.added > ledger->base + ledger->settled;
}
