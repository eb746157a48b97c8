/*
 * batch_relation.h
 *		postpipe_batch: the relation that a statement reads, made of the entries of a batch.
 */
#ifndef PP_BATCH_RELATION_H
#define PP_BATCH_RELATION_H

#include "batch.h"
#include "pipeline.h"

#include "access/tupdesc.h"
#include "utils/queryenvironment.h"

/* Its columns. */
typedef enum PpBatchColumn
{
	PP_BATCH_ID = 1,
	PP_BATCH_ORD, /* position in the batch, from 1 */
	PP_BATCH_STREAM,
	PP_BATCH_EVENT,
	PP_BATCH_ENVELOPE,
	PP_BATCH_ADDED_AT,
	PP_BATCH_COLUMNS = PP_BATCH_ADDED_AT
} PpBatchColumn;

typedef struct PpBatchRelation
{
	EphemeralNamedRelationData enr; /* first: it is found by its name in a query's environment */
	PpEntry **entries;
	int n;
	Datum stream;             /* text */
	struct PpBatchScan *scan; /* of a query that reads it without a tuplestore: batch_scan.c */
} PpBatchRelation;

extern TupleDesc pp_batch_descriptor(const PpExtension *ext);
extern PpBatchRelation *pp_batch_register(TupleDesc desc, const char *stream, PpEntry **entries,
										  int n, double estimate);
extern void pp_batch_unregister(void);
extern void pp_batch_fill(PpBatchRelation *batch);
extern PpBatchRelation *pp_batch_find(QueryEnvironment *env);
extern Datum pp_batch_value(const PpBatchRelation *batch, int i, PpBatchColumn column,
							bool *isnull);

#endif /* PP_BATCH_RELATION_H */
