/*
 * ledger.h
 *		Which entries are settled.
 */
#ifndef PP_LEDGER_H
#define PP_LEDGER_H

#include "batch.h"
#include "store.h"

/* An epoch that was opened by a rewind: what older ones settled after `since` does not count. */
typedef struct PpRewind
{
	int epoch;
	PpId since;
} PpRewind;

#define PP_LETTER_PLANS 7 /* see dead_letter.c */

typedef struct PpLedger
{
	MemoryContext cxt;
	const PpExtension *ext;
	const char *pipeline;
	int worker;
	int epoch;         /* what is recorded now belongs to it */
	PpRewind *rewinds; /* by epoch */
	int num_rewinds;
	bool base_known; /* pp_ledger_set_base() was called in this epoch */
	SPIPlanPtr lookup_plan;
	SPIPlanPtr record_plan;
	SPIPlanPtr lost_plan;
	SPIPlanPtr letter_plans[PP_LETTER_PLANS];
} PpLedger;

extern PpId pp_ledger_open(PpLedger *ledger);
extern void pp_ledger_lookup(PpLedger *ledger, PpEntry **entries, int n);
extern void pp_ledger_record(PpLedger *ledger, PpEntry **entries, int n);
extern void pp_ledger_adjust(PpLedger *ledger, int epoch, PpId first, PpId last, int applied,
							 int filtered);
extern void pp_ledger_set_base(PpLedger *ledger, int64 base);
extern int pp_ledger_new_epoch(const PpExtension *ext, const char *pipeline, PpId since,
							   const char *cause, bool again);
extern void pp_ledger_forget(const PpExtension *ext, const char *pipeline);

#endif /* PP_LEDGER_H */
