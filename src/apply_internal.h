/*
 * apply_internal.h
 *		Shared by apply.c and split.c alone.
 */
#ifndef PP_APPLY_INTERNAL_H
#define PP_APPLY_INTERNAL_H

#include "apply.h"
#include "statement.h"

struct PpApply
{
	MemoryContext cxt;
	MemoryContext call_cxt; /* for one call of pp_apply_batch() */
	const PpExtension *ext;
	PpPipeline *pipeline;
	PpLedger ledger;
	PpStatement *statement;
	PpId
		lone_id; /* an entry that failed alone in its batch with an error of the pipeline's kind … */
	int batches_without_conflict; /* in a row */
	int batches_wanted;           /* of them, before a plain insert is tried */
	int lone_attempts;            /* … and how often */
};

extern bool pp_apply_begin(PpApply *a);
extern PpEntryError *pp_apply_take_error(PpApply *a, MemoryContext cxt);
extern PpEntryError *pp_apply_roll_back(PpApply *a, MemoryContext cxt);
extern PpOutcome pp_apply_outcome_of(const PpEntryError *error);
extern int pp_apply_compare_waves(const void *x, const void *y);
extern void pp_apply_run_waves(PpApply *a, PpEntry **entries, int n, bool plain,
							   PpApplyResult *result);
extern void pp_apply_finish(PpApply *a, PpBatch *batch, PpApplyResult *result);
extern void pp_apply_reopen(PpBatch *batch);
extern int pp_apply_collect_open(PpApply *a, PpBatch *batch, PpEntry ***open);

/* split.c */
extern PpOutcome pp_apply_split(PpApply *a, PpBatch *batch, PpApplyResult *result);

#endif /* PP_APPLY_INTERNAL_H */
