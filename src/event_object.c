/*
 * event_object.c
 *		A jsonb object, written directly in the binary form of utils/jsonb.h.
 *
 * Through JsonbValues it takes three times as long, and this is done for every entry.
 */
#include "event_internal.h"

#include "mb/pg_wchar.h"
#include "utils/memutils.h"

/* jsonb's order of keys: shorter first, then by bytes; equal names in the order they came. */
static int
compare_pairs(const void *a, const void *b)
{
	const PpPair *x = a;
	const PpPair *y = b;
	int order;

	if (x->name.len != y->name.len)
		return x->name.len < y->name.len ? -1 : 1;
	order = memcmp(x->name.data, y->name.data, x->name.len);
	return order != 0 ? order : x->position - y->position;
}

/* Are these the names, in this order, of the object before? */
bool
pp_names_are_kept(const PpNameOrder *kept, const PpPair *pairs, int n)
{
	const char *name = kept->names;

	if (kept->n != n || n == 0)
		return false;
	for (int i = 0; i < n; i++)
	{
		const PpString *other = &pairs[i].name;

		if (other->len != kept->lengths[i] || memcmp(other->data, name, other->len) != 0)
			return false;
		name += other->len;
	}
	return true;
}

/* Keeps the order that was found, if it is worth it.  In the server's encoding names may be others. */
static void
keep_names(PpNameOrder *kept, const PpPair *pairs, int n, const PpPair *sorted, int unique)
{
	size_t used = 0;

	kept->n = 0;
	if (n > PP_MAX_KEPT_NAMES || GetDatabaseEncoding() != PG_UTF8)
		return;
	for (int i = 0; i < n; i++)
	{
		const PpString *name = &pairs[i].name;

		if (used + name->len > PP_MAX_KEPT_BYTES)
			return;
		memcpy(kept->names + used, name->data, name->len);
		kept->lengths[i] = name->len;
		used += name->len;
	}
	for (int i = 0; i < unique; i++)
		kept->positions[i] = sorted[i].position;
	kept->unique = unique;
	kept->n = n;
}

/* Sorts the pairs; of equal names the last counts. Returns how many there are then. */
static int
sort_pairs(PpPair *sorted, const PpPair *pairs, int n)
{
	int unique = 0;

	memcpy(sorted, pairs, n * sizeof(PpPair));
	qsort(sorted, n, sizeof(PpPair), compare_pairs);
	for (int i = 0; i < n; i++)
	{
		if (unique > 0 && sorted[unique - 1].name.len == sorted[i].name.len &&
			memcmp(sorted[unique - 1].name.data, sorted[i].name.data, sorted[i].name.len) == 0)
			unique--;
		sorted[unique++] = sorted[i];
	}
	return unique;
}

static inline bool
is_aligned(JEntry type)
{
	return type == JENTRY_ISNUMERIC || type == JENTRY_ISCONTAINER;
}

/*
 * Writes a name or a value: its JEntry, and its bytes at *total from `base` on.  The JEntry has the
 * offset, not the length: then a reader need not add up the lengths before it.  Either is allowed
 * anywhere.
 */
static void
put(JEntry *entry, JEntry type, const PpString *s, char *base, uint32 *total)
{
	if (is_aligned(type))
		while (*total != INTALIGN(*total))
			base[(*total)++] = '\0';
	memcpy(base + *total, s->data, s->len);
	*total += (uint32) s->len;
	*entry = type | JENTRY_HAS_OFF | *total;
}

static Jsonb *
write_object(const PpPair *pairs, int n)
{
	Size bytes = 0;
	Size size;
	Jsonb *jb;
	char *data;
	uint32 total = 0;

	for (int i = 0; i < n; i++)
		bytes += pairs[i].name.len + pairs[i].value.len +
				 (is_aligned(pairs[i].type) ? sizeof(int32) : 0);
	if (bytes > JENTRY_OFFLENMASK || n > JB_CMASK)
		ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
						errmsg("entry is too large for a jsonb event"),
						errdetail("It has %zu bytes; the limit is %u.", bytes, JENTRY_OFFLENMASK)));
	size = offsetof(Jsonb, root) + offsetof(JsonbContainer, children) + 2 * n * sizeof(JEntry);
	jb = palloc(size + bytes);
	jb->root.header = (uint32) n | JB_FOBJECT;
	data = (char *) jb + size;
	for (int i = 0; i < n; i++)
		put(&jb->root.children[i], JENTRY_ISSTRING, &pairs[i].name, data, &total);
	for (int i = 0; i < n; i++)
		put(&jb->root.children[n + i], pairs[i].type, &pairs[i].value, data, &total);
	SET_VARSIZE(jb, size + total);
	return jb;
}

/*
 * pp_object_make
 *		The jsonb object of these pairs; of equal names the last counts.  are_kept: as
 *		pp_names_are_kept() said; else the order of the names is kept.  In the current memory context.
 */
Jsonb *
pp_object_make(PpNameOrder *kept, bool are_kept, const PpPair *pairs, int n)
{
	PpPair *sorted = palloc(Max(n, 1) * sizeof(PpPair));
	int unique;
	Jsonb *result;

	if (are_kept)
	{
		unique = kept->unique;
		for (int i = 0; i < unique; i++)
			sorted[i] = pairs[kept->positions[i]];
	}
	else
	{
		unique = sort_pairs(sorted, pairs, n);
		keep_names(kept, pairs, n, sorted, unique);
	}
	result = write_object(sorted, unique);
	pfree(sorted);
	return result;
}
