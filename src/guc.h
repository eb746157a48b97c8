/*
 * guc.h
 *		The settings, postpipe.*, and those of the server for the time of a call.
 */
#ifndef PP_GUC_H
#define PP_GUC_H

#include "redis_url.h"
#include "nodes/pg_list.h"

/* A search_path in which nobody can have put an object that hides one of the server's. */
#define PP_SAFE_PATH "pg_catalog, pg_temp"

extern char *pp_guc_databases;
extern bool pp_guc_enabled;
extern int pp_guc_batch_size;  /* entries */
extern int pp_guc_batch_bytes; /* kB */
extern int pp_guc_max_retries;
extern int pp_guc_retry_delay;           /* ms */
extern int pp_guc_dead_letter_retention; /* in minutes; 0: for ever */
extern int pp_guc_claim_idle;            /* ms */
extern int pp_guc_max_workers;

extern void pp_guc_define(void);
extern void pp_guc_redis_url(PpRedisUrl *url);
extern bool pp_guc_lists_database(const char *datname);
extern List *pp_guc_database_list(void);
extern void pp_guc_set_for_call(const char *name, const char *value);
extern void pp_guc_set_styles_for_call(void);
extern void pp_guc_set_styles(void);

#endif /* PP_GUC_H */
