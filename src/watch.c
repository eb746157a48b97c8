/*
 * watch.c
 *		What a worker notices of its stream while it reads.
 *
 * With each read it asks, in the same write, where the stream and the group stood just before.  So
 * it sees that the stream is another one, that the group was moved from outside, and that entries
 * were trimmed before anybody had read them, with their number and the range of their IDs.
 *
 * For that, the entries that were ever added up to the one that was delivered last are counted: by
 * the worker itself, if there is but one; else by Redis's entries-read and a correction, because
 * releases differ in whether that includes what was trimmed unread.
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

/* Up to which ID are entries gone?  They were trimmed, or deleted one by one. */
static PpId
gone_up_to(const PpStreamFacts *facts)
{
	PpId last = facts->length > 0 ? pp_id_previous(facts->first_entry) : facts->last_generated;

	/* What was deleted above what was delivered last would be missed later. */
	if (pp_id_compare(facts->max_deleted, last) > 0 &&
		pp_id_compare(facts->last_delivered, last) > 0)
		last = pp_id_compare(facts->max_deleted, facts->last_delivered) < 0 ? facts->max_deleted
																			: facts->last_delivered;
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
static bool
is_alone(const PpWorker *w)
{
	return w->def->workers == 1 && w->pipe->exclusive;
}

/* Up to the entry that was delivered last, `position` entries were ever added (-1: not known). */
static void
set_position(PpWorker *w, const PpStreamFacts *facts, int64 position)
{
	w->position = position;
	LWLockAcquire(&w->pipe->lock, LW_EXCLUSIVE);
	w->pipe->correction_known = position >= 0 && facts->entries_read >= 0;
	w->pipe->correction = position - facts->entries_read;
	LWLockRelease(&w->pipe->lock);
}

/* What set_position() was told, with what was delivered since. */
static int64
get_position(PpWorker *w, const PpStreamFacts *facts)
{
	int64 position = -1;

	if (is_alone(w))
		return w->position;
	LWLockAcquire(&w->pipe->lock, LW_SHARED);
	if (w->pipe->correction_known && facts->entries_read >= 0)
		position = facts->entries_read + w->pipe->correction;
	LWLockRelease(&w->pipe->lock);
	return position;
}

/*
 * Have entries gone from the stream that the group has not delivered?  At the stream's end all that
 * were ever added must have been delivered, before its first entry all that are gone.
 */
static void
look_for_trimmed(PpWorker *w, const PpStreamFacts *facts, PpId after)
{
	int64 position = get_position(w, facts);
	int64 expected;

	if (facts->added < 0)
		return;
	if (pp_id_compare(facts->last_delivered, facts->last_generated) >= 0)
		expected = facts->added;
	else if (facts->length == 0 || pp_id_compare(facts->first_entry, facts->last_delivered) > 0)
		expected = facts->added - facts->length;
	else
		return;
	if (position >= 0 && position < expected)
	{
		pp_watch_lost(w, after, facts, expected - position);
		/* Releases differ in what they count from here on: with several workers, wait and see. */
		set_position(w, facts, is_alone(w) || expected == facts->added ? expected : -1);
	}
	else if (position != expected)
		set_position(w, facts, expected);
}

static void
remember(PpWorker *w, const PpStreamFacts *facts)
{
	w->generated = facts->last_generated;
	w->added = facts->added;
	w->length = facts->length;
	w->first = facts->first_entry;
}

/*
 * pp_watch_is_other
 *		Is it another stream than the one that was seen before?  What only grows has become less, or
 *		it begins with a later entry although none has gone.
 */
bool
pp_watch_is_other(const PpWorker *w, const PpStreamFacts *facts)
{
	if (pp_id_compare(facts->last_generated, w->generated) < 0)
		return true;
	if (facts->added < 0 || w->added < 0)
		return false;
	return facts->added < w->added ||
		   (w->length > 0 && facts->length > 0 && pp_id_compare(facts->first_entry, w->first) > 0 &&
			facts->added - facts->length <= w->added - w->length);
}

/*
 * pp_watch_begin
 *		Worker 1 has looked at the stream; everything up to what was delivered last is accounted for,
 *		and that many entries were ever added up to there (-1: not known).
 */
void
pp_watch_begin(PpWorker *w, const PpStreamFacts *facts, int64 position)
{
	PpPipe *pipe = w->pipe;
	int64 read = facts->entries_read >= 0 ? facts->entries_read : position;

	w->looked = w->delivered = facts->last_delivered;
	remember(w, facts);
	w->consumers = 0;
	w->ahead_since = 0;
	LWLockAcquire(&pipe->lock, LW_EXCLUSIVE);
	pipe->offset_known = read >= 0;
	pipe->offset = read - (int64) pipe->received;
	pipe->seen_known = true;
	pipe->seen = facts->last_delivered;
	pipe->consumer_gone = false;
	LWLockRelease(&pipe->lock);
	set_position(w, facts, position);
}

/* Another worker begins to read, after worker 1 has looked. */
void
pp_watch_join(PpWorker *w)
{
	LWLockAcquire(&w->pipe->lock, LW_SHARED);
	w->looked = w->delivered = w->pipe->seen;
	LWLockRelease(&w->pipe->lock);
	w->consumers = 0;
	w->ahead_since = 0;
}

/* A consumer of ours was deleted: what was pending for it is pending for nobody. */
static bool
consumer_gone(PpWorker *w)
{
	LWLockAcquire(&w->pipe->lock, LW_EXCLUSIVE);
	w->pipe->consumer_gone = true;
	LWLockRelease(&w->pipe->lock);
	ereport(LOG, (errmsg("postpipe pipeline \"%s\", worker %d: a consumer of group \"%s\" was "
						 "deleted by somebody; looking for what was pending for it",
						 w->def->name, pp_my_proc->worker, w->def->group)));
	return false;
}

/*
 * pp_watch_consumer
 *		Before this worker reads what is pending for it: is its consumer still there?  Makes it, else;
 *		but when it had one, returns false without an error, and the pipeline has to be looked at as a
 *		whole.
 */
bool
pp_watch_consumer(PpWorker *w, PpRedisError *error)
{
	uint64 mine = UINT64CONST(1) << (pp_my_proc->worker - 1);
	PpReply *reply;
	bool had;

	pp_redis_send(w->redis, "XGROUP CREATECONSUMER %s %s %s", w->def->stream, w->def->group,
				  w->consumer);
	if ((reply = pp_consume_receive_any(w, error)) == NULL)
		return false;
	/* A user who may not do this, or no group: the read that comes next says so, or does without. */
	if (reply->type != PP_REPLY_INTEGER)
		return true;
	LWLockAcquire(&w->pipe->lock, LW_EXCLUSIVE);
	had = (w->pipe->has_consumer & mine) != 0;
	w->pipe->has_consumer |= mine;
	LWLockRelease(&w->pipe->lock);
	if (reply->integer == 0 || !had || !w->pipe->exclusive)
		return true;
	w->group_open = false;
	return consumer_gone(w);
}

/*
 * Has the group delivered more than the workers have received?  With several of them that is so
 * all the time, but not for seconds: then it was moved forward from outside.  Where both numbers
 * agree, everything up to the entry that was delivered last was delivered to us.
 */
static bool
is_ahead(PpWorker *w, const PpStreamFacts *facts)
{
	PpPipe *pipe = w->pipe;
	TimestampTz now = GetCurrentTimestamp();
	int64 ahead;

	if (!w->pipe->exclusive || facts->entries_read < 0)
		return false;
	LWLockAcquire(&pipe->lock, LW_EXCLUSIVE);
	ahead = facts->entries_read - (int64) pipe->received - pipe->offset;
	if (ahead < 0 || !pipe->offset_known)
	{
		/* It was set back. */
		pipe->offset += ahead;
		pipe->offset_known = true;
		ahead = 0;
	}
	if (ahead == 0)
		pipe->seen = facts->last_delivered;
	LWLockRelease(&pipe->lock);
	if (ahead <= 0)
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
	if (pp_watch_is_other(w, facts))
		return false;
	/* Somebody else has come: what was not delivered to us may be his, and not lost. */
	if (w->pipe->exclusive && facts->consumers > w->pipe->max_consumers)
		return false;
	/* A read makes the consumer again, but what is seen here is how it was before. */
	if (w->pipe->exclusive && facts->consumers < w->consumers)
		return consumer_gone(w);
	w->consumers = facts->consumers;
	remember(w, facts);
	/* Moved forward: with one worker nobody else can have been given entries. */
	if (is_alone(w) && pp_id_compare(facts->last_delivered, w->delivered) > 0)
		return false;
	if (is_ahead(w, facts))
		return false;
	if (pp_id_compare(facts->last_delivered, w->delivered) < 0)
		w->position = -1; /* set back: what was counted is counted again */
	w->delivered = facts->last_delivered;
	look_for_trimmed(w, facts, w->looked);
	w->looked = facts->last_delivered;
	return true;
}

/* New entries up to `last` were delivered to this worker. */
void
pp_watch_delivered(PpWorker *w, int n, PpId last)
{
	LWLockAcquire(&w->pipe->lock, LW_EXCLUSIVE);
	w->pipe->received += n;
	LWLockRelease(&w->pipe->lock);
	w->delivered = last;
	if (pp_id_compare(last, w->generated) > 0)
		w->generated = last;
	if (w->position >= 0)
		w->position += n;
}
