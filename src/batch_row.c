/*
 * batch_row.c
 *		A row on its way from the scan of a batch into the table of an INSERT.
 *
 * The executor makes a tuple of each row that is to be inserted, and takes its columns out of it again, for
 * constraints and what ON CONFLICT does.  If the row is there already nobody needs that tuple.  So the row
 * is passed on as an array of values: in a slot of a kind of its own, because of an inserted row RETURNING
 * may ask who has locked or deleted it, which a virtual slot refuses to say.
 *
 * Only where nobody keeps the slot for longer than the row is in hand: in plain tables without triggers; and
 * where no other INSERT, UPDATE or DELETE of the statement resets the memory that generated columns are in.
 */
#include "batch_row.h"

#include "access/sysattr.h"
#include "access/tableam.h"
#include "executor/executor.h"
#include "optimizer/optimizer.h"
#include "utils/rel.h"

/* Of a row that was just inserted. */
static Datum
get_system_attribute(TupleTableSlot *slot, int attnum, bool *isnull)
{
	if (attnum != MaxTransactionIdAttributeNumber)
		elog(ERROR, "a row of a batch has no system column %d", attnum);
	*isnull = false;
	return TransactionIdGetDatum(InvalidTransactionId);
}

/* The values stay where they are as long as the row is in hand. */
static void
materialize(TupleTableSlot *slot)
{
}

static const TupleTableSlotOps *
slot_ops(void)
{
	static TupleTableSlotOps ops;

	ops = TTSOpsVirtual;
	ops.getsysattr = get_system_attribute;
	ops.materialize = materialize;
	return &ops;
}

/* Do RETURNING and the checks of a view ask for nothing but what is known of a row that was just inserted? */
static bool
asks_what_is_known(const ModifyTable *insert, Index relid)
{
	Bitmapset *columns = NULL;
	int column = -1;

	pull_varattnos((Node *) insert->returningLists, relid, &columns);
	pull_varattnos((Node *) insert->withCheckOptionLists, relid, &columns);
	while ((column = bms_next_member(columns, column)) >= 0)
	{
		int attnum = column + FirstLowInvalidHeapAttributeNumber;

		if (attnum < 0 && attnum != SelfItemPointerAttributeNumber &&
			attnum != MaxTransactionIdAttributeNumber && attnum != TableOidAttributeNumber)
			return false;
	}
	return true;
}

/*
 * pp_row_fits
 *		Is it a plain table without triggers, and are the rows of this plan whole rows of it?
 */
bool
pp_row_fits(Relation rel, const Plan *rows)
{
	ListCell *lc;

	if (rel->rd_rel->relkind != RELKIND_RELATION || rel->trigdesc != NULL ||
		list_length(rows->targetlist) != RelationGetNumberOfAttributes(rel))
		return false;
	foreach (lc, rows->targetlist)
		if (lfirst_node(TargetEntry, lc)->resjunk)
			return false;
	return true;
}

/*
 * pp_row_target
 *		The table into which the rows of a scan go as they are; NULL: they do not, or need a tuple.
 */
ResultRelInfo *
pp_row_target(PlanState *root, PlanState *scan)
{
	ModifyTableState *insert = (ModifyTableState *) root;
	ResultRelInfo *target;
	Relation rel;

	if (!IsA(root, ModifyTableState) || insert->operation != CMD_INSERT || insert->mt_nrels != 1 ||
		outerPlanState(root) != scan)
		return NULL;
	target = insert->resultRelInfo;
	rel = target->ri_RelationDesc;
	if (!pp_row_fits(rel, scan->plan) || table_slot_callbacks(rel) != &TTSOpsBufferHeapTuple ||
		root->state->es_plannedstmt->hasModifyingCTE ||
		!asks_what_is_known((ModifyTable *) root->plan, target->ri_RangeTableIndex))
		return NULL;
	return target;
}

/* A slot for its rows. */
TupleTableSlot *
pp_row_slot(ResultRelInfo *target, EState *estate)
{
	/* A copy: nobody counts references to it. */
	TupleDesc desc = CreateTupleDescCopy(RelationGetDescr(target->ri_RelationDesc));

	return ExecInitExtraTupleSlot(estate, desc, slot_ops());
}

/*
 * pp_row_pass
 *		Lets the INSERT take the slot as it is, once it has begun: then it has compared the rows with the table
 *		and knows whether they have columns that are not its own.  False: it has not begun.
 */
bool
pp_row_pass(ResultRelInfo *target, TupleTableSlot *slot)
{
	if (!target->ri_projectNewInfoValid)
		return false;
	/* It copies rows only into a slot of another kind. */
	if (target->ri_projectNew == NULL)
		target->ri_newTupleSlot = slot;
	return true;
}
