/*
 * backoff.h
 *		Growing waits between attempts.
 */
#ifndef PP_BACKOFF_H
#define PP_BACKOFF_H

#include "postpipe.h"

typedef struct PpBackoff
{
	int first_ms;
	int cap_ms;
	int attempts; /* failures in a row */
} PpBackoff;

extern void pp_backoff_init(PpBackoff *b, int first_ms, int cap_ms);
extern int pp_backoff_next(PpBackoff *b);
extern void pp_backoff_reset(PpBackoff *b);

#endif /* PP_BACKOFF_H */
