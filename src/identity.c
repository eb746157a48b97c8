/*
 * identity.c
 *		Is the stream still the one that the ledger knows?
 *
 * A stream has no name of its own: what is there may be the same one, an older state of it, as after a
 * failover, or another life, made anew under its name.  By numbers that only grow, and by entries that are on
 * record, worker 1 tells them apart before anybody reads (open.c).
 */
#include "worker_internal.h"

#include "trimmed.h"

/* An entry that is asked for by its ID. */
typedef struct Asked
{
	PpEntry gone;   /* where it is not in the stream: then the ID decides */
	PpEntry *entry; /* as it is in the stream, else `gone` */
	bool known;     /* it is on record */
} Asked;

static void
look_for(PpApply *a, void *arg)
{
	Asked *asked = arg;

	asked->known = pp_ledger_knows(pp_apply_ledger(a), asked->entry);
}

/* Is the entry with this ID in the stream, and on record? */
static bool
ask(PpWorker *w, PpId id, Asked *asked, PpRedisError *error)
{
	PpBatch *batch = &w->batches[0];
	PpReply *reply;

	*asked = (Asked){.gone = {.id = id, .nfields = -1}, .entry = &asked->gone};
	pp_consume_begin_replies(w);
	pp_stream_send_range(w->redis, w->def->stream, pp_id_previous(id), id, 1);
	if (!pp_consume_receive(w, PP_REPLY_ARRAY, &reply, error) ||
		!pp_stream_parse_range(reply, batch, error))
		return false;
	if (batch->n > 0)
	{
		(void) pp_consume_normalize(w, batch); /* the hash is what is looked up */
		asked->entry = &batch->entries[0];
	}
	pp_worker_transact(w, look_for, asked);
	return true;
}

/*
 * Is the highest entry that the ledger has in the stream, as it was?  It may have been deleted: then
 * Redis, from 7.0 on, knows that something up there was.
 */
static bool
top_is_there(PpWorker *w, const PpStreamFacts *facts, bool *there, PpRedisError *error)
{
	PpId top = pp_apply_ledger(w->apply)->top;
	Asked asked;

	if (!ask(w, top, &asked, error))
		return false;
	*there = asked.entry != &asked.gone ? asked.known
										: pp_id_compare(facts->max_deleted, top) >= 0 ||
											  (facts->added < 0 && facts->group_exists);
	return true;
}

static void
look_before(PpApply *a, void *arg)
{
	PpId *id = arg;

	*id = pp_ledger_last_up_to(pp_apply_ledger(a), *id);
}

/* Is the entry with this ID pending? */
static bool
is_pending(PpWorker *w, PpId id, bool *pending, PpRedisError *error)
{
	PpBatch page;

	if (!pp_repair_get_pending(w, pp_id_previous(id), id, &page, error))
		return false;
	*pending = page.n > 0;
	return true;
}

/*
 * A worker was given this entry and has not settled it, as when the connection breaks or its statement fails: so
 * it may not be on record.  But is it pending, and what is on record before it in the stream?
 */
static bool
is_in_between(PpWorker *w, PpId id, bool *in_between, PpRedisError *error)
{
	bool pending;
	Asked asked;

	if (!is_pending(w, id, &pending, error))
		return false;
	if (!pending)
		return true;
	pp_worker_transact(w, look_before, &id);
	if (pp_id_is_zero(id))
		return true;
	if (!ask(w, id, &asked, error))
		return false;
	*in_between = asked.known && asked.entry != &asked.gone;
	return true;
}

/*
 * Is what the stream begins with on record as well, or pending, as in an older state of it?  Of a group that is ours
 * alone.
 */
static bool
begin_is_known(PpWorker *w, const PpStreamFacts *facts, bool *known, PpRedisError *error)
{
	PpId first = facts->first_entry;
	Asked asked;

	*known = !w->pipe->exclusive || facts->length == 0 ||
			 pp_id_compare(first, pp_apply_ledger(w->apply)->pruned) <= 0 ||
			 pp_id_compare(first, facts->last_delivered) > 0;
	if (*known)
		return true;
	if (!ask(w, first, &asked, error))
		return false;
	*known = asked.known;
	return *known || is_pending(w, first, known, error);
}

/*
 * It is not the stream that the ledger knows.  Is it an older state of it?  Then the group is, too: it was
 * given what is on record, or so long ago that it is not any more; or what nobody has settled since.  Or Redis as a
 * whole is older.  In another life, whose group was made at its end, a worker that waited may have been given the next
 * entry before it looked: that is on record then, and what the stream begins with is not.
 */
static bool
is_older(PpWorker *w, const PpStreamFacts *facts, bool *older, PpRedisError *error)
{
	PpId delivered = facts->last_delivered;
	Asked asked;

	*older = facts->group_exists && w->redis_is_older;
	if (*older || !facts->group_exists || pp_id_is_zero(delivered))
		return true;
	if (!ask(w, delivered, &asked, error))
		return false;
	*older = asked.known || pp_id_compare(delivered, pp_apply_ledger(w->apply)->pruned) <= 0;
	if (!*older && !is_in_between(w, delivered, older, error))
		return false;
	return !*older || begin_is_known(w, facts, older, error);
}

/* Which cause has the epoch that begins because the stream is not the one that the ledger knows? */
static bool
name_cause(PpWorker *w, const PpStreamFacts *facts, PpId top, const char **cause,
		   PpRedisError *error)
{
	bool older;

	if (!is_older(w, facts, &older, error))
		return false;
	if (older)
		*cause = "stream_went_back";
	/* Made anew with lower IDs; or older than what tells. */
	else if (pp_id_compare(facts->last_generated, top) < 0 && facts->added != facts->length)
		*cause = "stream_unclear";
	else
		*cause = "stream_made_anew";
	return true;
}

/*
 * Of the stream as it is now nothing is known.  But has one come back that was known before, as when Redis was
 * empty for a while?
 */
static bool
is_back(PpWorker *w, const PpStreamFacts *facts, const char **cause, PpRedisError *error)
{
	const PpLedger *ledger = pp_apply_ledger(w->apply);
	Asked asked;

	if (!ledger->base_known || !ledger->many_lives || !facts->group_exists ||
		pp_id_is_zero(facts->last_delivered))
		return true;
	if (!ask(w, facts->last_delivered, &asked, error))
		return false;
	if (asked.known)
		*cause = "stream_went_back";
	return true;
}

/*
 * Is the group the one that workers have read, up to `top`?  It has consumers, or at least stands where they have left
 * it; one that was made anew, perhaps with the stream, does neither.  Where there were other consumers, what these have
 * left tells nothing.
 */
static bool
group_was_read(const PpLedger *ledger, const PpStreamFacts *facts, PpId top)
{
	return facts->group_exists && (facts->consumers != 0 || ledger->shared ||
								   pp_id_compare(facts->last_delivered, top) == 0);
}

/*
 * pp_identity_find_cause
 *		Why is the stream not the one that the ledger knows?  *cause becomes NULL when it is.  False with
 *		*error: the connection failed; with no error: it has to be looked at again.
 *
 * A stream that was deleted and filled again has fewer entries than were settled, or lower IDs, or other
 * entries under the same ones.  Of an epoch that has not begun yet nothing is known; in one that has,
 * everything up to `pruned` was in the stream, whoever settled it.  Of those that are lost only the number is
 * known.  If the group that was read is gone, and everything that is known, it cannot be told.
 */
bool
pp_identity_find_cause(PpWorker *w, const PpStreamFacts *facts, const char **cause,
					   PpRedisError *error)
{
	const PpLedger *ledger = pp_apply_ledger(w->apply);
	PpId top = ledger->top;
	bool there = true;
	bool shrunk;
	bool known;

	*cause = NULL;
	if (ledger->base_known && pp_id_compare(ledger->pruned, top) > 0)
		top = ledger->pruned;
	known = !pp_id_is_zero(top) || (ledger->base_known && ledger->base > 0);
	if (!known && ledger->settled == 0)
		return is_back(w, facts, cause, error);
	if (!facts->key_exists)
		*cause = "stream_gone";
	else if (!pp_trimmed_fits(ledger, facts) || pp_watch_is_other(w, facts))
		return name_cause(w, facts, top, cause, error);
	else if (!known)
		return is_back(w, facts, cause, error);
	else if (pp_stream_is_gone_up_to(facts, top) && !group_was_read(ledger, facts, top))
		*cause = "group_gone";
	else if (facts->length > 0 && pp_id_compare(facts->first_entry, ledger->top) <= 0)
	{
		if (!top_is_there(w, facts, &there, error))
			return false;
		if (there)
			return true;
		/* Perhaps it has been trimmed only just now. */
		return pp_repair_has_shrunk(w, facts, &shrunk, error) && !shrunk &&
			   name_cause(w, facts, top, cause, error);
	}
	return true;
}
