# Sourced by setup, private-install, run and demo: the private folder in which everything happens and its clean-up, the
# unprivileged user that servers run as, and private servers. Nothing here touches a cluster or a Redis that is there.

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export LC_ALL=C.UTF-8

say() { printf '\n== %s\n' "$*"; }
fail() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; exit 1; }

# wait_until SECONDS COMMAND ...: the only place where these scripts wait for something; polls twenty times a second.
wait_until() {
	local deadline=$((SECONDS + $1))
	shift
	until "$@"; do
		[ "$SECONDS" -lt "$deadline" ] || return 1
		read -rt 0.05 <> <(:) || :
	done
}

# The pg_config to build with: PG_CONFIG, else the one in PATH, else the newest Debian version; it must have PGXS.
# Printed is the real program in the server's own folder, because Debian's /usr/bin/pg_config is a wrapper.
find_pg_config() {
	local candidate real
	for candidate in "${PG_CONFIG:-pg_config}" pg_config $(ls -d /usr/lib/postgresql/*/bin/pg_config 2>/dev/null | sort -rV); do
		[ -f "$("$candidate" --pgxs 2>/dev/null)" ] || continue
		# Debian's client package has PGXS as well, but not the headers.
		[ -f "$("$candidate" --includedir-server)/postgres.h" ] || continue
		real=$("$candidate" --bindir)/pg_config
		if [ -x "$real" ]; then echo "$real"; else command -v "$candidate"; fi
		return 0
	done
	return 1
}

# A server refuses to run as root: for root everything is built and run as this user.
if [ "$(id -u)" -eq 0 ]; then
	if id postgres >/dev/null 2>&1; then run_user=postgres; else run_user=nobody; fi
	as_user() { setpriv --reuid="$run_user" --regid="$(id -g "$run_user")" --init-groups --inh-caps=-all -- env HOME="$root" "$@"; }
else
	run_user=$(id -un)
	as_user() { "$@"; }
fi

# Processes whose working directory is inside the private folder: the servers and tests that were started here, nothing else.
pids_inside() {
	local link
	for link in /proc/[0-9]*/cwd; do
		case "$(readlink "$link" 2>/dev/null)/" in
			"$root"/*) link=${link#/proc/}; [ "${link%/cwd}" = $$ ] || echo "${link%/cwd}" ;;
		esac
	done
}
nobody_inside() { [ -z "$(pids_inside)" ]; }

# Servers first get the signal for an immediate stop (SIGQUIT), with which PostgreSQL also gives its shared memory back.
clean_up() {
	local pid
	set +e
	trap '' INT TERM HUP
	for pid in $(pids_inside); do
		case "$(readlink "/proc/$pid/exe" 2>/dev/null)" in
			*/postgres) kill -QUIT "$pid" ;;
			*) kill -TERM "$pid" ;;
		esac
		kill -CONT "$pid"
	done 2>/dev/null
	wait_until 10 nobody_inside || kill -KILL $(pids_inside) 2>/dev/null
	wait_until 5 nobody_inside || echo "left running in $root: $(pids_inside | xargs)" >&2
	if [ -n "${KEEP:-}" ]; then echo "kept: $root" >&2; else rm -rf "$root"; fi
}

# Makes the private folder $root, owned by the unprivileged user, with a copy of the checkout in $root/src.
make_root() {
	root=$(mktemp -d --suffix=.postpipe)
	root=$(cd "$root" && pwd -P)
	trap clean_up EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM HUP
	mkdir "$root/src" "$root/tmp"
	tar -C "$top" --exclude=./.git --exclude='*.o' --exclude='*.bc' --exclude='*.so' --exclude=./tmp_check \
		--exclude=./results --exclude=./log -cf - . | tar -C "$root/src" --no-same-owner -xf -
	chmod -R a+rX "$root"
	[ "$(id -u)" -ne 0 ] || chown -R "$run_user:" "$root"
	export TMPDIR="$root/tmp"
	unset PGHOST PGPORT PGUSER PGDATABASE PGDATA PGSERVICE PGOPTIONS PGPASSWORD PGPASSFILE
}

# Builds and installs into $root/pg; afterwards $bindir has its programs and $pg_config is its pg_config.
build_private() {
	local system
	system=$(find_pg_config) || fail "no pg_config with PGXS was found"
	if ! PG_CONFIG="$system" as_user "$root/src/test/private-install" "$root/pg" >"$root/tmp/build.log" 2>&1; then
		cat "$root/tmp/build.log" >&2
		return 1
	fi
	bindir="$root/pg$("$system" --bindir)"
	pg_config="$bindir/pg_config"
	export PATH="$bindir:$PATH"
}

# What PostgreSQL::Test::Cluster and Postpipe::Test want to know; after build_private.
tap_environment() {
	local pgxs
	pgxs=$("$pg_config" --pkglibdir)/pgxs
	export PERL5LIB="$root/src/test/perl:$pgxs/src/test/perl" PG_REGRESS="$pgxs/src/test/regress/pg_regress"
	export TESTDIR="$root/tap" TESTDATADIR="$root/tap/tmp_check" TESTLOGDIR="$root/tap/log" PG_TEST_PORT_DIR="$root/ports"
	as_user mkdir -p "$TESTDATADIR" "$TESTLOGDIR" "$PG_TEST_PORT_DIR"
}

# start_redis FOLDER: a Redis that is reached at the socket FOLDER/redis.sock only and writes nothing to disk.
start_redis() {
	as_user mkdir -p "$1"
	(cd "$1" && as_user redis-server --port 0 --unixsocket "$1/redis.sock" --dir "$1" --save '' --appendonly no \
		--daemonize yes --pidfile "$1/redis.pid" --logfile "$1/redis.log" >/dev/null)
	wait_until 20 redis_answers "$1/redis.sock" || { cat "$1/redis.log" >&2; fail "the private Redis did not start"; }
}
redis_answers() { [ "$(redis-cli -s "$1" ping 2>/dev/null)" = PONG ]; }

# start_postgres FOLDER LINE ...: a server with these lines in postgresql.conf, reached at its socket in FOLDER only.
start_postgres() {
	local dir=$1
	shift
	as_user mkdir -p "$dir"
	(cd "$dir" && as_user "$bindir/initdb" -D "$dir/data" -U postgres -A trust -E UTF8 --no-sync >"$root/tmp/initdb.log" 2>&1) ||
		{ cat "$root/tmp/initdb.log" >&2; fail "initdb failed"; }
	printf '%s\n' "listen_addresses = ''" "unix_socket_directories = '$dir'" "port = 54320" "fsync = off" \
		"shared_preload_libraries = 'postpipe'" "log_line_prefix = '%m [%p] %b '" "$@" >>"$dir/data/postgresql.conf"
	(cd "$dir" && as_user "$bindir/pg_ctl" -D "$dir/data" -l "$dir/postgres.log" -w -t 60 start >/dev/null) ||
		{ tail -n 30 "$dir/postgres.log" >&2; fail "the private PostgreSQL did not start"; }
	export PGHOST="$dir" PGPORT=54320 PGUSER=postgres
}
