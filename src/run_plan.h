/*
 * run_plan.h
 *		The kept plan of a statement, run over a batch.
 */
#ifndef PP_RUN_PLAN_H
#define PP_RUN_PLAN_H

#include "postpipe.h"
#include "executor/spi.h"

#include "batch_plan.h"

/* A plan that SPI keeps, and what is run of it. */
typedef struct PpKeptPlan
{
	SPIPlanPtr spi; /* NULL: there is none */
	PpBatchPlan *plan;
	MemoryContext cxt; /* of that */
	int generation;    /* for which it was made, by SPI's count, which begins with 1; 0: for none */
} PpKeptPlan;

extern void pp_run_keep(PpKeptPlan *kept, SPIPlanPtr plan, MemoryContext parent);
extern void pp_run_forget(PpKeptPlan *kept);
extern void pp_run_plan(PpKeptPlan *kept, const char *search_path, PpBatchRelation *batch,
						bool bulk, DestReceiver *dest);

#endif /* PP_RUN_PLAN_H */
