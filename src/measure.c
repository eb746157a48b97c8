/*
 * measure.c
 *		Pending and lag of the pipelines of a database, measured in Redis.
 *
 * The supervisor's part that talks to Redis.  It never waits for an answer: pp_measure_step() does
 * what can be done now, pp_measure_wait() waits for the latch, the socket, or what is due.  A round
 * asks about all pipelines of a Redis server in one write.  While entries move it measures every
 * second, else every few seconds.  When Redis does not answer, what it measured before is forgotten: a
 * number is exact or absent, and why is in postpipe_events and postpipe_workers.
 */
#include "measure.h"

#include "access/xlog.h"
#include "miscadmin.h"
#include "utils/memutils.h"

#include "backoff.h"
#include "held.h"
#include "pipeline.h"
#include "redis.h"
#include "stats.h"
#include "stream.h"
#include "trimmed.h"

#define BUSY_MS            1000
#define IDLE_MS            5000
#define ANSWER_MS          5000
#define REPLY_LIMIT        ((size_t) 64 * 1024 * 1024)
#define SKIMMED_BYTES_A_MS 4096 /* XINFO STREAM shows two entries: large ones, not so often */
#define MAX_IDLE_MS        30000

/* One pipeline in a round. */
typedef struct Question
{
	PpPipe *pipe;
	uint32 generation; /* of the slot: it may be another pipeline's when the answer comes */
	char group[PP_STREAM_LEN];
	uint64 settled;
	int64 unacknowledged;
	PpReply *replies[PP_STREAM_FACT_REPLIES + 1]; /* the last one: how much memory it takes */
	int wanted;
	int count;
} Question;

/* A Redis server, and the pipelines that read from it. */
typedef struct Server
{
	char name[NAMEDATALEN]; /* empty: postpipe.redis_url */
	Oid owner;              /* of the pipelines: who logs in */
	List *pipelines;        /* in this step */
	MemoryContext cxt;
	MemoryContext round_cxt;
	PpRedis *redis;
	PpRedisUrl url;
	PpBackoff backoff;
	Question *questions; /* of the round that is under way */
	int n;
	int answered;
	bool asking;
	bool memory_refused; /* on this connection */
	bool busy;           /* something moved since the round before */
	uint64 received;     /* bytes, when it was looked at last */
	PpSteady next_at;
	PpSteady deadline; /* for its answer; unset: none is expected */
} Server;

struct PpMeasure
{
	MemoryContext cxt;
	List *servers; /* Server */
};

PpMeasure *
pp_measure_create(MemoryContext parent)
{
	PpMeasure *m = MemoryContextAllocZero(parent, sizeof(PpMeasure));

	m->cxt = parent;
	return m;
}

static Server *
find_server(const PpMeasure *m, const PpPipeline *p)
{
	ListCell *lc;

	foreach (lc, m->servers)
	{
		Server *server = lfirst(lc);

		if (strcmp(server->name, p->redis ? p->redis : "") == 0 &&
			(p->redis == NULL || server->owner == p->owner))
			return server;
	}
	return NULL;
}

static Server *
add_server(PpMeasure *m, const PpPipeline *p)
{
	MemoryContext old = MemoryContextSwitchTo(m->cxt);
	MemoryContext cxt = AllocSetContextCreate(m->cxt, "postpipe measure", ALLOCSET_DEFAULT_SIZES);
	Server *server = MemoryContextAllocZero(cxt, sizeof(Server));
	char name[PP_CONSUMER_LEN];

	server->cxt = cxt;
	server->round_cxt = AllocSetContextCreate(cxt, "postpipe round", ALLOCSET_DEFAULT_SIZES);
	if (p->redis != NULL)
	{
		strlcpy(server->name, p->redis, sizeof(server->name));
		server->owner = p->owner;
	}
	snprintf(name, sizeof(name), "postpipe:" UINT64_FORMAT ":%u:supervisor", GetSystemIdentifier(),
			 MyDatabaseId);
	server->redis = pp_redis_create(cxt, name);
	pp_backoff_init(&server->backoff, 1000, 10000);
	m->servers = lappend(m->servers, server);
	MemoryContextSwitchTo(old);
	return server;
}

static void
forget(const PpPipeline *p)
{
	PpPipe *pipe = pp_pipe_find(MyDatabaseId, p->name);

	if (pipe == NULL)
		return;
	LWLockAcquire(&pipe->lock, LW_EXCLUSIVE);
	pipe->measured.at = 0;
	LWLockRelease(&pipe->lock);
}

/* Where a user looks who finds no numbers. */
static void
say(const char *what, const PpRedisError *error)
{
	char message[2 * PP_REASON_LEN];

	snprintf(message, sizeof(message), "%s are not known: %s", what, error->message);
	pp_report_error(NULL, pp_redis_error_sqlstate(error), message);
}

/* The connection has failed. */
static void
give_up(Server *s)
{
	ListCell *lc;

	say("lag and pending", pp_redis_error(s->redis));
	pp_redis_close(s->redis);
	s->asking = false;
	s->deadline = (PpSteady){0};
	s->next_at = pp_steady_in(pp_backoff_next(&s->backoff));
	foreach (lc, s->pipelines)
		forget(lfirst(lc));
}

static void
ask(Server *s)
{
	ListCell *lc;

	MemoryContextReset(s->round_cxt);
	pp_redis_reply_target(s->redis, s->round_cxt, REPLY_LIMIT);
	pp_redis_skim(s->redis, true);
	s->questions =
		MemoryContextAllocZero(s->round_cxt, list_length(s->pipelines) * sizeof(Question));
	s->n = 0;
	s->answered = 0;
	foreach (lc, s->pipelines)
	{
		PpPipeline *p = lfirst(lc);
		PpPipe *pipe = pp_pipe_find(MyDatabaseId, p->name);
		Question *q = &s->questions[s->n];

		if (pipe == NULL)
			continue;
		s->n++;
		q->pipe = pipe;
		q->generation = pipe->generation;
		q->settled = pp_pipe_settled(pipe);
		q->unacknowledged = pp_pipe_unacknowledged(pipe);
		strlcpy(q->group, p->group, sizeof(q->group));
		q->wanted = PP_STREAM_FACT_REPLIES;
		pp_stream_send_facts(s->redis, p->stream, p->group);
		if (s->memory_refused)
			continue;
		q->wanted++;
		pp_redis_send(s->redis, "MEMORY USAGE %s", p->stream);
	}
	s->asking = s->n > 0;
	s->busy = false;
	s->deadline = pp_steady_in(ANSWER_MS);
}

static void
add_sample(PpPipe *pipe, uint64 settled)
{
	PpRateSample *sample = &pipe->samples[pipe->sample_next];

	sample->at = pp_steady_now();
	sample->settled = settled;
	pipe->sample_next = (pipe->sample_next + 1) % PP_RATE_SAMPLES;
	pipe->sample_count = Min(pipe->sample_count + 1, PP_RATE_SAMPLES);
}

/* -1: the stream is not there, or Redis does not tell us. */
static int64
get_memory(Server *s, const Question *q)
{
	const PpReply *reply = q->wanted > PP_STREAM_FACT_REPLIES ? q->replies[q->wanted - 1] : NULL;

	if (reply == NULL)
		return -1;
	s->memory_refused |= reply->type == PP_REPLY_ERROR;
	return reply->type == PP_REPLY_INTEGER ? reply->integer : -1;
}

/* All replies about one pipeline are there. */
static void
answer(Server *s, Question *q)
{
	PpStreamFacts facts;
	PpRedisError error;
	PpMeasured result = {0};
	uint64 settled = pp_pipe_settled(q->pipe);

	if (pp_stream_parse_facts(q->replies, q->group, &facts, &error))
	{
		result.at = GetCurrentTimestamp();
		result.taken_at = pp_steady_now();
		result.pending = facts.group_exists ? facts.pending : -1;
		result.lag = pp_trimmed_lag(q->pipe, pp_redis_run(s->redis), &facts);
		result.bytes = get_memory(s, q);
		result.consumers = facts.group_exists ? facts.consumers : -1;
		result.standing = (PpStanding){facts.last_delivered, facts.added, facts.length};
		result.lag_seconds = result.lag == 0 ? 0 : -1;
		if (result.lag > 0 && !pp_id_is_zero(facts.last_delivered) &&
			facts.last_generated.ms >= facts.last_delivered.ms)
			result.lag_seconds =
				(double) (facts.last_generated.ms - facts.last_delivered.ms) / 1000;
		else if (result.lag > 0)
			result.lag_seconds = pp_id_age(facts.first_entry, result.at);
		result.oldest_pending = facts.oldest_pending;
		result.unacknowledged = pp_pipe_unacknowledged(q->pipe);
		if (result.unacknowledged != q->unacknowledged)
			result.unacknowledged = -1;
		if (result.pending == 0)
			result.unacknowledged = 0;
		result.settled = settled;
		result.still = settled == q->settled;
	}
	if (q->pipe->generation != q->generation)
		return;
	if (result.at == 0)
		say(psprintf("lag and pending of pipeline \"%s\"", q->pipe->name), &error);
	LWLockAcquire(&q->pipe->lock, LW_EXCLUSIVE);
	s->busy |= settled != q->pipe->measured.settled || result.pending > 0 || result.lag > 0;
	q->pipe->measured = result;
	add_sample(q->pipe, settled);
	LWLockRelease(&q->pipe->lock);
}

/* Takes the replies that are there. Returns false when the connection failed. */
static bool
collect(Server *s)
{
	PpReply *reply;
	PpRedisResult result;

	while ((result = pp_redis_poll(s->redis, &reply)) == PP_REDIS_REPLY)
	{
		Question *q = &s->questions[s->answered];

		q->replies[q->count++] = reply;
		if (q->count < q->wanted)
			continue;
		answer(s, q);
		if (++s->answered == s->n)
		{
			s->asking = false;
			s->deadline = (PpSteady){0};
			pp_backoff_reset(&s->backoff);
			s->next_at = pp_steady_in(
				Min((s->busy ? BUSY_MS : IDLE_MS) + pp_redis_skimmed(s->redis) / SKIMMED_BYTES_A_MS,
					MAX_IDLE_MS));
		}
	}
	/* A long answer may take longer, as long as it comes. */
	if (s->asking && pp_redis_received(s->redis) != s->received)
		s->deadline = pp_steady_in(ANSWER_MS);
	s->received = pp_redis_received(s->redis);
	return result != PP_REDIS_FAILED;
}

static bool
url_changed(Server *s)
{
	PpRedisUrl url;

	(void) pp_pipeline_redis(linitial(s->pipelines), &url);
	if (memcmp(&url, &s->url, sizeof(url)) == 0)
		return false;
	s->url = url;
	return true;
}

/* Does what can be done without waiting for one server.  Returns in how many ms something is due. */
static long
step(Server *s)
{
	long left;

	if (pp_steady_is_set(s->deadline) && pp_steady_is_due(s->deadline))
	{
		(void) pp_redis_fail(s->redis, PP_REDIS_CLASS_MOMENT, "redis_timeout",
							 "Redis did not answer within %d ms", ANSWER_MS);
		give_up(s);
	}
	if (!pp_steady_is_set(s->deadline) && pp_steady_is_due(s->next_at))
	{
		/* url_changed() reads the password file, so it is asked once a round, not at each turn. */
		if (url_changed(s))
			pp_redis_close(s->redis);
		s->deadline = pp_steady_in(ANSWER_MS);
		if (!pp_redis_is_open(s->redis))
		{
			s->memory_refused = false;
			if (!pp_redis_start(s->redis, &s->url))
				give_up(s);
		}
	}
	if (pp_steady_is_set(s->deadline))
	{
		if (!collect(s))
			give_up(s);
		else if (!s->asking && pp_steady_is_set(s->deadline) && pp_redis_is_open(s->redis))
		{
			ask(s);
			if (!s->asking)
			{
				s->deadline = (PpSteady){0};
				s->next_at = pp_steady_in(IDLE_MS);
			}
			else if (!collect(s))
				give_up(s);
		}
	}
	left = pp_steady_left(pp_steady_is_set(s->deadline) ? s->deadline : s->next_at);
	return Max(left, 1);
}

/* Puts each pipeline to its server; one that cannot be used is not asked. */
static void
assign(PpMeasure *m, List *pipelines)
{
	ListCell *lc;

	foreach (lc, pipelines)
	{
		PpPipeline *p = lfirst(lc);
		Server *server;

		if (p->redis_error != NULL)
		{
			forget(p);
			continue;
		}
		server = find_server(m, p);
		if (server == NULL)
			server = add_server(m, p);
		server->pipelines = lappend(server->pipelines, p);
	}
}

/*
 * pp_measure_step
 *		Does what can be done without waiting.  Returns in how many ms something is due; -1: nothing is.
 */
long
pp_measure_step(PpMeasure *m, List *pipelines)
{
	long due = -1;
	long next;
	ListCell *lc;

	assign(m, pipelines);
	foreach (lc, m->servers)
	{
		Server *server = lfirst(lc);

		if (server->pipelines == NIL)
		{
			m->servers = foreach_delete_current(m->servers, lc);
			MemoryContextDelete(server->cxt);
			continue;
		}
		next = step(server);
		due = due < 0 ? next : Min(due, next);
		list_free(server->pipelines);
		server->pipelines = NIL;
	}
	return due;
}

/*
 * pp_measure_wait
 *		Waits for the latch, for Redis, until due_ms (-1: nothing is due) or timeout_ms (-1: no
 *		limit) have passed.  Returns whether the latch was set.
 */
bool
pp_measure_wait(PpMeasure *m, long timeout_ms, long due_ms)
{
	long wait = due_ms < 0 ? timeout_ms : timeout_ms < 0 ? due_ms : Min(timeout_ms, due_ms);
	PpRedis **conns = palloc(Max(list_length(m->servers), 1) * sizeof(PpRedis *));
	int n = 0;
	bool woken;
	ListCell *lc;

	foreach (lc, m->servers)
		if (due_ms >= 0 && pp_steady_is_set(((Server *) lfirst(lc))->deadline))
			conns[n++] = ((Server *) lfirst(lc))->redis;
	woken = pp_redis_wait_any(conns, n, wait, PP_WAIT_SUPERVISOR_MAIN);
	pfree(conns);
	return woken;
}
