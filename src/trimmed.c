/*
 * trimmed.c
 *		Entries that are gone from the stream and that its group has not delivered: what Redis's numbers say of
 *		them.
 */
#include "trimmed.h"

/* Is nothing that is in the stream left to be delivered? */
static bool
is_read_to_end(const PpStreamFacts *facts)
{
	return pp_id_compare(facts->last_delivered, facts->last_entry) >= 0;
}

/*
 * pp_trimmed_expected
 *		How many entries must have been delivered, if none is lost?  At the last entry all that were ever added, before the first one
 *		all that are gone.  -1: between them that is not known, nor is it before 7.0.
 */
int64
pp_trimmed_expected(const PpStreamFacts *facts)
{
	if (facts->added < 0)
		return -1;
	if (is_read_to_end(facts))
		return facts->added;
	return pp_id_compare(facts->first_entry, facts->last_delivered) > 0
			   ? facts->added - facts->length
			   : -1;
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
 * pp_trimmed_range
 *		So many entries after `after` are gone; -1: it is not known how many.
 */
PpTrimmed
pp_trimmed_range(const PpStreamFacts *facts, PpId after, int64 entries)
{
	PpTrimmed lost = {{after.ms, after.seq + 1}, gone_up_to(facts), entries};

	if (pp_id_compare(lost.last, after) <= 0)
		lost.last = facts->last_delivered; /* before 7.0, Redis does not tell */
	return lost;
}

/*
 * pp_trimmed_find
 *		Which entries are gone after the one that the group has delivered last?  By Redis's entries-read and its
 *		correction, if both are of the life `run` of Redis; else perhaps some are, and it cannot be told how
 *		many.  Up to `top` all were delivered, also to a group that was set back since.
 */
PpTrimmed
pp_trimmed_find(PpPipe *pipe, uint64 run, const PpStreamFacts *facts, PpId top)
{
	int64 expected = pp_trimmed_expected(facts);
	PpId after = pp_id_compare(facts->last_delivered, top) > 0 ? facts->last_delivered : top;
	int64 position;
	bool known;

	if (!facts->group_exists || expected < 0)
		return (PpTrimmed){.entries = 0};
	LWLockAcquire(&pipe->lock, LW_SHARED);
	known = pipe->correction_known && pipe->correction_run == run && facts->entries_read >= 0;
	position = facts->entries_read + pipe->correction;
	LWLockRelease(&pipe->lock);
	if (known)
		return pp_trimmed_range(facts, after, Max(expected - position, 0));
	/* After it was loaded from a file, Redis counts too little, and never too much. */
	if (facts->entries_read >= expected || pp_id_compare(gone_up_to(facts), after) <= 0)
		return (PpTrimmed){.entries = 0};
	return pp_trimmed_range(facts, after, -1);
}
