/*
 * redis_internal.h
 *		Shared by redis.c, redis_address.c, redis_login.c, redis_reply.c and redis_wait.c alone: hiredis.
 */
#ifndef PP_REDIS_INTERNAL_H
#define PP_REDIS_INTERNAL_H

#include <hiredis/hiredis.h>

#include "redis.h"

#define PP_LOGIN_STEPS 6
#define PP_MAX_ITEMS   (1 << 20) /* of one array: far above any batch, far below harm */

/* Which reply of the log-in comes next. */
typedef enum PpLoginStep
{
	PP_LOGIN_AUTH,
	PP_LOGIN_SELECT,
	PP_LOGIN_SETNAME,
	PP_LOGIN_CLIENT_ID,
	PP_LOGIN_INFO,
	PP_LOGIN_KILL
} PpLoginStep;

struct PpRedis
{
	MemoryContext cxt;
	MemoryContextCallback callback;
	MemoryContext login_cxt; /* for replies to the log-in */
	redisContext *rc;        /* NULL: closed */
	bool fd_accounted;
	bool connecting; /* the socket is not connected yet */
	PpLoginStep login[PP_LOGIN_STEPS];
	int login_next;
	int login_count; /* steps whose reply is outstanding */
	int outstanding; /* replies owed to the caller */
	uint64 received; /* bytes */
	PpReplyTarget target;
	PpRedisUrl url;
	PpRedisError error;
	char name[PP_CONSUMER_LEN];
	int64 client_id;
	int64 old_client_id;          /* of the connection before, if it may still be half-open */
	char address[PP_ADDRESS_LEN]; /* of this attempt to connect; see redis_address.c */
	bool address_failed;          /* no log-in has succeeded there since it was looked up */
	int address_turn;             /* which of several is tried */
	char run_id[64];
	char version[32];
	char role[16];
	char eviction[32]; /* the policy by which Redis may evict a stream; empty: it may not */
};

/* redis.c */
extern PpRedisResult pp_redis_fail_connect(PpRedis *conn, const char *why);

/* redis_login.c */
extern PpRedisResult pp_redis_login_step(PpRedis *conn, const PpReply *reply);

/* redis_address.c */
extern bool pp_redis_find_address(PpRedis *conn);
extern void pp_redis_address_works(PpRedis *conn);

/* redis_wait.c */
extern void pp_redis_wait_forget(void);

/* redis_reply.c */
extern redisReplyObjectFunctions *pp_reply_functions(void);

#endif /* PP_REDIS_INTERNAL_H */
