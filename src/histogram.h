/*
 * histogram.h
 *		How long a step takes, how large a batch is: counted in fixed buckets.
 */
#ifndef PP_HISTOGRAM_H
#define PP_HISTOGRAM_H

#include "steady.h"

typedef enum PpHistogramKind
{
	PP_HIST_UPSERT, /* seconds: statement, ledger and commit of a batch */
	PP_HIST_ACK,    /* seconds: from an XACK to its reply, while the next batch may be applied */
	PP_HIST_BATCH,  /* seconds: from a batch that was received to its commit */
	PP_HIST_END_TO_END, /* seconds: from an entry's ID to the commit, for each one that is applied */
	PP_HIST_PROCESSED,  /* entries of a batch that were settled without an error */
	PP_HIST_FAILED,     /* … and that were not, where there were any */
	PP_HIST_NUM
} PpHistogramKind;

#define PP_HIST_LATENCIES 4 /* the first ones are of seconds */
#define PP_HIST_BUCKETS   64
#define PP_RECENT_MINUTES 6 /* this one and the five before */

typedef struct PpHistogram
{
	uint64 counts[PP_HIST_BUCKETS]; /* not cumulative; the last one used is above all bounds */
	uint64 count;
	double sum;
} PpHistogram;

/* What was observed in one minute, which is not one of the wall clock. */
typedef struct PpRecent
{
	int64 minute;
	uint32 counts[PP_HIST_BUCKETS];
	double max;
} PpRecent;

/* Of a pipeline; with its lock. */
typedef struct PpHistograms
{
	PpHistogram all[PP_HIST_NUM];
	PpRecent recent[PP_HIST_LATENCIES][PP_RECENT_MINUTES];
} PpHistograms;

extern const double *pp_histogram_bounds(PpHistogramKind kind, int *n);
extern bool pp_histogram_is_shown(PpHistogramKind kind, int bound);
extern void pp_histogram_add(PpHistograms *h, PpHistogramKind kind, double value, PpSteady now);
extern uint64 pp_histogram_recent(const PpHistograms *h, PpHistogramKind kind, PpSteady now,
								  PpRecent *sum);
extern double pp_histogram_quantile(PpHistogramKind kind, const PpRecent *recent, uint64 count,
									double quantile);

#endif /* PP_HISTOGRAM_H */
