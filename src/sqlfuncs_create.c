/*
 * sqlfuncs_create.c
 *		postpipe_create_pipeline() and postpipe_alter_pipeline(): from arguments to a definition.
 */
#include "sqlfuncs.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

#include "ledger.h"
#include "target.h"

PG_FUNCTION_INFO_V1(postpipe_create_pipeline);
PG_FUNCTION_INFO_V1(postpipe_alter_pipeline);

/* An argument that is a list of names: not one of lists, and none of them NULL. */
static List *
text_array_arg(FunctionCallInfo fcinfo, int n, const char *name)
{
	List *result = NIL;
	Datum *elems;
	bool *nulls;
	int count;

	if (PG_ARGISNULL(n))
		return NIL;
	if (ARR_NDIM(PG_GETARG_ARRAYTYPE_P(n)) > 1)
		ereport(ERROR, (errcode(ERRCODE_ARRAY_SUBSCRIPT_ERROR),
						errmsg("%s must be a one-dimensional array", name)));
	if (array_contains_nulls(PG_GETARG_ARRAYTYPE_P(n)))
		ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
						errmsg("%s must not contain NULL", name)));
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(n), TEXTOID, -1, false, TYPALIGN_INT, &elems, &nulls,
					  &count);
	for (int i = 0; i < count; i++)
		result = lappend(result, TextDatumGetCString(elems[i]));
	return result;
}

/* Adds the start of the group to the options, where the worker that makes the group finds it. */
static void
set_start(PpPipeline *p, char *start_id, bool has_time, TimestampTz start_time)
{
	char buf[PP_ID_LEN];
	char *sql;

	if (has_time && start_id != NULL && strcmp(start_id, "0") != 0)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("start_id and start_time cannot be given both")));
	if (has_time)
	{
		/* A group delivers what comes after its ID. */
		pp_id_print(pp_id_previous(pp_id_at_time(start_time)), buf);
		start_id = buf;
	}
	if (start_id == NULL || strcmp(start_id, "0") == 0)
		return;
	pp_check_start_id(start_id);
	sql = psprintf("{\"start_id\": \"%s\"}", start_id);
	p->options =
		DatumGetJsonbP(DirectFunctionCall2(jsonb_concat, JsonbPGetDatum(p->options),
										   DirectFunctionCall1(jsonb_in, CStringGetDatum(sql))));
}

/* The target's name, qualified and quoted; it must exist. */
static char *
qualify_target(const char *target)
{
	Oid oid = pp_target_oid(target, AccessShareLock, false);

	return quote_qualified_identifier(get_namespace_name(get_rel_namespace(oid)),
									  get_rel_name(oid));
}

/* Who decides what a role does must be able to act as it. */
void
pp_check_may_act_as(Oid owner)
{
	if (!pp_can_set_role(GetUserId(), owner))
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
						errmsg("must be able to SET ROLE \"%s\"", GetUserNameFromId(owner, true))));
}

static Oid
owner_arg(FunctionCallInfo fcinfo, int n)
{
	char *name = pp_text_arg(fcinfo, n);
	Oid owner = name ? get_role_oid(name, false) : GetUserId();

	pp_check_may_act_as(owner);
	return owner;
}

/* Only so many pipelines have a slot in shared memory: the next one would never run. */
static void
check_number(const PpExtension *ext)
{
	if (pp_pipe_count(MyDatabaseId) + list_length(pp_pipeline_list_now(ext)) >= PP_MAX_PIPELINES)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("too many pipelines: all databases together can have %d", PP_MAX_PIPELINES),
				 errhint("Drop one, here or in another database.")));
}

static void
check_name(const char *name)
{
	size_t len = strlen(name);

	if (len == 0 || len >= PP_PIPELINE_LEN || (name[0] >= '0' && name[0] <= '9') ||
		strspn(name, "abcdefghijklmnopqrstuvwxyz_0123456789") != len)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME), errmsg("invalid pipeline name \"%s\"", name),
				 errhint("A name has 1 to 48 lower-case letters, digits and underscores, and does "
						 "not begin with a digit.")));
}

/* The pipeline's own Redis server must be there, and its owner must be allowed to use it. */
static void
check_redis(PpPipeline *p)
{
	pp_pipeline_find_redis(p);
	if (p->redis_error != NULL)
		ereport(
			ERROR,
			(errcode(ERRCODE_FDW_ERROR), errmsg("%s", p->redis_error),
			 errhint(
				 "CREATE SERVER %s FOREIGN DATA WRAPPER postpipe_redis OPTIONS (url "
				 "'redis://host:6379') makes one, GRANT USAGE ON FOREIGN SERVER lets a role use "
				 "it, and CREATE USER MAPPING gives the role's user and password.",
				 quote_identifier(p->redis))));
}

/* Is there one of this name, and is that no error? */
static bool
is_skipped(const PpExtension *ext, const char *name, bool if_not_exists)
{
	ListCell *lc;

	foreach (lc, pp_pipeline_list_now(ext))
	{
		const PpPipeline *other = lfirst(lc);

		if (pp_pipeline_lock_key(other->name) != pp_pipeline_lock_key(name))
			continue;
		if (strcmp(other->name, name) != 0)
			ereport(ERROR, (errcode(ERRCODE_DUPLICATE_OBJECT),
							errmsg("pipeline \"%s\" would have the lock of pipeline \"%s\"", name,
								   other->name),
							errdetail("Their names have the same hash."),
							errhint("Choose another name.")));
		if (!if_not_exists)
			ereport(ERROR, (errcode(ERRCODE_DUPLICATE_OBJECT),
							errmsg("pipeline \"%s\" already exists", name),
							errhint("postpipe_drop_pipeline('%s') drops it.", name)));
		ereport(NOTICE, (errcode(ERRCODE_DUPLICATE_OBJECT),
						 errmsg("pipeline \"%s\" already exists, skipping", name)));
		return true;
	}
	return false;
}

/* postpipe_create_pipeline(…): see the script for the arguments. Returns the statement. */
Datum
postpipe_create_pipeline(PG_FUNCTION_ARGS)
{
	PpExtension ext;
	PpPipeline *p = palloc0(sizeof(PpPipeline));
	char *target = pp_text_arg(fcinfo, 2);
	bool if_not_exists = !PG_ARGISNULL(17) && PG_GETARG_BOOL(17);
	char *sql;

	pp_require_preload();
	PreventCommandIfReadOnly("postpipe_create_pipeline()");
	pp_function_refuse_deferred("postpipe_create_pipeline()");
	pp_require_extension(&ext);
	p->name = pp_required_text_arg(fcinfo, 0, "pipeline");
	p->stream = pp_required_text_arg(fcinfo, 1, "stream");
	check_name(p->name);
	p->group = pp_text_arg(fcinfo, 4);
	if (p->group == NULL)
		p->group = psprintf("postpipe_%s", p->name);
	/* Before it is locked, because it may be somebody else's, and again when that was waited for. */
	if (is_skipped(&ext, p->name, if_not_exists))
		PG_RETURN_NULL();
	pp_pipeline_lock(&ext, p->name, AccessExclusiveLock);
	if (is_skipped(&ext, p->name, if_not_exists))
	{
		pp_pipeline_unlock(&ext, p->name, AccessExclusiveLock);
		PG_RETURN_NULL();
	}
	check_number(&ext);
	p->statement = pp_text_arg(fcinfo, 3);
	p->owner = owner_arg(fcinfo, 14);
	if (target != NULL)
		p->target = qualify_target(target);
	p->key = text_array_arg(fcinfo, 5, "key");
	p->on_conflict = pp_required_text_arg(fcinfo, 6, "on_conflict");
	p->newer_by = pp_text_arg(fcinfo, 7);
	p->columns = PG_ARGISNULL(8) ? NULL : PG_GETARG_JSONB_P_COPY(8);
	p->event_types = text_array_arg(fcinfo, 9, "event_types");
	p->workers = PG_ARGISNULL(12) ? 1 : PG_GETARG_INT32(12);
	p->redis = pp_text_arg(fcinfo, 13);
	check_redis(p);
	p->enabled = PG_ARGISNULL(15) || PG_GETARG_BOOL(15);
	p->enabled_reason = p->enabled ? NULL : pstrdup("created paused");
	p->options = PG_ARGISNULL(16)
					 ? DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum("{}")))
					 : PG_GETARG_JSONB_P_COPY(16);
	pp_check_options(p->options, false);
	set_start(p, pp_text_arg(fcinfo, 10), !PG_ARGISNULL(11),
			  PG_ARGISNULL(11) ? 0 : PG_GETARG_TIMESTAMPTZ(11));
	p->search_path = pstrdup(namespace_search_path);

	sql = pp_check_definition(&ext, p, true);
	/* The built-in pipeline has a row when it was dropped. */
	(void) pp_pipeline_delete(&ext, p->name);
	/* A batch that drops its own pipeline goes on after that, and puts on record what it does. */
	pp_ledger_forget(&ext, p->name);
	pp_pipeline_insert(&ext, p);
	PG_RETURN_TEXT_P(cstring_to_text(sql));
}

/* Gives what an argument sets back to its default. */
static void
reset_one(PpPipeline *p, const char *name)
{
	if (strcmp(name, "key") == 0)
		p->key = NIL;
	else if (strcmp(name, "on_conflict") == 0)
		p->on_conflict = "update";
	else if (strcmp(name, "newer_by") == 0)
		p->newer_by = NULL;
	else if (strcmp(name, "columns") == 0)
		p->columns = NULL;
	else if (strcmp(name, "event_types") == 0)
		p->event_types = NIL;
	else if (strcmp(name, "workers") == 0)
		p->workers = 1;
	else if (strcmp(name, "redis") == 0)
		p->redis = NULL;
	else if (strcmp(name, "options") == 0)
	{
		/* Where the group begins is no option that anybody has given. */
		char *start_id = pp_pipeline_option(p, "start_id");

		p->options = DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum("{}")));
		set_start(p, start_id, false, 0);
	}
	else
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("\"%s\" cannot be reset", name),
				 errhint("reset names arguments: key, on_conflict, newer_by, columns, "
						 "event_types, workers, redis and options.")));
}

/* A target or a statement takes the place of what was there, with what only makes sense with that. */
static void
alter_work(FunctionCallInfo fcinfo, PpPipeline *p)
{
	char *target = pp_text_arg(fcinfo, 1);
	char *statement = pp_text_arg(fcinfo, 2);

	if (target != NULL && statement != NULL)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("a pipeline needs either a target or a statement")));
	if (target == NULL && statement == NULL)
		return;
	if (statement != NULL || p->statement != NULL)
	{
		reset_one(p, "key");
		reset_one(p, "on_conflict");
		reset_one(p, "newer_by");
		reset_one(p, "columns");
	}
	p->target = target ? qualify_target(target) : NULL;
	p->statement = statement;
	p->search_path = pstrdup(namespace_search_path);
}

/* Options are merged; one that is null goes back to the setting. */
static void
alter_options(FunctionCallInfo fcinfo, int n, PpPipeline *p)
{
	Datum merged;

	if (PG_ARGISNULL(n))
		return;
	pp_check_options(PG_GETARG_JSONB_P(n), true);
	merged = DirectFunctionCall2(jsonb_concat, JsonbPGetDatum(p->options), PG_GETARG_DATUM(n));
	p->options =
		DatumGetJsonbP(DirectFunctionCall2(jsonb_strip_nulls, merged, BoolGetDatum(false)));
}

/* May an alter with these arguments change what the statement takes the key of an entry from? */
static bool
may_change_key(FunctionCallInfo fcinfo)
{
	for (int i = 1; i <= 6; i++) /* target … columns */
		if (!PG_ARGISNULL(i))
			return true;
	return !PG_ARGISNULL(12); /* reset */
}

/* postpipe_alter_pipeline(…): see the script for the arguments.  Returns the statement. */
Datum
postpipe_alter_pipeline(PG_FUNCTION_ARGS)
{
	PpExtension ext;
	PpPipeline *p;
	ListCell *lc;
	char *name = pp_required_text_arg(fcinfo, 0, "pipeline");
	char *sql;

	pp_require_preload();
	PreventCommandIfReadOnly("postpipe_alter_pipeline()");
	pp_function_refuse_deferred("postpipe_alter_pipeline()");
	pp_require_extension(&ext);
	(void) pp_require_pipeline(&ext, name);
	pp_pipeline_lock(&ext, name, AccessExclusiveLock);
	pp_pipeline_lock_row(&ext, name);
	p = pp_require_pipeline(&ext, name);
	if (!PG_ARGISNULL(13))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED), errmsg("a pipeline cannot be renamed"),
				 errdetail("Its consumers in Redis have its name."),
				 errhint("Drop it when nothing is pending, and create it under the new "
						 "name with consumer_group => '%s': what the group has "
						 "acknowledged is not applied again.",
						 p->group)));
	alter_work(fcinfo, p);
	foreach (lc, text_array_arg(fcinfo, 12, "reset"))
		reset_one(p, lfirst(lc));
	if (!PG_ARGISNULL(3))
		p->key = text_array_arg(fcinfo, 3, "key");
	if (!PG_ARGISNULL(4))
		p->on_conflict = pp_text_arg(fcinfo, 4);
	if (!PG_ARGISNULL(5))
		p->newer_by = pp_text_arg(fcinfo, 5);
	if (!PG_ARGISNULL(6))
		p->columns = PG_GETARG_JSONB_P_COPY(6);
	if (!PG_ARGISNULL(7))
		p->event_types = text_array_arg(fcinfo, 7, "event_types");
	if (!PG_ARGISNULL(8))
		p->workers = PG_GETARG_INT32(8);
	if (!PG_ARGISNULL(9))
		p->redis = pp_text_arg(fcinfo, 9);
	if (!PG_ARGISNULL(10))
		p->owner = owner_arg(fcinfo, 10);
	check_redis(p);
	alter_options(fcinfo, 11, p);
	if (!PG_ARGISNULL(1) || !PG_ARGISNULL(2) || !PG_ARGISNULL(3) || !PG_ARGISNULL(4) ||
		!PG_ARGISNULL(12))
		pp_store_clear_progress(&ext, name, "keyed");
	p->altered_at = GetCurrentTransactionStartTimestamp();
	if (!PG_ARGISNULL(1) || !PG_ARGISNULL(2))
		pp_check_may_act_as(p->owner);
	sql = pp_check_definition(&ext, p, !PG_ARGISNULL(1) || !PG_ARGISNULL(6));
	pp_pipeline_update(&ext, p);
	if (may_change_key(fcinfo))
		pp_function_hash_letters(&ext, p);
	PG_RETURN_TEXT_P(cstring_to_text(sql));
}
