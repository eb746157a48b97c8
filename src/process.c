/*
 * process.c
 *		What launcher, supervisor and worker have in common as processes.
 *
 * Signals are served by the server's own handlers: SIGTERM is die, so that a statement of the user
 * is aborted where it stands; outside a transaction it becomes a quiet exit with one log line.
 * Exit codes are 0 and 1 only: any other one is a crash for the postmaster.
 */
#include "process.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/procsignal.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"

#include "stats.h"

void (*pp_process_meanwhile)(void) = NULL;

/*
 * pp_process_start
 *		The first call in each process of ours.  Returns false when its slot was given away.  With
 *		`connect` the process has catalogs: those of database dboid, or only the shared ones.
 */
bool
pp_process_start(Datum main_arg, Oid dboid, bool connect)
{
	uint32 generation = 0;
	int slot = DatumGetInt32(main_arg);

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	/* A background worker ignores SIGHUP up to here: one that came since the fork is lost. */
	ConfigReloadPending = true;
	BackgroundWorkerUnblockSignals();
	if (slot > 0)
		memcpy(&generation, MyBgworkerEntry->bgw_extra, sizeof(generation));
	if (!pp_proc_attach(slot, generation))
		return false;
	if (connect && OidIsValid(dboid))
		BackgroundWorkerInitializeConnectionByOid(dboid, InvalidOid, 0);
	else if (connect)
		BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	SetConfigOption("application_name", MyBgworkerEntry->bgw_name, PGC_USERSET, PGC_S_SESSION);
#if PG_VERSION_NUM >= 170000
	/* It ends the process, whatever the transaction was about. */
	SetConfigOption("transaction_timeout", "0", PGC_SUSET, PGC_S_SESSION);
#endif
	return true;
}

/*
 * pp_process_interrupts
 *		Serves interrupts between two pieces of work.  A cancel has nothing to cancel here; a
 *		request to die ends the process, saying so once.
 */
void
pp_process_interrupts(void)
{
	if (pp_my_proc != NULL && !IsTransactionState())
	{
		QueryCancelPending = false;
		if (ProcDiePending)
		{
			ProcDiePending = false; /* served here: what follows must not throw */
			pp_report_state(PP_STATE_STOPPED, "terminated", "asked to terminate", NULL);
			proc_exit(1);
		}
	}
	CHECK_FOR_INTERRUPTS();
}

/* Reads the configuration again if that was asked for; returns true then. */
bool
pp_process_reload(void)
{
	if (!ConfigReloadPending)
		return false;
	ConfigReloadPending = false;
	ProcessConfigFile(PGC_SIGHUP);
	return true;
}

/* Waits for the latch, or for timeout_ms (-1: no limit), and serves interrupts. */
void
pp_process_sleep(long timeout_ms, PpWaitEvent event)
{
	int events = WL_LATCH_SET | WL_EXIT_ON_PM_DEATH | (timeout_ms >= 0 ? WL_TIMEOUT : 0);

	Assert(!IsTransactionState());
	if (WaitLatch(MyLatch, events, timeout_ms, pp_wait_event(event)) & WL_LATCH_SET)
		ResetLatch(MyLatch);
	pp_process_interrupts();
}

/* What pg_stat_activity shows in state and query. `text` must not hold an entry's content. */
void
pp_process_activity(bool running, const char *text)
{
	pgstat_report_activity(running ? STATE_RUNNING : STATE_IDLE, text);
}

/*
 * pp_process_register
 *		Asks the postmaster for the process of a reserved slot.  Returns false when
 *		max_worker_processes does not allow it.
 */
bool
pp_process_register(PpProc *proc, const char *main_function, const char *name, const char *type,
					BackgroundWorkerHandle **handle)
{
	BackgroundWorker worker;

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	/* Only the parent restarts it: after a crash the postmaster would, with nobody knowing. */
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	strlcpy(worker.bgw_library_name, PP_EXTENSION, sizeof(worker.bgw_library_name));
	strlcpy(worker.bgw_function_name, main_function, sizeof(worker.bgw_function_name));
	strlcpy(worker.bgw_name, name, sizeof(worker.bgw_name));
	strlcpy(worker.bgw_type, type, sizeof(worker.bgw_type));
	worker.bgw_main_arg = Int32GetDatum((int32) (proc - pp_shared->procs));
	memcpy(worker.bgw_extra, &proc->generation, sizeof(proc->generation));
	worker.bgw_notify_pid = MyProcPid;
	return RegisterDynamicBackgroundWorker(&worker, handle);
}
