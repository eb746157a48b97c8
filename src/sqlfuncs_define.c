/*
 * sqlfuncs_define.c
 *		Everything that can be wrong with a pipeline's definition is said here, when it is created or
 *		altered.
 */
#include "sqlfuncs.h"

#include "access/xact.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"

#include "statement.h"
#include "target.h"

#define MAX_INTERVAL_YEARS 1000
#define MAX_INTERVAL_MS    (MAX_INTERVAL_YEARS * INT64CONST(365) * SECS_PER_DAY * 1000)

/* Options that a pipeline may have. */
static const char *const known_options[] = {"batch_size",
											"batch_bytes",
											"statement_timeout",
											"lock_timeout",
											"synchronous_commit",
											"allow_unlogged",
											"claim_foreign",
											"claim_idle",
											"reap_consumers",
											"max_retries",
											"retry_delay",
											"error_threshold",
											"dead_letter_retention",
											"dead_letter_stream",
											"ledger_retention",
											"notify"};

static char *
list_options(void)
{
	StringInfoData list;

	initStringInfo(&list);
	for (int i = 0; i < (int) lengthof(known_options); i++)
		appendStringInfo(&list, "%s%s",
						 i == 0                                   ? ""
						 : i == (int) lengthof(known_options) - 1 ? " and "
																  : ", ",
						 known_options[i]);
	return list.data;
}

/* Those that are known; what they may be is checked with the definition. */
void
pp_check_options(const Jsonb *options, bool may_be_null)
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
			value.type != jbvBool && !(may_be_null && value.type == jbvNull))
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
							errhint("Options are %s.", list_options())));
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
	const char *text = pp_pipeline_option(p, name);
	int value = min;

	if (text != NULL && !pp_option_parse_int(text, &value))
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("option %s is \"%s\", no whole number from %d to %d", name, text,
							   min, max)));
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

/* An interval in words.  The bound keeps times within what a timestamp has. */
static void
check_interval(const PpPipeline *p, const char *name, int min_s, const char *hint)
{
	char *value = pp_pipeline_option(p, name);
	int64 ms;

	if (value != NULL && (!pp_option_parse_interval(value, &ms) || ms < min_s * INT64CONST(1000) ||
						  ms > MAX_INTERVAL_MS))
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("option %s is \"%s\", no interval from %d s to %d years", name,
							   value, min_s, MAX_INTERVAL_YEARS),
						errhint("%s", hint)));
}

/* Those that say what happens to an entry that cannot be applied. */
static void
check_error_options(const PpPipeline *p)
{
	const char *delay = pp_pipeline_option(p, "retry_delay");
	const char *threshold = pp_pipeline_option(p, "error_threshold");
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
	check_interval(p, "dead_letter_retention", 1,
				   "It is an interval, as \"30 days\"; without it dead letters are kept for ever.");
	if (stream != NULL)
		check_length(stream, "option dead_letter_stream");
	if (stream != NULL && strcmp(stream, p->stream) == 0)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("option dead_letter_stream is the stream that the pipeline reads"),
						errhint("Give the dead letters a stream of their own.")));
}

/* Is the option set?  Then it is a number of these units (GUC_UNIT_…), or has its own, as a setting. */
static bool
get_quantity(const PpPipeline *p, const char *name, int unit, int *value)
{
	char *text = pp_pipeline_option(p, name);
	const char *hint = NULL;

	if (text != NULL && !parse_int(text, value, unit, &hint))
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("invalid value for option %s: \"%s\"", name, text),
						hint ? errhint("%s", _(hint)) : 0));
	return text != NULL;
}

static void
check_time(const PpPipeline *p, const char *name, int min_ms)
{
	int ms;

	if (get_quantity(p, name, GUC_UNIT_MS, &ms) && ms < min_ms)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("option %s is %d ms, less than the least valid value, %d ms", name,
							   ms, min_ms)));
}

static void
check_memory(const PpPipeline *p, const char *name, int min_kb, int max_kb)
{
	int kb;

	if (get_quantity(p, name, GUC_UNIT_KB, &kb) && (kb < min_kb || kb > max_kb))
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("option %s is %d kB, outside the valid range %d kB to %d kB", name,
							   kb, min_kb, max_kb)));
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
	int used_temporary = MyXactFlags & XACT_FLAGS_ACCESSEDTEMPNAMESPACE;
	PpStatement *s = pp_statement_create(CurrentMemoryContext, ext, p);
	ErrorData *volatile error = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(old);
	/* The session may have used some before. */
	MyXactFlags &= ~XACT_FLAGS_ACCESSEDTEMPNAMESPACE;
	PG_TRY();
	{
		if (SPI_connect() != SPI_OK_CONNECT)
			elog(ERROR, "could not connect to SPI");
		pp_statement_prepare(s);
		(void) pp_statement_run(s, NULL, 0, PP_FORM_WHOLE);
		if ((MyXactFlags & XACT_FLAGS_ACCESSEDTEMPNAMESPACE) != 0)
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
	MyXactFlags |= used_temporary;
	RollbackAndReleaseCurrentSubTransaction();
	MemoryContextSwitchTo(old);
	CurrentResourceOwner = owner;
	pp_statement_destroy(s);
	if (error != NULL)
		ReThrowError(error);
	return pstrdup(pp_statement_sql(s));
}

static void
check_on_conflict(const PpPipeline *p)
{
	if (strcmp(p->on_conflict, "update") != 0 && strcmp(p->on_conflict, "nothing") != 0 &&
		strcmp(p->on_conflict, "newer") != 0 && strcmp(p->on_conflict, "error") != 0)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("invalid on_conflict \"%s\"", p->on_conflict),
						errhint("Valid values are update, nothing, newer and error.")));
	if (p->newer_by != NULL && strcmp(p->on_conflict, "newer") != 0)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("newer_by has no effect with on_conflict \"%s\"", p->on_conflict),
						errhint("Set on_conflict => 'newer', or reset => '{newer_by}'.")));
}

static void
check_values_of_options(const PpPipeline *p)
{
	check_option_range(p, "batch_size", 1, 100000);
	check_memory(p, "batch_bytes", 64, 1024 * 1024);
	check_boolean(p, "allow_unlogged");
	check_error_options(p);
	check_boolean(p, "claim_foreign");
	check_time(p, "claim_idle", 1000);
	check_interval(p, "reap_consumers", 0, "It is an interval, as \"1 day\".");
	check_interval(
		p, "ledger_retention", 60,
		"An entry that comes later than that counts as settled, so it must be longer than "
		"entries may wait.");
	check_channel(p);
	check_setting(p, "statement_timeout");
	check_setting(p, "lock_timeout");
	check_setting(p, "synchronous_commit");
}

/*
 * pp_check_definition
 *		Throws when something is wrong with it, and returns the statement that will run.  Rules for
 *		columns that have been there before may name some that an older table does not have.
 */
char *
pp_check_definition(const PpExtension *ext, PpPipeline *p, bool columns_are_new)
{
	check_length(p->stream, "stream");
	check_length(p->group, "consumer_group");
	if ((p->target == NULL) == (p->statement == NULL))
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("a pipeline needs either a target or a statement")));
	check_on_conflict(p);
	if (p->columns != NULL && columns_are_new)
		pp_column_rules_check(
			p->columns, p->target ? pp_target_oid(p->target, AccessShareLock, false) : InvalidOid);
	if (p->workers < 1 || p->workers > PP_MAX_WORKERS_PER_PIPELINE)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("workers is %d, outside the valid range 1 to %d", p->workers,
							   PP_MAX_WORKERS_PER_PIPELINE)));
	check_values_of_options(p);
	return check_statement(ext, p);
}
