/*
 * inflight.h
 *		What a worker is applying, kept where it outlives a crash of the process.
 */
#ifndef PP_INFLIGHT_H
#define PP_INFLIGHT_H

#include "stream_id.h"

/* Where the entries come from that are applied; what is suspected is kept for each of them. */
typedef enum PpInflightSource
{
	PP_INFLIGHT_STREAM, /* Redis */
	PP_INFLIGHT_RETRY,  /* the dead-letter table */
	PP_INFLIGHT_SOURCES
} PpInflightSource;

extern void pp_inflight_open(const char *pipeline, int worker, uint64 definition);
extern void pp_inflight_remove(Oid dboid, const char *pipeline);
extern void pp_inflight_source(PpInflightSource source);
extern void pp_inflight_set(PpId first, PpId last, int n);
extern void pp_inflight_clear(void);
extern void pp_inflight_committed(void);
extern int pp_inflight_crashes_in_a_row(void);
extern bool pp_inflight_suspects_exist(void);
extern bool pp_inflight_is_suspect(PpId id);
extern int pp_inflight_crashes(PpId id, int *alone);
extern void pp_inflight_suspects_settled(void);

#endif /* PP_INFLIGHT_H */
