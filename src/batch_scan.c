/*
 * batch_scan.c
 *		Rows for a plan that reads postpipe_batch, from the entries themselves.
 *
 * Through a tuplestore every event is made a jsonb, copied into a tuple, and its fields are looked for
 * in it and copied out again.  Most plans take nothing but fields of it (batch_field.c).  So such an
 * expression becomes a column of its own, filled from the entry, and the scan's target list is run
 * over a row that exists only as an array of values; what else it takes is made when it is asked for.
 * All else of the plan stays as it is.
 *
 * Only for a scan that is the plan's only one and is run once from begin to end, and only if it makes its
 * rows of a target list (with the bare columns the node above expects a tuple).
 */
#include "batch_relation.h"

#include "executor/executor.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "utils/snapmgr.h"

#include "batch_field.h"
#include "batch_row.h"
#include "compat.h"
#include "process.h"

#define MEANWHILE_EVERY 64 /* entries: of 1 kB, a third of what a socket holds */

typedef struct PpBatchScan
{
	Index relid; /* of the scan, in the plan's range table */
	bool wanted[PP_BATCH_COLUMNS + 1];
	bool whole_row;
	List *fields; /* PpField */
	bool always;  /* what is looked at is evaluated for each row in any case */
	int next;
	TupleTableSlot *slot; /* columns, then fields */
	ExprState *qual;      /* NULL: all rows */
	ProjectionInfo *projection;
	ResultRelInfo *target; /* takes the rows as they are, once it has begun; else NULL */
} PpBatchScan;

/* The number of the column that is this field, from 1. */
static AttrNumber
field_column(PpBatchScan *scan, PpField *field)
{
	AttrNumber column = PP_BATCH_COLUMNS;
	ListCell *lc;

	foreach (lc, scan->fields)
	{
		column++;
		if (equal(pp_field_expression(lfirst(lc)), pp_field_expression(field)))
			return column;
	}
	scan->fields = lappend(scan->fields, field);
	return column + 1;
}

static Node *replace_fields(Node *node, void *context);

/* Only the first argument is evaluated in any case. */
static Node *
replace_in_coalesce(CoalesceExpr *coalesce, PpBatchScan *scan)
{
	CoalesceExpr *copy = makeNode(CoalesceExpr);
	bool always = scan->always;
	ListCell *lc;

	*copy = *coalesce;
	copy->args = NIL;
	foreach (lc, coalesce->args)
	{
		copy->args = lappend(copy->args, replace_fields(lfirst(lc), scan));
		scan->always = false;
	}
	scan->always = always;
	return (Node *) copy;
}

/* A copy of an expression that has columns where it had fields. */
static Node *
replace_fields(Node *node, void *context)
{
	PpBatchScan *scan = context;
	bool always = scan->always;
	PpField *field;
	Node *copy;

	if (node == NULL)
		return NULL;
	if (IsA(node, List) || IsA(node, TargetEntry))
		return expression_tree_mutator(node, replace_fields, context);
	if ((field = pp_field_make(node, scan->relid, scan->always)) != NULL)
		return (Node *) makeVar((int) scan->relid, field_column(scan, field), exprType(node), -1,
								exprCollation(node), 0);
	if (IsA(node, CoalesceExpr))
		return replace_in_coalesce((CoalesceExpr *) node, scan);
	if (IsA(node, Var) && ((Var *) node)->varno == scan->relid)
	{
		scan->whole_row |= ((Var *) node)->varattno <= 0;
		scan->wanted[Max(((Var *) node)->varattno, 0)] = true;
	}
	scan->always = false;
	copy = expression_tree_mutator(node, replace_fields, context);
	scan->always = always;
	return copy;
}

static TupleDesc
make_descriptor(const PpBatchScan *scan, TupleDesc batch)
{
	TupleDesc desc = CreateTemplateTupleDesc(PP_BATCH_COLUMNS + list_length(scan->fields));
	AttrNumber column = 0;
	ListCell *lc;

	while (++column <= PP_BATCH_COLUMNS)
		TupleDescCopyEntry(desc, column, batch, column);
	foreach (lc, scan->fields)
		TupleDescInitEntry(desc, column++, NULL, exprType(pp_field_expression(lfirst(lc))), -1, 0);
	return desc;
}

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
		if (scan->wanted[c])
			slot->tts_values[c - 1] =
				pp_batch_value(batch, scan->next, c, &slot->tts_isnull[c - 1]);
	foreach (lc, scan->fields)
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

	if (scan->target != NULL && pp_row_pass(scan->target, scan->projection->pi_state.resultslot))
		scan->target = NULL;
	while (scan->next < batch->n)
	{
		CHECK_FOR_INTERRUPTS();
		if (scan->next % MEANWHILE_EVERY == 0 && pp_process_meanwhile != NULL)
			pp_process_meanwhile();
		ResetExprContext(econtext);
		take_entry(scan, batch, econtext->ecxt_per_tuple_memory);
		econtext->ecxt_scantuple = scan->slot;
		if (ExecQual(scan->qual, econtext))
			return ExecProject(scan->projection);
	}
	return ExecClearTuple(node->ps_ResultTupleSlot);
}

static bool
count_scans(PlanState *node, void *count)
{
	*(int *) count += IsA(node, NamedTuplestoreScanState);
	return planstate_tree_walker(node, count_scans, count);
}

/* The scan of a plan, if it is the only one and runs once; else NULL. */
static PlanState *
find_scan(PlanState *root)
{
	int count = 0;

	(void) count_scans(root, &count);
	if (count != 1)
		return NULL;
	while (root != NULL && !IsA(root, NamedTuplestoreScanState))
		switch (nodeTag(root))
		{
			case T_SubqueryScanState:
				root = ((SubqueryScanState *) root)->subplan;
				break;
			case T_ModifyTableState:
			case T_ResultState:
			case T_SortState:
			case T_AggState:
			case T_NestLoopState:
			case T_HashJoinState:
				root = outerPlanState(root);
				break;
			default:
				return NULL;
		}
	return root;
}

/*
 * After ExecutorStart, of a query whose environment has the relation: lets its only scan of it take the
 * entries.  False: it cannot, and reads the tuplestore.
 */
static bool
begin(PlanState *root, PpBatchRelation *batch)
{
	PlanState *node = find_scan(root);
	EState *estate = root->state;
	PpBatchScan *scan;
	MemoryContext old;
	List *targets;
	List *qual;

	if (node == NULL || node->ps_ProjInfo == NULL)
		return false;
	old = MemoryContextSwitchTo(estate->es_query_cxt);
	scan = palloc0(sizeof(PpBatchScan));
	scan->relid = ((Scan *) node->plan)->scanrelid;
	scan->always = node->plan->qual == NIL;
	targets = (List *) replace_fields((Node *) node->plan->targetlist, scan);
	scan->always = false;
	qual = (List *) replace_fields((Node *) node->plan->qual, scan);
	if (!scan->whole_row)
	{
		TupleDesc desc = make_descriptor(scan, batch->enr.md.tupdesc);

		scan->slot = ExecInitExtraTupleSlot(estate, desc, &TTSOpsVirtual);
		memset(scan->slot->tts_isnull, true, desc->natts * sizeof(bool));
		/* JIT compiles for the slot that the node is said to scan. */
		node->scandesc = desc;
		node->scanops = &TTSOpsVirtual;
		node->scanopsfixed = node->scanopsset = true;
		scan->qual = ExecInitQual(qual, node);
		scan->target = pp_row_target(root, node);
		scan->projection = ExecBuildProjectionInfo(targets, node->ps_ExprContext,
												   scan->target ? pp_row_slot(scan->target, estate)
																: node->ps_ResultTupleSlot,
												   node, desc);
		ExecSetExecProcNode(node, next_row);
		batch->scan = scan;
	}
	MemoryContextSwitchTo(old);
	return batch->scan != NULL;
}

/*
 * pp_batch_query_start
 *		A query that reads the batch, ready to be run once, in the current memory context, with the active
 *		snapshot.  Its rows go to `dest`.
 */
QueryDesc *
pp_batch_query_start(PlannedStmt *stmt, const char *sql, PpBatchRelation *batch, DestReceiver *dest)
{
	QueryEnvironment *env = create_queryEnv();
	QueryDesc *query;

	register_ENR(env, &batch->enr);
	query = CreateQueryDesc(stmt, sql, GetActiveSnapshot(), InvalidSnapshot, dest, NULL, env, 0);
	ExecutorStart(query, 0);
	if (!begin(query->planstate, batch))
		pp_batch_fill(batch);
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
