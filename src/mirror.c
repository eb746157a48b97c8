/*
 * mirror.c
 *		Copies of dead letters in a Redis stream (option dead_letter_stream), for who watches there.
 *
 * The letters are in PostgreSQL; this is best effort, after their commit.  Under maxmemory Redis
 * refuses just when there is something to tell: that is said once, and nothing waits for it.
 *
 * An entry of that stream has the fields pipeline, id, sqlstate and message, and the event as JSON
 * in `data`; where there is no event, the fields of the entry as they were, behind the others.
 * All of it is UTF-8, as what Redis has else.
 */
#include "worker_internal.h"

#include "mb/pg_wchar.h"
#include "utils/jsonb.h"

#include "event_object.h"
#include "stats.h"

#define OWN_WORDS 13
#define MAX_BYTES ((size_t) 100 * 1024 * 1024) /* of a larger entry only the reason is copied */

/* The worker's client encoding is UTF-8, and its conversion at hand without a transaction. */
static PpString
in_utf8(char *s)
{
	return pp_string(
		GetDatabaseEncoding() == PG_SQL_ASCII ? s : pg_server_to_client(s, (int) strlen(s)));
}

/* Queues the XADD of one letter. */
static void
send_letter(PpWorker *w, const char *stream, const PpEntry *entry)
{
	PpString *words = palloc((OWN_WORDS + Max(entry->nfields, 0)) * sizeof(PpString));
	char id[PP_ID_LEN];
	int n = 0;

	(void) pp_id_print(entry->id, id);
	words[n++] = pp_string("XADD");
	words[n++] = pp_string(stream);
	words[n++] = pp_string("*");
	words[n++] = pp_string("pipeline");
	words[n++] = pp_string(w->def->name);
	words[n++] = pp_string("id");
	words[n++] = pp_string(id);
	words[n++] = pp_string("sqlstate");
	words[n++] = pp_string(unpack_sql_state(entry->error->sqlstate));
	words[n++] = pp_string("message");
	words[n++] = in_utf8(entry->error->message);
	if (entry->bytes <= MAX_BYTES && entry->event != NULL)
	{
		Jsonb *event = pp_object_jsonb(entry->event);

		words[n++] = pp_string("data");
		words[n++] = in_utf8(JsonbToCString(NULL, &event->root, VARSIZE(event)));
	}
	else if (entry->bytes <= MAX_BYTES)
		/* A field without a value would make Redis refuse all of it. */
		for (int i = 0; i < entry->nfields - entry->nfields % 2; i++)
			words[n++] = entry->fields[i];
	pp_redis_send_strings(w->redis, n, words);
	pfree(words);
}

static void
complain(PpWorker *w, const char *stream, const PpRedisError *error)
{
	pp_report_error(w->pipe, pp_redis_error_sqlstate(error), error->message);
	if (!w->mirror_complained)
		ereport(LOG, (errmsg("postpipe pipeline \"%s\", worker %d: could not copy a dead letter to "
							 "stream \"%s\": %s",
							 w->def->name, pp_my_proc->worker, stream, error->message)));
	w->mirror_complained = true;
}

/*
 * pp_mirror_letters
 *		Copies the letters of a batch that is committed.  No reply may be outstanding.  Returns false
 *		with *error filled only when the connection has failed.
 */
bool
pp_mirror_letters(PpWorker *w, const PpBatch *batch, PpRedisError *error)
{
	char *stream = NULL;

	for (int i = 0; i < batch->n; i++)
	{
		MemoryContext old;
		PpReply *reply;

		if (batch->entries[i].verdict != PP_VERDICT_DEAD)
			continue;
		old = MemoryContextSwitchTo(batch->cxt);
		if (stream == NULL)
			stream = pp_pipeline_option(w->def, "dead_letter_stream");
		if (stream != NULL)
			send_letter(w, stream, &batch->entries[i]);
		MemoryContextSwitchTo(old);
		if (stream == NULL)
			return true;
		if (pp_consume_receive(w, PP_REPLY_STRING, &reply, error))
			w->mirror_complained = false;
		else if (reply == NULL)
			return false;
		else
			complain(w, stream, error);
		memset(error, 0, sizeof(*error));
	}
	return true;
}
