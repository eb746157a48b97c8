/*
 * guc.h
 *		The settings, postpipe.*.
 */
#ifndef PP_GUC_H
#define PP_GUC_H

#include "redis_url.h"
#include "nodes/pg_list.h"

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

#endif /* PP_GUC_H */
