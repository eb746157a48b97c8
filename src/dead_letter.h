/*
 * dead_letter.h
 *		Entries that could not be applied, as rows of postpipe_dead_letter.
 */
#ifndef PP_DEAD_LETTER_H
#define PP_DEAD_LETTER_H

#include "ledger.h"

/* Which letter, and how large its entry is. */
typedef struct PpLetterKey
{
	int epoch;
	PpId id;
	int64 bytes;
} PpLetterKey;

extern void pp_dead_letter_store(PpLedger *ledger, const PpPipeline *p, PpEntry *entry,
								 const uint64 *key_hash, TimestampTz *retry_at);
extern PpLetterKey *pp_dead_letter_keys(MemoryContext cxt, int *n);
extern bool pp_dead_letter_load(PpLedger *ledger, MemoryContext cxt, const PpLetterKey *key,
								PpEntry *entry);
extern bool pp_dead_letter_lock(PpLedger *ledger, const PpEntry *entry);
extern void pp_dead_letter_failed(PpLedger *ledger, const PpPipeline *p, PpEntry *entry,
								  bool by_hand);
extern void pp_dead_letter_remove(PpLedger *ledger, const PpEntry *entry);
extern bool pp_dead_letter_deliver(PpLedger *ledger, PpEntry *entry, const uint64 *key_hash);
extern int64 pp_dead_letter_count(const PpExtension *ext, const char *pipeline);
extern int64 pp_dead_letter_discard(const PpExtension *ext, const char *chosen, int n, Oid *types,
									Datum *values, const char *nulls);

#endif /* PP_DEAD_LETTER_H */
