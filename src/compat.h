/*
 * compat.h
 *		What differs between PostgreSQL 15 to 18, in one place.  (What differs between hiredis
 *		0.14 and 1.x is in redis_reply.c.)
 */
#ifndef PP_COMPAT_H
#define PP_COMPAT_H

#include "postgres.h"

#include "catalog/pg_class.h"
#include "catalog/pg_database.h"
#include "catalog/pg_foreign_server.h"
#include "utils/acl.h"
#if PG_VERSION_NUM >= 160000
#include "varatt.h"
#endif

#if PG_VERSION_NUM >= 160000
#define pp_can_set_role(member, role)     member_can_set_role(member, role)
#define pp_database_ownercheck(oid, role) object_ownercheck(DatabaseRelationId, oid, role)
#define pp_may_use_server(oid, role) \
	(object_aclcheck(ForeignServerRelationId, oid, role, ACL_USAGE) == ACLCHECK_OK)
#else
#define pp_can_set_role(member, role)     is_member_of_role(member, role)
#define pp_database_ownercheck(oid, role) pg_database_ownercheck(oid, role)
#define pp_may_use_server(oid, role) \
	(pg_foreign_server_aclcheck(oid, role, ACL_USAGE) == ACLCHECK_OK)
#endif

/* A record in WAL that means nothing to anybody, for its position. */
#if PG_VERSION_NUM >= 170000
#define pp_log_marker() LogLogicalMessage("postpipe", "", 0, false, false)
#else
#define pp_log_marker() LogLogicalMessage("postpipe", "", 0, false)
#endif

/* Index entries of a row that is new, and no error left for the caller to handle. */
#if PG_VERSION_NUM >= 160000
#define pp_insert_index_tuples(target, slot, estate) \
	ExecInsertIndexTuples(target, slot, estate, false, false, NULL, NIL, false)
#else
#define pp_insert_index_tuples(target, slot, estate) \
	ExecInsertIndexTuples(target, slot, estate, false, false, NULL, NIL)
#endif

/* Which relations a plan asks a permission for, and which one: a list of PpPermission. */
#if PG_VERSION_NUM >= 160000
#define PpPermission            RTEPermissionInfo
#define pp_permissions_of(stmt) ((stmt)->permInfos)
#else
#define PpPermission            RangeTblEntry
#define pp_permissions_of(stmt) ((stmt)->rtable)
#endif

/* The root of a B-tree, locked for reading; none if it is empty. */
#if PG_VERSION_NUM >= 160000
#define pp_btree_root(index) _bt_getroot(index, NULL, BT_READ)
#else
#define pp_btree_root(index) _bt_getroot(index, BT_READ)
#endif

/* What will be read soon.  It need not be valid memory. */
#if defined(__GNUC__)
#define pp_prefetch(address) __builtin_prefetch(address)
#else
#define pp_prefetch(address) ((void) 0)
#endif

/* All rows of a query that is run once. */
#if PG_VERSION_NUM >= 180000
#define pp_executor_run(query) ExecutorRun(query, ForwardScanDirection, 0)
#else
#define pp_executor_run(query) ExecutorRun(query, ForwardScanDirection, 0, true)
#endif

/* A set of things to be waited for, until it is freed. */
#if PG_VERSION_NUM >= 170000
#define pp_create_wait_set(n) CreateWaitEventSet(NULL, n)
#else
#define pp_create_wait_set(n) CreateWaitEventSet(TopMemoryContext, n)
#endif

/* Stands before a declaration. */
#if PG_VERSION_NUM >= 180000
#define PP_NORETURN pg_noreturn
#else
#define PP_NORETURN pg_attribute_noreturn()
#endif

#endif /* PP_COMPAT_H */
