/*
 * extension.c
 *		The extension as it is installed in this database: is it, where, and its objects.
 */
#include "pipeline.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/indexing.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_type.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"

/*
 * pp_extension_lookup
 *		Fills *ext, in the current memory context; returns false when the extension is not created
 *		in this database.  Found through pg_extension, never by the name of a schema.
 */
bool
pp_extension_lookup(PpExtension *ext)
{
	Relation rel = table_open(ExtensionRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple tuple;
	const char *schema = NULL;

	ScanKeyInit(&key, Anum_pg_extension_extname, BTEqualStrategyNumber, F_NAMEEQ,
				CStringGetDatum(PP_EXTENSION));
	scan = systable_beginscan(rel, ExtensionNameIndexId, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	/* It is not locked: while it is being dropped, its schema may be gone before. */
	if (HeapTupleIsValid(tuple))
		schema = get_namespace_name(((Form_pg_extension) GETSTRUCT(tuple))->extnamespace);
	if (schema != NULL)
	{
		Form_pg_extension form = (Form_pg_extension) GETSTRUCT(tuple);
		bool isnull;
		Datum version =
			heap_getattr(tuple, Anum_pg_extension_extversion, RelationGetDescr(rel), &isnull);

		ext->oid = form->oid;
		ext->schema = form->extnamespace;
		ext->owner = form->extowner;
		ext->schema_name = pstrdup(quote_identifier(schema));
		ext->definitions = get_relname_relid("postpipe_pipeline", form->extnamespace);
		ext->version = isnull ? NULL : TextDatumGetCString(version);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return schema != NULL;
}

/*
 * pp_extension_lock
 *		As pp_extension_lookup(), and keeps the extension until the end of the transaction: waits for a
 *		DROP EXTENSION that is under way, whatever lock_timeout is in this database, as nothing else
 *		can be done meanwhile.  What is there after that may be another one, which has to be kept in
 *		turn.  In a process of ours, before the snapshot that reads the tables.
 */
bool
pp_extension_lock(PpExtension *ext)
{
	Oid locked = InvalidOid;

	(void) set_config_option("lock_timeout", "0", PGC_SUSET, PGC_S_SESSION, GUC_ACTION_LOCAL, true,
							 0, false);
	while (pp_extension_lookup(ext))
	{
		if (ext->oid == locked)
			return true;
		locked = ext->oid;
		LockDatabaseObject(ExtensionRelationId, locked, 0, AccessShareLock);
	}
	return false;
}

/*
 * pp_extension_is_there
 *		Is the extension, which is locked, the one that was looked up, in a schema that still has the same name?
 *		Another schema may have that name now.  It is there as long as its table of definitions, unless a superuser
 *		takes that out of it: tables are in a cache of the server's, where before 18 extensions are not, and
 *		each batch asks.
 */
bool
pp_extension_is_there(const PpExtension *ext)
{
	const char *name = get_namespace_name(ext->schema);

	return name != NULL && strcmp(quote_identifier(name), ext->schema_name) == 0 &&
		   SearchSysCacheExists1(RELOID, ObjectIdGetDatum(ext->definitions));
}

/* The OID of one of our tables. */
Oid
pp_relation_oid(const PpExtension *ext, const char *name)
{
	Oid oid = get_relname_relid(name, ext->schema);

	if (!OidIsValid(oid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("table %s.%s of extension postpipe does not exist", ext->schema_name, name),
				 errhint("Run DROP EXTENSION postpipe and CREATE EXTENSION postpipe.")));
	return oid;
}

Oid
pp_id_type_oid(const PpExtension *ext)
{
	return GetSysCacheOid2(TYPENAMENSP, Anum_pg_type_oid, CStringGetDatum("postpipe_id"),
						   ObjectIdGetDatum(ext->schema));
}
