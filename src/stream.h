/*
 * stream.h
 *		The stream commands: send them, understand their replies.
 */
#ifndef PP_STREAM_H
#define PP_STREAM_H

#include "redis.h"

/* What XINFO STREAM, XINFO GROUPS and XPENDING say. Numbers that are not known are -1. */
typedef struct PpStreamFacts
{
	bool key_exists;
	bool group_exists;
	int64 length;
	int64 added;
	PpId last_generated;
	PpId first_entry; /* 0-0: the stream is empty */
	PpId last_entry;  /* likewise */
	PpId last_delivered;
	PpId max_deleted;   /* 0-0: no entry was deleted one by one, or 6.2 */
	int64 entries_read; /* by the group, as Redis counts */
	int64 consumers;    /* of the group */
	int64 reported_lag;
	int64 undelivered; /* what is really left to deliver, where that is provable */
	int64 pending;
	PpId oldest_pending; /* 0-0: none */
} PpStreamFacts;

#define PP_STREAM_FACT_REPLIES  5
#define PP_STREAM_LOOSE_REPLIES 3

extern void pp_stream_send_read(PpRedis *conn, const char *stream, const char *group,
								const char *consumer, const PpId *own_after, int count,
								int block_ms);
extern bool pp_stream_unexpected(PpRedisError *error, const char *command);
extern bool pp_stream_parse_id(const PpReply *reply, PpId *id);
extern bool pp_stream_parse_read(const PpReply *reply, PpBatch *batch, PpRedisError *error);
extern bool pp_stream_parse_range(const PpReply *reply, PpBatch *batch, PpRedisError *error);
extern void pp_stream_print_range(PpId after, PpId last, char *from, char *to);
extern void pp_stream_send_range(PpRedis *conn, const char *stream, PpId after, PpId last,
								 int count);
extern void pp_stream_send_pending(PpRedis *conn, const char *stream, const char *group, PpId after,
								   PpId last, int count);
extern void pp_stream_send_ack(PpRedis *conn, const char *stream, const char *group,
							   const PpId *ids, int n);
extern bool pp_stream_parse_pending(const PpReply *reply, PpId *id, PpRedisError *error);
extern void pp_stream_send_create_group(PpRedis *conn, const char *stream, const char *group,
										const char *start_id);

/* stream_facts.c */
extern void pp_stream_send_group(PpRedis *conn, const char *stream);
extern bool pp_stream_parse_group(const PpReply *reply, const char *group, PpStreamFacts *facts,
								  PpRedisError *error);
extern void pp_stream_send_facts(PpRedis *conn, const char *stream, const char *group);
extern void pp_stream_send_loose_facts(PpRedis *conn, const char *stream, const char *group);
extern bool pp_stream_parse_loose_facts(PpReply *const *replies, const char *group,
										PpStreamFacts *facts, PpRedisError *error);
extern bool pp_stream_is_gone_up_to(const PpStreamFacts *facts, PpId id);
extern bool pp_stream_is_inside(const PpStreamFacts *facts);
extern void pp_stream_send_count(PpRedis *conn, const char *stream, PpId after, PpId last, int max);
extern bool pp_stream_parse_count(const PpReply *reply, int64 *n, PpId *last, PpRedisError *error);
extern bool pp_stream_parse_facts(PpReply *const *replies, const char *group, PpStreamFacts *facts,
								  PpRedisError *error);

#endif /* PP_STREAM_H */
