/*
 * news.c
 *		What is worth a line of the server's log, from this process.
 *
 * What comes again and again, as with a stream that somebody deletes every second, must not fill the log.  So the
 * first times are said, with their cause, and what lasts; what is left out is in the tables and views all the same.
 */
#include "news.h"

#include "steady.h"

#define MAX_CAUSES 16
#define MAX_TIMES  2     /* so often a cause is said while a process fails again and again */
#define AGAIN_MS   60000 /* what comes again after so long is said again */
#define LASTING_MS 10000 /* what lasts so long is said in any case */

/* A cause of failure that the log has. */
typedef struct Cause
{
	char code[PP_REASON_CODE_LEN];
	int times;
	bool now; /* the failure that is under way has it already */
} Cause;

static Cause causes[MAX_CAUSES];
static int num_causes = 0;
static bool said_well = false; /* nothing that is wrong was said since */
static PpSteady well_since;    /* unset: it is not well */
static PpSteady kept_back; /* since then it fails, and the log does not say so; unset: it does */

static bool
is_well(void)
{
	bool worth = !said_well;

	for (int i = 0; i < num_causes; i++)
		causes[i].now = false;
	if (!pp_steady_is_set(well_since))
		well_since = pp_steady_now();
	kept_back = (PpSteady){0};
	said_well = true;
	return worth;
}

/* The cause with this code; NULL: there are too many. */
static Cause *
find_cause(const char *code)
{
	for (int i = 0; i < num_causes; i++)
		if (strcmp(causes[i].code, code) == 0)
			return &causes[i];
	if (num_causes == MAX_CAUSES)
		return NULL;
	memset(&causes[num_causes], 0, sizeof(Cause));
	strlcpy(causes[num_causes].code, code, sizeof(causes[0].code));
	return &causes[num_causes++];
}

/*
 * pp_news_state
 *		Is a change of this process's state worth a line?  While a failure lasts, each cause is worth one, also when
 *		several take turns; if it fails again and again, with little time between, the first times are.  That all is
 *		well is worth one after a line that says otherwise.
 */
bool
pp_news_state(bool well, const char *code)
{
	Cause *cause;
	bool worth;

	if (well)
		return is_well();
	if (pp_steady_is_set(well_since) && pp_steady_passed(well_since, AGAIN_MS))
		num_causes = 0;
	well_since = (PpSteady){0};
	cause = find_cause(code);
	if (cause != NULL && cause->now)
		return false;
	worth = cause == NULL || cause->times++ < MAX_TIMES;
	if (cause != NULL)
		cause->now = true;
	kept_back = worth ? (PpSteady){0} : pp_steady_now();
	said_well &= !worth;
	return worth;
}

/* The state is the same still: is it worth a line now, because it lasts, and was not said? */
bool
pp_news_overdue(void)
{
	if (!pp_steady_is_set(kept_back) || !pp_steady_passed(kept_back, LASTING_MS))
		return false;
	kept_back = (PpSteady){0};
	said_well = false;
	return true;
}

/*
 * pp_is_news
 *		Is this worth a line?  Not when this process has said the same less than a minute ago.  `what` names it, with its
 *		cause: of each the first one is said.  What a session is told, it is told each time.
 */
bool
pp_is_news(const char *what)
{
	static struct
	{
		char what[PP_REASON_CODE_LEN];
		PpSteady at;
	} told[MAX_CAUSES];
	static int next = 0;
	int i = 0;

	if (pp_my_proc == NULL)
		return true;
	while (i < lengthof(told) && strcmp(told[i].what, what) != 0)
		i++;
	if (i < lengthof(told) && !pp_steady_passed(told[i].at, AGAIN_MS))
		return false;
	if (i == lengthof(told))
		i = next++ % lengthof(told);
	strlcpy(told[i].what, what, sizeof(told[i].what));
	told[i].at = pp_steady_now();
	return true;
}
