/*
 * sqlfuncs_create.c
 *		postpipe_create_pipeline(): everything that can be wrong with a definition is said here.
 */
#include "sqlfuncs.h"

#include "access/table.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"
#include "utils/varlena.h"

#include "statement.h"
#include "stream.h"

PG_FUNCTION_INFO_V1(postpipe_create_pipeline);

/* Options that a pipeline may have; what is behind some of them comes with later versions. */
static const char *const known_options[] = {
	"batch_size",         "statement_timeout", "lock_timeout",    "synchronous_commit",
	"allow_unlogged",     "claim_foreign",     "claim_idle",      "reap_consumers",
	"max_retries",        "retry_delay",       "error_threshold", "dead_letter_retention",
	"dead_letter_stream", "ledger_retention",  "notify"};

static List *
text_array_arg(FunctionCallInfo fcinfo, int n)
{
	List *result = NIL;
	Datum *elems;
	bool *nulls;
	int count;

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
	JsonbValue value;

	if (!JB_ROOT_IS_OBJECT(options))
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("options must be a JSON object")));
	it = JsonbIteratorInit((JsonbContainer *) &options->root);
	while ((token = JsonbIteratorNext(&it, &value, true)) != WJB_DONE)
	{
		char *name;
		bool known = false;

		if (token == WJB_VALUE && value.type != jbvString && value.type != jbvNumeric &&
			value.type != jbvBool)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("the value of an option must be a string, a number or a boolean")));
		if (token != WJB_KEY)
			continue;
		name = pnstrdup(value.val.string.val, value.val.string.len);
		for (int i = 0; i < lengthof(known_options); i++)
			known |= strcmp(known_options[i], name) == 0;
		if (!known)
			ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
							errmsg("unrecognized option \"%s\"", name),
							errhint("Options are batch_size, statement_timeout, lock_timeout, "
									"synchronous_commit, allow_unlogged, claim_foreign, "
									"claim_idle, reap_consumers, max_retries, retry_delay, "
									"error_threshold, dead_letter_retention, "
									"dead_letter_stream, ledger_retention and notify.")));
	}
}

/* An option that is a setting of the same name: the server checks the value. */
static void
check_setting(const PpPipeline *p, const char *name)
{
	char *value = pp_pipeline_option(p, name);

	if (value != NULL)
		(void) set_config_option(name, value, PGC_SUSET, PGC_S_TEST, GUC_ACTION_SET, false, ERROR,
								 false);
}

static void
check_boolean(const PpPipeline *p, const char *name)
{
	char *value = pp_pipeline_option(p, name);
	bool on;

	if (value != NULL && !parse_bool(value, &on))
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("option %s requires a Boolean value", name)));
}

static void
check_option_range(const PpPipeline *p, const char *name, int min, int max)
{
	int value = pp_pipeline_option_int(p, name, min);

	if (value < min || value > max)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("option %s is %d, outside the valid range %d to %d", name, value,
							   min, max)));
}

static void
check_length(const char *value, const char *what)
{
	if (value[0] == '\0' || strlen(value) >= PP_STREAM_LEN)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("%s must have 1 to %d bytes", what, PP_STREAM_LEN - 1)));
}

/* Those that say what happens to an entry that cannot be applied. */
static void
check_error_options(const PpPipeline *p)
{
	const char *delay = pp_pipeline_option(p, "retry_delay");
	const char *threshold = pp_pipeline_option(p, "error_threshold");
	const char *retention = pp_pipeline_option(p, "dead_letter_retention");
	const char *stream = pp_pipeline_option(p, "dead_letter_stream");
	double share;
	int ms;

	check_option_range(p, "max_retries", 0, 1000);
	if (delay != NULL && (!parse_int(delay, &ms, GUC_UNIT_MS, NULL) || ms < 10 || ms > 3600 * 1000))
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("option retry_delay is \"%s\", no time from 10 ms to 1 h", delay),
						errhint("It is in milliseconds, or has a unit, as \"5s\".")));
	if (threshold != NULL &&
		(!parse_real(threshold, &share, 0, NULL) || !(share >= 0 && share <= 1)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("option error_threshold is \"%s\", no number from 0 to 1", threshold),
				 errhint("It is the share of entries that may fail; 1 never stops the pipeline.")));
	if (retention != NULL)
	{
		Interval *interval =
			DatumGetIntervalP(DirectFunctionCall3(interval_in, CStringGetDatum(retention),
												  ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1)));
		Interval zero = {0};

		if (DatumGetInt32(DirectFunctionCall2(interval_cmp, IntervalPGetDatum(interval),
											  IntervalPGetDatum(&zero))) <= 0)
			ereport(
				ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("option dead_letter_retention is \"%s\", no positive interval", retention),
				 errhint("It is an interval, as \"30 days\"; without it dead letters are kept "
						 "for ever.")));
	}
	if (stream != NULL)
		check_length(stream, "option dead_letter_stream");
	if (stream != NULL && strcmp(stream, p->stream) == 0)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("option dead_letter_stream is the stream that the pipeline reads"),
						errhint("Give the dead letters a stream of their own.")));
}

/* A time in milliseconds, or with a unit, as a setting has it. */
static void
check_time(const PpPipeline *p, const char *name, int min_ms)
{
	char *value = pp_pipeline_option(p, name);
	const char *hint = NULL;
	int ms;

	if (value != NULL && !parse_int(value, &ms, GUC_UNIT_MS, &hint))
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("invalid value for option %s: \"%s\"", name, value),
						hint ? errhint("%s", _(hint)) : 0));
	if (value != NULL && ms < min_ms)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("option %s is %d ms, less than the least valid value, %d ms", name,
							   ms, min_ms)));
}

static void
check_interval(const PpPipeline *p, const char *name, int64 min_ms, const char *hint)
{
	if (pp_pipeline_option_interval(p, name, min_ms) < min_ms)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						min_ms == 0 ? errmsg("option %s must not be negative", name)
									: errmsg("option %s must be at least " INT64_FORMAT " s", name,
											 min_ms / 1000),
						hint ? errhint("%s", hint) : 0));
}

static void
check_channel(const PpPipeline *p)
{
	const char *channel = pp_pipeline_option(p, "notify");

	if (channel != NULL && (channel[0] == '\0' || strlen(channel) >= NAMEDATALEN))
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("option notify must have 1 to %d bytes", NAMEDATALEN - 1),
						errhint("It is the channel to LISTEN on.")));
}

/* Adds the start of the group to the options, where the worker that makes the group finds it. */
static void
set_start(PpPipeline *p, char *start_id, bool has_time, TimestampTz start_time)
{
	PpId id;
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
	if (strcmp(start_id, "$") != 0 && !pp_id_parse(start_id, strlen(start_id), &id))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid start_id \"%s\"", start_id),
				 errhint("It is 0 for the earliest entry, $ for the latest, or an entry ID.")));
	sql = psprintf("{\"start_id\": \"%s\"}", start_id);
	p->options =
		DatumGetJsonbP(DirectFunctionCall2(jsonb_concat, JsonbPGetDatum(p->options),
										   DirectFunctionCall1(jsonb_in, CStringGetDatum(sql))));
}

/* The target's name, qualified and quoted; it must exist. */
static char *
qualify_target(const char *target, Oid *target_oid)
{
	RangeVar *name = makeRangeVarFromNameList(textToQualifiedNameList(cstring_to_text(target)));
	Oid oid = RangeVarGetRelid(name, AccessShareLock, false);

	*target_oid = oid;
	return quote_qualified_identifier(get_namespace_name(get_rel_namespace(oid)),
									  get_rel_name(oid));
}

/*
 * The statement that will run, prepared and run over an empty batch as the pipeline would: so
 * that what is wrong with table, columns, key, types, privileges or syntax is said now.  What it
 * does even then (an aggregate without GROUP BY gives a row) is rolled back.
 */
static char *
check_statement(const PpExtension *ext, PpPipeline *p)
{
	MemoryContext old = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	bool used_temporary = (MyXactFlags & XACT_FLAGS_ACCESSEDTEMPNAMESPACE) != 0;
	PpStatement *s = pp_statement_create(CurrentMemoryContext, ext, p);
	ErrorData *volatile error = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(old);
	PG_TRY();
	{
		if (SPI_connect() != SPI_OK_CONNECT)
			elog(ERROR, "could not connect to SPI");
		pp_statement_prepare(s);
		(void) pp_statement_run(s, NULL, 0, PP_FORM_WHOLE);
		if (!used_temporary && (MyXactFlags & XACT_FLAGS_ACCESSEDTEMPNAMESPACE) != 0)
			ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
							errmsg("the statement of a pipeline cannot use temporary tables"),
							errdetail("A worker does not see the tables of a session.")));
		SPI_finish();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(old);
		error = CopyErrorData();
		FlushErrorState();
	}
	PG_END_TRY();
	RollbackAndReleaseCurrentSubTransaction();
	MemoryContextSwitchTo(old);
	CurrentResourceOwner = owner;
	pp_statement_destroy(s);
	if (error != NULL)
		ReThrowError(error);
	return pstrdup(pp_statement_sql(s));
}

static Oid
owner_arg(FunctionCallInfo fcinfo, int n)
{
	char *name = pp_text_arg(fcinfo, n);
	Oid owner = name ? get_role_oid(name, false) : GetUserId();

	if (!pp_can_set_role(GetUserId(), owner))
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
						errmsg("must be able to SET ROLE \"%s\"", GetUserNameFromId(owner, true))));
	return owner;
}

/* Only so many pipelines have a slot in shared memory: the next one would never run. */
static void
check_number(const PpExtension *ext)
{
	if (pp_pipe_count(MyDatabaseId) + list_length(pp_pipeline_list(ext)) >= PP_MAX_PIPELINES)
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

/* postpipe_create_pipeline(…): see the script for the arguments. Returns the statement. */
Datum
postpipe_create_pipeline(PG_FUNCTION_ARGS)
{
	PpExtension ext;
	PpPipeline *p = palloc0(sizeof(PpPipeline));
	char *target = pp_text_arg(fcinfo, 2);
	Oid target_oid = InvalidOid;
	char *sql;

	pp_require_preload();
	pp_require_extension(&ext);
	p->name = pp_required_text_arg(fcinfo, 0, "pipeline");
	p->stream = pp_required_text_arg(fcinfo, 1, "stream");
	check_name(p->name);
	p->group = pp_text_arg(fcinfo, 4);
	if (p->group == NULL)
		p->group = psprintf("postpipe_%s", p->name);
	check_length(p->stream, "stream");
	check_length(p->group, "consumer_group");
	pp_pipeline_lock(&ext, p->name, AccessExclusiveLock);
	if (pp_pipeline_get(&ext, p->name) != NULL)
	{
		if (!PG_ARGISNULL(17) && PG_GETARG_BOOL(17))
		{
			ereport(NOTICE, (errcode(ERRCODE_DUPLICATE_OBJECT),
							 errmsg("pipeline \"%s\" already exists, skipping", p->name)));
			PG_RETURN_NULL();
		}
		ereport(ERROR, (errcode(ERRCODE_DUPLICATE_OBJECT),
						errmsg("pipeline \"%s\" already exists", p->name),
						errhint("postpipe_drop_pipeline('%s') drops it.", p->name)));
	}
	check_number(&ext);
	p->statement = pp_text_arg(fcinfo, 3);
	if ((target == NULL) == (p->statement == NULL))
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("a pipeline needs either a target or a statement")));
	p->owner = owner_arg(fcinfo, 14);
	if (target != NULL)
		p->target = qualify_target(target, &target_oid);
	p->key = text_array_arg(fcinfo, 5);
	p->on_conflict = pp_required_text_arg(fcinfo, 6, "on_conflict");
	if (strcmp(p->on_conflict, "update") != 0 && strcmp(p->on_conflict, "nothing") != 0 &&
		strcmp(p->on_conflict, "newer") != 0 && strcmp(p->on_conflict, "error") != 0)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("invalid on_conflict \"%s\"", p->on_conflict),
						errhint("Valid values are update, nothing, newer and error.")));
	p->newer_by = pp_text_arg(fcinfo, 7);
	p->columns = PG_ARGISNULL(8) ? NULL : PG_GETARG_JSONB_P_COPY(8);
	if (p->columns != NULL)
		pp_column_rules_check(p->columns, target_oid);
	p->event_types = text_array_arg(fcinfo, 9);
	p->workers = PG_ARGISNULL(12) ? 1 : PG_GETARG_INT32(12);
	if (p->workers < 1 || p->workers > PP_MAX_WORKERS_PER_PIPELINE)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("workers is %d, outside the valid range 1 to %d", p->workers,
							   PP_MAX_WORKERS_PER_PIPELINE)));
	if (!PG_ARGISNULL(13))
		ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						errmsg("a Redis server of a pipeline's own is not supported yet"),
						errhint("Leave redis NULL: the server is postpipe.redis_url.")));
	p->enabled = PG_ARGISNULL(15) || PG_GETARG_BOOL(15);
	p->enabled_reason = p->enabled ? NULL : pstrdup("created paused");
	p->options = PG_ARGISNULL(16)
					 ? DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum("{}")))
					 : PG_GETARG_JSONB_P_COPY(16);
	check_options(p->options);
	check_option_range(p, "batch_size", 1, 100000);
	check_boolean(p, "allow_unlogged");
	check_error_options(p);
	check_boolean(p, "claim_foreign");
	check_time(p, "claim_idle", 1000);
	check_interval(p, "reap_consumers", 0, NULL);
	check_interval(
		p, "ledger_retention", 60000,
		"An entry that comes later than that counts as settled, so it must be longer than "
		"entries may wait.");
	check_channel(p);
	check_setting(p, "statement_timeout");
	check_setting(p, "lock_timeout");
	check_setting(p, "synchronous_commit");
	set_start(p, pp_text_arg(fcinfo, 10), !PG_ARGISNULL(11),
			  PG_ARGISNULL(11) ? 0 : PG_GETARG_TIMESTAMPTZ(11));
	p->search_path = pstrdup(namespace_search_path);

	sql = check_statement(&ext, p);
	pp_pipeline_delete(&ext, p->name);
	pp_pipeline_insert(&ext, p);
	PG_RETURN_TEXT_P(cstring_to_text(sql));
}
