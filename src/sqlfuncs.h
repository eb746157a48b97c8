/*
 * sqlfuncs.h
 *		Shared by the files with SQL functions.
 */
#ifndef PP_SQLFUNCS_H
#define PP_SQLFUNCS_H

#include "apply.h"
#include "compat.h"
#include "pipeline.h"
#include "redis.h"
#include "shmem.h"
#include "stream.h"
#include "stream_group.h"

#include "fmgr.h"
#include "funcapi.h"

/* sqlfuncs.c */
extern void pp_require_extension(PpExtension *ext);
extern PpPipeline *pp_require_pipeline(const PpExtension *ext, const char *name);
extern char *pp_text_arg(FunctionCallInfo fcinfo, int n);
extern char *pp_required_text_arg(FunctionCallInfo fcinfo, int n, const char *name);
extern void pp_require_read_committed(const char *function);
extern void pp_require_armed(const PpPipeline *p);
extern void pp_check_start_id(const char *start_id);
extern int pp_positive_arg(FunctionCallInfo fcinfo, int n, const char *name);
extern PpEntryError *pp_function_attempt(void (*work)(void *arg), void *arg);
extern uint64 pp_pipeline_delete(const PpExtension *ext, const char *name);

/* sqlfuncs_create.c */
extern void pp_check_may_act_as(Oid owner);

/* sqlfuncs_define.c */
extern void pp_check_options(const Jsonb *options, bool may_be_null);
extern char *pp_check_definition(const PpExtension *ext, PpPipeline *p, bool columns_are_new);

/* sqlfuncs_stats.c */
extern PpState pp_pipeline_status(const char *name, PpPipe **pipe);

/* sqlfuncs_apply.c */
extern PpPipeline *pp_function_lock_pipeline(FunctionCallInfo fcinfo, PpExtension *ext,
											 LOCKMODE mode);
extern void pp_function_lock_same(FunctionCallInfo fcinfo, PpExtension *ext, const PpPipeline *p,
								  LOCKMODE mode);
extern bool pp_function_has_deferred(void);
extern void pp_function_refuse_deferred(const char *function);
extern PpApply *pp_function_apply_begin(MemoryContext cxt, const PpExtension *ext, PpPipeline *p);
extern void pp_function_apply_end(PpApply *a);
extern void pp_function_run(PpApply *a, PpBatch *batch);
extern int pp_function_isolate(PpApply *a, PpBatch *batch);
extern void pp_function_hash_letters(const PpExtension *ext, PpPipeline *p);
extern bool pp_function_record_ingested(const PpExtension *ext, const PpPipeline *p, const PpId *id,
										int64 applied);
PP_NORETURN extern void pp_function_throw(const PpEntryError *error);
extern void pp_function_count(const char *pipeline, PpCounter counter, uint64 n);

#define PP_FUNCTION_REPLY ((size_t) 1200 * 1024 * 1024) /* one entry is read whole, however large */

/* sqlfuncs_redis.c */
extern PpRedis *pp_function_connect(const PpPipeline *p);
extern PpReply *pp_function_reply(PpRedis *conn);
PP_NORETURN extern void pp_function_fail(const PpReply *reply);
extern PpStreamFacts pp_function_facts(PpRedis *conn, const PpPipeline *p);
extern bool pp_function_failed_with(const PpReply *reply, const char *code);

/* A range of a stream that is read page by page. */
typedef struct PpRange
{
	const char *stream;
	PpId after; /* what was read ends with it */
	PpId last;
	int page; /* entries that the next page has, at most */
} PpRange;

/* sqlfuncs_range.c */
extern PpRange pp_function_range(const PpPipeline *p, const char *from, const char *to);
extern PpEntry *pp_function_read_entry(PpRedis *conn, const PpPipeline *p, PpId id);
extern bool pp_function_next_page(PpRedis *conn, PpRange *range, int max, PpBatch *batch);
extern int pp_id_compare_pointers(const void *a, const void *b);
extern PpId *pp_function_page_ids(const PpBatch *batch);
extern void pp_function_find_pending(PpRedis *conn, const PpPipeline *p, const PpId *ids, int n,
									 bool *pending);
extern PpStreamFacts pp_function_group(PpRedis *conn, const PpPipeline *p);

/* sqlfuncs_consumers.c */
extern PpConsumer *pp_function_consumers(PpRedis *conn, const PpPipeline *p, int *n);
extern bool pp_function_has_others(const PpPipeline *p, const PpConsumer *consumers, int n);
extern void pp_require_group(const PpExtension *ext, const PpPipeline *p);
extern bool pp_function_names(PpString consumer, const char *name);
extern int64 pp_interval_arg(FunctionCallInfo fcinfo, int n, const char *name, int64 unset);

/* A row that is filled from left to right, for the functions under the views. */
#define PP_MAX_COLUMNS 40

typedef struct PpRow
{
	Datum values[PP_MAX_COLUMNS];
	bool nulls[PP_MAX_COLUMNS];
	int n;
} PpRow;

/* row.c */
extern void pp_row_put(PpRow *row, Datum value, bool null);
extern void pp_row_text(PpRow *row, const char *value);
extern void pp_row_texts(PpRow *row, List *strings);
extern void pp_row_time(PpRow *row, TimestampTz at);
extern void pp_row_int8(PpRow *row, int64 value, bool null);
extern void pp_row_float8(PpRow *row, double value, bool null);
extern void pp_row_id(PpRow *row, PpId id, bool null);
extern void pp_row_emit(FunctionCallInfo fcinfo, PpRow *row);
extern void pp_row_emit_result(FunctionCallInfo fcinfo);

#endif /* PP_SQLFUNCS_H */
