/*
 * batch_scan.c
 *		Rows for a plan that reads postpipe_batch, from the entries themselves.
 *
 * Through a tuplestore every event is made a jsonb, copied into a tuple, and its fields are looked for
 * in it and copied out again.  Most plans take nothing but event ->> 'name' of it, or nullif() of that
 * and ''.  So such an expression becomes a column of its own, filled from the entry, and the scan's
 * target list is run over a row that exists only as an array of values; what else it takes is made
 * when it is asked for.  All else of the plan stays as it is.
 *
 * Only for a scan that is the plan's only one and is run once from begin to end, and only if it makes its
 * rows of a target list (with the bare columns the node above expects a tuple).
 */
#include "batch_relation.h"

#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "event_object.h"
#include "process.h"

#define MEANWHILE_EVERY 64 /* entries: of 1 kB, a third of what a socket holds */

/* event ->> 'name', or nullif(event ->> 'name', ''), as a column. */
typedef struct Field
{
	PpBatchColumn object; /* event or envelope */
	const char *name;
	int len;
	bool empty_is_null;
	PpPlace place;
} Field;

typedef struct PpBatchScan
{
	Index relid; /* of the scan, in the plan's range table */
	bool wanted[PP_BATCH_COLUMNS + 1];
	bool whole_row;
	int nfields;
	Field *fields;
	int next;
	TupleTableSlot *slot; /* columns, then fields */
	ExprState *qual;      /* NULL: all rows */
	ProjectionInfo *projection;
} PpBatchScan;

/* Is the expression a field's? */
static bool
is_field(const PpBatchScan *scan, Node *node, Field *field)
{
	OpExpr *op = (OpExpr *) node;
	Var *object;
	Const *name;

	if (!IsA(node, OpExpr) || op->opfuncid != F_JSONB_OBJECT_FIELD_TEXT)
		return false;
	object = linitial(op->args);
	name = lsecond(op->args);
	if (!IsA(object, Var) || object->varno != scan->relid ||
		(object->varattno != PP_BATCH_EVENT && object->varattno != PP_BATCH_ENVELOPE) ||
		!IsA(name, Const) || name->constisnull)
		return false;
	*field = (Field){.object = object->varattno,
					 .name = VARDATA_ANY(DatumGetPointer(name->constvalue)),
					 .len = (int) VARSIZE_ANY_EXHDR(DatumGetPointer(name->constvalue))};
	return true;
}

/* Is it nullif() of a field and ''? */
static bool
is_field_or_empty(const PpBatchScan *scan, Node *node, Field *field)
{
	NullIfExpr *nullif = (NullIfExpr *) node;
	Const *empty;

	if (!IsA(node, NullIfExpr) || nullif->opfuncid != F_TEXTEQ ||
		!is_field(scan, linitial(nullif->args), field))
		return false;
	empty = lsecond(nullif->args);
	field->empty_is_null = true;
	return IsA(empty, Const) && !empty->constisnull &&
		   VARSIZE_ANY_EXHDR(DatumGetPointer(empty->constvalue)) == 0;
}

/* The number of the column that is this field, from 1. */
static AttrNumber
field_column(PpBatchScan *scan, const Field *field)
{
	for (int i = 0; i < scan->nfields; i++)
	{
		const Field *other = &scan->fields[i];

		if (field->object == other->object && field->len == other->len &&
			field->empty_is_null == other->empty_is_null &&
			memcmp(field->name, other->name, field->len) == 0)
			return (AttrNumber) (PP_BATCH_COLUMNS + i + 1);
	}
	scan->fields = scan->fields == NULL
					   ? palloc(sizeof(Field))
					   : repalloc(scan->fields, (scan->nfields + 1) * sizeof(Field));
	scan->fields[scan->nfields++] = *field;
	return (AttrNumber) (PP_BATCH_COLUMNS + scan->nfields);
}

/* A copy of an expression that has columns where it had fields. */
static Node *
replace_fields(Node *node, void *context)
{
	PpBatchScan *scan = context;
	Field field;

	if (node == NULL)
		return NULL;
	if (is_field_or_empty(scan, node, &field) || is_field(scan, node, &field))
		return (Node *) makeVar((int) scan->relid, field_column(scan, &field), TEXTOID, -1,
								DEFAULT_COLLATION_OID, 0);
	if (IsA(node, Var) && ((Var *) node)->varno == scan->relid)
	{
		scan->whole_row |= ((Var *) node)->varattno <= 0;
		scan->wanted[Max(((Var *) node)->varattno, 0)] = true;
	}
	return expression_tree_mutator(node, replace_fields, context);
}

static TupleDesc
make_descriptor(const PpBatchScan *scan, TupleDesc batch)
{
	TupleDesc desc = CreateTemplateTupleDesc(PP_BATCH_COLUMNS + scan->nfields);

	for (AttrNumber i = 1; i <= PP_BATCH_COLUMNS; i++)
		TupleDescCopyEntry(desc, i, batch, i);
	for (AttrNumber i = PP_BATCH_COLUMNS + 1; i <= desc->natts; i++)
		TupleDescInitEntry(desc, i, NULL, TEXTOID, -1, 0);
	return desc;
}

static Datum
field_value(Field *field, const PpEntry *entry, bool *isnull)
{
	const PpObject *object = field->object == PP_BATCH_EVENT ? entry->event : entry->envelope;
	const PpPair *pair =
		object ? pp_object_find(object, field->name, field->len, &field->place) : NULL;
	PpString text;

	*isnull = pair == NULL || !pp_pair_text(pair, &text) || (field->empty_is_null && text.len == 0);
	if (*isnull)
		return (Datum) 0;
	if (object->in_texts && pair->type == JENTRY_ISSTRING)
		return PointerGetDatum(text.data - VARHDRSZ);
	return PointerGetDatum(cstring_to_text_with_len(text.data, (int) text.len));
}

/* Fills the slot from the next entry. */
static void
take_entry(PpBatchScan *scan, const PpBatchRelation *batch, MemoryContext cxt)
{
	TupleTableSlot *slot = scan->slot;
	MemoryContext old = MemoryContextSwitchTo(cxt);

	ExecClearTuple(slot);
	for (int c = 1; c <= PP_BATCH_COLUMNS; c++)
		if (scan->wanted[c])
			slot->tts_values[c - 1] =
				pp_batch_value(batch, scan->next, c, &slot->tts_isnull[c - 1]);
	for (int i = 0; i < scan->nfields; i++)
		slot->tts_values[PP_BATCH_COLUMNS + i] = field_value(
			&scan->fields[i], batch->entries[scan->next], &slot->tts_isnull[PP_BATCH_COLUMNS + i]);
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
	targets = (List *) replace_fields((Node *) node->plan->targetlist, scan);
	qual = (List *) replace_fields((Node *) node->plan->qual, scan);
	if (!scan->whole_row)
	{
		TupleDesc desc = make_descriptor(scan, batch->enr.md.tupdesc);

		scan->slot = ExecInitExtraTupleSlot(estate, desc, &TTSOpsVirtual);
		memset(scan->slot->tts_isnull, true, desc->natts * sizeof(bool));
		scan->qual = ExecInitQual(qual, node);
		scan->projection = ExecBuildProjectionInfo(targets, node->ps_ExprContext,
												   node->ps_ResultTupleSlot, node, desc);
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
