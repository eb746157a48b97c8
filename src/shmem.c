/*
 * shmem.c
 *		Make the shared memory, and keep our processes out of a database while somebody needs it alone.
 */
#include "shmem.h"

#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/procarray.h"
#include "storage/shmem.h"

#include "guc.h"

PpShared *pp_shared;

static shmem_request_hook_type prev_shmem_request_hook;
static shmem_startup_hook_type prev_shmem_startup_hook;

static int
max_procs(void)
{
	return 1 + PP_MAX_DATABASES + pp_guc_max_workers;
}

static Size
shmem_size(void)
{
	return add_size(offsetof(PpShared, procs), mul_size(max_procs(), sizeof(PpProc)));
}

static void
shmem_request(void)
{
	if (prev_shmem_request_hook)
		prev_shmem_request_hook();
	RequestAddinShmemSpace(shmem_size());
}

static void
shmem_startup(void)
{
	bool found;

	if (prev_shmem_startup_hook)
		prev_shmem_startup_hook();

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	pp_shared = ShmemInitStruct("postpipe", shmem_size(), &found);
	if (!found)
	{
		memset(pp_shared, 0, shmem_size());
		pp_shared->tranche = LWLockNewTrancheId();
		pp_shared->num_procs = max_procs();
		LWLockInitialize(&pp_shared->lock, pp_shared->tranche);
		LWLockInitialize(&pp_shared->events_lock, pp_shared->tranche);
		ConditionVariableInit(&pp_shared->state_cv);
		for (int i = 0; i < pp_shared->num_procs; i++)
			LWLockInitialize(&pp_shared->procs[i].lock, pp_shared->tranche);
		for (int i = 0; i < PP_MAX_PIPELINES; i++)
		{
			LWLockInitialize(&pp_shared->pipes[i].lock, pp_shared->tranche);
			ConditionVariableInit(&pp_shared->pipes[i].settled_cv);
			for (int c = 0; c < PP_COUNT_NUM; c++)
				pg_atomic_init_u64(&pp_shared->pipes[i].counters[c], 0);
		}
		/* The launcher's slot is its own from the start: the postmaster registers it, nobody else. */
		pp_shared->procs[0].in_use = true;
		pp_shared->procs[0].kind = PP_PROC_LAUNCHER;
	}
	LWLockRelease(AddinShmemInitLock);
	LWLockRegisterTranche(pp_shared->tranche, "postpipe");
}

/* Installs the hooks that ask for the memory and set it up. Only from _PG_init() at preload. */
void
pp_shmem_init(void)
{
	prev_shmem_request_hook = shmem_request_hook;
	shmem_request_hook = shmem_request;
	prev_shmem_startup_hook = shmem_startup_hook;
	shmem_startup_hook = shmem_startup;
}

/* Throws, with the way out, when the library is not preloaded. */
void
pp_require_preload(void)
{
	if (pp_shared == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("postpipe must be loaded via \"shared_preload_libraries\""),
				 errhint("Add postpipe to shared_preload_libraries in postgresql.conf and restart "
						 "the server.")));
}

/* The word for a state, the same in views, functions and the log. */
const char *
pp_state_name(PpState state)
{
	static const char *const names[] = {
		[PP_STATE_STOPPED] = "stopped", [PP_STATE_STARTING] = "starting",
		[PP_STATE_RUNNING] = "running", [PP_STATE_IDLE] = "idle",
		[PP_STATE_PAUSED] = "paused",   [PP_STATE_RETRYING] = "retrying",
		[PP_STATE_FAILED] = "failed",   [PP_STATE_DISARMED] = "disarmed",
		[PP_STATE_FENCED] = "fenced",   [PP_STATE_WAITING] = "waiting",
	};

	return names[state];
}

/*
 * pp_step_aside_set
 *		Keeps our processes out of a database for as long as this backend wants to drop, rename or
 *		copy it.  Returns false when the table is full (nothing is recorded then).
 */
bool
pp_step_aside_set(Oid dboid, bool set)
{
	bool done = false;

	LWLockAcquire(&pp_shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < PP_MAX_DATABASES && !done; i++)
	{
		if (set ? pp_shared->step_aside_pid[i] == 0
				: (pp_shared->step_aside_pid[i] == MyProcPid && pp_shared->step_aside[i] == dboid))
		{
			pp_shared->step_aside[i] = set ? dboid : InvalidOid;
			pp_shared->step_aside_pid[i] = set ? MyProcPid : 0;
			done = true;
		}
	}
	LWLockRelease(&pp_shared->lock);
	return done;
}

/* Does a living backend want us out of this database?  Entries of dead ones are forgotten. */
bool
pp_step_aside_wanted(Oid dboid)
{
	bool wanted = false;

	LWLockAcquire(&pp_shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < PP_MAX_DATABASES; i++)
	{
		if (pp_shared->step_aside_pid[i] == 0 || pp_shared->step_aside[i] != dboid)
			continue;
		if (BackendPidGetProc(pp_shared->step_aside_pid[i]) == NULL)
			pp_shared->step_aside_pid[i] = 0;
		else
			wanted = true;
	}
	LWLockRelease(&pp_shared->lock);
	return wanted;
}
