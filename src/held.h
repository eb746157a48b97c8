/*
 * held.h
 *		Which entries the workers of a pipeline hold, and when all of them must hold still.
 */
#ifndef PP_HELD_H
#define PP_HELD_H

#include "batch.h"
#include "shmem.h"

extern void pp_held_seed(PpPipe *pipe, PpId mark);
extern PpId pp_held_seen(PpPipe *pipe);
extern void pp_held_forget(PpPipe *pipe);
extern bool pp_held_take(PpPipe *pipe, int hand, PpId first, PpId last);
extern bool pp_held_must_wait(PpPipe *pipe, int hand);
extern int pp_held_leave_out(PpPipe *pipe, PpId *ids, int n);
extern bool pp_held_is_in_hand(int hand);
extern void pp_held_release(PpPipe *pipe, int hand);
extern void pp_held_release_all(PpPipe *pipe);

extern void pp_held_set_unacknowledged(PpPipe *pipe, int64 n);
extern int64 pp_pipe_unacknowledged(PpPipe *pipe);
extern uint64 pp_read_begins(PpPipe *pipe);
extern void pp_read_ends(PpPipe *pipe, int entries);
extern bool pp_read_is_awaited(PpPipe *pipe, uint64 upto);

extern void pp_pipe_close(PpPipe *pipe);
extern void pp_pipe_leave(PpPipe *pipe);
extern void pp_pipe_open(PpPipe *pipe);
extern uint64 pp_pipe_opening(PpPipe *pipe);
extern void pp_pipe_park(PpPipe *pipe);
extern bool pp_pipe_enter(PpPipe *pipe, uint64 opening);
extern bool pp_pipe_is_still(PpPipe *pipe);

#endif /* PP_HELD_H */
