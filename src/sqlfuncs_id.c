/*
 * sqlfuncs_id.c
 *		The type postpipe_id: input, output, comparison.
 */
#include "stream_id.h"

#include "common/hashfn.h"
#include "fmgr.h"
#include "utils/timestamp.h"

#define PG_GETARG_PPID(n) ((PpId *) PG_GETARG_POINTER(n))

PG_FUNCTION_INFO_V1(postpipe_id_in);
PG_FUNCTION_INFO_V1(postpipe_id_out);
PG_FUNCTION_INFO_V1(postpipe_id_cmp);
PG_FUNCTION_INFO_V1(postpipe_id_lt);
PG_FUNCTION_INFO_V1(postpipe_id_le);
PG_FUNCTION_INFO_V1(postpipe_id_eq);
PG_FUNCTION_INFO_V1(postpipe_id_ne);
PG_FUNCTION_INFO_V1(postpipe_id_ge);
PG_FUNCTION_INFO_V1(postpipe_id_gt);
PG_FUNCTION_INFO_V1(postpipe_id_hash);
PG_FUNCTION_INFO_V1(postpipe_id_larger);
PG_FUNCTION_INFO_V1(postpipe_id_smaller);
PG_FUNCTION_INFO_V1(postpipe_id_time);

/* 'ms-seq' or 'ms'; error 22P02 for anything else. */
Datum
postpipe_id_in(PG_FUNCTION_ARGS)
{
	char *str = PG_GETARG_CSTRING(0);
	PpId *id = palloc(sizeof(PpId));

	if (!pp_id_parse(str, strlen(str), id))
		ereport(ERROR, (errcode(ERRCODE_INVALID_TEXT_REPRESENTATION),
						errmsg("invalid input syntax for type %s: \"%s\"", "postpipe_id", str),
						errhint("An entry ID is written as milliseconds-sequence, for example "
								"1700000000000-0.")));
	PG_RETURN_POINTER(id);
}

/* 'ms-seq' */
Datum
postpipe_id_out(PG_FUNCTION_ARGS)
{
	char *buf = palloc(PP_ID_LEN);

	pp_id_print(*PG_GETARG_PPID(0), buf);
	PG_RETURN_CSTRING(buf);
}

Datum
postpipe_id_cmp(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT32(pp_id_compare(*PG_GETARG_PPID(0), *PG_GETARG_PPID(1)));
}

Datum
postpipe_id_lt(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(pp_id_compare(*PG_GETARG_PPID(0), *PG_GETARG_PPID(1)) < 0);
}

Datum
postpipe_id_le(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(pp_id_compare(*PG_GETARG_PPID(0), *PG_GETARG_PPID(1)) <= 0);
}

Datum
postpipe_id_eq(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(pp_id_compare(*PG_GETARG_PPID(0), *PG_GETARG_PPID(1)) == 0);
}

Datum
postpipe_id_ne(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(pp_id_compare(*PG_GETARG_PPID(0), *PG_GETARG_PPID(1)) != 0);
}

Datum
postpipe_id_ge(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(pp_id_compare(*PG_GETARG_PPID(0), *PG_GETARG_PPID(1)) >= 0);
}

Datum
postpipe_id_gt(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(pp_id_compare(*PG_GETARG_PPID(0), *PG_GETARG_PPID(1)) > 0);
}

Datum
postpipe_id_hash(PG_FUNCTION_ARGS)
{
	PpId *id = PG_GETARG_PPID(0);

	PG_RETURN_DATUM(hash_any((unsigned char *) id, sizeof(*id)));
}

/* Of two IDs the later one; for max(). */
Datum
postpipe_id_larger(PG_FUNCTION_ARGS)
{
	PpId *a = PG_GETARG_PPID(0);
	PpId *b = PG_GETARG_PPID(1);

	PG_RETURN_POINTER(pp_id_compare(*a, *b) >= 0 ? a : b);
}

/* Of two IDs the earlier one; for min(). */
Datum
postpipe_id_smaller(PG_FUNCTION_ARGS)
{
	PpId *a = PG_GETARG_PPID(0);
	PpId *b = PG_GETARG_PPID(1);

	PG_RETURN_POINTER(pp_id_compare(*a, *b) <= 0 ? a : b);
}

/* The time in an ID, as Redis's clock had it. */
Datum
postpipe_id_time(PG_FUNCTION_ARGS)
{
	PG_RETURN_TIMESTAMPTZ(pp_id_time(*PG_GETARG_PPID(0)));
}
