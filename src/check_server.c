/*
 * check_server.c
 *		The doctor's checks of PostgreSQL.
 */
#include "check.h"

#include "access/xlog.h"
#include "commands/dbcommands.h"
#include "miscadmin.h"

#include "guc.h"

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

const PpCheckRule pp_check_server_rules[] = {
	{"version", look_at_version},   {"standby", look_at_recovery},
	{"settings", look_at_settings}, {"supervisor", look_at_supervisor},
	{"workers", look_at_workers},   {NULL, NULL},
};
