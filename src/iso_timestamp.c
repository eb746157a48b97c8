/*
 * iso_timestamp.c
 *		Points in time as producers write them: 2025-10-28T21:00:30.5+03:00.
 *
 * timestamptz_in() takes them too, and much else, and takes ten times as long.  That Z is UTC it has from
 * timezone_abbreviations, of which nobody has removed it.
 */
#include "batch_field.h"

#include "datatype/timestamp.h"
#include "utils/datetime.h"
#include "utils/timestamp.h"

/* Takes a number of so many digits off the string.  False: it does not begin with one. */
static bool
take_number(const char **p, int digits, int *number)
{
	*number = 0;
	for (int i = 0; i < digits; i++, (*p)++)
	{
		if (**p < '0' || **p > '9')
			return false;
		*number = *number * 10 + (**p - '0');
	}
	return true;
}

static bool
take_char(const char **p, char c)
{
	if (**p != c)
		return false;
	(*p)++;
	return true;
}

/* The days since 2000-01-01. */
static bool
take_date(const char **p, int *days)
{
	int year;
	int month;
	int day;

	if (!take_number(p, 4, &year) || !take_char(p, '-') || !take_number(p, 2, &month) ||
		!take_char(p, '-') || !take_number(p, 2, &day) || year == 0 || month == 0 || month > 12 ||
		day == 0 || day > day_tab[isleap(year)][month - 1])
		return false;
	*days = date2j(year, month, day) - POSTGRES_EPOCH_JDATE;
	return true;
}

/* The microseconds since midnight. */
static bool
take_time(const char **p, int64 *usecs)
{
	int hour;
	int minute;
	int second;
	int unit = 100000;

	if (!take_number(p, 2, &hour) || !take_char(p, ':') || !take_number(p, 2, &minute) ||
		!take_char(p, ':') || !take_number(p, 2, &second) || hour > 23 || minute > 59 ||
		second > 59)
		return false;
	*usecs = ((hour * 60 + minute) * 60 + second) * USECS_PER_SEC;
	if (!take_char(p, '.'))
		return true;
	if (**p < '0' || **p > '9')
		return false;
	for (; **p >= '0' && **p <= '9' && unit > 0; (*p)++, unit /= 10)
		*usecs += (**p - '0') * unit;
	return true;
}

/* Z, +03:00, +0300 or +03, as seconds that the time is ahead of UTC. */
static bool
take_zone(const char **p, int *seconds)
{
	int sign = **p == '-' ? -1 : 1;
	int hours;
	int minutes = 0;

	*seconds = 0;
	if (take_char(p, 'Z'))
		return true;
	if ((!take_char(p, '+') && !take_char(p, '-')) || !take_number(p, 2, &hours))
		return false;
	if (**p != '\0')
	{
		(void) take_char(p, ':');
		if (!take_number(p, 2, &minutes))
			return false;
	}
	*seconds = sign * (hours * 60 + minutes) * SECS_PER_MINUTE;
	return hours < MAX_TZDISP_HOUR && minutes < MINS_PER_HOUR;
}

/*
 * pp_iso_timestamp
 *		The point in time that timestamptz_in() would read, of a string that has all of it: date, time
 *		with seconds and at most six digits of a fraction, and a zone as a number or Z.  False: it is of
 *		another form, or no time.
 */
bool
pp_iso_timestamp(const char *text, TimestampTz *result)
{
	int days;
	int64 usecs;
	int ahead;

	if (!take_date(&text, &days) || !(take_char(&text, 'T') || take_char(&text, ' ')) ||
		!take_time(&text, &usecs) || !take_zone(&text, &ahead) || *text != '\0')
		return false;
	*result = days * USECS_PER_DAY + usecs - ahead * USECS_PER_SEC;
	return true;
}
