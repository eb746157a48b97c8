/*
 * batch_plan.h
 *		A plan that reads postpipe_batch, changed so that its scan takes the entries themselves.
 */
#ifndef PP_BATCH_PLAN_H
#define PP_BATCH_PLAN_H

#include "batch_relation.h"

#include "nodes/plannodes.h"

typedef struct PpBatchPlan
{
	PlannedStmt *stmt;
	TupleDesc desc; /* of what is scanned; NULL: the plan is as it was, and reads the tuplestore */
	bool wanted[PP_BATCH_COLUMNS + 1]; /* of the columns of the batch, by their number */
	List *fields;                      /* PpField, the columns behind those */
} PpBatchPlan;

extern PpBatchPlan *pp_batch_plan_make(PlannedStmt *stmt, TupleDesc batch);

#endif /* PP_BATCH_PLAN_H */
