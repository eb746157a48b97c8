/*
 * wait_event.h
 *		What pg_stat_activity says that a process waits for.
 */
#ifndef PP_WAIT_EVENT_H
#define PP_WAIT_EVENT_H

#include "postpipe.h"

typedef enum PpWaitEvent
{
	PP_WAIT_LAUNCHER_MAIN,
	PP_WAIT_SUPERVISOR_MAIN,
	PP_WAIT_WORKER_IDLE,  /* until the stream has entries */
	PP_WAIT_WORKER_RETRY, /* back-off after a failure */
	PP_WAIT_REDIS_CONNECT,
	PP_WAIT_REDIS_REPLY,
	PP_WAIT_STATE,        /* postpipe_wait_state() */
	PP_WAIT_ENTRY,        /* postpipe_wait() */
	PP_WAIT_PROCESS_EXIT, /* until a process has stopped */
	PP_WAIT_NUM
} PpWaitEvent;

extern uint32 pp_wait_event(PpWaitEvent event);

#endif /* PP_WAIT_EVENT_H */
