/*
 * fault.c
 *		Places where the tests let a worker fail.  Only with make FAULTS=1.
 *
 * The file postpipe/fault of the data directory says where, what and how often, and holds from the
 * moment that it is there: point:action[:milliseconds][:times], such as 'after_commit:kill',
 * 'before_commit:sleep:60000' or 'after_read:error:3'.  Without `times`, once: the worker that comes
 * next is not to fail at the same place for ever.  As a crash clears shared memory, what happened is
 * counted in a file named after the fault, a byte for each time, which the test removes before it
 * asks for the same again.
 */
#include "postpipe.h"

#ifdef PP_FAULTS

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fmgr.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/wait_event.h"

#include "fault.h"
#include "steady.h"

/* Reads what is to happen; returns false when nothing is. */
static bool
read_fault(char *fault, size_t size)
{
	int fd = BasicOpenFile("postpipe/fault", O_RDONLY);
	ssize_t len;

	if (fd < 0)
		return false;
	len = read(fd, fault, size - 1);
	close(fd);
	fault[Max(len, 0)] = '\0';
	return len > 0;
}

/* Counts one more time in the file; returns false when there were enough of them. */
static bool
count_one(const char *fault, int times)
{
	struct stat st;
	char path[MAXPGPATH];
	int fd;

	snprintf(path, sizeof(path), "postpipe/fault.%s", fault);
	fd = BasicOpenFile(path, O_WRONLY | O_CREAT | O_APPEND);
	if (fd < 0 || fstat(fd, &st) != 0)
		elog(ERROR, "could not open file \"%s\": %m", path);
	if (st.st_size < times && write(fd, "x", 1) != 1)
		elog(ERROR, "could not write file \"%s\": %m", path);
	close(fd);
	return st.st_size < times;
}

static void
sleep_ms(long ms)
{
	PpSteady end = pp_steady_in(ms);
	long left;

	while ((left = pp_steady_left(end)) > 0)
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, left,
						 PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

static void
fail(const char *action, long ms)
{
	if (strcmp(action, "kill") == 0)
		kill(getpid(), SIGKILL);
	else if (strcmp(action, "segv") == 0)
	{
		signal(SIGSEGV, SIG_DFL);
		raise(SIGSEGV);
	}
	else if (strcmp(action, "exit") == 0)
		_exit(3);
	else if (strcmp(action, "error") == 0)
		ereport(ERROR, (errcode(ERRCODE_T_R_SERIALIZATION_FAILURE), errmsg("fault for a test")));
	else if (strcmp(action, "memory") == 0)
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory for a test")));
	else if (strcmp(action, "fatal") == 0)
		ereport(FATAL, (errmsg("fault for a test")));
	else if (strcmp(action, "sleep") == 0)
		sleep_ms(ms);
	else
		ereport(ERROR, (errcode(ERRCODE_RAISE_EXCEPTION), errmsg("unknown fault \"%s\"", action)));
}

/* The worker is at this point. */
void
pp_fault_point(const char *point)
{
	size_t len = strlen(point);
	char fault[128];
	char action[16];
	long ms = 0;
	int times = 1;
	int n = 0;

	if (!read_fault(fault, sizeof(fault)) || strncmp(fault, point, len) != 0 || fault[len] != ':')
		return;
	if (sscanf(fault + len, ":%15[a-z]%n", action, &n) != 1)
		elog(ERROR, "malformed fault \"%s\"", fault);
	if (strcmp(action, "sleep") == 0)
		(void) sscanf(fault + len + n, ":%ld:%d", &ms, &times);
	else
		(void) sscanf(fault + len + n, ":%d", &times);
	if (!count_one(fault, times))
		return;
	ereport(LOG, (errmsg("postpipe fault: %s", fault)));
	fail(action, ms);
}

/* For a trigger that fails as one in C can: declared by the test, text -> void. */
PG_FUNCTION_INFO_V1(postpipe_fault_fail);
Datum
postpipe_fault_fail(PG_FUNCTION_ARGS)
{
	fail(text_to_cstring(PG_GETARG_TEXT_PP(0)), 0);
	PG_RETURN_VOID();
}

#endif
