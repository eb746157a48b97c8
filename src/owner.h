/*
 * owner.h
 *		Whose consumer group it is.
 */
#ifndef PP_OWNER_H
#define PP_OWNER_H

#include "worker_internal.h"

extern bool pp_owner_claim(PpWorker *w, PpRedisError *error);
extern bool pp_owner_note_begin(PpWorker *w, const PpBase *begin, PpRedisError *error);
extern void pp_owner_join(PpWorker *w);
extern void pp_owner_send_check(PpWorker *w);
extern bool pp_owner_receive_check(PpWorker *w, PpRedisError *error);
extern void pp_owner_send_sequence(PpWorker *w, int64 sequence);
extern bool pp_owner_reset_sequences(PpWorker *w, PpRedisError *error);
extern void pp_owner_give_back(PpWorker *w);

#endif /* PP_OWNER_H */
