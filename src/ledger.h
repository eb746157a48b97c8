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

/*
 * What the stream of an epoch is to the one that the epochs before it knew: the same one, an older state of it, or
 * another life under its name, of which nothing was read.  If that is not clear it counts as another one, but what
 * is gone from it may have been read.
 */
typedef enum PpLife
{
	PP_LIFE_SAME,
	PP_LIFE_OLDER,
	PP_LIFE_OTHER,
	PP_LIFE_UNCLEAR
} PpLife;

/*
 * All rows of the ledger, %1$s being the extension's schema.  Those that may be merged and those that stay
 * have indexes of their own, which are found in this way by conditions, but not by ORDER BY.
 */
#define PP_LEDGER_ROWS                                                \
	"(SELECT * FROM %1$s.postpipe_ledger WHERE NOT summed UNION ALL " \
	"SELECT * FROM %1$s.postpipe_ledger WHERE summed)"

/* Statements on ledger and dead letters that are planned once. */
typedef enum PpLedgerPlan
{
	PP_LEDGER_PLAN_LOOKUP,
	PP_LEDGER_PLAN_PRUNED,
	PP_LEDGER_PLAN_RECORD,
	PP_LEDGER_PLAN_LOST,
	PP_LEDGER_PLAN_STORE_LETTER,
	PP_LEDGER_PLAN_LOAD_LETTER,
	PP_LEDGER_PLAN_LOCK_LETTER,
	PP_LEDGER_PLAN_LETTER_FAILED,
	PP_LEDGER_PLAN_LETTER_FAILED_BY_HAND,
	PP_LEDGER_PLAN_REMOVE_LETTER,
	PP_LEDGER_PLAN_DELIVER_LETTER,
	PP_LEDGER_PLAN_MARK_OVERTAKEN,
	PP_LEDGER_PLANS
} PpLedgerPlan;

typedef struct PpLedger
{
	MemoryContext cxt;
	const PpExtension *ext;
	const char *pipeline;
	int worker;
	int epoch;         /* what is recorded now belongs to it */
	PpRewind *rewinds; /* by epoch */
	int num_rewinds;
	PpLife life;     /* of the epoch */
	bool many_lives; /* some epoch began with another life of the stream */
	bool base_known; /* pp_ledger_set_base() was called in this epoch */
	int64 base;      /* what it said of the number of entries; -1: not provable */
	int64 settled;   /* by this epoch, when the ledger was opened */
	PpId top;        /* highest ID on record of the stream as it is now; 0-0: none */
	PpId reached;    /* … since it was rewound last */
	PpId sealed; /* up to here everything was settled, when that was looked at; 0-0: it was not */
	PpId pruned; /* up to here, an ID is a duplicate, … */
	int64 num_holes; /* … but for so many */
	bool shared;     /* the group had other consumers when it was last looked at */
	int64 sequence;  /* of this worker's last row that is committed */
	int64 recorded;  /* … and of the one that was written last */
	SPIPlanPtr plans[PP_LEDGER_PLANS];
} PpLedger;

#define PP_MAX_HOLES 100000 /* more than that pending at the begin of an epoch are not noted */

/* What an epoch begins with. */
typedef struct PpBase
{
	int64 added;  /* entries ever added that it does not account for; -1: not provable */
	PpId settled; /* up to here entries are settled, or none of ours; 0-0: none */
	PpId *holes;  /* but for these, in stream order */
	int num_holes;
} PpBase;

extern int64 pp_ledger_retention_ms(const PpPipeline *p);
extern PpId pp_ledger_open(PpLedger *ledger);
extern PpId pp_ledger_highest(const PpLedger *ledger);
extern void pp_ledger_load_epochs(PpLedger *ledger);
extern void pp_ledger_lookup(PpLedger *ledger, PpEntry **entries, int n);
extern void pp_ledger_lookup_batch(PpLedger *ledger, PpBatch *batch);
extern bool pp_ledger_has(const PpExtension *ext, const char *pipeline, PpEntry *entry, int *epoch);
extern bool pp_ledger_knows(PpLedger *ledger, PpEntry *entry);
extern PpId pp_ledger_last_up_to(PpLedger *ledger, PpId id);
extern void pp_ledger_record(PpLedger *ledger, PpEntry **entries, int n);
extern void pp_ledger_adjust(PpLedger *ledger, int epoch, PpId first, PpId last, int applied,
							 int filtered);
extern void pp_ledger_set_base(PpLedger *ledger, const PpBase *base);
extern void pp_ledger_set_shared(PpLedger *ledger, bool shared);
extern void pp_ledger_start_epoch(PpLedger *ledger, const char *cause);
extern void pp_ledger_record_lost(PpLedger *ledger, PpId first, PpId last, int64 entries,
								  const char *cause);
extern void pp_ledger_committed(PpLedger *ledger);
extern int pp_ledger_new_epoch(const PpExtension *ext, const char *pipeline, PpId since,
							   const char *cause, bool again);
extern void pp_ledger_settled(const PpExtension *ext, const char *pipeline, const PpId *ids, int n,
							  bool *settled);
extern PpEntry **pp_ledger_gone_entries(const PpId *ids, int n);
extern int64 pp_ledger_count_unsettled(PpLedger *ledger, const PpId *ids, int n);
extern void pp_ledger_free_plans(PpLedger *ledger);
extern int pp_ledger_lose(const PpExtension *ext, const char *pipeline, const PpId *ids, int n);
extern void pp_ledger_forget(const PpExtension *ext, const char *pipeline);

#endif /* PP_LEDGER_H */
