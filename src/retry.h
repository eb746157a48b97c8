/*
 * retry.h
 *		Dead letters that are tried again, or are too old.
 */
#ifndef PP_RETRY_H
#define PP_RETRY_H

#include "apply.h"

/* What pp_retry_expire() is given and gives back. */
typedef struct PpExpire
{
	const char *retention; /* an interval in words */
	bool more;             /* are too old */
	TimestampTz next;      /* when the oldest one that is left will be */
} PpExpire;

extern PpOutcome pp_retry_run(PpApply *a, size_t max_bytes, PpApplyResult *result,
							  TimestampTz *next);
extern void pp_retry_expire(PpApply *a, void *expire);

#endif /* PP_RETRY_H */
