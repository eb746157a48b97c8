/*
 * waves.c
 *		Entries with one key, one after the other.
 *
 * A statement that upserts cannot touch a row twice, and entries with one key have to take effect in
 * their order.  So a batch is run in waves: first all first entries of their keys, then the second
 * ones.  Whatever the statement and its merge rules, that leaves the same table as one entry after
 * the other.
 */
#include "apply_internal.h"

#include "fault.h"
#include "key.h"
#include "suspect.h"

/* Does it come late, after a later entry with the same key? */
static bool
is_older(const PpEntry *entry)
{
	return entry->letter != NULL && entry->letter->overtaken;
}

/* Of letters: which stream, as one is deleted and another takes its place. */
static int
epoch_of(const PpEntry *entry)
{
	return entry->letter ? entry->letter->epoch : 0;
}

/* The order in which entries take effect. */
int
pp_apply_compare_order(const void *x, const void *y)
{
	const PpEntry *a = *(PpEntry *const *) x;
	const PpEntry *b = *(PpEntry *const *) y;

	if (is_older(a) != is_older(b))
		return is_older(a) ? 1 : -1;
	if (epoch_of(a) != epoch_of(b))
		return epoch_of(a) - epoch_of(b);
	return pp_id_compare(a->id, b->id);
}

static int
compare_waves(const void *x, const void *y)
{
	const PpEntry *a = *(PpEntry *const *) x;
	const PpEntry *b = *(PpEntry *const *) y;

	return a->wave != b->wave ? a->wave - b->wave : pp_apply_compare_order(x, y);
}

/*
 * pp_apply_number_waves
 *		Numbers the entries of each key (PpKeyColumn) from 0, sorts them by these numbers and their
 *		order in the stream, and returns the highest number.
 */
int
pp_apply_number_waves(List *key, PpEntry **entries, int n)
{
	int size = 16;
	int max = 0;
	struct
	{
		uint64 hash;
		int count;
	} * table;

	if (key == NIL || n < 2)
		return 0;
	while (size < 2 * n)
		size *= 2;
	table = palloc0(size * sizeof(*table));
	for (int i = 0; i < n; i++)
	{
		uint64 hash;
		int slot;

		entries[i]->wave = 0;
		if (!pp_key_hash(key, entries[i], &hash))
			continue;
		slot = (int) (hash & (size - 1));
		while (table[slot].count > 0 && table[slot].hash != hash)
			slot = (slot + 1) & (size - 1);
		table[slot].hash = hash;
		entries[i]->wave = table[slot].count++;
		max = Max(max, entries[i]->wave);
	}
	pfree(table);
	if (max > 0 || entries[0]->letter != NULL)
		qsort(entries, n, sizeof(PpEntry *), compare_waves);
	return max;
}

/*
 * pp_apply_run_waves
 *		Runs the statement over entries in wave order, wave by wave, and apart from the others those
 *		that come late.
 */
void
pp_apply_run_waves(PpApply *a, PpEntry **entries, int n, bool plain, PpApplyResult *result)
{
	int first = 0;

	/* In a backend, which may be a worker that runs a trigger, it is none of the worker's business. */
	if (a->ledger.worker > 0)
		pp_suspect_note(entries, n);
	while (first < n)
	{
		int end = first + 1;
		bool older = is_older(entries[first]) && pp_statement_has(a->statement, PP_FORM_OLDER);
		PpForm form = older ? PP_FORM_OLDER : plain ? PP_FORM_PLAIN : PP_FORM_WHOLE;

		while (end < n && entries[end]->wave == entries[first]->wave &&
			   is_older(entries[end]) == is_older(entries[first]))
			end++;
		result->conflicted += pp_statement_run(a->statement, entries + first, end - first, form);
		first = end;
	}
	for (int i = 0; i < n; i++)
		entries[i]->verdict = PP_VERDICT_APPLIED;
	PP_FAULT("after_apply");
}
