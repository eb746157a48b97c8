/*
 * redis_wait.c
 *		The one place where a connection to Redis is waited for: with the process latch, interrupts and
 *		the postmaster's death.
 */
#include "redis_internal.h"

#include "miscadmin.h"
#include "storage/latch.h"
#include "utils/memutils.h"

#include "compat.h"
#include "process.h"
#include "steady.h"

/* What the socket of an open connection is waited for. */
static int
socket_events(const PpRedis *conn)
{
	if (conn->connecting)
		return WL_SOCKET_CONNECTED;
	return conn->rc->obuf != NULL && sdslen(conn->rc->obuf) > 0
			   ? WL_SOCKET_READABLE | WL_SOCKET_WRITEABLE
			   : WL_SOCKET_READABLE;
}

/*
 * What was waited for last: latch, postmaster and these sockets.  Kept, because to make such a set and to close it takes
 * the kernel as long as all else of a wait, and mostly the next one is for the same sockets.  They are open: who closes
 * one drops the set.
 */
typedef struct WaitSet
{
	MemoryContext cxt;
	WaitEventSet *events; /* NULL: none is kept */
	int n;
	pgsocket *sockets;
} WaitSet;

#define FIRST_SOCKET 2 /* in the set */

static WaitSet kept;

/* A socket is about to be closed: its number may be another one's soon. */
void
pp_redis_wait_forget(void)
{
	if (kept.events != NULL)
		FreeWaitEventSet(kept.events);
	kept.events = NULL;
}

static bool
is_kept(PpRedis *const *conns, int n)
{
	if (kept.events == NULL || kept.n != n)
		return false;
	for (int i = 0; i < n; i++)
		if (kept.sockets[i] != conns[i]->rc->fd)
			return false;
	return true;
}

static void
keep(PpRedis *const *conns, int n)
{
	MemoryContext old;

	pp_redis_wait_forget();
	if (kept.cxt == NULL)
		kept.cxt =
			AllocSetContextCreate(TopMemoryContext, "postpipe wait set", ALLOCSET_SMALL_SIZES);
	MemoryContextReset(kept.cxt);
	old = MemoryContextSwitchTo(kept.cxt);
	kept.n = n;
	kept.sockets = palloc(n * sizeof(pgsocket));
	kept.events = pp_create_wait_set(FIRST_SOCKET + n);
	MemoryContextSwitchTo(old);
	AddWaitEventToSet(kept.events, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	AddWaitEventToSet(kept.events, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
	for (int i = 0; i < n; i++)
	{
		kept.sockets[i] = conns[i]->rc->fd;
		AddWaitEventToSet(kept.events, socket_events(conns[i]), kept.sockets[i], NULL, NULL);
	}
}

/* Waits for some connections, which have sockets.  Returns whether the latch was set. */
static bool
wait_for_sockets(PpRedis *const *conns, int n, long timeout_ms, uint32 event)
{
	WaitEvent occurred = {0};

	if (!is_kept(conns, n))
		keep(conns, n);
	for (int i = 0; i < n; i++)
		ModifyWaitEvent(kept.events, FIRST_SOCKET + i, socket_events(conns[i]), NULL);
	(void) WaitEventSetWait(kept.events, timeout_ms, &occurred, 1, event);
	return (occurred.events & WL_LATCH_SET) != 0;
}

static bool
wait_for_latch(long timeout_ms, uint32 event)
{
	int events = WL_LATCH_SET | WL_EXIT_ON_PM_DEATH | (timeout_ms >= 0 ? WL_TIMEOUT : 0);

	return (WaitLatch(MyLatch, events, timeout_ms, event) & WL_LATCH_SET) != 0;
}

/*
 * pp_redis_wait_any
 *		Waits until one of the sockets is ready, the latch is set, or time is up (ms; -1: no limit).
 *		Serves interrupts; resets the latch, so that the caller has to look at what it may mean.  Of a
 *		connection that is closed, and without any, only the latch counts; those that are closed are taken
 *		out of the array.  Returns whether the latch was set.
 */
bool
pp_redis_wait_any(PpRedis **conns, int n, long timeout_ms, PpWaitEvent event)
{
	int num_open = 0;
	bool latch_set;

	for (int i = 0; i < n; i++)
		if (conns[i]->rc != NULL)
			conns[num_open++] = conns[i];
	latch_set = num_open > 0 ? wait_for_sockets(conns, num_open, timeout_ms, pp_wait_event(event))
							 : wait_for_latch(timeout_ms, pp_wait_event(event));
	if (latch_set)
		ResetLatch(MyLatch);
	pp_process_interrupts();
	return latch_set;
}

/* The same for one connection, or for none (NULL). */
bool
pp_redis_wait(PpRedis *conn, long timeout_ms, PpWaitEvent event)
{
	return pp_redis_wait_any(&conn, conn != NULL ? 1 : 0, timeout_ms, event);
}

/*
 * pp_redis_receive
 *		Waits for the next reply, at most timeout_ms.  For callers that have nothing else to look
 *		after meanwhile (SQL functions); interrupts are served.
 */
PpRedisResult
pp_redis_receive(PpRedis *conn, PpReply **reply, long timeout_ms, PpWaitEvent event)
{
	PpSteady end = pp_steady_in(timeout_ms);

	for (;;)
	{
		PpRedisResult result = pp_redis_poll(conn, reply);
		long left;

		if (result != PP_REDIS_NOTHING)
			return result;
		if (reply == NULL && pp_redis_is_open(conn))
			return PP_REDIS_NOTHING;
		left = pp_steady_left(end);
		if (left <= 0)
			return pp_redis_fail(conn, PP_REDIS_CLASS_MOMENT, "redis_timeout",
								 "Redis did not answer within %ld ms", timeout_ms);
		pp_redis_wait(conn, left, event);
	}
}
