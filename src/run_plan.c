/*
 * run_plan.c
 *		The kept plan of a statement, run over a batch.
 *
 * What SPI would do, step by step, for a statement that is planned as one: so the scan of the batch can
 * be given the entries themselves (batch_scan.c), and a plain INSERT can be taken apart
 * (bulk_insert.c).  What a rule has made several of goes through SPI, and a utility command.
 */
#include "run_plan.h"

#include "access/xact.h"
#include "executor/executor.h"
#include "utils/plancache.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"

#include "bulk_insert.h"
#include "compat.h"
#include "guc.h"

/* As SPI says it. */
static void
add_context(void *sql)
{
	errcontext("SQL statement \"%s\"", (const char *) sql);
}

static void
run_one(PlannedStmt *stmt, const char *sql, PpBatchRelation *batch, bool bulk, DestReceiver *dest)
{
	ErrorContextCallback callback = {error_context_stack, add_context, unconstify(char *, sql)};
	QueryDesc *query;

	error_context_stack = &callback;
	if (!bulk || !pp_bulk_insert(stmt, sql, batch))
	{
		query = pp_batch_query_start(stmt, sql, batch, dest);
		pp_executor_run(query);
		pp_batch_query_end(query);
	}
	error_context_stack = callback.previous;
}

/* False: nothing was done, it is not planned as one statement. */
static bool
run_directly(SPIPlanPtr plan, const char *search_path, PpBatchRelation *batch, bool bulk,
			 DestReceiver *dest)
{
	CachedPlanSource *plan_source = linitial(SPI_plan_get_plan_sources(plan));
	CachedPlan *cplan;
	PlannedStmt *stmt;
	bool done = false;

	/*
	 * The plan has locks of its tables; the snapshot comes after them, because it must see the rows of a
	 * transaction that was waited for: with one from before, a table that was rewritten is empty.
	 */
	CommandCounterIncrement();
	cplan = SPI_plan_get_cached_plan(plan);
	PushActiveSnapshot(GetTransactionSnapshot());
	if (list_length(cplan->stmt_list) == 1)
	{
		stmt = linitial_node(PlannedStmt, cplan->stmt_list);
		done = stmt->utilityStmt == NULL;
		if (done)
		{
			pp_guc_set_for_call("search_path", search_path);
			run_one(stmt, plan_source->query_string, batch, bulk, dest);
		}
	}
	ReleaseCachedPlan(cplan, CurrentResourceOwner);
	PopActiveSnapshot();
	CommandCounterIncrement();
	return done;
}

static void
run_with_spi(SPIPlanPtr plan, PpBatchRelation *batch, DestReceiver *dest)
{
	SPIExecuteOptions options = {.dest = dest};
	int rc;

	pp_batch_fill(batch);
	rc = SPI_execute_plan_extended(plan, &options);
	if (rc == SPI_ERROR_COPY || rc == SPI_ERROR_TRANSACTION)
		ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						errmsg("a pipeline's statement cannot be COPY or a transaction command")));
	if (rc < 0)
		elog(ERROR, "could not run the statement: %s", SPI_result_code_string(rc));
}

/*
 * pp_run_plan
 *		Runs a kept plan of one statement without parameters over the batch, which is registered with
 *		SPI.  In a transaction, with SPI connected.  The search_path in force is that of the plan; here, to the
 *		end of the caller's GUC nest level, another one is set, but not for what has to go through SPI, which
 *		would plan it anew then.  bulk: a plain INSERT's rows may wait for one another.
 *		What it returns goes to `dest`.  Throws what the statement throws.
 */
void
pp_run_plan(SPIPlanPtr plan, const char *search_path, PpBatchRelation *batch, bool bulk,
			DestReceiver *dest)
{
	if (!run_directly(plan, search_path, batch, bulk, dest))
		run_with_spi(plan, batch, dest);
}
