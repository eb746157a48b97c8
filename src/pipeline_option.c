/*
 * pipeline_option.c
 *		The options of a pipeline, which were checked when it was defined (sqlfuncs_define.c).
 */
#include "pipeline.h"

#include "common/string.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/timestamp.h"

/* An option's value as text, or NULL when it is not set. */
char *
pp_pipeline_option(const PpPipeline *p, const char *name)
{
	JsonbValue value;

	if (!getKeyJsonValueFromContainer(&p->options->root, name, (int) strlen(name), &value))
		return NULL;
	switch (value.type)
	{
		case jbvString:
			return pnstrdup(value.val.string.val, value.val.string.len);
		case jbvNumeric:
			return DatumGetCString(
				DirectFunctionCall1(numeric_out, NumericGetDatum(value.val.numeric)));
		case jbvBool:
			return pstrdup(value.val.boolean ? "on" : "off");
		default:
			return NULL;
	}
}

/* Is an option set, and true? */
bool
pp_pipeline_option_is_on(const PpPipeline *p, const char *name)
{
	char *value = pp_pipeline_option(p, name);
	bool on;

	return value != NULL && parse_bool(value, &on) && on;
}

/* Is the value of an option a whole number?  Then *number is it. */
bool
pp_option_parse_int(const char *value, int *number)
{
	char *end;

	errno = 0;
	*number = strtoint(value, &end, 10);
	return errno == 0 && end != value && *end == '\0';
}

/* An option that is a whole number; `unset` when it is not set, or is none. */
int
pp_pipeline_option_int(const PpPipeline *p, const char *name, int unset)
{
	char *value = pp_pipeline_option(p, name);
	int number;

	return value && pp_option_parse_int(value, &number) ? number : unset;
}

/* An option that is a number; `unset` when it is not set, or is none. */
double
pp_pipeline_option_float(const PpPipeline *p, const char *name, double unset)
{
	char *value = pp_pipeline_option(p, name);
	double number;

	return value && parse_real(value, &number, 0, NULL) ? number : unset;
}

static int
get_quantity(const PpPipeline *p, const char *name, int unit, int unset)
{
	char *value = pp_pipeline_option(p, name);
	int number;

	return value && parse_int(value, &number, unit, NULL) ? number : unset;
}

/* An option that is a time, in milliseconds; with a unit or without, as a setting. */
int
pp_pipeline_option_ms(const PpPipeline *p, const char *name, int unset)
{
	return get_quantity(p, name, GUC_UNIT_MS, unset);
}

/* An option that is an amount of memory, in kilobytes; with a unit or without, as a setting. */
int
pp_pipeline_option_kb(const PpPipeline *p, const char *name, int unset)
{
	return get_quantity(p, name, GUC_UNIT_KB, unset);
}

/* The length of an interval in milliseconds, a month taken as 30 days. */
int64
pp_interval_ms(const Interval *interval)
{
	int64 days = (int64) interval->month * DAYS_PER_MONTH + interval->day;

	return days * (SECS_PER_DAY * INT64CONST(1000)) + interval->time / 1000;
}

/* Is the value of an option an interval?  Then *ms is its length.  As interval_in(), which would throw. */
bool
pp_option_parse_interval(char *value, int64 *ms)
{
	char work[256];
	char *fields[MAXDATEFIELDS];
	int types[MAXDATEFIELDS];
	struct pg_itm_in parts = {0};
	Interval interval;
	int type, n;
	int error = ParseDateTime(value, work, sizeof(work), fields, types, MAXDATEFIELDS, &n);

	if (error == 0)
		error = DecodeInterval(fields, types, n, INTERVAL_FULL_RANGE, &type, &parts);
	if (error == DTERR_BAD_FORMAT)
		error = DecodeISO8601Interval(value, &type, &parts);
	if (error != 0 || type != DTK_DELTA || itmin2interval(&parts, &interval) != 0)
		return false;
	*ms = pp_interval_ms(&interval);
	return true;
}

/* An option that is an interval, in milliseconds; `unset` when it is not set, or is none. */
int64
pp_pipeline_option_interval(const PpPipeline *p, const char *name, int64 unset)
{
	char *value = pp_pipeline_option(p, name);
	int64 ms;

	return value && pp_option_parse_interval(value, &ms) ? ms : unset;
}
