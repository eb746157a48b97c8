/*
 * notify.c
 *		NOTIFY for each batch that applied entries (option notify: the channel), for who waits for rows.
 *
 * It is sent with the commit of the batch, so a listener that looks sees the rows.
 */
#include "apply_internal.h"

#include "commands/async.h"
#include "utils/memutils.h"

void
pp_notify_init(PpApply *a)
{
	const char *channel = pp_pipeline_option(a->pipeline, "notify");

	a->channel = channel ? MemoryContextStrdup(a->cxt, channel) : NULL;
}

/*
 * pp_notify_batch
 *		Before a commit: tells of the entries that it applies, in JSON: pipeline, applied (a number),
 *		first_id and last_id.  The name of a pipeline needs no escapes.
 */
void
pp_notify_batch(const PpApply *a, const PpBatch *batch)
{
	const PpEntry *first = NULL;
	const PpEntry *last = NULL;
	char first_id[PP_ID_LEN];
	char last_id[PP_ID_LEN];
	int applied = 0;

	if (a->channel == NULL)
		return;
	for (int i = 0; i < batch->n; i++)
	{
		const PpEntry *entry = &batch->entries[i];

		if (entry->settled || entry->verdict != PP_VERDICT_APPLIED)
			continue;
		first = first == NULL ? entry : first;
		last = entry;
		applied++;
	}
	if (applied == 0)
		return;
	pp_id_print(first->id, first_id);
	pp_id_print(last->id, last_id);
	Async_Notify(a->channel,
				 psprintf("{\"pipeline\": \"%s\", \"applied\": %d, \"first_id\": \"%s\", "
						  "\"last_id\": \"%s\"}",
						  a->pipeline->name, applied, first_id, last_id));
}
