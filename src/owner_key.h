/*
 * owner_key.h
 *		The key in Redis that names the owner of a group.
 */
#ifndef PP_OWNER_KEY_H
#define PP_OWNER_KEY_H

#include "worker_internal.h"

/* What the key has. */
typedef struct PpOwnerKey
{
	char nonce[PP_NONCE_LEN]; /* '': there is no key */
	char owner[NAMEDATALEN + PP_PIPELINE_LEN];
	char instance[MAXPGPATH];
	int64 client;
	int64 turns;
	int64 sequences[PP_MAX_WORKERS_PER_PIPELINE + 1]; /* ours */
	bool others_began;                                /* to read the group */
	bool is_original; /* the owner, of which this database is a copy */
	bool begin_known; /* what our epoch began with is there */
	PpBase begin;
} PpOwnerKey;

extern char *pp_owner_key_name(const PpPipeline *p);
extern char *pp_owner_name(const PpPipeline *p);
extern const char *pp_owner_parse(const char *owner, Oid *dboid);
extern void pp_owner_write_instance(char *instance, Size size);
extern bool pp_owner_key_get(PpWorker *w, PpOwnerKey *key, PpRedisError *error);
extern bool pp_owner_key_write(PpWorker *w, const char *next_nonce, const PpOwnerKey *key,
							   PpRedisError *error);
extern bool pp_owner_key_note_connection(PpWorker *w, const PpOwnerKey *key, PpRedisError *error);

#endif /* PP_OWNER_KEY_H */
