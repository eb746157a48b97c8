/*
 * stats.h
 *		What this process tells the others about itself.
 */
#ifndef PP_STATS_H
#define PP_STATS_H

#include "batch.h"
#include "shmem.h"

extern void pp_report_start(void);
extern void pp_report_state(PpState state, const char *code, const char *reason, const char *hint);
extern void pp_report_state_as(PpState state, const char *code, const char *reason,
							   const char *logged, const char *hint);
extern void pp_report_error(PpPipe *pipe, int sqlstate, const char *message);
extern void pp_report_next_attempt(int ms);
extern void pp_report_batch(const PpBatch *batch);
extern void pp_report_redis(const char *url, const char *role, const char *version,
							int64 client_id);
extern void pp_report_consumer(const char *consumer, const char *owner);
extern void pp_report_memory(void);
extern bool pp_status_set(PpStatus *status, PpState state, const char *code, const char *reason);
extern void pp_clip(char *dst, const char *src, size_t size);

extern void pp_count(PpPipe *pipe, PpCounter counter, uint64 n);
extern int64 pp_pipe_counter(PpPipe *pipe, PpCounter counter);
extern void pp_pipe_reset(PpPipe *pipe);
extern uint64 pp_pipe_settled(PpPipe *pipe);
extern void pp_pipe_read(PpPipe *pipe, const PpBatch *batch);
extern bool pp_pipe_wants_rescan(const PpPipe *pipe);
extern bool pp_pipe_is_fenced(PpPipe *pipe);
extern void pp_pipe_set_fenced(PpPipe *pipe, bool fenced);
extern void pp_pipe_set_rescan(PpPipe *pipe, bool wanted);
extern void pp_pipe_applied(PpPipe *pipe, PpId last);
extern void pp_pipe_count_error(PpPipe *pipe, int sqlstate);
extern void pp_pipe_observe(PpPipe *pipe, PpHistogramKind kind, double value);
extern void pp_pipe_observe_since(PpPipe *pipe, PpHistogramKind kind, PpSteady start);
extern void pp_pipe_observe_ages(PpPipe *pipe, const PpBatch *batch);
extern void pp_pipe_acknowledged(PpPipe *pipe);
extern void pp_pipe_retry_at(PpPipe *pipe, TimestampTz at);
extern TimestampTz pp_pipe_next_retry(PpPipe *pipe, bool take);

#endif /* PP_STATS_H */
