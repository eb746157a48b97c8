/*
 * shmem.h
 *		Shared memory: a slot per process, a slot per pipeline.
 *
 * Locks (docs/architecture.md has the table):
 *	- PpShared.lock covers which slots are in use and by whom: every field marked (R).  It is
 *	  taken before a slot's own lock, never after it.
 *	- PpProc.lock and PpPipe.lock cover all other fields of their slot, but for the counters.
 *	- The counters are atomics, added to without a lock.
 * A lock is held for copying a few fields, never across I/O, a wait or a catalog access.
 *
 * Everything here is plain data that can be made again: after a crash the server zeroes it.
 */
#ifndef PP_SHMEM_H
#define PP_SHMEM_H

#include "histogram.h"
#include "steady.h"
#include "stream_id.h"

#include "port/atomics.h"
#include "storage/condition_variable.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "utils/timestamp.h"

typedef enum PpProcKind
{
	PP_PROC_LAUNCHER,
	PP_PROC_SUPERVISOR,
	PP_PROC_WORKER
} PpProcKind;

typedef struct PpLastError
{
	char message[PP_REASON_LEN];
	char sqlstate[6];
	TimestampTz at; /* 0: none yet */
} PpLastError;

/* What a process is doing, and why. */
typedef struct PpStatus
{
	PpState state;
	char reason_code[PP_REASON_CODE_LEN];
	char reason[PP_REASON_LEN];
	TimestampTz changed_at;
} PpStatus;

/* What postpipe_workers shows of a process and only that process writes. */
typedef struct PpProcInfo
{
	TimestampTz backend_start;
	TimestampTz last_read_at;
	TimestampTz last_commit_at;
	TimestampTz last_ack_at;
	TimestampTz batch_started_at; /* 0: no batch in hand */
	TimestampTz next_attempt_at;
	int batch_entries;
	int64 batch_bytes;
	PpId batch_first_id;
	PpId batch_last_id;
	int64 redis_client_id;
	int64 memory_bytes;
	char redis[PP_REASON_LEN]; /* the URL without the password */
	char redis_role[16];
	char redis_version[32];
	char consumer[PP_CONSUMER_LEN];
	char owner[NAMEDATALEN]; /* the role that the statement runs as */
	PpLastError last_error;
} PpProcInfo;

/* A batch that a worker has received and not committed. */
typedef struct PpHeld
{
	uint64 ticket; /* 0: none */
	PpId first;
	PpId last;
} PpHeld;

/* A process: the launcher, a supervisor, a worker. */
typedef struct PpProc
{
	LWLock lock;
	bool in_use;                    /* (R) */
	uint32 generation;              /* (R) changes with each use of the slot */
	PpProcKind kind;                /* (R) */
	Oid dboid;                      /* (R) */
	char datname[NAMEDATALEN];      /* (R) */
	char pipeline[PP_PIPELINE_LEN]; /* (R) */
	int pipe_no;                    /* (R) */
	int worker;                     /* (R) number in its pipeline, from 1 */
	int pid;                        /* (R) 0: registered, but not attached yet */
	Latch *latch;                   /* (R) in shared memory as well; NULL with pid 0 */
	PpSteady stop_asked_at;         /* (R) */
	bool stop;                      /* (R) asked to stop when the batch in hand is done */
	PpStatus status;
	PpProcInfo info;
	PpHeld held[2]; /* this and below: covered by the lock of its pipeline; see held.c */
	bool parked;
	uint64 reading;       /* number of the read that is under way; 0: none */
	int64 unacknowledged; /* entries that are committed and still pending; -1: not known now */
} PpProc;

typedef enum PpCounter
{
	PP_COUNT_READ,
	PP_COUNT_APPLIED,
	PP_COUNT_CONFLICTED,
	PP_COUNT_FILTERED,
	PP_COUNT_DEDUPLICATED,
	PP_COUNT_DEAD,
	PP_COUNT_RETRIED,
	PP_COUNT_LOST,
	PP_COUNT_INGESTED,
	PP_COUNT_BYTES,
	PP_COUNT_BATCHES,
	PP_COUNT_RECONNECTS,
	PP_COUNT_RESTARTS,
	PP_COUNT_NUM
} PpCounter;

/* How far a stream and its group have come; equal ones are of one moment, for all that counts. */
typedef struct PpStanding
{
	PpId delivered; /* by the group; 0-0: not looked at */
	int64 added;    /* entries-added of the stream */
	int64 length;
} PpStanding;

/* What was last measured in Redis, by the supervisor. -1: unknown. */
typedef struct PpMeasured
{
	TimestampTz at;    /* 0: never */
	PpSteady taken_at; /* the same moment, to be compared with others */
	int64 pending;
	int64 lag;
	PpStanding standing;
	int64 consumers; /* of the group */
	int64 bytes;     /* that the stream takes in Redis */
	double lag_seconds;
	PpId oldest_pending;  /* 0-0: none, or unknown */
	int64 unacknowledged; /* of the pending ones, so many are settled already */
	uint64 settled; /* pp_pipe_settled() just before and just after: equal if all stood still */
	bool still;
} PpMeasured;

/* What was seen of a stream: that it is another one shows by these. */
typedef struct PpStreamSeen
{
	PpId generated;
	int64 added;
	int64 length;
	PpId first;
} PpStreamSeen;

#define PP_RATE_SAMPLES 64

typedef struct PpRateSample
{
	PpSteady at;
	uint64 settled;
} PpRateSample;

#define PP_ERROR_CODES 16 /* the last one is for all that have no room */

/* Entries that died with this SQLSTATE. */
typedef struct PpErrorCount
{
	int sqlstate; /* packed; 0: any other */
	uint64 entries;
} PpErrorCount;

/* Entries that were applied or found to fail alone. */
typedef struct PpDecided
{
	int n;
	int failed;
} PpDecided;

/* The last ones of a pipeline; see threshold.c. */
typedef struct PpWindow
{
	bool known;
	PpDecided now;
	PpDecided before;
} PpWindow;

/* Does Redis, with the next entry that it delivers, count what was trimmed unread before that? */
typedef enum PpRecount
{
	PP_RECOUNT_UNKNOWN,
	PP_RECOUNT_YES, /* 8 */
	PP_RECOUNT_NO,  /* 7.0 */
} PpRecount;

/* How far a group's entries-read is off. */
typedef struct PpCorrection
{
	bool known;
	int64 by;
	uint64 run;        /* of which life of Redis; 0: not known */
	uint64 times;      /* how often it was set */
	PpId gap;          /* entries were gone right after this one then; 0-0: none were */
	PpRecount recount; /* … and what Redis does about that, in that life */
	int64 position;    /* entries ever added up to there */
	uint64 received;   /* … and new entries that workers had received, once … */
	uint64 reads;      /* … reads up to this number have ended; 0: they have */
} PpCorrection;

/* A pipeline of one database. */
typedef struct PpPipe
{
	LWLock lock;
	bool in_use;                /* (R) */
	uint32 generation;          /* (R) */
	Oid dboid;                  /* (R) */
	char name[PP_PIPELINE_LEN]; /* (R) */
	TimestampTz since;          /* start of the counters, for the views */
	pg_atomic_uint64 counters[PP_COUNT_NUM];
	uint64 base[PP_COUNT_NUM]; /* what the counters were at `since`: views show what came after */
	ConditionVariable settled_cv; /* broadcast when a worker has committed */
	int workers_wanted;
	int commit_level;         /* synchronous_commit in this database, but for the option */
	PpStatus status;          /* what the supervisor says: paused, waiting, running … */
	bool opened;              /* worker 1 has seen to owner, epoch, group; see held.c */
	char nonce[PP_NONCE_LEN]; /* of the owner key, once worker 1 has written it */
	bool fenced;              /* the group is another pipeline's, and nothing of it is in hand */
	uint64 opening;           /* how often it was opened */
	uint64 last_ticket;
	bool rescan;    /* worker 1 has pending entries that it has not received: it is to read them */
	bool exclusive; /* the group has no consumers but this pipeline's; set by worker 1 */
	PpId accounted; /* up to here no entry was missing; 0-0: not known; worker 1's own */
	int max_consumers;       /* of the group, when they are all of this pipeline */
	uint64 has_consumer;     /* by worker: it has found or made its own */
	bool consumer_gone;      /* somebody deleted one, with what was pending for it */
	bool carried;            /* an entry has come that an older epoch has settled */
	PpStanding looked;       /* when a worker last saw that no entry is missing, or recorded it */
	PpStreamSeen stream;     /* by worker 1, when it looked last; this and below: see watch*.c */
	PpCorrection correction; /* of what Redis says that the group has read; see trimmed.c */
	uint64 received;         /* new entries, by all workers, since the slot is in use */
	uint64 reads;            /* reads of new entries, likewise */
	bool offset_known;
	int64 offset; /* entries-read less this, when they agreed */
	bool seen_known;
	PpId seen;    /* up to here everything was delivered to us */
	uint64 skips; /* how often an entry was skipped; covered by the lock of pp_pipeline_lock() */
	PpId mark;    /* highest ID that any worker received; 0-0: not known */
	PpId last_id; /* highest ID settled since start */
	TimestampTz next_retry_at; /* of a dead letter, as its row says, as far as is known; 0: none */
	TimestampTz last_read_at;
	TimestampTz last_applied_at;
	TimestampTz last_ack_at;
	PpLastError last_error;
	PpWindow window;
	PpMeasured measured;
	PpRateSample samples[PP_RATE_SAMPLES]; /* a ring, the newest at sample_next - 1 */
	int sample_next;
	int sample_count;
	PpHistograms histograms;
	PpErrorCount errors[PP_ERROR_CODES];
	int num_errors;
} PpPipe;

/* A host that was looked up (redis_address.c): in postpipe.redis_url, or in a pipeline's own server. */
typedef struct PpKnownHost
{
	char host[256];
	char address[PP_ADDRESS_LEN]; /* at which the last log-in succeeded; '': none */
	PpSteady asked_at;            /* a question that was not answered in time; unset: none */
} PpKnownHost;

#define PP_KNOWN_HOSTS \
	64 /* each in a place that its name gives; two of one place forget each other */

#define PP_EVENTS 256

/* A change of state, or an error, of a process of ours; see events.c. */
typedef struct PpEvent
{
	TimestampTz at; /* 0: none */
	Oid dboid;      /* InvalidOid: of the launcher */
	int pid;
	bool is_error;
	PpState state; /* of a change … */
	char sqlstate[6];
	char pipeline[PP_PIPELINE_LEN]; /* '': of no pipeline */
	char reason_code[PP_REASON_CODE_LEN];
	char message[PP_REASON_LEN];
	char hint[PP_REASON_LEN];
	int64 repeated;
} PpEvent;

typedef struct PpShared
{
	LWLock events_lock;        /* covers events and next_event, nothing else */
	PpEvent events[PP_EVENTS]; /* a ring */
	int next_event;
	LWLock lock;
	ConditionVariable state_cv; /* broadcast when a status, or a slot's use, has changed */
	int tranche;
	int num_procs;
	PpKnownHost known_hosts[PP_KNOWN_HOSTS]; /* (R) */
	Oid step_aside[PP_MAX_DATABASES];        /* (R) databases to stay out of … */
	int step_aside_pid[PP_MAX_DATABASES];    /* (R) … for as long as this backend lives */
	PpPipe pipes[PP_MAX_PIPELINES];
	PpProc procs[FLEXIBLE_ARRAY_MEMBER]; /* [0] is the launcher */
} PpShared;

extern PpShared *pp_shared; /* NULL: the library was not preloaded */
extern PpProc *pp_my_proc;  /* NULL in ordinary backends */

extern void pp_shmem_init(void);
extern void pp_require_preload(void);
extern const char *pp_state_name(PpState state);
extern bool pp_step_aside_set(Oid dboid, bool set);
extern bool pp_step_aside_wanted(Oid dboid);

/* shmem_proc.c */
extern PpProc *pp_proc_reserve(PpProcKind kind, Oid dboid, const char *datname,
							   const char *pipeline, int pipe_no, int worker);
extern void pp_proc_release(PpProc *proc, uint32 generation);
extern bool pp_proc_give_up(PpProc *proc, uint32 generation);
extern bool pp_proc_attach(int slot, uint32 generation);
extern bool pp_proc_must_stop(void);
extern void pp_proc_ask_stop(PpProc *proc);
extern void pp_proc_enforce_stop(Oid dboid, int deadline_ms);
extern int pp_proc_count(Oid dboid);
extern int pp_proc_worker_pid(Oid dboid, const char *pipeline, int worker);
extern int64 pp_proc_redis_client(int pid);
extern bool pp_supervisor_has_looked(Oid dboid);
extern void pp_wake_supervisor(Oid dboid);
extern void pp_wake_launcher(void);

/* shmem_pipe.c.  Why a pipeline has no slot while there is a supervisor: */
#define PP_PIPES_FULL_CODE "no_pipeline_slot"
#define PP_PIPES_FULL \
	CppAsString2(PP_MAX_PIPELINES) " pipelines of all databases are the most there can be; drop one"
extern int pp_pipe_count(Oid except_dboid);
extern PpPipe *pp_pipe_find(Oid dboid, const char *name);
extern PpPipe *pp_pipe_reserve(Oid dboid, const char *name);
extern void pp_pipe_release(PpPipe *pipe);

#endif /* PP_SHMEM_H */
