/*
 * stream_id.h
 *		The ID of a stream entry: milliseconds and a sequence number.
 */
#ifndef PP_STREAM_ID_H
#define PP_STREAM_ID_H

#include "postpipe.h"
#include "datatype/timestamp.h"

typedef struct PpId
{
	uint64 ms;
	uint64 seq;
} PpId;

#define PP_ID_MAX ((PpId){PG_UINT64_MAX, PG_UINT64_MAX})
#define PP_ID_LEN 42 /* two 20-digit numbers, a dash, the terminating zero */

extern bool pp_id_parse(const char *str, size_t len, PpId *id);
extern int pp_id_print(PpId id, char *buf);
extern int pp_id_compare(PpId a, PpId b);
extern PpId pp_id_max(PpId a, PpId b);
extern PpId pp_id_previous(PpId id);
extern PpId pp_id_next(PpId id);
extern PpId pp_id_at_time(TimestampTz at);
extern TimestampTz pp_id_time(PpId id);
extern double pp_id_age(PpId id, TimestampTz now);

static inline bool
pp_id_is_zero(PpId id)
{
	return id.ms == 0 && id.seq == 0;
}

#endif /* PP_STREAM_ID_H */
