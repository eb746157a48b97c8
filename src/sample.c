/*
 * sample.c
 *		An entry that passed, kept to tell whether a pipeline still works.
 *
 * An entry that comes alone fails with no other to compare it with, and of letters it is known that
 * they fail.  When their error is one that the pipeline may be to blame for (a trigger's table is
 * gone), a copy of the last entry that passed is run again, in a subtransaction that is rolled back:
 * when it fails in this way, too, they are not to blame.
 *
 * The row that it wrote is removed before, in the same subtransaction, so that it takes the way that
 * a new entry takes: an update runs other triggers.  Where that cannot be done (sequences of the
 * target advance, but nothing else may happen), it is no proof that it passes.
 */
#include "apply_internal.h"

#include "utils/memutils.h"

#include "errors.h"
#include "event_object.h"
#include "suspect.h"

#define MAX_SAMPLE_BYTES (64 * 1024)

static PpObject *
copy_object(const PpObject *object)
{
	return object ? pp_object_of_jsonb(pp_object_jsonb(object)) : NULL;
}

/* Keeps a copy of an entry that passed, in place of the last one, unless it is large. */
void
pp_sample_keep(PpApply *a, const PpEntry *entry)
{
	MemoryContext old;

	/* A number may be longer than its text. */
	if (entry->bytes > MAX_SAMPLE_BYTES || pp_object_size(entry->event) > MAX_SAMPLE_BYTES)
		return;
	MemoryContextReset(a->sample_cxt);
	old = MemoryContextSwitchTo(a->sample_cxt);
	a->sample = palloc0(sizeof(PpEntry));
	a->sample->id = entry->id;
	a->sample->event = copy_object(entry->event);
	a->sample->envelope = copy_object(entry->envelope);
	MemoryContextSwitchTo(old);
}

/* What run_sample() finds out. */
typedef struct Run
{
	bool removed;  /* its row, if there was one */
	bool inserted; /* it passed as a new entry does */
} Run;

static void
run_sample(PpApply *a, void *arg)
{
	Run *run = arg;
	bool keyless = a->pipeline->target != NULL && pp_statement_key(a->statement) == NIL;

	/* A process that dies of it must not blame the entries that are judged. */
	pp_suspect_note(&a->sample, 1);
	if (pp_statement_has(a->statement, PP_FORM_DELETE))
		(void) pp_statement_run(a->statement, &a->sample, 1, PP_FORM_DELETE);
	run->removed = true;
	run->inserted = pp_statement_run(a->statement, &a->sample, 1, PP_FORM_WHOLE) == 0 &&
					(keyless || pp_statement_has(a->statement, PP_FORM_DELETE));
}

/*
 * pp_sample_run
 *		Does the entry that passed before still pass?  When it fails, *error says why.  In a
 *		transaction, with the statement prepared.
 */
PpSample
pp_sample_run(PpApply *a, PpEntryError **error)
{
	Run run = {false, false};
	PpFault fault;

	if (a->sample == NULL)
		return PP_SAMPLE_UNKNOWN;
	*error = pp_apply_subtransaction(a, run_sample, &run, false);
	if (*error == NULL)
		return run.inserted ? PP_SAMPLE_PASSES : PP_SAMPLE_PASSES_SOMEHOW;
	/* Any other error may be its own: its row is there, or what it refers to is gone. */
	fault = pp_fault_of(*error);
	return !run.removed || fault == PP_FAULT_ENTRY || fault == PP_FAULT_UNKNOWN ? PP_SAMPLE_UNKNOWN
																				: PP_SAMPLE_FAILS;
}
