/*
 * sqlfuncs.c
 *		SQL functions that act on pipelines: arguments, privileges, and the call.
 *
 * Whoever was granted EXECUTE may manage his own pipelines: those whose owner he is a member of.
 * A change is a row in postpipe_pipeline; the trigger on that table wakes the supervisor at commit.
 */
#include "postpipe.h"

#include "access/table.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "commands/extension.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/varlena.h"

#include "compat.h"
#include "guc.h"
#include "ledger.h"
#include "process.h"
#include "redis.h"
#include "sqlfuncs.h"
#include "statement.h"
#include "stream.h"
#include "utility_hook.h"

#define REDIS_MS 5000 /* how long a function waits for Redis */

PG_FUNCTION_INFO_V1(postpipe_create_pipeline);
PG_FUNCTION_INFO_V1(postpipe_drop_pipeline);
PG_FUNCTION_INFO_V1(postpipe_pause);
PG_FUNCTION_INFO_V1(postpipe_resume);
PG_FUNCTION_INFO_V1(postpipe_wait_state);
PG_FUNCTION_INFO_V1(postpipe_rewind);
PG_FUNCTION_INFO_V1(postpipe_definition_changed);
PG_FUNCTION_INFO_V1(postpipe_version);

/* Options that a pipeline may have; what is behind some of them comes with later versions. */
static const char *const known_options[] = {
	"batch_size", "statement_timeout", "lock_timeout", "synchronous_commit", "allow_unlogged",
	"start_id"};

/* The extension in this database; throws when it is not created. */
void
pp_require_extension(PpExtension *ext)
{
	if (!pp_extension_lookup(ext))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("extension postpipe is not created in this database"),
				 errhint("Run CREATE EXTENSION postpipe.")));
}

/* The pipeline, which the caller must be allowed to manage. */
static PpPipeline *
require_pipeline(const PpExtension *ext, const char *name)
{
	PpPipeline *p = pp_pipeline_get(ext, name);

	if (p == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("pipeline \"%s\" does not exist", name),
				 errhint("SELECT pipeline FROM postpipe_pipelines shows those that do.")));
	if (!has_privs_of_role(GetUserId(), p->owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be a member of role \"%s\" to manage pipeline \"%s\"",
						GetUserNameFromId(p->owner, true), name)));
	return p;
}

static char *
text_arg(FunctionCallInfo fcinfo, int n)
{
	return PG_ARGISNULL(n) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(n));
}

static char *
required_text_arg(FunctionCallInfo fcinfo, int n, const char *name)
{
	if (PG_ARGISNULL(n))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("%s must not be NULL", name)));
	return text_to_cstring(PG_GETARG_TEXT_PP(n));
}

static List *
text_array_arg(FunctionCallInfo fcinfo, int n)
{
	List	   *result = NIL;
	Datum	   *elems;
	bool	   *nulls;
	int			count;

	if (PG_ARGISNULL(n))
		return NIL;
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(n), TEXTOID, -1, false, TYPALIGN_INT, &elems, &nulls,
					  &count);
	for (int i = 0; i < count; i++)
		if (!nulls[i])
			result = lappend(result, TextDatumGetCString(elems[i]));
	return result;
}

static void
check_options(const Jsonb *options)
{
	JsonbIterator *it;
	JsonbIteratorToken token;
	JsonbValue	value;

	if (!JB_ROOT_IS_OBJECT(options))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("options must be a JSON object")));
	it = JsonbIteratorInit((JsonbContainer *) &options->root);
	while ((token = JsonbIteratorNext(&it, &value, true)) != WJB_DONE)
	{
		char	   *name;
		bool		known = false;

		if (token != WJB_KEY)
			continue;
		name = pnstrdup(value.val.string.val, value.val.string.len);
		for (int i = 0; i < lengthof(known_options); i++)
			known |= strcmp(known_options[i], name) == 0;
		if (!known)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("unrecognized option \"%s\"", name),
					 errhint("Options are batch_size, statement_timeout, lock_timeout, "
							 "synchronous_commit and allow_unlogged.")));
	}
}

static void
check_option_range(const PpPipeline *p, const char *name, int min, int max)
{
	int			value = pp_pipeline_option_int(p, name, min);

	if (value < min || value > max)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("option %s is %d, outside the valid range %d to %d", name, value, min,
						max)));
}

/* Adds the start of the group to the options, where the worker that makes the group finds it. */
static void
set_start(PpPipeline *p, char *start_id, bool has_time, TimestampTz start_time)
{
	PpId		id;
	char		buf[PP_ID_LEN];
	char	   *sql;

	if (has_time)
	{
		/* A group delivers what comes after its ID. */
		pp_id_print(pp_id_previous(pp_id_at_time(start_time)), buf);
		start_id = buf;
	}
	if (start_id == NULL || strcmp(start_id, "0") == 0)
		return;
	if (strcmp(start_id, "$") != 0 && !pp_id_parse(start_id, strlen(start_id), &id))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid start_id \"%s\"", start_id),
				 errhint("It is 0 for the earliest entry, $ for the latest, or an entry ID.")));
	sql = psprintf("{\"start_id\": \"%s\"}", start_id);
	p->options = DatumGetJsonbP(DirectFunctionCall2(
													jsonb_concat, JsonbPGetDatum(p->options),
													DirectFunctionCall1(jsonb_in, CStringGetDatum(sql))));
}

/* The target's name, qualified and quoted; it must exist. */
static char *
qualify_target(const char *target)
{
	RangeVar   *name = makeRangeVarFromNameList(textToQualifiedNameList(cstring_to_text(target)));
	Oid			oid = RangeVarGetRelid(name, AccessShareLock, false);

	return quote_qualified_identifier(get_namespace_name(get_rel_namespace(oid)),
									  get_rel_name(oid));
}

/*
 * The statement that will run, prepared and run over an empty batch as the pipeline would: so
 * that what is wrong with table, columns, key, types, privileges or syntax is said now.
 */
static char *
check_statement(const PpExtension *ext, PpPipeline *p)
{
	PpStatement *s = pp_statement_create(CurrentMemoryContext, ext, p);
	char	   *sql;

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "could not connect to SPI");
	pp_statement_prepare(s);
	(void) pp_statement_run(s, NULL, 0);
	sql = SPI_palloc(strlen(pp_statement_sql(s)) + 1);
	strcpy(sql, pp_statement_sql(s));
	SPI_finish();
	return sql;
}

static Oid
owner_arg(FunctionCallInfo fcinfo, int n)
{
	char	   *name = text_arg(fcinfo, n);
	Oid			owner = name ? get_role_oid(name, false) : GetUserId();

	if (!pp_can_set_role(GetUserId(), owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be able to SET ROLE \"%s\"", GetUserNameFromId(owner, true))));
	return owner;
}

static void
check_name(const char *name)
{
	size_t		len = strlen(name);

	if (len == 0 || len >= PP_PIPELINE_LEN || (name[0] >= '0' && name[0] <= '9') ||
		strspn(name, "abcdefghijklmnopqrstuvwxyz_0123456789") != len)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("invalid pipeline name \"%s\"", name),
				 errhint("A name has 1 to 48 lower-case letters, digits and underscores, and does "
						 "not begin with a digit.")));
}

static void
check_length(const char *value, const char *what)
{
	if (value[0] == '\0' || strlen(value) >= PP_STREAM_LEN)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must have 1 to %d bytes", what, PP_STREAM_LEN - 1)));
}

/* A dropped posts pipeline leaves a row behind; a new definition of that name takes its place. */
static void
delete_row(const PpExtension *ext, const char *name)
{
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(name)};

	pp_store_execute(ext, psprintf("DELETE FROM %s.postpipe_pipeline WHERE pipeline = $1",
								   ext->schema_name), 1, types, values, NULL);
}

/* postpipe_create_pipeline(…): see the script for the arguments. Returns the statement. */
Datum
postpipe_create_pipeline(PG_FUNCTION_ARGS)
{
	PpExtension ext;
	PpPipeline *p = palloc0(sizeof(PpPipeline));
	char	   *target = text_arg(fcinfo, 2);
	char	   *sql;

	pp_require_preload();
	pp_require_extension(&ext);
	p->name = required_text_arg(fcinfo, 0, "pipeline");
	p->stream = required_text_arg(fcinfo, 1, "stream");
	check_name(p->name);
	p->group = text_arg(fcinfo, 4);
	if (p->group == NULL)
		p->group = psprintf("postpipe_%s", p->name);
	check_length(p->stream, "stream");
	check_length(p->group, "consumer_group");
	if (pp_pipeline_get(&ext, p->name) != NULL)
	{
		if (!PG_ARGISNULL(17) && PG_GETARG_BOOL(17))
		{
			ereport(NOTICE,
					(errcode(ERRCODE_DUPLICATE_OBJECT),
					 errmsg("pipeline \"%s\" already exists, skipping", p->name)));
			PG_RETURN_NULL();
		}
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("pipeline \"%s\" already exists", p->name),
				 errhint("postpipe_drop_pipeline('%s') drops it.", p->name)));
	}
	p->statement = text_arg(fcinfo, 3);
	if ((target == NULL) == (p->statement == NULL))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a pipeline needs either a target or a statement")));
	p->owner = owner_arg(fcinfo, 14);
	if (target != NULL)
		p->target = qualify_target(target);
	p->key = text_array_arg(fcinfo, 5);
	p->on_conflict = required_text_arg(fcinfo, 6, "on_conflict");
	if (strcmp(p->on_conflict, "update") != 0 && strcmp(p->on_conflict, "nothing") != 0 &&
		strcmp(p->on_conflict, "newer") != 0 && strcmp(p->on_conflict, "error") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid on_conflict \"%s\"", p->on_conflict),
				 errhint("Valid values are update, nothing, newer and error.")));
	p->newer_by = text_arg(fcinfo, 7);
	p->columns = PG_ARGISNULL(8) ? NULL : PG_GETARG_JSONB_P_COPY(8);
	p->event_types = text_array_arg(fcinfo, 9);
	p->workers = PG_ARGISNULL(12) ? 1 : PG_GETARG_INT32(12);
	if (p->workers < 1 || p->workers > PP_MAX_WORKERS_PER_PIPELINE)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("workers is %d, outside the valid range 1 to %d", p->workers,
						PP_MAX_WORKERS_PER_PIPELINE)));
	if (!PG_ARGISNULL(13))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("a Redis server of a pipeline's own is not supported yet"),
				 errhint("Leave redis NULL: the server is postpipe.redis_url.")));
	p->enabled = PG_ARGISNULL(15) || PG_GETARG_BOOL(15);
	p->enabled_reason = p->enabled ? NULL : pstrdup("created paused");
	p->options = PG_ARGISNULL(16)
		? DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum("{}")))
		: PG_GETARG_JSONB_P_COPY(16);
	check_options(p->options);
	check_option_range(p, "batch_size", 1, 100000);
	set_start(p, text_arg(fcinfo, 10), !PG_ARGISNULL(11),
			  PG_ARGISNULL(11) ? 0 : PG_GETARG_TIMESTAMPTZ(11));
	p->search_path = pstrdup(namespace_search_path);

	sql = check_statement(&ext, p);
	delete_row(&ext, p->name);
	pp_pipeline_insert(&ext, p);
	PG_RETURN_TEXT_P(cstring_to_text(sql));
}

/* The dropped pipeline's group, on request. The pipeline must not be reading from it any more. */
static void
destroy_group(const PpPipeline *p)
{
	PpRedis    *conn = pp_function_connect();
	PpReply    *reply;

	pp_redis_send(conn, "XGROUP DESTROY %s %s", p->stream, p->group);
	reply = pp_function_reply(conn);
	if (reply->type == PP_REPLY_ERROR)
		pp_function_fail(reply);
	pp_redis_close(conn);
}

/*
 * postpipe_drop_pipeline(pipeline, if_exists, destroy_group, discard_dead)
 *		Returns false when there was none.
 */
Datum
postpipe_drop_pipeline(PG_FUNCTION_ARGS)
{
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	PpExtension ext;
	PpPipeline *p;
	int64		dead;

	pp_require_preload();
	pp_require_extension(&ext);
	if (PG_GETARG_BOOL(1) && pp_pipeline_get(&ext, name) == NULL)
	{
		ereport(NOTICE, (errmsg("pipeline \"%s\" does not exist, skipping", name)));
		PG_RETURN_BOOL(false);
	}
	p = require_pipeline(&ext, name);
	dead = pp_dead_letter_count(&ext, name);
	if (dead > 0 && !PG_GETARG_BOOL(3))
		ereport(ERROR,
				(errcode(ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST),
				 errmsg("pipeline \"%s\" has " INT64_FORMAT " dead letters", name, dead),
				 errhint("Look at postpipe_dlq, or drop them with the pipeline: "
						 "postpipe_drop_pipeline('%s', discard_dead => true).", name)));
	delete_row(&ext, name);
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

/* Writes enabled and its reason, and where the pipeline is at home if `arm`. */
static void
set_enabled(const PpExtension *ext, PpPipeline *p, bool enabled, const char *reason, bool arm)
{
	Oid			types[] = {TEXTOID, BOOLOID, TEXTOID};
	Datum		values[] = {CStringGetTextDatum(p->name), BoolGetDatum(enabled),
	reason ? CStringGetTextDatum(reason) : (Datum) 0};
	bool		nulls[] = {false, false, reason == NULL};
	const char *home = "";

	if (p->builtin)
	{
		p->enabled = enabled;
		p->enabled_reason = reason ? pstrdup(reason) : NULL;
		pp_pipeline_insert(ext, p);
		return;
	}
	if (arm)
		home = psprintf(", system_identifier = " INT64_FORMAT ", database_oid = %u",
						(int64) GetSystemIdentifier(), MyDatabaseId);
	pp_store_execute(ext,
					 psprintf("UPDATE %s.postpipe_pipeline SET enabled = $2, enabled_reason = $3, "
							  "altered_at = now()%s WHERE pipeline = $1", ext->schema_name, home),
					 3, types, values, nulls);
}

/* postpipe_pause(pipeline, reason): takes effect at commit. */
Datum
postpipe_pause(PG_FUNCTION_ARGS)
{
	PpExtension ext;
	PpPipeline *p;
	char	   *reason = text_arg(fcinfo, 1);

	pp_require_preload();
	pp_require_extension(&ext);
	p = require_pipeline(&ext, required_text_arg(fcinfo, 0, "pipeline"));
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
	bool		take_over = PG_GETARG_BOOL(1);

	pp_require_preload();
	pp_require_extension(&ext);
	p = require_pipeline(&ext, text_to_cstring(PG_GETARG_TEXT_PP(0)));
	if (!pp_pipeline_is_armed(p) && !take_over)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("pipeline \"%s\" comes from another server or database", p->name),
				 errhint("If it is to read from here, and nowhere else any more, run "
						 "postpipe_resume('%s', take_over => true).", p->name)));
	if (!p->builtin)
		set_enabled(&ext, p, true, NULL, take_over);
	PG_RETURN_VOID();
}

/* postpipe_wait_state(pipeline, state, timeout): false when time is up. */
Datum
postpipe_wait_state(PG_FUNCTION_ARGS)
{
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	char	   *state = text_to_cstring(PG_GETARG_TEXT_PP(1));
	Interval   *interval = PG_GETARG_INTERVAL_P(2);
	TimestampTz end;
	PpExtension ext;
	bool		known = false;
	bool		reached;

	pp_require_preload();
	pp_require_extension(&ext);
	(void) require_pipeline(&ext, name);
	for (int i = 0; i <= PP_STATE_WAITING; i++)
		known |= strcmp(pp_state_name(i), state) == 0;
	if (!known)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid state \"%s\"", state),
				 errhint("States are starting, running, idle, paused, retrying, failed, disarmed, "
						 "fenced, waiting and stopped.")));
	end = DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
												  TimestampTzGetDatum(GetCurrentTimestamp()),
												  PointerGetDatum(interval)));
	ConditionVariablePrepareToSleep(&pp_shared->state_cv);
	while (!(reached = strcmp(pp_state_name(pp_pipeline_status(name, NULL)), state) == 0))
	{
		long		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), end);

		if (left <= 0)
			break;
		(void) ConditionVariableTimedSleep(&pp_shared->state_cv, left,
										   pp_wait_event(PP_WAIT_STATE));
	}
	ConditionVariableCancelSleep();
	PG_RETURN_BOOL(reached);
}

/* How many entries lie after `id`, by pages of XRANGE; -1 for the ID means all of them. */
static int64
count_after(PpRedis *conn, const PpPipeline *p, PpId id)
{
	int64		total = 0;
	PpReply    *reply;
	char		from[PP_ID_LEN + 1] = "(";
	MemoryContext page = AllocSetContextCreate(CurrentMemoryContext, "postpipe page",
											   ALLOCSET_DEFAULT_SIZES);

	if (pp_id_is_zero(id))
	{
		pp_redis_send(conn, "XLEN %s", p->stream);
		reply = pp_function_reply(conn);
		if (!pp_reply_integer(reply, &total))
			pp_function_fail(reply);
		return total;
	}
	pp_id_print(id, from + 1);
	for (;;)
	{
		MemoryContextReset(page);
		pp_redis_reply_target(conn, page, (size_t) 1024 * 1024 * 1024);
		pp_redis_send(conn, "XRANGE %s %s + COUNT 1000", p->stream, from);
		reply = pp_function_reply(conn);
		if (reply->type != PP_REPLY_ARRAY)
			pp_function_fail(reply);
		if (reply->len == 0)
			break;
		total += (int64) reply->len;
		if (!pp_reply_is(&reply->items[reply->len - 1], PP_REPLY_ARRAY, 2) ||
			!pp_reply_is(&reply->items[reply->len - 1].items[0], PP_REPLY_STRING, 1))
			pp_function_fail(reply);
		strlcpy(from + 1, reply->items[reply->len - 1].items[0].str, PP_ID_LEN);
	}
	MemoryContextDelete(page);
	return total;
}

/* postpipe_rewind(pipeline, to_id, to_time): see the script. */
Datum
postpipe_rewind(PG_FUNCTION_ARGS)
{
	PpExtension ext;
	PpPipeline *p;
	PpPipe	   *pipe;
	PpRedis    *conn;
	PpReply    *reply;
	PpId		id = {0, 0};
	char		buf[PP_ID_LEN];
	int64		entries;

	pp_require_preload();
	pp_require_extension(&ext);
	p = require_pipeline(&ext, required_text_arg(fcinfo, 0, "pipeline"));
	if (!PG_ARGISNULL(1))
	{
		char	   *text = text_arg(fcinfo, 1);

		if (!pp_id_parse(text, strlen(text), &id))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("invalid to_id \"%s\"", text),
					 errhint("It is the ID of an entry: those after it are read again.")));
	}
	else if (!PG_ARGISNULL(2))
		id = pp_id_previous(pp_id_at_time(PG_GETARG_TIMESTAMPTZ(2)));
	if (pp_pipeline_status(p->name, &pipe) != PP_STATE_PAUSED || p->enabled)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("pipeline \"%s\" is not paused", p->name),
				 errhint("Run postpipe_pause('%s') and postpipe_wait_state('%s', 'paused') first.",
						 p->name, p->name)));

	/*
	 * The epoch first: if the group is set back and this transaction fails in the end, what comes
	 * again is on record and not applied twice.
	 */
	(void) pp_ledger_new_epoch(&ext, p->name, id, "rewind", true);
	LWLockAcquire(&pipe->lock, LW_EXCLUSIVE);
	memset(&pipe->mark, 0, sizeof(pipe->mark));
	LWLockRelease(&pipe->lock);
	conn = pp_function_connect();
	pp_id_print(id, buf);
	pp_redis_send(conn, "XGROUP SETID %s %s %s", p->stream, p->group, buf);
	reply = pp_function_reply(conn);
	if (reply->type == PP_REPLY_ERROR)
		pp_function_fail(reply);
	entries = count_after(conn, p, id);
	pp_redis_close(conn);
	PG_RETURN_INT64(entries);
}

/* Is the library preloaded and this database listed?  Said when the extension is created. */
static void
warn_if_idle(void)
{
	char	   *datname = get_database_name(MyDatabaseId);
	const char *libraries = GetConfigOption("shared_preload_libraries", true, false);

	if (pp_shared == NULL)
		ereport(WARNING,
				(errmsg("postpipe is not preloaded, so no pipeline will run"),
				 errhint("Run ALTER SYSTEM SET shared_preload_libraries = %s; and restart the "
						 "server.",
						 libraries && libraries[0]
						 ? psprintf("%s, 'postpipe'", libraries) : "'postpipe'")));
	else if (!pp_guc_lists_database(datname))
		ereport(WARNING,
				(errmsg("database \"%s\" is not listed in postpipe.databases, so no pipeline of it "
						"will run", datname),
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
	if (creating_extension)
		warn_if_idle();
	if (pp_shared != NULL)
		pp_wake_at_commit();
	PG_RETURN_POINTER(NULL);
}

/* postpipe_version(): versions of the library, of the SQL objects, of hiredis; is there TLS? */
Datum
postpipe_version(PG_FUNCTION_ARGS)
{
	TupleDesc	desc;
	PpExtension ext;
	Datum		values[4];
	bool		nulls[4] = {0};

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	values[0] = CStringGetTextDatum(PP_VERSION);
	nulls[1] = !pp_extension_lookup(&ext) || ext.version == NULL;
	values[1] = nulls[1] ? (Datum) 0 : CStringGetTextDatum(ext.version);
	values[2] = CStringGetTextDatum(pp_redis_library());
	values[3] = BoolGetDatum(false);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}
