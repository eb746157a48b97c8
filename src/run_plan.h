/*
 * run_plan.h
 *		The kept plan of a statement, run over a batch.
 */
#ifndef PP_RUN_PLAN_H
#define PP_RUN_PLAN_H

#include "postpipe.h"
#include "executor/spi.h"

#include "batch_relation.h"

extern void pp_run_plan(SPIPlanPtr plan, const char *search_path, PpBatchRelation *batch, bool bulk,
						DestReceiver *dest);

#endif /* PP_RUN_PLAN_H */
