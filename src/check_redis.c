/*
 * check_redis.c
 *		The doctor's checks of a Redis server: the one of postpipe.redis_url, or a pipeline's own.
 */
#include "check.h"

#include <math.h>

#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "redis_reply.h"

#define MIN_REDIS         6.2
#define MAX_CLOCK_SECONDS 5.0

static void
look_at_redis(PpCheck *c)
{
	const char *url;
	const char *version;

	if (c->conn == NULL)
		return; /* the connection had its line */
	url = pp_redis_display(c->conn);
	version = pp_redis_version(c->conn);
	if (version[0] == '\0')
		pp_check_warning(c, psprintf("%s answers, and does not tell its version", url), NULL);
	else if (strtod(version, NULL) < MIN_REDIS)
		pp_check_error(c, psprintf("%s has version %s", url, version),
					   "Redis 6.2 or later, or Valkey, is needed.");
	else if (pp_redis_role(c->conn)[0] != '\0' && strcmp(pp_redis_role(c->conn), "master") != 0)
		pp_check_error(c, psprintf("%s is a replica", url),
					   c->own_server
						   ? psprintf("ALTER SERVER %s OPTIONS (SET url ...), with the master's.",
									  quote_identifier(c->p->redis))
						   : "postpipe.redis_url must name the master.");
	else
		pp_check_ok(c, psprintf("%s answers, version %s", url, version));
}

static void
look_at_eviction(PpCheck *c)
{
	char policy[32];
	char limit[32];
	PpReply *reply;

	if (!pp_check_has_redis(c))
		return;
	pp_redis_send(c->conn, "INFO memory");
	reply = pp_function_reply(c->conn);
	if (!pp_reply_is(reply, PP_REPLY_STRING, 0))
		pp_function_fail(reply);
	pp_redis_info(reply, "maxmemory_policy", policy, sizeof(policy));
	pp_redis_info(reply, "maxmemory", limit, sizeof(limit));
	if (policy[0] == '\0' || limit[0] == '\0')
		pp_check_warning(c, "Redis does not tell its maxmemory-policy", NULL);
	else if (strncmp(policy, "allkeys-", strlen("allkeys-")) == 0)
		pp_check_warning(c,
						 psprintf("maxmemory-policy is %s: Redis may evict a stream with all that "
								  "was not read%s",
								  policy, strcmp(limit, "0") == 0 ? ", once maxmemory is set" : ""),
						 "redis-cli CONFIG SET maxmemory-policy noeviction");
	else
		pp_check_ok(c, psprintf("maxmemory-policy is %s", policy));
}

static void
look_at_clock(PpCheck *c)
{
	PpReply *reply;
	TimestampTz redis;
	double behind;

	if (!pp_check_has_redis(c))
		return;
	pp_redis_send(c->conn, "TIME");
	reply = pp_function_reply(c->conn);
	if (!pp_reply_is(reply, PP_REPLY_ARRAY, 2) ||
		!pp_reply_is(&reply->items[0], PP_REPLY_STRING, 0))
		pp_function_fail(reply);
	redis = time_t_to_timestamptz((pg_time_t) strtoll(reply->items[0].str, NULL, 10));
	behind = (double) (GetCurrentTimestamp() - redis) / USECS_PER_SEC;
	if (fabs(behind) > MAX_CLOCK_SECONDS)
		pp_check_warning(c,
						 psprintf("the clocks of Redis and PostgreSQL differ by %.0f s: ages and "
								  "start_time are wrong by that",
								  behind),
						 "Synchronize the clocks of both machines, with NTP for example.");
	else
		pp_check_ok(c, "the clocks of Redis and PostgreSQL agree to a few seconds");
}

const PpCheckRule pp_check_redis_rules[] = {
	{"redis", look_at_redis},
	{"eviction", look_at_eviction},
	{"clock", look_at_clock},
	{NULL, NULL},
};
