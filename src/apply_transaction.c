/*
 * apply_transaction.c
 *		The transactions in which a worker applies entries: how they begin, end and fail, and
 *		subtransactions of them.
 */
#include "apply_internal.h"

#include "access/xact.h"
#include "catalog/pg_extension.h"
#include "executor/spi.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"

#include "durable.h"
#include "errors.h"
#include "event.h"
#include "inflight.h"
#include "shmem.h"

/* Starts a transaction; returns false, in it, when the definition is not what it was any more. */
bool
pp_apply_begin(PpApply *a)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();

	/*
	 * DROP EXTENSION locks the extension first and its tables then, as we do: it waits for this
	 * transaction, and the next one waits for it here and then finds the extension gone.
	 */
	LockDatabaseObject(ExtensionRelationId, a->ext->oid, 0, AccessShareLock);
	if (!pp_extension_is_there(a->ext))
		return false;
	pp_pipeline_lock(a->ext, a->pipeline->name, AccessShareLock);
	/* The snapshot after the locks: it has to see what we waited for. */
	PushActiveSnapshot(GetTransactionSnapshot());
	if (!pp_pipeline_is_current(a->ext, a->pipeline))
		return false;
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "could not connect to SPI");
	return true;
}

/* Those that a trigger took would stay for ever. */
static void
release_session_locks(void)
{
	LockReleaseAll(USER_LOCKMETHOD, true);
}

/* Commits it, and goes on in `back_to`; what the result names has to be durable. */
XLogRecPtr
pp_apply_commit(MemoryContext back_to)
{
	XLogRecPtr lsn;

	SPI_finish();
	PopActiveSnapshot();
	lsn = pp_durable_commit();
	release_session_locks();
	MemoryContextSwitchTo(back_to);
	return lsn;
}

/* In PG_CATCH: takes the error out of the error stack, as a copy in `cxt`. */
static PpEntryError *
take_error(PpApply *a, MemoryContext cxt)
{
	bool timed_out = a->statement != NULL && pp_statement_failed(a->statement);
	PpEntryError *error;

	MemoryContextSwitchTo(cxt);
	error = pp_entry_error_capture(cxt);
	/* In a backend it is the session's. */
	if (pp_my_proc != NULL)
		disable_timeout(STATEMENT_TIMEOUT, false);
	error->moment = error->sqlstate == ERRCODE_QUERY_CANCELED && !timed_out;
	if (a->statement != NULL && pp_statement_failed_on_entries(a->statement))
		error->entry_sqlstate = error->sqlstate;
	return error;
}

/* Rolls the transaction back, and goes on in `cxt`. In a worker. */
void
pp_apply_abort(MemoryContext cxt)
{
	AbortOutOfAnyTransaction();
	release_session_locks();
	pp_inflight_clear();
	MemoryContextSwitchTo(cxt);
}

/* In PG_CATCH: takes the error and rolls the transaction back. */
PpEntryError *
pp_apply_roll_back(PpApply *a, MemoryContext cxt)
{
	PpEntryError *error = take_error(a, cxt);

	pp_apply_abort(cxt);
	pp_threshold_end(a, false);
	if (a->hashed_again)
		a->watched_key = 0;
	a->hashed_again = false;
	return error;
}

PpOutcome
pp_apply_outcome_of(const PpEntryError *error)
{
	PpFault fault = pp_fault_of(error);

	return fault == PP_FAULT_MOMENT || fault == PP_FAULT_OUTSIDE ? PP_OUTCOME_MOMENT
																 : PP_OUTCOME_PIPELINE;
}

/*
 * pp_apply_transaction
 *		Does `work`, which is no batch, in a transaction with SPI connected, and keeps what it did if `keep`.
 *		On anything but DONE, *error has the reason, in the current memory context, or NULL.
 */
PpOutcome
pp_apply_transaction(PpApply *a, PpWork work, void *arg, bool keep, PpEntryError **error)
{
	MemoryContext cxt = CurrentMemoryContext;
	PpOutcome volatile outcome = PP_OUTCOME_DONE;

	*error = NULL;
	PG_TRY();
	{
		if (!pp_apply_begin(a))
			outcome = PP_OUTCOME_GONE;
		else
			work(a, arg);
		if (outcome == PP_OUTCOME_DONE && keep)
			(void) pp_apply_commit(cxt);
		else
			pp_apply_abort(cxt);
	}
	PG_CATCH();
	{
		*error = pp_apply_roll_back(a, cxt);
		outcome = pp_apply_outcome_of(*error);
	}
	PG_END_TRY();
	return outcome;
}

/*
 * pp_apply_subtransaction
 *		Does `work` in a subtransaction, and keeps what it did if `keep`.  Returns NULL, or the error
 *		that it failed with.
 */
PpEntryError *
pp_apply_subtransaction(PpApply *a, PpWork work, void *arg, bool keep)
{
	MemoryContext old = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	PpEntryError *volatile error = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(old);
	PG_TRY();
	{
		work(a, arg);
		if (keep)
			ReleaseCurrentSubTransaction();
		else
			RollbackAndReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		error = take_error(a, a->call_cxt);
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
	CurrentResourceOwner = owner;
	return error;
}
