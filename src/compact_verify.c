/*
 * compact_verify.c
 *		Before rows of the ledger are pruned: has the group passed over entries up to there?
 *
 * What the group has passed over is found by what Redis says (watch.c) or by its number (repair.c), but not
 * on each release, nor while there always is more to deliver.  When the rows around such an entry are gone,
 * its ID would be that of a duplicate.  So what is left of the stream up to there is looked through by its
 * IDs; most streams are trimmed long before.
 */
#include "compact_internal.h"

#include "utils/memutils.h"

#include "held.h"

#define PAGES        10 /* that are looked through at once */
#define PAGE_ENTRIES 1000
#define PAGE_BYTES   ((size_t) 1024 * 1024)

/* Leaves only those of the IDs that are not on record. */
void
pp_compact_leave_out_settled(PpApply *a, void *arg)
{
	PpIdList *ids = arg;
	PpEntry **entries = pp_ledger_gone_entries(ids->ids, ids->n);
	int n = ids->n;

	pp_ledger_lookup(pp_apply_ledger(a), entries, n);
	ids->n = 0;
	for (int i = 0; i < n; i++)
		if (entries[i]->verdict != PP_VERDICT_DUPLICATE)
			ids->ids[ids->n++] = entries[i]->id;
}

/*
 * The IDs of the stream after *after, up to `last`, a bounded number; *after becomes the ID up to which
 * these are all.
 */
static bool
read_ids(PpWorker *w, PpId *after, PpId last, PpIdList *ids, PpRedisError *error)
{
	PpBatch page = {
		.cxt = AllocSetContextCreate(w->compact.cxt, "postpipe page", ALLOCSET_DEFAULT_SIZES)};
	size_t count = w->count;
	PpReply *reply;

	ids->ids = palloc(sizeof(PpId));
	for (int i = 0; i < PAGES && pp_id_compare(*after, last) < 0; i++)
	{
		MemoryContextReset(page.cxt);
		pp_redis_reply_target(w->redis, page.cxt, PP_COMPACT_REPLY);
		pp_redis_skim(w->redis, true);
		pp_stream_send_range(w->redis, w->def->stream, *after, last, (int) count);
		if (!pp_consume_receive(w, PP_REPLY_ARRAY, &reply, error) ||
			!pp_stream_parse_range(reply, &page, error))
			return false;
		ids->ids = repalloc(ids->ids, (ids->n + page.n + 1) * sizeof(PpId));
		for (int k = 0; k < page.n; k++)
			ids->ids[ids->n++] = page.entries[k].id;
		*after = page.n < count ? last : page.entries[page.n - 1].id;
		/* Their content comes as well: fewer, when they are large. */
		count = PAGE_BYTES / Max((page.bytes + pp_redis_skimmed(w->redis)) / Max(page.n, 1), 1);
		count = Max(Min(count, PAGE_ENTRIES), 1);
	}
	return true;
}

/* Leaves only those of the IDs that are no holes. */
static void
leave_out_holes(PpIdList *ids, const PpIdList *holes)
{
	int n = ids->n;
	int hole = 0;

	ids->n = 0;
	for (int i = 0; i < n; i++)
	{
		while (hole < holes->n && pp_id_compare(holes->ids[hole], ids->ids[i]) < 0)
			hole++;
		if (hole == holes->n || pp_id_compare(holes->ids[hole], ids->ids[i]) != 0)
			ids->ids[ids->n++] = ids->ids[i];
	}
}

/*
 * pp_compact_verify
 *		Is all that is in the stream up to *upto settled, or one of the holes, which were pending just
 *		before?  Looks through a piece of it, and lowers *upto to where it has come.  Of a group that has
 *		other consumers nothing can be said.  False with *error: the connection failed.
 */
bool
pp_compact_verify(PpWorker *w, const PpIdList *holes, PpId *upto, PpRedisError *error)
{
	PpCompact *c = &w->compact;
	PpId reached = c->verified;
	PpIdList ids = {0};

	if (!w->pipe->exclusive || pp_id_compare(c->verified, *upto) >= 0)
		return true;
	/* What the epoch began with may not be known, and then what came before it is not on record. */
	if (pp_id_is_zero(c->verified) && pp_apply_ledger(w->apply)->base < 0)
	{
		c->verified = *upto;
		return true;
	}
	if (!read_ids(w, &reached, *upto, &ids, error))
		return false;
	leave_out_holes(&ids, holes);
	if (!pp_worker_try(w, pp_compact_leave_out_settled, &ids))
		reached = c->verified;
	else if (ids.n > 0)
	{
		reached = pp_id_previous(ids.ids[0]);
		c->passed_over = true;
		pp_pipe_close(w->pipe);
	}
	else if (pp_id_compare(reached, *upto) < 0)
		c->more = true;
	c->verified = *upto = reached;
	return true;
}
