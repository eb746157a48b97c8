/*
 * stream_group.h
 *		The consumers of a group: who they are, taking over what is pending for them, deleting them.
 */
#ifndef PP_STREAM_GROUP_H
#define PP_STREAM_GROUP_H

#include "redis.h"

#define PP_CLAIM_PAGE 100  /* pending entries that one command looks at */
#define PP_REAP_PAGE  1000 /* consumers that one command looks at */

/* A line of XINFO CONSUMERS. Numbers that are not known are -1. */
typedef struct PpConsumer
{
	PpString name; /* with a zero after it */
	int64 pending;
	int64 idle_ms;     /* since it last asked for anything */
	int64 inactive_ms; /* since it last got anything; Redis tells it from 7.2 on */
} PpConsumer;

/* A line of XPENDING's extended form. */
typedef struct PpPending
{
	PpId id;
	PpString consumer;
	int64 idle_ms;
	int64 deliveries;
} PpPending;

/* What became of a page of pending entries. */
typedef struct PpClaimed
{
	int64 listed;  /* how many there were; fewer than were asked for: it was the last page */
	int64 claimed; /* of them, handed over */
	PpId last;     /* where the next page begins after */
	PpId *gone;    /* of them, not in the stream any more: these stay where they are */
	int num_gone;
} PpClaimed;

/* What became of a consumer that was to be deleted. */
typedef struct PpReaped
{
	int64 idle_ms; /* -1: it was not there any more */
	int64 pending;
	bool reaped;
} PpReaped;

extern void pp_stream_send_consumers(PpRedis *conn, const char *stream, const char *group);
extern bool pp_stream_parse_consumers(const PpReply *reply, PpConsumer **consumers, int *n,
									  PpRedisError *error);
extern bool pp_stream_parse_pending_line(const PpReply *reply, PpPending *pending,
										 PpRedisError *error);
extern void pp_stream_send_claim(PpRedis *conn, const char *stream, const char *group,
								 const char *to, const PpString *from, int64 min_idle_ms,
								 PpId after, int count);
extern bool pp_stream_parse_claim(const PpReply *reply, PpClaimed *claimed, PpRedisError *error);
extern void pp_stream_send_reap(PpRedis *conn, const char *stream, const char *group,
								int64 min_idle_ms, const PpString *names, int n);
extern bool pp_stream_parse_reap(const PpReply *reply, int n, PpReaped *reaped,
								 PpRedisError *error);

#endif /* PP_STREAM_GROUP_H */
