/*
 * pipeline_option.c
 *		The options of a pipeline, which were checked when it was defined (sqlfuncs_define.c).
 */
#include "pipeline.h"

#include "utils/builtins.h"
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

/* An option that is a whole number; `unset` when it is not set. */
int
pp_pipeline_option_int(const PpPipeline *p, const char *name, int unset)
{
	char *value = pp_pipeline_option(p, name);

	return value ? pg_strtoint32(value) : unset;
}

/* An option that is a number; `unset` when it is not set, or is none. */
double
pp_pipeline_option_float(const PpPipeline *p, const char *name, double unset)
{
	char *value = pp_pipeline_option(p, name);
	double number;

	return value && parse_real(value, &number, 0, NULL) ? number : unset;
}

/* An option that is a time, in milliseconds; with a unit or without, as a setting. */
int
pp_pipeline_option_ms(const PpPipeline *p, const char *name, int unset)
{
	char *value = pp_pipeline_option(p, name);
	int ms;

	return value && parse_int(value, &ms, GUC_UNIT_MS, NULL) ? ms : unset;
}

/* The length of an interval in milliseconds, a month taken as 30 days. */
int64
pp_interval_ms(const Interval *interval)
{
	int64 days = (int64) interval->month * DAYS_PER_MONTH + interval->day;

	return days * (SECS_PER_DAY * INT64CONST(1000)) + interval->time / 1000;
}

/* An option that is an interval, in milliseconds. */
int64
pp_pipeline_option_interval(const PpPipeline *p, const char *name, int64 unset)
{
	char *value = pp_pipeline_option(p, name);

	if (value == NULL)
		return unset;
	return pp_interval_ms(DatumGetIntervalP(DirectFunctionCall3(
		interval_in, CStringGetDatum(value), ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1))));
}
