/*
 * ledger_call.c
 *		The ledger for functions in a backend.
 *
 * They open it for one call: as the extension's owner, and no plan outlives it.  What they look up are IDs
 * alone: these entries count as gone from the stream, so their content decides nothing.
 */
#include "ledger.h"

static void
begin_call(PpStoreScope *store, PpLedger *ledger, const PpExtension *ext, const char *pipeline)
{
	memset(ledger, 0, sizeof(*ledger));
	ledger->cxt = CurrentMemoryContext;
	ledger->ext = ext;
	ledger->pipeline = pipeline;
	pp_store_begin(store, ext);
}

/* In a backend, where no plan outlives a call. */
void
pp_ledger_free_plans(PpLedger *ledger)
{
	for (int i = 0; i < PP_LEDGER_PLANS; i++)
	{
		if (ledger->plans[i] != NULL)
			SPI_freeplan(ledger->plans[i]);
		ledger->plans[i] = NULL;
	}
}

static void
end_call(PpStoreScope *store, PpLedger *ledger)
{
	pp_ledger_free_plans(ledger);
	pp_store_end(store);
}

/* IDs as entries to be looked up, as if they were gone from the stream. */
PpEntry **
pp_ledger_gone_entries(const PpId *ids, int n)
{
	PpEntry *entries = palloc0(Max(n, 1) * sizeof(PpEntry));
	PpEntry **result = palloc(Max(n, 1) * sizeof(PpEntry *));

	for (int i = 0; i < n; i++)
	{
		entries[i].id = ids[i];
		entries[i].nfields = -1;
		entries[i].verdict = PP_VERDICT_GONE;
		result[i] = &entries[i];
	}
	return result;
}

/*
 * pp_ledger_count_unsettled
 *		How many of these IDs, in stream order, has the epoch that is open not settled?  One that an older
 *		epoch has is not in the sums of this one.  SPI must be connected.
 */
int64
pp_ledger_count_unsettled(PpLedger *ledger, const PpId *ids, int n)
{
	PpEntry **entries = pp_ledger_gone_entries(ids, n);
	int64 unsettled = 0;

	pp_ledger_lookup(ledger, entries, n);
	for (int i = 0; i < n; i++)
		unsettled +=
			entries[i]->verdict != PP_VERDICT_DUPLICATE || entries[i]->on_record < ledger->epoch;
	return unsettled;
}

/*
 * pp_ledger_settled
 *		Which of these IDs, in stream order, are on record as settled?  From a backend; writes nothing.
 */
void
pp_ledger_settled(const PpExtension *ext, const char *pipeline, const PpId *ids, int n,
				  bool *settled)
{
	PpEntry **entries = pp_ledger_gone_entries(ids, n);
	PpLedger ledger;
	PpStoreScope store;

	begin_call(&store, &ledger, ext, pipeline);
	pp_ledger_load_epochs(&ledger);
	pp_ledger_lookup(&ledger, entries, n);
	end_call(&store, &ledger);
	for (int i = 0; i < n; i++)
		settled[i] = entries[i]->verdict == PP_VERDICT_DUPLICATE;
}

/*
 * pp_ledger_has
 *		Is this very entry, which is hashed, on record as settled?  From a backend;
 *		writes nothing.  *epoch becomes the current one.
 */
bool
pp_ledger_has(const PpExtension *ext, const char *pipeline, PpEntry *entry, int *epoch)
{
	PpLedger ledger;
	PpStoreScope store;

	begin_call(&store, &ledger, ext, pipeline);
	pp_ledger_load_epochs(&ledger);
	pp_ledger_lookup(&ledger, &entry, 1);
	end_call(&store, &ledger);
	*epoch = Max(ledger.epoch, 1);
	return entry->verdict == PP_VERDICT_DUPLICATE;
}

/*
 * pp_ledger_lose
 *		Records those of these IDs, in stream order, as lost that are not on record.  From a backend
 *		that has locked the pipeline against its workers.  Returns how many they were.
 */
int
pp_ledger_lose(const PpExtension *ext, const char *pipeline, const PpId *ids, int n)
{
	PpEntry **entries = pp_ledger_gone_entries(ids, n);
	PpLedger ledger;
	PpStoreScope store;
	int lost = 0;

	begin_call(&store, &ledger, ext, pipeline);
	(void) pp_ledger_open(&ledger);
	pp_ledger_lookup(&ledger, entries, n);
	for (int i = 0; i < n; i++)
		if (entries[i]->verdict == PP_VERDICT_GONE)
			entries[lost++] = entries[i];
	pp_ledger_record(&ledger, entries, lost);
	end_call(&store, &ledger);
	return lost;
}
