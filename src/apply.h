/*
 * apply.h
 *		A batch of entries through the pipeline's statement.
 */
#ifndef PP_APPLY_H
#define PP_APPLY_H

#include "ledger.h"

#include "access/xlogdefs.h"

typedef struct PpApply PpApply;

typedef enum PpOutcome
{
	PP_OUTCOME_DONE,     /* every entry of the batch is settled */
	PP_OUTCOME_MOMENT,   /* try the batch again later; nothing is wrong with it or the pipeline */
	PP_OUTCOME_PIPELINE, /* the pipeline has to be mended; the batch again later */
	PP_OUTCOME_GONE      /* the extension is dropped, or the definition changed or gone */
} PpOutcome;

/* What one call has done, also if it did not settle all. */
typedef struct PpApplyResult
{
	XLogRecPtr lsn; /* what has to be durable before the batch is acknowledged */
	int applied;
	int conflicted; /* of applied: rows that were there before, where the statement tells */
	int filtered;
	int duplicates;
	int dead;    /* became "dead" */
	int retried; /* became "retrying" */
	int lost;
	TimestampTz retry_at; /* when the first of those retried is due; 0: none */
	PpEntryError *error;  /* the last error; NULL: none. Valid until the next call */
} PpApplyResult;

/* What is done in a transaction outside a batch. */
typedef void (*PpWork)(PpApply *a, void *arg);

extern PpApply *pp_apply_create(MemoryContext cxt, const PpExtension *ext, PpPipeline *pipeline,
								int worker);
extern void pp_apply_open(PpApply *a, void *mark);
extern void pp_apply_prepare(PpApply *a);
extern PpOutcome pp_apply_batch(PpApply *a, PpBatch *batch, bool look_up, PpApplyResult *result);
extern PpLedger *pp_apply_ledger(PpApply *a);
extern PpOutcome pp_apply_transaction(PpApply *a, PpWork work, void *arg, bool keep,
									  PpEntryError **error);
extern Oid pp_apply_role(const PpApply *a);

#endif /* PP_APPLY_H */
