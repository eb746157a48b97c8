/*
 * sqlfuncs_check.c
 *		postpipe_check(): the doctor. What can be wrong is looked at, one thing after the other.
 *
 * Each check is a function of check_*.c that reports a line or more.  It runs in a subtransaction of its
 * own: what it throws is its line, and the next one is made.  Nothing is written, so that it works on a
 * standby.
 */
#include "check.h"

#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "store.h"

PG_FUNCTION_INFO_V1(postpipe_check);

static void
report(PpCheck *c, const char *status, const char *detail, const char *hint)
{
	PpRow row = {0};

	pp_row_text(&row, c->p ? c->p->name : NULL);
	pp_row_text(&row, c->rule->name);
	pp_row_text(&row, status);
	pp_row_text(&row, detail);
	pp_row_text(&row, hint);
	pp_row_emit(c->fcinfo, &row);
}

/* All is well with what was looked at. */
void
pp_check_ok(PpCheck *c, const char *detail)
{
	report(c, "ok", detail, NULL);
}

/* It works, and may not for long, or could not be looked at.  hint: what to run, or NULL. */
void
pp_check_warning(PpCheck *c, const char *detail, const char *hint)
{
	report(c, "warning", detail, hint);
}

/* It does not work.  hint: what to run, or NULL. */
void
pp_check_error(PpCheck *c, const char *detail, const char *hint)
{
	report(c, "error", detail, hint);
}

/* Can Redis be asked?  If not, that is the line of this check. */
bool
pp_check_has_redis(PpCheck *c)
{
	if (c->conn == NULL)
		pp_check_warning(c, psprintf("not checked: %s", c->no_redis), NULL);
	return c->conn != NULL;
}

/*
 * The first row of a query on the extension's own objects, whose schema is %1$s and $1 the pipeline; values
 * as text, NULL ones as NULL.  NULL: there is no row.
 */
char **
pp_check_ask(PpCheck *c, const char *sql)
{
	PpStoreScope store;
	MemoryContext cxt = CurrentMemoryContext;
	Oid types[] = {TEXTOID};
	Datum values[] = {CStringGetTextDatum(c->p->name)};
	char **row = NULL;

	pp_store_begin(&store, c->ext);
	SPI_execute_with_args(psprintf(sql, c->ext->schema_name), 1, types, values, NULL, true, 1);
	if (SPI_processed > 0)
	{
		TupleDesc desc = SPI_tuptable->tupdesc;

		row = MemoryContextAllocZero(cxt, desc->natts * sizeof(char *));
		for (int i = 0; i < desc->natts; i++)
		{
			char *value = SPI_getvalue(SPI_tuptable->vals[0], desc, i + 1);

			row[i] = value ? MemoryContextStrdup(cxt, value) : NULL;
		}
	}
	pp_store_end(&store);
	return row;
}

static void
look(void *arg)
{
	PpCheck *c = arg;

	c->rule->look(c);
}

static void
list_pipelines(void *arg)
{
	PpCheck *c = arg;

	c->pipelines = pp_pipeline_list(c->ext);
}

static void
connect(void *arg)
{
	PpCheck *c = arg;

	if (c->conn != NULL)
		pp_redis_close(c->conn);
	c->conn = NULL;
	c->own_server = c->p != NULL && c->p->redis != NULL;
	c->conn = pp_function_connect(c->p);
}

static void
run_rules(PpCheck *c, const PpCheckRule *rules)
{
	for (; rules->name != NULL; rules++)
	{
		PpEntryError *error;

		CHECK_FOR_INTERRUPTS();
		c->rule = rules;
		error = pp_function_attempt(look, c);
		if (error != NULL)
			pp_check_error(c, error->message, error->hint);
		/* What was sent before may still be answered: that would be taken for another answer. */
		if (error != NULL && c->conn != NULL)
		{
			error = pp_function_attempt(connect, c);
			c->no_redis = error ? error->message : NULL;
		}
	}
}

/* The connection, whose failure is a line as well. */
static void
look_at_connection(PpCheck *c)
{
	static const PpCheckRule rule = {"redis", NULL};
	PpEntryError *error = pp_function_attempt(connect, c);

	c->rule = &rule;
	if (error == NULL)
		return;
	c->no_redis = error->message;
	pp_check_error(c, error->message, error->hint);
}

/* postpipe_check(for_pipeline): a line for each thing that was looked at. */
Datum
postpipe_check(PG_FUNCTION_ARGS)
{
	char *only = pp_text_arg(fcinfo, 0);
	static const PpCheckRule library = {"library", NULL};
	static const PpCheckRule definitions = {"definitions", NULL};
	PpEntryError *error;
	PpCheck c = {.fcinfo = fcinfo, .rule = &library};
	PpExtension ext;
	ListCell *lc;
	bool found = only == NULL;

	InitMaterializedSRF(fcinfo, 0);
	if (pp_shared == NULL)
	{
		pp_check_error(
			&c, "the library is not preloaded, so no worker runs",
			"Add postpipe to shared_preload_libraries in postgresql.conf and restart the "
			"server.");
		return (Datum) 0;
	}
	pp_require_extension(&ext);
	c.ext = &ext;
	error = pp_function_attempt(list_pipelines, &c);
	if (error != NULL)
	{
		/* They are too old for the library, or locked: all else is looked at, and says so, perhaps. */
		c.rule = &definitions;
		pp_check_error(&c, error->message, error->hint);
		found = true;
	}
	look_at_connection(&c);
	run_rules(&c, pp_check_server_rules);
	run_rules(&c, pp_check_redis_rules);
	foreach (lc, c.pipelines)
	{
		c.p = lfirst(lc);
		if (c.p->dropped || (only != NULL && strcmp(c.p->name, only) != 0))
			continue;
		found = true;
		if (c.p->redis != NULL || c.own_server)
			look_at_connection(&c);
		if (c.own_server)
			run_rules(&c, pp_check_redis_rules);
		run_rules(&c, pp_check_pipeline_rules);
		run_rules(&c, pp_check_stream_rules);
	}
	if (!found)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT), errmsg("pipeline \"%s\" does not exist", only),
				 errhint("SELECT pipeline FROM postpipe_pipelines shows those that do.")));
	if (c.conn != NULL)
		pp_redis_close(c.conn);
	return (Datum) 0;
}
