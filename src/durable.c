/*
 * durable.c
 *		The barrier between COMMIT and XACK.
 *
 * A commit that has returned is not durable yet when it did not wait for the flush, when its wait
 * for a synchronous standby was cancelled (it returns with a WARNING), or when the batch held
 * nothing but duplicates, so that it wrote no WAL, while the commit that settled them may still be
 * on its way.  So the commit itself waits for nothing, and an XACK is sent only when WAL is flushed,
 * and replicated as configured, up to a point that covers the commit.  What a crash takes away
 * before that is delivered again.
 */
#include "durable.h"
#include "compat.h"
#include "fault.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "replication/message.h"
#include "replication/walsender.h"
#include "replication/syncrep.h"
#include "replication/walsender_private.h"
#include "miscadmin.h"
#include "storage/lwlock.h"

/*
 * pp_durable_commit
 *		Commits without waiting, whatever synchronous_commit says: the wait comes before the XACK, in
 *		pp_durable_wait(), when the WAL writer has done most of the work.  Returns the point that has
 *		to be reached then.
 */
XLogRecPtr
pp_durable_commit(void)
{
	int level = synchronous_commit;

	XactLastCommitEnd = InvalidXLogRecPtr;
	PG_TRY();
	{
		synchronous_commit = SYNCHRONOUS_COMMIT_OFF;
		CommitTransactionCommand();
	}
	PG_FINALLY();
	{
		synchronous_commit = level;
	}
	PG_END_TRY();
	/* Nothing written: what settled these entries before lies below a record written now. */
	return XLogRecPtrIsInvalid(XactLastCommitEnd) ? pp_log_marker() : XactLastCommitEnd;
}

/* Has a standby to confirm, at this level of synchronous_commit? */
static bool
must_replicate(int level)
{
	return max_wal_senders > 0 && level > SYNCHRONOUS_COMMIT_LOCAL_FLUSH &&
		   SyncRepStandbyNames != NULL && SyncRepStandbyNames[0] != '\0';
}

static bool
replicated(XLogRecPtr lsn, int level)
{
	int mode = level == SYNCHRONOUS_COMMIT_REMOTE_APPLY   ? SYNC_REP_WAIT_APPLY
			   : level == SYNCHRONOUS_COMMIT_REMOTE_WRITE ? SYNC_REP_WAIT_WRITE
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
	XLogFlush(lsn); /* returns at once when it is flushed */
	PP_FAULT("after_flush");
	if (!must_replicate(synchronous_commit))
		return true;
	/* A cancel or a request to die ends the wait with a WARNING, and is served by the caller then. */
	HOLD_INTERRUPTS();
	SyncRepWaitForLSN(lsn, true);
	RESUME_INTERRUPTS();
	return replicated(lsn, synchronous_commit);
}

/*
 * pp_durable_is_reached
 *		Is WAL flushed up to `lsn`, and replicated as this level of synchronous_commit says?  Does not
 *		wait, so it may be asked where nothing may fail.
 */
bool
pp_durable_is_reached(XLogRecPtr lsn, int level)
{
	return GetFlushRecPtr(NULL) >= lsn && (!must_replicate(level) || replicated(lsn, level));
}
