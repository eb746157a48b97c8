/*
 * bulk_index.h
 *		Index entries of many new rows, index by index and in the order of the keys.
 */
#ifndef PP_BULK_INDEX_H
#define PP_BULK_INDEX_H

#include "postpipe.h"
#include "nodes/execnodes.h"

typedef struct PpBulkIndex PpBulkIndex;

extern PpBulkIndex *pp_bulk_index_begin(ResultRelInfo *target, EState *estate, int max_rows);
extern void pp_bulk_index_add(PpBulkIndex *bulk, TupleTableSlot *row);
extern void pp_bulk_index_flush(PpBulkIndex *bulk);

#endif /* PP_BULK_INDEX_H */
