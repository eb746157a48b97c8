/*
 * batch.h
 *		Plain data that travels from Redis (stream) through normalization (event) to the
 *		statement (apply): an entry, and a batch of them.  No behavior.
 */
#ifndef PP_BATCH_H
#define PP_BATCH_H

#include "stream_id.h"
#include "utils/jsonb.h"

typedef struct PpString
{
	const char *data; /* in general not terminated by a zero; may contain zeros */
	size_t len;
} PpString;

static inline PpString
pp_string(const char *s)
{
	return (PpString){s, strlen(s)};
}

/* A type of value that jsonb has not: an integer as its digits, as ->> shows it. */
#define PP_ISINTEGER JENTRY_TYPEMASK

/* A name and a value of an object. */
typedef struct PpPair
{
	PpString name;
	PpString value; /* text or digits, the bytes of a Numeric, or of a JsonbContainer */
	JEntry type;    /* of the value: JENTRY_ISSTRING and so on or PP_ISINTEGER, nothing else */
	int position;   /* among the pairs as they came */
} PpPair;

/* An event, or an envelope: what a jsonb of it would have, see event_object.h. */
typedef struct PpObject
{
	uint64 name_set; /* objects with one number have the same names; 0: not known */
	bool in_texts;   /* its strings are those of texts: the header before, a zero behind */
	int n;
	PpPair pairs[FLEXIBLE_ARRAY_MEMBER]; /* in jsonb's order of names, without repeated ones */
} PpObject;

/* What became of an entry; the order is the one in which it is decided. */
typedef enum PpVerdict
{
	PP_VERDICT_OPEN = 0,  /* to be applied */
	PP_VERDICT_GONE,      /* pending in the group, but deleted or trimmed in the stream */
	PP_VERDICT_DUPLICATE, /* already settled by an earlier delivery */
	PP_VERDICT_FILTERED,  /* its event type is not one of the pipeline's */
	PP_VERDICT_APPLIED,
	PP_VERDICT_DEAD
} PpVerdict;

/* Why an entry could not be applied; as GET STACKED DIAGNOSTICS has it. */
typedef struct PpEntryError
{
	bool moment; /* whatever its code, it says nothing of the entry: somebody cancelled */
	bool final;  /* the entry must not be run again: it has no event, or crashed the process */
	const char *reason_code; /* a constant; NULL: it follows from the SQLSTATE */
	int sqlstate;            /* packed, as in ErrorData.sqlerrcode */
	int entry_sqlstate; /* that of an entry's error that the message tells, with what is in the entry;
						 * 0: none, so it may be logged */
	char *message;
	char *detail; /* this and all below: NULL when absent */
	char *hint;
	char *context;
	char *schema_name;
	char *table_name;
	char *column_name;
	char *constraint_name;
} PpEntryError;

/* What the dead-letter table has of an entry that is tried again. */
typedef struct PpLetter
{
	int epoch;
	int sqlstate;   /* of its last failure */
	int attempts;   /* so far */
	bool overtaken; /* a later entry with the same key was applied since */
} PpLetter;

typedef struct PpEntry
{
	PpId id;
	bool malformed; /* a field was no string; an integer is kept as text, anything else as '' */
	int nfields;    /* strings in fields: names and values in turn; -1: the entry is gone */
	PpString *fields;
	bool in_texts;      /* each of them is that of a text: the header is before it */
	size_t bytes;       /* of all names and values */
	uint64 hash;        /* of the content, see pp_event_hash() */
	PpObject *event;    /* set by pp_event_normalize(); NULL when it failed */
	PpObject *envelope; /* NULL: a flat entry */
	int wave;           /* how many entries before it in the batch have the same key */
	PpVerdict verdict;
	int on_record;       /* of a duplicate: the latest epoch that has a record of it */
	bool settled;        /* its verdict is committed */
	PpEntryError *error; /* for PP_VERDICT_DEAD */
	bool retrying;       /* it is dead for now only: it will be tried again */
	int skipped;      /* … for good, by postpipe_skip(): the epoch of its letter; 0: it was not */
	PpLetter *letter; /* NULL: it was read from Redis, not from the dead-letter table */
} PpEntry;

typedef struct PpBatch
{
	MemoryContext cxt; /* holds the entries and all they point to */
	int n;
	PpEntry *entries;
	size_t bytes;
	bool look_up; /* some may be on record already */
	bool full;    /* as many as were asked for: Redis may have more */
} PpBatch;

#endif /* PP_BATCH_H */
