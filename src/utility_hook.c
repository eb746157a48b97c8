/*
 * utility_hook.c
 *		What our processes have to know of DDL in other backends.
 *
 *	- DROP, RENAME, MOVE or copy of a database: ours step aside first, because the server waits only
 *	  five seconds for others to leave it.
 *	- CREATE and ALTER DATABASE wake the launcher, which looks for its databases by name.
 *	- A change of a definition or of a foreign server, CREATE and DROP EXTENSION wake the supervisor.
 *	- The schema of the extension is renamed by superusers only.
 * All wakes are at the end of the transaction: before, there is nothing to see.
 */
#include "utility_hook.h"

#include "access/xact.h"
#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_database.h"
#include "catalog/pg_extension.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "storage/latch.h"
#include "tcop/utility.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/syscache.h"

#include "compat.h"
#include "pipeline.h"
#include "process.h"
#include "shmem.h"

#define STEP_ASIDE_MS 10000 /* how long DDL waits for our processes to leave a database */

static ProcessUtility_hook_type prev_process_utility;
static object_access_hook_type prev_object_access;
static bool wake_supervisor;
static bool wake_launcher;

/*
 * At the very end of a transaction, when others can see what it has done and have been told to forget what
 * they had cached of it (xact.c, CommitTransaction()): what they look at then is new.
 */
static void
at_release(ResourceReleasePhase phase, bool is_commit, bool is_top_level, void *arg)
{
	if (phase != RESOURCE_RELEASE_AFTER_LOCKS || !is_top_level)
		return;
	if (is_commit && wake_supervisor)
		pp_wake_supervisor(MyDatabaseId);
	if (is_commit && wake_launcher)
		pp_wake_launcher();
	wake_supervisor = wake_launcher = false;
}

/* What a prepared transaction has changed nobody knows any more: all look. */
static void
wake_for_prepared(void)
{
	pp_wake_supervisor(MyDatabaseId);
	pp_wake_launcher();
}

/* The supervisor of this database looks at the definitions when this transaction commits. */
void
pp_wake_at_commit(void)
{
	wake_supervisor = true;
}

/* CREATE and DROP EXTENSION, in whatever statement; also DROP OWNED and DROP SCHEMA … CASCADE. */
static void
object_access(ObjectAccessType access, Oid class_id, Oid object_id, int sub_id, void *arg)
{
	if (prev_object_access)
		prev_object_access(access, class_id, object_id, sub_id, arg);
	if (class_id == ExtensionRelationId && (access == OAT_DROP || access == OAT_POST_CREATE))
		pp_wake_at_commit();
}

/* The database that a statement needs to itself, or NULL. */
static const char *
database_wanted_empty(Node *parsetree)
{
	ListCell *lc;

	switch (nodeTag(parsetree))
	{
		case T_DropdbStmt:
			return ((DropdbStmt *) parsetree)->dbname;
		case T_RenameStmt:
			if (((RenameStmt *) parsetree)->renameType == OBJECT_DATABASE)
				return ((RenameStmt *) parsetree)->subname;
			return NULL;
		case T_AlterDatabaseStmt:
			foreach (lc, ((AlterDatabaseStmt *) parsetree)->options)
				if (strcmp(lfirst_node(DefElem, lc)->defname, "tablespace") == 0)
					return ((AlterDatabaseStmt *) parsetree)->dbname;
			return NULL;
		case T_CreatedbStmt:
			foreach (lc, ((CreatedbStmt *) parsetree)->options)
			{
				DefElem *option = lfirst_node(DefElem, lc);

				if (strcmp(option->defname, "template") == 0 && option->arg != NULL)
					return defGetString(option); /* a name may be written as a number */
			}
			return NULL;
		default:
			return NULL;
	}
}

static bool
is_database_statement(Node *parsetree)
{
	return IsA(parsetree, CreatedbStmt) || IsA(parsetree, DropdbStmt) ||
		   IsA(parsetree, AlterDatabaseStmt) || IsA(parsetree, AlterDatabaseSetStmt) ||
		   (IsA(parsetree, RenameStmt) &&
			((RenameStmt *) parsetree)->renameType == OBJECT_DATABASE);
}

/*
 * Our own statements name the schema of the extension, and are run as a superuser: who renames it can put tables with
 * triggers of his own in the place of ours.  That of "public" belongs to the owner of the database.
 */
static void
check_rename(Node *parsetree)
{
	const RenameStmt *rename = (const RenameStmt *) parsetree;
	PpExtension ext;

	if (!IsA(parsetree, RenameStmt) || rename->renameType != OBJECT_SCHEMA || superuser() ||
		!pp_extension_lookup(&ext) || get_namespace_oid(rename->subname, true) != ext.schema)
		return;
	ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
					errmsg("must be superuser to rename schema \"%s\"", rename->subname),
					errdetail("Extension postpipe is in it.")));
}

/* May it change what a Redis server of a pipeline's own is?  (redis_server.c) */
static bool
is_server_statement(Node *parsetree)
{
	switch (nodeTag(parsetree))
	{
		case T_CreateForeignServerStmt:
		case T_AlterForeignServerStmt:
		case T_CreateUserMappingStmt:
		case T_AlterUserMappingStmt:
		case T_DropUserMappingStmt:
			return true;
		case T_RenameStmt:
			return ((RenameStmt *) parsetree)->renameType == OBJECT_FOREIGN_SERVER;
		case T_DropStmt:
			return ((DropStmt *) parsetree)->removeType == OBJECT_FOREIGN_SERVER;
		case T_GrantStmt:
			return ((GrantStmt *) parsetree)->objtype == OBJECT_FOREIGN_SERVER;
		default:
			return false;
	}
}

/* May this user make databases?  The server's own check is not exported by all minor versions. */
static bool
may_create_databases(void)
{
	HeapTuple tuple;
	bool may = superuser();

	if (may)
		return true;
	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(GetUserId()));
	if (HeapTupleIsValid(tuple))
	{
		may = ((Form_pg_authid) GETSTRUCT(tuple))->rolcreatedb;
		ReleaseSysCache(tuple);
	}
	return may;
}

static bool
is_template(Oid dboid)
{
	HeapTuple tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(dboid));
	bool result = false;

	if (HeapTupleIsValid(tuple))
	{
		result = ((Form_pg_database) GETSTRUCT(tuple))->datistemplate;
		ReleaseSysCache(tuple);
	}
	return result;
}

/* Would the server do it, for this user and here?  Nobody else may make our processes leave. */
static bool
may_claim(Node *parsetree, Oid dboid, ProcessUtilityContext context)
{
	bool owns = pp_database_ownercheck(dboid, GetUserId());

	if (IsA(parsetree, RenameStmt))
		return owns && may_create_databases();
	if (IsInTransactionBlock(context == PROCESS_UTILITY_TOPLEVEL))
		return false;
	if (IsA(parsetree, CreatedbStmt))
		return (owns || is_template(dboid)) && may_create_databases();
	return owns;
}

/* Waits until our processes have left the database; whoever is still there then is the server's. */
static void
wait_until_empty(Oid dboid)
{
	PpSteady end = pp_steady_in(STEP_ASIDE_MS);

	ConditionVariablePrepareToSleep(&pp_shared->state_cv);
	pp_wake_launcher();
	while (pp_proc_count(dboid) > 0)
	{
		long left = pp_steady_left(end);

		if (left <= 0 || ConditionVariableTimedSleep(&pp_shared->state_cv, left,
													 pp_wait_event(PP_WAIT_PROCESS_EXIT)))
			break;
	}
	ConditionVariableCancelSleep();
}

static void
call_next(PlannedStmt *pstmt, const char *query, bool read_only, ProcessUtilityContext context,
		  ParamListInfo params, QueryEnvironment *env, DestReceiver *dest, QueryCompletion *qc)
{
	if (prev_process_utility)
		prev_process_utility(pstmt, query, read_only, context, params, env, dest, qc);
	else
		standard_ProcessUtility(pstmt, query, read_only, context, params, env, dest, qc);
}

static void
process_utility(PlannedStmt *pstmt, const char *query, bool read_only,
				ProcessUtilityContext context, ParamListInfo params, QueryEnvironment *env,
				DestReceiver *dest, QueryCompletion *qc)
{
	Node *parsetree = pstmt->utilityStmt;
	const char *name = database_wanted_empty(parsetree);
	Oid dboid = name ? get_database_oid(name, true) : InvalidOid;

	check_rename(parsetree);
	if (is_database_statement(parsetree))
		wake_launcher = true;
	if (is_server_statement(parsetree))
		pp_wake_at_commit();
	if (!OidIsValid(dboid) || pp_proc_count(dboid) == 0 || !may_claim(parsetree, dboid, context) ||
		!pp_step_aside_set(dboid, true))
	{
		call_next(pstmt, query, read_only, context, params, env, dest, qc);
		if (IsA(parsetree, TransactionStmt) &&
			((TransactionStmt *) parsetree)->kind == TRANS_STMT_COMMIT_PREPARED)
			wake_for_prepared();
		return;
	}
	PG_TRY();
	{
		wait_until_empty(dboid);
		call_next(pstmt, query, read_only, context, params, env, dest, qc);
	}
	PG_FINALLY();
	{
		(void) pp_step_aside_set(dboid, false);
		pp_wake_launcher();
	}
	PG_END_TRY();
}

/* Only from _PG_init() at preload. */
void
pp_utility_hook_install(void)
{
	prev_process_utility = ProcessUtility_hook;
	ProcessUtility_hook = process_utility;
	prev_object_access = object_access_hook;
	object_access_hook = object_access;
	RegisterResourceReleaseCallback(at_release, NULL);
}
