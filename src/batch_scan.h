/*
 * batch_scan.h
 *		Rows for a plan that reads postpipe_batch, from the entries themselves.
 */
#ifndef PP_BATCH_SCAN_H
#define PP_BATCH_SCAN_H

#include "batch_plan.h"

#include "executor/execdesc.h"

extern QueryDesc *pp_batch_query_start(const PpBatchPlan *plan, PlannedStmt *stmt, const char *sql,
									   const PpBatchRelation *batch, DestReceiver *dest);
extern void pp_batch_query_end(QueryDesc *query);

#endif /* PP_BATCH_SCAN_H */
