/*
 * trimmed.h
 *		Entries that are gone from the stream and that its group has not delivered; and how many it has, and has not.
 */
#ifndef PP_TRIMMED_H
#define PP_TRIMMED_H

#include "ledger.h"
#include "shmem.h"
#include "stream.h"

/* A range of IDs in which entries are gone. */
typedef struct PpTrimmed
{
	PpId first;
	PpId last;
	int64 entries; /* 0: none; -1: perhaps some, and it cannot be told how many */
} PpTrimmed;

extern bool pp_trimmed_fits(const PpLedger *ledger, const PpStreamFacts *facts);
extern int64 pp_trimmed_expected(const PpStreamFacts *facts);
extern int64 pp_trimmed_position(const PpCorrection *c, const PpStreamFacts *facts);
extern void pp_trimmed_learn(PpCorrection *c, const PpStreamFacts *facts, uint64 received);
extern PpTrimmed pp_trimmed_range(const PpStreamFacts *facts, PpId after, int64 entries);
extern PpTrimmed pp_trimmed_find(PpPipe *pipe, uint64 run, const PpStreamFacts *facts, PpId top);
extern int64 pp_trimmed_lag(PpPipe *pipe, uint64 run, const PpStreamFacts *facts);

#endif /* PP_TRIMMED_H */
