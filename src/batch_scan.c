/*
 * batch_scan.c
 *		Rows for a plan that reads postpipe_batch, from the entries themselves.
 *
 * Of a plan that was changed for it (batch_plan.c) the scan's target list is run over a row that exists only as an
 * array of values: the executor takes such a row wherever it expects a tuple.  Any other plan reads the
 * tuplestore, which is filled for it.
 */
#include "batch_scan.h"

#include "executor/executor.h"
#include "miscadmin.h"
#include "nodes/nodeFuncs.h"
#include "utils/snapmgr.h"

#include "batch_field.h"
#include "batch_row.h"
#include "compat.h"
#include "process.h"

#define MEANWHILE_EVERY 64 /* entries: of 1 kB, a third of what a socket holds */

typedef struct PpBatchScan
{
	const PpBatchPlan *plan;
	int next;
	TupleTableSlot *slot;
	ResultRelInfo *target; /* takes the rows as they are, once it has begun; else NULL */
} PpBatchScan;

/*
 * An entry was read long ago, and the rows before it have gone through indexes meanwhile: its memory is
 * far from the processor.
 */
static void
prefetch(const PpBatchRelation *batch, int next)
{
	const PpObject *object;

	if (next + 1 < batch->n && (object = batch->entries[next + 1]->event) != NULL)
		for (int i = 0; i < object->n; i++)
			pp_prefetch(object->pairs[i].value.data);
	if (next + 2 < batch->n && (object = batch->entries[next + 2]->event) != NULL)
		for (int i = 0; i < object->n; i++)
			pp_prefetch(&object->pairs[i]);
}

/* Fills the slot from the next entry. */
static void
take_entry(PpBatchScan *scan, const PpBatchRelation *batch, MemoryContext cxt)
{
	TupleTableSlot *slot = scan->slot;
	MemoryContext old = MemoryContextSwitchTo(cxt);
	int column = PP_BATCH_COLUMNS;
	ListCell *lc;

	prefetch(batch, scan->next);
	ExecClearTuple(slot);
	for (int c = 1; c <= PP_BATCH_COLUMNS; c++)
		if (scan->plan->wanted[c])
			slot->tts_values[c - 1] =
				pp_batch_value(batch, scan->next, c, &slot->tts_isnull[c - 1]);
	foreach (lc, scan->plan->fields)
	{
		slot->tts_values[column] =
			pp_field_value(lfirst(lc), batch->entries[scan->next], &slot->tts_isnull[column]);
		column++;
	}
	ExecStoreVirtualTuple(slot);
	MemoryContextSwitchTo(old);
	scan->next++;
}

/* The next row of the scan; an ExecProcNodeMtd. */
static TupleTableSlot *
next_row(PlanState *node)
{
	PpBatchRelation *batch = pp_batch_find(node->state->es_queryEnv);
	PpBatchScan *scan = batch->scan;
	ExprContext *econtext = node->ps_ExprContext;

	if (scan->target != NULL && pp_row_pass(scan->target, node->ps_ProjInfo->pi_state.resultslot))
		scan->target = NULL;
	while (scan->next < batch->n)
	{
		CHECK_FOR_INTERRUPTS();
		if (scan->next % MEANWHILE_EVERY == 0 && pp_process_meanwhile != NULL)
			pp_process_meanwhile();
		ResetExprContext(econtext);
		take_entry(scan, batch, econtext->ecxt_per_tuple_memory);
		econtext->ecxt_scantuple = scan->slot;
		if (ExecQual(node->qual, econtext))
			return ExecProject(node->ps_ProjInfo);
	}
	return ExecClearTuple(node->ps_ResultTupleSlot);
}

/* Finds the scan, the only one that there is; for planstate_tree_walker(). */
static bool
find_scan(PlanState *node, void *found)
{
	if (!IsA(node, NamedTuplestoreScanState))
		return planstate_tree_walker(node, find_scan, found);
	*(PlanState **) found = node;
	return true;
}

/* After ExecutorStart: lets the scan take the entries. */
static void
take_entries(QueryDesc *query, const PpBatchPlan *plan, PpBatchRelation *batch)
{
	EState *estate = query->estate;
	MemoryContext old = MemoryContextSwitchTo(estate->es_query_cxt);
	PpBatchScan *scan = palloc0(sizeof(PpBatchScan));
	PlanState *node = NULL;
	ListCell *lc;

	if (!find_scan(query->planstate, &node))
		elog(ERROR, "the scan of a batch is not in its plan");
	scan->plan = plan;
	foreach (lc, plan->fields)
		pp_field_begin(lfirst(lc));
	scan->slot = ExecInitExtraTupleSlot(estate, plan->desc, &TTSOpsVirtual);
	memset(scan->slot->tts_isnull, true, plan->desc->natts * sizeof(bool));
	scan->target = pp_row_target(query->planstate, node);
	/* It may be another one at any time: ExecBuildProjectionInfo() says so. */
	if (scan->target != NULL)
		node->ps_ProjInfo->pi_state.resultslot = pp_row_slot(scan->target, estate);
	ExecSetExecProcNode(node, next_row);
	batch->scan = scan;
	MemoryContextSwitchTo(old);
}

/*
 * pp_batch_query_start
 *		A query that reads the batch, ready to be run once, in the current memory context, with the active
 *		snapshot: the plan's statement, or one of a part of that.  Its rows go to `dest`.
 */
QueryDesc *
pp_batch_query_start(const PpBatchPlan *plan, PlannedStmt *stmt, const char *sql,
					 const PpBatchRelation *batch, DestReceiver *dest)
{
	QueryEnvironment *env = create_queryEnv();
	PpBatchRelation *relation = palloc(sizeof(PpBatchRelation));
	QueryDesc *query;

	/* A copy: SPI's relation has the columns that the planner knows, this one those that the scan reads. */
	*relation = *batch;
	if (plan->desc != NULL)
		relation->enr.md.tupdesc = plan->desc;
	register_ENR(env, &relation->enr);
	query = CreateQueryDesc(stmt, sql, GetActiveSnapshot(), InvalidSnapshot, dest, NULL, env, 0);
	ExecutorStart(query, 0);
	if (plan->desc != NULL)
		take_entries(query, plan, relation);
	else
		pp_batch_fill(relation);
	return query;
}

/* After it was run. */
void
pp_batch_query_end(QueryDesc *query)
{
	ExecutorFinish(query);
	ExecutorEnd(query);
	FreeQueryDesc(query);
}
