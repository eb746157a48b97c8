-- postpipe 0.1.0
--
-- Rules: one word per thing; names are text; durations in views are double precision seconds (but in postpipe_status, which is for
-- people), timeouts in arguments are interval; a new option is a key in `options`, never a new argument; view columns are only ever appended; unknown is NULL.
\echo Use "CREATE EXTENSION postpipe" to load this file. \quit

---------------------------------------------------------------------------------------------------------------------------
-- Type: a stream entry's ID, as pg_lsn is for WAL. As text, '...-99' sorts above '...-271': max(id), ORDER BY id, id > ... are wrong.
-- Input: 'ms-seq' or 'ms' (= ms-0); output 'ms-seq'. Assigns to text columns by itself.
CREATE TYPE @extschema@.postpipe_id;
CREATE FUNCTION @extschema@.postpipe_id_in(cstring) RETURNS @extschema@.postpipe_id AS 'MODULE_PATHNAME', 'postpipe_id_in' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION @extschema@.postpipe_id_out(@extschema@.postpipe_id) RETURNS cstring AS 'MODULE_PATHNAME', 'postpipe_id_out' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
CREATE TYPE @extschema@.postpipe_id (INPUT = @extschema@.postpipe_id_in, OUTPUT = @extschema@.postpipe_id_out, INTERNALLENGTH = 16, ALIGNMENT = double);
CREATE FUNCTION @extschema@.postpipe_id_cmp(@extschema@.postpipe_id, @extschema@.postpipe_id) RETURNS integer AS 'MODULE_PATHNAME', 'postpipe_id_cmp' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION @extschema@.postpipe_id_lt(@extschema@.postpipe_id, @extschema@.postpipe_id) RETURNS boolean AS 'MODULE_PATHNAME', 'postpipe_id_lt' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION @extschema@.postpipe_id_le(@extschema@.postpipe_id, @extschema@.postpipe_id) RETURNS boolean AS 'MODULE_PATHNAME', 'postpipe_id_le' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION @extschema@.postpipe_id_eq(@extschema@.postpipe_id, @extschema@.postpipe_id) RETURNS boolean AS 'MODULE_PATHNAME', 'postpipe_id_eq' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION @extschema@.postpipe_id_ne(@extschema@.postpipe_id, @extschema@.postpipe_id) RETURNS boolean AS 'MODULE_PATHNAME', 'postpipe_id_ne' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION @extschema@.postpipe_id_ge(@extschema@.postpipe_id, @extschema@.postpipe_id) RETURNS boolean AS 'MODULE_PATHNAME', 'postpipe_id_ge' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION @extschema@.postpipe_id_gt(@extschema@.postpipe_id, @extschema@.postpipe_id) RETURNS boolean AS 'MODULE_PATHNAME', 'postpipe_id_gt' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION @extschema@.postpipe_id_hash(@extschema@.postpipe_id) RETURNS integer AS 'MODULE_PATHNAME', 'postpipe_id_hash' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
CREATE OPERATOR @extschema@.<  (LEFTARG = @extschema@.postpipe_id, RIGHTARG = @extschema@.postpipe_id, FUNCTION = @extschema@.postpipe_id_lt, COMMUTATOR = >, NEGATOR = >=, RESTRICT = scalarltsel, JOIN = scalarltjoinsel);
CREATE OPERATOR @extschema@.<= (LEFTARG = @extschema@.postpipe_id, RIGHTARG = @extschema@.postpipe_id, FUNCTION = @extschema@.postpipe_id_le, COMMUTATOR = >=, NEGATOR = >, RESTRICT = scalarlesel, JOIN = scalarlejoinsel);
CREATE OPERATOR @extschema@.=  (LEFTARG = @extschema@.postpipe_id, RIGHTARG = @extschema@.postpipe_id, FUNCTION = @extschema@.postpipe_id_eq, COMMUTATOR = =, NEGATOR = <>, RESTRICT = eqsel, JOIN = eqjoinsel, HASHES, MERGES);
CREATE OPERATOR @extschema@.<> (LEFTARG = @extschema@.postpipe_id, RIGHTARG = @extschema@.postpipe_id, FUNCTION = @extschema@.postpipe_id_ne, COMMUTATOR = <>, NEGATOR = =, RESTRICT = neqsel, JOIN = neqjoinsel);
CREATE OPERATOR @extschema@.>= (LEFTARG = @extschema@.postpipe_id, RIGHTARG = @extschema@.postpipe_id, FUNCTION = @extschema@.postpipe_id_ge, COMMUTATOR = <=, NEGATOR = <, RESTRICT = scalargesel, JOIN = scalargejoinsel);
CREATE OPERATOR @extschema@.>  (LEFTARG = @extschema@.postpipe_id, RIGHTARG = @extschema@.postpipe_id, FUNCTION = @extschema@.postpipe_id_gt, COMMUTATOR = <, NEGATOR = <=, RESTRICT = scalargtsel, JOIN = scalargtjoinsel);
CREATE OPERATOR CLASS @extschema@.postpipe_id_ops DEFAULT FOR TYPE @extschema@.postpipe_id USING btree AS
    OPERATOR 1 @extschema@.<, OPERATOR 2 @extschema@.<=, OPERATOR 3 @extschema@.=, OPERATOR 4 @extschema@.>=, OPERATOR 5 @extschema@.>,
    FUNCTION 1 @extschema@.postpipe_id_cmp(@extschema@.postpipe_id, @extschema@.postpipe_id);
CREATE OPERATOR CLASS @extschema@.postpipe_id_hash_ops DEFAULT FOR TYPE @extschema@.postpipe_id USING hash AS
    OPERATOR 1 @extschema@.=, FUNCTION 1 @extschema@.postpipe_id_hash(@extschema@.postpipe_id);
CREATE FUNCTION @extschema@.postpipe_id_larger(@extschema@.postpipe_id, @extschema@.postpipe_id) RETURNS @extschema@.postpipe_id AS 'MODULE_PATHNAME', 'postpipe_id_larger' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION @extschema@.postpipe_id_smaller(@extschema@.postpipe_id, @extschema@.postpipe_id) RETURNS @extschema@.postpipe_id AS 'MODULE_PATHNAME', 'postpipe_id_smaller' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
CREATE AGGREGATE @extschema@.max(@extschema@.postpipe_id) (SFUNC = @extschema@.postpipe_id_larger, STYPE = @extschema@.postpipe_id, SORTOP = OPERATOR(@extschema@.>), PARALLEL = SAFE);
CREATE AGGREGATE @extschema@.min(@extschema@.postpipe_id) (SFUNC = @extschema@.postpipe_id_smaller, STYPE = @extschema@.postpipe_id, SORTOP = OPERATOR(@extschema@.<), PARALLEL = SAFE);
CREATE FUNCTION @extschema@.postpipe_id_time(id @extschema@.postpipe_id) RETURNS timestamptz AS 'MODULE_PATHNAME', 'postpipe_id_time' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;

---------------------------------------------------------------------------------------------------------------------------
-- Definitions. The pipeline `posts` is not inserted here: dump and restore would meet it twice.
CREATE TABLE @extschema@.postpipe_pipeline (
    pipeline        text PRIMARY KEY CHECK (pipeline OPERATOR(pg_catalog.~) '^[a-z_][a-z0-9_]{0,47}$'),
    owner           regrole NOT NULL,                      -- by OID, so that ALTER ROLE ... RENAME is harmless
    stream          text NOT NULL CHECK (pg_catalog.octet_length(stream) OPERATOR(pg_catalog.<) 256),
    consumer_group  text NOT NULL CHECK (pg_catalog.octet_length(consumer_group) OPERATOR(pg_catalog.<) 256),
    redis           text,                                  -- named server; NULL: postpipe.redis_url
    target          text,                                  -- qualified, quoted; text because it may not exist yet
    key             text[],
    on_conflict     text NOT NULL DEFAULT 'update' CHECK (on_conflict OPERATOR(pg_catalog.=) ANY ('{update,nothing,newer,error}'::text[])),
    newer_by        text,                                  -- the column that on_conflict newer compares
    columns         jsonb,                                 -- {"content": {"fields": ["text", "content"], "merge": "replace|keep|greatest|first", "empty": "null"}}
    event_types     text[],                                -- others are counted as filtered; NULL: all
    statement       text,                                  -- NULL: generated from target
    search_path     text NOT NULL,
    workers         integer NOT NULL DEFAULT 1 CHECK (workers BETWEEN 1 AND 64),
    enabled         boolean NOT NULL DEFAULT true,
    enabled_reason  text,                                  -- why it was paused
    options         jsonb NOT NULL DEFAULT '{}',
    system_identifier bigint, database_oid oid,            -- where it is armed; another place: disarmed
    created_at      timestamptz NOT NULL DEFAULT pg_catalog.now(),
    altered_at      timestamptz,
    dropped         boolean NOT NULL DEFAULT false,        -- only of `posts`, which would exist without a row
    extension_oid   oid                                    -- as database_oid: a dump may come back to its database, which has another ledger then
);
SELECT pg_catalog.pg_extension_config_dump('@extschema@.postpipe_pipeline', '');

CREATE TABLE @extschema@.postpipe_dead_letter (
    pipeline        text NOT NULL,
    epoch           integer NOT NULL,
    id              @extschema@.postpipe_id NOT NULL,
    stream          text NOT NULL,
    state           text NOT NULL CHECK (state OPERATOR(pg_catalog.=) ANY ('{retrying,dead}'::text[])),
    sqlstate        text NOT NULL CHECK (pg_catalog.length(sqlstate) OPERATOR(pg_catalog.=) 5),
    message         text NOT NULL,
    detail          text, hint text, context text,
    schema_name     text, table_name text, column_name text, constraint_name text,   -- the words of GET STACKED DIAGNOSTICS
    attempts        integer NOT NULL,
    first_failed_at timestamptz NOT NULL, last_failed_at timestamptz NOT NULL, next_retry_at timestamptz,
    added_at        timestamptz NOT NULL,
    worker          integer,
    event           jsonb,
    fields          bytea[],                               -- name, value, name, value ... as Redis sent them
    size_bytes      bigint NOT NULL,
    key_hash        bigint,                                -- internal: of its key, where the order of entries of one key matters
    overtaken       boolean NOT NULL DEFAULT false,        -- internal: a later entry with that key was applied since
    undelivered     boolean NOT NULL DEFAULT false,        -- internal: skipped, and still pending or unread, so not in the ledger
    PRIMARY KEY (pipeline, epoch, id)
);
CREATE INDEX postpipe_dead_letter_undelivered ON @extschema@.postpipe_dead_letter (pipeline) WHERE undelivered;
CREATE INDEX postpipe_dead_letter_due ON @extschema@.postpipe_dead_letter (pipeline, next_retry_at) WHERE state OPERATOR(pg_catalog.=) 'retrying';
CREATE INDEX postpipe_dead_letter_age ON @extschema@.postpipe_dead_letter (pipeline, last_failed_at) WHERE state OPERATOR(pg_catalog.=) 'dead';
CREATE INDEX postpipe_dead_letter_key ON @extschema@.postpipe_dead_letter (pipeline, key_hash) WHERE NOT overtaken;

-- Internal: which entries are settled (src/ledger_ids.c has the encoding of ids), the epochs, and what was lost.
CREATE TABLE @extschema@.postpipe_ledger (
    pipeline        text NOT NULL,
    epoch           integer NOT NULL,
    worker          integer NOT NULL,
    first_id        @extschema@.postpipe_id NOT NULL,
    last_id         @extschema@.postpipe_id NOT NULL,
    applied         integer NOT NULL,
    filtered        integer NOT NULL,
    dead            integer NOT NULL,                      -- dead letters made; negative: retried or replayed with success, or discarded
    discarded       integer NOT NULL DEFAULT 0,
    lost            integer NOT NULL,
    sequence        bigint NOT NULL DEFAULT 0,             -- of the worker's batches, from 1; 0: not a batch that was read
    settled_at      timestamptz NOT NULL DEFAULT pg_catalog.now(),
    ids             bytea NOT NULL,
    summed          boolean NOT NULL DEFAULT false         -- its numbers are in those of postpipe_epoch already
);
ALTER TABLE @extschema@.postpipe_ledger ALTER COLUMN ids SET STORAGE EXTERNAL;          -- hashes do not compress
-- Rows that may be merged lie in one index, and those that stay in others: what is merged away leaves whole pages empty.
CREATE INDEX postpipe_ledger_open ON @extschema@.postpipe_ledger (pipeline, last_id, first_id) WHERE NOT summed;
CREATE INDEX postpipe_ledger_range ON @extschema@.postpipe_ledger (pipeline, last_id, first_id) WHERE summed;
-- A publication FOR ALL TABLES has ours as well: without it no row could be updated or deleted (also below).
ALTER TABLE @extschema@.postpipe_ledger REPLICA IDENTITY FULL;
-- What is to be pruned (src/compact.c), and the last batch of each worker.
CREATE INDEX postpipe_ledger_age ON @extschema@.postpipe_ledger (pipeline, settled_at) WHERE summed;
CREATE INDEX postpipe_ledger_sequence ON @extschema@.postpipe_ledger (pipeline, worker, sequence) WHERE summed;

CREATE TABLE @extschema@.postpipe_epoch (
    pipeline        text NOT NULL,
    epoch           integer NOT NULL,
    since_id        @extschema@.postpipe_id,
    cause           text NOT NULL,
    again           boolean NOT NULL DEFAULT false,        -- rewound: what earlier epochs settled is applied again
    base_known      boolean NOT NULL DEFAULT false,
    base_added      bigint,                                -- of the entries ever added, those that the epoch does not account for; NULL: not provable
    opened_at       timestamptz NOT NULL DEFAULT pg_catalog.now(),
    last_id         @extschema@.postpipe_id,               -- this and below: of the ledger's rows that are summed, or were pruned
    applied         bigint NOT NULL DEFAULT 0,
    filtered        bigint NOT NULL DEFAULT 0,
    dead            bigint NOT NULL DEFAULT 0,
    discarded       bigint NOT NULL DEFAULT 0,
    lost            bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (pipeline, epoch)
);

-- Internal: one row per pipeline that has been started.
CREATE TABLE @extschema@.postpipe_progress (
    pipeline        text PRIMARY KEY,
    nonce           text,                                  -- what the owner key in Redis has while it is ours (src/owner.c)
    next_nonce      text,                                  -- what it may have since, if we died while changing it
    past_nonces     text[] NOT NULL DEFAULT '{}',          -- what it may have after a failover to an older state
    fenced          boolean NOT NULL DEFAULT false,        -- another owner was seen
    take_over       boolean NOT NULL DEFAULT false,        -- postpipe_resume(..., take_over => true) was asked for
    sealed_id       @extschema@.postpipe_id,               -- up to here every entry is settled, but for the holes
    pruned_id       @extschema@.postpipe_id,               -- up to here the ledger has no rows any more: an ID is a duplicate
    pruned_epoch    integer,                               -- ... in this epoch
    holes           @extschema@.postpipe_id[] NOT NULL DEFAULT '{}',
    keyed           boolean NOT NULL DEFAULT false,        -- rows were merged by the target's primary key: without it none is appended before a pause and a resume
    shared          boolean NOT NULL DEFAULT false         -- the group had consumers that are not ours: what we do not know of may be theirs
);

CREATE TABLE @extschema@.postpipe_lost_range (
    pipeline        text NOT NULL,
    epoch           integer NOT NULL,
    first_id        @extschema@.postpipe_id NOT NULL,
    last_id         @extschema@.postpipe_id NOT NULL,
    entries         bigint,
    cause           text NOT NULL,
    noticed_at      timestamptz NOT NULL DEFAULT pg_catalog.now()
);
ALTER TABLE @extschema@.postpipe_lost_range REPLICA IDENTITY FULL;

-- Internal: calls of postpipe_ingest and entries of postpipe_backfill, and sums of them (src/sqlfuncs_ingest.c).
CREATE TABLE @extschema@.postpipe_ingested (
    pipeline        text NOT NULL,
    id              @extschema@.postpipe_id,               -- that was given, once in a pipeline
    epoch           integer NOT NULL,                      -- of the stream, when it came in
    applied         bigint NOT NULL,
    ingested_at     timestamptz NOT NULL DEFAULT pg_catalog.now(),
    UNIQUE (pipeline, id)
);
ALTER TABLE @extschema@.postpipe_ingested REPLICA IDENTITY FULL;
CREATE INDEX postpipe_ingested_age ON @extschema@.postpipe_ingested (pipeline, ingested_at) WHERE id IS NOT NULL;

---------------------------------------------------------------------------------------------------------------------------
-- Whatever writes the definitions, a function here or a restore: the supervisor looks at them at commit.
CREATE FUNCTION @extschema@.postpipe_definition_changed() RETURNS trigger AS 'MODULE_PATHNAME', 'postpipe_definition_changed' LANGUAGE C;
CREATE TRIGGER postpipe_definition_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON @extschema@.postpipe_pipeline
    FOR EACH STATEMENT EXECUTE FUNCTION @extschema@.postpipe_definition_changed();
-- Also with session_replication_role = replica: the row would be there, and no worker would know.
ALTER TABLE @extschema@.postpipe_pipeline ENABLE ALWAYS TRIGGER postpipe_definition_changed;

---------------------------------------------------------------------------------------------------------------------------
-- Pipelines
CREATE FUNCTION @extschema@.postpipe_create_pipeline(
    pipeline        text,
    stream          text,
    target          text        DEFAULT NULL,              -- target or statement, one of them
    statement       text        DEFAULT NULL,
    consumer_group  text        DEFAULT NULL,              -- 'postpipe_' || pipeline
    key             text[]      DEFAULT NULL,              -- the target's primary key
    on_conflict     text        DEFAULT 'update',
    newer_by        text        DEFAULT NULL,
    columns         jsonb       DEFAULT NULL,
    event_types     text[]      DEFAULT NULL,
    start_id        text        DEFAULT '0',               -- '0' earliest, '$' latest, or an ID; used only when the group is made
    start_time      timestamptz DEFAULT NULL,              -- instead of start_id; an own argument: an overload would take '2026-11-23' as an ID
    workers         integer     DEFAULT 1,
    redis           text        DEFAULT NULL,
    owner           text        DEFAULT NULL,              -- current_user; needs SET ROLE rights on it
    enabled         boolean     DEFAULT true,              -- false: created paused, for postpipe_test first (as CREATE SUBSCRIPTION ... enabled = false)
    options         jsonb       DEFAULT '{}',              -- docs/configuration.md has them
    if_not_exists   boolean     DEFAULT false
) RETURNS text                                             -- the statement that will run
AS 'MODULE_PATHNAME', 'postpipe_create_pipeline' LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
CREATE FUNCTION @extschema@.postpipe_alter_pipeline(
    pipeline        text,
    target          text        DEFAULT NULL,
    statement       text        DEFAULT NULL,
    key             text[]      DEFAULT NULL,
    on_conflict     text        DEFAULT NULL,
    newer_by        text        DEFAULT NULL,
    columns         jsonb       DEFAULT NULL,
    event_types     text[]      DEFAULT NULL,
    workers         integer     DEFAULT NULL,
    redis           text        DEFAULT NULL,
    owner           text        DEFAULT NULL,
    options         jsonb       DEFAULT NULL,              -- merged; a key with null goes back to the setting
    reset           text[]      DEFAULT NULL,              -- arguments that go back to their default, which NULL cannot say
    new_name        text        DEFAULT NULL               -- refused, with what to do instead
) RETURNS text AS 'MODULE_PATHNAME', 'postpipe_alter_pipeline' LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;

CREATE FUNCTION @extschema@.postpipe_drop_pipeline(pipeline text, if_exists boolean DEFAULT false, destroy_group boolean DEFAULT false, discard_dead boolean DEFAULT false)
    RETURNS boolean AS 'MODULE_PATHNAME', 'postpipe_drop_pipeline' LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;
CREATE FUNCTION @extschema@.postpipe_pause(pipeline text, reason text DEFAULT NULL)               -- takes effect at commit
    RETURNS void AS 'MODULE_PATHNAME', 'postpipe_pause' LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
CREATE FUNCTION @extschema@.postpipe_resume(pipeline text, take_over boolean DEFAULT false)       -- take_over: this database is the owner from now on, as after a restore or pg_upgrade
    RETURNS void AS 'MODULE_PATHNAME', 'postpipe_resume' LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;
CREATE FUNCTION @extschema@.postpipe_wait_state(pipeline text, state text, timeout interval DEFAULT '30s')   -- 'paused' = no transaction of it is open any more
    RETURNS boolean AS 'MODULE_PATHNAME', 'postpipe_wait_state' LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;
-- Look, before and after
CREATE FUNCTION @extschema@.postpipe_test(pipeline text, entries integer DEFAULT 10, from_id text DEFAULT NULL, statement text DEFAULT NULL,
        OUT id @extschema@.postpipe_id, OUT ok boolean, OUT sqlstate text, OUT message text, OUT detail text, OUT result jsonb)   -- statement: try another one
    RETURNS SETOF record AS 'MODULE_PATHNAME', 'postpipe_test' LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
CREATE FUNCTION @extschema@.postpipe_peek(pipeline text, from_id text DEFAULT '-', to_id text DEFAULT '+', max_entries integer DEFAULT 10,
        OUT id @extschema@.postpipe_id, OUT added_at timestamptz, OUT event jsonb, OUT envelope jsonb, OUT status text)            -- applied | filtered | dead | retrying | pending | unread | NULL: acknowledged by others
    RETURNS SETOF record AS 'MODULE_PATHNAME', 'postpipe_peek' LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;
CREATE FUNCTION @extschema@.postpipe_wait(pipeline text, id @extschema@.postpipe_id, timeout interval DEFAULT '10s')
    RETURNS boolean AS 'MODULE_PATHNAME', 'postpipe_wait' LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;
CREATE FUNCTION @extschema@.postpipe_rewind(pipeline text, to_id text DEFAULT NULL, to_time timestamptz DEFAULT NULL)  -- applies AGAIN, on purpose: opens an epoch; needs a paused pipeline
    RETURNS bigint AS 'MODULE_PATHNAME', 'postpipe_rewind' LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;    -- entries that will be read
CREATE FUNCTION @extschema@.postpipe_backfill(pipeline text, from_id text DEFAULT '-', to_id text DEFAULT '+', into_table regclass DEFAULT NULL, again boolean DEFAULT false,
        OUT entries bigint, OUT applied bigint, OUT deduplicated bigint, OUT failed bigint)                            -- XRANGE; the group is not touched
    RETURNS record AS 'MODULE_PATHNAME', 'postpipe_backfill' LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;

-- Dead letters: one filter, two verbs. since (included) and until (not) are about the first failure; the earliest entries come first.
CREATE FUNCTION @extschema@.postpipe_replay(pipeline text, ids @extschema@.postpipe_id[] DEFAULT NULL, sqlstate text DEFAULT NULL, since timestamptz DEFAULT NULL, until timestamptz DEFAULT NULL, max_entries integer DEFAULT NULL,
        OUT matched bigint, OUT applied bigint, OUT failed bigint)
    RETURNS record AS 'MODULE_PATHNAME', 'postpipe_replay' LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
CREATE FUNCTION @extschema@.postpipe_discard(pipeline text, ids @extschema@.postpipe_id[] DEFAULT NULL, sqlstate text DEFAULT NULL, since timestamptz DEFAULT NULL, until timestamptz DEFAULT NULL, max_entries integer DEFAULT NULL, reason text DEFAULT NULL)
    RETURNS bigint AS 'MODULE_PATHNAME', 'postpipe_discard' LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;   -- counted in postpipe_audit.discarded
CREATE FUNCTION @extschema@.postpipe_skip(pipeline text, id @extschema@.postpipe_id, reason text DEFAULT NULL)          -- as ALTER SUBSCRIPTION ... SKIP: straight to the dead letters, never run
    RETURNS boolean AS 'MODULE_PATHNAME', 'postpipe_skip' LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
-- Redis by hand
CREATE FUNCTION @extschema@.postpipe_consumers(pipeline text,                                                                     -- XINFO CONSUMERS
        OUT consumer text, OUT pending bigint, OUT idle_seconds double precision, OUT inactive_seconds double precision, OUT ours boolean, OUT pid integer)
    RETURNS SETOF record AS 'MODULE_PATHNAME', 'postpipe_consumers' LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;
CREATE FUNCTION @extschema@.postpipe_pending(pipeline text, max_entries integer DEFAULT 100,                                      -- XPENDING, the extended form
        OUT id @extschema@.postpipe_id, OUT consumer text, OUT idle_seconds double precision, OUT delivery_count bigint, OUT in_ledger boolean)
    RETURNS SETOF record AS 'MODULE_PATHNAME', 'postpipe_pending' LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;
CREATE FUNCTION @extschema@.postpipe_create_group(pipeline text, start_id text DEFAULT '0') RETURNS boolean AS 'MODULE_PATHNAME', 'postpipe_create_group' LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;
CREATE FUNCTION @extschema@.postpipe_claim(pipeline text, consumer text DEFAULT NULL, min_idle interval DEFAULT NULL) RETURNS bigint AS 'MODULE_PATHNAME', 'postpipe_claim' LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
CREATE FUNCTION @extschema@.postpipe_reap_consumers(pipeline text, min_idle interval DEFAULT '1 hour', only_consumer text DEFAULT NULL, dry_run boolean DEFAULT false,
        OUT consumer text, OUT idle_seconds double precision, OUT pending bigint, OUT reaped boolean)
    RETURNS SETOF record AS 'MODULE_PATHNAME', 'postpipe_reap_consumers' LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
CREATE FUNCTION @extschema@.postpipe_publish(pipeline text, event jsonb, max_len bigint DEFAULT NULL) RETURNS @extschema@.postpipe_id   -- sent at once, not at commit
    AS 'MODULE_PATHNAME', 'postpipe_publish' LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
-- Without Redis: an object or an array of objects; id makes a client's retry exact.
CREATE FUNCTION @extschema@.postpipe_ingest(pipeline text, event jsonb, id @extschema@.postpipe_id DEFAULT NULL) RETURNS bigint
    AS 'MODULE_PATHNAME', 'postpipe_ingest' LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;

CREATE FUNCTION @extschema@.postpipe_check(for_pipeline text DEFAULT NULL,
        OUT pipeline text, OUT check_name text, OUT status text, OUT detail text, OUT hint text)          -- ok | warning | error; `check` is a reserved word
    RETURNS SETOF record AS 'MODULE_PATHNAME', 'postpipe_check' LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
CREATE FUNCTION @extschema@.postpipe_selftest(timeout interval DEFAULT '30s', OUT step text, OUT ok boolean, OUT detail text)  -- own stream, group and table: production's foreign keys would refuse a test event
    RETURNS SETOF record AS 'MODULE_PATHNAME', 'postpipe_selftest' LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
CREATE FUNCTION @extschema@.postpipe_reset_stats(pipeline text DEFAULT NULL) RETURNS void AS 'MODULE_PATHNAME', 'postpipe_reset_stats' LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
CREATE FUNCTION @extschema@.postpipe_redis_validator(options text[], catalog oid) RETURNS void AS 'MODULE_PATHNAME', 'postpipe_redis_validator' LANGUAGE C VOLATILE STRICT PARALLEL SAFE;

-- Redis servers besides postpipe.redis_url: CREATE SERVER ... FOREIGN DATA WRAPPER postpipe_redis OPTIONS (url 'redis://...').
CREATE FOREIGN DATA WRAPPER postpipe_redis NO HANDLER VALIDATOR @extschema@.postpipe_redis_validator;

CREATE FUNCTION @extschema@.postpipe_version(OUT library text, OUT sql text, OUT hiredis text, OUT tls boolean) AS 'MODULE_PATHNAME', 'postpipe_version' LANGUAGE C STABLE PARALLEL SAFE;

---------------------------------------------------------------------------------------------------------------------------
-- Views. Under each a versioned C function: a new column is a new function, so an old SQL object never meets a new row type.
CREATE FUNCTION @extschema@.postpipe_stats_0_1(
    OUT pipeline text, OUT state text, OUT reason_code text, OUT reason text,
    OUT stream text, OUT consumer_group text, OUT workers integer, OUT workers_wanted integer,
    OUT entries_read bigint, OUT entries_applied bigint, OUT entries_conflicted bigint, OUT entries_filtered bigint, OUT entries_deduplicated bigint,
    OUT entries_dead bigint, OUT entries_retried bigint, OUT entries_lost bigint, OUT entries_ingested bigint, OUT bytes_read bigint, OUT batches bigint,
    OUT pending bigint, OUT lag bigint, OUT lag_seconds double precision, OUT oldest_pending_seconds double precision, OUT dead_letters bigint, OUT oldest_dead_letter_at timestamptz,
    OUT entries_per_second double precision, OUT eta_seconds double precision,            -- over the last minute
    OUT last_id @extschema@.postpipe_id, OUT last_read_at timestamptz, OUT last_applied_at timestamptz, OUT last_ack_at timestamptz,
    OUT reconnects bigint, OUT worker_restarts bigint, OUT last_error text, OUT last_error_sqlstate text, OUT last_error_at timestamptz,
    OUT measured_at timestamptz,                                                          -- when pending, lag, stream facts were last asked of Redis
    OUT stats_reset timestamptz)
    RETURNS SETOF record AS 'MODULE_PATHNAME', 'postpipe_stats_0_1' LANGUAGE C VOLATILE PARALLEL SAFE;
CREATE VIEW @extschema@.postpipe_stats AS SELECT * FROM @extschema@.postpipe_stats_0_1();

CREATE FUNCTION @extschema@.postpipe_latency_0_1(                                          -- one row per pipeline and operation (upsert | ack | batch | end_to_end), over the last five to six minutes
    OUT pipeline text, OUT operation text, OUT count bigint, OUT p50_seconds double precision, OUT p95_seconds double precision, OUT p99_seconds double precision, OUT max_seconds double precision)
    RETURNS SETOF record AS 'MODULE_PATHNAME', 'postpipe_latency_0_1' LANGUAGE C VOLATILE PARALLEL SAFE;
CREATE VIEW @extschema@.postpipe_latency AS SELECT * FROM @extschema@.postpipe_latency_0_1();

-- What \watch and a person at 02:00 need. In psql it takes 120 columns at most, with numbers of 9 digits and a name of 31 letters:
-- the reason has what the longest name leaves, from 6 to 28. A name is never cut, so only longer ones make the line longer.
CREATE VIEW @extschema@.postpipe_status AS
    SELECT pipeline, state, lag, pending, dead_letters AS dead, pg_catalog.round(entries_per_second::numeric) AS per_second,
           pg_catalog.make_interval(secs => pg_catalog.round(lag_seconds)) AS behind, pg_catalog.make_interval(secs => pg_catalog.round(eta_seconds)) AS eta,
           pg_catalog.left(coalesce(reason, ''), least(28, greatest(6, 37 OPERATOR(pg_catalog.-) pg_catalog.max(pg_catalog.length(pipeline)) OVER ()))) AS reason
    FROM @extschema@.postpipe_stats;

CREATE FUNCTION @extschema@.postpipe_workers_0_1(
    OUT pid integer, OUT datname text, OUT backend_type text, OUT pipeline text, OUT worker integer, OUT owner text,           -- launcher | supervisor | worker, of all databases
    OUT state text, OUT reason_code text, OUT reason text, OUT consumer text,
    OUT backend_start timestamptz, OUT state_change timestamptz, OUT last_read_at timestamptz, OUT last_commit_at timestamptz, OUT last_ack_at timestamptz,
    OUT batch_entries integer, OUT batch_bytes bigint, OUT batch_first_id @extschema@.postpipe_id, OUT batch_last_id @extschema@.postpipe_id, OUT batch_started_at timestamptz,
    OUT redis text, OUT redis_role text, OUT redis_version text, OUT redis_client_id bigint, OUT reconnects bigint, OUT restarts bigint, OUT next_attempt_at timestamptz,
    OUT memory_bytes bigint, OUT last_error text, OUT last_error_sqlstate text, OUT last_error_at timestamptz)
    RETURNS SETOF record AS 'MODULE_PATHNAME', 'postpipe_workers_0_1' LANGUAGE C VOLATILE PARALLEL SAFE;
CREATE VIEW @extschema@.postpipe_workers AS SELECT * FROM @extschema@.postpipe_workers_0_1();

CREATE FUNCTION @extschema@.postpipe_events_0_1(                                           -- the last 256 changes of state and errors: the night's history without the log file
    OUT at timestamptz, OUT pipeline text, OUT pid integer, OUT severity text, OUT state text, OUT reason_code text, OUT sqlstate text, OUT message text, OUT hint text, OUT repeated bigint)
    RETURNS SETOF record AS 'MODULE_PATHNAME', 'postpipe_events_0_1' LANGUAGE C VOLATILE PARALLEL SAFE;
CREATE VIEW @extschema@.postpipe_events AS SELECT * FROM @extschema@.postpipe_events_0_1();

CREATE FUNCTION @extschema@.postpipe_pipelines_0_1(                                        -- the statement as it runs; the pipeline `posts` also while it has no row
    OUT pipeline text, OUT owner text, OUT stream text, OUT consumer_group text, OUT redis text, OUT target text, OUT key text[],
    OUT on_conflict text, OUT newer_by text, OUT columns jsonb, OUT event_types text[], OUT statement text, OUT generated boolean,
    OUT search_path text, OUT workers integer, OUT enabled boolean, OUT enabled_reason text, OUT options jsonb,
    OUT created_at timestamptz, OUT altered_at timestamptz)
    RETURNS SETOF record AS 'MODULE_PATHNAME', 'postpipe_pipelines_0_1' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE VIEW @extschema@.postpipe_pipelines AS SELECT * FROM @extschema@.postpipe_pipelines_0_1();

CREATE FUNCTION @extschema@.postpipe_pipeline_owner(pipeline text) RETURNS oid AS 'MODULE_PATHNAME', 'postpipe_pipeline_owner' LANGUAGE C STABLE STRICT PARALLEL UNSAFE;

-- Payloads are not for pg_monitor: rows go to members of the pipeline's owner.
CREATE VIEW @extschema@.postpipe_dlq WITH (security_barrier) AS
    SELECT d.pipeline, d.id, d.epoch, d.stream, d.state, d.sqlstate, d.message, d.detail, d.hint, d.context, d.schema_name, d.table_name, d.column_name, d.constraint_name,
           d.attempts, d.first_failed_at, d.last_failed_at, d.next_retry_at, d.added_at, d.worker, d.size_bytes, d.event, d.fields
    FROM @extschema@.postpipe_dead_letter d
    WHERE pg_catalog.pg_has_role(@extschema@.postpipe_pipeline_owner(d.pipeline), 'USAGE') OR pg_catalog.pg_has_role('pg_read_all_data', 'USAGE');

-- added = applied + filtered + retrying + dead + discarded + lost + pending + lag + balance; one row per pipeline and epoch. added, pending and
-- lag are Redis's, the others are from tables and outlive a crash. deduplicated counts deliveries since the last reset, so it is not in the sum.
CREATE FUNCTION @extschema@.postpipe_audit_0_1(
    OUT pipeline text, OUT epoch integer, OUT since_id @extschema@.postpipe_id, OUT sealed_id @extschema@.postpipe_id, OUT last_id @extschema@.postpipe_id,
    OUT added bigint, OUT applied bigint, OUT filtered bigint, OUT retrying bigint, OUT dead bigint, OUT discarded bigint, OUT lost bigint, OUT pending bigint, OUT lag bigint,
    OUT balance bigint, OUT deduplicated bigint, OUT ingested bigint, OUT exact boolean, OUT reason text, OUT measured_at timestamptz)
    RETURNS SETOF record AS 'MODULE_PATHNAME', 'postpipe_audit_0_1' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE VIEW @extschema@.postpipe_audit AS SELECT * FROM @extschema@.postpipe_audit_0_1();
CREATE FUNCTION @extschema@.postpipe_lost_0_1(OUT pipeline text, OUT epoch integer, OUT first_id @extschema@.postpipe_id, OUT last_id @extschema@.postpipe_id, OUT entries bigint, OUT cause text, OUT noticed_at timestamptz)
    RETURNS SETOF record AS 'MODULE_PATHNAME', 'postpipe_lost_0_1' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE VIEW @extschema@.postpipe_lost AS SELECT * FROM @extschema@.postpipe_lost_0_1();

-- Metrics: one row per sample, names and labels as Prometheus has them (histograms as _bucket, _sum, _count with le). value is NULL when unknown.
CREATE FUNCTION @extschema@.postpipe_metrics_0_1(OUT name text, OUT labels jsonb, OUT value double precision, OUT type text, OUT help text)
    RETURNS SETOF record AS 'MODULE_PATHNAME', 'postpipe_metrics_0_1' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE VIEW @extschema@.postpipe_metrics AS SELECT * FROM @extschema@.postpipe_metrics_0_1();
-- The same histograms as arrays, the form that postgres_exporter's HISTOGRAM reads: upper bounds, CUMULATIVE counts as bigint[], without +Inf.
CREATE FUNCTION @extschema@.postpipe_histograms_0_1(OUT name text, OUT labels jsonb, OUT le double precision[], OUT buckets bigint[], OUT sum double precision, OUT count bigint)
    RETURNS SETOF record AS 'MODULE_PATHNAME', 'postpipe_histograms_0_1' LANGUAGE C VOLATILE PARALLEL SAFE;
CREATE VIEW @extschema@.postpipe_histograms AS SELECT * FROM @extschema@.postpipe_histograms_0_1();
CREATE FUNCTION @extschema@.postpipe_prometheus() RETURNS SETOF text AS 'MODULE_PATHNAME', 'postpipe_prometheus' LANGUAGE C VOLATILE PARALLEL UNSAFE;  -- the text exposition format

---------------------------------------------------------------------------------------------------------------------------
-- Who may. A function called in a view is checked against the reader, not the view's owner: both are granted.
REVOKE EXECUTE ON FUNCTION
    @extschema@.postpipe_definition_changed,
    @extschema@.postpipe_create_pipeline,
    @extschema@.postpipe_alter_pipeline,
    @extschema@.postpipe_drop_pipeline,
    @extschema@.postpipe_pause,
    @extschema@.postpipe_resume,
    @extschema@.postpipe_wait_state,
    @extschema@.postpipe_test,
    @extschema@.postpipe_peek,
    @extschema@.postpipe_wait,
    @extschema@.postpipe_rewind,
    @extschema@.postpipe_backfill,
    @extschema@.postpipe_replay,
    @extschema@.postpipe_discard,
    @extschema@.postpipe_skip,
    @extschema@.postpipe_consumers,
    @extschema@.postpipe_pending,
    @extschema@.postpipe_create_group,
    @extschema@.postpipe_claim,
    @extschema@.postpipe_reap_consumers,
    @extschema@.postpipe_publish,
    @extschema@.postpipe_ingest,
    @extschema@.postpipe_check,
    @extschema@.postpipe_selftest,
    @extschema@.postpipe_reset_stats,
    @extschema@.postpipe_version,
    @extschema@.postpipe_redis_validator,
    @extschema@.postpipe_stats_0_1,
    @extschema@.postpipe_workers_0_1,
    @extschema@.postpipe_audit_0_1,
    @extschema@.postpipe_lost_0_1,
    @extschema@.postpipe_events_0_1,
    @extschema@.postpipe_latency_0_1,
    @extschema@.postpipe_metrics_0_1,
    @extschema@.postpipe_histograms_0_1,
    @extschema@.postpipe_prometheus
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION @extschema@.postpipe_stats_0_1(), @extschema@.postpipe_workers_0_1(), @extschema@.postpipe_audit_0_1(), @extschema@.postpipe_lost_0_1(), @extschema@.postpipe_events_0_1(), @extschema@.postpipe_latency_0_1(), @extschema@.postpipe_metrics_0_1(), @extschema@.postpipe_histograms_0_1(), @extschema@.postpipe_prometheus(), @extschema@.postpipe_check(text), @extschema@.postpipe_version() TO pg_monitor;
GRANT SELECT ON @extschema@.postpipe_stats, @extschema@.postpipe_status, @extschema@.postpipe_workers, @extschema@.postpipe_audit, @extschema@.postpipe_lost, @extschema@.postpipe_events, @extschema@.postpipe_latency, @extschema@.postpipe_metrics, @extschema@.postpipe_histograms TO pg_monitor;
GRANT SELECT ON @extschema@.postpipe_pipelines, @extschema@.postpipe_dlq TO PUBLIC;

COMMENT ON TYPE @extschema@.postpipe_id IS 'ID of a Redis stream entry: milliseconds and sequence number';
COMMENT ON TABLE @extschema@.postpipe_pipeline IS 'definitions of pipelines; use the functions to change them';
COMMENT ON TABLE @extschema@.postpipe_dead_letter IS 'entries that could not be applied; read them in postpipe_dlq';
COMMENT ON TABLE @extschema@.postpipe_ledger IS 'internal: which entries are settled';
COMMENT ON TABLE @extschema@.postpipe_epoch IS 'internal: epochs of each pipeline';
COMMENT ON TABLE @extschema@.postpipe_progress IS 'internal: ownership and seal of each pipeline';
COMMENT ON TABLE @extschema@.postpipe_lost_range IS 'internal: under the view postpipe_lost';
COMMENT ON TABLE @extschema@.postpipe_ingested IS 'internal: what came in by postpipe_ingest and postpipe_backfill';
COMMENT ON FUNCTION @extschema@.postpipe_definition_changed() IS 'internal: wakes the supervisor at commit';
COMMENT ON FUNCTION @extschema@.postpipe_create_pipeline IS 'makes a pipeline from a stream to a target table or a statement; returns the statement that will run';
COMMENT ON FUNCTION @extschema@.postpipe_alter_pipeline IS 'changes the definition of a pipeline while it runs; returns the statement that will run';
COMMENT ON FUNCTION @extschema@.postpipe_drop_pipeline IS 'drops a pipeline; refuses while it has dead letters, unless discard_dead';
COMMENT ON FUNCTION @extschema@.postpipe_pause IS 'stops reading of a pipeline at commit; nothing is lost';
COMMENT ON FUNCTION @extschema@.postpipe_resume IS 'starts a paused pipeline again; take_over makes this database the owner of its group';
COMMENT ON FUNCTION @extschema@.postpipe_wait_state IS 'waits until a pipeline is in a state (running: or idle); false when time is up';
COMMENT ON FUNCTION @extschema@.postpipe_test IS 'runs the statement, or another one, over entries of the stream and rolls it back: a verdict for each entry';
COMMENT ON FUNCTION @extschema@.postpipe_peek IS 'entries of the stream as the pipeline sees them, and what became of each';
COMMENT ON FUNCTION @extschema@.postpipe_wait IS 'waits until an entry is applied or filtered; false when time is up, or when it is dead or lost';
COMMENT ON FUNCTION @extschema@.postpipe_rewind IS 'moves the group of a paused pipeline: entries after to_id are applied, also those that were already; returns how many will be read';
COMMENT ON FUNCTION @extschema@.postpipe_backfill IS 'a range of the stream through the statement, into the target or another table; the group is not touched';
COMMENT ON FUNCTION @extschema@.postpipe_replay IS 'runs the statement over dead letters, as the pipeline does, and removes those that pass';
COMMENT ON FUNCTION @extschema@.postpipe_discard IS 'removes dead letters, which stay counted in postpipe_audit; returns how many';
COMMENT ON FUNCTION @extschema@.postpipe_skip IS 'makes a dead letter of an entry that is unread, pending or tried again, without running it; false when it is settled or not there';
COMMENT ON FUNCTION @extschema@.postpipe_consumers IS 'consumers of a pipeline''s group in Redis, and the worker that each belongs to';
COMMENT ON FUNCTION @extschema@.postpipe_pending IS 'entries that are delivered and not acknowledged, and whether they are on record as settled';
COMMENT ON FUNCTION @extschema@.postpipe_create_group IS 'makes the consumer group of a pipeline; false when it was there';
COMMENT ON FUNCTION @extschema@.postpipe_claim IS 'hands what is pending for other consumers, idle for min_idle, over to worker 1; returns how many entries it has to apply';
COMMENT ON FUNCTION @extschema@.postpipe_reap_consumers IS 'deletes foreign and dead consumers that have nothing pending and were idle for min_idle; a dry run shows which';
COMMENT ON FUNCTION @extschema@.postpipe_publish IS 'adds an event to the stream of a pipeline, at once and not at commit; returns the ID of the entry';
COMMENT ON FUNCTION @extschema@.postpipe_ingest IS 'applies events as the pipeline does, without Redis and in this transaction; returns how many';
COMMENT ON FUNCTION @extschema@.postpipe_check IS 'what is wrong with servers and pipelines, one line for each thing that was looked at, with what to run';
COMMENT ON FUNCTION @extschema@.postpipe_selftest IS 'an event from XADD to its row and its acknowledgement, step by step, in a stream and a table of its own';
COMMENT ON FUNCTION @extschema@.postpipe_reset_stats IS 'sets the counters of a pipeline, or of all, back to 0; the audit is not touched';
COMMENT ON FUNCTION @extschema@.postpipe_redis_validator(text[], oid) IS 'checks the options of a Redis server and of its user mappings';
COMMENT ON FOREIGN DATA WRAPPER postpipe_redis IS 'servers of Redis that pipelines may read from, with a log-in for each role';
COMMENT ON FUNCTION @extschema@.postpipe_version() IS 'versions of the library, the SQL objects and hiredis';
COMMENT ON FUNCTION @extschema@.postpipe_id_time IS 'time in an entry ID';
COMMENT ON FUNCTION @extschema@.postpipe_pipeline_owner IS 'internal: owner of a pipeline';
COMMENT ON VIEW @extschema@.postpipe_stats IS 'numbers of each pipeline of this database';
COMMENT ON VIEW @extschema@.postpipe_status IS 'state of each pipeline in one line';
COMMENT ON VIEW @extschema@.postpipe_workers IS 'processes of postpipe, of all databases';
COMMENT ON VIEW @extschema@.postpipe_pipelines IS 'definitions of pipelines, with the statement that runs';
COMMENT ON VIEW @extschema@.postpipe_dlq IS 'dead letters';
COMMENT ON VIEW @extschema@.postpipe_audit IS 'added = applied + filtered + retrying + dead + discarded + lost + pending + lag + balance';
COMMENT ON VIEW @extschema@.postpipe_lost IS 'entries that were gone from their stream, or passed over by a rewind, before they were applied';
COMMENT ON VIEW @extschema@.postpipe_events IS 'the last changes of state and errors';
COMMENT ON VIEW @extschema@.postpipe_latency IS 'how long steps took in the last five to six minutes';
COMMENT ON VIEW @extschema@.postpipe_metrics IS 'one row per sample, names and labels as Prometheus has them';
COMMENT ON VIEW @extschema@.postpipe_histograms IS 'the histograms of postpipe_metrics as arrays';

COMMENT ON FUNCTION @extschema@.postpipe_id_in(cstring) IS 'input of postpipe_id';
COMMENT ON FUNCTION @extschema@.postpipe_id_out(@extschema@.postpipe_id) IS 'output of postpipe_id';
COMMENT ON FUNCTION @extschema@.postpipe_id_cmp(@extschema@.postpipe_id, @extschema@.postpipe_id) IS 'compares two entry IDs: -1, 0 or 1';
COMMENT ON FUNCTION @extschema@.postpipe_id_hash(@extschema@.postpipe_id) IS 'hash of an entry ID';
COMMENT ON FUNCTION @extschema@.postpipe_id_larger(@extschema@.postpipe_id, @extschema@.postpipe_id) IS 'later of two entry IDs';
COMMENT ON FUNCTION @extschema@.postpipe_id_smaller(@extschema@.postpipe_id, @extschema@.postpipe_id) IS 'earlier of two entry IDs';
COMMENT ON FUNCTION @extschema@.postpipe_id_lt(@extschema@.postpipe_id, @extschema@.postpipe_id) IS 'implementation of < operator';
COMMENT ON OPERATOR @extschema@.< (@extschema@.postpipe_id, @extschema@.postpipe_id) IS 'less than';
COMMENT ON FUNCTION @extschema@.postpipe_id_le(@extschema@.postpipe_id, @extschema@.postpipe_id) IS 'implementation of <= operator';
COMMENT ON OPERATOR @extschema@.<= (@extschema@.postpipe_id, @extschema@.postpipe_id) IS 'less than or equal';
COMMENT ON FUNCTION @extschema@.postpipe_id_eq(@extschema@.postpipe_id, @extschema@.postpipe_id) IS 'implementation of = operator';
COMMENT ON OPERATOR @extschema@.= (@extschema@.postpipe_id, @extschema@.postpipe_id) IS 'equal';
COMMENT ON FUNCTION @extschema@.postpipe_id_ne(@extschema@.postpipe_id, @extschema@.postpipe_id) IS 'implementation of <> operator';
COMMENT ON OPERATOR @extschema@.<> (@extschema@.postpipe_id, @extschema@.postpipe_id) IS 'not equal';
COMMENT ON FUNCTION @extschema@.postpipe_id_ge(@extschema@.postpipe_id, @extschema@.postpipe_id) IS 'implementation of >= operator';
COMMENT ON OPERATOR @extschema@.>= (@extschema@.postpipe_id, @extschema@.postpipe_id) IS 'greater than or equal';
COMMENT ON FUNCTION @extschema@.postpipe_id_gt(@extschema@.postpipe_id, @extschema@.postpipe_id) IS 'implementation of > operator';
COMMENT ON OPERATOR @extschema@.> (@extschema@.postpipe_id, @extschema@.postpipe_id) IS 'greater than';
COMMENT ON OPERATOR CLASS @extschema@.postpipe_id_ops USING btree IS 'stream order of entry IDs';
COMMENT ON OPERATOR CLASS @extschema@.postpipe_id_hash_ops USING hash IS 'hash of entry IDs';
COMMENT ON AGGREGATE @extschema@.max(@extschema@.postpipe_id) IS 'latest entry ID';
COMMENT ON AGGREGATE @extschema@.min(@extschema@.postpipe_id) IS 'earliest entry ID';
COMMENT ON FUNCTION @extschema@.postpipe_events_0_1 IS 'internal: under the view postpipe_events';
COMMENT ON FUNCTION @extschema@.postpipe_latency_0_1 IS 'internal: under the view postpipe_latency';
COMMENT ON FUNCTION @extschema@.postpipe_metrics_0_1 IS 'internal: under the view postpipe_metrics';
COMMENT ON FUNCTION @extschema@.postpipe_histograms_0_1 IS 'internal: under the view postpipe_histograms';
COMMENT ON FUNCTION @extschema@.postpipe_prometheus IS 'the samples of postpipe_metrics in the text exposition format';
COMMENT ON FUNCTION @extschema@.postpipe_stats_0_1 IS 'internal: under the view postpipe_stats';
COMMENT ON FUNCTION @extschema@.postpipe_workers_0_1 IS 'internal: under the view postpipe_workers';
COMMENT ON FUNCTION @extschema@.postpipe_audit_0_1 IS 'internal: under the view postpipe_audit';
COMMENT ON FUNCTION @extschema@.postpipe_lost_0_1 IS 'internal: under the view postpipe_lost';
COMMENT ON FUNCTION @extschema@.postpipe_pipelines_0_1 IS 'internal: under the view postpipe_pipelines';

-- Changes nothing; but its trigger tells whether the library is preloaded and this database listed, and wakes the supervisor.
DELETE FROM @extschema@.postpipe_pipeline;
