/*
 * pipeline.h
 *		A pipeline's definition.
 */
#ifndef PP_PIPELINE_H
#define PP_PIPELINE_H

#include "postpipe.h"

#include "datatype/timestamp.h"
#include "nodes/pg_list.h"
#include "storage/lockdefs.h"
#include "utils/jsonb.h"
#include "utils/relcache.h"

#include "redis_url.h"

/* The extension as it is installed in this database. */
typedef struct PpExtension
{
	Oid oid;
	Oid schema;
	Oid owner;
	char *schema_name; /* quoted as an identifier */
	char *version;
	Oid definitions; /* postpipe_pipeline */
} PpExtension;

/* A row of postpipe_pipeline, or the built-in pipeline that has none. */
typedef struct PpPipeline
{
	char *name;
	Oid owner;
	char *stream;
	char *group;
	char *redis; /* a server of its own (redis_server.c); NULL: postpipe.redis_url */
	PpRedisUrl redis_url;
	char *redis_error; /* that one cannot be used, for this reason; else NULL */
	char *target;      /* NULL: the user gave the statement */
	List *key;         /* column names; NIL: the target's primary key, if any */
	char *on_conflict; /* update, nothing, newer, error */
	char *newer_by;
	Jsonb *columns;
	List *event_types; /* NIL: all */
	char *statement;   /* NULL: generated from the target */
	char *search_path;
	int workers;
	bool enabled;
	char *enabled_reason;
	Jsonb *options;
	int64 system_identifier; /* where it is armed; 0: nowhere */
	Oid database_oid;
	Oid extension_oid;
	bool at_home;           /* that is here */
	TimestampTz created_at; /* 0: not stored */
	TimestampTz altered_at; /* 0: never */
	bool dropped;           /* the built-in pipeline was dropped; nothing else is kept of it */
	bool builtin;           /* it has no row */
	uint64 version;         /* changes with each change of the row, and of its Redis server */
	bool changed_here;      /* this transaction has written the row */
} PpPipeline;

/* extension.c */
extern bool pp_extension_lookup(PpExtension *ext);
extern bool pp_extension_lock(PpExtension *ext);
extern bool pp_extension_is_there(const PpExtension *ext);
extern Oid pp_relation_oid(const PpExtension *ext, const char *name);
extern Oid pp_id_type_oid(const PpExtension *ext);

/* pipeline_option.c */
extern char *pp_pipeline_option(const PpPipeline *p, const char *name);
extern bool pp_option_parse_int(const char *value, int *number);
extern bool pp_option_parse_interval(char *value, int64 *ms);
extern bool pp_pipeline_option_is_on(const PpPipeline *p, const char *name);
extern int pp_pipeline_option_int(const PpPipeline *p, const char *name, int unset);
extern double pp_pipeline_option_float(const PpPipeline *p, const char *name, double unset);
extern int pp_pipeline_option_ms(const PpPipeline *p, const char *name, int unset);
extern int pp_pipeline_option_kb(const PpPipeline *p, const char *name, int unset);
extern int64 pp_pipeline_option_interval(const PpPipeline *p, const char *name, int64 unset);
extern int64 pp_interval_ms(const Interval *interval);

extern List *pp_pipeline_list(const PpExtension *ext);
extern List *pp_pipeline_list_now(const PpExtension *ext);
extern PpPipeline *pp_pipeline_find(List *pipelines, const char *name);
extern PpPipeline *pp_pipeline_get(const PpExtension *ext, const char *name);
extern bool pp_pipeline_is_armed(const PpPipeline *p);
extern void pp_pipeline_check_written(uint64 rows);
extern void pp_pipeline_update(const PpExtension *ext, const PpPipeline *p);
extern const char *pp_pipeline_redis(const PpPipeline *p, PpRedisUrl *url);
extern void pp_pipeline_find_redis(PpPipeline *p);
extern void pp_pipeline_insert(const PpExtension *ext, const PpPipeline *p);

/* pipeline_lock.c */
extern uint32 pp_pipeline_lock_key(const char *name);
extern void pp_pipeline_lock(const PpExtension *ext, const char *name, LOCKMODE mode);
extern void pp_pipeline_lock_row(const PpExtension *ext, const char *name);
extern void pp_pipeline_unlock(const PpExtension *ext, const char *name, LOCKMODE mode);
extern bool pp_pipeline_is_current(const PpExtension *ext, const PpPipeline *p);

/* posts.c */
extern bool pp_posts_owns(const PpPipeline *p);
extern PpPipeline *pp_posts_definition(const PpExtension *ext);
extern void pp_posts_create_table(const PpExtension *ext, const PpPipeline *p);
extern void pp_posts_adapt(PpPipeline *p, Relation target);

/* column_rules.c */
extern void pp_column_rules_check(const Jsonb *columns, Oid target);

#endif /* PP_PIPELINE_H */
