/*
 * retry.h
 *		Dead letters that are tried again, or are too old.
 */
#ifndef PP_RETRY_H
#define PP_RETRY_H

#include "apply.h"
#include "steady.h"

/* What pp_retry_expire() is given and gives back. */
typedef struct PpExpire
{
	const char *retention; /* an interval in words */
	bool more;             /* are too old */
	TimestampTz next;      /* when the oldest one that is left will be */
} PpExpire;

/* When letters are to be tried again. */
typedef struct PpRetryNext
{
	TimestampTz due_at; /* as a letter's row says; 0: it says nothing */
	PpSteady look_at;   /* whatever the rows say; unset: no need */
} PpRetryNext;

extern PpOutcome pp_retry_run(PpApply *a, size_t max_bytes, PpApplyResult *result,
							  PpRetryNext *next);
extern void pp_retry_expire(PpApply *a, void *expire);

#endif /* PP_RETRY_H */
