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
 *	5. Entries that are neither settled nor pending are read by their range, or lost (repair.c).
 */
#include "worker_internal.h"

#include "executor/spi.h"
#include "utils/memutils.h"

#include "consumer.h"
#include "held.h"
#include "owner.h"
#include "process.h"
#include "stats.h"
#include "stream_group.h"

#define COUNT_PAGE 10000  /* entries that Redis counts at once, which takes some milliseconds */
#define MAX_HOLES  100000 /* more than that pending at the begin of an epoch are not noted */

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
	pp_consume_begin_replies(w);
	pp_stream_send_facts(w->redis, w->def->stream, w->def->group);
	if (pp_consume_receive_facts(w, facts, error))
		return true;
	if (strcmp(error->code, "redis_oom") != 0 || !pp_redis_is_open(w->redis))
		return false;
	/* Reading gives memory back, so that must not wait for it. */
	memset(error, 0, sizeof(*error));
	pp_stream_send_loose_facts(w->redis, w->def->stream, w->def->group);
	return pp_consume_receive_loose_facts(w, facts, error);
}

/* Is this entry on record?  *arg becomes NULL when it is not. */
static void
look_for(PpApply *a, void *arg)
{
	PpEntry **entry = arg;

	if (!pp_ledger_knows(pp_apply_ledger(a), *entry))
		*entry = NULL;
}

/*
 * Is the highest entry that the ledger has in the stream, as it was?  It may have been deleted: then
 * Redis, from 7.0 on, knows that something up there was.
 */
static bool
top_is_there(PpWorker *w, const PpStreamFacts *facts, bool *there, PpRedisError *error)
{
	PpId top = pp_apply_ledger(w->apply)->top;
	PpReply *reply;
	PpBatch *batch = &w->batches[0];
	PpEntry *entry;

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
	(void) pp_consume_normalize(w, batch); /* the hash is what is looked up */
	entry = &batch->entries[0];
	pp_worker_transact(w, look_for, &entry);
	*there = entry != NULL;
	return true;
}

/*
 * Why is the stream not the one that the ledger knows?  *cause becomes NULL when it is.  A stream
 * that was deleted and filled again has fewer entries than were settled, or lower IDs, or other
 * entries under the same ones.  Of an epoch that has not begun yet nothing is known; in one that has,
 * everything up to `pruned` was in the stream, whoever settled it.
 */
static bool
find_cause(PpWorker *w, const PpStreamFacts *facts, const char **cause, PpRedisError *error)
{
	const PpLedger *ledger = pp_apply_ledger(w->apply);
	int64 known = ledger->base + ledger->settled;
	bool counted = facts->added >= 0 && ledger->base_known && ledger->base >= 0;
	PpId top = ledger->top;
	bool trimmed;
	bool there;

	*cause = NULL;
	if (ledger->base_known && pp_id_compare(ledger->pruned, top) > 0)
		top = ledger->pruned;
	if (pp_id_is_zero(top) && !(ledger->base_known && ledger->base > 0))
		return true;
	trimmed = facts->length == 0 || pp_id_compare(facts->first_entry, top) > 0;
	if (!facts->key_exists)
		*cause = "stream_gone";
	else if (pp_id_compare(facts->last_generated, top) < 0)
		*cause = "stream_went_back";
	else if (pp_watch_is_other(w, facts))
		*cause = "stream_made_anew";
	else if (counted && facts->added - (trimmed ? facts->length : 0) < known)
		*cause = "stream_made_anew";
	else if (!counted && trimmed && !facts->group_exists)
		*cause = "group_gone";
	else if (facts->length > 0 && pp_id_compare(facts->first_entry, ledger->top) <= 0)
	{
		if (!top_is_there(w, facts, &there, error))
			return false;
		if (!there)
			*cause = "stream_made_anew";
	}
	return true;
}

/* What is pending up to what was delivered last, as the holes of an epoch that begins. */
static bool
get_holes(PpWorker *w, const PpStreamFacts *facts, MemoryContext cxt, PpBase *base,
		  PpRedisError *error)
{
	PpId after = {0, 0};
	PpBatch page;

	do
	{
		if (!pp_repair_get_pending(w, after, facts->last_delivered, &page, error))
			return false;
		if (page.n == 0)
			break;
		if (base->holes == NULL)
			base->holes = MemoryContextAlloc(cxt, page.n * sizeof(PpId));
		else
			base->holes = repalloc(base->holes, (base->num_holes + page.n) * sizeof(PpId));
		for (int i = 0; i < page.n; i++)
			base->holes[base->num_holes++] = after = page.entries[i].id;
	} while (base->num_holes < MAX_HOLES);
	return true;
}

/* Is it only that Redis refuses to answer us?  That is no error, then: a user who may not ask can still be served. */
static bool
is_refused(const PpWorker *w, PpRedisError *error)
{
	if (error->class != PP_REDIS_CLASS_SETTING || !pp_redis_is_open(w->redis))
		return false;
	memset(error, 0, sizeof(*error));
	return true;
}

/* Counts what the group has not delivered.  -1: Redis does not let us. */
static bool
count_undelivered(PpWorker *w, const PpStreamFacts *facts, int64 *undelivered, PpRedisError *error)
{
	PpId after = facts->last_delivered;
	int64 n = COUNT_PAGE;

	*undelivered = facts->undelivered;
	if (!pp_stream_is_inside(facts))
		return true;
	for (*undelivered = 0; n == COUNT_PAGE; *undelivered += n)
	{
		PpReply *reply;

		pp_consume_begin_replies(w);
		pp_stream_send_count(w->redis, w->def->stream, after, facts->last_entry, COUNT_PAGE);
		if (!pp_consume_receive(w, PP_REPLY_ARRAY, &reply, error))
		{
			*undelivered = -1;
			return is_refused(w, error);
		}
		if (!pp_stream_parse_count(reply, &n, &after, error))
			return false;
	}
	return true;
}

/*
 * What an epoch begins with: what was delivered is settled, or none of ours, but for what is pending.
 * What is pending above that, because the group was set back, is not delivered yet.
 */
static bool
find_base(PpWorker *w, const PpStreamFacts *facts, MemoryContext cxt, PpBase *base,
		  PpRedisError *error)
{
	int64 undelivered;

	*base = (PpBase){.added = -1, .settled = facts->last_delivered};
	/* Somebody may have set the group to an ID that does not exist yet. */
	if (pp_id_compare(facts->last_generated, base->settled) < 0)
		base->settled = facts->last_generated;
	if (!get_holes(w, facts, cxt, base, error) || !count_undelivered(w, facts, &undelivered, error))
		return false;
	if (base->num_holes >= MAX_HOLES)
		/* Too many to list: then what comes again from before the epoch is not known as settled. */
		*base = (PpBase){.added = -1};
	else if (facts->added >= 0 && undelivered >= 0)
		base->added = facts->added - undelivered - base->num_holes;
	/*
	 * The database has gone back to before an epoch began that has read the group: what was delivered
	 * since then is not settled here.
	 */
	if (w->went_back && w->begin_known && w->begin.added <= facts->added &&
		pp_id_compare(w->begin.settled, base->settled) <= 0)
	{
		base->settled = w->begin.settled;
		base->added = w->begin.added;
	}
	return true;
}

/* Notes what an epoch begins with. */
static bool
begin_with(PpWorker *w, const PpStreamFacts *facts, PpRedisError *error)
{
	MemoryContext cxt = AllocSetContextCreate(w->cxt, "postpipe holes", ALLOCSET_DEFAULT_SIZES);
	PpBase base;
	bool ok = find_base(w, facts, cxt, &base, error) && pp_owner_note_begin(w, &base, error);

	if (ok)
		pp_worker_transact(w, set_base, &base);
	w->pipe->accounted = (PpId){0, 0};
	MemoryContextDelete(cxt);
	return ok;
}

/* Are all consumers of the group workers of this pipeline? */
static bool
find_exclusive(PpWorker *w, PpRedisError *error)
{
	MemoryContext old;
	PpConsumer *consumers;
	PpReply *reply;
	bool ok;
	int n;

	w->pipe->exclusive = true;
	w->pipe->max_consumers = w->def->workers;
	pp_consume_begin_replies(w);
	pp_stream_send_consumers(w->redis, w->def->stream, w->def->group);
	if (!pp_consume_receive(w, PP_REPLY_ARRAY, &reply, error))
	{
		w->pipe->exclusive = false;
		return is_refused(w, error);
	}
	old = MemoryContextSwitchTo(w->batches[0].cxt);
	ok = pp_stream_parse_consumers(reply, &consumers, &n, error);
	MemoryContextSwitchTo(old);
	for (int i = 0; ok && i < n; i++)
	{
		int worker = pp_consumer_worker(consumers[i].name, w->def->name);

		if (worker == 0)
			w->pipe->exclusive = false;
		else if (worker > w->def->workers)
			w->pipe->max_consumers++;
	}
	return ok;
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

/* Notes whether the group has other consumers. */
static void
note_sharing(PpWorker *w)
{
	const PpLedger *ledger = pp_apply_ledger(w->apply);

	if (!w->pipe->exclusive)
		pp_consume_not_alone(w);
	if (!w->pipe->exclusive || !ledger->shared)
		return;
	/* What went back in time cannot be told from what was theirs. */
	if (w->went_back)
	{
		w->pipe->exclusive = false;
		return;
	}
	pp_worker_transact(w, other_consumers_left, NULL);
	ereport(LOG, (errmsg("postpipe pipeline \"%s\": epoch %d begins: the group has no other "
						 "consumers any more",
						 w->def->name, ledger->epoch)));
}

/* Worker 1: everything that is said at the top of the file. */
static bool
look_at_stream(PpWorker *w, PpRedisError *error)
{
	const PpLedger *ledger = pp_apply_ledger(w->apply);
	PpStreamFacts facts;
	int64 position;
	const char *cause;

	if (!get_facts(w, &facts, error) || !find_cause(w, &facts, &cause, error))
		return false;
	if (cause != NULL)
	{
		pp_worker_transact(w, begin_epoch, (void *) cause);
		ereport(LOG, (errmsg("postpipe pipeline \"%s\": epoch %d begins: %s", w->def->name,
							 ledger->epoch, cause)));
	}
	if (!facts.group_exists && (!pp_consume_create_group(w, error) || !get_facts(w, &facts, error)))
		return false;
	if (!find_exclusive(w, error))
		return false;
	if (ledger->base_known && (ledger->shared || !w->pipe->exclusive))
		pp_watch_lost_meanwhile(w, &facts);
	if (!pp_watch_out_of_future(w, &facts, error))
		return false;
	note_sharing(w);
	if (!ledger->base_known && !begin_with(w, &facts, error))
		return false;
	if (!pp_repair(w, &facts, &position, error))
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
			pp_worker_open_ledger(w);
			(void) pp_worker_prepare(w);
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
	pp_worker_open_ledger(w);
	if (!pp_redis_is_open(w->redis) || !pp_owner_claim(w, error))
		return false;
	/*
	 * Only now: who is not the owner makes no table, and needs none.  While the target was waited for
	 * the group may have got another owner: from the beginning, then.
	 */
	if (!pp_worker_prepare(w) || !pp_redis_is_open(w->redis) || !look_at_stream(w, error) ||
		(w->went_back && !pp_owner_reset_sequences(w, error)))
		return false;
	w->went_back = false;
	pp_pipe_open(w->pipe);
	return pp_redis_is_open(w->redis);
}
