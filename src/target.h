/*
 * target.h
 *		The tables that a pipeline writes: may it?
 */
#ifndef PP_TARGET_H
#define PP_TARGET_H

#include "pipeline.h"

extern void pp_target_check(const PpPipeline *p, Relation rel);
extern void pp_target_check_own(const PpExtension *ext);
extern void pp_target_check_written(const PpPipeline *p, Oid role, Oid relid);

#endif /* PP_TARGET_H */
