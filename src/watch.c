/*
 * watch.c
 *		What a worker notices of its stream while it reads.
 *
 * With each read it asks, in the same write, where the group stood just before; and now and then for
 * all that Redis can say of the stream, which is not asked with each read because the answer contains
 * two whole entries.  So it sees that the stream is another one, that the group was moved from
 * outside, and that entries were trimmed before anybody had read them, with their number and the
 * range of their IDs (watch_lost.c).
 *
 * With several workers, an answer is older than what was received meanwhile, by this one or others.
 * So what Redis says that the group has read is compared with what was received before it was asked:
 * less than that, and the group was set back.  And with what was received when all reads have ended
 * that were under way then: more than that, and it was moved forward.  A group that was moved may not say
 * it until it has come to the stream's end: then worker 1 looks at the stream.
 */
#include "worker_internal.h"

#include "held.h"
#include "news.h"

#define LOOK_MS            1000 /* in a group that is ours alone; else with each read, or gaps are missed */
#define AGAIN_MS           10000 /* between two looks for a reason that may be a frequent one */
#define SKIMMED_BYTES_A_MS 4096  /* how much longer until the next look, after large entries */

/* Is it where the pipeline was asked to begin? */
static bool
is_asked_start(const PpWorker *w, PpId id)
{
	char *asked = pp_pipeline_option(w->def, "start_id");
	PpId start;
	bool same;

	if (asked == NULL)
		return false;
	same = pp_id_parse(asked, strlen(asked), &start) && pp_id_compare(start, id) == 0;
	pfree(asked);
	return same;
}

/*
 * Was the group set to an ID that the stream has not reached, and not by us?  Of one that is ours
 * alone.
 */
static bool
is_in_future(const PpWorker *w, const PpStreamFacts *facts)
{
	return w->pipe->exclusive && pp_id_compare(facts->last_delivered, facts->last_generated) > 0 &&
		   !is_asked_start(w, facts->last_delivered);
}

/* This is how the stream was when it was looked at; `sure`: and nothing is left to be seen later. */
static void
remember(PpWorker *w, const PpStreamFacts *facts, bool sure)
{
	w->watch.stream.generated = facts->last_generated;
	w->watch.stream.added = facts->added;
	w->watch.stream.length = facts->length;
	w->watch.stream.first = facts->first_entry;
	w->watch.looked = facts->last_delivered;
	if (!sure)
		return;
	LWLockAcquire(&w->pipe->lock, LW_EXCLUSIVE);
	w->pipe->looked = (PpStanding){facts->last_delivered, facts->added, facts->length};
	LWLockRelease(&w->pipe->lock);
}

/*
 * pp_watch_is_other
 *		Is it another stream than the one that was seen before?  What only grows has become less, or
 *		it begins with a later entry although none has gone.
 */
bool
pp_watch_is_other(const PpWorker *w, const PpStreamFacts *facts)
{
	const PpStreamSeen *seen = &w->watch.stream;

	if (pp_id_compare(facts->last_generated, seen->generated) < 0)
		return true;
	if (facts->added < 0 || seen->added < 0)
		return false;
	return facts->added < seen->added ||
		   (seen->length > 0 && facts->length > 0 &&
			pp_id_compare(facts->first_entry, seen->first) > 0 &&
			facts->added - facts->length <= seen->added - seen->length);
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

	remember(w, facts, true);
	w->watch.counted = facts->entries_read >= 0;
	LWLockAcquire(&pipe->lock, LW_EXCLUSIVE);
	pipe->stream = w->watch.stream;
	pipe->offset_known = read >= 0;
	pipe->offset = read - (int64) pipe->received;
	pipe->seen_known = true;
	pipe->seen = facts->last_delivered;
	pipe->consumer_gone = pipe->carried = false;
	pp_watch_set_position(w, facts, position);
	LWLockRelease(&pipe->lock);
	pp_watch_join(w);
}

/* A worker begins to read, after worker 1 has looked. */
void
pp_watch_join(PpWorker *w)
{
	LWLockAcquire(&w->pipe->lock, LW_SHARED);
	w->watch.stream = w->pipe->stream;
	w->watch.looked = w->watch.delivered = w->pipe->seen;
	LWLockRelease(&w->pipe->lock);
	w->watch.again = pp_ledger_highest(pp_apply_ledger(w->apply));
	w->watch.consumers = 0;
	w->watch.look_at = (PpSteady){0};
	w->watch.reads = 0;
}

/* A consumer of ours was deleted: what was pending for it is pending for nobody. */
static bool
consumer_gone(PpWorker *w)
{
	LWLockAcquire(&w->pipe->lock, LW_EXCLUSIVE);
	w->pipe->consumer_gone = true;
	LWLockRelease(&w->pipe->lock);
	if (pp_is_news("consumer_deleted"))
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
	had = (w->pipe->has_consumer & mine) != 0 && reply->integer != 0 && w->pipe->exclusive;
	/* Said once: a server that makes it anew each time must not hold us up. */
	if (had)
		w->pipe->has_consumer &= ~mine;
	else
		w->pipe->has_consumer |= mine;
	LWLockRelease(&w->pipe->lock);
	if (!had)
		return true;
	w->group_open = false;
	return consumer_gone(w);
}

/*
 * Does the group not say any more how many entries it has read?  It was moved, or an entry was deleted
 * before it was read.
 */
static bool
has_forgotten(PpWorker *w, const PpStreamFacts *facts)
{
	w->watch.counted |= facts->entries_read >= 0;
	return facts->entries_read < 0 && w->watch.counted && w->pipe->exclusive && w->def->workers > 1;
}

/*
 * Does something tell that the whole should be looked at, which is no reason to do so all the time?  An entry that an
 * older epoch has settled is one: the stream may be one that was there before, although it has higher IDs than that (open.c).
 */
static bool
is_to_be_looked_at(PpWorker *w, const PpStreamFacts *facts)
{
	return (has_forgotten(w, facts) || w->pipe->carried) && pp_my_proc->worker == 1 &&
		   pp_steady_passed(w->looked_at, AGAIN_MS);
}

/*
 * Has the group delivered more than the workers have received?  With several of them that is to be
 * said only when those reads have ended that may have been given the rest.  Where both numbers agree,
 * everything up to the entry that was delivered last was delivered to us.
 */
static bool
is_ahead(PpWorker *w, const PpStreamFacts *facts)
{
	PpPipe *pipe = w->pipe;
	PpWatch *watch = &w->watch;
	bool ahead = false;
	int64 more;

	if (!pipe->exclusive)
		return false;
	if (facts->entries_read < 0)
	{
		/* Redis 6.2 has no such number.  One worker was given all that it has not seen the group pass. */
		if (pp_watch_is_alone(w))
		{
			LWLockAcquire(&pipe->lock, LW_EXCLUSIVE);
			pipe->seen = facts->last_delivered;
			LWLockRelease(&pipe->lock);
		}
		return false;
	}
	if (watch->reads != 0 && !pp_read_is_awaited(pipe, watch->reads))
	{
		LWLockAcquire(&pipe->lock, LW_SHARED);
		ahead = (int64) pipe->received + pipe->offset < watch->entries_read;
		LWLockRelease(&pipe->lock);
		watch->reads = 0;
	}
	LWLockAcquire(&pipe->lock, LW_EXCLUSIVE);
	more = facts->entries_read - pipe->offset - (int64) watch->received;
	if (more < 0 || !pipe->offset_known)
	{
		/* It was set back. */
		pipe->offset += more;
		pipe->offset_known = true;
		more = 0;
	}
	if (more == 0)
		pipe->seen = facts->last_delivered;
	else if (watch->reads == 0)
	{
		watch->reads = pipe->reads;
		watch->entries_read = facts->entries_read;
	}
	LWLockRelease(&pipe->lock);
	return ahead;
}

/* The group was set back: what was counted is counted again, and given again. */
static void
note_set_back(PpWorker *w, PpId to)
{
	PpWatch *watch = &w->watch;

	watch->position = -1;
	watch->again = pp_id_max(watch->again, watch->delivered);
	if (pp_id_compare(to, watch->looked) < 0)
		watch->looked = to;
}

/*
 * Looks at where the group stood before a read, and the stream, if that was asked for.  False: the
 * pipeline has to be looked at as a whole, before anything else is read.
 */
static bool
look(PpWorker *w, const PpStreamFacts *facts, bool whole)
{
	if (!facts->key_exists || !facts->group_exists)
		return true; /* the read will say so */
	/* Somebody else has come: what was not delivered to us may be his, and not lost. */
	if (w->pipe->exclusive && facts->consumers > w->pipe->max_consumers)
		return false;
	/*
	 * A read makes the consumer again, but what is seen here is how it was before.  What worker 1 has deleted
	 * itself (takeover.c) is in the most that there can be no more.
	 */
	if (w->pipe->exclusive && facts->consumers >= 0 &&
		facts->consumers < Min(w->watch.consumers, w->pipe->max_consumers))
		return consumer_gone(w);
	w->watch.consumers = facts->consumers;
	/* Moved forward: with one worker nobody else can have been given entries. */
	if (pp_watch_is_alone(w) && pp_id_compare(facts->last_delivered, w->watch.delivered) > 0)
		return false;
	if (is_ahead(w, facts) || is_to_be_looked_at(w, facts))
		return false;
	if (pp_id_compare(facts->last_delivered, w->watch.delivered) < 0)
		note_set_back(w, facts->last_delivered);
	w->watch.delivered = facts->last_delivered;
	if (!whole)
		return true;
	if (pp_watch_is_other(w, facts) || is_in_future(w, facts) ||
		!pp_watch_look_for_trimmed(w, facts))
		return false;
	remember(w, facts, w->watch.reads == 0);
	return true;
}

/* Asks for what pp_watch_receive() looks at; right before a read of new entries is sent. */
void
pp_watch_send(PpWorker *w)
{
	PpWatch *watch = &w->watch;

	watch->looking = pp_steady_is_due(watch->look_at);
	watch->received = pp_read_begins(w->pipe);
	LWLockAcquire(&w->pipe->lock, LW_SHARED);
	watch->corrections = w->pipe->correction.times;
	LWLockRelease(&w->pipe->lock);
	if (watch->looking)
		pp_stream_send_facts(w->redis, w->def->stream, w->def->group);
	else
		pp_stream_send_group(w->redis, w->def->stream);
}

/*
 * pp_watch_receive
 *		Receives the answer, and looks at it.  False with *error filled: the connection failed; with no
 *		error: the pipeline has to be looked at as a whole, and w->group_open says so.
 */
bool
pp_watch_receive(PpWorker *w, PpRedisError *error)
{
	PpWatch *watch = &w->watch;
	PpStreamFacts facts;
	PpReply *reply;
	bool known;

	if (watch->looking)
	{
		known = pp_consume_receive_facts(w, &facts, error);
		watch->owed = false;
		watch->look_at = pp_steady_in((w->pipe->exclusive ? LOOK_MS : 0) +
									  pp_redis_skimmed(w->redis) / SKIMMED_BYTES_A_MS);
	}
	else
		known = (reply = pp_consume_receive_any(w, error)) != NULL &&
				pp_stream_parse_group(reply, w->def->group, &facts, error);
	if (!pp_redis_is_open(w->redis))
		return false;
	/* What Redis refuses to say is refused for the read as well, or can be done without. */
	if (!known)
	{
		memset(error, 0, sizeof(*error));
		return true;
	}
	if (look(w, &facts, watch->looking))
		return true;
	w->group_open = false;
	return false;
}

/* How long a read may block: until the stream is to be looked at, if there was something new. */
long
pp_watch_due_ms(const PpWorker *w, long max_ms)
{
	long due = pp_steady_left(w->watch.look_at);

	/* If it is due now, that is done with the read itself. */
	return w->watch.owed && due > 0 ? Min(max_ms, due) : max_ms;
}

/* New entries, from `first` to `last`, were delivered to this worker; perhaps none. */
void
pp_watch_delivered(PpWorker *w, int n, PpId first, PpId last)
{
	PpWatch *watch = &w->watch;
	PpStreamSeen *seen = &watch->stream;

	pp_read_ends(w->pipe, n);
	if (n == 0)
		return;
	watch->owed = true;
	watch->delivered = last;
	/* Added since the stream was looked at: so many it has had at least, whatever is gone of them. */
	if (pp_id_compare(first, seen->generated) > 0 && seen->added >= 0)
	{
		if (seen->length == 0)
			seen->first = first;
		seen->length += n;
		seen->added += n;
	}
	if (pp_id_compare(last, seen->generated) > 0)
		seen->generated = last;
	if (watch->position >= 0)
		watch->position += n;
}

/*
 * pp_watch_out_of_future
 *		A group that was set to an ID that the stream has not reached would deliver nothing until then.
 *		If it is ours alone, sets it back to the stream's end.
 */
bool
pp_watch_out_of_future(PpWorker *w, PpStreamFacts *facts, PpRedisError *error)
{
	char at[PP_ID_LEN];
	char end[PP_ID_LEN];
	PpReply *reply;

	if (!is_in_future(w, facts))
		return true;
	pp_id_print(facts->last_delivered, at);
	pp_id_print(facts->last_generated, end);
	pp_redis_send(w->redis, "XGROUP SETID %s %s %s", w->def->stream, w->def->group, end);
	if (!pp_consume_receive(w, PP_REPLY_STATUS, &reply, error))
		return false;
	ereport(
		WARNING,
		(errmsg("postpipe pipeline \"%s\": group \"%s\" of stream \"%s\" stood at %s, which the "
				"stream has not reached, and was set to %s",
				w->def->name, w->def->group, w->def->stream, at, end)));
	facts->last_delivered = facts->last_generated;
	facts->undelivered = 0;
	return true;
}
