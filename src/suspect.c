/*
 * suspect.c
 *		Entries that may have crashed the process: run one at a time, and dead-lettered in the end.
 *
 * What inflight.c found at the start of the process are suspects.  Each is applied in a transaction
 * of its own, so that the next crash tells which one it is.  That one is run alone once more,
 * because somebody may have killed the process; when it dies again, the entry is dead without being
 * run.  So an entry costs three crash restarts at most, and a process that is killed costs nothing
 * but that what it had in hand is applied one by one.
 */
#include "suspect.h"

#include "inflight.h"

#define MAX_CRASHES_ALONE 2

/* Widens first..last to an entry. */
static void
cover(PpId id, PpId *first, PpId *last)
{
	if (pp_id_is_zero(*last) || pp_id_compare(id, *first) < 0)
		*first = id;
	if (pp_id_compare(id, *last) > 0)
		*last = id;
}

/* The statement is about to run over these entries: they are to blame if the process dies. */
void
pp_suspect_note(PpEntry **entries, int n)
{
	PpId first = {0, 0};
	PpId last = {0, 0};

	for (int i = 0; i < n; i++)
		cover(entries[i]->id, &first, &last);
	if (n > 0)
		pp_inflight_set(first, last, n);
}

/* The commit can crash as well, over anything that was run in the transaction. */
void
pp_suspect_note_commit(const PpBatch *batch)
{
	PpId first = {0, 0};
	PpId last = {0, 0};
	int n = 0;

	for (int i = 0; i < batch->n; i++)
	{
		const PpEntry *entry = &batch->entries[i];

		if (entry->settled || entry->verdict != PP_VERDICT_APPLIED)
			continue;
		cover(entry->id, &first, &last);
		n++;
	}
	if (n > 0)
		pp_inflight_set(first, last, n);
}

/*
 * pp_suspect_part_end
 *		Entries of a batch that are applied in one transaction, from `first` on: returns the end.
 *		A suspect is alone.
 */
int
pp_suspect_part_end(const PpBatch *batch, int first)
{
	int end = first + 1;

	if (!pp_inflight_suspects_exist())
		return batch->n;
	if (pp_inflight_is_suspect(batch->entries[first].id))
		return end;
	while (end < batch->n && !pp_inflight_is_suspect(batch->entries[end].id))
		end++;
	return end;
}

/*
 * pp_suspect_condemn
 *		Gives the verdict "dead", for good, to an open entry that has crashed the process too often;
 *		returns true if it did.  The reason lives in `cxt`.  The caller has to make its transaction
 *		durable before it applies another suspect: the file remembers the crashes of one entry.
 */
bool
pp_suspect_condemn(MemoryContext cxt, PpEntry *entry)
{
	MemoryContext old;
	int alone;
	int crashes = pp_inflight_crashes(entry->id, &alone);

	if (alone < MAX_CRASHES_ALONE || entry->settled || entry->verdict != PP_VERDICT_OPEN)
		return false;
	old = MemoryContextSwitchTo(cxt);
	entry->error = palloc0(sizeof(PpEntryError));
	entry->error->final = true;
	entry->error->sqlstate = ERRCODE_INTERNAL_ERROR;
	entry->error->message = pstrdup("the server process crashed while it applied this entry");
	entry->error->detail =
		psprintf("It crashed %d times, and %d of them with this entry alone.", crashes, alone);
	entry->error->hint =
		pstrdup("The server's log has the signal that ended the process. When the cause is "
				"removed, apply the entry with postpipe_replay().");
	MemoryContextSwitchTo(old);
	entry->verdict = PP_VERDICT_DEAD;
	return true;
}
