/*
 * event_object.h
 *		An object: the names and values that an event has, or an envelope.
 */
#ifndef PP_EVENT_OBJECT_H
#define PP_EVENT_OBJECT_H

#include "batch.h"

#define PP_MAX_KEPT_NAMES 64
#define PP_MAX_KEPT_BYTES 2048

/*
 * The order of an object's names, kept from the one before: producers write the same names in the same
 * order again and again, and to sort them takes longer than to compare them.
 */
typedef struct PpNameOrder
{
	uint64 name_set; /* see PpObject */
	int n;           /* pairs; 0: none is kept */
	size_t lengths[PP_MAX_KEPT_NAMES];
	char names[PP_MAX_KEPT_BYTES];    /* one after the other */
	int positions[PP_MAX_KEPT_NAMES]; /* of the sorted pairs, without repeated names */
	int unique;
} PpNameOrder;

/* Where a name is in objects with the same names. */
typedef struct PpPlace
{
	uint64 name_set;
	int position; /* -1: it is not there */
} PpPlace;

/* Where a text is looked for in an entry: event ->> 'name', or envelope ->> 'name'. */
typedef struct PpSource
{
	const char *name;
	int len;
	bool in_envelope;
	PpPlace place;
} PpSource;

extern bool pp_names_are_kept(const PpNameOrder *kept, const PpPair *pairs, int n);
extern PpObject *pp_object_make(PpNameOrder *kept, bool are_kept, const PpPair *pairs, int n);
extern PpObject *pp_object_of_jsonb(const Jsonb *jb);
extern Size pp_object_size(const PpObject *object);
extern Jsonb *pp_object_jsonb(const PpObject *object);
extern Jsonb *pp_array_jsonb(const PpPair *pairs, int n);
extern const PpPair *pp_object_find(const PpObject *object, const char *name, size_t len,
									PpPlace *place);
extern PpString pp_pair_text(const PpPair *pair);
extern const PpPair *pp_source_find(PpSource *source, const PpEntry *entry, bool empty_is_null,
									bool *in_text);

#endif /* PP_EVENT_OBJECT_H */
