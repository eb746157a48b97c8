/*
 * sqlfuncs_skip.c
 *		postpipe_skip(): an entry goes to the dead letters without being run.
 *
 * One that is tried again becomes dead.  One that is pending, with whomever, or unread, gets its letter
 * now, from what is in the stream; the worker that comes to it passes it by and acknowledges it (skip.c).
 * The pipeline is locked against its workers, so that none of them has it half applied; Redis is asked
 * before, so that they do not stand still while it answers.
 */
#include "sqlfuncs.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"

#include "dead_letter.h"
#include "event.h"

PG_FUNCTION_INFO_V1(postpipe_skip);

/* Does the pipeline have a letter with this ID of this kind? */
static bool
has_letter(const PpExtension *ext, const PpPipeline *p, const PpId *id, const char *kind)
{
	Oid types[] = {TEXTOID, pp_id_type_oid(ext)};
	Datum values[] = {CStringGetTextDatum(p->name), PointerGetDatum(id)};

	return pp_store_execute(ext,
							psprintf("SELECT FROM %s.postpipe_dead_letter WHERE pipeline = $1 "
									 "AND id OPERATOR(%s.=) $2 AND %s",
									 ext->schema_name, ext->schema_name, kind),
							2, types, values, NULL) > 0;
}

/* The entry as it is in the stream, or NULL. */
static PpEntry *
read_entry(const PpExtension *ext, const PpPipeline *p, PpId id)
{
	PpEntry *entry;
	PpRedis *conn;

	pp_require_group(ext, p);
	conn = pp_function_connect(p);
	entry = pp_function_read_entry(conn, p, id);
	pp_redis_close(conn);
	return entry;
}

static PpEntryError *
make_error(const PpPipeline *p, PpId id, const char *reason)
{
	PpEntryError *error = palloc0(sizeof(PpEntryError));
	char text[PP_ID_LEN];

	pp_id_print(id, text);
	error->final = true;
	error->sqlstate = ERRCODE_OPERATOR_INTERVENTION;
	error->message = psprintf("skipped by \"%s\"%s%s", GetUserNameFromId(GetUserId(), false),
							  reason ? ": " : "", reason ? reason : "");
	error->hint =
		psprintf("To apply it after all, run postpipe_replay('%s', ids => '{%s}').", p->name, text);
	return error;
}

/* A letter that is tried again is dead from now on.  False: there is none. */
static bool
end_retries(const PpExtension *ext, const PpPipeline *p, const PpId *id, const PpEntryError *error)
{
	Oid types[] = {TEXTOID, pp_id_type_oid(ext), TEXTOID, TEXTOID, TEXTOID};
	Datum values[] = {CStringGetTextDatum(p->name), PointerGetDatum(id),
					  CStringGetTextDatum(unpack_sql_state(error->sqlstate)),
					  CStringGetTextDatum(error->message), CStringGetTextDatum(error->hint)};

	return pp_store_execute(
			   ext,
			   psprintf("UPDATE %1$s.postpipe_dead_letter d SET state = 'dead', "
						"next_retry_at = NULL, sqlstate = $3, message = $4, hint = $5, "
						"detail = format('Its last error was %%s: %%s', d.sqlstate, d.message) "
						"WHERE pipeline = $1 AND id OPERATOR(%1$s.=) $2 AND epoch = (SELECT "
						"max(epoch) FROM %1$s.postpipe_dead_letter m WHERE m.pipeline = $1 "
						"AND m.id OPERATOR(%1$s.=) $2 AND m.state = 'retrying')",
						ext->schema_name),
			   lengthof(types), types, values, NULL) > 0;
}

/* Writes the letter of an entry that is not settled, and tells the workers of it.  False: it is. */
static bool
write_letter(const PpExtension *ext, const PpPipeline *p, PpEntry *entry, PpEntryError *error)
{
	PpStoreScope store;
	PpLedger ledger = {.cxt = CurrentMemoryContext, .ext = ext, .pipeline = p->name};
	PpPipe *pipe = pp_pipe_find(MyDatabaseId, p->name);
	TimestampTz never = 0;

	entry->hash = pp_event_hash(entry);
	if (pp_ledger_has(ext, p->name, entry, &ledger.epoch) ||
		has_letter(ext, p, &entry->id, "undelivered"))
		return false;
	pp_event_normalize(entry, NIL);
	entry->verdict = PP_VERDICT_DEAD;
	entry->error = error;
	entry->skipped = ledger.epoch;
	pp_store_begin(&store, ext);
	pp_dead_letter_store(&ledger, p, entry, NULL, &never);
	pp_ledger_free_plans(&ledger);
	pp_store_end(&store);
	/* Without a slot it has no worker; the next one reads all letters first. */
	if (pipe != NULL)
		pipe->skips++;
	return true;
}

/* postpipe_skip(pipeline, id, reason): false when the entry is settled, or not in the stream. */
Datum
postpipe_skip(PG_FUNCTION_ARGS)
{
	char *name = pp_required_text_arg(fcinfo, 0, "pipeline");
	char *reason = pp_text_arg(fcinfo, 2);
	PpEntry *entry = NULL;
	PpEntryError *error;
	PpExtension ext;
	PpPipeline *p;
	PpId id;

	pp_require_preload();
	PreventCommandIfReadOnly("postpipe_skip()");
	if (PG_ARGISNULL(1))
		ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("id must not be NULL")));
	pp_require_read_committed("postpipe_skip()");
	id = *(PpId *) PG_GETARG_POINTER(1);
	pp_require_extension(&ext);
	p = pp_require_pipeline(&ext, name);
	if (!pp_id_is_zero(id) && !has_letter(&ext, p, &id, "state = 'retrying'"))
		entry = read_entry(&ext, p, id);
	pp_function_lock_same(fcinfo, &ext, p, AccessExclusiveLock);
	error = make_error(p, id, reason);
	if (end_retries(&ext, p, &id, error))
		pp_function_count(p->name, PP_COUNT_DEAD, 1);
	else if (entry == NULL || !write_letter(&ext, p, entry, error))
		PG_RETURN_BOOL(false);
	ereport(LOG,
			(errmsg("postpipe pipeline \"%s\": entry " UINT64_FORMAT "-" UINT64_FORMAT " was %s",
					p->name, id.ms, id.seq, error->message)));
	PG_RETURN_BOOL(true);
}
