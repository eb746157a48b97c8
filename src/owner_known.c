/*
 * owner_known.c
 *		What the database knows of its ownership of a group: read, stored, and compared with the key.
 *
 * It is in postpipe_progress: the nonce that is in the key in Redis while the group is ours, the next one,
 * some of those before, and whether the pipeline is fenced or is to take over.  Everything here is done in a
 * transaction of pp_worker_transact(), and knows nothing of the connection to Redis.
 */
#include "owner_known.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/syscache.h"

#define MAX_PAST 20

static void
copy_text(char *dst, Size size, int column)
{
	char *value = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, column);

	strlcpy(dst, value ? value : "", size);
}

/* Is that a database of this server that was dropped, or a pipeline of this one that was? */
static bool
is_gone(PpApply *a, const char *owner)
{
	Oid database;
	const char *name = pp_owner_parse(owner, &database);

	if (name == NULL)
		return false;
	if (database == MyDatabaseId)
		return pp_pipeline_get(pp_apply_ledger(a)->ext, name) == NULL;
	if (!SearchSysCacheExists1(DATABASEOID, ObjectIdGetDatum(database)))
		return true;
	/* In this order: a supervisor that leaves gives the slots of its pipelines back first. */
	return pp_pipe_find(database, name) == NULL && pp_supervisor_has_looked(database);
}

/*
 * pp_owner_prepare
 *		Reads what is known (a PpOwnerKnown, of which cxt and owner are set), and stores the nonce that will
 *		be written next.  A PpWork; throws what SQL throws, and when there is no row of the pipeline.
 */
void
pp_owner_prepare(PpApply *a, void *arg)
{
	PpOwnerKnown *known = arg;
	const PpLedger *ledger = pp_apply_ledger(a);
	Oid types[] = {TEXTOID, TEXTOID};
	Datum values[2];
	char fresh[PP_NONCE_LEN];
	uint64 random[2];

	if (!pg_strong_random(random, sizeof(random)))
		elog(ERROR, "could not generate a random nonce");
	snprintf(fresh, sizeof(fresh), "%016llx%016llx", (unsigned long long) random[0],
			 (unsigned long long) random[1]);
	values[0] = CStringGetTextDatum(ledger->pipeline);
	values[1] = CStringGetTextDatum(fresh);
	SPI_execute_with_args(psprintf("UPDATE %s.postpipe_progress SET next_nonce = "
								   "coalesce(next_nonce, $2) WHERE pipeline = $1 "
								   "RETURNING nonce, next_nonce, fenced, take_over, "
								   "array_to_string(past_nonces, ',')",
								   ledger->ext->schema_name),
						  2, types, values, NULL, false, 0);
	if (SPI_processed != 1)
		elog(ERROR, "there is no row of pipeline \"%s\" in postpipe_progress", ledger->pipeline);
	copy_text(known->nonce, sizeof(known->nonce), 1);
	copy_text(known->next_nonce, sizeof(known->next_nonce), 2);
	known->fenced = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 3)[0] == 't';
	known->take_over = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 4)[0] == 't';
	known->owner_gone = is_gone(a, known->owner);
	known->past_nonces = MemoryContextStrdup(
		known->cxt, SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 5));
}

static void
set_progress(PpApply *a, const char *assignments)
{
	const PpLedger *ledger = pp_apply_ledger(a);
	Oid types[] = {TEXTOID};
	Datum values[] = {CStringGetTextDatum(ledger->pipeline)};

	SPI_execute_with_args(psprintf("UPDATE %s.postpipe_progress SET %s WHERE pipeline = $1",
								   ledger->ext->schema_name, assignments),
						  1, types, values, NULL, false, 0);
}

/*
 * pp_owner_note_claimed
 *		The next nonce is in the key.  A PpWork without an argument; throws what SQL throws.
 */
void
pp_owner_note_claimed(PpApply *a, void *arg)
{
	set_progress(a, "nonce = next_nonce, next_nonce = NULL, fenced = false, take_over = false, "
					"past_nonces = CASE WHEN nonce IS NULL THEN past_nonces ELSE "
					"(nonce || past_nonces)[1:" CppAsString2(MAX_PAST) "] END");
}

/*
 * pp_owner_note_fenced
 *		The group is somebody else's.  A PpWork without an argument; throws what SQL throws.
 */
void
pp_owner_note_fenced(PpApply *a, void *arg)
{
	set_progress(a, "fenced = true");
}

/*
 * pp_owner_compare_sequences
 *		Does Redis know of batches that the ledger has not?  The answer is in the PpOwnerComparison.  A
 *		PpWork; throws what SQL throws.
 */
void
pp_owner_compare_sequences(PpApply *a, void *arg)
{
	const PpLedger *ledger = pp_apply_ledger(a);
	PpOwnerComparison *comparison = arg;
	Oid types[] = {TEXTOID, INT4OID, INT8OID};
	Datum values[3] = {CStringGetTextDatum(ledger->pipeline)};

	comparison->went_back = false;
	for (int i = 1; i <= PP_MAX_WORKERS_PER_PIPELINE; i++)
	{
		int64 sequence = comparison->key->sequences[i];

		if (sequence <= 0)
			continue;
		values[1] = Int32GetDatum(i);
		values[2] = Int64GetDatum(sequence);
		SPI_execute_with_args(psprintf("SELECT FROM " PP_LEDGER_ROWS " l WHERE pipeline = $1 "
									   "AND worker = $2 AND sequence >= $3 LIMIT 1",
									   ledger->ext->schema_name),
							  3, types, values, NULL, true, 1);
		comparison->went_back |= SPI_processed == 0;
	}
}
