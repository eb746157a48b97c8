/*
 * redis.h
 *		One connection to Redis.
 */
#ifndef PP_REDIS_H
#define PP_REDIS_H

#include "batch.h"
#include "redis_error.h"
#include "redis_reply.h"
#include "redis_url.h"
#include "wait_event.h"

typedef struct PpRedis PpRedis;

typedef enum PpRedisResult
{
	PP_REDIS_REPLY,   /* *reply is set */
	PP_REDIS_NOTHING, /* no reply yet: time is up, or the latch was set */
	PP_REDIS_FAILED   /* the connection is closed; see pp_redis_error() */
} PpRedisResult;

extern PpRedis *pp_redis_create(MemoryContext parent, const char *client_name);
extern void pp_redis_keep(PpRedis *conn, MemoryContext parent);
extern bool pp_redis_start(PpRedis *conn, const PpRedisUrl *url);
extern void pp_redis_close(PpRedis *conn);
extern bool pp_redis_is_open(const PpRedis *conn);
extern int pp_redis_outstanding(const PpRedis *conn);
extern uint64 pp_redis_received(const PpRedis *conn);
extern void pp_redis_reply_target(PpRedis *conn, MemoryContext cxt, size_t limit);
extern void pp_redis_skim(PpRedis *conn, bool skim);
extern size_t pp_redis_skimmed(const PpRedis *conn);

extern void pp_redis_send(PpRedis *conn, const char *format, ...);
extern void pp_redis_send_strings(PpRedis *conn, int n, const PpString *strings);
extern bool pp_redis_flush(PpRedis *conn);
extern void pp_redis_take_in(PpRedis *conn);
extern PpRedisResult pp_redis_poll(PpRedis *conn, PpReply **reply);
extern bool pp_redis_wait_any(PpRedis **conns, int n, long timeout_ms, PpWaitEvent event);
extern bool pp_redis_wait(PpRedis *conn, long timeout_ms, PpWaitEvent event);
extern PpRedisResult pp_redis_receive(PpRedis *conn, PpReply **reply, long timeout_ms,
									  PpWaitEvent event);
extern PpRedisResult pp_redis_fail(PpRedis *conn, PpRedisClass class, const char *code,
								   const char *fmt, ...) pg_attribute_printf(4, 5);

extern const PpRedisError *pp_redis_error(const PpRedis *conn);
extern void pp_redis_info(const PpReply *info, const char *name, char *dst, size_t size);
extern const char *pp_redis_display(const PpRedis *conn);
extern const char *pp_redis_version(const PpRedis *conn);
extern uint64 pp_redis_run(const PpRedis *conn);
extern const char *pp_redis_eviction(const PpRedis *conn);
extern const char *pp_redis_role(const PpRedis *conn);
extern int64 pp_redis_client_id(const PpRedis *conn);
extern const char *pp_redis_library(void);

#endif /* PP_REDIS_H */
