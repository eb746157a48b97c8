/*
 * run_plan.c
 *		The kept plan of a statement, run over a batch.
 *
 * What SPI would do, step by step, for a statement that is planned as one: so the scan of the batch can
 * be given the entries themselves (batch_plan.c, batch_scan.c), and a plain INSERT can be taken apart
 * (bulk_insert.c).  What a rule has made several of goes through SPI, and a utility command.
 */
#include "run_plan.h"

#include "access/xact.h"
#include "executor/executor.h"
#include "utils/memutils.h"
#include "utils/plancache.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"

#include "batch_scan.h"
#include "bulk_insert.h"
#include "compat.h"
#include "guc.h"

/* As SPI says it. */
static void
add_context(void *sql)
{
	errcontext("SQL statement \"%s\"", (const char *) sql);
}

/* Keeps a plan that was prepared.  What is made of it lives below `parent`. */
void
pp_run_keep(PpKeptPlan *kept, SPIPlanPtr plan, MemoryContext parent)
{
	kept->cxt = AllocSetContextCreate(parent, "postpipe plan", ALLOCSET_SMALL_SIZES);
	kept->generation = 0;
	if (SPI_keepplan(plan) != 0)
		elog(ERROR, "could not keep the plan of the statement");
	kept->spi = plan;
}

/* Frees it, if there is one. */
void
pp_run_forget(PpKeptPlan *kept)
{
	if (kept->spi == NULL)
		return;
	SPI_freeplan(kept->spi);
	MemoryContextDelete(kept->cxt);
	*kept = (PpKeptPlan){NULL};
}

/* What is run of SPI's plan, made when that is another one than the last time. */
static const PpBatchPlan *
get_batch_plan(PpKeptPlan *kept, const CachedPlan *cplan, PlannedStmt *stmt, TupleDesc batch)
{
	MemoryContext old;

	if (kept->generation == cplan->generation)
		return kept->plan;
	kept->generation = 0; /* until it is made */
	MemoryContextReset(kept->cxt);
	old = MemoryContextSwitchTo(kept->cxt);
	kept->plan = pp_batch_plan_make(stmt, batch);
	MemoryContextSwitchTo(old);
	kept->generation = cplan->generation;
	return kept->plan;
}

static void
run_one(const PpBatchPlan *plan, const char *sql, PpBatchRelation *batch, bool bulk,
		DestReceiver *dest)
{
	ErrorContextCallback callback = {error_context_stack, add_context, unconstify(char *, sql)};
	QueryDesc *query;

	error_context_stack = &callback;
	if (!bulk || !pp_bulk_insert(plan, sql, batch))
	{
		query = pp_batch_query_start(plan, plan->stmt, sql, batch, dest);
		pp_executor_run(query);
		pp_batch_query_end(query);
	}
	error_context_stack = callback.previous;
}

/* False: nothing was done, it is not planned as one statement. */
static bool
run_directly(PpKeptPlan *kept, const char *search_path, PpBatchRelation *batch, bool bulk,
			 DestReceiver *dest)
{
	CachedPlanSource *plan_source = linitial(SPI_plan_get_plan_sources(kept->spi));
	CachedPlan *cplan;
	PlannedStmt *stmt;
	bool done = false;

	/*
	 * The plan has locks of its tables; the snapshot comes after them, because it must see the rows of a
	 * transaction that was waited for: with one from before, a table that was rewritten is empty.
	 */
	CommandCounterIncrement();
	cplan = SPI_plan_get_cached_plan(kept->spi);
	PushActiveSnapshot(GetTransactionSnapshot());
	if (list_length(cplan->stmt_list) == 1)
	{
		stmt = linitial_node(PlannedStmt, cplan->stmt_list);
		done = stmt->utilityStmt == NULL;
		if (done)
		{
			pp_guc_set_for_call("search_path", search_path);
			run_one(get_batch_plan(kept, cplan, stmt, batch->enr.md.tupdesc),
					plan_source->query_string, batch, bulk, dest);
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
pp_run_plan(PpKeptPlan *kept, const char *search_path, PpBatchRelation *batch, bool bulk,
			DestReceiver *dest)
{
	if (!run_directly(kept, search_path, batch, bulk, dest))
		run_with_spi(kept->spi, batch, dest);
}
