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
	PpTrimmed trimmed = pp_trimmed_find(w->pipe, pp_redis_run(w->redis), facts,
										pp_ledger_highest(pp_apply_ledger(w->apply)));

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
 * pp_watch_set_position
 *		Up to the entry that was delivered last, `position` entries were ever added (-1: not known).
 *		With the pipeline's lock held.
 */
void
pp_watch_set_position(PpWorker *w, const PpStreamFacts *facts, int64 position)
{
	w->watch.position = position;
	w->pipe->corrections++;
	w->pipe->correction_known = position >= 0 && facts->entries_read >= 0;
	w->pipe->correction = position - facts->entries_read;
	w->pipe->correction_run = pp_redis_run(w->redis);
}

/*
 * Up to the entry that was delivered last, `expected` entries were ever added.  *position becomes the
 * number that was thought (-1: none), and is corrected.  False: another worker has corrected it since
 * this one asked, so that both are not of one moment.
 */
static bool
take_position(PpWorker *w, const PpStreamFacts *facts, int64 expected, bool at_end, int64 *position)
{
	PpPipe *pipe = w->pipe;
	bool current;

	LWLockAcquire(&pipe->lock, LW_EXCLUSIVE);
	current = pipe->corrections == w->watch.corrections;
	*position = pp_watch_is_alone(w) ? w->watch.position
				: pipe->correction_known && facts->entries_read >= 0
					? facts->entries_read + pipe->correction
					: -1;
	/* Releases differ in what they count after a loss: with several workers, wait and see. */
	if (current && *position != expected)
		pp_watch_set_position(w, facts,
							  pp_watch_is_alone(w) || at_end || *position < 0 ? expected : -1);
	LWLockRelease(&pipe->lock);
	return current;
}

/*
 * pp_watch_look_for_trimmed
 *		Have entries gone from the stream that the group has not delivered?  False: some are missing, and
 *		may still be in the stream.
 */
bool
pp_watch_look_for_trimmed(PpWorker *w, const PpStreamFacts *facts)
{
	bool at_end = pp_id_compare(facts->last_delivered, facts->last_generated) >= 0;
	bool none_left =
		facts->length == 0 || pp_id_compare(facts->first_entry, facts->last_delivered) > 0;
	int64 expected = pp_trimmed_expected(facts);
	int64 position;

	if (expected < 0 || !take_position(w, facts, expected, at_end, &position))
		return true;
	if (position < 0 || position >= expected)
		return true;
	if (!none_left && w->pipe->exclusive)
		return false;
	pp_watch_lost(w, w->watch.looked, facts, expected - position);
	return true;
}
