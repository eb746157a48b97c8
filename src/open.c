/*
 * open.c
 *		Before a worker reads: whose group it is, whether the stream is still the one that the ledger
 *		knows, and what the group has skipped.
 *
 * Worker 1 does it, after each connect and whenever a worker has seen something odd, while the
 * others hold still (held.c).  In this order:
 *
 *	1. The ledger: the epoch, and what it has settled; and whose group it is (owner.c).
 *	2. Is it the same stream (identity.c)?  If not, an epoch is opened.
 *	3. The group is made, if it is missing.
 *	4. Has the group other consumers?  Then what was trimmed unread is told by Redis's count alone
 *	   (watch_lost.c).  If it had, and has none any more, an epoch is opened: what they settled is not on
 *	   record.  An epoch that has just begun notes what it begins with.
 *	5. Entries that are neither settled nor pending are read by their range, or lost (repair.c).
 */
#include "worker_internal.h"

#include "access/xlog.h"
#include "utils/memutils.h"

#include "consumer.h"
#include "held.h"
#include "news.h"
#include "owner.h"
#include "process.h"
#include "stream_group.h"
#include "trimmed.h"

#define COUNT_PAGE 1000 /* entries that Redis counts at once: a millisecond if they are small */

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

/* What is known of the stream, also from a Redis that is out of memory. */
bool
pp_open_get_facts(PpWorker *w, PpStreamFacts *facts, PpRedisError *error)
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
	} while (base->num_holes < PP_MAX_HOLES);
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

/* Counts what lies after an ID.  -1: Redis does not let us. */
static bool
count_after(PpWorker *w, const PpStreamFacts *facts, PpId after, int64 *entries,
			PpRedisError *error)
{
	int64 n = COUNT_PAGE;

	*entries = 0;
	if (pp_id_compare(after, facts->last_entry) >= 0)
		return true;
	*entries = facts->length;
	if (pp_id_compare(after, facts->first_entry) < 0)
		return true;
	for (*entries = 0; n == COUNT_PAGE; *entries += n)
	{
		PpReply *reply;

		pp_consume_begin_replies(w);
		pp_stream_send_count(w->redis, w->def->stream, after, facts->last_entry, COUNT_PAGE);
		if (!pp_consume_receive(w, PP_REPLY_ARRAY, &reply, error))
		{
			*entries = -1;
			return is_refused(w, error);
		}
		if (!pp_stream_parse_count(reply, &n, &after, error))
			return false;
	}
	return true;
}

/*
 * Up to which ID is everything settled when an epoch begins, or none of ours, but for what is pending?
 * What was delivered is; but in another life of the stream nobody has read anything for us, wherever the
 * group was put.  In the same life, and in an older state of the only one, what was settled long ago is as well.
 */
static PpId
find_settled(const PpWorker *w, const PpStreamFacts *facts)
{
	const PpLedger *ledger = pp_apply_ledger(w->apply);
	bool same_ids = ledger->life == PP_LIFE_SAME ||
					(ledger->life == PP_LIFE_OLDER && w->redis_is_older && !ledger->many_lives);
	PpId settled = facts->last_delivered;

	if (ledger->life >= PP_LIFE_OTHER && w->pipe->exclusive)
		return (PpId){0, 0};
	if (same_ids && pp_id_compare(ledger->pruned, settled) > 0)
		settled = ledger->pruned;
	/*
	 * Somebody may have set the group to an ID that does not exist yet; and what an older state lacks is
	 * given away again.
	 */
	return pp_id_compare(facts->last_generated, settled) < 0 ? facts->last_generated : settled;
}

/*
 * How many entries were ever added that the epoch does not account for?  Of another life, none; else all
 * but those after `settled`, and those that are pending.  But where nothing is left up to there, entries after it
 * may be gone as well; in the same stream they were counted before.
 */
static int64
find_added(const PpWorker *w, const PpStreamFacts *facts, const PpBase *base, int64 after)
{
	PpLife life = pp_apply_ledger(w->apply)->life;
	bool unread = life == PP_LIFE_OTHER && pp_id_is_zero(base->settled);
	bool none_left = pp_id_compare(base->settled, facts->length > 0 ? facts->first_entry
																	: facts->last_generated) < 0;

	if (facts->added < 0 || after < 0)
		return -1;
	if (facts->added > facts->length && !unread &&
		(life == PP_LIFE_UNCLEAR || (life != PP_LIFE_SAME && none_left)))
		return -1;
	return unread ? 0 : facts->added - after - base->num_holes;
}

/*
 * What an epoch begins with.  What is pending above what is settled, because the group was set back, is not
 * delivered yet.
 */
static bool
find_base(PpWorker *w, const PpStreamFacts *facts, MemoryContext cxt, PpBase *base,
		  PpRedisError *error)
{
	PpStreamFacts at = *facts;
	int64 after;

	*base = (PpBase){.settled = find_settled(w, facts)};
	at.last_delivered = base->settled;
	if (!get_holes(w, &at, cxt, base, error) ||
		!count_after(w, facts, base->settled, &after, error))
		return false;
	if (base->num_holes >= PP_MAX_HOLES)
		/* Too many to list: then what comes again from before the epoch is not known as settled. */
		*base = (PpBase){.added = -1};
	else
		base->added = find_added(w, facts, base, after);
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
	if (ok && pp_id_is_zero(base.settled))
		pp_held_forget(w->pipe);
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
	bool answered;
	bool ok = false;
	bool exclusive;
	int max_consumers = w->def->workers;
	int n;

	pp_consume_begin_replies(w);
	pp_stream_send_consumers(w->redis, w->def->stream, w->def->group);
	answered = pp_consume_receive(w, PP_REPLY_ARRAY, &reply, error);
	if (answered)
	{
		old = MemoryContextSwitchTo(w->batches[0].cxt);
		ok = pp_stream_parse_consumers(reply, &consumers, &n, error);
		MemoryContextSwitchTo(old);
	}
	exclusive = ok;
	for (int i = 0; ok && i < n; i++)
	{
		int worker = pp_consumer_worker(consumers[i].name, w->def->name);

		exclusive &= worker != 0;
		max_consumers += worker > w->def->workers;
	}
	LWLockAcquire(&w->pipe->lock, LW_EXCLUSIVE);
	w->pipe->exclusive = exclusive;
	w->pipe->max_consumers = max_consumers;
	LWLockRelease(&w->pipe->lock);
	return answered ? ok : is_refused(w, error);
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

static void
set_alone(PpApply *a, void *arg)
{
	pp_ledger_set_shared(pp_apply_ledger(a), false);
}

/* What they settled is not on record: everything up to now counts as settled, and the audit begins anew. */
static void
other_consumers_left(PpApply *a, void *arg)
{
	set_alone(a, NULL);
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
	/* An epoch that has just begun has nothing of theirs. */
	if (!ledger->base_known)
	{
		pp_worker_transact(w, set_alone, NULL);
		return;
	}
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

/*
 * XGROUP CREATE.  The tables alone say where it begins, because it may have failed before: in an epoch
 * that has begun, where everything is known as settled; before anything was ever read, where it was
 * asked for; in a stream that was made anew, at its beginning.
 */
static bool
create_group(PpWorker *w, PpRedisError *error)
{
	const PpLedger *ledger = pp_apply_ledger(w->apply);
	char *asked = pp_pipeline_option(w->def, "start_id");
	PpId begin = {0, 0};
	char start[PP_ID_LEN];
	PpReply *reply;

	if (ledger->base_known)
		begin = ledger->num_holes == 0 && pp_id_compare(ledger->pruned, ledger->sealed) > 0
					? ledger->pruned
					: ledger->sealed;
	pp_id_print(begin, start);
	pp_consume_begin_replies(w);
	pp_stream_send_create_group(w->redis, w->def->stream, w->def->group,
								ledger->epoch == 1 && !ledger->base_known && asked ? asked : start);
	if ((reply = pp_consume_receive_any(w, error)) == NULL)
		return false;
	if (reply->type == PP_REPLY_ERROR)
	{
		PpRedisError refusal;

		pp_redis_error_reply(&refusal, reply->str, reply->len);
		if (strcmp(refusal.code, "redis_busygroup") != 0)
		{
			*error = refusal;
			return false;
		}
	}
	else if (pp_is_news(ledger->epoch == 1 && !ledger->base_known ? "group_made"
																  : "group_made_again"))
		ereport(LOG, (errmsg("postpipe pipeline \"%s\", worker %d: made consumer group \"%s\" of "
							 "stream \"%s\"",
							 w->def->name, pp_my_proc->worker, w->def->group, w->def->stream)));
	return true;
}

/* Worker 1: everything that is said at the top of the file. */
static bool
look_at_stream(PpWorker *w, PpRedisError *error)
{
	const PpLedger *ledger = pp_apply_ledger(w->apply);
	PpStreamFacts facts;
	int64 position;
	const char *cause;

	if (!pp_open_get_facts(w, &facts, error) || !pp_identity_find_cause(w, &facts, &cause, error))
		return false;
	if (cause != NULL)
	{
		pp_worker_transact(w, begin_epoch, (void *) cause);
		/* Durable before the group is made: that it was gone, only this will tell. */
		XLogFlush(XactLastCommitEnd);
		if (pp_is_news(cause))
			ereport(LOG, (errmsg("postpipe pipeline \"%s\": epoch %d begins: %s", w->def->name,
								 ledger->epoch, cause)));
	}
	if (!facts.group_exists && (!create_group(w, error) || !pp_open_get_facts(w, &facts, error)))
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
	/*
	 * What was read has turned out to be settled by an older epoch, and then the stream has fewer entries than were
	 * settled: it is one that was there before, and has got higher IDs since.  From the beginning, then; once, because
	 * that begins an epoch.
	 */
	if (cause == NULL && !pp_trimmed_fits(ledger, &facts))
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
	w->went_back = w->redis_is_older = false;
	pp_pipe_open(w->pipe);
	return pp_redis_is_open(w->redis);
}
