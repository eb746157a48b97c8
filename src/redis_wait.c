/*
 * redis_wait.c
 *		The one place where a connection to Redis is waited for: with the process latch, interrupts and
 *		the postmaster's death.
 */
#include "redis_internal.h"

#include "miscadmin.h"
#include "storage/latch.h"

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
 * pp_redis_wait_any
 *		Waits until one of the sockets is ready, the latch is set, or time is up (ms; -1: no limit).
 *		Serves interrupts; resets the latch, so that the caller has to look at what it may mean.  Of a
 *		connection that is closed, and without any, only the latch counts.  Returns whether it was set.
 */
bool
pp_redis_wait_any(PpRedis **conns, int n, long timeout_ms, PpWaitEvent event)
{
	/* Made for each wait, as WaitLatchOrSocket() does: sockets and what they wait for change. */
	WaitEventSet *set = pp_create_wait_set(n + 2);
	WaitEvent occurred = {0};
	bool latch_set;

	AddWaitEventToSet(set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	AddWaitEventToSet(set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
	for (int i = 0; i < n; i++)
		if (conns[i]->rc != NULL)
			AddWaitEventToSet(set, socket_events(conns[i]), conns[i]->rc->fd, NULL, NULL);
	(void) WaitEventSetWait(set, timeout_ms, &occurred, 1, pp_wait_event(event));
	FreeWaitEventSet(set);
	latch_set = (occurred.events & WL_LATCH_SET) != 0;
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
