/*
 * owner_known.h
 *		What the database knows of its ownership of a group.
 */
#ifndef PP_OWNER_KNOWN_H
#define PP_OWNER_KNOWN_H

#include "owner_key.h"

/* What the database knows of its ownership. */
typedef struct PpOwnerKnown
{
	MemoryContext cxt;             /* of what follows */
	char nonce[PP_NONCE_LEN];      /* '' for none */
	char next_nonce[PP_NONCE_LEN]; /* to be written now */
	char *past_nonces;             /* with commas between */
	bool fenced;
	bool take_over;
	const char *owner; /* in the key */
	bool owner_gone;   /* a database or pipeline of this server that does not exist any more */
} PpOwnerKnown;

typedef struct PpOwnerComparison
{
	const PpOwnerKey *key;
	bool went_back;
} PpOwnerComparison;

extern void pp_owner_prepare(PpApply *a, void *arg);
extern void pp_owner_note_claimed(PpApply *a, void *arg);
extern void pp_owner_note_fenced(PpApply *a, void *arg);
extern void pp_owner_compare_sequences(PpApply *a, void *arg);

#endif /* PP_OWNER_KNOWN_H */
