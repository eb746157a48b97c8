/*
 * target.h
 *		The tables that a pipeline writes: may it?
 */
#ifndef PP_TARGET_H
#define PP_TARGET_H

#include "pipeline.h"

extern Oid pp_target_oid(const char *target, LOCKMODE lock, bool missing_ok);
extern Relation pp_target_open(const PpPipeline *p, LOCKMODE lock);
extern void pp_target_check(const PpPipeline *p, Relation rel);
extern void pp_target_check_own(const PpExtension *ext);
extern void pp_target_check_written(const PpPipeline *p, Oid role, Oid relid);

#endif /* PP_TARGET_H */
