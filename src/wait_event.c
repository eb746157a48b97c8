/*
 * wait_event.c
 *		Wait events: with names of our own where the server can have them (17 and later),
 *		"Extension" before.
 */
#include "wait_event.h"

#include "utils/wait_event.h"

/* The value to pass to WaitLatch() and its kin. */
uint32
pp_wait_event(PpWaitEvent event)
{
#if PG_VERSION_NUM >= 170000
	static const char *const names[PP_WAIT_NUM] = {
		[PP_WAIT_LAUNCHER_MAIN] = "PostpipeLauncherMain",
		[PP_WAIT_SUPERVISOR_MAIN] = "PostpipeSupervisorMain",
		[PP_WAIT_WORKER_IDLE] = "PostpipeWorkerIdle",
		[PP_WAIT_WORKER_RETRY] = "PostpipeWorkerRetry",
		[PP_WAIT_REDIS_CONNECT] = "PostpipeRedisConnect",
		[PP_WAIT_REDIS_REPLY] = "PostpipeRedisReply",
		[PP_WAIT_STATE] = "PostpipeState",
		[PP_WAIT_ENTRY] = "PostpipeEntry",
		[PP_WAIT_PROCESS_EXIT] = "PostpipeProcessExit",
	};
	static uint32 numbers[PP_WAIT_NUM];

	if (numbers[event] == 0)
		numbers[event] = WaitEventExtensionNew(names[event]);
	return numbers[event];
#else
	return PG_WAIT_EXTENSION;
#endif
}
