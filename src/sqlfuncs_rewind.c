/*
 * sqlfuncs_rewind.c
 *		postpipe_rewind(): entries of a paused pipeline are read and applied again.
 *
 * A new epoch is opened, in which what was settled after the ID does not count, and the group is set
 * back to it.  A dead letter whose entry will be read again is discarded: else both would be applied.
 * One whose entry is not in the stream any more, or is another one by now, stays as it is: it is all
 * that is left of it.
 *
 * A stream that was made anew while the pipeline was paused is not set back: what is gone of it was in no epoch yet,
 * and only a worker tells another life of a stream from an older state of it.
 *
 * What the group had not delivered and is gone from the stream, or lies before the ID, is lost in the epoch that
 * ends.  The new one begins with what is there now: what goes until a worker reads is lost in it.
 */
#include "sqlfuncs.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#include "dead_letter.h"
#include "event.h"
#include "stream.h"
#include "stream_group.h"
#include "trimmed.h"

#define PAGE_HOLES  1000
#define COUNT_PAGE  1000
#define COUNT_BYTES ((size_t) 16 * 1024 * 1024)   /* … of fewer entries, when they are large */
#define MAX_REPLY   ((size_t) 1200 * 1024 * 1024) /* one entry is read whole, however large */

PG_FUNCTION_INFO_V1(postpipe_rewind);

/* How many of the entries that are there lie after `id`?  By pages of XRANGE, shorter ones of large entries. */
static int64
count_after(PpRedis *conn, const PpPipeline *p, const PpStreamFacts *facts, PpId id)
{
	int64 total = 0;
	size_t count = 1; /* until it is known how large they are */
	PpReply *reply;
	MemoryContext page;

	if (pp_id_compare(id, facts->last_entry) >= 0)
		return 0;
	if (pp_id_compare(id, facts->first_entry) < 0)
		return facts->length;
	page = AllocSetContextCreate(CurrentMemoryContext, "postpipe page", ALLOCSET_DEFAULT_SIZES);
	for (;;)
	{
		MemoryContextReset(page);
		pp_redis_reply_target(conn, page, PP_FUNCTION_REPLY);
		pp_redis_skim(conn, true);
		pp_stream_send_range(conn, p->stream, id, facts->last_entry, (int) count);
		reply = pp_function_reply(conn);
		if (reply->type != PP_REPLY_ARRAY)
			pp_function_fail(reply);
		if (reply->len == 0)
			break;
		total += (int64) reply->len;
		if (!pp_reply_is(&reply->items[reply->len - 1], PP_REPLY_ARRAY, 2) ||
			!pp_stream_parse_id(&reply->items[reply->len - 1].items[0], &id))
			pp_function_fail(reply);
		count = COUNT_BYTES / Max(pp_redis_skimmed(conn) / reply->len, 1);
		count = Max(Min(count, COUNT_PAGE), 1);
	}
	pp_redis_reply_target(conn, CurrentMemoryContext, PP_FUNCTION_REPLY);
	MemoryContextDelete(page);
	return total;
}

/*
 * How is the stream, and how many of its entries lie after `since`?  Both are of one moment: they are asked for
 * again when some of those were trimmed while they were counted, which would be in neither epoch.
 */
static PpStreamFacts
look(PpRedis *conn, const PpPipeline *p, PpId since, int64 *entries)
{
	PpStreamFacts facts = pp_function_facts(conn, p);

	for (;;)
	{
		PpStreamFacts later;

		*entries = count_after(conn, p, &facts, since);
		if (pp_stream_is_gone_up_to(&facts, since) || pp_id_compare(since, facts.last_entry) >= 0)
			return facts;
		later = pp_function_facts(conn, p);
		if (!pp_stream_is_gone_up_to(&later, since))
			return facts;
		facts = later;
	}
}

/* Has the group other consumers than workers of this pipeline?  Who may not ask cannot know. */
static bool
has_others(PpRedis *conn, const PpPipeline *p)
{
	PpConsumer *consumers;
	PpRedisError error;
	PpReply *reply;
	int n;

	pp_stream_send_consumers(conn, p->stream, p->group);
	reply = pp_function_reply(conn);
	return !pp_stream_parse_consumers(reply, &consumers, &n, &error) ||
		   pp_function_has_others(p, consumers, n);
}

/* What is pending up to `last`, as the holes of the epoch that begins. */
static void
get_holes(PpRedis *conn, const PpPipeline *p, PpId last, PpBase *base)
{
	PpId after = {0, 0};
	PpReply *reply;
	PpRedisError error;

	base->holes = palloc((PP_MAX_HOLES + PAGE_HOLES) * sizeof(PpId));
	do
	{
		pp_stream_send_pending(conn, p->stream, p->group, after, last, PAGE_HOLES);
		reply = pp_function_reply(conn);
		if (reply->type != PP_REPLY_ARRAY || reply->len > PAGE_HOLES)
			pp_function_fail(reply);
		for (size_t i = 0; i < reply->len; i++)
		{
			if (!pp_stream_parse_pending(&reply->items[i], &after, &error))
				pp_function_fail(&reply->items[i]);
			base->holes[base->num_holes++] = after;
		}
	} while (reply->len == PAGE_HOLES && base->num_holes < PP_MAX_HOLES);
}

/* What the epoch that begins does not account for: all up to `since`, but for what is pending. */
static PpBase
find_base(PpRedis *conn, const PpPipeline *p, const PpStreamFacts *facts, PpId since, int64 entries)
{
	PpBase base = {.settled = since};

	if (pp_id_compare(facts->last_generated, since) < 0)
		base.settled = facts->last_generated;
	get_holes(conn, p, base.settled, &base);
	if (base.num_holes >= PP_MAX_HOLES)
		return (PpBase){.added = -1};
	base.added = facts->added < 0 ? -1 : facts->added - entries - base.num_holes;
	return base;
}

/*
 * Which entries had the group not delivered, and are gone?  In a group of ours alone of which nothing
 * delivered is left, all that are not accounted for; else Redis's count tells.
 */
static PpTrimmed
find_lost(PpLedger *ledger, PpPipe *pipe, PpRedis *conn, const PpStreamFacts *facts,
		  const PpBase *pending)
{
	PpId top = pp_ledger_highest(ledger);
	int64 missing;

	if (ledger->shared || ledger->base < 0 || facts->added < 0 ||
		!pp_stream_is_gone_up_to(facts, facts->last_delivered) ||
		pending->num_holes >= PP_MAX_HOLES)
		return pp_trimmed_find(pipe, pp_redis_run(conn), facts, top);
	missing = pp_trimmed_expected(facts) - ledger->base - ledger->settled -
			  pp_ledger_count_unsettled(ledger, pending->holes, pending->num_holes);
	return pp_trimmed_range(facts, facts->last_delivered, Max(missing, 0));
}

/*
 * Where does the group stand?  One of ours alone was given no more than what is on record or pending, wherever
 * somebody has set it to.
 */
static PpId
find_delivered(const PpLedger *ledger, const PpStreamFacts *facts, const PpBase *pending)
{
	PpId last = pp_ledger_highest(ledger);

	if (ledger->shared || !ledger->base_known || pending->num_holes >= PP_MAX_HOLES)
		return facts->last_delivered;
	if (pending->num_holes > 0)
		last = pp_id_max(pending->holes[pending->num_holes - 1], last);
	return pp_id_compare(last, facts->last_delivered) < 0 ? last : facts->last_delivered;
}

/* A worker would begin an epoch, before it is known what the one that is open ends with. */
static void
require_known_stream(const PpLedger *ledger, const PpStreamFacts *facts)
{
	const char *name = ledger->pipeline;

	if (!pp_trimmed_fits(ledger, facts))
		ereport(
			ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("the stream of pipeline \"%s\" is not the one that was read", name),
			 errdetail("It was made anew, or is an older state of itself."),
			 errhint(
				 "Run postpipe_resume('%s') and postpipe_wait_state('%s', 'running'): then it is "
				 "known, and can be rewound after another pause.",
				 name, name)));
}

/* Ends the epoch that is open.  facts->last_delivered becomes what the group was really given last. */
static void
end_epoch(PpLedger *ledger, const PpPipeline *p, PpPipe *pipe, PpRedis *conn, PpStreamFacts *facts)
{
	bool others = has_others(conn, p);
	PpBase pending = {0};
	PpStoreScope store;
	PpTrimmed lost;

	get_holes(conn, p, facts->last_delivered, &pending);
	pp_store_begin(&store, ledger->ext);
	(void) pp_ledger_open(ledger);
	require_known_stream(ledger, facts);
	ledger->shared |= others; /* they may have come since a worker looked */
	facts->last_delivered = find_delivered(ledger, facts, &pending);
	lost = find_lost(ledger, pipe, conn, facts, &pending);
	if (lost.entries != 0)
		pp_ledger_record_lost(ledger, lost.first, lost.last, lost.entries, "trimmed_before_read");
	pp_ledger_free_plans(ledger);
	pp_store_end(&store);
}

/*
 * A rewind to an ID that the group has not reached: what lies before it will not be read, and `entries` after it
 * will.  Called when the epoch has ended, of which it says so.
 */
static void
pass_over(PpLedger *ledger, const PpPipeline *p, PpRedis *conn, const PpStreamFacts *facts,
		  PpId since, int64 entries)
{
	PpId top = pp_ledger_highest(ledger);
	PpId after = pp_id_max(top, facts->last_delivered);
	PpStoreScope store;
	int64 passed;

	if (pp_id_compare(since, after) <= 0)
		return;
	passed = count_after(conn, p, facts, after) - entries;
	if (passed <= 0)
		return;
	if (pp_id_compare(since, facts->last_entry) > 0)
		since = facts->last_entry;
	pp_store_begin(&store, ledger->ext);
	pp_ledger_record_lost(ledger, pp_id_next(after), since, passed, "passed_over_by_rewind");
	pp_ledger_free_plans(ledger);
	pp_store_end(&store);
	ereport(WARNING, (errmsg("pipeline \"%s\" will not read " INT64_FORMAT
							 " entries that were not delivered yet",
							 p->name, passed),
					  errdetail("They lie before the ID that it is set to; see postpipe_lost.")));
}

/* Notes what the one that is open now begins with: `entries` are there after `since`. */
static void
begin_epoch(PpLedger *ledger, PpRedis *conn, const PpPipeline *p, const PpStreamFacts *facts,
			PpId since, int64 entries)
{
	PpBase base = find_base(conn, p, facts, since, entries);
	PpStoreScope store;

	pp_store_begin(&store, ledger->ext);
	(void) pp_ledger_open(ledger);
	pp_ledger_set_base(ledger, &base);
	pp_store_end(&store);
}

/* Is the entry of a letter in the stream, as it was?  Everything is read in the current context. */
static bool
is_in_stream(PpLedger *ledger, const PpPipeline *p, PpRedis *conn, const PpLetterKey *key)
{
	PpStoreScope store;
	MemoryContext cxt = CurrentMemoryContext;
	PpEntry letter;
	PpEntry *entry;
	bool loaded;

	pp_store_begin(&store, ledger->ext);
	loaded = pp_dead_letter_load(ledger, cxt, key, &letter);
	pp_store_end(&store);
	pp_redis_reply_target(conn, cxt, MAX_REPLY);
	entry = pp_function_read_entry(conn, p, key->id);
	return loaded && entry != NULL && pp_event_hash(entry) == pp_event_hash(&letter);
}

/* The letters of entries after `since`. */
static PpLetterKey *
letters_after(const PpExtension *ext, const PpPipeline *p, PpId since, int *n)
{
	PpStoreScope store;
	MemoryContext cxt = CurrentMemoryContext;
	Oid types[] = {TEXTOID, pp_id_type_oid(ext)};
	Datum values[] = {CStringGetTextDatum(p->name), PointerGetDatum(&since)};
	PpLetterKey *keys;

	pp_store_begin(&store, ext);
	SPI_execute_with_args(
		psprintf("SELECT epoch, id, size_bytes FROM %s.postpipe_dead_letter "
				 "WHERE pipeline = $1 AND NOT undelivered AND id OPERATOR(%s.>) $2",
				 ext->schema_name, ext->schema_name),
		2, types, values, NULL, false, 0);
	keys = pp_dead_letter_keys(cxt, n);
	pp_store_end(&store);
	return keys;
}

/* Discards the letters of entries after `since` that will be read again. */
static void
discard_letters(const PpExtension *ext, const PpPipeline *p, PpRedis *conn, PpId since)
{
	PpStoreScope store;
	MemoryContext cxt =
		AllocSetContextCreate(CurrentMemoryContext, "postpipe letter", ALLOCSET_DEFAULT_SIZES);
	PpLedger ledger = {.cxt = CurrentMemoryContext, .ext = ext, .pipeline = p->name};
	int n;
	PpLetterKey *keys = letters_after(ext, p, since, &n);
	Datum *epochs = MemoryContextAllocHuge(CurrentMemoryContext, Max(n, 1) * sizeof(Datum));
	Datum *ids = MemoryContextAllocHuge(CurrentMemoryContext, Max(n, 1) * sizeof(Datum));
	int again = 0;

	for (int i = 0; i < n; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(cxt);

		CHECK_FOR_INTERRUPTS();
		if (is_in_stream(&ledger, p, conn, &keys[i]))
		{
			epochs[again] = Int32GetDatum(keys[i].epoch);
			ids[again++] = PointerGetDatum(&keys[i].id);
		}
		MemoryContextSwitchTo(old);
		MemoryContextReset(cxt);
	}
	pp_ledger_free_plans(&ledger);
	pp_redis_reply_target(conn, CurrentMemoryContext, PP_FUNCTION_REPLY);
	MemoryContextDelete(cxt);
	if (again > 0)
	{
		Oid id_type = pp_id_type_oid(ext);
		Oid types[] = {TEXTOID, INT4ARRAYOID, get_array_type(id_type)};
		Datum values[] = {CStringGetTextDatum(p->name),
						  PointerGetDatum(construct_array(epochs, again, INT4OID, sizeof(int32),
														  true, TYPALIGN_INT)),
						  PointerGetDatum(construct_array(ids, again, id_type, sizeof(PpId), false,
														  TYPALIGN_DOUBLE))};

		pp_store_begin(&store, ext);
		(void) pp_dead_letter_discard(ext, "SELECT * FROM unnest($2, $3) AS u (epoch, id)", 3,
									  types, values, NULL);
		pp_store_end(&store);
		ereport(LOG, (errmsg("postpipe pipeline \"%s\": %d dead letters were discarded, because a "
							 "rewind reads their entries again",
							 p->name, again)));
	}
	pfree(keys);
	pfree(epochs);
	pfree(ids);
}

/* postpipe_rewind(pipeline, to_id, to_time): see the script. */
Datum
postpipe_rewind(PG_FUNCTION_ARGS)
{
	PpExtension ext;
	PpPipeline *p;
	PpPipe *pipe;
	PpRedis *conn;
	PpReply *reply;
	PpStreamFacts facts;
	PpLedger ledger = {.cxt = CurrentMemoryContext, .ext = &ext};
	PpId id = {0, 0};
	char buf[PP_ID_LEN];
	int64 entries;
	int epoch;

	PreventCommandIfReadOnly("postpipe_rewind()");
	pp_require_read_committed("postpipe_rewind()");
	p = pp_function_lock_pipeline(fcinfo, &ext, AccessExclusiveLock);
	ledger.pipeline = p->name;
	if (!PG_ARGISNULL(1))
	{
		char *text = pp_text_arg(fcinfo, 1);

		if (!pp_id_parse(text, strlen(text), &id))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("invalid to_id \"%s\"", text),
					 errhint("It is the ID of an entry: those after it are read again.")));
	}
	if (!PG_ARGISNULL(1) && !PG_ARGISNULL(2))
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("to_id and to_time cannot be given both")));
	if (!PG_ARGISNULL(2))
		id = pp_id_previous(pp_id_at_time(PG_GETARG_TIMESTAMPTZ(2)));
	if (pp_pipeline_status(p->name, &pipe) != PP_STATE_PAUSED || p->enabled)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("pipeline \"%s\" is not paused", p->name),
				 errhint("Run postpipe_pause('%s') and postpipe_wait_state('%s', 'paused') first.",
						 p->name, p->name)));

	conn = pp_function_connect(p);
	facts = look(conn, p, id, &entries);
	end_epoch(&ledger, p, pipe, conn, &facts);
	pass_over(&ledger, p, conn, &facts, id, entries);
	/*
	 * The epoch first: if the group is set back and this transaction fails in the end, what comes
	 * again is on record and not applied twice.
	 */
	epoch = pp_ledger_new_epoch(&ext, p->name, id, "rewind", true);
	LWLockAcquire(&pipe->lock, LW_EXCLUSIVE);
	memset(&pipe->mark, 0, sizeof(pipe->mark));
	memset(&pipe->accounted, 0, sizeof(pipe->accounted));
	LWLockRelease(&pipe->lock);
	discard_letters(&ext, p, conn, id);
	pp_id_print(id, buf);
	pp_redis_send(conn, "XGROUP SETID %s %s %s", p->stream, p->group, buf);
	reply = pp_function_reply(conn);
	if (reply->type == PP_REPLY_ERROR)
		pp_function_fail(reply);
	begin_epoch(&ledger, conn, p, &facts, id, entries);
	pp_redis_close(conn);
	ereport(LOG, (errmsg("postpipe pipeline \"%s\": rewound to %s by \"%s\": epoch %d begins",
						 p->name, buf, GetUserNameFromId(GetUserId(), false), epoch)));
	ereport(NOTICE, (errmsg("entries after %s will be applied again, in epoch %d of the pipeline; "
							"now there are " INT64_FORMAT " of them",
							buf, epoch, entries)));
	PG_RETURN_INT64(entries);
}
