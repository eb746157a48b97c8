/*
 * open.c
 *		Before a worker reads: whose group it is, whether the stream is still the one that the ledger
 *		knows, and what the group has skipped.
 *
 * Worker 1 does it, after each connect and whenever a worker has seen something odd, while the
 * others hold still (held.c).  In this order:
 *
 *	1. The ledger: the epoch, and what it has settled; and whose group it is (owner.c).
 *	2. Is it the same stream?  If not, an epoch is opened.
 *	3. The group is made, if it is missing.
 *	4. Has the group other consumers?  If it had, and has none any more, an epoch is opened: what
 *	   they settled is not on record.  An epoch that has just begun notes what it begins with.
 *	5. Entries that the group has delivered to nobody we know are read by their range: the group was
 *	   moved forward from outside, or the database has gone back in time and Redis has not.  When
 *	   some are not accounted for, as after somebody has deleted a consumer of ours, everything that
 *	   the ledger still knows one by one is gone through.
 *	6. Entries that were trimmed before anybody read them are counted.
 *
 * 5 and 6 are done in a group that is ours alone: in a shared one, what we do not know of is
 * somebody else's.
 */
#include "worker_internal.h"

#include "executor/spi.h"
#include "utils/memutils.h"

#include "held.h"
#include "owner.h"
#include "process.h"
#include "stats.h"

#define PENDING_PAGE 1000
#define MAX_HOLES    100000 /* more than that pending at the begin of an epoch are not noted */

static void
begin_epoch(PpApply *a, void *cause)
{
	pp_ledger_start_epoch(pp_apply_ledger(a), cause);
}

static void
set_base(PpApply *a, void *base)
{
	pp_ledger_set_base(pp_apply_ledger(a), base);
}

static bool
get_facts(PpWorker *w, PpStreamFacts *facts, PpRedisError *error)
{
	PpReply *replies[PP_STREAM_FACT_REPLIES];

	pp_consume_begin_replies(w);
	pp_stream_send_facts(w->redis, w->def->stream, w->def->group);
	for (int i = 0; i < PP_STREAM_FACT_REPLIES; i++)
		if ((replies[i] = pp_consume_receive_any(w, error)) == NULL)
			return false;
	return pp_stream_parse_facts(replies, w->def->group, facts, error);
}

/* Looks entries up, in a transaction of its own. */
static void
look_up(PpApply *a, void *arg)
{
	PpBatch *batch = arg;
	PpEntry **entries = palloc(Max(batch->n, 1) * sizeof(PpEntry *));

	for (int i = 0; i < batch->n; i++)
		entries[i] = &batch->entries[i];
	pp_ledger_lookup(pp_apply_ledger(a), entries, batch->n);
}

/*
 * Is the highest entry that the ledger knows in the stream, as it was?  It may have been deleted:
 * then Redis, from 7.0 on, knows that something up there was.
 */
static bool
top_is_there(PpWorker *w, const PpStreamFacts *facts, bool *there, PpRedisError *error)
{
	PpId top = pp_apply_ledger(w->apply)->top;
	PpReply *reply;
	PpBatch *batch = &w->batches[0];

	pp_consume_begin_replies(w);
	pp_stream_send_range(w->redis, w->def->stream, pp_id_previous(top), top, 1);
	if (!pp_consume_receive(w, PP_REPLY_ARRAY, &reply, error) ||
		!pp_stream_parse_range(reply, batch, error))
		return false;
	if (batch->n == 0)
	{
		*there = pp_id_compare(facts->max_deleted, top) >= 0 ||
				 (facts->added < 0 && facts->group_exists);
		return true;
	}
	pp_consume_normalize(w, batch);
	pp_worker_transact(w, look_up, batch);
	*there = batch->entries[0].verdict == PP_VERDICT_DUPLICATE;
	return true;
}

/*
 * Why is the stream not the one that the ledger knows?  *cause becomes NULL when it is.  A stream
 * that was deleted and filled again has fewer entries than were settled, or lower IDs, or other
 * entries under the same ones.
 */
static bool
find_cause(PpWorker *w, const PpStreamFacts *facts, const char **cause, PpRedisError *error)
{
	const PpLedger *ledger = pp_apply_ledger(w->apply);
	int64 known = ledger->base + ledger->settled;
	bool counted = facts->added >= 0 && ledger->base_known && ledger->base >= 0;
	bool trimmed;
	bool there;

	*cause = NULL;
	if (pp_id_is_zero(ledger->top))
		return true;
	trimmed = facts->length == 0 || pp_id_compare(facts->first_entry, ledger->top) > 0;
	if (!facts->key_exists)
		*cause = "stream_gone";
	else if (pp_id_compare(facts->last_generated, ledger->top) < 0)
		*cause = "stream_went_back";
	else if (pp_watch_is_other(w, facts))
		*cause = "stream_made_anew";
	else if (counted && facts->added - (trimmed ? facts->length : 0) < known)
		*cause = "stream_made_anew";
	else if (!counted && trimmed && !facts->group_exists)
		*cause = "group_gone";
	else if (!trimmed && ledger->base_known) /* else it was rewound, and nothing counts */
	{
		if (!top_is_there(w, facts, &there, error))
			return false;
		if (!there)
			*cause = "stream_made_anew";
	}
	return true;
}

/* XPENDING from `after` on: the IDs of a page, in stream order, as entries without content. */
static bool
get_pending(PpWorker *w, PpId after, PpId last, PpBatch *page, PpRedisError *error)
{
	PpReply *reply;

	pp_consume_begin_replies(w);
	page->n = 0;
	pp_stream_send_pending(w->redis, w->def->stream, w->def->group, after, last, PENDING_PAGE);
	if (!pp_consume_receive(w, PP_REPLY_ARRAY, &reply, error))
		return false;
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

/* Notes what an epoch begins with. */
static bool
begin_with(PpWorker *w, const PpStreamFacts *facts, PpRedisError *error)
{
	PpBase base = {.added = -1, .settled = facts->last_delivered};
	PpId after = {0, 0};
	PpBatch page;
	MemoryContext cxt = AllocSetContextCreate(w->cxt, "postpipe holes", ALLOCSET_DEFAULT_SIZES);

	if (facts->added >= 0 && facts->undelivered >= 0 && facts->pending >= 0)
		base.added = facts->added - facts->undelivered - facts->pending;
	if (facts->pending > 0)
		base.holes = MemoryContextAllocHuge(cxt, (Min(facts->pending, MAX_HOLES) + PENDING_PAGE) *
													 sizeof(PpId));
	do
	{
		if (facts->pending <= 0)
			break;
		if (!get_pending(w, after, facts->last_delivered, &page, error))
		{
			MemoryContextDelete(cxt);
			return false;
		}
		for (int i = 0; i < page.n; i++)
			base.holes[base.num_holes++] = after = page.entries[i].id;
	} while (page.n == PENDING_PAGE && base.num_holes < Min(facts->pending, MAX_HOLES));
	if (facts->pending < 0 || base.num_holes >= MAX_HOLES)
	{
		/* Too many to list: then what comes again from before the epoch is not known as settled. */
		base.settled = (PpId){0, 0};
		base.num_holes = 0;
	}
	pp_worker_transact(w, set_base, &base);
	MemoryContextDelete(cxt);
	return true;
}

/* Are all consumers of the group workers of this pipeline? */
static bool
find_exclusive(PpWorker *w, PpRedisError *error)
{
	size_t prefix = strrchr(w->consumer, ':') - w->consumer + 1;
	PpReply *reply;

	w->pipe->exclusive = true;
	w->pipe->max_consumers = w->def->workers;
	pp_consume_begin_replies(w);
	pp_redis_send(w->redis, "XINFO CONSUMERS %s %s", w->def->stream, w->def->group);
	if (!pp_consume_receive(w, PP_REPLY_ARRAY, &reply, error))
	{
		/* A user who may not ask can still be served. */
		w->pipe->exclusive = false;
		if (error->class != PP_REDIS_CLASS_SETTING || !pp_redis_is_open(w->redis))
			return false;
		memset(error, 0, sizeof(*error));
		return true;
	}
	for (size_t i = 0; i < reply->len; i++)
	{
		const PpReply *name = pp_reply_lookup(&reply->items[i], "name");

		if (!pp_reply_is(name, PP_REPLY_STRING, 1) || strncmp(name->str, w->consumer, prefix) != 0)
			w->pipe->exclusive = false;
		else if (atoi(name->str + prefix) > w->def->workers)
			w->pipe->max_consumers++;
	}
	return true;
}

static void
other_consumers_came(PpApply *a, void *arg)
{
	pp_ledger_set_shared(pp_apply_ledger(a), true);
}

/* The group has a consumer that is not this pipeline's. */
void
pp_consume_not_alone(PpWorker *w)
{
	w->pipe->exclusive = false;
	if (!pp_apply_ledger(w->apply)->shared)
		pp_worker_transact(w, other_consumers_came, NULL);
}

/* What they settled is not on record: everything up to now counts as settled, and the audit begins
 * anew. */
static void
other_consumers_left(PpApply *a, void *arg)
{
	pp_ledger_set_shared(pp_apply_ledger(a), false);
	pp_ledger_start_epoch(pp_apply_ledger(a), "other_consumers_left");
}

/* Notes that the group has other consumers. Returns true when it has none any more. */
static bool
note_sharing(PpWorker *w, const PpStreamFacts *facts)
{
	const PpLedger *ledger = pp_apply_ledger(w->apply);

	if (!w->pipe->exclusive)
		pp_consume_not_alone(w);
	if (!w->pipe->exclusive || !ledger->shared)
		return false;
	/* What went back in time cannot be told from what was theirs. */
	if (w->went_back)
	{
		w->pipe->exclusive = false;
		return false;
	}
	pp_worker_transact(w, other_consumers_left, NULL);
	pp_held_seed(w->pipe, facts->last_delivered);
	ereport(LOG, (errmsg("postpipe pipeline \"%s\": epoch %d begins: the group has no other "
						 "consumers any more",
						 w->def->name, ledger->epoch)));
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
 * Applies what lies in after..last, is not pending and not on record.  Redis is asked what is
 * pending before it is asked for the entries, and the ledger last: so nothing falls between.  *seen
 * is raised by how many there are in the stream that are not pending.
 */
static bool
apply_range(PpWorker *w, PpId after, PpId last, int64 *seen, PpRedisError *error)
{
	PpBatch *batch = &w->batches[0];

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
		leave_out_pending(batch, pending);
		*seen += batch->n;
		batch->look_up = true;
		if (batch->n > 0 && !pp_consume_apply(w, batch))
			return false;
		w->ack_new.n = 0; /* they are not pending */
		pp_worker_look_around(w);
		if (!pp_redis_is_open(w->redis))
			return false;
	}
	return true;
}

/*
 * Reads what the group has passed over, see the top of the file: all that the ledger still knows one
 * by one, or from where it was read last.  *seen becomes the number of entries that it found there.
 */
static bool
repair(PpWorker *w, const PpStreamFacts *facts, bool all, int64 *seen, PpRedisError *error)
{
	const PpLedger *ledger = pp_apply_ledger(w->apply);
	PpId after = all || w->went_back ? ledger->pruned : pp_held_seen(w->pipe);
	uint64 before = pp_pipe_settled(w->pipe);
	uint64 applied;

	*seen = 0;
	if (pp_id_compare(after, facts->last_delivered) >= 0)
		return true;
	if (!w->pipe->exclusive)
	{
		if (w->went_back)
			ereport(WARNING,
					(errmsg("postpipe pipeline \"%s\": the database has gone back in time, and the "
							"group \"%s\" has not",
							w->def->name, w->def->group),
					 errdetail("The group has other consumers too, so it cannot be told which "
							   "entries are missing here."),
					 errhint("postpipe_rewind('%s', ...) applies entries again.", w->def->name)));
		return true;
	}
	if (!apply_range(w, after, facts->last_delivered, seen, error))
		return false;
	applied = pp_pipe_settled(w->pipe) - before;
	if (all)
		w->missing = Max(w->missing - (int64) applied, 0);
	if (applied > 0)
		ereport(w->went_back ? WARNING : LOG,
				(errmsg("postpipe pipeline \"%s\": " UINT64_FORMAT " entries that the group had "
						"passed over were read from the stream",
						w->def->name, applied),
				 w->went_back ? errdetail("The database has gone back in time.") : 0));
	pp_held_seed(w->pipe, facts->last_delivered);
	return true;
}

/* How many entries are pending and not settled? */
static bool
count_unsettled(PpWorker *w, PpId last, int64 *unsettled, PpRedisError *error)
{
	PpId after = {0, 0};
	PpBatch page;

	*unsettled = 0;
	do
	{
		if (!get_pending(w, after, last, &page, error))
			return false;
		if (page.n == 0)
			break;
		pp_worker_transact(w, look_up, &page);
		for (int i = 0; i < page.n; i++)
			*unsettled += page.entries[i].verdict != PP_VERDICT_DUPLICATE;
		after = page.entries[page.n - 1].id;
	} while (page.n == PENDING_PAGE);
	return true;
}

/*
 * Counts what was trimmed before it was read, while nobody looked: everything that is left lies
 * above what was settled when we came, so what is missing in between is no more there to be read.
 * `repaired` entries were read by their range just now.
 */
static bool
note_trimmed(PpWorker *w, const PpStreamFacts *facts, PpId top, int64 repaired, PpRedisError *error)
{
	PpLedger *ledger = pp_apply_ledger(w->apply);
	int64 undelivered = facts->undelivered;
	int64 unsettled;
	int64 missing;

	if (!w->pipe->exclusive || ledger->base < 0 || facts->added < 0 ||
		(facts->length > 0 && pp_id_compare(facts->first_entry, top) <= 0))
		return true;
	if (!count_unsettled(w, facts->last_delivered, &unsettled, error))
		return false;
	/* Where Redis does not tell: of what is left, what was delivered was read just now or is pending. */
	if (undelivered < 0)
		undelivered = facts->length - repaired - unsettled;
	missing = facts->added - undelivered - ledger->base - ledger->settled - unsettled;
	if (missing > 0)
	{
		pp_watch_lost(w, top, facts, missing);
		ledger->settled += missing;
	}
	return true;
}

/*
 * How many entries were ever added up to the one that was delivered last?  -1: cannot be told from
 * this alone.
 */
static int64
certain_position(const PpStreamFacts *facts)
{
	if (facts->added < 0)
		return -1;
	if (pp_id_compare(facts->last_delivered, facts->last_generated) >= 0)
		return facts->added;
	if (facts->length == 0 || pp_id_compare(facts->first_entry, facts->last_delivered) > 0)
		return facts->added - facts->length;
	return -1;
}

/*
 * Is something that the group has delivered neither settled nor pending?  It is looked for once.
 * Where it is not certain how much was delivered, Redis's own count is good enough for a suspicion,
 * and where there is none, that a consumer was deleted.
 */
static bool
find_missing(PpWorker *w, const PpStreamFacts *facts, bool *suspected, PpRedisError *error)
{
	const PpLedger *ledger = pp_apply_ledger(w->apply);
	int64 position = certain_position(facts);
	int64 unsettled;
	int64 missing;

	if (position < 0)
		position = facts->entries_read;
	*suspected = w->pipe->consumer_gone;
	if (!w->pipe->exclusive || ledger->base < 0 || position < 0)
		return true;
	if (!count_unsettled(w, facts->last_delivered, &unsettled, error))
		return false;
	missing = position - ledger->base - ledger->settled - unsettled;
	*suspected = missing > 0 && missing != w->missing;
	w->missing = missing;
	return true;
}

/* Goes through all of it, if something is missing still. */
static bool
repair_rest(PpWorker *w, const PpStreamFacts *facts, int64 *repaired, PpRedisError *error)
{
	bool suspected;

	if (!find_missing(w, facts, &suspected, error))
		return false;
	if (!suspected)
		return true;
	if (!repair(w, facts, true, repaired, error))
		return false;
	pp_worker_open_apply(w);
	return true;
}

/*
 * The same in all cases, for what is counted from here on.  Redis's own count is not asked: after it
 * has loaded a rewritten file, it is that of the rewrite.
 */
static bool
find_position(PpWorker *w, const PpStreamFacts *facts, int64 *position, PpRedisError *error)
{
	const PpLedger *ledger = pp_apply_ledger(w->apply);
	int64 unsettled;

	*position = certain_position(facts);
	if (*position < 0 && facts->added >= 0 && w->pipe->exclusive && ledger->base >= 0)
	{
		if (!count_unsettled(w, facts->last_delivered, &unsettled, error))
			return false;
		*position = ledger->base + ledger->settled + unsettled;
	}
	return true;
}

/* Worker 1: everything that is said at the top of the file. */
static bool
look_at_stream(PpWorker *w, PpRedisError *error)
{
	PpStreamFacts facts;
	int64 repaired = 0;
	int64 position;
	const char *cause;
	bool alone_now;
	bool begins;
	PpId top;

	if (!get_facts(w, &facts, error) || !find_cause(w, &facts, &cause, error))
		return false;
	if (cause != NULL)
	{
		pp_worker_transact(w, begin_epoch, (void *) cause);
		ereport(LOG, (errmsg("postpipe pipeline \"%s\": epoch %d begins: %s", w->def->name,
							 pp_apply_ledger(w->apply)->epoch, cause)));
	}
	if (!facts.group_exists &&
		(!pp_consume_create_group(w, cause != NULL, error) || !get_facts(w, &facts, error)))
		return false;
	if (!find_exclusive(w, error))
		return false;
	alone_now = note_sharing(w, &facts);
	begins = !pp_apply_ledger(w->apply)->base_known;
	if (begins && !begin_with(w, &facts, error))
		return false;
	top = pp_apply_ledger(w->apply)->top;
	if (pp_id_compare(pp_apply_ledger(w->apply)->pruned, top) > 0)
		top = pp_apply_ledger(w->apply)->pruned;
	if (!alone_now && !repair(w, &facts, false, &repaired, error))
		return false;
	pp_worker_open_apply(w);
	if (!alone_now && !begins && !repair_rest(w, &facts, &repaired, error))
		return false;
	/* Before an epoch that begins now, nothing can be missing. */
	if (!begins && !note_trimmed(w, &facts, top, repaired, error))
		return false;
	if (!find_position(w, &facts, &position, error))
		return false;
	pp_watch_begin(w, &facts, position);
	return true;
}

/*
 * pp_consume_open
 *		Lets this worker read: after worker 1 has looked at the stream as a whole.  False with *error
 *		filled: something failed; with no error: the connection was closed meanwhile.
 */
bool
pp_consume_open(PpWorker *w, PpRedisError *error)
{
	pp_held_release_all(w->pipe);
	if (pp_my_proc->worker > 1)
	{
		uint64 opening;

		pp_pipe_park(w->pipe);
		do
		{
			while ((opening = pp_pipe_opening(w->pipe)) == 0)
			{
				pp_process_sleep(1000, PP_WAIT_WORKER_IDLE);
				pp_worker_look_around(w);
			}
			pp_worker_open_apply(w);
		} while (!pp_pipe_enter(w->pipe, opening));
		pp_watch_join(w);
		pp_owner_join(w);
		return pp_redis_is_open(w->redis);
	}
	pp_pipe_close(w->pipe);
	while (!pp_pipe_is_still(w->pipe))
	{
		pp_process_sleep(50, PP_WAIT_WORKER_IDLE);
		pp_worker_look_around(w);
	}
	pp_worker_open_apply(w);
	if (!pp_redis_is_open(w->redis) || !pp_owner_claim(w, error) || !look_at_stream(w, error) ||
		(w->went_back && !pp_owner_reset_sequences(w, error)))
		return false;
	w->went_back = false;
	pp_pipe_open(w->pipe);
	return pp_redis_is_open(w->redis);
}
