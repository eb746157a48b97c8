/*
 * ledger_ids.h
 *		The IDs and hashes in a row of the ledger.
 */
#ifndef PP_LEDGER_IDS_H
#define PP_LEDGER_IDS_H

#include "stream_id.h"

typedef struct PpIdHash
{
	PpId id;
	uint64 hash;
} PpIdHash;

typedef struct PpIdsReader
{
	const unsigned char *p;
	const unsigned char *end;
	PpId last;
} PpIdsReader;

extern bytea *pp_ids_encode(const PpIdHash *ids, int n);
extern void pp_ids_begin(PpIdsReader *reader, const bytea *ids);
extern bool pp_ids_next(PpIdsReader *reader, PpIdHash *next);

#endif /* PP_LEDGER_IDS_H */
