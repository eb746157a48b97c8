/*
 * postpipe.h
 *		Names and limits that every module shares.  The modules, in layers: docs/architecture.md.
 */
#ifndef POSTPIPE_H
#define POSTPIPE_H

#include "postgres.h"

#define PP_VERSION   "0.1.0"
#define PP_EXTENSION "postpipe"

#define PP_PIPELINE_LEN    49 /* a pipeline's name: at most 48 bytes, checked by the table */
#define PP_STREAM_LEN      256 /* a stream key or a consumer group, checked when a pipeline is made */
#define PP_CONSUMER_LEN    128 /* postpipe:<system identifier>:<database>:<pipeline>:<n> */
#define PP_NONCE_LEN       33  /* 128 random bits in hexadecimal, and the zero */
#define PP_ADDRESS_LEN     64  /* an address in numbers */
#define PP_REASON_LEN      256 /* a reason in words; longer text is cut at a character */
#define PP_REASON_CODE_LEN 32  /* a stable code such as redis_loading */
/*
 * Memory contexts that are filled and reset with each batch keep a first block of this size: memory
 * given back and taken anew is cleared by the kernel page by page each time.
 */
#define PP_BATCH_CONTEXT_SIZES      4 * 1024 * 1024, 1024 * 1024, 8 * 1024 * 1024
#define PP_MAX_DATABASES            64 /* databases that can have a supervisor at once */
#define PP_MAX_PIPELINES            128 /* pipelines of all databases that have numbers in shared memory */
#define PP_MAX_WORKERS_PER_PIPELINE 64

/* The pipeline that exists without a row in postpipe_pipeline. */
#define PP_POSTS_PIPELINE "posts"
#define PP_POSTS_STREAM   "stream:posts:parsed"
#define PP_POSTS_GROUP    "post_persist_workers"
#define PP_POSTS_TARGET   "public.posts"

/*
 * States of a process or a pipeline.  The words are the SQL surface's; see pp_state_name().
 */
typedef enum PpState
{
	PP_STATE_STOPPED = 0,
	PP_STATE_STARTING,
	PP_STATE_RUNNING,
	PP_STATE_IDLE,
	PP_STATE_PAUSED,
	PP_STATE_RETRYING,
	PP_STATE_FAILED,
	PP_STATE_DISARMED,
	PP_STATE_FENCED,
	PP_STATE_WAITING
} PpState;

#endif /* POSTPIPE_H */
