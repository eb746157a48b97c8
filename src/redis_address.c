/*
 * redis_address.c
 *		From the name of a Redis server to the address of the next attempt to connect.
 *
 * getaddrinfo() cannot be interrupted, and threads have no place in a server process.  So the time
 * that it can take is bounded, and a name server that does not answer is left alone for a while, by
 * all processes of the server: they go on with the address that worked last.  That is in shared
 * memory, so that a process which starts has it, too.
 *
 * A name may have several addresses.  Each attempt that fails moves on to the next one.
 */
#include "redis_internal.h"

#include "common/hashfn.h"

#include "shmem.h"

/* After PostgreSQL's own: resolv.h has a macro of the name _res, as a variable of spin locks has. */
#include <netdb.h>
#include <netinet/in.h>
#include <arpa/nameser.h>
#include <resolv.h>

#define MAX_SERVERS   2     /* name servers that are asked, each for a second, for two names */
#define MAX_ADDRESSES 16    /* of a name */
#define SLOW_MS       500   /* after that the answer is not expected any more */
#define REST_MS       30000 /* until they are asked again */

typedef char Address[PP_ADDRESS_LEN];

/* IPv4 before IPv6 where there is a choice: Redis listens on 127.0.0.1 and often not on ::1. */
static int
compare_addresses(const void *x, const void *y)
{
	bool x6 = strchr(x, ':') != NULL;
	bool y6 = strchr(y, ':') != NULL;

	return x6 != y6 ? x6 - y6 : strcmp(x, y);
}

/* Asks for the addresses of a host, in an order that does not change.  Returns a code of getaddrinfo(). */
static int
look_up(const char *host, int flags, Address *addresses, int *n)
{
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = flags};
	struct addrinfo *list;
	int rc = getaddrinfo(host, NULL, &hints, &list);

	*n = 0;
	if (rc != 0)
		return rc;
	for (struct addrinfo *ai = list; ai != NULL && *n < MAX_ADDRESSES; ai = ai->ai_next)
		if (getnameinfo(ai->ai_addr, ai->ai_addrlen, addresses[*n], sizeof(Address), NULL, 0,
						NI_NUMERICHOST) == 0)
			(*n)++;
	freeaddrinfo(list);
	qsort(addresses, *n, sizeof(Address), compare_addresses);
	return *n > 0 ? 0 : EAI_NONAME;
}

/* The resolver's own timeouts are its only ones (resolv.conf(5)). */
static void
bound_resolver(void)
{
	setenv("RES_OPTIONS", "timeout:1 attempts:1", 1);
	(void) res_init();
	_res.nscount = Min(_res.nscount, MAX_SERVERS);
}

/* What is known of a host, by whoever looked it up; locked until the caller releases pp_shared->lock. */
static PpKnownHost *
lock_known(const char *host)
{
	uint32 place = hash_bytes((const unsigned char *) host, (int) strlen(host)) % PP_KNOWN_HOSTS;
	PpKnownHost *known = &pp_shared->known_hosts[place];

	LWLockAcquire(&pp_shared->lock, LW_EXCLUSIVE);
	if (strcmp(known->host, host) != 0)
	{
		memset(known, 0, sizeof(*known));
		strlcpy(known->host, host, sizeof(known->host));
	}
	return known;
}

/* Has somebody asked who has got no answer?  If not, this process is the one who asks now. */
static bool
nobody_answers(const char *host, char *address, Size size)
{
	PpKnownHost *shared = lock_known(host);
	bool silent;

	strlcpy(address, shared->address, size);
	if (pp_steady_passed(shared->asked_at, REST_MS))
		shared->asked_at = pp_steady_now();
	silent = pp_steady_passed(shared->asked_at, SLOW_MS);
	LWLockRelease(&pp_shared->lock);
	return silent;
}

static void
note_answer(const char *host)
{
	lock_known(host)->asked_at = (PpSteady){0};
	LWLockRelease(&pp_shared->lock);
}

/*
 * pp_redis_find_address
 *		The numeric address to be tried now, into conn->address.  Returns false when there is none, with
 *		the cause in pp_redis_error().  May take 4 seconds, but in no process of the server for the
 *		next REST_MS then.
 */
bool
pp_redis_find_address(PpRedis *conn)
{
	const char *host = conn->url.host;
	Address addresses[MAX_ADDRESSES];
	Address known;
	PpSteady start;
	int rc;
	int n;

	if (conn->address_failed)
		conn->address_turn++;
	conn->address_failed = true; /* until it has worked */
	if (look_up(host, AI_NUMERICHOST, addresses, &n) == 0)
	{
		strlcpy(conn->address, addresses[0], sizeof(conn->address));
		return true;
	}
	if (nobody_answers(host, known, sizeof(known)))
		rc = EAI_AGAIN;
	else
	{
		bound_resolver();
		start = pp_steady_now();
		rc = look_up(host, AI_ADDRCONFIG, addresses, &n);
		if (!pp_steady_passed(start, SLOW_MS))
			note_answer(host);
	}
	if (rc == 0)
		strlcpy(conn->address, addresses[conn->address_turn % n], sizeof(conn->address));
	else if (known[0] != '\0')
		strlcpy(conn->address, known, sizeof(conn->address));
	else
		(void) pp_redis_fail_connect(conn, gai_strerror(rc));
	return rc == 0 || known[0] != '\0';
}

/* The log-in has succeeded at conn->address. */
void
pp_redis_address_works(PpRedis *conn)
{
	conn->address_failed = false;
	if (conn->url.is_unix)
		return;
	strlcpy(lock_known(conn->url.host)->address, conn->address, sizeof(Address));
	LWLockRelease(&pp_shared->lock);
}
