/*-------------------------------------------------------------------------
 *
 * items.c
 *		Write entries of a given size, as XADD commands and as COPY rows.
 *
 * Usage: items ENTRIES SEED STREAM BYTES RESP_FILE COPY_FILE
 *
 * An entry has two fields, "id" and "body": a key in no order, and text of
 * words, so that both together have BYTES bytes or a word more.
 *
 *-------------------------------------------------------------------------
 */
#include "words.h"

#define KEY_LENGTH 16

int
main(int argc, char **argv)
{
	long entries;
	size_t size;
	char *body;
	FILE *resp;
	FILE *copy;

	if (argc != 7)
	{
		fprintf(stderr, "usage: %s ENTRIES SEED STREAM BYTES RESP_FILE COPY_FILE\n", argv[0]);
		return 1;
	}
	entries = strtol(argv[1], NULL, 10);
	random_seed(strtoull(argv[2], NULL, 10));
	size = strtoull(argv[4], NULL, 10);
	size = size > KEY_LENGTH ? size - KEY_LENGTH : 1;
	body = malloc(size + MAX_WORD_BYTES + 1);
	if (body == NULL)
	{
		fprintf(stderr, "out of memory\n");
		return 1;
	}
	resp = open_output(argv[5]);
	copy = open_output(argv[6]);

	for (long number = 0; number < entries; number++)
	{
		char key[KEY_LENGTH + 1];

		/* The number is in it, so that no key repeats. */
		snprintf(key, sizeof(key), "%08x%08x", (unsigned int) (random_next() >> 32),
				 (unsigned int) number);
		random_text(body, size);
		write_xadd(resp, argv[3], 4);
		write_bulk(resp, "id");
		write_bulk(resp, key);
		write_bulk(resp, "body");
		write_bulk(resp, body);
		fprintf(copy, "%s\t", key);
		write_copy_value(copy, body);
		putc('\n', copy);
	}
	close_output(resp, argv[5]);
	close_output(copy, argv[6]);
	free(body);
	return 0;
}
