/*
 * sqlfuncs.c
 *		SQL functions that act on pipelines: arguments, privileges, and the call.
 *
 * Whoever was granted EXECUTE may manage his own pipelines: those whose owner he is a member of.
 * A change is a row in postpipe_pipeline; the trigger on that table wakes the supervisor at commit.
 */
#include "sqlfuncs.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_database.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "commands/extension.h"
#include "commands/trigger.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/varlena.h"

#include "dead_letter.h"
#include "event.h"
#include "guc.h"
#include "ledger.h"
#include "utility_hook.h"

PG_FUNCTION_INFO_V1(postpipe_drop_pipeline);
PG_FUNCTION_INFO_V1(postpipe_pause);
PG_FUNCTION_INFO_V1(postpipe_resume);
PG_FUNCTION_INFO_V1(postpipe_definition_changed);
PG_FUNCTION_INFO_V1(postpipe_version);

/* The extension in this database; throws when it is not created. */
void
pp_require_extension(PpExtension *ext)
{
	if (!pp_extension_lookup(ext))
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
						errmsg("extension postpipe is not created in this database"),
						errhint("Run CREATE EXTENSION postpipe.")));
}

/* The pipeline as it is now, which the caller must be allowed to manage. */
PpPipeline *
pp_require_pipeline(const PpExtension *ext, const char *name)
{
	PpPipeline *p = pp_pipeline_find(pp_pipeline_list_now(ext), name);

	if (p == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT), errmsg("pipeline \"%s\" does not exist", name),
				 errhint("SELECT pipeline FROM postpipe_pipelines shows those that do.")));
	if (!superuser() && GetUserNameFromId(p->owner, true) == NULL)
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
						errmsg("owner of pipeline \"%s\" does not exist", name),
						errhint("A superuser gives it another one: "
								"postpipe_alter_pipeline('%s', owner => 'role').",
								name)));
	if (!has_privs_of_role(GetUserId(), p->owner))
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
						errmsg("must be a member of role \"%s\" to manage pipeline \"%s\"",
							   GetUserNameFromId(p->owner, true), name)));
	return p;
}

char *
pp_text_arg(FunctionCallInfo fcinfo, int n)
{
	return PG_ARGISNULL(n) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(n));
}

char *
pp_required_text_arg(FunctionCallInfo fcinfo, int n, const char *name)
{
	if (PG_ARGISNULL(n))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("%s must not be NULL", name)));
	return text_to_cstring(PG_GETARG_TEXT_PP(n));
}

/* The ledger has to be seen as it is now, not as it was when the transaction began. */
void
pp_require_read_committed(const char *function)
{
	if (IsolationUsesXactSnapshot())
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("%s must be called in a transaction with isolation level read committed",
						function)));
}

/* A definition that was restored into another database does nothing until somebody says that it may. */
void
pp_require_armed(const PpPipeline *p)
{
	if (!pp_pipeline_is_armed(p))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("pipeline \"%s\" comes from another server or database, or from a dump",
						p->name),
				 errhint("If it is to read from here, and nowhere else any more, run "
						 "postpipe_resume('%s', take_over => true).",
						 p->name)));
}

/* Where a group may begin. */
void
pp_check_start_id(const char *start_id)
{
	PpId id;

	if (strcmp(start_id, "$") != 0 && !pp_id_parse(start_id, strlen(start_id), &id))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid start_id \"%s\"", start_id),
				 errhint("It is 0 for the earliest entry, $ for the latest, or an entry ID.")));
}

/* An argument that is a number of things, or throws. */
int
pp_positive_arg(FunctionCallInfo fcinfo, int n, const char *name)
{
	int value = PG_GETARG_INT32(n);

	if (value < 1)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("%s must be greater than zero", name)));
	return value;
}

/*
 * pp_function_attempt
 *		Does `work` in a subtransaction that is rolled back in any case.  Returns NULL, or the error that
 *		it failed with, in the current memory context; but a cancel or a shutdown goes on.
 */
PpEntryError *
pp_function_attempt(void (*work)(void *arg), void *arg)
{
	MemoryContext cxt = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	PpEntryError *volatile error = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(cxt);
	PG_TRY();
	{
		work(arg);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(cxt);
		if (geterrcode() == ERRCODE_QUERY_CANCELED || geterrcode() == ERRCODE_ADMIN_SHUTDOWN)
			PG_RE_THROW();
		error = pp_entry_error_capture(cxt);
	}
	PG_END_TRY();
	RollbackAndReleaseCurrentSubTransaction();
	MemoryContextSwitchTo(cxt);
	CurrentResourceOwner = owner;
	return error;
}

/* Deletes the row of a pipeline, if it has one; returns how many it had. */
uint64
pp_pipeline_delete(const PpExtension *ext, const char *name)
{
	Oid types[] = {TEXTOID};
	Datum values[] = {CStringGetTextDatum(name)};

	return pp_store_execute(
		ext, psprintf("DELETE FROM %s.postpipe_pipeline WHERE pipeline = $1", ext->schema_name), 1,
		types, values, NULL);
}

/* The dropped pipeline's group, on request. The pipeline must not be reading from it any more. */
static void
destroy_group(const PpPipeline *p)
{
	PpRedis *conn = pp_function_connect(p);

	pp_redis_send(conn, "XGROUP DESTROY %s %s", p->stream, p->group);
	/* A stream that is gone has no groups. */
	(void) pp_function_failed_with(pp_function_reply(conn), "redis_nokey");
	pp_redis_close(conn);
}

/* Is there none, and is that no error? */
static bool
is_skipped(const PpExtension *ext, const char *name, bool if_exists)
{
	if (!if_exists || pp_pipeline_find(pp_pipeline_list_now(ext), name) != NULL)
		return false;
	ereport(NOTICE, (errmsg("pipeline \"%s\" does not exist, skipping", name)));
	return true;
}

/*
 * postpipe_drop_pipeline(pipeline, if_exists, destroy_group, discard_dead)
 *		Returns false when there was none.
 */
Datum
postpipe_drop_pipeline(PG_FUNCTION_ARGS)
{
	char *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	PpExtension ext;
	PpPipeline *p;
	int64 dead;

	pp_require_preload();
	PreventCommandIfReadOnly("postpipe_drop_pipeline()");
	pp_require_extension(&ext);
	if (is_skipped(&ext, name, PG_GETARG_BOOL(1)))
		PG_RETURN_BOOL(false);
	(void) pp_require_pipeline(&ext, name);
	pp_pipeline_lock(&ext, name, AccessExclusiveLock);
	if (is_skipped(&ext, name, PG_GETARG_BOOL(1)))
	{
		pp_pipeline_unlock(&ext, name, AccessExclusiveLock);
		PG_RETURN_BOOL(false);
	}
	pp_pipeline_lock_row(&ext, name);
	p = pp_require_pipeline(&ext, name);
	/* With an older snapshot, letters that were written since would go uncounted, or stay. */
	pp_require_read_committed("postpipe_drop_pipeline()");
	dead = pp_dead_letter_count(&ext, name);
	if (dead > 0 && !PG_GETARG_BOOL(3))
		ereport(ERROR, (errcode(ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST),
						errmsg("pipeline \"%s\" has " INT64_FORMAT " dead letters", name, dead),
						errhint("Look at postpipe_dlq, or drop them with the pipeline: "
								"postpipe_drop_pipeline('%s', discard_dead => true).",
								name)));
	if (!p->builtin)
		pp_pipeline_check_written(pp_pipeline_delete(&ext, name));
	if (strcmp(name, PP_POSTS_PIPELINE) == 0)
	{
		/* Without a row it would exist again. */
		p->dropped = true;
		pp_pipeline_insert(&ext, p);
	}
	pp_ledger_forget(&ext, name);
	if (PG_GETARG_BOOL(2))
		destroy_group(p);
	PG_RETURN_BOOL(true);
}

/* The pipeline, which nobody else changes from here on; its batches go on. */
static PpPipeline *
lock_row(const PpExtension *ext, const char *name)
{
	(void) pp_require_pipeline(ext, name);
	pp_pipeline_lock_row(ext, name);
	return pp_require_pipeline(ext, name);
}

/* Writes enabled and its reason, and where the pipeline is at home if `arm`. */
static void
set_enabled(const PpExtension *ext, PpPipeline *p, bool enabled, const char *reason, bool arm)
{
	Oid types[] = {TEXTOID, BOOLOID, TEXTOID};
	Datum values[] = {CStringGetTextDatum(p->name), BoolGetDatum(enabled),
					  reason ? CStringGetTextDatum(reason) : (Datum) 0};
	bool nulls[] = {false, false, reason == NULL};
	const char *home = "";

	if (p->builtin)
	{
		p->enabled = enabled;
		p->enabled_reason = reason ? pstrdup(reason) : NULL;
		pp_pipeline_insert(ext, p);
		return;
	}
	if (arm)
		home = psprintf(", system_identifier = " INT64_FORMAT
						", database_oid = %u, extension_oid = %u",
						(int64) GetSystemIdentifier(), MyDatabaseId, ext->oid);
	pp_pipeline_check_written(pp_store_execute(
		ext,
		psprintf("UPDATE %s.postpipe_pipeline SET enabled = $2, enabled_reason = $3, "
				 "altered_at = now()%s WHERE pipeline = $1",
				 ext->schema_name, home),
		3, types, values, nulls));
}

/* postpipe_pause(pipeline, reason): takes effect at commit. */
Datum
postpipe_pause(PG_FUNCTION_ARGS)
{
	PpExtension ext;
	PpPipeline *p;
	char *reason = pp_text_arg(fcinfo, 1);

	pp_require_preload();
	PreventCommandIfReadOnly("postpipe_pause()");
	pp_require_extension(&ext);
	p = lock_row(&ext, pp_required_text_arg(fcinfo, 0, "pipeline"));
	if (reason == NULL)
		reason = psprintf("paused by %s", GetUserNameFromId(GetUserId(), true));
	set_enabled(&ext, p, false, reason, false);
	PG_RETURN_VOID();
}

/* postpipe_resume(pipeline, take_over): takes effect at commit. */
Datum
postpipe_resume(PG_FUNCTION_ARGS)
{
	PpExtension ext;
	PpPipeline *p;
	bool take_over = PG_GETARG_BOOL(1);

	pp_require_preload();
	PreventCommandIfReadOnly("postpipe_resume()");
	pp_require_extension(&ext);
	p = lock_row(&ext, text_to_cstring(PG_GETARG_TEXT_PP(0)));
	if (!take_over)
		pp_require_armed(p);
	if (take_over)
		/* The worker that is started next writes the owner key, whosever it is. */
		pp_store_note_progress(&ext, p->name, "take_over");
	if (!p->enabled)
		pp_store_clear_progress(&ext, p->name, "keyed");
	if (!p->builtin || take_over)
		set_enabled(&ext, p, true, NULL, take_over);
	PG_RETURN_VOID();
}

/* Nobody could copy a template while our processes are in it: they stay out. */
static bool
is_template(void)
{
	HeapTuple tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(MyDatabaseId));
	bool result = HeapTupleIsValid(tuple) && ((Form_pg_database) GETSTRUCT(tuple))->datistemplate;

	if (HeapTupleIsValid(tuple))
		ReleaseSysCache(tuple);
	return result;
}

/* What is preloaded, and we, as ALTER SYSTEM takes it. */
static char *
libraries_with_ours(void)
{
	StringInfoData value;
	List *libraries;
	ListCell *lc;

	initStringInfo(&value);
	if (SplitDirectoriesString(pstrdup(shared_preload_libraries_string), ',', &libraries))
		foreach (lc, libraries)
			appendStringInfo(&value, "%s, ", quote_literal_cstr(lfirst(lc)));
	appendStringInfoString(&value, "'" PP_EXTENSION "'");
	return value.data;
}

/* Is the library preloaded and this database listed?  Said when the extension is created. */
static void
warn_if_idle(void)
{
	char *datname = get_database_name(MyDatabaseId);

	if (pp_shared == NULL)
		ereport(WARNING,
				(errmsg("postpipe is not preloaded, so no pipeline will run"),
				 errhint("Run ALTER SYSTEM SET shared_preload_libraries = %s; and restart the "
						 "server.",
						 libraries_with_ours())));
	else if (is_template())
		ereport(WARNING,
				(errmsg("database \"%s\" is a template, so no pipeline of it will run", datname),
				 errhint("Databases that are made from it have the extension; list those in "
						 "postpipe.databases.")));
	else if (!pp_guc_lists_database(datname))
		ereport(WARNING,
				(errmsg("database \"%s\" is not listed in postpipe.databases, so no pipeline of it "
						"will run",
						datname),
				 errhint("Run ALTER SYSTEM SET postpipe.databases = %s; "
						 "SELECT pg_reload_conf();",
						 quote_literal_cstr(psprintf("%s%s%s", pp_guc_databases,
													 pp_guc_databases[0] ? ", " : "",
													 quote_identifier(datname))))));
}

/* Trigger of postpipe_pipeline. */
Datum
postpipe_definition_changed(PG_FUNCTION_ARGS)
{
	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR, (errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
						errmsg("postpipe_definition_changed() must be called as a trigger")));
	if (creating_extension)
		warn_if_idle();
	if (pp_shared != NULL)
		pp_wake_at_commit();
	/* Running workers look at their definition before the next batch: pp_pipeline_is_current(). */
	CacheInvalidateRelcache(((TriggerData *) fcinfo->context)->tg_relation);
	PG_RETURN_POINTER(NULL);
}

/* postpipe_version(): versions of the library, of the SQL objects, of hiredis; is there TLS? */
Datum
postpipe_version(PG_FUNCTION_ARGS)
{
	TupleDesc desc;
	PpExtension ext;
	Datum values[4];
	bool nulls[4] = {0};

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	values[0] = CStringGetTextDatum(PP_VERSION);
	nulls[1] = !pp_extension_lookup(&ext) || ext.version == NULL;
	values[1] = nulls[1] ? (Datum) 0 : CStringGetTextDatum(ext.version);
	values[2] = CStringGetTextDatum(pp_redis_library());
	values[3] = BoolGetDatum(false);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}
