/*
 * steady.h
 *		Moments of a clock that nobody sets: for all that is due after a while.
 *
 * TimestampTz is the wall clock, which jumps when it is corrected, or when a virtual machine resumes.
 * It is for what users see, for what tables hold, and for what is compared with IDs of entries.  What
 * somebody waits for is by this clock, which goes on evenly, so that a wait is as long as it was meant
 * to be.  A struct, so that the compiler refuses to take one for the other.
 *
 * It is that of PostgreSQL's instr_time (CLOCK_MONOTONIC), one for all processes of the machine, since
 * that was started: such a moment may be in shared memory, but not in a table or a file.
 */
#ifndef PP_STEADY_H
#define PP_STEADY_H

#include "postpipe.h"

#include "portability/instr_time.h"

typedef struct PpSteady
{
	int64 us; /* 0: unset, which is long ago */
} PpSteady;

static inline PpSteady
pp_steady_now(void)
{
	instr_time now;

	INSTR_TIME_SET_CURRENT(now);
	return (PpSteady){(int64) INSTR_TIME_GET_MICROSEC(now)};
}

/* So many ms from now; any number is possible, and one below 0 is now. */
static inline PpSteady
pp_steady_in(int64 ms)
{
	return (PpSteady){pp_steady_now().us + Min(Max(ms, 0), PG_INT64_MAX / 2000) * 1000};
}

/* How many ms are left until then, rounded up: 0, if it is due, to INT_MAX. */
static inline long
pp_steady_left(PpSteady t)
{
	int64 us = t.us - pp_steady_now().us;

	return us <= 0 ? 0 : (long) Min((us - 1) / 1000 + 1, PG_INT32_MAX);
}

static inline bool
pp_steady_is_due(PpSteady t)
{
	return t.us <= pp_steady_now().us;
}

static inline bool
pp_steady_is_set(PpSteady t)
{
	return t.us != 0;
}

/* Have so many ms passed since then?  The machine may have been started after what is long ago. */
static inline bool
pp_steady_passed(PpSteady since, int64 ms)
{
	return !pp_steady_is_set(since) || pp_steady_now().us - since.us >= ms * 1000;
}

static inline double
pp_steady_seconds(PpSteady since)
{
	return (double) (pp_steady_now().us - since.us) / 1000000;
}

static inline bool
pp_steady_is_before(PpSteady a, PpSteady b)
{
	return a.us < b.us;
}

#endif /* PP_STEADY_H */
