/*
 * durable.c
 *		The barrier between COMMIT and XACK.
 *
 * A commit that has returned is not durable yet in three cases: synchronous_commit is off; the wait
 * for a synchronous standby was cancelled (commit returns with a WARNING); the batch held nothing
 * but duplicates, so that it wrote no WAL and waited for nothing, while the commit that settled
 * them may still be on its way.  So an XACK is sent only when WAL is flushed, and replicated as
 * configured, up to a point that covers the commit.
 */
#include "durable.h"
#include "compat.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "replication/message.h"
#include "replication/walsender.h"
#include "replication/syncrep.h"
#include "replication/walsender_private.h"
#include "miscadmin.h"
#include "storage/lwlock.h"

/* Call right before CommitTransactionCommand(). */
void
pp_durable_before_commit(void)
{
	XactLastCommitEnd = InvalidXLogRecPtr;
}

/* Call right after it: the point that has to be reached before the XACK. */
XLogRecPtr
pp_durable_after_commit(void)
{
	XLogRecPtr lsn = XactLastCommitEnd;

	/* Nothing written: what settled these entries before lies below a record written now. */
	return XLogRecPtrIsInvalid(lsn) ? pp_log_marker() : lsn;
}

static bool
replicated(XLogRecPtr lsn)
{
	int mode = synchronous_commit == SYNCHRONOUS_COMMIT_REMOTE_APPLY   ? SYNC_REP_WAIT_APPLY
			   : synchronous_commit == SYNCHRONOUS_COMMIT_REMOTE_WRITE ? SYNC_REP_WAIT_WRITE
																	   : SYNC_REP_WAIT_FLUSH;
	bool reached;

	LWLockAcquire(SyncRepLock, LW_SHARED);
	reached = WalSndCtl->lsn[mode] >= lsn;
	LWLockRelease(SyncRepLock);
	return reached;
}

/*
 * pp_durable_wait
 *		Flushes WAL up to `lsn` and waits for synchronous replication where it is configured.
 *		Returns false when that wait was cancelled: the entries must not be acknowledged then.
 *		Must be called outside a transaction.
 */
bool
pp_durable_wait(XLogRecPtr lsn)
{
	XLogFlush(lsn);
	if (!SyncRepRequested() || SyncRepStandbyNames == NULL || SyncRepStandbyNames[0] == '\0')
		return true;
	/* A cancel or a request to die ends the wait with a WARNING, and is served by the caller then. */
	HOLD_INTERRUPTS();
	SyncRepWaitForLSN(lsn, true);
	RESUME_INTERRUPTS();
	return replicated(lsn);
}
