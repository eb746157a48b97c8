/*
 * consumer.c
 *		Whose is a consumer of a group?
 *
 * A worker's consumer is called postpipe:<system identifier>:<database OID>:<pipeline>:<n>.  What is
 * pending for it is its own business as long as it may come back: it knows from its own ledger what
 * is settled, and nobody else can know.  So only what will surely not come back is dead: a paused
 * pipeline, a worker that is being restarted, or a database whose supervisor has not started yet
 * are not.  A pipeline that lost the group to another one, and is fenced, will not come back: it has
 * acknowledged what it has settled.
 */
#include "consumer.h"

#include "access/xlog.h"
#include "miscadmin.h"
#include "utils/syscache.h"

#include "shmem.h"
#include "stats.h"

#define PREFIX "postpipe:"

/* What a consumer's name says. */
typedef struct WorkerName
{
	Oid dboid;
	char pipeline[PP_PIPELINE_LEN];
	int worker;
} WorkerName;

/* The name of the consumer of a worker of this database, into dst[PP_CONSUMER_LEN]. */
void
pp_consumer_name(char *dst, const char *pipeline, int worker)
{
	snprintf(dst, PP_CONSUMER_LEN, PREFIX UINT64_FORMAT ":%u:%s:%d", GetSystemIdentifier(),
			 MyDatabaseId, pipeline, worker);
}

/* Is it one of this cluster? */
bool
pp_consumer_is_ours(PpString name)
{
	char prefix[64];
	size_t len = snprintf(prefix, sizeof(prefix), PREFIX UINT64_FORMAT ":", GetSystemIdentifier());

	return name.len > len && memcmp(name.data, prefix, len) == 0;
}

/* Takes the name of a consumer of this cluster apart. Returns false when no worker has such a name. */
static bool
parse(PpString consumer, WorkerName *name)
{
	char text[PP_CONSUMER_LEN];
	char format[32];
	char again[PP_CONSUMER_LEN];
	unsigned long long system;

	if (consumer.len >= sizeof(text) || !pp_consumer_is_ours(consumer))
		return false;
	memcpy(text, consumer.data, consumer.len);
	text[consumer.len] = '\0';
	snprintf(format, sizeof(format), PREFIX "%%llu:%%u:%%%d[^:]:%%d", PP_PIPELINE_LEN - 1);
	if (sscanf(text, format, &system, &name->dboid, name->pipeline, &name->worker) != 4)
		return false;
	/* Nothing is left over, and numbers are as we write them. */
	snprintf(again, sizeof(again), PREFIX "%llu:%u:%s:%d", system, name->dboid, name->pipeline,
			 name->worker);
	return strlen(text) == consumer.len && strcmp(text, again) == 0 && name->worker > 0;
}

/* The number of the worker of this pipeline, in this database, whose consumer it is; 0: it is another one's. */
int
pp_consumer_worker(PpString name, const char *pipeline)
{
	WorkerName n;

	return parse(name, &n) && n.dboid == MyDatabaseId && strcmp(n.pipeline, pipeline) == 0
			   ? n.worker
			   : 0;
}

static bool
is_fenced(const WorkerName *name)
{
	PpPipe *pipe = pp_pipe_find(name->dboid, name->pipeline);

	return pipe != NULL && pp_pipe_is_fenced(pipe);
}

/*
 * The process of the worker whose consumer this is: its PID, -1 while it is on its way, 0: none, or
 * one that is fenced and uses no consumer.
 */
int
pp_consumer_pid(PpString name)
{
	WorkerName n;

	return parse(name, &n) && !is_fenced(&n) ? pp_proc_worker_pid(n.dboid, n.pipeline, n.worker)
											 : 0;
}

/* A worker of this database: what do the definitions say? */
static PpConsumerKind
kind_here(List *pipelines, const PpPipeline *reader, const WorkerName *name)
{
	ListCell *lc;

	foreach (lc, pipelines)
	{
		const PpPipeline *p = lfirst(lc);

		if (strcmp(p->name, name->pipeline) == 0 && name->worker <= p->workers &&
			strcmp(p->stream, reader->stream) == 0 && strcmp(p->group, reader->group) == 0 &&
			!is_fenced(name))
			return PP_CONSUMER_ALIVE;
	}
	return PP_CONSUMER_DEAD;
}

/*
 * A worker of another database, whose definitions we cannot read: its supervisor keeps a slot for
 * each of its pipelines.  In this order: a supervisor that leaves gives the slots back first.
 */
static PpConsumerKind
kind_elsewhere(const WorkerName *name)
{
	if (!SearchSysCacheExists1(DATABASEOID, ObjectIdGetDatum(name->dboid)))
		return PP_CONSUMER_DEAD;
	if (pp_pipe_find(name->dboid, name->pipeline) != NULL)
		return is_fenced(name) ? PP_CONSUMER_DEAD : PP_CONSUMER_ALIVE;
	return pp_supervisor_has_looked(name->dboid) ? PP_CONSUMER_DEAD : PP_CONSUMER_UNKNOWN;
}

/*
 * pp_consumer_kind
 *		Whose is this consumer in the group that `reader` reads?  `pipelines` are the definitions of
 *		this database.  In a transaction.  A worker that is dead by its definition may still be
 *		there, to leave in a moment: pp_consumer_pid() tells.
 */
PpConsumerKind
pp_consumer_kind(List *pipelines, const PpPipeline *reader, PpString consumer)
{
	WorkerName name;

	if (!pp_consumer_is_ours(consumer))
		return PP_CONSUMER_FOREIGN;
	if (!parse(consumer, &name))
		return PP_CONSUMER_DEAD;
	return name.dboid == MyDatabaseId ? kind_here(pipelines, reader, &name) : kind_elsewhere(&name);
}

/* Has this consumer, of this kind, no worker of ours that settles what is pending for it? */
bool
pp_consumer_has_no_worker(PpConsumerKind kind, PpString consumer)
{
	return kind == PP_CONSUMER_FOREIGN ||
		   (kind == PP_CONSUMER_DEAD && pp_consumer_pid(consumer) == 0);
}
