/*
 * event_object.c
 *		An object: the names and values that an event has, or an envelope.
 *
 * It has what a jsonb of it would have, in the same order, but its values stay where they are: what
 * goes from a field into a column is copied once then, and not into a jsonb and out of it again.  A
 * jsonb is made of it for those who need one, directly in the binary form of utils/jsonb.h: through
 * JsonbValues that takes three times as long.
 */
#include "event_object.h"

#include "mb/pg_wchar.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/numeric.h"

#define MAX_INTEGER_SIZE 24 /* bytes, of the Numeric of a PP_ISINTEGER */

/* jsonb's order of keys: shorter first, then by bytes. */
static inline int
compare_names(const PpString *x, const PpString *y)
{
	if (x->len != y->len)
		return x->len < y->len ? -1 : 1;
	return memcmp(x->data, y->data, x->len);
}

/* Equal names in the order they came. */
static int
compare_pairs(const void *a, const void *b)
{
	const PpPair *x = a;
	const PpPair *y = b;
	int order = compare_names(&x->name, &y->name);

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
	static uint64 last_set;
	size_t used = 0;

	kept->n = 0;
	kept->name_set = 0;
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
	kept->name_set = ++last_set;
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
		if (unique > 0 && compare_names(&sorted[unique - 1].name, &sorted[i].name) == 0)
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

/* A PP_ISINTEGER as jsonb has it.  In the text that it was found in something follows it, and is no digit. */
static PpString
numeric_of(const PpString *digits)
{
	Numeric number = int64_to_numeric(strtoi64(digits->data, NULL, 10));

	return (PpString){(char *) number, VARSIZE_ANY(number)};
}

/*
 * Writes a name or a value: its JEntry, and its bytes at *total from `base` on.  The JEntry has the
 * offset, not the length: then a reader need not add up the lengths before it.  Either is allowed
 * anywhere.
 */
static void
put(JEntry *entry, JEntry type, const PpString *s, char *base, uint32 *total)
{
	PpString number;

	if (type == PP_ISINTEGER)
	{
		number = numeric_of(s);
		s = &number;
		type = JENTRY_ISNUMERIC;
	}
	if (is_aligned(type))
		while (*total != INTALIGN(*total))
			base[(*total)++] = '\0';
	memcpy(base + *total, s->data, s->len);
	*total += (uint32) s->len;
	*entry = type | JENTRY_HAS_OFF | *total;
}

/* How many bytes a jsonb has before so many names and values. */
static inline Size
head_size(int children)
{
	return offsetof(Jsonb, root) + offsetof(JsonbContainer, children) + children * sizeof(JEntry);
}

/* How many bytes the value takes there, at most. */
static inline Size
value_size(const PpPair *pair)
{
	if (pair->type == PP_ISINTEGER)
		return MAX_INTEGER_SIZE + sizeof(int32);
	return pair->value.len + (is_aligned(pair->type) ? sizeof(int32) : 0);
}

/* The size of a jsonb of it, at most.  Throws when there can be none. */
Size
pp_object_size(const PpObject *object)
{
	Size bytes = 0;

	for (int i = 0; i < object->n; i++)
		bytes += object->pairs[i].name.len + value_size(&object->pairs[i]);
	if (bytes > JENTRY_OFFLENMASK || object->n > JB_CMASK)
		ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
						errmsg("entry is too large for a jsonb event"),
						errdetail("It has %zu bytes; the limit is %u.", bytes, JENTRY_OFFLENMASK)));
	return head_size(2 * object->n) + bytes;
}

/*
 * pp_object_jsonb
 *		The same as jsonb, in the current memory context.
 */
Jsonb *
pp_object_jsonb(const PpObject *object)
{
	int n = object->n;
	Size size = head_size(2 * n);
	Jsonb *jb = palloc(pp_object_size(object));
	char *data = (char *) jb + size;
	uint32 total = 0;

	jb->root.header = (uint32) n | JB_FOBJECT;
	for (int i = 0; i < n; i++)
		put(&jb->root.children[i], JENTRY_ISSTRING, &object->pairs[i].name, data, &total);
	for (int i = 0; i < n; i++)
		put(&jb->root.children[n + i], object->pairs[i].type, &object->pairs[i].value, data,
			&total);
	SET_VARSIZE(jb, size + total);
	return jb;
}

/*
 * pp_array_jsonb
 *		A jsonb array of the values of these pairs, in the current memory context; NULL: it would be too large.
 */
Jsonb *
pp_array_jsonb(const PpPair *pairs, int n)
{
	Size head = head_size(n);
	Size bytes = 0;
	uint32 total = 0;
	Jsonb *jb;

	for (int i = 0; i < n; i++)
		bytes += value_size(&pairs[i]);
	if (bytes > JENTRY_OFFLENMASK)
		return NULL;
	jb = palloc(head + bytes);
	jb->root.header = (uint32) n | JB_FARRAY;
	for (int i = 0; i < n; i++)
		put(&jb->root.children[i], pairs[i].type, &pairs[i].value, (char *) jb + head, &total);
	SET_VARSIZE(jb, head + total);
	return jb;
}

static PpObject *
allocate(int n)
{
	PpObject *object = palloc(offsetof(PpObject, pairs) + n * sizeof(PpPair));

	object->name_set = 0;
	object->in_texts = false;
	object->n = n;
	return object;
}

/*
 * pp_object_make
 *		The object of these pairs, whose names and values stay where they are; of equal names the last
 *		counts.  are_kept: as pp_names_are_kept() said; else the order of the names is kept.  In the
 *		current memory context.  Throws when it is too large for a jsonb.
 */
PpObject *
pp_object_make(PpNameOrder *kept, bool are_kept, const PpPair *pairs, int n)
{
	PpObject *object = allocate(n);

	if (are_kept)
	{
		object->n = kept->unique;
		for (int i = 0; i < object->n; i++)
			object->pairs[i] = pairs[kept->positions[i]];
	}
	else
	{
		object->n = sort_pairs(object->pairs, pairs, n);
		keep_names(kept, pairs, n, object->pairs, object->n);
	}
	object->name_set = kept->name_set;
	(void) pp_object_size(object);
	return object;
}

/*
 * pp_object_of_jsonb
 *		The object that a jsonb is, which has to stay where it is.
 */
PpObject *
pp_object_of_jsonb(const Jsonb *jb)
{
	PpObject *object = allocate(JB_ROOT_COUNT(jb));
	JsonbIterator *it = JsonbIteratorInit(unconstify(JsonbContainer *, &jb->root));
	JsonbValue v;

	(void) JsonbIteratorNext(&it, &v, true); /* the object begins */
	for (int i = 0; i < object->n; i++)
	{
		PpPair *pair = &object->pairs[i];

		(void) JsonbIteratorNext(&it, &v, true);
		pair->name = (PpString){v.val.string.val, v.val.string.len};
		pair->value = (PpString){"", 0};
		pair->position = i;
		(void) JsonbIteratorNext(&it, &v, true);
		switch (v.type)
		{
			case jbvString:
				pair->type = JENTRY_ISSTRING;
				pair->value = (PpString){v.val.string.val, v.val.string.len};
				break;
			case jbvNumeric:
				pair->type = JENTRY_ISNUMERIC;
				pair->value = (PpString){(char *) v.val.numeric, VARSIZE_ANY(v.val.numeric)};
				break;
			case jbvBool:
				pair->type = v.val.boolean ? JENTRY_ISBOOL_TRUE : JENTRY_ISBOOL_FALSE;
				break;
			case jbvBinary:
				pair->type = JENTRY_ISCONTAINER;
				pair->value = (PpString){(char *) v.val.binary.data, v.val.binary.len};
				break;
			default:
				pair->type = JENTRY_ISNULL;
		}
	}
	return object;
}

static int
find_position(const PpObject *object, const PpString *name)
{
	int low = 0;
	int high = object->n;

	while (low < high)
	{
		int middle = (low + high) / 2;
		int order = compare_names(name, &object->pairs[middle].name);

		if (order == 0)
			return middle;
		if (order < 0)
			high = middle;
		else
			low = middle + 1;
	}
	return -1;
}

/*
 * pp_object_find
 *		The pair of this name; NULL: there is none.  *place, at first all zero and always for this name, is
 *		where it was the last time: mostly nothing has to be compared then.
 */
const PpPair *
pp_object_find(const PpObject *object, const char *name, size_t len, PpPlace *place)
{
	if (object->name_set == 0 || object->name_set != place->name_set)
	{
		place->position = find_position(object, &(PpString){name, len});
		place->name_set = object->name_set;
	}
	return place->position < 0 ? NULL : &object->pairs[place->position];
}

/*
 * pp_pair_text
 *		What ->> makes of a value that is not null, perhaps where it is, perhaps in the current memory
 *		context.
 */
PpString
pp_pair_text(const PpPair *pair)
{
	char *made;

	switch (pair->type)
	{
		case JENTRY_ISSTRING:
		case PP_ISINTEGER:
			return pair->value;
		case JENTRY_ISNUMERIC:
			made = DatumGetCString(
				DirectFunctionCall1(numeric_out, PointerGetDatum(pair->value.data)));
			break;
		case JENTRY_ISCONTAINER:
			made = JsonbToCString(NULL, (JsonbContainer *) pair->value.data, (int) pair->value.len);
			break;
		default:
			made = pair->type == JENTRY_ISBOOL_TRUE ? "true" : "false";
	}
	return (PpString){made, strlen(made)};
}

/*
 * pp_source_find
 *		What an entry has there; NULL: nothing, or null, or '' when that counts as null.  *in_text: its string
 *		is that of a text (PpObject).
 */
const PpPair *
pp_source_find(PpSource *source, const PpEntry *entry, bool empty_is_null, bool *in_text)
{
	const PpObject *object = source->in_envelope ? entry->envelope : entry->event;
	const PpPair *pair =
		object ? pp_object_find(object, source->name, source->len, &source->place) : NULL;
	bool is_string = pair != NULL && pair->type == JENTRY_ISSTRING;

	if (pair == NULL || pair->type == JENTRY_ISNULL ||
		(empty_is_null && is_string && pair->value.len == 0))
		return NULL;
	*in_text = is_string && object->in_texts;
	return pair;
}
