/*
 * watch_lost.c
 *		Entries that were trimmed before anybody had read them, as a worker notices it while it reads.
 *
 * The entries that were ever added up to the one that was delivered last are counted: by the worker
 * itself, if there is but one; else by Redis's entries-read and a correction, because releases differ
 * in whether that includes what was trimmed unread.  What is missing in that count is lost if nothing
 * is left in the stream up to there.  Else it may have been passed over: then worker 1 reads the
 * stream (repair.c).
 */
#include "worker_internal.h"

#include "held.h"
#include "news.h"
#include "stats.h"
#include "trimmed.h"

static void
record_lost(PpApply *a, void *arg)
{
	const PpTrimmed *lost = arg;

	pp_ledger_record_lost(pp_apply_ledger(a), lost->first, lost->last, lost->entries,
						  "trimmed_before_read");
}

/* Records a range, and says so. */
static void
record(PpWorker *w, PpTrimmed *lost)
{
	char first[PP_ID_LEN];
	char last[PP_ID_LEN];
	bool known = lost->entries >= 0;

	pp_worker_transact(w, record_lost, lost);
	pp_count(w->pipe, PP_COUNT_LOST, known ? lost->entries : 0);
	if (!pp_is_news("trimmed_before_read"))
		return;
	pp_id_print(lost->first, first);
	pp_id_print(lost->last, last);
	ereport(WARNING,
			(errmsg("postpipe pipeline \"%s\": %s entries of stream \"%s\" %s trimmed before they "
					"were read",
					w->def->name, known ? psprintf(INT64_FORMAT, lost->entries) : "some",
					w->def->stream, known ? "were" : "may have been"),
			 errdetail("Their IDs lie between %s and %s; see postpipe_lost.", first, last),
			 errhint("Let the producers keep more entries (XADD ... MAXLEN), or give the pipeline "
					 "more workers.")));
}

/*
 * pp_watch_lost
 *		Records that `entries` entries after `after` were trimmed or deleted before they were read.
 */
void
pp_watch_lost(PpWorker *w, PpId after, const PpStreamFacts *facts, int64 entries)
{
	PpTrimmed lost = pp_trimmed_range(facts, after, entries);

	record(w, &lost);
}

/*
 * pp_watch_lost_meanwhile
 *		In a group that has other consumers, or had: records what was trimmed unread while no worker looked.
 *		What those have acknowledged is not on record, so that nothing else tells.
 */
void
pp_watch_lost_meanwhile(PpWorker *w, const PpStreamFacts *facts)
{
	const PpLedger *ledger = pp_apply_ledger(w->apply);
	PpTrimmed trimmed =
		pp_trimmed_find(w->pipe, pp_redis_run(w->redis), facts, pp_ledger_highest(ledger));

	/* What Redis does not tell, the ledger may: that no more are gone than were settled. */
	if (trimmed.entries < 0 && ledger->base >= 0 &&
		pp_trimmed_expected(facts) <= ledger->base + ledger->settled)
		trimmed.entries = 0;
	if (trimmed.entries == 0)
		return;
	record(w, &trimmed);
	/* If this opening fails still, it is not lost again at the next one. */
	LWLockAcquire(&w->pipe->lock, LW_EXCLUSIVE);
	pp_watch_set_position(w, facts, pp_trimmed_expected(facts));
	LWLockRelease(&w->pipe->lock);
}

/* Has this pipeline one worker, which is given every entry of the group? */
bool
pp_watch_is_alone(const PpWorker *w)
{
	return w->def->workers == 1 && w->pipe->exclusive;
}

/*
 * pp_watch_can_wait
 *		May what is seen with a read be looked at after the batch in hand was applied?  With other consumers
 *		Redis's count is all there is, and it may contain by then what another worker has seen later.
 */
bool
pp_watch_can_wait(const PpWorker *w)
{
	return w->def->workers == 1 || w->pipe->exclusive;
}

/*
 * pp_watch_set_position
 *		Up to the entry that was delivered last, `position` entries were ever added (-1: not known).
 *		With the pipeline's lock held.
 */
void
pp_watch_set_position(PpWorker *w, const PpStreamFacts *facts, int64 position)
{
	PpCorrection *c = &w->pipe->correction;
	uint64 run = pp_redis_run(w->redis);

	w->watch.position = position;
	if (c->run != run)
		c->recount = PP_RECOUNT_UNKNOWN;
	c->run = run;
	c->times++;
	c->known = position >= 0 && facts->entries_read >= 0;
	c->by = position - facts->entries_read;
	c->gap = c->by > 0 && pp_stream_is_gone_up_to(facts, facts->last_delivered)
				 ? facts->last_delivered
				 : (PpId){0};
	c->position = position;
	c->received = w->pipe->received;
	c->reads = w->def->workers > 1 ? w->pipe->reads : 0;
}

/* What the group has read since it was corrected may tell how Redis counts. */
static void
learn(PpWorker *w, const PpStreamFacts *facts)
{
	PpCorrection *c = &w->pipe->correction;
	uint64 reads;
	bool awaited;

	LWLockAcquire(&w->pipe->lock, LW_SHARED);
	reads = c->times == w->watch.corrections ? c->reads : 0;
	LWLockRelease(&w->pipe->lock);
	awaited = reads != 0 && pp_read_is_awaited(w->pipe, reads);
	LWLockAcquire(&w->pipe->lock, LW_EXCLUSIVE);
	if (c->times == w->watch.corrections)
	{
		if (reads != 0)
			c->received = w->pipe->received;
		c->reads = awaited ? reads : 0;
		pp_trimmed_learn(c, facts, w->watch.received);
	}
	LWLockRelease(&w->pipe->lock);
}

/*
 * Up to the entry that was delivered last, `expected` entries were ever added: how many of them were not
 * counted (-1: perhaps some)?  The count is corrected.  0 also if another worker has corrected it since
 * this one asked, so that both are not of one moment.
 */
static int64
take_missing(PpWorker *w, const PpStreamFacts *facts, int64 expected)
{
	PpCorrection *c = &w->pipe->correction;
	int64 missing = 0;
	int64 position;

	LWLockAcquire(&w->pipe->lock, LW_EXCLUSIVE);
	if (c->times == w->watch.corrections)
	{
		position = pp_watch_is_alone(w) ? w->watch.position : pp_trimmed_position(c, facts);
		if (position >= 0)
			missing = Max(expected - position, 0);
		else if (c->known && facts->entries_read >= 0 && !pp_watch_is_alone(w))
			missing = -1;
		if (position != expected)
			pp_watch_set_position(w, facts, expected);
	}
	LWLockRelease(&w->pipe->lock);
	return missing;
}

/*
 * pp_watch_look_for_trimmed
 *		Have entries gone from the stream that the group has not delivered?  False: some are missing, and
 *		may still be in the stream, or how many cannot be told from Redis's numbers alone.
 */
bool
pp_watch_look_for_trimmed(PpWorker *w, const PpStreamFacts *facts)
{
	int64 expected = pp_trimmed_expected(facts);
	int64 missing;

	learn(w, facts);
	if (expected < 0 || (missing = take_missing(w, facts, expected)) == 0)
		return true;
	/* Some of them may be on record: how many are lost, that tells. */
	if (pp_id_compare(w->watch.looked, w->watch.again) < 0)
		missing = -1;
	if (w->pipe->exclusive &&
		(missing < 0 || !pp_stream_is_gone_up_to(facts, facts->last_delivered)))
		return false;
	pp_watch_lost(w, w->watch.looked, facts, missing);
	return true;
}
