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

/* A range that is lost. */
typedef struct Lost
{
	PpId first;
	PpId last;
	int64 entries;
} Lost;

static void
record_lost(PpApply *a, void *arg)
{
	pp_ledger_record_lost(pp_apply_ledger(a), ((Lost *) arg)->first, ((Lost *) arg)->last,
						  ((Lost *) arg)->entries, "trimmed_before_read");
}

/* Is nothing that is in the stream left to be delivered? */
static bool
is_read_to_end(const PpStreamFacts *facts)
{
	return pp_id_compare(facts->last_delivered, facts->last_entry) >= 0;
}

/* Up to which ID are entries gone?  They were trimmed, or deleted one by one. */
static PpId
gone_up_to(const PpStreamFacts *facts)
{
	PpId last = facts->length > 0 ? pp_id_previous(facts->first_entry) : facts->last_generated;
	PpId end = is_read_to_end(facts) ? facts->last_generated : facts->last_delivered;

	/* What was deleted above what was delivered last would be missed later. */
	if (pp_id_compare(facts->max_deleted, last) > 0 && pp_id_compare(end, last) > 0)
		last = pp_id_compare(facts->max_deleted, end) < 0 ? facts->max_deleted : end;
	return last;
}

/*
 * pp_watch_lost
 *		Records that `entries` entries after `after` were trimmed or deleted before they were read.
 */
void
pp_watch_lost(PpWorker *w, PpId after, const PpStreamFacts *facts, int64 entries)
{
	Lost lost = {.entries = entries};
	char first[PP_ID_LEN];
	char last[PP_ID_LEN];

	lost.first = (PpId){after.ms, after.seq + 1};
	lost.last = gone_up_to(facts);
	if (pp_id_compare(lost.last, after) <= 0)
		lost.last = facts->last_delivered; /* before 7.0, Redis does not tell */
	pp_worker_transact(w, record_lost, &lost);
	pp_count(w->pipe, PP_COUNT_LOST, entries);
	pp_id_print(lost.first, first);
	pp_id_print(lost.last, last);
	ereport(WARNING,
			(errmsg("postpipe pipeline \"%s\": " INT64_FORMAT " entries of stream \"%s\" were "
					"trimmed before they were read",
					w->def->name, entries, w->def->stream),
			 errdetail("Their IDs lie between %s and %s; see postpipe_lost.", first, last),
			 errhint("Let the producers keep more entries (XADD ... MAXLEN), or give the pipeline "
					 "more workers.")));
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
 *		Have entries gone from the stream that the group has not delivered?  At its last entry all that
 *		were ever added must have been delivered, before its first entry all that are gone.  False:
 *		some are missing, and may still be in the stream.
 */
bool
pp_watch_look_for_trimmed(PpWorker *w, const PpStreamFacts *facts)
{
	bool at_end = pp_id_compare(facts->last_delivered, facts->last_generated) >= 0;
	bool to_end = is_read_to_end(facts);
	bool none_left =
		facts->length == 0 || pp_id_compare(facts->first_entry, facts->last_delivered) > 0;
	int64 expected = to_end ? facts->added : facts->added - facts->length;
	int64 position;

	if (facts->added < 0 || (!to_end && !none_left) ||
		!take_position(w, facts, expected, at_end, &position))
		return true;
	if (position < 0 || position >= expected)
		return true;
	if (!none_left && w->pipe->exclusive)
		return false;
	pp_watch_lost(w, w->watch.looked, facts, expected - position);
	return true;
}
