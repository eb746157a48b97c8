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

#include "fault.h"
#include "stats.h"

void (*pp_process_meanwhile)(void) = NULL;

/*
 * pp_process_start
 *		The first call in each process of ours, with the argument that it was given.  Returns false when its
 *		slot was given away.  The process has the catalogs of its slot's database, or only the shared ones.
 */
bool
pp_process_start(Datum main_arg)
{
	uint32 generation = 0;
	int slot = DatumGetInt32(main_arg);

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	/* A background worker ignores SIGHUP up to here: one that came since the fork is lost. */
	ProcessConfigFile(PGC_SIGHUP);
	if (slot > 0)
		memcpy(&generation, MyBgworkerEntry->bgw_extra, sizeof(generation));
	if (!pp_proc_attach(slot, generation))
		return false;
	PP_FAULT("at_attach");
	if (OidIsValid(pp_my_proc->dboid))
		BackgroundWorkerInitializeConnectionByOid(pp_my_proc->dboid, InvalidOid, 0);
	else
		BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	SetConfigOption("application_name", MyBgworkerEntry->bgw_name, PGC_USERSET, PGC_S_SESSION);
	/* A role that the database sets for its sessions may not write our tables. */
	SetConfigOption("role", "none", PGC_SUSET, PGC_S_SESSION);
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

/* Waits for the latch, or for timeout_ms (-1: no limit), and serves interrupts.  Returns whether the latch was set. */
bool
pp_process_sleep(long timeout_ms, PpWaitEvent event)
{
	int events = WL_LATCH_SET | WL_EXIT_ON_PM_DEATH | (timeout_ms >= 0 ? WL_TIMEOUT : 0);
	bool latch_set;

	Assert(!IsTransactionState());
	latch_set = (WaitLatch(MyLatch, events, timeout_ms, pp_wait_event(event)) & WL_LATCH_SET) != 0;
	if (latch_set)
		ResetLatch(MyLatch);
	pp_process_interrupts();
	return latch_set;
}

/* What pg_stat_activity shows in state and query. `text` must not hold an entry's content. */
void
pp_process_activity(bool running, const char *text)
{
	pgstat_report_activity(running ? STATE_RUNNING : STATE_IDLE, text);
}
