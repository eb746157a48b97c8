/*
 * events.c
 *		The last changes of state, and errors: the night's history without the log.
 *
 * A ring in shared memory, for all databases.  What has just been said by the same process is said once, with
 * a count: so an error that comes with every attempt does not push out everything else.  A crash of the
 * server empties it.
 */
#include "events.h"

#include "miscadmin.h"

#include "stats.h"

#define LOOK_BACK 16

static bool
is_same(const PpEvent *a, const PpEvent *b)
{
	return a->at != 0 && a->pid == b->pid && a->is_error == b->is_error && a->state == b->state &&
		   strcmp(a->pipeline, b->pipeline) == 0 && strcmp(a->reason_code, b->reason_code) == 0 &&
		   strcmp(a->sqlstate, b->sqlstate) == 0 && strcmp(a->message, b->message) == 0;
}

/* Appends it; one of the last ones that is the same goes, and its count with it. */
static void
append(PpEvent *event)
{
	LWLockAcquire(&pp_shared->events_lock, LW_EXCLUSIVE);
	for (int back = 1; back <= LOOK_BACK; back++)
	{
		PpEvent *old = &pp_shared->events[(pp_shared->next_event - back + PP_EVENTS) % PP_EVENTS];

		if (!is_same(old, event))
			continue;
		event->repeated = old->repeated + 1;
		old->at = 0;
		break;
	}
	pp_shared->events[pp_shared->next_event] = *event;
	pp_shared->next_event = (pp_shared->next_event + 1) % PP_EVENTS;
	LWLockRelease(&pp_shared->events_lock);
}

static void
start(PpEvent *event, const char *pipeline)
{
	memset(event, 0, sizeof(*event));
	event->at = GetCurrentTimestamp();
	event->dboid = MyDatabaseId;
	event->pid = MyProcPid;
	strlcpy(event->pipeline, pipeline, sizeof(event->pipeline));
}

/* The state of this process, or of a pipeline of its database, has changed. */
void
pp_event_state(const char *pipeline, PpState state, const char *code, const char *reason,
			   const char *hint)
{
	PpEvent event;

	start(&event, pipeline);
	event.state = state;
	strlcpy(event.reason_code, code, sizeof(event.reason_code));
	pp_clip(event.message, reason, sizeof(event.message));
	pp_clip(event.hint, hint ? hint : "", sizeof(event.hint));
	append(&event);
}

/* This process had an error. */
void
pp_event_error(const char *pipeline, int sqlstate, const char *message)
{
	PpEvent event;

	start(&event, pipeline);
	event.is_error = true;
	strlcpy(event.sqlstate, unpack_sql_state(sqlstate), sizeof(event.sqlstate));
	pp_clip(event.message, message, sizeof(event.message));
	append(&event);
}

/* A copy of the number-th oldest one; false: there is none, or it is that of another database. */
bool
pp_event_copy(int number, PpEvent *copy)
{
	LWLockAcquire(&pp_shared->events_lock, LW_SHARED);
	*copy = pp_shared->events[(pp_shared->next_event + number) % PP_EVENTS];
	LWLockRelease(&pp_shared->events_lock);
	return copy->at != 0 && (!OidIsValid(copy->dboid) || copy->dboid == MyDatabaseId);
}
