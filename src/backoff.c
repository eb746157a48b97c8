/*
 * backoff.c
 *		Exponential back-off with jitter and a cap.
 *
 * The wait doubles with each failure in a row.  Jitter spreads it over the upper half of the
 * interval, so that many workers that lost the same Redis do not come back in one moment.
 */
#include "backoff.h"

#include "common/pg_prng.h"

/* Starts a series of waits of first_ms, doubled each time, of at most cap_ms milliseconds. */
void
pp_backoff_init(PpBackoff *b, int first_ms, int cap_ms)
{
	b->first_ms = first_ms;
	b->cap_ms = cap_ms;
	b->attempts = 0;
}

/* Counts one more failure and returns how many milliseconds to wait before the next attempt. */
int
pp_backoff_next(PpBackoff *b)
{
	int shift = Min(b->attempts, 20);
	int64 ms = Min((int64) b->first_ms << shift, (int64) b->cap_ms);

	b->attempts++;
	return (int) (ms / 2 +
				  (int64) (pg_prng_double(&pg_global_prng_state) * (double) (ms - ms / 2)));
}

/* An attempt succeeded: the next failure waits the first interval again. */
void
pp_backoff_reset(PpBackoff *b)
{
	b->attempts = 0;
}
