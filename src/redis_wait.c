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
static struct
{
	WaitEventSet *set;
	pgsocket *sockets;
	int n; /* 0: none is kept */
} kept;

#define FIRST_SOCKET 2 /* in the set */

/* A socket is about to be closed: its number may be another one's soon. */
void
pp_redis_wait_forget(void)
{
	kept.n = 0;
	if (kept.set != NULL)
		FreeWaitEventSet(kept.set);
	if (kept.sockets != NULL)
		pfree(kept.sockets);
	kept.set = NULL;
	kept.sockets = NULL;
}

static bool
is_kept(PpRedis *const *conns, int n)
{
	if (kept.n != n)
		return false;
	for (int i = 0; i < n; i++)
		if (kept.sockets[i] != conns[i]->rc->fd)
			return false;
	return true;
}

static void
keep(PpRedis *const *conns, int n)
{
	pp_redis_wait_forget();
	kept.sockets = MemoryContextAlloc(TopMemoryContext, n * sizeof(pgsocket));
	kept.set = pp_create_wait_set(FIRST_SOCKET + n);
	AddWaitEventToSet(kept.set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	AddWaitEventToSet(kept.set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
	for (int i = 0; i < n; i++)
	{
		kept.sockets[i] = conns[i]->rc->fd;
		AddWaitEventToSet(kept.set, socket_events(conns[i]), kept.sockets[i], NULL, NULL);
	}
	kept.n = n;
}

/*
 * pp_redis_wait_any
 *		Waits until one of the sockets is ready, the latch is set, or time is up (ms; -1: no limit).
 *		Serves interrupts; resets the latch, so that the caller has to look at what it may mean.  Connections
 *		that are closed are taken out of the array; without any other, outside a transaction, only the latch
 *		counts.  Returns whether it was set.
 */
bool
pp_redis_wait_any(PpRedis **conns, int n, long timeout_ms, PpWaitEvent event)
{
	WaitEvent occurred = {0};
	int num_open = 0;

	for (int i = 0; i < n; i++)
		if (conns[i]->rc != NULL)
			conns[num_open++] = conns[i];
	if (num_open == 0)
		return pp_process_sleep(timeout_ms, event);
	if (!is_kept(conns, num_open))
		keep(conns, num_open);
	for (int i = 0; i < num_open; i++)
		ModifyWaitEvent(kept.set, FIRST_SOCKET + i, socket_events(conns[i]), NULL);
	(void) WaitEventSetWait(kept.set, timeout_ms, &occurred, 1, pp_wait_event(event));
	if (occurred.events & WL_LATCH_SET)
		ResetLatch(MyLatch);
	pp_process_interrupts();
	return (occurred.events & WL_LATCH_SET) != 0;
}

/* The same for one connection, which is open or is being opened. */
bool
pp_redis_wait(PpRedis *conn, long timeout_ms, PpWaitEvent event)
{
	return pp_redis_wait_any(&conn, 1, timeout_ms, event);
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
