/*
 * event_internal.h
 *		Shared by what makes an event of an entry: event.c, event_json.c, event_object.c.
 */
#ifndef PP_EVENT_INTERNAL_H
#define PP_EVENT_INTERNAL_H

#include "batch.h"

#define PP_MAX_KEPT_NAMES 64
#define PP_MAX_KEPT_BYTES 2048

/* A name and a value of an object. */
typedef struct PpPair
{
	PpString name;
	PpString value; /* text, the bytes of a Numeric, or of a JsonbContainer */
	JEntry type;    /* of the value: JENTRY_ISSTRING and so on, nothing else */
	int position;   /* among the pairs as they came */
} PpPair;

/*
 * The order of an object's names, kept from the one before: producers write the same names in the same
 * order again and again, and to sort them takes longer than to compare them.
 */
typedef struct PpNameOrder
{
	int n; /* pairs; 0: none is kept */
	size_t lengths[PP_MAX_KEPT_NAMES];
	char names[PP_MAX_KEPT_BYTES];    /* one after the other */
	int positions[PP_MAX_KEPT_NAMES]; /* of the sorted pairs, without repeated names */
	int unique;
} PpNameOrder;

/* event_object.c */
extern bool pp_names_are_kept(const PpNameOrder *kept, const PpPair *pairs, int n);
extern Jsonb *pp_object_make(PpNameOrder *kept, bool are_kept, const PpPair *pairs, int n);

/* event_json.c */
extern Jsonb *pp_json_parse_object(const char *text, size_t len);

#endif /* PP_EVENT_INTERNAL_H */
