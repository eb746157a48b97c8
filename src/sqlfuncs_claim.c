/*
 * sqlfuncs_claim.c
 *		postpipe_claim(): what is pending for others becomes pending for worker 1, which applies it.
 *
 * Redis hands entries over page by page, at once and not at commit: they are pending before and
 * after, so nothing hangs on the transaction.  What turns out to be gone from the stream does: it is
 * recorded as lost in this transaction and acknowledged when that is committed.  The XACK is written
 * into the connection's buffer before and sent by a callback at commit, where nothing may fail any
 * more; if it does not get through, the next call finds these entries on record and acknowledges
 * them.  It passes the same barrier as a worker's XACK (durable.c): the commit waits as the workers
 * do, whatever the session has set, and when that wait was cancelled nothing is sent.
 */
#include "sqlfuncs.h"

#include "access/xact.h"
#include "replication/message.h"
#include "miscadmin.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"

#include "compat.h"
#include "consumer.h"
#include "durable.h"
#include "guc.h"
#include "held.h"
#include "ledger.h"
#include "stats.h"

#define ACK_PAGE 1000

PG_FUNCTION_INFO_V1(postpipe_claim);

/* A connection with an XACK to be sent at commit.  In TopTransactionContext, as the connection is by then. */
typedef struct LateAck
{
	struct LateAck *next;
	SubTransactionId subxact;
	PpRedis *conn;
	PpPipe *pipe;
	int level; /* of synchronous_commit, that the commit must have reached */
	int lost;
} LateAck;

static LateAck *late_acks;

/* What a call works with. */
typedef struct Claim
{
	PpExtension ext;
	PpPipeline *p;
	PpPipe *pipe; /* NULL: it has no slot, so no worker either */
	PpRedis *conn;
	int64 min_idle;
	char worker[PP_CONSUMER_LEN]; /* the consumer of worker 1 */
	int64 claimed;
	PpId *gone;
	int num_gone;
	int max_gone;
} Claim;

static void
at_xact_end(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_COMMIT)
		for (LateAck *late = late_acks; late != NULL; late = late->next)
		{
			if (pp_durable_is_reached(XactLastCommitEnd, late->level))
				(void) pp_redis_flush(late->conn);
			else
				pp_redis_close(late->conn);
			if (late->pipe != NULL)
				pp_count(late->pipe, PP_COUNT_LOST, late->lost);
		}
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT || event == XACT_EVENT_PREPARE)
		late_acks = NULL;
}

/* What a subtransaction recorded goes with it. */
static void
at_subxact_end(SubXactEvent event, SubTransactionId subxact, SubTransactionId parent, void *arg)
{
	LateAck **link = &late_acks;

	while (*link != NULL)
	{
		LateAck *late = *link;

		if (late->subxact == subxact && event == SUBXACT_EVENT_COMMIT_SUB)
			late->subxact = parent;
		if (late->subxact == subxact && event == SUBXACT_EVENT_ABORT_SUB)
		{
			pp_redis_close(late->conn);
			*link = late->next;
		}
		else
			link = &late->next;
	}
}

static void
set_commit_level(const char *level)
{
	(void) set_config_option("synchronous_commit", level, PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_LOCAL, true, 0, false);
}

/* Lets the commit wait as the pipeline's workers do, or longer, if the session does; returns the level. */
static int
make_commit_wait(const Claim *c)
{
	static const char *const levels[] = {"off", "local", "remote_write", "on", "remote_apply"};
	char *option = pp_pipeline_option(c->p, "synchronous_commit");
	int own = synchronous_commit;
	int level = c->pipe != NULL ? c->pipe->commit_level : SYNCHRONOUS_COMMIT_ON;

	if (option != NULL)
	{
		set_commit_level(option);
		level = synchronous_commit;
	}
	level = Max(level, own);
	set_commit_level(levels[level]);
	/* A commit that has written nothing, because all is on record, would wait for nobody. */
	(void) GetCurrentTransactionId();
	(void) pp_log_marker();
	/* Off still means that an XACK waits for the flush. */
	ForceSyncCommit();
	return level;
}

static void
send_at_commit(Claim *c, int lost)
{
	static bool registered = false;
	LateAck *late = MemoryContextAllocZero(TopTransactionContext, sizeof(LateAck));

	if (!registered)
	{
		RegisterXactCallback(at_xact_end, NULL);
		RegisterSubXactCallback(at_subxact_end, NULL);
	}
	registered = true;
	/* Nothing else is sent on it from here on. */
	for (int i = 0; i < c->num_gone; i += ACK_PAGE)
		pp_stream_send_ack(c->conn, c->p->stream, c->p->group, c->gone + i,
						   Min(c->num_gone - i, ACK_PAGE));
	late->subxact = GetCurrentSubTransactionId();
	late->conn = c->conn;
	late->pipe = c->pipe;
	late->level = make_commit_wait(c);
	late->lost = lost;
	pp_redis_keep(late->conn, TopTransactionContext);
	late->next = late_acks;
	late_acks = late;
}

static int
compare_ids(const void *a, const void *b)
{
	return pp_id_compare(*(const PpId *) a, *(const PpId *) b);
}

/* Records what is gone as lost, unless it is on record, and has it acknowledged at commit. */
static void
settle_gone(FunctionCallInfo fcinfo, Claim *c)
{
	qsort(c->gone, c->num_gone, sizeof(PpId), compare_ids);
	/* A worker may be about to record the same ones. */
	pp_function_lock_same(fcinfo, &c->ext, c->p, AccessExclusiveLock);
	send_at_commit(c, pp_ledger_lose(&c->ext, c->p->name, c->gone, c->num_gone));
}

static void
keep_gone(Claim *c, PpClaimed *page)
{
	/* Those that a worker has in hand stay where they are. */
	if (c->pipe != NULL)
		page->num_gone = pp_held_leave_out(c->pipe, page->gone, page->num_gone);
	if (c->num_gone + page->num_gone > c->max_gone)
	{
		c->max_gone = 2 * (c->num_gone + page->num_gone);
		c->gone = c->gone ? repalloc_huge(c->gone, c->max_gone * sizeof(PpId))
						  : palloc(c->max_gone * sizeof(PpId));
	}
	memcpy(c->gone + c->num_gone, page->gone, page->num_gone * sizeof(PpId));
	c->num_gone += page->num_gone;
}

/* Hands over what is pending for one consumer. */
static void
claim_from(Claim *c, const PpString *from)
{
	PpClaimed page = {0};
	PpRedisError error;

	do
	{
		PpReply *reply;

		pp_stream_send_claim(c->conn, c->p->stream, c->p->group, c->worker, from, c->min_idle,
							 page.last, PP_CLAIM_PAGE);
		reply = pp_function_reply(c->conn);
		if (!pp_stream_parse_claim(reply, &page, &error))
			pp_function_fail(reply);
		c->claimed += page.claimed;
		keep_gone(c, &page);
		/* Page by page, because an error or a cancel takes none of it back. */
		if (page.claimed > 0 && c->pipe != NULL)
			pp_pipe_set_rescan(c->pipe, true);
	} while (page.listed >= PP_CLAIM_PAGE);
}

/* Throws when entries of this consumer must not be claimed, because it has a worker. */
static void
check_consumer(const Claim *c, const char *name, PpString consumer, PpConsumerKind kind)
{
	int pid = pp_consumer_pid(consumer);

	if (kind == PP_CONSUMER_ALIVE || pid != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("consumer \"%s\" belongs to a worker of a pipeline", name),
				 pid > 0 ? errdetail("The worker runs, with PID %d.", pid)
						 : errdetail("The worker settles what is pending for it when it runs."),
				 errhint("Entries can be claimed from foreign consumers, and from consumers of "
						 "pipelines that were dropped.")));
}

/* Is it one to claim from?  Without a name: foreign ones and dead ones. */
static bool
is_wanted(const Claim *c, List *pipelines, const char *only, PpString consumer)
{
	PpConsumerKind kind;

	if (only != NULL && !pp_function_names(consumer, only))
		return false;
	kind = pp_consumer_kind(pipelines, c->p, consumer);
	if (only != NULL)
	{
		check_consumer(c, only, consumer, kind);
		return true;
	}
	return pp_consumer_has_no_worker(kind, consumer);
}

/* Worker 1 may be waiting for new entries, in Redis: an empty reply ends that. */
static void
wake_worker(Claim *c)
{
	int pid = pp_proc_worker_pid(MyDatabaseId, c->p->name, 1);
	int64 client = pp_proc_redis_client(pid);

	if (client == 0)
		return;
	/* A user who may not do that has to wait for some seconds. */
	pp_redis_send(c->conn, "CLIENT UNBLOCK %lld", (long long) client);
	(void) pp_function_reply(c->conn);
}

static void
claim_all(Claim *c, const char *only)
{
	List *pipelines = pp_pipeline_list(&c->ext);
	bool found = only == NULL;
	PpConsumer *consumers;
	int n;

	consumers = pp_function_consumers(c->conn, c->p, &n);
	for (int i = 0; i < n; i++)
	{
		if (!is_wanted(c, pipelines, only, consumers[i].name))
			continue;
		found = true;
		if (consumers[i].pending != 0)
			claim_from(c, &consumers[i].name);
	}
	if (!found)
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
						errmsg("consumer group \"%s\" has no consumer \"%s\"", c->p->group, only),
						errhint("SELECT consumer FROM postpipe_consumers('%s') shows those that it "
								"has.",
								c->p->name)));
	if (c->claimed > 0)
		wake_worker(c);
}

/* postpipe_claim(pipeline, consumer, min_idle): how many entries worker 1 has to apply now. */
Datum
postpipe_claim(PG_FUNCTION_ARGS)
{
	char *only = pp_text_arg(fcinfo, 1);
	Claim c = {{0}};

	pp_require_preload();
	PreventCommandIfReadOnly("postpipe_claim()");
	pp_require_read_committed("postpipe_claim()");
	pp_require_extension(&c.ext);
	c.p = pp_require_pipeline(&c.ext, pp_required_text_arg(fcinfo, 0, "pipeline"));
	pp_require_group(&c.ext, c.p);
	c.min_idle = pp_interval_arg(fcinfo, 2, "min_idle",
								 pp_pipeline_option_ms(c.p, "claim_idle", pp_guc_claim_idle));
	c.pipe = pp_pipe_find(MyDatabaseId, c.p->name);
	pp_consumer_name(c.worker, c.p->name, 1);
	c.conn = pp_function_connect(c.p);
	claim_all(&c, only);
	if (c.num_gone > 0)
		settle_gone(fcinfo, &c);
	else
		pp_redis_close(c.conn);
	PG_RETURN_INT64(c.claimed);
}
