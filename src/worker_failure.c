/*
 * worker_failure.c
 *		What a worker does when something has failed: says so, and waits before it is tried again.
 *
 * The waits grow while failures go on, and each ends early when the worker is to stop.  What is tried again,
 * and from where on, is the matter of who calls.
 */
#include "worker_internal.h"

#include "held.h"
#include "inflight.h"
#include "process.h"
#include "stats.h"

#define BACKOFF_FORGET_MS 10000
#define CRASHES_IN_A_ROW  6 /* with nothing applied between: then the server is spared for a while */
#define SPARE_FIRST_MS    10000
#define SPARE_CAP_MS      (3600 * 1000)

/* Until then, or until the worker is to stop, which ends the process. */
static void
wait_until(PpWorker *w, PpSteady end)
{
	long left;

	while ((left = pp_steady_left(end)) > 0)
	{
		pp_process_sleep(left, PP_WAIT_WORKER_RETRY);
		pp_worker_look_around(w);
	}
}

/* Waits before the next attempt. */
static void
back_off(PpWorker *w)
{
	int ms = pp_backoff_next(&w->backoff);

	w->failed_at = pp_steady_in(ms);
	pp_report_next_attempt(ms);
	wait_until(w, w->failed_at);
}

/* It works. The back-off forgets a failure only after a while: what fails again and again, with a
 * moment of success between, is to be tried less and less often all the same. */
void
pp_worker_well(PpWorker *w, bool idle)
{
	if (w->backoff.attempts > 0 && pp_steady_passed(w->failed_at, BACKOFF_FORGET_MS))
		pp_backoff_reset(&w->backoff);
	pp_report_state(idle ? PP_STATE_IDLE : PP_STATE_RUNNING, "", "", NULL);
}

/*
 * pp_worker_redis_failed
 *		Says what is wrong with Redis, and waits.  The connection is closed, and nothing is in hand.  Ends the
 *		process when it is asked to stop meanwhile; throws what an interrupt throws.
 */
void
pp_worker_redis_failed(PpWorker *w, const PpRedisError *error)
{
	/* Closed by ourselves, because a setting has changed: connect again at once. */
	if (error->class == PP_REDIS_CLASS_NONE)
		return;
	pp_held_release_all(w->pipe);
	pp_pipe_park(w->pipe);
	pp_report_error(w->pipe, pp_redis_error_sqlstate(error), error->message);
	pp_report_state(error->class == PP_REDIS_CLASS_SETTING ? PP_STATE_FAILED : PP_STATE_RETRYING,
					error->code, error->message, pp_redis_error_hint(error));
	pp_process_activity(false, "waiting to connect to Redis again");
	back_off(w);
}

/*
 * Says why a batch could not be applied, and waits.  What an entry holds is for those who may read
 * dead letters, not for the log.
 */
void
pp_worker_apply_failed(PpWorker *w, PpOutcome outcome, const PpEntryError *error)
{
	char logged[PP_REASON_LEN];
	bool ours = error->entry_sqlstate == 0 || error->reason_code != NULL;
	PpState state = outcome == PP_OUTCOME_PIPELINE ? PP_STATE_FAILED : PP_STATE_RETRYING;
	char code[PP_REASON_CODE_LEN];

	if (error->reason_code != NULL)
		strlcpy(code, error->reason_code, sizeof(code));
	else
		snprintf(code, sizeof(code), "sqlstate_%s", unpack_sql_state(error->sqlstate));
	pp_report_error(w->pipe, error->sqlstate, error->message);
	snprintf(logged, sizeof(logged), "SQLSTATE %s of an entry (%s); postpipe_stats has the message",
			 unpack_sql_state(error->entry_sqlstate), code);
	pp_report_state_as(state, code, error->message,
					   error->entry_sqlstate != 0 ? logged : error->message,
					   ours ? error->hint : NULL);
	pp_process_activity(false, "waiting to apply a batch again");
	back_off(w);
}

/*
 * pp_worker_spare_server
 *		When everything that is tried crashes the process, no entry is to blame, and each attempt costs
 *		all sessions of the server: waits longer and longer before the next one.  A change of the
 *		definition, be it a pause and a resume, ends it, with the process.  Throws what an interrupt
 *		throws.
 */
void
pp_worker_spare_server(PpWorker *w)
{
	int crashes = pp_inflight_crashes_in_a_row();
	PpSteady end;
	PpBackoff backoff;
	int ms = 0;

	if (crashes < CRASHES_IN_A_ROW)
		return;
	pp_backoff_init(&backoff, SPARE_FIRST_MS, SPARE_CAP_MS);
	for (int i = CRASHES_IN_A_ROW; i <= crashes && ms < SPARE_CAP_MS; i++)
		ms = pp_backoff_next(&backoff);
	end = pp_steady_in(ms);
	pp_report_next_attempt(ms);
	pp_report_state(PP_STATE_FAILED, "crash_loop",
					"the server process crashed each time it applied something",
					"Mend what the statement calls, then run postpipe_pause() and "
					"postpipe_resume() to try at once.");
	pp_process_activity(false, "waiting after crashes");
	wait_until(w, end);
}
