/*
 * apply_internal.h
 *		Shared by what applies a batch: apply*.c, split.c, waves.c, sample.c, retry.c, overtaken.c,
 *		threshold.c, and replay in a backend.
 */
#ifndef PP_APPLY_INTERNAL_H
#define PP_APPLY_INTERNAL_H

#include "apply.h"
#include "dead_letter.h"
#include "shmem.h"
#include "statement.h"

typedef struct PpSkip PpSkip;

/* Attempts in a row that failed with an error of one class that comes from outside. */
typedef struct PpOutside
{
	int attempts;
	int class; /* ERRCODE_TO_CATEGORY */
} PpOutside;

struct PpApply
{
	MemoryContext cxt;
	MemoryContext call_cxt; /* for one call of pp_apply_batch() */
	const PpExtension *ext;
	PpPipeline *pipeline;
	PpLedger ledger;
	PpStatement *statement;
	PpId lone_id;                 /* what failed alone, with an error of the pipeline's kind, … */
	int lone_attempts;            /* … and how often */
	int batches_without_conflict; /* in a row */
	int batches_wanted;           /* of them, before a plain insert is tried */
	bool looked_up;               /* what is open is not on record; else it must not be applied */
	bool retrying;                /* the batch in hand is of letters (retry.c) */
	PpOutside outside[2];         /* of batches, and of letters */
	bool persists;                /* it did so for so long that this call splits for it */
	MemoryContext retry_cxt;      /* for it */
	MemoryContext sample_cxt;     /* of … */
	PpEntry *sample;              /* … an entry that passed (sample.c); NULL: none has */
	uint64 *watched;              /* keys that have a letter (overtaken.c); NULL: none has */
	int watched_key;              /* which key that was, and 1; 0: to be looked at */
	bool hashed_again;            /* for that, in a transaction that may still roll back */
	bool skips_known;             /* this and below: skip.c */
	uint64 skips_seen;            /* PpPipe.skips, when … */
	int num_skips;                /* … these were read */
	PpSkip *skips;                /* in … */
	MemoryContext skip_cxt;
	double error_threshold;   /* this and below: threshold.c */
	bool stopped;             /* too many have failed */
	bool over;                /* this call found so … */
	int last_sqlstate;        /* … when an entry failed with this */
	MemoryContext stop_cxt;   /* of … */
	PpEntryError *stop_error; /* … why it is stopped */
	PpPipe *pipe;             /* NULL in a backend */
	char *channel;            /* of notify.c; NULL: nobody is told */
	PpDecided counted;        /* by the transaction in hand, in the pipeline's window */
};

/* apply_transaction.c */
extern bool pp_apply_begin(PpApply *a);
extern XLogRecPtr pp_apply_commit(MemoryContext back_to);
extern void pp_apply_abort(MemoryContext cxt);
extern PpEntryError *pp_apply_roll_back(PpApply *a, MemoryContext cxt);
extern PpOutcome pp_apply_outcome_of(const PpEntryError *error);
extern PpEntryError *pp_apply_subtransaction(PpApply *a, PpWork work, void *arg, bool keep);

/* waves.c */
extern int pp_apply_number_waves(List *key_fields, PpEntry **entries, int n);
extern int pp_apply_compare_order(const void *x, const void *y);
extern void pp_apply_run_waves(PpApply *a, PpEntry **entries, int n, bool plain,
							   PpApplyResult *result);

/* apply.c */
extern void pp_apply_finish(PpApply *a, PpBatch *batch, PpApplyResult *result);
extern void pp_apply_reopen(PpBatch *batch);
extern int pp_apply_collect_open(PpApply *a, PpBatch *batch, PpEntry ***open);

/* split.c */
#define PP_SAMPLES 8 /* entries that are tried before the pipeline is found at fault */

extern PpEntryError *pp_apply_run_part(PpApply *a, PpEntry **entries, int n, bool keep,
									   PpApplyResult *result);
extern PpOutcome pp_apply_split(PpApply *a, PpBatch *batch, PpApplyResult *result);
extern PpEntryError *pp_apply_isolate(PpApply *a, PpBatch *batch, PpApplyResult *result);

/* sample.c */
typedef enum PpSample
{
	PP_SAMPLE_UNKNOWN,        /* it does not tell */
	PP_SAMPLE_PASSES_SOMEHOW, /* perhaps not in the way of a new entry */
	PP_SAMPLE_PASSES,
	PP_SAMPLE_FAILS /* the pipeline's fault, or the moment's */
} PpSample;

extern void pp_sample_keep(PpApply *a, const PpEntry *entry);
extern PpSample pp_sample_run(PpApply *a, PpEntryError **error);

/* retry.c */
extern int pp_retry_make_batch(PpApply *a, PpLetterKey *keys, int n, size_t max_bytes,
							   PpBatch *batch);
extern void pp_retry_lock(PpApply *a, PpBatch *batch, bool leave_out);
extern void pp_retry_record(PpApply *a, PpBatch *batch, bool by_hand);

/* overtaken.c */
extern void pp_overtaken_load(PpApply *a);
extern void pp_overtaken_watch_all(PpApply *a);
extern bool pp_overtaken_key(PpApply *a, const PpEntry *entry, uint64 *hash);
extern void pp_overtaken_hash_again(PpApply *a);
extern void pp_overtaken_mark(PpApply *a, const PpBatch *batch);

/* notify.c */
extern void pp_notify_init(PpApply *a);
extern void pp_notify_batch(const PpApply *a, const PpBatch *batch);

/* skip.c */
extern int pp_skip_find(PpApply *a, PpBatch *batch);

/* threshold.c */
extern void pp_threshold_init(PpApply *a);
extern void pp_threshold_reset(PpApply *a);
extern void pp_threshold_load(PpApply *a);
extern void pp_threshold_end(PpApply *a, bool committed);
extern void pp_threshold_check(PpApply *a, const PpBatch *batch);
extern void pp_threshold_foresee(PpApply *a, int failed, int n, const PpEntryError *last);
extern void pp_threshold_stopped(PpApply *a, PpEntryError *error);
extern bool pp_apply_samples_pass(PpApply *a, PpBatch *batch, PpApplyResult *result);

#endif /* PP_APPLY_INTERNAL_H */
