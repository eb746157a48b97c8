/*
 * batch_plan.c
 *		A plan that reads postpipe_batch, changed so that its scan takes the entries themselves.
 *
 * Through a tuplestore every event is made a jsonb, copied into a tuple, and its fields are looked for
 * in it and copied out again.  Most plans take nothing but fields of it (batch_field.c).  So in a copy of
 * the plan such an expression is a column of its own, which batch_scan.c fills from the entry; what else
 * the scan's target list takes is made when it is asked for.  All else of the plan stays as it is.
 *
 * The copy is made once for each plan that is kept: for a single entry that takes longer than to run it.
 *
 * Only for a scan that is the plan's only one and is run once from begin to end, and takes no whole rows.
 */
#include "batch_plan.h"

#include "catalog/pg_type.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "parser/parsetree.h"

#include "batch_field.h"

typedef struct Replacing
{
	PpBatchPlan *plan;
	Index relid;
	bool always;    /* what is looked at is evaluated for each row in any case */
	bool whole_row; /* is taken, which there is not */
} Replacing;

/* The number of the column that is this field, from 1. */
static AttrNumber
field_column(PpBatchPlan *plan, PpField *field)
{
	AttrNumber column = PP_BATCH_COLUMNS;
	ListCell *lc;

	foreach (lc, plan->fields)
	{
		column++;
		if (equal(pp_field_expression(lfirst(lc)), pp_field_expression(field)))
			return column;
	}
	plan->fields = lappend(plan->fields, field);
	return column + 1;
}

static Node *replace_fields(Node *node, void *context);

/* Only the first argument is evaluated in any case. */
static Node *
replace_in_coalesce(CoalesceExpr *coalesce, Replacing *replacing)
{
	CoalesceExpr *copy = makeNode(CoalesceExpr);
	bool always = replacing->always;
	ListCell *lc;

	*copy = *coalesce;
	copy->args = NIL;
	foreach (lc, coalesce->args)
	{
		copy->args = lappend(copy->args, replace_fields(lfirst(lc), replacing));
		replacing->always = false;
	}
	replacing->always = always;
	return (Node *) copy;
}

/* A copy of an expression that has columns where it had fields. */
static Node *
replace_fields(Node *node, void *context)
{
	Replacing *replacing = context;
	bool always = replacing->always;
	PpField *field;
	Node *copy;

	if (node == NULL)
		return NULL;
	if (IsA(node, List) || IsA(node, TargetEntry))
		return expression_tree_mutator(node, replace_fields, context);
	if ((field = pp_field_make(node, replacing->relid, replacing->always)) != NULL)
		return (Node *) makeVar((int) replacing->relid, field_column(replacing->plan, field),
								exprType(node), -1, exprCollation(node), 0);
	if (IsA(node, CoalesceExpr))
		return replace_in_coalesce((CoalesceExpr *) node, replacing);
	if (IsA(node, Var) && ((Var *) node)->varno == replacing->relid)
	{
		replacing->whole_row |= ((Var *) node)->varattno <= 0;
		replacing->plan->wanted[Max(((Var *) node)->varattno, 0)] = true;
	}
	replacing->always = false;
	copy = expression_tree_mutator(node, replace_fields, context);
	replacing->always = always;
	return copy;
}

/*
 * What is scanned has a column more than anybody takes: so a target list is never all of it, in which case the
 * executor would pass on what it scans as it is.
 */
static TupleDesc
make_descriptor(const PpBatchPlan *plan, TupleDesc batch)
{
	int columns = PP_BATCH_COLUMNS + list_length(plan->fields) + 1;
	TupleDesc desc = CreateTemplateTupleDesc(columns);
	AttrNumber column = 0;
	ListCell *lc;

	while (++column <= PP_BATCH_COLUMNS)
		TupleDescCopyEntry(desc, column, batch, column);
	foreach (lc, plan->fields)
		TupleDescInitEntry(desc, column++, "field", exprType(pp_field_expression(lfirst(lc))), -1,
						   0);
	TupleDescInitEntry(desc, column, "nothing", BOOLOID, -1, 0);
	return desc;
}

/* Who prints the plan looks for their names. */
static void
name_columns(RangeTblEntry *rte, TupleDesc desc)
{
	for (int i = PP_BATCH_COLUMNS; i < desc->natts; i++)
		rte->eref->colnames = lappend(
			rte->eref->colnames, makeString(pstrdup(NameStr(TupleDescAttr(desc, i)->attname))));
}

/* Each scan of a plan has an entry of its own in the range table. */
static bool
is_read_once(const PlannedStmt *stmt)
{
	int n = 0;
	ListCell *lc;

	foreach (lc, stmt->rtable)
		n += lfirst_node(RangeTblEntry, lc)->rtekind == RTE_NAMEDTUPLESTORE;
	return n == 1;
}

/* The scan, if it is run once, else NULL. */
static Plan *
find_scan(Plan *plan)
{
	while (plan != NULL && !IsA(plan, NamedTuplestoreScan))
		switch (nodeTag(plan))
		{
			case T_SubqueryScan:
				plan = ((SubqueryScan *) plan)->subplan;
				break;
			case T_ModifyTable:
			case T_Result:
			case T_Sort:
			case T_Agg:
			case T_NestLoop:
			case T_HashJoin:
				plan = outerPlan(plan);
				break;
			default:
				return NULL;
		}
	return plan;
}

/* Lets the scan of a copy take the entries.  False: it cannot. */
static bool
change_scan(PpBatchPlan *plan, Plan *scan, TupleDesc batch)
{
	Replacing replacing = {plan};

	replacing.relid = ((Scan *) scan)->scanrelid;
	replacing.always = scan->qual == NIL;
	scan->targetlist = (List *) replace_fields((Node *) scan->targetlist, &replacing);
	replacing.always = false;
	scan->qual = (List *) replace_fields((Node *) scan->qual, &replacing);
	if (replacing.whole_row)
		return false;
	plan->desc = make_descriptor(plan, batch);
	name_columns(rt_fetch(replacing.relid, plan->stmt->rtable), plan->desc);
	return true;
}

/*
 * pp_batch_plan_make
 *		What is run of a plan that was made for the relation `batch`: such a copy in the current memory context;
 *		or the plan itself, as long as SPI has it, if its scan cannot take the entries.
 */
PpBatchPlan *
pp_batch_plan_make(PlannedStmt *stmt, TupleDesc batch)
{
	PpBatchPlan *plan = palloc0(sizeof(PpBatchPlan));

	plan->stmt = stmt;
	if (!is_read_once(stmt) || find_scan(stmt->planTree) == NULL)
		return plan;
	plan->stmt = copyObject(stmt);
	if (!change_scan(plan, find_scan(plan->stmt->planTree), batch))
		plan->stmt = stmt;
	return plan;
}
