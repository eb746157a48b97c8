/*
 * handover.h
 *		Leaving a group that another pipeline owns from now on.
 */
#ifndef PP_HANDOVER_H
#define PP_HANDOVER_H

#include "worker_internal.h"

extern bool pp_hand_over(PpWorker *w, PpRedisError *error);
extern bool pp_hand_over_wake(PpWorker *w, const char *owner, int64 client, PpRedisError *error);

#endif /* PP_HANDOVER_H */
