/*
 * compact_internal.h
 *		Shared by compact.c and compact_merge.c.
 */
#ifndef PP_COMPACT_INTERNAL_H
#define PP_COMPACT_INTERNAL_H

#include "apply.h"

#define PP_COMPACT_PAGE_ROWS  1000
#define PP_COMPACT_FULL_BYTES 4096 /* of IDs: a row with so many is not merged any more */

extern void pp_compact_merge(PpApply *a, void *arg);

#endif /* PP_COMPACT_INTERNAL_H */
