/*
 * shmem_proc.c
 *		Hand out the slots of processes in shared memory, ask processes to stop, wake them.
 *
 * A process slot is reserved by the parent (launcher, supervisor) before it registers the worker,
 * attached by the child when it runs, and released by the child when it exits, or by the parent
 * when the child never came.  The generation tells a late child that its slot has been given away.
 */
#include "shmem.h"

#include <signal.h>

#include "miscadmin.h"
#include "storage/ipc.h"

#include "held.h"

PpProc *pp_my_proc;

static uint32 my_generation;

/* The slots in which a process of this kind may live. */
static void
slot_range(PpProcKind kind, int *first, int *end)
{
	*first = kind == PP_PROC_WORKER ? 1 + PP_MAX_DATABASES : 1;
	*end = kind == PP_PROC_WORKER ? pp_shared->num_procs : 1 + PP_MAX_DATABASES;
}

/*
 * pp_proc_reserve
 *		Takes a slot for a process that is about to be registered.  Returns NULL when all are taken.
 */
PpProc *
pp_proc_reserve(PpProcKind kind, Oid dboid, const char *datname, const char *pipeline, int pipe_no,
				int worker)
{
	PpProc *found = NULL;
	int first, end;

	slot_range(kind, &first, &end);
	LWLockAcquire(&pp_shared->lock, LW_EXCLUSIVE);
	for (int i = first; i < end && found == NULL; i++)
	{
		PpProc *proc = &pp_shared->procs[i];

		if (proc->in_use)
			continue;
		found = proc;
		proc->in_use = true;
		proc->generation++;
		proc->kind = kind;
		proc->dboid = dboid;
		strlcpy(proc->datname, datname, sizeof(proc->datname));
		strlcpy(proc->pipeline, pipeline ? pipeline : "", sizeof(proc->pipeline));
		proc->pipe_no = pipe_no;
		proc->worker = worker;
		proc->pid = 0;
		proc->latch = NULL;
		proc->stop = false;
		proc->stop_asked_at = (PpSteady){0};
		LWLockAcquire(&proc->lock, LW_EXCLUSIVE);
		memset(&proc->status, 0, sizeof(proc->status));
		memset(&proc->info, 0, sizeof(proc->info));
		memset(proc->held, 0, sizeof(proc->held));
		proc->parked = true;
		proc->reading = 0;
		proc->unacknowledged = -1;
		proc->status.state = PP_STATE_STARTING;
		proc->status.changed_at = GetCurrentTimestamp();
		LWLockRelease(&proc->lock);
	}
	LWLockRelease(&pp_shared->lock);
	return found;
}

/* Gives a slot back, unless it has been given to somebody else since. */
void
pp_proc_release(PpProc *proc, uint32 generation)
{
	LWLockAcquire(&pp_shared->lock, LW_EXCLUSIVE);
	if (proc->in_use && proc->generation == generation)
	{
		proc->in_use = proc->kind == PP_PROC_LAUNCHER;
		proc->pid = 0;
		proc->latch = NULL;
	}
	LWLockRelease(&pp_shared->lock);
	ConditionVariableBroadcast(&pp_shared->state_cv);
}

/* Gives the slot of a process back that has not come.  False: it has, after all. */
bool
pp_proc_give_up(PpProc *proc, uint32 generation)
{
	bool given_up;

	LWLockAcquire(&pp_shared->lock, LW_EXCLUSIVE);
	given_up = proc->in_use && proc->generation == generation && proc->pid == 0;
	if (given_up)
		proc->in_use = false;
	LWLockRelease(&pp_shared->lock);
	return given_up;
}

static void
ask_stop_locked(PpProc *proc)
{
	if (!proc->stop)
		proc->stop_asked_at = pp_steady_now();
	proc->stop = true;
	if (proc->latch != NULL)
		SetLatch(proc->latch);
}

/* Asks all processes of a kind to stop, those of one database or (InvalidOid) of all. */
static void
stop_kind(PpProcKind kind, Oid dboid)
{
	LWLockAcquire(&pp_shared->lock, LW_EXCLUSIVE);
	for (int i = 1; i < pp_shared->num_procs; i++)
	{
		PpProc *proc = &pp_shared->procs[i];

		if (proc->in_use && proc->kind == kind && (!OidIsValid(dboid) || proc->dboid == dboid))
			ask_stop_locked(proc);
	}
	LWLockRelease(&pp_shared->lock);
}

static void
detach(int code, Datum arg)
{
	PpProc *proc = pp_my_proc;
	PpPipe *pipe;

	pp_my_proc = NULL;
	if (proc == NULL)
		return;
	pipe = proc->kind == PP_PROC_WORKER ? &pp_shared->pipes[proc->pipe_no] : NULL;
	/* Children have nobody left to restart or stop them: they go with their parent. */
	if (proc->kind == PP_PROC_LAUNCHER)
		stop_kind(PP_PROC_SUPERVISOR, InvalidOid);
	else if (proc->kind == PP_PROC_SUPERVISOR)
		stop_kind(PP_PROC_WORKER, proc->dboid);
	/* Released first, so that the parent finds the slot free when it wakes. */
	pp_proc_release(proc, my_generation);
	if (pipe != NULL)
		pp_pipe_leave(pipe);
	if (proc->kind == PP_PROC_SUPERVISOR)
		pp_wake_launcher();
	else if (proc->kind == PP_PROC_WORKER)
		pp_wake_supervisor(proc->dboid);
}

/*
 * pp_proc_attach
 *		Called by a process of ours when it starts: makes slot number `slot` its own.  Returns false
 *		when the parent has given up on it; the process then has to exit.
 */
bool
pp_proc_attach(int slot, uint32 generation)
{
	PpProc *proc = &pp_shared->procs[slot];
	bool mine;

	LWLockAcquire(&pp_shared->lock, LW_EXCLUSIVE);
	mine = proc->in_use && proc->generation == generation && proc->pid == 0;
	if (mine)
	{
		proc->pid = MyProcPid;
		proc->latch = MyLatch;
		if (proc->kind == PP_PROC_LAUNCHER)
			proc->stop = false;
	}
	LWLockRelease(&pp_shared->lock);
	if (!mine)
		return false;

	pp_my_proc = proc;
	my_generation = generation;
	before_shmem_exit(detach, (Datum) 0);
	LWLockAcquire(&proc->lock, LW_EXCLUSIVE);
	proc->info.backend_start = MyStartTimestamp;
	LWLockRelease(&proc->lock);
	return true;
}

/* Has somebody asked this process to stop? */
bool
pp_proc_must_stop(void)
{
	bool stop;

	LWLockAcquire(&pp_shared->lock, LW_SHARED);
	stop = pp_my_proc->stop;
	LWLockRelease(&pp_shared->lock);
	return stop;
}

/* Asks a process to stop between two batches. The caller holds no lock of ours. */
void
pp_proc_ask_stop(PpProc *proc)
{
	LWLockAcquire(&pp_shared->lock, LW_EXCLUSIVE);
	ask_stop_locked(proc);
	LWLockRelease(&pp_shared->lock);
}

/*
 * pp_proc_enforce_stop
 *		For processes of a database that nobody has a handle for, because their parent is gone:
 *		terminates those that were asked to stop and did not within deadline_ms, and frees the slots
 *		of those that never came.
 */
void
pp_proc_enforce_stop(Oid dboid, int deadline_ms)
{
	LWLockAcquire(&pp_shared->lock, LW_EXCLUSIVE);
	for (int i = 1; i < pp_shared->num_procs; i++)
	{
		PpProc *proc = &pp_shared->procs[i];

		if (!proc->in_use || proc->dboid != dboid || !proc->stop || proc->pid == MyProcPid ||
			!pp_steady_passed(proc->stop_asked_at, deadline_ms))
			continue;
		if (proc->pid != 0)
			(void) kill(proc->pid, SIGTERM);
		else
			proc->in_use = false;
	}
	LWLockRelease(&pp_shared->lock);
}

/* How many processes of ours, attached or on their way, belong to a database. */
int
pp_proc_count(Oid dboid)
{
	int n = 0;

	LWLockAcquire(&pp_shared->lock, LW_SHARED);
	for (int i = 1; i < pp_shared->num_procs; i++)
		n += pp_shared->procs[i].in_use && pp_shared->procs[i].dboid == dboid;
	LWLockRelease(&pp_shared->lock);
	return n;
}

/* The process of this worker of a pipeline: its PID, -1 while it is on its way, 0: none. */
int
pp_proc_worker_pid(Oid dboid, const char *pipeline, int worker)
{
	int pid = 0;

	LWLockAcquire(&pp_shared->lock, LW_SHARED);
	for (int i = 1 + PP_MAX_DATABASES; i < pp_shared->num_procs && pid == 0; i++)
	{
		const PpProc *proc = &pp_shared->procs[i];

		if (proc->in_use && proc->dboid == dboid && proc->worker == worker &&
			strcmp(proc->pipeline, pipeline) == 0)
			pid = proc->pid != 0 ? proc->pid : -1;
	}
	LWLockRelease(&pp_shared->lock);
	return pid;
}

/* The client ID of this process's connection to Redis; 0: it has none. */
int64
pp_proc_redis_client(int pid)
{
	int64 id = 0;

	LWLockAcquire(&pp_shared->lock, LW_SHARED);
	for (int i = 1; i < pp_shared->num_procs && pid > 0; i++)
	{
		PpProc *proc = &pp_shared->procs[i];

		if (!proc->in_use || proc->pid != pid)
			continue;
		LWLockAcquire(&proc->lock, LW_SHARED);
		id = proc->info.redis_client_id;
		LWLockRelease(&proc->lock);
	}
	LWLockRelease(&pp_shared->lock);
	return id;
}

/* Has a supervisor of this database read its definitions, and does it still care for them? */
bool
pp_supervisor_has_looked(Oid dboid)
{
	bool looked = false;

	LWLockAcquire(&pp_shared->lock, LW_SHARED);
	for (int i = 1; i < 1 + PP_MAX_DATABASES; i++)
	{
		PpProc *proc = &pp_shared->procs[i];

		if (!proc->in_use || proc->dboid != dboid || proc->stop)
			continue;
		LWLockAcquire(&proc->lock, LW_SHARED);
		looked = proc->status.state == PP_STATE_RUNNING || proc->status.state == PP_STATE_IDLE;
		LWLockRelease(&proc->lock);
	}
	LWLockRelease(&pp_shared->lock);
	return looked;
}

/* Wakes the supervisor of a database, if there is one. */
void
pp_wake_supervisor(Oid dboid)
{
	LWLockAcquire(&pp_shared->lock, LW_SHARED);
	for (int i = 1; i < 1 + PP_MAX_DATABASES; i++)
	{
		PpProc *proc = &pp_shared->procs[i];

		if (proc->in_use && proc->dboid == dboid && proc->latch != NULL)
			SetLatch(proc->latch);
	}
	LWLockRelease(&pp_shared->lock);
}

void
pp_wake_launcher(void)
{
	LWLockAcquire(&pp_shared->lock, LW_SHARED);
	if (pp_shared->procs[0].latch != NULL)
		SetLatch(pp_shared->procs[0].latch);
	LWLockRelease(&pp_shared->lock);
}
