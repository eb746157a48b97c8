/*
 * pipeline_lock.c
 *		Locks of a pipeline, and whether its definition is still what it was.
 */
#include "pipeline.h"

#include "common/hashfn.h"
#include "storage/lmgr.h"
#include "utils/inval.h"
#include "utils/syscache.h"

/*
 * What a pipeline of this name is locked by, in place of an OID.  Names with the same key can be
 * found, so no two pipelines have one: postpipe_create_pipeline() refuses the second.
 */
uint32
pp_pipeline_lock_key(const char *name)
{
	return hash_bytes((const unsigned char *) name, (int) strlen(name));
}

/*
 * pp_pipeline_lock
 *		Locks a pipeline until the end of the transaction: each batch in AccessShareLock, whoever
 *		changes or drops it in AccessExclusiveLock.  So no batch is under way then, and the next one
 *		sees the change.
 */
void
pp_pipeline_lock(const PpExtension *ext, const char *name, LOCKMODE mode)
{
	LockDatabaseObject(ext->definitions, pp_pipeline_lock_key(name), 0, mode);
}

/* Takes that lock back, for who has changed nothing. */
void
pp_pipeline_unlock(const PpExtension *ext, const char *name, LOCKMODE mode)
{
	UnlockDatabaseObject(ext->definitions, pp_pipeline_lock_key(name), 0, mode);
}

/*
 * pp_pipeline_lock_row
 *		Locks the definition against whoever changes it, until the end of the transaction.  A lock of its
 *		own, because the built-in pipeline has no row to lock, and because a pause must not wait
 *		for a batch.  Who needs both takes the pipeline first.
 */
void
pp_pipeline_lock_row(const PpExtension *ext, const char *name)
{
	LockDatabaseObject(ext->definitions, pp_pipeline_lock_key(name), 1, ExclusiveLock);
}

/* Some definition may have changed: counted by invalidation, which the table's trigger sends. */
static uint64 changes = 1;
static Oid definition_table;

static void
table_changed(Datum arg, Oid relid)
{
	if (!OidIsValid(relid) || relid == definition_table)
		changes++;
}

static void
server_changed(Datum arg, int cacheid, uint32 hashvalue)
{
	changes++;
}

/*
 * pp_pipeline_is_current
 *		Is the definition still what it was when it was read?  Cheap when nothing has changed.  In a
 *		transaction with an active snapshot, with the pipeline locked.
 */
bool
pp_pipeline_is_current(const PpExtension *ext, const PpPipeline *p)
{
	static bool registered = false;
	static uint64 known = 0; /* up to here it is current */
	PpPipeline *now;
	uint64 seen;

	if (!registered)
	{
		CacheRegisterRelcacheCallback(table_changed, (Datum) 0);
		CacheRegisterSyscacheCallback(FOREIGNSERVEROID, server_changed, (Datum) 0);
		CacheRegisterSyscacheCallback(USERMAPPINGOID, server_changed, (Datum) 0);
	}
	registered = true;
	if (known == changes)
		return true;
	definition_table = ext->definitions;
	seen = changes; /* what comes meanwhile may not be in what is read */
	now = pp_pipeline_get(ext, p->name);
	if (now == NULL || now->version != p->version)
		return false;
	known = seen;
	return true;
}
