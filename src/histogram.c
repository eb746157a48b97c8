/*
 * histogram.c
 *		How long a step takes, how large a batch is: counted in fixed buckets.
 *
 * Times have ten bounds in each power of ten, so that a quantile is right to some 10 %.  Prometheus is
 * told every third or fourth of them, which are the usual ones.  What was observed in the last minutes is
 * counted once more, by the minute, so that a view can tell how it is now, and not since the reset.
 */
#include "histogram.h"

#include "datatype/timestamp.h"

/* clang-format off */
static const double second_bounds[] = {
	0.0001, 0.000125, 0.00015, 0.0002, 0.00025, 0.0003, 0.0004, 0.0005, 0.0006, 0.0008,
	0.001,  0.00125,  0.0015,  0.002,  0.0025,  0.003,  0.004,  0.005,  0.006,  0.008,
	0.01,   0.0125,   0.015,   0.02,   0.025,   0.03,   0.04,   0.05,   0.06,   0.08,
	0.1,    0.125,    0.15,    0.2,    0.25,    0.3,    0.4,    0.5,    0.6,    0.8,
	1,      1.25,     1.5,     2,      2.5,     3,      4,      5,      6,      8,
	10,     12.5,     15,      20,     25,      30,     40,     50,     60,     80,
	100};
static const double entry_bounds[] = {
	1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 100000};
/* clang-format on */

#define FIRST_SHOWN 7 /* half a millisecond */

StaticAssertDecl(lengthof(second_bounds) < PP_HIST_BUCKETS, "a bucket is above all bounds");

/* The upper bounds of its buckets, in ascending order. */
const double *
pp_histogram_bounds(PpHistogramKind kind, int *n)
{
	if (kind < PP_HIST_LATENCIES)
	{
		*n = lengthof(second_bounds);
		return second_bounds;
	}
	*n = lengthof(entry_bounds);
	return entry_bounds;
}

/* Is this bound one that Prometheus is told?  Of times 1, 2.5 and 5 of each power of ten. */
bool
pp_histogram_is_shown(PpHistogramKind kind, int bound)
{
	int place = bound % 10;

	return kind >= PP_HIST_LATENCIES ||
		   (bound >= FIRST_SHOWN && (place == 0 || place == 4 || place == 7));
}

static int
find_bucket(PpHistogramKind kind, double value)
{
	int hi;
	const double *bounds = pp_histogram_bounds(kind, &hi);
	int lo = 0;

	while (lo < hi)
	{
		int mid = (lo + hi) / 2;

		if (value <= bounds[mid])
			hi = mid;
		else
			lo = mid + 1;
	}
	return lo;
}

static int64
minute_of(PpSteady now)
{
	return now.us / (60 * USECS_PER_SEC);
}

/* Counts one value: seconds or entries. */
void
pp_histogram_add(PpHistograms *h, PpHistogramKind kind, double value, PpSteady now)
{
	int bucket = find_bucket(kind, value);
	int64 minute = minute_of(now);
	PpRecent *recent;

	h->all[kind].counts[bucket]++;
	h->all[kind].count++;
	h->all[kind].sum += value;
	if (kind >= PP_HIST_LATENCIES)
		return;
	recent = &h->recent[kind][minute % PP_RECENT_MINUTES];
	if (recent->minute != minute)
	{
		memset(recent, 0, sizeof(*recent));
		recent->minute = minute;
	}
	recent->counts[bucket]++;
	recent->max = Max(recent->max, value);
}

/* Adds up what was observed in the last minutes.  Returns how many values that were. */
uint64
pp_histogram_recent(const PpHistograms *h, PpHistogramKind kind, PpSteady now, PpRecent *sum)
{
	uint64 count = 0;

	memset(sum, 0, sizeof(*sum));
	for (int m = 0; m < PP_RECENT_MINUTES; m++)
	{
		const PpRecent *recent = &h->recent[kind][m];

		if (recent->minute <= minute_of(now) - PP_RECENT_MINUTES)
			continue;
		for (int i = 0; i < PP_HIST_BUCKETS; i++)
		{
			sum->counts[i] += recent->counts[i];
			count += recent->counts[i];
		}
		sum->max = Max(sum->max, recent->max);
	}
	return count;
}

/* The value below which this share of them lies; between two bounds as if they lay evenly. */
double
pp_histogram_quantile(PpHistogramKind kind, const PpRecent *recent, uint64 count, double quantile)
{
	int n;
	const double *bounds = pp_histogram_bounds(kind, &n);
	double wanted = quantile * (double) count;
	double below = 0;

	for (int i = 0; i < n; i++)
	{
		double lower = i == 0 ? 0 : bounds[i - 1];

		if (recent->counts[i] > 0 && below + recent->counts[i] >= wanted)
			return Min(recent->max,
					   lower + (bounds[i] - lower) * (wanted - below) / recent->counts[i]);
		below += recent->counts[i];
	}
	return recent->max;
}
