/*
 * event.c
 *		From an entry's fields to the event that a statement sees.
 *
 * Three formats occur, side by side in one stream:
 *		flat		the fields are the event; every value is a JSON string
 *		JSON		one field, data or payload, holds the event as a JSON object
 *		envelope	the same, with more flat fields beside it: those are the envelope
 *
 * Nothing here needs a transaction or touches the catalogs, so an error can be caught without a
 * subtransaction: there is nothing to roll back.  An entry that does not fit gets the verdict
 * "dead" and the error, and the next one is looked at.
 */
#include "event.h"
#include "event_internal.h"

#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"

#include "fault.h"
#include "utf8.h"
#include "word.h"

#define HINT_JSON                                                                           \
	"The event of an entry is the JSON object in its field data, or else payload; all its " \
	"fields are the event only where it has neither."

/*
 * pp_entry_error_capture
 *		In a PG_CATCH block: takes the current error out of the error stack, as a copy in `cxt`.
 */
PpEntryError *
pp_entry_error_capture(MemoryContext cxt)
{
	MemoryContext old = MemoryContextSwitchTo(cxt);
	ErrorData *edata = CopyErrorData();
	PpEntryError *error = palloc0(sizeof(PpEntryError));

	FlushErrorState();
	error->sqlstate = edata->sqlerrcode;
	error->message = edata->message ? edata->message : pstrdup("missing error text");
	error->detail = edata->detail;
	error->hint = edata->hint;
	error->context = edata->context;
	error->schema_name = edata->schema_name;
	error->table_name = edata->table_name;
	error->column_name = edata->column_name;
	error->constraint_name = edata->constraint_name;
	MemoryContextSwitchTo(old);
	return error;
}

static bool
string_is(const PpString *s, const char *word)
{
	size_t len = strlen(word);

	return s->len == len && memcmp(s->data, word, len) == 0;
}

/* Checks that it is UTF-8 without a NUL, and converts it to the server's encoding.  `name`, of a value, is in that. */
static PpString
to_server(PpString s, const char *what, const PpString *name)
{
	if (!pp_utf8_is_valid(s.data, s.len))
	{
		bool nul = memchr(s.data, '\0', s.len) != NULL;

		ereport(
			ERROR,
			(errcode(ERRCODE_CHARACTER_NOT_IN_REPERTOIRE),
			 nul ? errmsg("%s contains a NUL byte", what) : errmsg("%s is not valid UTF-8", what),
			 name ? errdetail("The field is \"%s\".", pnstrdup(name->data, name->len)) : 0));
	}
	if (GetDatabaseEncoding() != PG_UTF8)
	{
		s.data = pg_any_to_server(s.data, (int) s.len, PG_UTF8);
		s.len = strlen(s.data);
	}
	return s;
}

/* The fields, but for number `skip` (-1: none), as an object. */
static PpObject *
build_flat(const PpEntry *entry, int skip)
{
	static PpNameOrder kept;
	int max = entry->nfields / 2;
	PpPair *pairs = palloc(Max(max, 1) * sizeof(PpPair));
	int n = 0;
	bool are_kept;
	PpObject *result;

	for (int i = 0; i < max; i++)
		if (i != skip)
		{
			pairs[n] = (PpPair){entry->fields[2 * i], entry->fields[2 * i + 1], JENTRY_ISSTRING, n};
			n++;
		}
	/* Of names that were seen before, only the values have to be checked. */
	are_kept = pp_names_are_kept(&kept, pairs, n);
	for (int i = 0; i < n; i++)
	{
		if (!are_kept)
			pairs[i].name = to_server(pairs[i].name, "name of a field", NULL);
		pairs[i].value = to_server(pairs[i].value, "value of a field", &pairs[i].name);
	}
	result = pp_object_make(&kept, are_kept, pairs, n);
	result->in_texts = entry->in_texts && GetDatabaseEncoding() == PG_UTF8;
	pfree(pairs);
	return result;
}

/* The JSON object in a data or payload field. *parsed: the field, while an error is of its JSON. */
static PpObject *
parse_object(const PpString *name, PpString value, const PpString *volatile *parsed)
{
	PpObject *object;
	Jsonb *jb = NULL;

	value = to_server(value, "value of a field", name);
	*parsed = name;
	if ((object = pp_json_parse_object(value.data, value.len)) == NULL)
		jb = DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(value.data)));
	*parsed = NULL;
	if (object != NULL)
		return object;
	if (!JB_ROOT_IS_OBJECT(jb))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("field \"%s\" is not a JSON object", pnstrdup(name->data, name->len)),
				 errdetail("It is a JSON %s.", JB_ROOT_IS_SCALAR(jb) ? "scalar" : "array"),
				 errhint(HINT_JSON)));
	return pp_object_of_jsonb(jb);
}

/* Which field holds the event as JSON: data, or else payload; -1: none, the entry is flat. */
static int
find_json_field(const PpEntry *entry)
{
	int payload = -1;

	for (int i = 0; i < entry->nfields / 2; i++)
	{
		if (string_is(&entry->fields[2 * i], "data"))
			return i;
		if (string_is(&entry->fields[2 * i], "payload"))
			payload = i;
	}
	return payload;
}

/* The event type, if it is a string and not empty; else NULL. */
static const PpString *
find_type(const PpObject *object)
{
	static PpPlace place;
	const PpPair *pair =
		object ? pp_object_find(object, "event_type", strlen("event_type"), &place) : NULL;

	return pair != NULL && pair->type == JENTRY_ISSTRING && pair->value.len > 0 ? &pair->value
																				: NULL;
}

/* Is its event type one of those that the pipeline wants?  No type at all is always wanted. */
static bool
type_is_wanted(const PpEntry *entry, List *event_types)
{
	const PpString *type;
	ListCell *lc;

	if (event_types == NIL)
		return true;
	if ((type = find_type(entry->envelope)) == NULL && (type = find_type(entry->event)) == NULL)
		return true;
	foreach (lc, event_types)
		if (string_is(type, lfirst(lc)))
			return true;
	return false;
}

static void
build_event(PpEntry *entry, const PpString *volatile *parsed)
{
	int json;

	if (entry->nfields == 0)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("entry has no fields")));
	if (entry->malformed)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("entry has a field that is not a string")));
	if (entry->nfields % 2 != 0)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("entry has a field without a value")));
	json = find_json_field(entry);
	if (json < 0)
		entry->event = build_flat(entry, -1);
	else
	{
		entry->event = parse_object(&entry->fields[2 * json], entry->fields[2 * json + 1], parsed);
		if (entry->nfields > 2)
			entry->envelope = build_flat(entry, json);
	}
}

/* PostgreSQL says what is wrong with a text, and not where it is, nor why it was read as JSON. */
static void
name_json_field(PpEntryError *error, const PpString *name)
{
	error->message = psprintf("field \"%.*s\": %s", (int) name->len, name->data, error->message);
	if (error->hint == NULL)
		error->hint = pstrdup(HINT_JSON);
}

/* Would this error come again with these bytes, whatever the moment? */
static bool
is_of_content(const PpEntryError *error)
{
	switch (ERRCODE_TO_CATEGORY(error->sqlstate))
	{
		case ERRCODE_DATA_EXCEPTION:         /* 22 */
		case ERRCODE_FEATURE_NOT_SUPPORTED:  /* 0A */
		case ERRCODE_PROGRAM_LIMIT_EXCEEDED: /* 54 */
			return true;
		default:
			return false;
	}
}

/*
 * pp_event_normalize
 *		Sets entry->event and entry->envelope, in the current memory context, or the verdict: dead
 *		with an error when it has no proper event, filtered when event_types (strings) does not
 *		name its type.  Never throws; what may not be the content's fault (out of memory, an
 *		internal error) leaves an error that is not final, and this can be called again.
 */
void
pp_event_normalize(PpEntry *entry, List *event_types)
{
	MemoryContext cxt = CurrentMemoryContext;
	const PpString *volatile parsed = NULL;

	if (pp_event_is_unsure(entry))
	{
		entry->verdict = PP_VERDICT_OPEN;
		entry->error = NULL;
	}
	if (entry->verdict != PP_VERDICT_OPEN || entry->event != NULL)
		return;
	PG_TRY();
	{
		PP_FAULT("in_normalize");
		build_event(entry, &parsed);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(cxt);
		entry->error = pp_entry_error_capture(cxt);
		entry->error->final = is_of_content(entry->error);
		if (parsed != NULL && entry->error->final)
			name_json_field(entry->error, parsed);
		entry->event = NULL;
		entry->envelope = NULL;
		entry->verdict = PP_VERDICT_DEAD;
	}
	PG_END_TRY();
	pp_event_filter(entry, event_types);
}

/* Of an entry that has its event: gives it the verdict "filtered" when its type is not wanted. */
void
pp_event_filter(PpEntry *entry, List *event_types)
{
	if (entry->verdict == PP_VERDICT_OPEN && !type_is_wanted(entry, event_types))
		entry->verdict = PP_VERDICT_FILTERED;
}

/* Has it no event for a reason that may not be its own? */
bool
pp_event_is_unsure(const PpEntry *entry)
{
	return entry->verdict == PP_VERDICT_DEAD && entry->event == NULL && !entry->error->final;
}

#define HASH_FACTOR UINT64CONST(0x9E3779B97F4A7C15)
#define HASH_LANES  4

static inline uint64
mix(uint64 hash, uint64 word)
{
	hash = (hash ^ word) * HASH_FACTOR;
	return hash ^ (hash >> 32);
}

/* Fewer bytes than a word, as one: without a loop, because most names and numbers are that short. */
static inline uint64
short_word(const char *p, size_t len)
{
	uint32 first;
	uint32 last;

	if (len >= sizeof(uint32))
	{
		memcpy(&first, p, sizeof(uint32));
		memcpy(&last, p + len - sizeof(uint32), sizeof(uint32));
		return (uint64) first << 32 | last;
	}
	return len == 0 ? 0
					: (uint64) (uint8) p[0] << 16 | (uint64) (uint8) p[len / 2] << 8 |
						  (uint8) p[len - 1];
}

/*
 * pp_hash_string
 *		The hash of what was hashed before (0: nothing) and one string.
 *
 * Eight bytes at a time, the last ones perhaps once more: multiply, and fold the high bits down; of a
 * long string in four lanes, which the processor works on at once.  It has to tell two contents of one
 * ID apart, or the keys of a batch, not to withstand an attacker, and it is done for every byte that is
 * read: hash_bytes_extended() takes ten times as long.
 */
uint64
pp_hash_string(uint64 hash, const PpString *s)
{
	const char *p = s->data;
	const char *end = p + s->len;

	hash = (hash ^ s->len) * HASH_FACTOR;
	if (s->len < sizeof(uint64))
		return mix(hash, short_word(p, s->len));
	if (s->len >= HASH_LANES * sizeof(uint64))
	{
		uint64 lanes[HASH_LANES] = {hash, hash + 1, hash + 2, hash + 3};

		for (; end - p >= HASH_LANES * PP_WORD; p += HASH_LANES * PP_WORD)
			for (int i = 0; i < HASH_LANES; i++)
				lanes[i] = mix(lanes[i], pp_word_at(p + i * PP_WORD));
		for (int i = 0; i < HASH_LANES; i++)
			hash = mix(hash, lanes[i]);
	}
	for (; end - p > PP_WORD; p += PP_WORD)
		hash = mix(hash, pp_word_at(p));
	return mix(hash, pp_word_at(end - PP_WORD));
}

/*
 * A 64-bit hash of names and values, in their order. It is stored: the ledger compares by it.  Each
 * string is hashed by itself, so that the processor need not end one before it begins the next.
 */
uint64
pp_event_hash(const PpEntry *entry)
{
	uint64 hash = (uint64) entry->nfields;

	for (int i = 0; i < entry->nfields; i++)
		hash = mix(hash, pp_hash_string(0, &entry->fields[i]));
	return hash;
}
