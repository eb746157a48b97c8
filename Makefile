# postpipe: build, install and test with PGXS.
#
#   make && make install && make installcheck    as for any extension (PG_CONFIG chooses the server)
#   make demo, make test                         need git and make only: they install the rest (see test/setup)

EXTENSION  = postpipe
MODULE_big = postpipe
OBJS       = $(patsubst %.c,%.o,$(sort $(wildcard src/*.c)))
DATA       = $(sort $(wildcard sql/postpipe--*.sql))

REGRESS      = $(patsubst test/sql/%.sql,%,$(sort $(wildcard test/sql/*.sql)))
REGRESS_OPTS = --inputdir=test

PG_CPPFLAGS = -Isrc
SHLIB_LINK  = -lhiredis

# Points where the tests let a worker fail (src/fault.h); for them alone.
ifneq (,$(filter true 1,$(FAULTS)))
PG_CPPFLAGS += -DPP_FAULTS
endif

# Warnings are errors for us and in CI, not for users with another compiler. PostgreSQL's own headers do not pass plain -Wextra.
ifneq (,$(filter true 1,$(CI) $(WERROR)))
PG_CFLAGS += -Wextra -Wno-unused-parameter -Wno-sign-compare -Wno-missing-field-initializers -Werror
endif

PG_CONFIG ?= pg_config
PGXS       := $(shell $(PG_CONFIG) --pgxs 2>/dev/null)
PG_INCLUDE := $(shell $(PG_CONFIG) --includedir-server 2>/dev/null)

.DEFAULT_GOAL := all

# Debian's client package has PGXS as well, but not the headers.
ifneq (,$(and $(wildcard $(PGXS)),$(wildcard $(PG_INCLUDE)/postgres.h)))
include $(PGXS)

# What others may see of the library. PostgreSQL hides the rest by itself from 16 on only, and the macros of 15 do not work
# with -fvisibility=hidden, so the linker does it.
ifeq ($(PORTNAME), linux)
SHLIB_LINK += -Wl,--version-script=postpipe.map
endif

# No dependency files are made by PGXS: a changed header rebuilds everything.
$(OBJS) $(OBJS:.o=.bc): $(wildcard src/*.h)

installcheck: check-preload
check-style: all
else
all install uninstall installcheck clean:
	@echo "$(PG_CONFIG): no PostgreSQL server headers (PGXS) found." >&2
	@echo "Install them (Debian 12: postgresql-server-dev-15) or set PG_CONFIG; \"make test\" installs all that it needs." >&2
	@exit 1
endif

# The background workers exist only in a server that preloads the library.
check-preload:
	@set -e; libs=`PGDATABASE="$${PGDATABASE:-postgres}" "$(bindir)/psql" -XAtq -c 'SHOW shared_preload_libraries'`; \
	case ",`echo $$libs | tr -d ' '`," in *,postpipe,* | *'/postpipe,'*) ;; *) \
		echo "installcheck: this server does not preload postpipe (shared_preload_libraries = '$$libs')." >&2; \
		echo "HINT: add shared_preload_libraries = 'postpipe' to postgresql.conf and restart the server." >&2; \
		exit 1 ;; esac

demo:
	@PG_CONFIG="$(PG_CONFIG)" test/demo

test:
	@PG_CONFIG="$(PG_CONFIG)" test/run

smoke:
	@PSQL="$(bindir)/psql" test/smoke

torture:
	@PG_CONFIG="$(PG_CONFIG)" test/torture $(if $(SECONDS),--seconds $(SECONDS)) $(if $(SEED),--seed $(SEED)) $(TORTURE)

bench:
	@PG_CONFIG="$(PG_CONFIG)" bench/run $(BENCH)

check-style:
	@test/check-style

help:
	@echo "make, make install, make installcheck, make clean   build for the server of PG_CONFIG"
	@echo "make demo                                           see it work: private PostgreSQL and Redis, ends by itself"
	@echo "make test                                           every test; test/run FILE ... runs some of them"
	@echo "make smoke                                          does it work on the server of PGHOST, PGPORT, PGDATABASE?"
	@echo "make torture                                        random crashes for SECONDS=600, with SEED=n; see test/torture"
	@echo "make check-style                                    formatting, layers, exported symbols, version"
	@echo "make bench                                          measurements, with options in BENCH; see bench/README.md"

.PHONY: check-preload demo test smoke torture bench check-style help
