/*
 * batch_row.h
 *		A row on its way from the scan of a batch into the table of an INSERT.
 */
#ifndef PP_BATCH_ROW_H
#define PP_BATCH_ROW_H

#include "postpipe.h"
#include "nodes/execnodes.h"

extern bool pp_row_fits(Relation rel, const Plan *rows);
extern ResultRelInfo *pp_row_target(PlanState *root, PlanState *scan);
extern TupleTableSlot *pp_row_slot(ResultRelInfo *target, EState *estate);
extern bool pp_row_pass(ResultRelInfo *target, TupleTableSlot *slot);

#endif /* PP_BATCH_ROW_H */
