/*
 * check_server.c
 *		The doctor's checks of the two servers.
 */
#include "check.h"

#include <math.h>

#include "access/xlog.h"
#include "commands/dbcommands.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "guc.h"
#include "redis_reply.h"

#define MIN_REDIS         6.2
#define MAX_CLOCK_SECONDS 5.0

static void
look_at_version(PpCheck *c)
{
	if (c->ext->version != NULL && strcmp(c->ext->version, PP_VERSION) == 0)
		pp_check_ok(c, psprintf("library and SQL objects have version %s", PP_VERSION));
	else
		pp_check_error(
			c,
			psprintf("the library has version %s, the SQL objects have %s", PP_VERSION,
					 c->ext->version ? c->ext->version : "none"),
			"ALTER EXTENSION postpipe UPDATE; if the library is the older one, restart the "
			"server.");
}

static void
look_at_recovery(PpCheck *c)
{
	if (RecoveryInProgress())
		pp_check_warning(c, "this server is a standby: no pipeline runs here",
						 "SELECT pg_promote(), if it is to take over.");
	else
		pp_check_ok(c, "this server is no standby");
}

static void
look_at_settings(PpCheck *c)
{
	const char *database = get_database_name(MyDatabaseId);

	if (!pp_guc_enabled)
		pp_check_warning(c, "postpipe.enabled is off: nothing is read",
						 "ALTER SYSTEM SET postpipe.enabled = on; SELECT pg_reload_conf();");
	else if (!pp_guc_lists_database(database))
		pp_check_error(c,
					   psprintf("database \"%s\" is not in postpipe.databases (%s)", database,
								pp_guc_databases),
					   "Add it with ALTER SYSTEM SET postpipe.databases, then SELECT "
					   "pg_reload_conf().");
	else if (!enableFsync)
		pp_check_warning(c, "fsync is off: a crash of the machine loses what is acknowledged",
						 "ALTER SYSTEM SET fsync = on; SELECT pg_reload_conf();");
	else
		pp_check_ok(c, psprintf("database \"%s\" is listed, and reading is enabled", database));
}

static void
look_at_supervisor(PpCheck *c)
{
	if (pp_supervisor_has_looked(MyDatabaseId))
		pp_check_ok(c, "the supervisor of this database runs");
	else if (RecoveryInProgress() || !pp_guc_lists_database(get_database_name(MyDatabaseId)))
		pp_check_warning(c, "no supervisor runs in this database", NULL);
	else
		pp_check_error(c, "no supervisor runs in this database",
					   "SELECT * FROM postpipe_workers, and look into the server's log; if no "
					   "launcher is shown, raise max_worker_processes and restart the server.");
}

static void
look_at_workers(PpCheck *c)
{
	int wanted = 0;
	ListCell *lc;

	foreach (lc, c->pipelines)
	{
		const PpPipeline *p = lfirst(lc);

		wanted += p->enabled && !p->dropped ? p->workers : 0;
	}
	if (wanted > pp_guc_max_workers)
		pp_check_error(
			c,
			psprintf("the pipelines of this database want %d workers, postpipe.max_workers "
					 "is %d",
					 wanted, pp_guc_max_workers),
			"Raise postpipe.max_workers and restart the server.");
	/* With the launcher and a supervisor. */
	else if (wanted + 2 > max_worker_processes)
		pp_check_error(c,
					   psprintf("%d workers, a supervisor and the launcher need more than "
								"max_worker_processes, which is %d",
								wanted, max_worker_processes),
					   "Raise max_worker_processes and restart the server.");
	else
		pp_check_ok(c, psprintf("%d workers are wanted; postpipe.max_workers is %d, "
								"max_worker_processes %d",
								wanted, pp_guc_max_workers, max_worker_processes));
}

static void
look_at_redis(PpCheck *c)
{
	PpRedisUrl url;
	const char *version;

	if (!pp_check_has_redis(c))
		return;
	pp_guc_redis_url(&url);
	version = pp_redis_version(c->conn);
	if (version[0] == '\0')
		pp_check_warning(c, psprintf("%s answers, and does not tell its version", url.display),
						 NULL);
	else if (strtod(version, NULL) < MIN_REDIS)
		pp_check_error(c, psprintf("%s has version %s", url.display, version),
					   "Redis 6.2 or later, or Valkey, is needed.");
	else if (pp_redis_role(c->conn)[0] != '\0' && strcmp(pp_redis_role(c->conn), "master") != 0)
		pp_check_error(c, psprintf("%s is a replica", url.display),
					   "postpipe.redis_url must name the master.");
	else
		pp_check_ok(c, psprintf("%s answers, version %s", url.display, version));
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

const PpCheckRule pp_check_server_rules[] = {
	{"version", look_at_version},
	{"standby", look_at_recovery},
	{"settings", look_at_settings},
	{"supervisor", look_at_supervisor},
	{"workers", look_at_workers},
	{"redis", look_at_redis},
	{"eviction", look_at_eviction},
	{"clock", look_at_clock},
	{NULL, NULL},
};
