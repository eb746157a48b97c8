/*
 * compact_internal.h
 *		Shared by compact.c, compact_merge.c and compact_verify.c.
 */
#ifndef PP_COMPACT_INTERNAL_H
#define PP_COMPACT_INTERNAL_H

#include "worker_internal.h"

#define PP_COMPACT_PAGE_ROWS  1000
#define PP_COMPACT_FULL_BYTES 4096 /* of IDs: a row with so many is not merged any more */

#define PP_COMPACT_REPLY ((size_t) 64 * 1024 * 1024)

/* IDs in stream order. */
typedef struct PpIdList
{
	PpId *ids;
	int n;
} PpIdList;

/* compact_merge.c */
extern void pp_compact_merge(PpApply *a, void *arg);

/* compact_verify.c */
extern void pp_compact_leave_out_settled(PpApply *a, void *arg);
extern bool pp_compact_verify(PpWorker *w, const PpIdList *holes, PpId *upto, PpRedisError *error);

#endif /* PP_COMPACT_INTERNAL_H */
