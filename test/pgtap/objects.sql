-- The extension and its objects: what belongs to it, what does not, and how each is marked.
BEGIN;
SELECT no_plan();

-- The members, but for the row types and the indexes, which follow their tables.
CREATE TEMP TABLE member AS
SELECT d.classid, d.objid, pg_describe_object(d.classid, d.objid, 0) AS described
FROM pg_depend d WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
    AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'postpipe');
CREATE TEMP VIEW member_function AS
SELECT p.* FROM pg_proc p JOIN member m ON m.classid = 'pg_proc'::regclass AND m.objid = p.oid;

SELECT has_extension('postpipe');
SELECT is(extrelocatable, false, 'the extension is not relocatable') FROM pg_extension WHERE extname = 'postpipe';
SELECT isnt(extversion, NULL, 'it has a version') FROM pg_extension WHERE extname = 'postpipe';
SELECT is((SELECT extversion FROM pg_extension WHERE extname = 'postpipe'), (SELECT default_version FROM pg_available_extensions WHERE name = 'postpipe'),
    'it is of the version of the control file');
SELECT is(library, sql, 'library and SQL objects are of one version') FROM postpipe_version();
SELECT is((SELECT superuser AND NOT trusted FROM pg_available_extension_versions WHERE name = 'postpipe' AND installed), true,
    'only a superuser creates it');
SELECT is((SELECT array_agg(c.oid::regclass::text) FROM pg_extension e, unnest(e.extconfig) c (oid) WHERE extname = 'postpipe'), '{postpipe_pipeline}',
    'definitions are dumped, and nothing else is');

-- All that has our name is a member, and all members have our name.
SELECT is_empty($$
    SELECT c.oid::regclass FROM pg_class c WHERE relname LIKE 'postpipe%' AND relkind IN ('r', 'v', 'm', 'S', 'p', 'f')
        AND NOT EXISTS (SELECT FROM member WHERE classid = 'pg_class'::regclass AND objid = c.oid) $$, 'every relation postpipe* is a member');
SELECT is_empty($$
    SELECT p.oid::regprocedure FROM pg_proc p WHERE proname LIKE 'postpipe%'
        AND NOT EXISTS (SELECT FROM member WHERE classid = 'pg_proc'::regclass AND objid = p.oid) $$, 'every function postpipe* is a member');
SELECT is_empty($$
    SELECT described FROM member WHERE described !~ 'postpipe_' $$, 'every member says postpipe in its name or its arguments');
SELECT is_empty($$
    SELECT proname FROM member_function GROUP BY 1 HAVING count(*) > 1 $$, 'no function is overloaded');

SELECT set_eq($$ SELECT described FROM member WHERE classid = 'pg_class'::regclass $$, ARRAY[
    'table postpipe_pipeline', 'table postpipe_dead_letter', 'table postpipe_ledger', 'table postpipe_epoch', 'table postpipe_progress', 'table postpipe_lost_range', 'table postpipe_ingested',
    'view postpipe_stats', 'view postpipe_status', 'view postpipe_workers', 'view postpipe_pipelines', 'view postpipe_dlq', 'view postpipe_audit',
    'view postpipe_lost', 'view postpipe_latency', 'view postpipe_events', 'view postpipe_metrics', 'view postpipe_histograms'],
    'the relations are these');
SELECT is((SELECT count(*) FROM member WHERE classid IN ('pg_rewrite'::regclass, 'pg_trigger'::regclass, 'pg_cast'::regclass, 'pg_event_trigger'::regclass)), 0::bigint,
    'no cast and no event trigger');
SELECT is((SELECT string_agg(format('%s %s', tgname, tgenabled), ', ') FROM pg_trigger WHERE tgrelid = 'postpipe_pipeline'::regclass), 'postpipe_definition_changed A',
    'the trigger that wakes the supervisor fires whatever session_replication_role is');

-- The table that the built-in pipeline fills is the user's.
CREATE TABLE IF NOT EXISTS public.posts (id text);
SELECT is_empty($$ SELECT described FROM member WHERE described ~ '\mposts\M' $$, 'posts is not a member');
SELECT is_empty($$
    SELECT * FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = 'public.posts'::regclass AND refclassid IN ('pg_extension'::regclass, 'pg_type'::regclass)
        AND refobjid IN (SELECT objid FROM member) $$, 'posts depends on nothing of the extension');

-- How the functions are marked.
SELECT is_empty($$ SELECT oid::regprocedure FROM member_function WHERE prosecdef $$, 'no function is SECURITY DEFINER');
SELECT is_empty($$ SELECT oid::regprocedure FROM member_function WHERE proconfig IS NOT NULL $$, 'no function has settings of its own');
SELECT is_empty($$ SELECT oid::regprocedure FROM member_function WHERE proleakproof $$, 'no function says that it is leakproof');
SELECT is_empty($$ SELECT p.oid::regprocedure FROM member_function p JOIN pg_language l ON l.oid = prolang WHERE lanname <> 'c' AND prokind = 'f' $$,
    'every function is in C');
SELECT is_empty($$
    SELECT oid::regprocedure FROM member_function WHERE proname ~ '^postpipe_id_' AND (provolatile, proparallel, proisstrict) IS DISTINCT FROM ('i', 's', true) $$,
    'the functions of the type are IMMUTABLE, PARALLEL SAFE and STRICT');
SELECT is_empty($$ SELECT oid::regprocedure FROM member_function WHERE prokind = 'a' AND proparallel <> 's' $$, 'min and max are PARALLEL SAFE');
SELECT set_eq($$
    SELECT proname::text, provolatile::text, proparallel::text, proisstrict FROM member_function WHERE proname !~ '^postpipe_id_' AND prokind = 'f' $$, $$ VALUES
    ('postpipe_create_pipeline', 'v', 'u', false), ('postpipe_alter_pipeline', 'v', 'u', false), ('postpipe_drop_pipeline', 'v', 'u', true), ('postpipe_pause', 'v', 'u', false),
    ('postpipe_resume', 'v', 'u', true), ('postpipe_wait_state', 'v', 'u', true), ('postpipe_wait', 'v', 'u', true), ('postpipe_test', 'v', 'u', false), ('postpipe_backfill', 'v', 'u', false), ('postpipe_check', 'v', 'u', false), ('postpipe_selftest', 'v', 'u', false), ('postpipe_peek', 'v', 'u', true), ('postpipe_rewind', 'v', 'u', false),
    ('postpipe_replay', 'v', 'u', false), ('postpipe_discard', 'v', 'u', false),
    ('postpipe_consumers', 'v', 'u', true), ('postpipe_pending', 'v', 'u', true), ('postpipe_create_group', 'v', 'u', true),
    ('postpipe_claim', 'v', 'u', false), ('postpipe_skip', 'v', 'u', false), ('postpipe_publish', 'v', 'u', false), ('postpipe_ingest', 'v', 'u', false), ('postpipe_reap_consumers', 'v', 'u', false), ('postpipe_lost_0_1', 'v', 'u', false),
    ('postpipe_reset_stats', 'v', 'u', false), ('postpipe_redis_validator', 'v', 's', true), ('postpipe_version', 's', 's', false), ('postpipe_stats_0_1', 'v', 's', false), ('postpipe_workers_0_1', 'v', 's', false),
    ('postpipe_pipelines_0_1', 'v', 'u', false), ('postpipe_pipeline_owner', 's', 'u', true), ('postpipe_audit_0_1', 'v', 'u', false),
    ('postpipe_latency_0_1', 'v', 's', false), ('postpipe_events_0_1', 'v', 's', false), ('postpipe_metrics_0_1', 'v', 'u', false), ('postpipe_histograms_0_1', 'v', 's', false), ('postpipe_prometheus', 'v', 'u', false), ('postpipe_definition_changed', 'v', 'u', false) $$,
    'volatility, parallel safety and strictness of the other functions');

-- What is said of each.
SELECT is_empty($$
    SELECT described FROM member WHERE obj_description(objid, classid::regclass::name) IS NULL AND classid <> 'pg_opfamily'::regclass
        AND NOT (classid = 'pg_type'::regclass AND objid IN (SELECT oid FROM pg_type WHERE typrelid <> 0 OR typelem <> 0))   -- of tables and views: members since 17
    ORDER BY 1 $$,
    'every object has a COMMENT');
SELECT is_empty($$
    SELECT described FROM member WHERE obj_description(objid, classid::regclass::name) ~ '(^[A-Z][a-z]|\.$)' $$, 'a COMMENT is no sentence');

-- The type.
SELECT has_type('postpipe_id');
SELECT is((typlen, typbyval, typalign, typstorage)::text, '(16,f,d,p)', 'postpipe_id is 16 bytes by reference') FROM pg_type WHERE oid = 'postpipe_id'::regtype;
SELECT is((SELECT count(*) FROM pg_cast WHERE 'postpipe_id'::regtype IN (castsource, casttarget)), 0::bigint, 'it has no casts but those by text');
SELECT set_eq($$
    SELECT amname::text, opcname::text, opcdefault FROM pg_opclass JOIN pg_am am ON am.oid = opcmethod WHERE opcintype = 'postpipe_id'::regtype $$,
    $$ VALUES ('btree', 'postpipe_id_ops', true), ('hash', 'postpipe_id_hash_ops', true) $$, 'it has a default operator class for btree and for hash');
SELECT is_empty($$ SELECT opcname FROM pg_opclass WHERE opcintype = 'postpipe_id'::regtype AND NOT amvalidate(oid) $$, 'the operator classes are valid');
SELECT set_eq($$
    SELECT oprname::text, oprcom::regoperator::text, oprnegate::regoperator::text, oprcanhash, oprcanmerge FROM pg_operator WHERE oprleft = 'postpipe_id'::regtype $$,
    $$ VALUES ('<', '>(postpipe_id,postpipe_id)', '>=(postpipe_id,postpipe_id)', false, false), ('<=', '>=(postpipe_id,postpipe_id)', '>(postpipe_id,postpipe_id)', false, false),
    ('=', '=(postpipe_id,postpipe_id)', '<>(postpipe_id,postpipe_id)', true, true), ('<>', '<>(postpipe_id,postpipe_id)', '=(postpipe_id,postpipe_id)', false, false),
    ('>=', '<=(postpipe_id,postpipe_id)', '<(postpipe_id,postpipe_id)', false, false), ('>', '<(postpipe_id,postpipe_id)', '<=(postpipe_id,postpipe_id)', false, false) $$,
    'the operators know their commutators and negators');

SELECT * FROM finish();
ROLLBACK;
