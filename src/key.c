/*
 * key.c
 *		The key of an entry: what decides which row of the target it writes.
 *
 * It is known before the statement runs, by a hash of what the statement will take for the key's
 * columns (generate.c), as it is written in the entry.
 */
#include "key.h"

#include "event.h"

/* What ->> makes of a value goes into the hash, so that 7 in JSON meets '7'.  False: there is none. */
static bool
hash_column(uint64 *hash, const PpKeyColumn *column, const PpEntry *entry)
{
	ListCell *lc;

	if (column->sources == NIL)
	{
		*hash = pp_hash_string(*hash, &(PpString){(const char *) &entry->id, sizeof(PpId)});
		return true;
	}
	foreach (lc, column->sources)
	{
		bool in_text;
		const PpPair *pair = pp_source_find(lfirst(lc), entry, column->empty_is_null, &in_text);
		PpString text;

		if (pair == NULL)
			continue;
		text = pp_pair_text(pair);
		*hash = pp_hash_string(*hash, &text);
		return true;
	}
	return false;
}

/*
 * pp_key_hash
 *		A hash of the values of the key (PpKeyColumn).  False: the entry has a key that no other has,
 *		because a column of it comes from a default that is another one each time, or is NULL.
 *		Entries with one key have one hash if they write it alike; the converse need not hold.
 */
bool
pp_key_hash(List *key, const PpEntry *entry, uint64 *hash)
{
	ListCell *lc;

	*hash = 0;
	foreach (lc, key)
	{
		const PpKeyColumn *column = lfirst(lc);

		if (hash_column(hash, column, entry))
			continue;
		if (!column->absent_alike)
			return false;
		*hash = pp_hash_string(*hash, &(PpString){"", 0});
	}
	return key != NIL;
}

/*
 * pp_key_mark
 *		Tells a key from another one: two that take their values from the same fields have the same mark.
 */
uint16
pp_key_mark(List *key)
{
	uint64 hash = 0;
	ListCell *lc;

	foreach (lc, key)
	{
		const PpKeyColumn *column = lfirst(lc);
		char flags[] = {'k', column->empty_is_null, column->absent_alike};
		ListCell *of;

		hash = pp_hash_string(hash, &(PpString){flags, sizeof(flags)});
		foreach (of, column->sources)
		{
			const PpSource *source = lfirst(of);
			char place = source->in_envelope;

			hash = pp_hash_string(hash, &(PpString){&place, 1});
			hash = pp_hash_string(hash, &(PpString){source->name, source->len});
		}
	}
	return (uint16) (hash ^ (hash >> 16) ^ (hash >> 32) ^ (hash >> 48));
}
