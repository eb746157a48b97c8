/*
 * compat.h
 *		What differs between PostgreSQL 15 to 18, in one place.  (What differs between hiredis
 *		0.14 and 1.x is in redis.c, the only file that sees hiredis.)
 */
#ifndef PP_COMPAT_H
#define PP_COMPAT_H

#include "postgres.h"

#include "catalog/pg_class.h"
#include "catalog/pg_database.h"
#include "utils/acl.h"

#if PG_VERSION_NUM >= 160000
#define pp_can_set_role(member, role)     member_can_set_role(member, role)
#define pp_database_ownercheck(oid, role) object_ownercheck(DatabaseRelationId, oid, role)
#else
#define pp_can_set_role(member, role)     is_member_of_role(member, role)
#define pp_database_ownercheck(oid, role) pg_database_ownercheck(oid, role)
#endif

/* A record in WAL that means nothing to anybody, for its position. */
#if PG_VERSION_NUM >= 170000
#define pp_log_marker() LogLogicalMessage("postpipe", "", 0, false, false)
#else
#define pp_log_marker() LogLogicalMessage("postpipe", "", 0, false)
#endif

/* Stands before a declaration. */
#if PG_VERSION_NUM >= 180000
#define PP_NORETURN pg_noreturn
#else
#define PP_NORETURN pg_attribute_noreturn()
#endif

#endif /* PP_COMPAT_H */
