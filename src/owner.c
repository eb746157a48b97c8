/*
 * owner.c
 *		Whose consumer group it is: a key in Redis names the one database that may read.
 *
 * Copies of a database (a clone, a restored backup, a dump) carry the definitions of its pipelines,
 * and would take entries from the group that the original reads.  So worker 1, before anything
 * else, claims the group: it writes a new nonce into the key, if the key has the nonce that this
 * database wrote last.  A copy that was made before has an older one, is fenced, and stays so until
 * postpipe_resume(pipeline, take_over => true).  A server that restarts, crashed, or was promoted
 * has the last nonce, and comes back at once.
 *
 * The next nonce is stored here (owner_known.c), durably, before it is written there: whoever dies
 * between knows both; and some that were written before are kept, because a failover may bring them
 * back.  A copy that was made since has the last nonce as well, so it is asked whether the owner is
 * still connected, and moves: then the copy is fenced.
 *
 * A look at the nonce travels with each read, so a worker whose group was taken over stops with the
 * next batch.
 *
 * The key also has the number of the last batch that each worker has acknowledged.  If Redis knows
 * of more than the database has, the database has gone back in time.  And it has what the epoch began
 * with, because a database may go back to before that, and before the pipeline's first start: then
 * its own tables do not tell which entries are the pipeline's and were read.
 *
 * Who loses the group to another pipeline acknowledges what it has settled, because nobody else can
 * know of it (handover.c); the rest is taken over by a new owner on this server.
 */
#include "owner.h"

#include "access/xact.h"
#include "access/xlog.h"

#include "handover.h"
#include "owner_key.h"
#include "owner_known.h"
#include "process.h"
#include "stats.h"

#define GIVE_BACK_MS 500
#define DEAD_MS      12000 /* an owner that is connected moves at least every 8 seconds */

static const char give_back_script[] =
	"if redis.call('HGET', KEYS[1], 'nonce') == ARGV[1] then return redis.call('DEL', KEYS[1]) end "
	"return 0";

/*
 * Is the connection that the key names still there, and not our own?  Whether it still moves, a
 * second look will tell.
 */
static bool
is_connected(PpWorker *w, int64 client, bool *connected, PpRedisError *error)
{
	char id[32];
	PpReply *reply;

	*connected = false;
	if (client == 0 || client == pp_redis_client_id(w->redis))
		return true;
	snprintf(id, sizeof(id), INT64_FORMAT, client);
	pp_redis_send(w->redis, "CLIENT LIST ID %s", id);
	reply = pp_consume_receive_any(w, error);
	if (reply == NULL)
		return false;
	/* Who may not ask takes it for connected; whether it moves, he can see. */
	*connected = reply->type == PP_REPLY_ERROR ||
				 (reply->type == PP_REPLY_STRING && strstr(reply->str, "name=postpipe:") != NULL);
	return true;
}

/*
 * Is the owner in the key alive?  *undecided: it is connected, and there has been no time yet to
 * see whether it moves.
 */
static bool
is_alive(PpWorker *w, const PpOwnerKey *key, bool other_server, bool *alive, bool *undecided,
		 PpRedisError *error)
{
	bool connected;

	*alive = *undecided = false;
	if (!is_connected(w, key->client, &connected, error))
		return false;
	if (!connected && pp_steady_is_set(w->owner_seen_at) && other_server)
	{
		/* It was there a moment ago: it may only be restarting. */
		if (!pp_steady_is_set(w->owner_gone_at))
			w->owner_gone_at = pp_steady_now();
		*undecided = !pp_steady_passed(w->owner_gone_at, DEAD_MS);
		return true;
	}
	w->owner_gone_at = (PpSteady){0};
	if (!connected)
		w->owner_seen_at = (PpSteady){0};
	else if (!pp_steady_is_set(w->owner_seen_at))
	{
		w->owner_seen_at = pp_steady_now();
		w->owner_turns = key->turns;
		*undecided = true;
	}
	else if (key->turns != w->owner_turns)
		*alive = true;
	else
		*undecided = !pp_steady_passed(w->owner_seen_at, DEAD_MS);
	return true;
}

/* Fenced, for good: says so, and waits until somebody changes the definition. */
static void
stay_fenced(PpWorker *w, const char *owner)
{
	char reason[PP_REASON_LEN];

	pp_worker_transact(w, pp_owner_note_fenced, NULL);
	snprintf(reason, sizeof(reason), "consumer group \"%s\" of stream \"%s\" belongs to %s",
			 w->def->group, w->def->stream, owner[0] ? owner : "somebody else");
	pp_worker_disconnect(w);
	pp_pipe_set_fenced(w->pipe, true);
	pp_report_error(w->pipe, ERRCODE_OBJECT_IN_USE, reason);
	pp_report_state(PP_STATE_FENCED, "fenced", reason,
					"If this database is to read from now on, and the other one no more, run "
					"postpipe_resume(pipeline, take_over => true).");
	pp_process_activity(false, "fenced");
	for (;;)
	{
		pp_process_sleep(-1, PP_WAIT_WORKER_IDLE);
		pp_worker_look_around(w);
	}
}

/*
 * The group is another pipeline's: leaves it in order, and stays fenced.  Returns only when that
 * failed, with *error.  A copy that has our name has our ledger as well, and settles what is pending
 * by that; so to it nothing is handed over.
 */
static bool
lose_group(PpWorker *w, const PpOwnerKnown *known, const PpOwnerKey *key, PpRedisError *error)
{
	if (known->nonce[0] != '\0' && !known->fenced && key->owner[0] != '\0' &&
		strcmp(key->owner, w->owner) != 0 && !pp_hand_over(w, error))
		return false;
	pp_pipe_set_fenced(w->pipe, true);
	if (!pp_hand_over_wake(w, key->owner, key->client, error))
		return false;
	stay_fenced(w, key->owner);
	return false;
}

/* Did this database write the nonce that the key has? */
static bool
is_our_nonce(const PpOwnerKnown *known, const PpOwnerKey *key)
{
	return strcmp(key->nonce, known->nonce) == 0 || strcmp(key->nonce, known->next_nonce) == 0 ||
		   strstr(known->past_nonces, key->nonce) != NULL;
}

/* Is the nonce there still?  To be fenced is for good, and a reply may have been garbled. */
static bool
is_confirmed(PpWorker *w, const PpOwnerKey *key, PpRedisError *error)
{
	PpOwnerKey again;

	if (!pp_owner_key_get(w, &again, error))
		return false;
	if (strcmp(again.nonce, key->nonce) == 0 && strcmp(again.owner, key->owner) == 0)
		return true;
	pp_redis_error_set(error, PP_REDIS_CLASS_MOMENT, "owner_changed",
					   "the owner of consumer group \"%s\" has just changed", w->def->group);
	return false;
}

/* May the key be written?  Otherwise does not return, or returns false with *error. */
static bool
check_right(PpWorker *w, const PpOwnerKnown *known, const PpOwnerKey *key, PpRedisError *error)
{
	char instance[sizeof(key->instance)];
	bool other_server;
	bool alive;
	bool undecided;

	pp_owner_write_instance(instance, sizeof(instance));
	if (known->take_over)
		return true;
	if (known->fenced)
		return lose_group(w, known, key, error);
	if (key->nonce[0] == '\0')
		return true;
	/* A pipeline that was dropped and made anew has no nonce yet. */
	if (!is_our_nonce(known, key) && !known->owner_gone &&
		!(known->nonce[0] == '\0' && strcmp(key->owner, w->owner) == 0))
		return is_confirmed(w, key, error) && lose_group(w, known, key, error);
	other_server = strcmp(key->instance, instance) != 0;
	if (!is_alive(w, key, other_server, &alive, &undecided, error))
		return false;
	if (alive && other_server)
		stay_fenced(w, psprintf("%s, which is at work", key->instance));
	if (alive || undecided)
	{
		pp_redis_error_set(error, PP_REDIS_CLASS_MOMENT, "owner_connected",
						   "the owner of consumer group \"%s\" (%s) is still connected",
						   w->def->group, key->instance);
		return false;
	}
	return true;
}

/*
 * Has the database gone back in time?  Redis knows of batches of ours that the ledger has not, or the
 * key was written by this very pipeline, but not by what we remember of it: another copy of it has
 * read since, or the original.  What another pipeline has read is in its own tables.
 */
static bool
has_gone_back(PpWorker *w, const PpOwnerKnown *known, const PpOwnerKey *key)
{
	PpOwnerComparison comparison = {.key = key};

	/* It has never owned it, as far as it knows, but the key knows of its first epoch. */
	if (known->nonce[0] == '\0')
		return key->begin_known;
	if (key->nonce[0] != '\0' && (strcmp(key->owner, w->owner) == 0 || key->is_original) &&
		!is_our_nonce(known, key))
		return true;
	pp_worker_transact(w, pp_owner_compare_sequences, &comparison);
	return comparison.went_back;
}

/*
 * A group that others have read is ours now, and nothing of what they read is on record here: it is in
 * another database, a live one, or the one that this one was restored from, or went with the extension before.
 */
static void
warn_no_record(PpWorker *w, const char *owner)
{
	ereport(WARNING,
			(errmsg("postpipe pipeline \"%s\": consumer group \"%s\" was read by %s, and this "
					"database has no record of what was read",
					w->def->name, w->def->group, owner),
			 errdetail("All of it is taken for settled."),
			 errhint("If rows of it are missing here, as after a dump was restored, pause the "
					 "pipeline and run postpipe_rewind('%s', ...): it applies entries again.",
					 w->def->name)));
}

/*
 * May it be read although the key could not be written?  Under maxmemory Redis refuses that, and
 * serves reads and acknowledgements, which give memory back.  Only by the server that wrote the key
 * last: whether another one with the same nonce moves could not be seen.  And what is to be made
 * good could not be noted.
 */
static bool
may_keep(PpWorker *w, const PpOwnerKnown *known, const PpOwnerKey *key, const PpRedisError *error)
{
	char instance[sizeof(key->instance)];

	pp_owner_write_instance(instance, sizeof(instance));
	return strcmp(error->code, "redis_oom") == 0 && !w->went_back && known->nonce[0] != '\0' &&
		   strcmp(key->nonce, known->nonce) == 0 && strcmp(key->instance, instance) == 0;
}

/*
 * pp_owner_claim
 *		Makes the group ours, or sees that it still is.  False with *error: it could not be done now.
 *		Does not return while the group is somebody else's.
 */
bool
pp_owner_claim(PpWorker *w, PpRedisError *error)
{
	PpOwnerKnown known;
	PpOwnerKey key;

	if (!pp_owner_key_get(w, &key, error))
		return false;
	if (w->nonce[0] != '\0' && strcmp(key.nonce, w->nonce) == 0)
	{
		w->redis_is_older |= key.turns < w->turns;
		w->turns = key.turns;
		return pp_owner_key_note_connection(w, &key, error);
	}
	known.cxt = w->batches[0].cxt;
	known.owner = key.owner;
	pp_worker_transact(w, pp_owner_prepare, &known);
	/* Durable before it is written there. */
	if (!XLogRecPtrIsInvalid(XactLastCommitEnd))
		XLogFlush(XactLastCommitEnd);
	if (!check_right(w, &known, &key, error))
		return false;
	w->went_back |= has_gone_back(w, &known, &key);
	w->redis_is_older |= key.nonce[0] != '\0' && strstr(known.past_nonces, key.nonce) != NULL;
	w->turns = key.turns;
	w->begin_known = key.begin_known;
	w->begin = key.begin;
	if (pp_owner_key_write(w, known.next_nonce, &key, error))
	{
		pp_worker_transact(w, pp_owner_note_claimed, NULL);
		strlcpy(w->nonce, known.next_nonce, sizeof(w->nonce));
		if (known.nonce[0] == '\0' && key.others_began && !w->went_back &&
			(known.take_over || strcmp(key.owner, w->owner) == 0))
			warn_no_record(w, key.owner);
	}
	else if (may_keep(w, &known, &key, error))
	{
		w->client_noted = false;
		memset(error, 0, sizeof(*error));
		strlcpy(w->nonce, known.nonce, sizeof(w->nonce));
	}
	else
		return false;
	LWLockAcquire(&w->pipe->lock, LW_EXCLUSIVE);
	strlcpy(w->pipe->nonce, w->nonce, sizeof(w->pipe->nonce));
	w->pipe->fenced = false;
	LWLockRelease(&w->pipe->lock);
	/* What an earlier pipeline of this name has left there. */
	return known.nonce[0] != '\0' || w->went_back || pp_owner_reset_sequences(w, error);
}

/* Another worker takes the nonce that worker 1 has written. */
void
pp_owner_join(PpWorker *w)
{
	LWLockAcquire(&w->pipe->lock, LW_SHARED);
	strlcpy(w->nonce, w->pipe->nonce, sizeof(w->nonce));
	LWLockRelease(&w->pipe->lock);
}

/*
 * Queues a look at the nonce, and the sign that we move; before a read.  The sign is the connection,
 * until that is in the key.
 */
void
pp_owner_send_check(PpWorker *w)
{
	if (pp_my_proc->worker == 1 && w->client_noted)
		pp_redis_send(w->redis, "HINCRBY %s turns 1", w->owner_key);
	else if (pp_my_proc->worker == 1)
		pp_redis_send(w->redis, "HSET %s client %lld", w->owner_key,
					  (long long) pp_redis_client_id(w->redis));
	pp_redis_send(w->redis, "HGET %s nonce", w->owner_key);
}

/* Receives it.  False with no error: the pipeline has to be opened again; it may be fenced then. */
bool
pp_owner_receive_check(PpWorker *w, PpRedisError *error)
{
	PpReply *reply;

	if (pp_my_proc->worker == 1)
	{
		if ((reply = pp_consume_receive_any(w, error)) == NULL)
			return false;
		if (w->client_noted && reply->type == PP_REPLY_INTEGER)
			w->turns = reply->integer;
		w->client_noted |= reply->type == PP_REPLY_INTEGER;
	}
	reply = pp_consume_receive_any(w, error);
	if (reply == NULL)
		return false;
	/* An error is one that the read will have as well. */
	if (reply->type == PP_REPLY_ERROR ||
		(pp_reply_is(reply, PP_REPLY_STRING, 1) && strcmp(reply->str, w->nonce) == 0))
		return true;
	w->group_open = false;
	return false;
}

/*
 * pp_owner_give_back
 *		The pipeline is dropped: whoever wants the group may have it.  On a new connection, because
 *		Redis looks at nothing that comes after a blocking read.  If it cannot be done in a moment, a
 *		pipeline of this server still sees that the owner is gone.
 */
void
pp_owner_give_back(PpWorker *w)
{
	PpReply *reply;

	if (!pp_redis_start(w->redis, &w->url) ||
		pp_redis_receive(w->redis, NULL, GIVE_BACK_MS, PP_WAIT_REDIS_CONNECT) == PP_REDIS_FAILED ||
		!pp_redis_is_open(w->redis))
		return;
	pp_consume_begin_replies(w);
	pp_redis_send(w->redis, "EVAL %s 1 %s %s", give_back_script, w->owner_key, w->nonce);
	(void) pp_redis_receive(w->redis, &reply, GIVE_BACK_MS, PP_WAIT_REDIS_REPLY);
}
