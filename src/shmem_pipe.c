/*
 * shmem_pipe.c
 *		Hand out the slots of pipelines in shared memory.
 */
#include "shmem.h"

static PpPipe *
find_pipe_locked(Oid dboid, const char *name)
{
	for (int i = 0; i < PP_MAX_PIPELINES; i++)
	{
		PpPipe *pipe = &pp_shared->pipes[i];

		if (pipe->in_use && pipe->dboid == dboid && strcmp(pipe->name, name) == 0)
			return pipe;
	}
	return NULL;
}

/* The slot of a pipeline, or NULL. It stays the pipeline's until a supervisor releases it. */
PpPipe *
pp_pipe_find(Oid dboid, const char *name)
{
	PpPipe *pipe;

	LWLockAcquire(&pp_shared->lock, LW_SHARED);
	pipe = find_pipe_locked(dboid, name);
	LWLockRelease(&pp_shared->lock);
	return pipe;
}

/* The slot of a pipeline, a new one with zeroed numbers where it has none; NULL when all are taken. */
PpPipe *
pp_pipe_reserve(Oid dboid, const char *name)
{
	PpPipe *pipe;

	LWLockAcquire(&pp_shared->lock, LW_EXCLUSIVE);
	pipe = find_pipe_locked(dboid, name);
	for (int i = 0; i < PP_MAX_PIPELINES && pipe == NULL; i++)
	{
		PpPipe *candidate = &pp_shared->pipes[i];

		if (candidate->in_use)
			continue;
		pipe = candidate;
		LWLockAcquire(&pipe->lock, LW_EXCLUSIVE);
		memset((char *) pipe + offsetof(PpPipe, workers_wanted), 0,
			   sizeof(PpPipe) - offsetof(PpPipe, workers_wanted));
		for (int c = 0; c < PP_COUNT_NUM; c++)
			pg_atomic_write_u64(&pipe->counters[c], 0);
		memset(pipe->base, 0, sizeof(pipe->base));
		LWLockRelease(&pipe->lock);
		pipe->in_use = true;
		pipe->generation++;
		pipe->dboid = dboid;
		strlcpy(pipe->name, name, sizeof(pipe->name));
		pipe->since = GetCurrentTimestamp();
	}
	LWLockRelease(&pp_shared->lock);
	return pipe;
}

/* How many slots of pipelines are taken, but for those of one database. */
int
pp_pipe_count(Oid except_dboid)
{
	int n = 0;

	LWLockAcquire(&pp_shared->lock, LW_SHARED);
	for (int i = 0; i < PP_MAX_PIPELINES; i++)
		n += pp_shared->pipes[i].in_use && pp_shared->pipes[i].dboid != except_dboid;
	LWLockRelease(&pp_shared->lock);
	return n;
}

/*
 * The pipeline is gone, and its consumers are dead.  Its group may be that of any other one, whose
 * worker 1 takes over what is left of them.
 */
void
pp_pipe_release(PpPipe *pipe)
{
	LWLockAcquire(&pp_shared->lock, LW_EXCLUSIVE);
	pipe->in_use = false;
	for (int i = 0; i < PP_MAX_PIPELINES; i++)
	{
		PpPipe *other = &pp_shared->pipes[i];

		if (!other->in_use)
			continue;
		LWLockAcquire(&other->lock, LW_EXCLUSIVE);
		other->rescan = true;
		LWLockRelease(&other->lock);
	}
	LWLockRelease(&pp_shared->lock);
	ConditionVariableBroadcast(&pp_shared->state_cv);
}
