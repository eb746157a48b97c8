/*
 * watch.c
 *		What a worker notices of its stream while it reads.
 *
 * With each read it asks, in the same write, where the stream and the group stood just before.  So
 * it sees that the stream is another one, that the group was moved from outside, and that entries
 * were trimmed before anybody had read them, with their number and the range of their IDs.
 *
 * How many entries were ever added up to the one that was delivered last is what Redis's
 * entries-read says, plus a correction: releases differ in whether it counts what was trimmed
 * unread.  The correction is known where the reader stands at the stream's end, or before its first
 * entry.
 */
#include "worker_internal.h"

#include "executor/spi.h"
#include "catalog/pg_type.h"
#include "utils/builtins.h"

#include "held.h"
#include "stats.h"

#define AHEAD_MS 2000

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

/*
 * pp_watch_lost
 *		Records that `entries` entries between `after` and the first one that is left were trimmed
 *		before they were read.
 */
void
pp_watch_lost(PpWorker *w, PpId after, const PpStreamFacts *facts, int64 entries)
{
	Lost lost = {.entries = entries};
	char first[PP_ID_LEN];
	char last[PP_ID_LEN];

	lost.first = (PpId){after.ms, after.seq + 1};
	lost.last = facts->length > 0 ? pp_id_previous(facts->first_entry) : facts->last_generated;
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

static void
set_correction(PpWorker *w, const PpStreamFacts *facts, int64 position)
{
	LWLockAcquire(&w->pipe->lock, LW_EXCLUSIVE);
	w->pipe->correction_known = position >= 0 && facts->entries_read >= 0;
	w->pipe->correction = position - facts->entries_read;
	LWLockRelease(&w->pipe->lock);
}

/* Worker 1 has looked at the stream; everything up to here is accounted for. */
void
pp_watch_begin(PpWorker *w, const PpStreamFacts *facts)
{
	w->delivered = facts->last_delivered;
	w->generated = facts->last_generated;
	w->added = facts->added;
	w->position = -1;
	set_correction(w, facts,
				   facts->added >= 0 && facts->undelivered >= 0 ? facts->added - facts->undelivered
																: -1);
}

/* Has the stream lost entries that the group has not delivered yet? */
static void
look_for_trimmed(PpWorker *w, const PpStreamFacts *facts)
{
	bool at_end = pp_id_compare(facts->last_delivered, facts->last_generated) >= 0;
	int64 missing;
	bool known;

	if (facts->added < 0 || facts->entries_read < 0)
		return;
	if (w->position >= 0 || at_end)
		set_correction(w, facts, at_end ? facts->added : w->position);
	w->position = -1;
	if (at_end ||
		(facts->length > 0 && pp_id_compare(facts->first_entry, facts->last_delivered) <= 0))
		return;
	LWLockAcquire(&w->pipe->lock, LW_SHARED);
	known = w->pipe->correction_known;
	missing = facts->added - facts->length - facts->entries_read - w->pipe->correction;
	LWLockRelease(&w->pipe->lock);
	if (!known || missing <= 0)
		return;
	pp_watch_lost(w, facts->last_delivered, facts, missing);
	/* What Redis counts now is seen at the next read: one worker alone knows how many it got. */
	set_correction(w, facts, -1);
	if (w->def->workers == 1 && w->exclusive)
		w->position = facts->added - facts->length;
}

/*
 * With several workers the group is often ahead of what they have received so far; but not for
 * seconds.
 */
static bool
is_ahead(PpWorker *w, PpId delivered)
{
	TimestampTz now = GetCurrentTimestamp();

	if (!w->exclusive || pp_id_compare(delivered, pp_held_mark(w->pipe)) <= 0)
		w->ahead_since = 0;
	else if (w->ahead_since == 0)
		w->ahead_since = now;
	return w->ahead_since != 0 && TimestampDifferenceExceeds(w->ahead_since, now, AHEAD_MS);
}

/*
 * pp_watch_position
 *		Looks at where stream and group stood before a read.  False: the pipeline has to be looked at
 *		as a whole, before anything of that read is used.
 */
bool
pp_watch_position(PpWorker *w, const PpStreamFacts *facts)
{
	if (!facts->key_exists || !facts->group_exists)
		return true; /* the read will say so */
	if (pp_id_compare(facts->last_generated, w->generated) < 0 ||
		(facts->added >= 0 && facts->added < w->added))
		return false;
	w->generated = facts->last_generated;
	w->added = facts->added;
	/* Moved forward: with one worker nobody else can have been given entries. */
	if (w->def->workers == 1 && w->exclusive &&
		pp_id_compare(facts->last_delivered, w->delivered) > 0 &&
		pp_id_compare(facts->last_delivered, pp_held_mark(w->pipe)) > 0)
		return false;
	if (is_ahead(w, facts->last_delivered))
		return false;
	w->delivered = facts->last_delivered;
	look_for_trimmed(w, facts);
	return true;
}

/* New entries up to `last` were delivered to this worker. */
void
pp_watch_delivered(PpWorker *w, int n, PpId last)
{
	w->delivered = last;
	if (pp_id_compare(last, w->generated) > 0)
		w->generated = last;
	if (w->position >= 0)
		w->position += n;
}
