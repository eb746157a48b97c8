/*
 * bulk_insert.h
 *		A plain INSERT … SELECT whose rows go into the table many at a time, as those of COPY do.
 */
#ifndef PP_BULK_INSERT_H
#define PP_BULK_INSERT_H

#include "postpipe.h"
#include "utils/rel.h"

#include "batch_plan.h"

extern bool pp_bulk_insert_allowed(Relation rel);
extern bool pp_bulk_insert(const PpBatchPlan *plan, const char *sql, const PpBatchRelation *batch);

#endif /* PP_BULK_INSERT_H */
