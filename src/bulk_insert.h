/*
 * bulk_insert.h
 *		A plain INSERT … SELECT whose rows go into the table many at a time, as those of COPY do.
 */
#ifndef PP_BULK_INSERT_H
#define PP_BULK_INSERT_H

#include "postpipe.h"
#include "nodes/plannodes.h"
#include "utils/rel.h"

#include "batch_relation.h"

extern bool pp_bulk_insert_allowed(Relation rel);
extern bool pp_bulk_insert(PlannedStmt *stmt, const char *sql, PpBatchRelation *batch);

#endif /* PP_BULK_INSERT_H */
