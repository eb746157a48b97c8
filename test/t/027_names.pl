# The name of the Redis server: several addresses, of which only one answers, and name servers that do not answer at all.
# getaddrinfo() cannot be interrupted, so that must happen seldom. TAP, because what names mean is said by a library that
# is loaded into the server.

use strict;
use warnings;
use PostgreSQL::Test::Utils;
use Postpipe::Test;
use Postpipe::Test::Hits;

my $dir = PostgreSQL::Test::Utils::tempdir_short();
append_to_file("$dir/names.c", <<'C');
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* redis.test has the addresses 127.0.0.2 and 127.0.0.9; while the file NAMES_HANG is there, nobody knows. */
int
getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **res)
{
	int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **) = dlsym(RTLD_NEXT, "getaddrinfo");
	FILE *log;

	if (node == NULL || strcmp(node, "redis.test") != 0 || (hints->ai_flags & AI_NUMERICHOST))
		return real(node, service, hints, res);
	log = fopen(getenv("NAMES_LOG"), "a");
	fputs("x", log);
	fclose(log);
	if (access(getenv("NAMES_HANG"), F_OK) == 0)
	{
		for (unsigned left = 4; left > 0;)
			left = sleep(left);
		return EAI_AGAIN;
	}
	if (real("127.0.0.2", service, hints, res) != 0)
		return EAI_FAIL;
	return real("127.0.0.9", service, hints, &(*res)->ai_next);
}
C
plan(skip_all => 'no compiler') if system("cc -shared -fPIC -o $dir/names.so $dir/names.c -ldl 2>$dir/cc.log") != 0;

my $redis = Postpipe::Test::Redis->new(keep => 1, conf => ['bind 127.0.0.1 127.0.0.9']);
my $node = pp_node('main', redis => 'redis://redis.test:' . $redis->port, start => 0);
start();
my $hits = Postpipe::Test::Hits->new(node => $node, redis => $redis);
$hits->sql(q(SELECT postpipe_drop_pipeline('posts')));
$hits->publish(5);
$hits->settled('the second address is tried when the first one does not answer');

# --- The name servers do not answer. Who has been connected goes on with the address that worked, and so does who starts.
append_to_file("$dir/hang", '');
my $before = asked();
$redis->cli('CLIENT', 'KILL', 'TYPE', 'normal');
delete $redis->{client};
$hits->publish(5);
$hits->settled('no name server: connected again');
$hits->fresh;
$hits->publish(5);
$hits->settled('no name server: a process that starts');
$redis->stop;
$hits->shows(qr/^retrying\|redis_connect/, 'no Redis, no name server: shown');
$hits->attempts(5);
cmp_ok(asked() - $before, '<=', 3, '... and the name servers are left alone');
$hits->sql('CREATE DATABASE other');
$hits->sql('DROP DATABASE other');
$redis->start;
$hits->settled('Redis is back');

# --- Nothing is known: that is said, and heals.
$node->stop;
$before = asked();
start();
$hits->shows(qr/^retrying\|redis_connect\|[^|]*redis\.test[^|]*name resolution/, 'nothing is known: shown');
$hits->attempts(5);
cmp_ok(asked() - $before, '<=', 3, '... and the name servers are left alone');
unlink "$dir/hang";
$hits->publish(5);
$hits->settled('the name servers answer again');
$node->stop;
done_testing();

sub start
{
	local $ENV{LD_PRELOAD} = "$dir/names.so";
	local $ENV{NAMES_LOG} = "$dir/asked";
	local $ENV{NAMES_HANG} = "$dir/hang";
	$node->start;
	return;
}

sub asked { return -s "$dir/asked" // 0 }
