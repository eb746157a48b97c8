/*
 * retry.h
 *		Dead letters that are tried again, or are too old.
 */
#ifndef PP_RETRY_H
#define PP_RETRY_H

#include "apply.h"

extern PpOutcome pp_retry_run(PpApply *a, size_t max_bytes, PpApplyResult *result,
							  TimestampTz *next);
extern PpOutcome pp_retry_expire(PpApply *a, const char *retention, TimestampTz *next,
								 PpEntryError **error);

#endif /* PP_RETRY_H */
