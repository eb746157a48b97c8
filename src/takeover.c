/*
 * takeover.c
 *		Entries that are pending for others: consumers that are dead, and foreign ones on request.
 *
 * Worker 1 makes them its own before it reads its own pending entries, which it does at the start,
 * now and then, also under load, and when something here is due; the ledger knows which of them are
 * settled.  Three things are done:
 *	- What is pending for dead consumers of this cluster (consumer.c) is taken over, at once where
 *	  their pipeline has gone while its supervisor looked.
 *	- With the option claim_foreign, what foreign consumers have left alone for claim_idle is taken
 *	  over, a bounded number of pages at a time: new entries have their turns between.  The place
 *	  where it stopped is kept, across connections, too.
 *	- With the option reap_consumers, consumers that nobody uses are deleted.
 * What turns out to be gone from the stream is settled as lost, unless it is on record, and only
 * then acknowledged.
 *
 * A Redis that refuses any of this can still serve the stream: that is logged once.
 */
#include "worker_internal.h"

#include "miscadmin.h"
#include "utils/memutils.h"

#include "consumer.h"
#include "guc.h"
#include "held.h"
#include "process.h"
#include "stats.h"
#include "stream_group.h"

#define PAGES_PER_TURN 10    /* of foreign consumers */
#define LEAVE_MS       10000 /* longer than a supervisor lets a worker that it has stopped go on */
#define REAP_EVERY_MS  60000
#define CLAIM_MIN_MS   1000 /* between two looks at foreign consumers */
#define CLAIM_MAX_MS   60000

/* A consumer that there may be something to do about. */
typedef struct Candidate
{
	PpConsumer consumer;
	PpConsumerKind kind;
} Candidate;

typedef struct Candidates
{
	const PpWorker *w;
	Candidate *list;
	int n;
} Candidates;

/* Reads the settings and options that matter here. At the start, and after a reload. */
void
pp_take_over_configure(PpWorker *w)
{
	PpTakeover *t = &w->takeover;

	if (t->cxt == NULL)
		t->cxt = AllocSetContextCreate(w->cxt, "postpipe takeover", ALLOCSET_SMALL_SIZES);
	t->claim_foreign = pp_pipeline_option_is_on(w->def, "claim_foreign");
	t->claim_idle = pp_pipeline_option_ms(w->def, "claim_idle", pp_guc_claim_idle);
	t->reap_idle = pp_pipeline_option_interval(w->def, "reap_consumers", -1);
	t->claim_at = t->reap_at = (PpSteady){0}; /* planned by what the settings were before */
}

static bool
is_under_way(const PpTakeover *t)
{
	return t->current < t->num_foreign;
}

/* In how many ms is the next thing due?  At most limit_ms. */
int
pp_take_over_due_ms(const PpWorker *w, int limit_ms)
{
	const PpTakeover *t = &w->takeover;
	long ms = Min(pp_steady_left(w->rescan_at), limit_ms);

	if (pp_my_proc->worker > 1)
		return (int) ms;
	if (pp_pipe_wants_rescan(w->pipe))
		return 0;
	if (t->claim_foreign)
		ms = Min(ms, pp_steady_left(t->claim_at));
	if (t->reap_idle >= 0)
		ms = Min(ms, pp_steady_left(t->reap_at));
	return (int) ms;
}

bool
pp_take_over_is_due(const PpWorker *w)
{
	return pp_take_over_due_ms(w, 1) == 0;
}

static void
plan_next_claim(PpTakeover *t)
{
	int ms = Min(Max(t->claim_idle / 2, CLAIM_MIN_MS), CLAIM_MAX_MS);

	t->num_foreign = t->current = 0;
	t->claimed = 0;
	t->claim_at = pp_steady_in(ms);
}

/* Settles entries that are pending for somebody and not in the stream any more. */
static bool
settle_gone(PpWorker *w, const PpId *ids, int n, PpRedisError *error)
{
	PpBatch *batch = &w->batches[0];

	batch->entries = MemoryContextAllocZero(batch->cxt, n * sizeof(PpEntry));
	for (int i = 0; i < n; i++)
	{
		batch->entries[i].id = ids[i];
		batch->entries[i].nfields = -1;
		batch->entries[i].verdict = PP_VERDICT_GONE;
	}
	batch->n = n;
	batch->bytes = 0;
	pp_worker_well(w, false);
	return pp_consume_settle(w, batch, error);
}

/*
 * Takes over a page of what is pending for a consumer, after *after, and moves that on.  *more says
 * whether there may be another page.
 */
static bool
claim_page(PpWorker *w, const PpString *from, int64 min_idle, PpId *after, int64 *total, bool *more,
		   PpRedisError *error)
{
	int count = Min(PP_CLAIM_PAGE, w->count);
	MemoryContext old;
	PpReply *reply;
	PpClaimed claimed;
	bool ok;

	pp_consume_begin_replies(w);
	pp_stream_send_claim(w->redis, w->def->stream, w->def->group, w->consumer, from, min_idle,
						 *after, count);
	if (!pp_consume_receive(w, PP_REPLY_ARRAY, &reply, error))
		return false;
	old = MemoryContextSwitchTo(w->batches[0].cxt);
	ok = pp_stream_parse_claim(reply, &claimed, error);
	MemoryContextSwitchTo(old);
	if (!ok)
		return false;
	*after = claimed.last;
	*total += claimed.claimed;
	*more = claimed.listed >= count;
	/* Those that another worker has in hand stay where they are, until the next time. */
	claimed.num_gone = pp_held_leave_out(w->pipe, claimed.gone, claimed.num_gone);
	return claimed.num_gone == 0 || settle_gone(w, claimed.gone, claimed.num_gone, error);
}

/* Takes over all that is pending for a consumer whose worker will not come back. */
static bool
claim_dead(PpWorker *w, const PpString *name, PpRedisError *error)
{
	PpSteady end = pp_steady_in(LEAVE_MS);
	PpId after = {0, 0};
	int64 total = 0;
	bool more = true;

	/*
	 * It may still be there, with its last batches to acknowledge.  What has the name after that time
	 * is a worker of a new pipeline of that name, on another stream.
	 */
	while (pp_consumer_pid(*name) != 0 && !pp_steady_is_due(end))
	{
		pp_process_sleep(50, PP_WAIT_PROCESS_EXIT);
		pp_worker_look_around(w);
	}
	while (more)
	{
		/* Closed by ourselves, to look at the stream: no error. */
		if (!pp_redis_is_open(w->redis) || !claim_page(w, name, 0, &after, &total, &more, error))
			return false;
		pp_worker_look_around(w);
	}
	ereport(LOG, (errmsg("postpipe pipeline \"%s\", worker %d: took over " INT64_FORMAT
						 " pending entries of consumer \"%s\", which has no worker any more",
						 w->def->name, pp_my_proc->worker, total, name->data)));
	return true;
}

/* Goes on with the foreign consumers, for as many pages as one turn may take. */
static bool
claim_foreign(PpWorker *w, PpRedisError *error)
{
	PpTakeover *t = &w->takeover;

	for (int page = 0; is_under_way(t) && page < PAGES_PER_TURN; page++)
	{
		bool more;

		if (!pp_redis_is_open(w->redis) || !claim_page(w, &t->foreign[t->current], t->claim_idle,
													   &t->after, &t->claimed, &more, error))
			return false;
		if (!more)
		{
			t->current++;
			memset(&t->after, 0, sizeof(t->after));
		}
		pp_worker_look_around(w);
	}
	if (is_under_way(t))
		return true;
	if (t->claimed > 0)
		ereport(LOG, (errmsg("postpipe pipeline \"%s\", worker %d: claimed " INT64_FORMAT
							 " pending entries of foreign consumers",
							 w->def->name, pp_my_proc->worker, t->claimed)));
	plan_next_claim(t);
	return true;
}

/* Deletes those that nobody uses; Redis looks once more whether they are empty and idle. */
static bool
reap(PpWorker *w, const Candidates *c, PpRedisError *error)
{
	PpString *names = MemoryContextAlloc(w->takeover.cxt, Max(c->n, 1) * sizeof(PpString));
	PpReaped reaped[PP_REAP_PAGE];
	PpReply *reply;
	int n = 0;
	int done = 0;
	int own = 0;

	w->takeover.reap_at = pp_steady_in(REAP_EVERY_MS);
	for (int i = 0; i < c->n && n < PP_REAP_PAGE; i++)
		if (c->list[i].consumer.pending == 0 &&
			pp_consumer_has_no_worker(c->list[i].kind, c->list[i].consumer.name))
			names[n++] = c->list[i].consumer.name;
	if (n == 0)
		return true;
	pp_consume_begin_replies(w);
	pp_stream_send_reap(w->redis, w->def->stream, w->def->group, w->takeover.reap_idle, names, n);
	if (!pp_consume_receive(w, PP_REPLY_ARRAY, &reply, error) ||
		!pp_stream_parse_reap(reply, n, reaped, error))
		return false;
	for (int i = 0; i < n; i++)
	{
		done += reaped[i].reaped;
		own += reaped[i].reaped && pp_consumer_worker(names[i], w->def->name) > 0;
	}
	LWLockAcquire(&w->pipe->lock, LW_EXCLUSIVE);
	w->pipe->max_consumers -= own;
	LWLockRelease(&w->pipe->lock);
	if (done > 0)
		ereport(LOG, (errmsg("postpipe pipeline \"%s\", worker %d: deleted %d consumers that "
							 "nobody uses",
							 w->def->name, pp_my_proc->worker, done)));
	return true;
}

/* Asks the catalogs about consumers of this cluster. */
static void
judge(PpApply *a, void *arg)
{
	Candidates *c = arg;
	List *pipelines = pp_pipeline_list(&c->w->ext);

	for (int i = 0; i < c->n; i++)
		c->list[i].kind = pp_consumer_kind(pipelines, c->w->def, c->list[i].consumer.name);
}

/*
 * Keeps those that there may be something to do about, and notes whether the group has others than
 * this pipeline's.  Returns whether the catalogs have to be asked about some.
 */
static bool
keep_candidates(PpWorker *w, const PpConsumer *all, int n, bool to_reap, Candidates *c, bool *alone)
{
	bool ask = false;

	c->list = palloc0(Max(n, 1) * sizeof(Candidate));
	for (int i = 0; i < n; i++)
	{
		int number = pp_consumer_worker(all[i].name, w->def->name);
		Candidate *one = &c->list[c->n];

		*alone &= number > 0;
		if ((number > 0 && number <= w->def->workers) ||
			!(all[i].pending > 0 || (to_reap && all[i].idle_ms >= w->takeover.reap_idle)))
			continue;
		c->n++;
		one->consumer = all[i];
		one->consumer.name.data =
			memcpy(palloc0(all[i].name.len + 1), all[i].name.data, all[i].name.len);
		one->kind = PP_CONSUMER_FOREIGN;
		ask |= pp_consumer_is_ours(one->consumer.name);
	}
	return ask;
}

/* The consumers of the group that there may be something to do about, in the takeover's context. */
static bool
find_candidates(PpWorker *w, bool to_reap, Candidates *c, PpRedisError *error)
{
	MemoryContext old;
	PpReply *reply;
	PpConsumer *all;
	bool alone = true;
	bool ask;
	bool ok;
	int n;

	pp_consume_begin_replies(w);
	pp_stream_send_consumers(w->redis, w->def->stream, w->def->group);
	if (!pp_consume_receive(w, PP_REPLY_ARRAY, &reply, error))
		return false;
	old = MemoryContextSwitchTo(w->takeover.cxt);
	ok = pp_stream_parse_consumers(reply, &all, &n, error);
	ask = ok && keep_candidates(w, all, n, to_reap, c, &alone);
	MemoryContextSwitchTo(old);
	if (!alone)
		pp_consume_not_alone(w);
	if (!ask)
		return ok;
	/* The catalogs cannot be read now, and there is a next time. */
	if (!pp_worker_try(w, judge, c))
		c->n = 0;
	return true;
}

/* Looks at the consumers of the group: what is due and can be done at once is done. */
static bool
look_at_consumers(PpWorker *w, PpRedisError *error)
{
	PpTakeover *t = &w->takeover;
	bool to_claim = t->claim_foreign && pp_steady_is_due(t->claim_at);
	bool to_reap = t->reap_idle >= 0 && pp_steady_is_due(t->reap_at);
	Candidates c = {w};

	MemoryContextReset(t->cxt);
	t->num_foreign = t->current = 0;
	if (!find_candidates(w, to_reap, &c, error))
		return false;
	for (int i = 0; i < c.n; i++)
		if (c.list[i].kind == PP_CONSUMER_DEAD && c.list[i].consumer.pending > 0 &&
			!claim_dead(w, &c.list[i].consumer.name, error))
			return false;
	if (to_reap && !reap(w, &c, error))
		return false;
	if (!to_claim)
		return true;
	t->foreign = MemoryContextAlloc(t->cxt, Max(c.n, 1) * sizeof(PpString));
	memset(&t->after, 0, sizeof(t->after));
	for (int i = 0; i < c.n; i++)
		if (c.list[i].kind == PP_CONSUMER_FOREIGN && c.list[i].consumer.pending > 0)
			t->foreign[t->num_foreign++] = c.list[i].consumer.name;
	return true;
}

/* Redis has said no, and the connection works: without taking over, then, until the next time. */
static bool
may_go_on(PpWorker *w, PpRedisError *error)
{
	PpTakeover *t = &w->takeover;

	if (!pp_redis_is_open(w->redis) || strcmp(error->code, "redis_protocol") == 0)
		return false;
	/* No group, no stream: the read that comes next is told so, too, and makes it again. */
	if (!t->refused && error->class != PP_REDIS_CLASS_STRUCTURE)
	{
		const char *hint = pp_redis_error_hint(error);

		pp_report_error(w->pipe, pp_redis_error_sqlstate(error), error->message);
		ereport(LOG, (errmsg("postpipe pipeline \"%s\", worker %d: pending entries of other "
							 "consumers are not looked after: %s",
							 w->def->name, pp_my_proc->worker, error->message),
					  hint ? errhint("%s", hint) : 0));
	}
	t->refused |= error->class != PP_REDIS_CLASS_STRUCTURE;
	t->reap_at = pp_steady_in(REAP_EVERY_MS);
	plan_next_claim(t);
	memset(error, 0, sizeof(*error));
	return true;
}

/*
 * pp_take_over
 *		Makes entries that are pending for others pending for this worker.  With nothing in hand; its
 *		own pending entries have to be read next.
 */
bool
pp_take_over(PpWorker *w, PpRedisError *error)
{
	if (pp_my_proc->worker > 1)
		return true;
	/* Before they are read: whoever gives us more from here on is to be heard. */
	if (pp_pipe_wants_rescan(w->pipe))
		pp_pipe_set_rescan(w->pipe, false);
	if (!is_under_way(&w->takeover) && !look_at_consumers(w, error))
		return may_go_on(w, error);
	if (w->takeover.claim_foreign && pp_steady_is_due(w->takeover.claim_at) &&
		!claim_foreign(w, error))
		return may_go_on(w, error);
	return true;
}
