/*
 * sqlfuncs_publish.c
 *		postpipe_publish(): an event into the pipeline's stream.
 *
 * It is written as one field, data, with the event as JSON, from which the pipeline makes the very
 * same event again (event.c).  It is sent at once: a rollback does not take it back.
 */
#include "sqlfuncs.h"

#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"

#include "stream.h"

PG_FUNCTION_INFO_V1(postpipe_publish);

static void
send_add(PpRedis *conn, const char *stream, int64 max_len, const char *json)
{
	PpString args[8];
	int n = 0;

	args[n++] = pp_string("XADD");
	args[n++] = pp_string(stream);
	if (max_len > 0)
	{
		args[n++] = pp_string("MAXLEN");
		args[n++] = pp_string("~");
		args[n++] = pp_string(psprintf(INT64_FORMAT, max_len));
	}
	args[n++] = pp_string("*");
	args[n++] = pp_string("data");
	args[n++] = pp_string(json);
	pp_redis_send_strings(conn, n, args);
}

/* The event as JSON in UTF-8. */
static char *
json_of(Jsonb *event)
{
	char *json;

	if (!JB_ROOT_IS_OBJECT(event))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("event is not a JSON object"),
				 errhint("An event is an object, such as {\"id\": 1}; several are "
						 "published one by one.")));
	json = JsonbToCString(NULL, &event->root, VARSIZE(event));
	return pg_server_to_any(json, (int) strlen(json), PG_UTF8);
}

/* postpipe_publish(pipeline, event, max_len): the ID that Redis gave to the entry. */
Datum
postpipe_publish(PG_FUNCTION_ARGS)
{
	int64 max_len = PG_ARGISNULL(2) ? 0 : PG_GETARG_INT64(2);
	PpId *id = palloc(sizeof(PpId));
	PpExtension ext;
	PpPipeline *p;
	PpRedis *conn;
	PpReply *reply;
	char *json;

	pp_require_preload();
	PreventCommandIfReadOnly("postpipe_publish()");
	pp_require_extension(&ext);
	p = pp_require_pipeline(&ext, pp_required_text_arg(fcinfo, 0, "pipeline"));
	if (PG_ARGISNULL(1))
		ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("event must not be NULL")));
	if (!PG_ARGISNULL(2) && max_len <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("max_len must be positive"),
				 errhint("With NULL, the default, the stream is not trimmed.")));
	json = json_of(PG_GETARG_JSONB_P(1));
	/* A copy of the database must not write into the stream of the one that it is a copy of. */
	pp_require_group(&ext, p);
	conn = pp_function_connect(p);
	send_add(conn, p->stream, max_len, json);
	reply = pp_function_reply(conn);
	if (!pp_stream_parse_id(reply, id))
		pp_function_fail(reply);
	pp_redis_close(conn);
	PG_RETURN_POINTER(id);
}
