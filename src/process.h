/*
 * process.h
 *		What launcher, supervisor and worker have in common as processes.
 */
#ifndef PP_PROCESS_H
#define PP_PROCESS_H

#include "shmem.h"
#include "wait_event.h"

#include "postmaster/bgworker.h"

/*
 * What is to be done now and then while a statement runs; NULL: nothing.  It takes microseconds,
 * waits for nothing and does not throw.
 */
extern void (*pp_process_meanwhile)(void);

extern bool pp_process_start(Datum main_arg);
extern void pp_process_interrupts(void);
extern bool pp_process_reload(void);
extern bool pp_process_sleep(long timeout_ms, PpWaitEvent event);
extern void pp_process_activity(bool running, const char *text);

#endif /* PP_PROCESS_H */
