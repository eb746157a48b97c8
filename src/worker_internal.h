/*
 * worker_internal.h
 *		A worker's state, shared by the files below, consume_apply.c, owner*.c and handover.c alone.
 */
#ifndef PP_WORKER_INTERNAL_H
#define PP_WORKER_INTERNAL_H

#include "apply.h"
#include "backoff.h"
#include "compat.h"
#include "redis.h"
#include "shmem.h"
#include "stream.h"

/* The IDs of batches that are committed, to be acknowledged when `lsn` is durable. */
typedef struct PpAckList
{
	PpId *ids;
	int n;
	int size; /* of ids */
	XLogRecPtr lsn;
	int64 sequence; /* of the ledger's row */
} PpAckList;

/* What is done between two batches; see chores.c. */
typedef struct PpChores
{
	bool begun;
	char *retention;    /* of dead letters; NULL: they are kept */
	PpSteady retry_at;  /* when some are to be tried, whatever their rows say; unset: never */
	PpSteady expire_at; /* when some may be too old */
	PpBackoff backoff;  /* after a retry that says nothing of the letters */
} PpChores;
/* Taking over what is pending for others (takeover.c); worker 1 alone does it. */
typedef struct PpTakeover
{
	MemoryContext cxt;  /* holds the names */
	bool claim_foreign; /* this and the two below: as the options and settings say */
	int claim_idle;     /* in ms */
	int64 reap_idle;    /* in ms; -1: none is deleted */
	PpString *foreign;  /* consumers that are being gone through, page by page … */
	int num_foreign;
	int current;       /* … this one … */
	PpId after;        /* … from the first after this ID on */
	int64 claimed;     /* since the first page of the first one */
	PpSteady claim_at; /* when foreign consumers are to be looked at, or looked at further */
	PpSteady reap_at;  /* when consumers that nobody uses are to be deleted */
	bool refused;      /* Redis does not let us: said already */
} PpTakeover;

/* Keeping the ledger small, in rounds of these steps; see compact.c. */
typedef enum PpCompactStep
{
	PP_COMPACT_CLOSE,
	PP_COMPACT_MERGE,
	PP_COMPACT_PRUNE
} PpCompactStep;

typedef struct PpCompact
{
	MemoryContext cxt; /* for one step */
	int64 retention_ms;
	int every_ms;
	PpCompactStep step; /* the next one */
	uint64 batches;     /* of the pipeline, when the last round began … */
	uint64 found;       /* … and this one … */
	uint64 pruned;      /* … and the last one that pruned … */
	uint64 whole;       /* … and the last one that saw the whole ledger */
	PpSteady due_at;    /* when the next one of these is due */
	PpId from;          /* a round sees what lies from here on; 0-0: the whole ledger */
	bool more;          /* there was more to do */
	PpId verified;      /* up to here, nothing that is left in the stream was passed over … */
	bool passed_over;   /* … and after it something was */
} PpCompact;

/* What a worker has seen of its stream; see watch.c. */
typedef struct PpWatch
{
	PpStreamSeen stream;
	PpId looked;        /* where the group stood when the stream was looked at last … */
	PpSteady look_at;   /* … which is due again then */
	bool looking;       /* and was asked for with the read that is under way */
	bool owed;          /* there was something new since */
	bool counted;       /* the group has told how many entries it has read */
	PpId delivered;     /* the last entry that was delivered, as far as is known */
	PpId again;         /* up to here, what comes is given again, if the group was set back */
	int64 position;     /* entries ever added up to there; -1: not known */
	int64 consumers;    /* of the group */
	uint64 received;    /* by all workers, and … */
	uint64 corrections; /* … how often that was corrected, when it was asked last */
	uint64 reads;       /* reads up to this number may have been given what … */
	int64 entries_read; /* … the group had read then; 0 reads: nothing is waited for */
} PpWatch;

typedef struct PpWorker
{
	MemoryContext cxt;
	MemoryContext error_cxt; /* for what a transaction that failed has said */
	PpExtension ext;
	PpPipeline *def;
	PpPipe *pipe;
	PpApply *apply;
	PpRedis *redis;
	PpRedisUrl url;
	bool was_connected; /* once, at least */
	PpBackoff backoff;
	char consumer[PP_CONSUMER_LEN];
	PpBatch batches[2]; /* one in hand, one being read; see set_reply_target() */
	int batch_size;
	size_t batch_bytes;
	int count;           /* entries to ask for, fewer when they are large */
	PpAckList ack_old;   /* committed, XACK not sent yet: what goes first … */
	PpAckList ack_new;   /* … and what came after it, the last batch at least */
	int acks_in_flight;  /* replies that have not come: to an XACK, to the number behind it … */
	PpSteady acks_since; /* … the first of them sent then */
	PpSteady failed_at;  /* end of the last back-off */
	bool group_open;     /* pp_consume_open() is done */
	bool reading_ahead;  /* a batch comes that would be gone with the connection */
	bool reloaded;       /* whether that is still the right one is to be seen */
	PpSteady no_group_at;
	bool recovered;     /* own pending entries are done since the last connect */
	PpSteady rescan_at; /* when they are to be looked after again */
	bool went_back;     /* Redis knows of batches that the database has not … */
	bool begin_known;
	PpBase begin;        /* … and, perhaps, what the epoch began with that read them */
	bool redis_is_older; /* than when we wrote the owner key last */
	PpSteady looked_at;  /* this and below: see repair.c */
	PpSteady checked_at;
	int64 checked_added;
	PpWatch watch;
	char *owner_key; /* the name of the key; this and below: see owner.c */
	char *owner;     /* our name in it */
	char nonce[PP_NONCE_LEN];
	bool client_noted;      /* the key names this connection */
	PpSteady owner_seen_at; /* the connection of another owner */
	int64 owner_turns;
	int64 turns;            /* of our own, that Redis has counted */
	PpSteady owner_gone_at; /* that connection */
	PpChores chores;        /* of worker 1 */
	bool mirror_complained;
	PpTakeover takeover;
	PpCompact compact; /* of worker 1 */
} PpWorker;

/* worker.c */
PP_NORETURN extern void pp_worker_stop(PpWorker *w, const char *code, const char *reason);
PP_NORETURN extern void pp_worker_outdated(PpWorker *w);
extern void pp_worker_disconnect(PpWorker *w);
extern void pp_worker_look_around(PpWorker *w);
extern void pp_worker_open_ledger(PpWorker *w);
extern bool pp_worker_prepare(PpWorker *w);
extern bool pp_worker_transact(PpWorker *w, PpWork work, void *arg);
extern bool pp_worker_try(PpWorker *w, PpWork work, void *arg);

/* worker_failure.c */
extern void pp_worker_redis_failed(PpWorker *w, const PpRedisError *error);
extern void pp_worker_well(PpWorker *w, bool idle);
extern void pp_worker_apply_failed(PpWorker *w, PpOutcome outcome, const PpEntryError *error);
extern void pp_worker_spare_server(PpWorker *w);

/* acknowledge.c */
extern void pp_acks_report(PpWorker *w);
extern void pp_acks_send(PpWorker *w);
extern void pp_acks_age(PpWorker *w);
extern void pp_acks_keep(PpWorker *w, const PpBatch *batch, XLogRecPtr lsn);
extern bool pp_acks_receive(PpWorker *w, PpRedisError *error);

/* consume.c */
extern PpEntryError *pp_consume_normalize(PpWorker *w, PpBatch *batch);
extern void pp_consume_apply(PpWorker *w, PpBatch *batch);
extern bool pp_consume_pending(PpWorker *w, PpRedisError *error);
extern bool pp_consume_settle(PpWorker *w, PpBatch *batch, PpRedisError *error);
extern void pp_consume_begin_replies(PpWorker *w);
extern PpReply *pp_consume_receive_any(PpWorker *w, PpRedisError *error);
extern bool pp_consume_receive_facts(PpWorker *w, PpStreamFacts *facts, PpRedisError *error);
extern bool pp_consume_receive_loose_facts(PpWorker *w, PpStreamFacts *facts, PpRedisError *error);
extern bool pp_consume_receive(PpWorker *w, PpReplyType type, PpReply **reply, PpRedisError *error);
extern void pp_consume(PpWorker *w, PpRedisError *error);

/* open.c */
extern bool pp_consume_open(PpWorker *w, PpRedisError *error);
extern bool pp_open_get_facts(PpWorker *w, PpStreamFacts *facts, PpRedisError *error);
extern void pp_consume_not_alone(PpWorker *w);

/* identity.c */
extern bool pp_identity_find_cause(PpWorker *w, const PpStreamFacts *facts, const char **cause,
								   PpRedisError *error);

/* repair.c */
extern bool pp_repair(PpWorker *w, const PpStreamFacts *facts, int64 *position,
					  PpRedisError *error);
extern bool pp_repair_is_wanted(PpWorker *w);
extern bool pp_repair_has_shrunk(PpWorker *w, const PpStreamFacts *facts, bool *shrunk,
								 PpRedisError *error);
extern bool pp_repair_get_pending(PpWorker *w, PpId after, PpId last, PpBatch *page,
								  PpRedisError *error);

/* watch.c */
extern void pp_watch_begin(PpWorker *w, const PpStreamFacts *facts, int64 position);
extern void pp_watch_join(PpWorker *w);
extern bool pp_watch_is_other(const PpWorker *w, const PpStreamFacts *facts);
extern void pp_watch_send(PpWorker *w);
extern bool pp_watch_receive(PpWorker *w, PpRedisError *error);
extern long pp_watch_due_ms(const PpWorker *w, long max_ms);
extern bool pp_watch_out_of_future(PpWorker *w, PpStreamFacts *facts, PpRedisError *error);
extern bool pp_watch_consumer(PpWorker *w, PpRedisError *error);
extern void pp_watch_delivered(PpWorker *w, int n, PpId first, PpId last);

/* watch_lost.c */
extern void pp_watch_lost(PpWorker *w, PpId after, const PpStreamFacts *facts, int64 entries);
extern void pp_watch_lost_meanwhile(PpWorker *w, const PpStreamFacts *facts);
extern bool pp_watch_is_alone(const PpWorker *w);
extern bool pp_watch_can_wait(const PpWorker *w);
extern void pp_watch_set_position(PpWorker *w, const PpStreamFacts *facts, int64 position);
extern bool pp_watch_look_for_trimmed(PpWorker *w, const PpStreamFacts *facts);

/* chores.c */
extern void pp_chores_configure(PpWorker *w);
extern void pp_chores_run(PpWorker *w);
extern long pp_chores_due_ms(PpWorker *w, long max_ms);

/* compact.c */
extern void pp_compact_configure(PpWorker *w);
extern bool pp_compact_run(PpWorker *w, PpRedisError *error);
extern long pp_compact_due_ms(PpWorker *w, long max_ms);

/* mirror.c */
extern bool pp_mirror_letters(PpWorker *w, const PpBatch *batch, PpRedisError *error);

/* takeover.c */
extern void pp_take_over_configure(PpWorker *w);
extern bool pp_take_over(PpWorker *w, PpRedisError *error);
extern bool pp_take_over_is_due(const PpWorker *w);
extern int pp_take_over_due_ms(const PpWorker *w, int limit_ms);

#endif /* PP_WORKER_INTERNAL_H */
