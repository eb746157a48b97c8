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
 * pp_trimmed_fits
 *		Can the stream be the one that the ledger knows?  Not with lower IDs, or fewer entries than were settled:
 *		these numbers only grow.
 */
bool
pp_trimmed_fits(const PpLedger *ledger, const PpStreamFacts *facts)
{
	PpId top = ledger->base_known ? pp_ledger_highest(ledger) : ledger->top;
	int64 gone = pp_stream_is_gone_up_to(facts, top) ? facts->length : 0;

	if (pp_id_compare(facts->last_generated, top) < 0)
		return false;
	return facts->added < 0 || !ledger->base_known || ledger->base < 0 ||
		   facts->added - gone >= ledger->base + ledger->settled;
}

/*
 * pp_trimmed_expected
 *		How many entries must have been delivered, if none is lost?  At the last entry all that were ever
 *		added, before the first one all that are gone.  -1: between them that is not known, nor is it before 7.0.
 */
int64
pp_trimmed_expected(const PpStreamFacts *facts)
{
	if (facts->added < 0)
		return -1;
	if (is_read_to_end(facts))
		return facts->added;
	return pp_stream_is_gone_up_to(facts, facts->last_delivered) ? facts->added - facts->length
																 : -1;
}

/* Has the group come beyond the gap at which it was corrected? */
static bool
is_beyond_gap(const PpCorrection *c, const PpStreamFacts *facts)
{
	return !pp_id_is_zero(c->gap) && pp_id_compare(facts->last_delivered, c->gap) > 0;
}

/*
 * pp_trimmed_position
 *		How many entries were ever added up to the one that was delivered last?  By Redis's entries-read and its
 *		correction.  After a gap, 8 counts anew with the next entry that it delivers (streamReplyWithRange() and
 *		streamEstimateDistanceFromFirstEverEntry() in t_stream.c), and 7.0 goes on as before; as long as it is
 *		not known which (pp_trimmed_learn()), the numbers may tell.  -1: not known.
 *		With the lock of the correction's pipeline held.
 */
int64
pp_trimmed_position(const PpCorrection *c, const PpStreamFacts *facts)
{
	int64 as_before = facts->entries_read + c->by;
	int64 expected;

	if (!c->known || facts->entries_read < 0)
		return -1;
	if (!is_beyond_gap(c, facts) || c->recount == PP_RECOUNT_NO)
		return as_before;
	if (c->recount == PP_RECOUNT_YES)
		return facts->entries_read;
	expected = pp_trimmed_expected(facts);
	if (expected >= 0 && as_before > expected)
		return facts->entries_read;
	return expected >= 0 && (as_before == expected || is_read_to_end(facts)) ? as_before : -1;
}

/*
 * pp_trimmed_learn
 *		Does Redis count what was trimmed unread?  Workers had received `received` entries before it said `facts`.
 *		With the lock of the correction's pipeline held.
 */
void
pp_trimmed_learn(PpCorrection *c, const PpStreamFacts *facts, uint64 received)
{
	int64 expected = pp_trimmed_expected(facts);

	if (!c->known || !is_beyond_gap(c, facts) || c->recount != PP_RECOUNT_UNKNOWN ||
		facts->entries_read < 0)
		return;
	/* An entry that is deleted one by one makes each release count anew. */
	if (expected >= 0 && facts->entries_read + c->by > expected)
		c->recount =
			pp_id_compare(facts->max_deleted, c->gap) <= 0 ? PP_RECOUNT_YES : PP_RECOUNT_UNKNOWN;
	else if ((expected >= 0 && is_read_to_end(facts)) ||
			 (c->reads == 0 && received > c->received &&
			  facts->entries_read < c->position + (int64) (received - c->received)))
		c->recount = PP_RECOUNT_NO;
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
	PpTrimmed lost = {pp_id_next(after), gone_up_to(facts), entries};

	if (pp_id_compare(lost.last, after) <= 0)
		lost.last = facts->last_delivered; /* before 7.0, Redis does not tell */
	return lost;
}

/*
 * pp_trimmed_find
 *		Which entries are gone after the one that the group has delivered last?  By Redis's entries-read and its
 *		correction, if both are of the life `run` of Redis; else perhaps some are, and it cannot be told how
 *		many.  Up to `top` all were delivered, also to a group that was set back since: as long as it stands before
 *		that, what is gone may be on record, and it cannot be told either.
 */
PpTrimmed
pp_trimmed_find(PpPipe *pipe, uint64 run, const PpStreamFacts *facts, PpId top)
{
	int64 expected = pp_trimmed_expected(facts);
	PpId after = pp_id_max(facts->last_delivered, top);
	int64 position = -1;

	if (!facts->group_exists || expected <= 0)
		return (PpTrimmed){.entries = 0};
	LWLockAcquire(&pipe->lock, LW_SHARED);
	if (pipe->correction.run == run && pp_id_compare(facts->last_delivered, top) >= 0)
		position = pp_trimmed_position(&pipe->correction, facts);
	LWLockRelease(&pipe->lock);
	if (position >= 0)
		return pp_trimmed_range(facts, after, Max(expected - position, 0));
	/* After it was loaded from a file, Redis counts too little, and never too much. */
	if (facts->entries_read >= expected || pp_id_compare(gone_up_to(facts), after) <= 0)
		return (PpTrimmed){.entries = 0};
	return pp_trimmed_range(facts, after, -1);
}

/*
 * pp_trimmed_lag
 *		How many entries has the group not delivered?  What Redis says of a group that stands amid its stream is
 *		wrong after a crash or a failover (stream_facts.c).  A worker that has looked at the stream since then,
 *		in the life `run` of Redis, knows better; until it has, the number is not known: -1.
 */
int64
pp_trimmed_lag(PpPipe *pipe, uint64 run, const PpStreamFacts *facts)
{
	const PpCorrection *c = &pipe->correction;
	int64 lag = facts->undelivered;

	if (!pp_stream_is_inside(facts))
		return lag;
	LWLockAcquire(&pipe->lock, LW_SHARED);
	if (c->run != 0 && c->run != run)
		lag = -1;
	else if (c->known && lag >= 0 && facts->entries_read >= 0 && facts->added >= 0)
	{
		int64 position = pp_trimmed_position(c, facts);

		lag = position < 0 ? -1 : facts->added - position;
	}
	LWLockRelease(&pipe->lock);
	return lag > facts->length ? -1 : Max(lag, -1);
}
