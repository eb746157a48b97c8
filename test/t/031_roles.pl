# As whom a pipeline runs, what its tables' owners can do to it, and who sees what.
# TAP, because statements run in background workers, and because log file and error messages are searched for a password.

use strict;
use warnings;
use PostgreSQL::Test::Utils;
use Postpipe::Test;

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('roles', redis => $redis, conf => "postpipe.max_retries = 0\nlog_min_messages = debug1\nlog_error_verbosity = verbose\n");
sql(q(CREATE EXTENSION postpipe));
sql(q(SELECT postpipe_drop_pipeline('posts')));
sql(<<'SQL');
CREATE ROLE app LOGIN; CREATE ROLE low LOGIN; CREATE ROLE operator LOGIN; CREATE ROLE monitor LOGIN IN ROLE pg_monitor;
GRANT CREATE, USAGE ON SCHEMA public TO app, low, operator;
GRANT EXECUTE ON FUNCTION postpipe_create_pipeline, postpipe_pause, postpipe_resume, postpipe_drop_pipeline, postpipe_wait_state, postpipe_rewind TO app, low, operator;
SQL

# --- With a target: as the target's owner, whoever made the pipeline.
as('app', 'CREATE TABLE app_target (id int PRIMARY KEY, who text DEFAULT current_user, session text DEFAULT session_user)');
sql(q(SELECT postpipe_create_pipeline('by_super', 'stream:target', target => 'app_target')));
$redis->xadd('stream:target', id => 1);
wait_sql($node, 'postgres', 'SELECT who FROM app_target', 'app', 'a pipeline with target runs as the owner of the target');
is(sql(q(SELECT owner FROM postpipe_pipelines WHERE pipeline = 'by_super')), 'postgres', '... not as its own owner')
  if sql('SELECT current_user') eq 'postgres';
is(sql(q(SELECT owner FROM postpipe_workers WHERE pipeline = 'by_super')), 'app', '... and the view says so');
# Another owner, while it runs.
sql('ALTER TABLE app_target OWNER TO low');
$redis->xadd('stream:target', id => 2);
wait_sql($node, 'postgres', 'SELECT who FROM app_target WHERE id = 2', 'low', 'a new owner: it runs as him');
sql(q(SELECT postpipe_drop_pipeline('by_super')));

# --- With a statement: as the pipeline's owner, with his grants and under row security.
sql(<<'SQL');
CREATE TABLE shared (id int PRIMARY KEY, who text DEFAULT current_user, tenant text);
ALTER TABLE shared ENABLE ROW LEVEL SECURITY;
CREATE POLICY mine ON shared USING (tenant = 'app') WITH CHECK (tenant = 'app');
GRANT INSERT, SELECT ON shared TO app;
SQL
as('app', q(SELECT postpipe_create_pipeline('by_app', 'stream:statement', statement =>
	$$INSERT INTO shared (id, tenant) SELECT (event ->> 'id')::int, event ->> 'tenant' FROM postpipe_batch$$)));
$redis->xadd('stream:statement', id => 1, tenant => 'app');
wait_sql($node, 'postgres', 'SELECT who FROM shared', 'app', 'a pipeline with statement runs as its owner');
$redis->xadd('stream:statement', id => 2, tenant => 'other');
$redis->xadd('stream:statement', id => 3, tenant => 'app');
wait_sql($node, 'postgres', q(SELECT string_agg(id::text, ' ' ORDER BY id) FROM shared), '1 3', 'row security is in force');
wait_sql($node, 'postgres', q(SELECT sqlstate FROM postpipe_dlq WHERE pipeline = 'by_app'), '42501', '... and the entry it refuses is a dead letter');
is(as('app', q(SELECT count(*) FROM postpipe_dlq)), 1, 'its owner sees the dead letter');
is(as($_, q(SELECT count(*) FROM postpipe_dlq)), 0, "$_ does not") for qw(low operator monitor);
sql('GRANT app TO operator');
is(as('operator', q(SELECT count(*) FROM postpipe_dlq)), 1, 'a member of the owner does');
sql('REVOKE app FROM operator');
# A grant that is taken away: the pipeline's fault, and it heals.
sql('REVOKE INSERT ON shared FROM app');
$redis->xadd('stream:statement', id => 4, tenant => 'app');
wait_sql($node, 'postgres', q(SELECT state, reason_code FROM postpipe_stats WHERE pipeline = 'by_app'), 'failed|sqlstate_42501', 'without the grant it fails');
is(sql(q(SELECT count(*) FROM postpipe_dlq)), 1, '... and no entry is dead for it');
sql('GRANT INSERT ON shared TO app');
wait_sql($node, 'postgres', q(SELECT max(id) FROM shared), '4', '... and it goes on when the grant is back');

# --- Who may manage what.
sql(q(CREATE TABLE table_of_low (id int PRIMARY KEY); ALTER TABLE table_of_low OWNER TO low));
refused('app', q(SELECT postpipe_create_pipeline('x', 'stream:x', target => 'table_of_low')), qr/may not act as "low"/, 'no target of another role');
refused('app', q(SELECT postpipe_create_pipeline('x', 'stream:x', target => 'table_of_low', owner => 'low')), qr/must be able to SET ROLE "low"/, 'nor as another role');
refused('app', q(SELECT postpipe_create_pipeline('x', 'stream:x', statement => 'INSERT INTO table_of_low SELECT ord FROM postpipe_batch')),
	qr/permission denied for table table_of_low/, 'nor by a statement without a grant');
sql('GRANT low TO app');
as('app', q(SELECT postpipe_create_pipeline('as_low', 'stream:low', target => 'table_of_low', owner => 'low')));
is(sql(q(SELECT owner FROM postpipe_pipelines WHERE pipeline = 'as_low')), 'low', 'with SET ROLE he may');
sql('REVOKE low FROM app');
for my $call (qw(postpipe_pause postpipe_resume postpipe_drop_pipeline postpipe_rewind))
{
	refused('app', "SELECT $call('as_low')", qr/must be a member of role "low"/, "$call of another's pipeline");
}
refused('app', q(SELECT postpipe_wait_state('as_low', 'idle')), qr/must be a member of role "low"/, 'postpipe_wait_state of it');
is(as('app', q(SELECT postpipe_pause('by_app'); SELECT postpipe_wait_state('by_app', 'paused'))), "\nt", 'his own he pauses');
is(as('app', q(SELECT postpipe_resume('by_app'); SELECT postpipe_wait_state('by_app', 'idle'))), "\nt", '... resumes');
refused('app', q(SELECT postpipe_drop_pipeline('by_app')), qr/has 1 dead letters?/, '... not drops while there are dead letters');
is(as('app', q(SELECT postpipe_drop_pipeline('by_app', discard_dead => true))), 't', '... and drops');
refused('monitor', q(SELECT postpipe_pause('as_low')), qr/permission denied for function/, 'without EXECUTE nobody does');

# --- What a table's owner tries through a trigger. He never becomes more than he is.
sql('CREATE TABLE bait (id int PRIMARY KEY, v text); ALTER TABLE bait OWNER TO low');
as('low', <<'SQL');
CREATE FUNCTION climb() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    BEGIN EXECUTE 'ALTER ROLE low SUPERUSER'; EXCEPTION WHEN OTHERS THEN NULL; END;
    BEGIN EXECUTE 'GRANT pg_read_all_data TO low'; EXCEPTION WHEN OTHERS THEN NULL; END;
    BEGIN EXECUTE 'RESET ROLE'; EXECUTE 'ALTER ROLE low SUPERUSER'; EXCEPTION WHEN OTHERS THEN NULL; END;
    BEGIN EXECUTE 'RESET SESSION AUTHORIZATION'; EXECUTE 'ALTER ROLE low SUPERUSER'; EXCEPTION WHEN OTHERS THEN NULL; END;
    RETURN NEW;
END $$;
CREATE TRIGGER climb BEFORE INSERT ON bait FOR EACH ROW EXECUTE FUNCTION climb();
SQL
refused(undef, q(SELECT postpipe_create_pipeline('trap', 'stream:bait', statement => $$INSERT INTO bait SELECT (event ->> 'id')::int FROM postpipe_batch$$)),
	qr/may not write table "bait" of role "low"/, q(a superuser's statement on another role's table is refused));
refused(undef, q(SELECT postpipe_create_pipeline('trap', 'stream:bait', statement => $$WITH x AS (INSERT INTO bait SELECT (event ->> 'id')::int FROM postpipe_batch RETURNING id) SELECT * FROM x$$)),
	qr/may not write table "bait" of role "low"/, '... also inside of WITH');
sql(q(CREATE VIEW bait_view AS SELECT * FROM bait));
refused(undef, q(SELECT postpipe_create_pipeline('trap', 'stream:bait', statement => $$INSERT INTO bait_view (id) SELECT (event ->> 'id')::int FROM postpipe_batch$$)),
	qr/may not write table "bait" of role "low"/, '... and through a view');
not_superuser('after what was refused');

# The table changes hands while the pipeline runs, and when it is partitioned, only a part of it.
sql('CREATE TABLE turncoat (id int PRIMARY KEY, v text)');
sql(q(SELECT postpipe_create_pipeline('turncoat', 'stream:turncoat', statement => $$INSERT INTO turncoat SELECT (event ->> 'id')::int FROM postpipe_batch$$)));
$redis->xadd('stream:turncoat', id => 1);
wait_sql($node, 'postgres', 'SELECT count(*) FROM turncoat', '1', q(a superuser's own table is written));
sql('ALTER TABLE turncoat OWNER TO low; GRANT INSERT ON turncoat TO PUBLIC');
as('low', 'CREATE TRIGGER climb BEFORE INSERT ON turncoat FOR EACH ROW EXECUTE FUNCTION climb()');
$redis->xadd('stream:turncoat', id => 2);
wait_sql($node, 'postgres', q(SELECT state, reason_code FROM postpipe_stats WHERE pipeline = 'turncoat'), 'failed|sqlstate_42501', 'when it changes hands the pipeline stops');
is(sql('SELECT count(*) FROM turncoat'), 1, '... and nothing is written');
not_superuser('after the table changed hands');
sql(q(SELECT postpipe_drop_pipeline('turncoat')));

# In a schema of his he may put another table in the place of a superuser's, while the statement waits for the one that it has a plan for.
sql('CREATE SCHEMA lair AUTHORIZATION low; CREATE TABLE lair.prey (id int)');
sql(q(SELECT postpipe_create_pipeline('prey', 'stream:prey', statement => $$INSERT INTO lair.prey SELECT (event ->> 'id')::int FROM postpipe_batch$$)));
wait_sql($node, 'postgres', q(SELECT state FROM postpipe_stats WHERE pipeline = 'prey'), 'idle', 'a pipeline into the schema of another role');
$redis->xadd('stream:prey', id => 1);
wait_sql($node, 'postgres', 'SELECT count(*) FROM lair.prey', '1', '... writes the table of the superuser');
my $low = pp_session($node);
$low->('SET ROLE low; BEGIN; DROP TABLE lair.prey; CREATE TABLE lair.prey (id int); CREATE TRIGGER climb BEFORE INSERT ON lair.prey FOR EACH ROW EXECUTE FUNCTION climb()');
$redis->xadd('stream:prey', id => 2);
wait_sql($node, 'postgres', q(SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'lair.prey'::regclass), '1', '... and waits for it');
$low->('COMMIT');
wait_sql($node, 'postgres', q(SELECT state, reason_code FROM postpipe_stats WHERE pipeline = 'prey'), 'failed|sqlstate_42501', '... and stops when it is the table of that role then');
is(sql('SELECT count(*) FROM lair.prey'), 0, '... in which nothing is written');
not_superuser('after the table was put in the place of another');
$low->(undef);
sql(q(SELECT postpipe_drop_pipeline('prey')));

# The target of a superuser in that schema: another table gets its name while a batch is applied, in which a key comes twice. That this has
# happened the worker learns in between, when it opens another table: that of large values.
sql('GRANT CREATE ON DATABASE postgres TO low; CREATE TABLE lair.quarry (id int PRIMARY KEY, v text); ALTER TABLE lair.quarry ALTER v SET STORAGE EXTERNAL');
sql(q(SELECT postpipe_create_pipeline('quarry', 'stream:quarry', target => 'lair.quarry')));
$redis->xadd('stream:quarry', id => 1);
wait_sql($node, 'postgres', 'SELECT count(*) FROM lair.quarry', '1', q(a superuser's target in the schema of another role));
my $holder = pp_session($node);
$holder->('BEGIN; INSERT INTO lair.quarry VALUES (2)');
$redis->command('EVAL', q(for i = 1, 2 do redis.call('XADD', KEYS[1], '*', 'id', 2, 'v', string.rep(i, 9999)) end), 1, 'stream:quarry');
wait_sql($node, 'postgres', q(SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'), '1', '... the worker waits for a row');
as('low', <<'SQL');
ALTER SCHEMA lair RENAME TO lair_before; CREATE SCHEMA lair; CREATE TABLE lair.quarry (id int PRIMARY KEY, v text, who text DEFAULT current_user);
CREATE TRIGGER climb BEFORE INSERT ON lair.quarry FOR EACH ROW EXECUTE FUNCTION climb();
SQL
$holder->('ROLLBACK');
wait_sql($node, 'postgres', 'SELECT id, left(v, 1), who FROM lair.quarry', '2|2|low', '... and writes the table that has the name then as its owner');
is(sql('SELECT id FROM lair_before.quarry'), '1', '... and all of the batch');
not_superuser('after another table got the name of the target');
$holder->(undef);
sql(q(SELECT postpipe_drop_pipeline('quarry'); REVOKE CREATE ON DATABASE postgres FROM low));

sql(<<'SQL');
CREATE TABLE parts (id int, v text) PARTITION BY RANGE (id);
CREATE TABLE part_of_low PARTITION OF parts FOR VALUES FROM (0) TO (100);
ALTER TABLE part_of_low OWNER TO low;
SQL
as('low', 'CREATE TRIGGER climb BEFORE INSERT ON part_of_low FOR EACH ROW EXECUTE FUNCTION climb()');
$node->psql('postgres', q(SELECT postpipe_create_pipeline('parts', 'stream:parts', statement => $$INSERT INTO parts SELECT (event ->> 'id')::int FROM postpipe_batch$$)));
if (sql(q(SELECT count(*) FROM postpipe_pipelines WHERE pipeline = 'parts')))
{
	$redis->xadd('stream:parts', id => 1);
	wait_sql($node, 'postgres', q(SELECT entries_read FROM postpipe_stats WHERE pipeline = 'parts'), '1', 'a partition of another role');
	wait_for { sql(q(SELECT state IN ('idle', 'failed') FROM postpipe_stats WHERE pipeline = 'parts')) eq 't' } 'the entry was tried';
	sql(q(SELECT postpipe_drop_pipeline('parts', discard_dead => true)));
}
not_superuser('after a partition of another role was written');

# With a target it runs as the table's owner, and a deferred trigger runs as him or not at all.
as('low', <<'SQL');
CREATE FUNCTION defer() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN SET CONSTRAINTS ALL DEFERRED; RETURN NEW; END $$;
CREATE TABLE later (id int PRIMARY KEY, v text);
CREATE TRIGGER a_defer BEFORE INSERT ON later FOR EACH ROW EXECUTE FUNCTION defer();
CREATE CONSTRAINT TRIGGER b_climb AFTER INSERT ON later DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION climb();
SQL
sql(q(SELECT postpipe_create_pipeline('later', 'stream:later', target => 'later')));
sql(q(SELECT postpipe_create_pipeline('bait', 'stream:later', target => 'bait')));
$redis->xadd('stream:later', id => 1);
wait_sql($node, 'postgres', 'SELECT count(*) FROM bait', '1', q(a target with such a trigger is written as the table's owner));
wait_for { sql(q(SELECT state IN ('failed', 'idle') AND entries_read > 0 FROM postpipe_stats WHERE pipeline = 'later')) eq 't' } 'the deferred trigger was tried';
not_superuser('after triggers, deferred ones too');
sql("SELECT postpipe_drop_pipeline('$_', discard_dead => true)") for qw(later bait);

# --- What a trigger sets does not last, and what is not allowed in a trigger fails.
sql(<<'SQL');
CREATE SCHEMA other;
CREATE TABLE settings (id int PRIMARY KEY, path text, zone text, memory text);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.path = current_setting('search_path'); NEW.zone = current_setting('TimeZone'); NEW.memory = current_setting('work_mem');
    PERFORM set_config('search_path', 'other', false), set_config('TimeZone', 'Asia/Tokyo', false), set_config('work_mem', '1MB', false);
    RETURN NEW;
END $$;
CREATE TRIGGER note BEFORE INSERT ON settings FOR EACH ROW EXECUTE FUNCTION note();
SQL
sql(q(SET search_path = public, other; SELECT postpipe_create_pipeline('settings', 'stream:settings', target => 'settings')));
$redis->xadd('stream:settings', id => 1);
wait_sql($node, 'postgres', 'SELECT count(*) FROM settings', '1', 'the first batch');
$redis->xadd('stream:settings', id => 2);
wait_sql($node, 'postgres', 'SELECT path, zone FROM settings WHERE id = 2', 'public, other|UTC', 'search_path is as it was created, whatever a trigger did before');
is(sql('SELECT count(DISTINCT memory) FROM settings'), 1, '... and so is any other setting');
sql(q(SELECT postpipe_drop_pipeline('settings')));
my %forbidden = (set_role => 'SET ROLE low', temp_table => 'CREATE TEMP TABLE tt (a int)', authorization => 'SET SESSION AUTHORIZATION low', listen => 'LISTEN x');
for my $name (sort keys %forbidden)
{
	sql(qq(CREATE TABLE f_$name (id int PRIMARY KEY)));
	sql(qq(CREATE FUNCTION f_$name() RETURNS trigger LANGUAGE plpgsql AS \$f\$ BEGIN IF NEW.id > 1 THEN EXECUTE '$forbidden{$name}'; END IF; RETURN NEW; END \$f\$));
	sql(qq(CREATE TRIGGER f BEFORE INSERT ON f_$name FOR EACH ROW EXECUTE FUNCTION f_$name()));
	sql(qq(SELECT postpipe_create_pipeline('$name', 'stream:forbidden', target => 'f_$name')));
}
$redis->xadd('stream:forbidden', id => $_) for 1, 2, 1;
for my $name (sort keys %forbidden)
{
	wait_sql($node, 'postgres', "SELECT state IN ('failed', 'retrying') OR dead_letters = 1 FROM postpipe_stats WHERE pipeline = '$name'", 't', "$forbidden{$name} in a trigger fails");
	is(sql("SELECT count(*) FROM f_$name WHERE id > 1"), 0, '... and so does its entry');
	sql("SELECT postpipe_drop_pipeline('$name', discard_dead => true)");
}

# --- Nothing that a low role plants in public is used for what he may not do.
as('low', <<'SQL');
CREATE FUNCTION planted(integer, integer) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    BEGIN EXECUTE 'ALTER ROLE low SUPERUSER'; EXCEPTION WHEN OTHERS THEN NULL; END;
    INSERT INTO low_log VALUES (current_user); RETURN true;
END $$;
CREATE TABLE low_log (who text);
GRANT INSERT ON low_log TO PUBLIC;
CREATE OPERATOR = (LEFTARG = integer, RIGHTARG = integer, FUNCTION = planted);
CREATE FUNCTION count(text) RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.low_log VALUES (current_user); RETURN 5; END $$;
CREATE FUNCTION "left"(text, integer) RETURNS text LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.low_log VALUES (current_user); RETURN ''; END $$;
CREATE FUNCTION now() RETURNS timestamptz LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.low_log VALUES (current_user); RETURN '2000-01-01'; END $$;
CREATE OPERATOR ->> (LEFTARG = jsonb, RIGHTARG = text, FUNCTION = jsonb_object_field_text);
SQL
sql(q(CREATE TABLE victim (id int PRIMARY KEY, tags text[], v text DEFAULT 'x', at timestamptz DEFAULT pg_catalog.now())));
sql(q(SELECT postpipe_create_pipeline('victim', 'stream:victim', target => 'victim')));
$redis->xadd('stream:victim', id => $_, tags => '["a"]') for 1, 2, 1;
wait_sql($node, 'postgres', q(SELECT entries_applied FROM postpipe_stats WHERE pipeline = 'victim'), '3', 'entries are applied');
is(sql('SELECT count(*) FROM victim'), 2, '... and right');
sql("SELECT postpipe_pause('victim'); SELECT postpipe_wait_state('victim', 'paused'); SELECT postpipe_rewind('victim'); SELECT postpipe_resume('victim')");
wait_sql($node, 'postgres', q(SELECT entries_applied FROM postpipe_stats WHERE pipeline = 'victim'), '6', '... also again');
sql('SELECT * FROM postpipe_stats; SELECT * FROM postpipe_audit; SELECT * FROM postpipe_dlq; SELECT * FROM postpipe_pipelines; SELECT * FROM postpipe_status');
is(sql('SELECT count(*) FROM low_log'), 0, 'what a low role planted in public was never called');
not_superuser('after objects were planted');
sql("SELECT postpipe_drop_pipeline('$_')") for qw(victim as_low);

# Planted where it fits better than what is meant: the types are exactly these.
# Without an exception block: where PostgreSQL 18 looks at the check of a domain, a subtransaction upsets its type cache.
sql('GRANT EXECUTE ON FUNCTION postpipe_create_pipeline TO low');
as('low', <<'SQL');
CREATE FUNCTION better() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    IF (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN ALTER ROLE low SUPERUSER; END IF;
    INSERT INTO public.low_log VALUES (current_user); RETURN true;
END $$;
CREATE FUNCTION better(varchar, text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RETURN public.better(); END $$;
CREATE FUNCTION better(varchar, varchar) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RETURN public.better(); END $$;
CREATE FUNCTION better(jsonb, jsonb) RETURNS text LANGUAGE plpgsql AS $$ BEGIN PERFORM public.better(); RETURN '7'; END $$;
CREATE FUNCTION concat(text, text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN PERFORM public.better(); RETURN 'low'; END $$;
CREATE OPERATOR = (LEFTARG = varchar, RIGHTARG = text, FUNCTION = better);
CREATE OPERATOR >= (LEFTARG = varchar, RIGHTARG = varchar, FUNCTION = better);
CREATE OPERATOR ->> (LEFTARG = jsonb, RIGHTARG = jsonb, FUNCTION = better);
SQL
sql(q(CREATE TABLE better (id varchar(20) PRIMARY KEY, at varchar(9), "1" int, d text DEFAULT pg_catalog.concat('x'::text, 'y'::text))));
sql(q(SELECT postpipe_create_pipeline('better', 'stream:better', target => 'better', on_conflict => 'newer', newer_by => 'at')));
$redis->xadd('stream:better', id => 'a', at => $_, 1 => 5) for 1, 2, 1;
wait_sql($node, 'postgres', q(SELECT entries_applied FROM postpipe_stats WHERE pipeline = 'better'), '3', 'entries are applied');
is(sql('SELECT * FROM better'), 'a|2|5|xy', '... with the operators and functions of pg_catalog');
sql(q(SELECT postpipe_drop_pipeline('better')));

# What a table's owner has put into its types is run as himself; what belongs to him is not written as a superuser.
as('low', <<'SQL');
CREATE FUNCTION fold(integer) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN RETURN public.better(); END $$;
CREATE DOMAIN checked AS text CHECK (public.fold(1));
CREATE TABLE of_types (id int PRIMARY KEY, v checked);
SELECT postpipe_create_pipeline('of_types', 'stream:types', target => 'of_types');
CREATE FUNCTION climb_on() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM public.better(); RETURN NEW; END $$;
SQL
$redis->xadd('stream:types', id => 1, v => 'x');
wait_sql($node, 'postgres', 'SELECT count(*) FROM of_types', '1', 'a type with a check');
is(sql('SELECT DISTINCT who FROM low_log'), 'low', '... which was called as the owner of the table');
sql(<<'SQL');
SELECT postpipe_drop_pipeline('of_types');
CREATE TABLE pieces (id int) PARTITION BY RANGE (id);
CREATE TABLE piece PARTITION OF pieces FOR VALUES FROM (0) TO (10);
ALTER TABLE piece OWNER TO low;
CREATE TABLE base (id int PRIMARY KEY); GRANT INSERT, SELECT ON base TO low;
SQL
as('low', 'CREATE TRIGGER climb_on BEFORE INSERT ON piece FOR EACH ROW EXECUTE FUNCTION climb_on(); CREATE VIEW over_base AS SELECT * FROM base; GRANT ALL ON over_base TO PUBLIC');
refused(undef, q(SELECT postpipe_create_pipeline('trap', 'stream:bait', target => 'pieces')), qr/may not write table "piece" of role "low" as superuser/, q(a superuser's table with a part of another role is refused));
refused(undef, q(SELECT postpipe_create_pipeline('trap', 'stream:bait', statement => $$INSERT INTO over_base SELECT ord FROM postpipe_batch$$)),
	qr/may not write table "over_base" of role "low" as superuser/, q(... and another role's view of a superuser's table));
is(sql('SELECT DISTINCT who FROM low_log'), 'low', 'nothing of a low role was called as anybody else');
not_superuser('after all that');
sql('DROP OWNED BY low CASCADE; DROP TABLE pieces, base, better');

# --- Functions that run a statement in the session of somebody who may less than the statement's role: what he has there is not run as that role.
sql(<<'SQL');
GRANT CREATE ON SCHEMA public TO low;
GRANT EXECUTE ON FUNCTION postpipe_ingest, postpipe_check, postpipe_create_pipeline, postpipe_alter_pipeline TO app;
GRANT EXECUTE ON FUNCTION postpipe_selftest TO low;
SQL
as('app', <<'SQL');
CREATE TABLE visits (id int); CREATE TABLE visit_log (id int); CREATE TABLE visitors (id int PRIMARY KEY);
CREATE FUNCTION log_visit() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO visit_log VALUES (NEW.id); RETURN NEW; END';
CREATE TRIGGER log_visit BEFORE INSERT ON visitors FOR EACH ROW EXECUTE FUNCTION log_visit();
SELECT postpipe_create_pipeline('visits', 'stream:visits', statement => $$INSERT INTO visits SELECT (event ->> 'id')::int FROM postpipe_batch$$);
SELECT postpipe_create_pipeline('visitors', 'stream:visits', target => 'visitors');
CREATE FUNCTION take(pipeline text, event jsonb) RETURNS bigint LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS
	'SELECT public.postpipe_ingest(pipeline, event)';
CREATE FUNCTION doctor(pipeline text) RETURNS SETOF text LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS
	$$SELECT concat_ws(' ', status, detail) FROM public.postpipe_check(pipeline) WHERE check_name = 'target'$$;
CREATE FUNCTION make(pipeline text) RETURNS text LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS
	$$SELECT public.postpipe_create_pipeline(pipeline, 'stream:visits', target => 'public.visitors')$$;
CREATE FUNCTION tune(pipeline text, size int) RETURNS text LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS
	$$SELECT public.postpipe_alter_pipeline(pipeline, options => jsonb_build_object('batch_size', size))$$;
SQL
# A sequence, because what it has given is not taken back by a rollback.
as('low', <<'SQL');
CREATE SEQUENCE climbed; GRANT USAGE ON climbed TO PUBLIC;
CREATE FUNCTION climb() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF current_user <> 'low' THEN PERFORM nextval('public.climbed'); END IF; RETURN NEW; END $$;
CREATE TABLE lure (id int);
CREATE CONSTRAINT TRIGGER climb AFTER INSERT ON lure DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION climb();
SQL
my $planted = 'CREATE TEMP TABLE %1$s (id int); GRANT ALL ON %1$s TO PUBLIC; CREATE TRIGGER climb BEFORE INSERT ON %1$s FOR EACH ROW EXECUTE FUNCTION climb(); ';
as('low', sprintf($planted, 'visits') . q(SELECT take('visits', '{"id": 1}')));
is(sql('SELECT count(*) FROM visits'), 1, q(a statement does not write a temporary table of the caller));
as('low', sprintf($planted, 'visit_log') . q(SELECT take('visitors', '{"id": 1}')));
is(sql('SELECT count(*) FROM visit_log'), 1, q(... nor does a trigger of a target));
not_climbed('... and no trigger of such a table ran');
my $deferred = 'BEGIN; INSERT INTO lure VALUES (1); ';
my %refused = (ingest => q(take('visitors', '{"id": 2}')), create_pipeline => q(make('made')), alter_pipeline => q(tune('visitors', 7)), selftest => 'postpipe_selftest()');
for my $name (sort keys %refused)
{
	refused('low', "$deferred SELECT $refused{$name}", qr/postpipe_$name\(\) cannot run while this transaction has deferred/, "with a deferred trigger of the caller: postpipe_$name is refused");
	not_climbed('... and has not run it');
}
is(as('low', $deferred . q(SELECT doctor('visitors'))), 'warning not checked: this transaction has deferred constraints or triggers to check', '... and the doctor does not try the statement');
not_climbed('... and has not run it');
# Nor does one escape that was made since the snapshot of the transaction.
my $caller = pp_session($node);
$caller->(q(SET ROLE low; BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1));
as('low', 'CREATE TABLE lure_2 (id int); CREATE CONSTRAINT TRIGGER climb AFTER INSERT ON lure_2 DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION climb()');
$caller->(q(INSERT INTO lure_2 VALUES (1); SELECT take('visitors', '{"id": 3}')));
$caller->(undef);
not_climbed('... also with a snapshot from before the trigger was made');
is(as('low', q(SELECT take('visitors', '{"id": 4}'); SELECT doctor('visitors'))), "1\nok the statement can be run as the owner", '... and without one they do');
sql("SELECT postpipe_drop_pipeline('$_')") for qw(visits visitors);
sql('DROP OWNED BY low CASCADE');

# --- The owner of the database, and so of schema public, in which the extension is: he does not get his tables in the place of ours.
sql('ALTER DATABASE postgres OWNER TO low');
refused('low', 'ALTER SCHEMA public RENAME TO private', qr/must be superuser to rename schema "public"/, 'the owner of the schema of the extension does not rename it');
is(as('low', 'CREATE SCHEMA another; ALTER SCHEMA another RENAME TO still_another; DROP SCHEMA still_another; SELECT 1'), '1', '... but others');
sql(q(CREATE SCHEMA shelf; CREATE TABLE shelf.book (id int PRIMARY KEY); SELECT postpipe_create_pipeline('book', 'stream:book', target => 'shelf.book')));
$redis->xadd('stream:book', id => 1);
wait_sql($node, 'postgres', 'SELECT count(*) FROM shelf.book', '1', 'a pipeline');
# As a superuser has renamed it: the name is free for others.
sql(<<'SQL');
BEGIN; ALTER SCHEMA public RENAME TO private; SET LOCAL ROLE low; CREATE SCHEMA public;
CREATE TABLE public.postpipe_ledger (pipeline text, epoch int, worker int, first_id private.postpipe_id, last_id private.postpipe_id, applied int, filtered int, dead int,
	discarded int DEFAULT 0, lost int, sequence bigint DEFAULT 0, settled_at timestamptz DEFAULT pg_catalog.now(), ids bytea, summed boolean DEFAULT false);
CREATE FUNCTION public.climb() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN EXECUTE 'ALTER ROLE low SUPERUSER'; RETURN NEW; END $$;
CREATE TRIGGER climb BEFORE INSERT ON public.postpipe_ledger FOR EACH ROW EXECUTE FUNCTION public.climb();
COMMIT;
SQL
$redis->xadd('stream:book', id => 2);
wait_sql($node, 'postgres', 'SELECT count(*) FROM shelf.book', '2', 'where a superuser has renamed it, the pipeline goes on');
is(sql('SELECT (SELECT count(*) FROM public.postpipe_ledger), (SELECT sum(applied) FROM private.postpipe_ledger WHERE pipeline = $$book$$)'), '0|2', '... in its own tables');
not_superuser('after the schema of the extension was renamed');
sql(q(DROP SCHEMA public CASCADE; ALTER SCHEMA private RENAME TO public));
wait_sql($node, 'postgres', q(SELECT count(*) FROM postpipe_workers WHERE pipeline = 'book'), '1', 'renamed back');
sql(q(ALTER DATABASE postgres OWNER TO CURRENT_USER; SELECT postpipe_drop_pipeline('book')));

# --- The pipeline's owner is dropped: that pipeline fails, with a statement as well as with a target, and nothing else does.
sql(<<'SQL');
CREATE ROLE leaver; CREATE ROLE helper IN ROLE low;
GRANT CREATE ON SCHEMA public TO low;
CREATE TABLE of_leaver (id int, who text DEFAULT current_user); CREATE TABLE of_low (id int PRIMARY KEY, who text DEFAULT current_user); CREATE TABLE of_nobody (id int PRIMARY KEY);
ALTER TABLE of_low OWNER TO low;
GRANT INSERT ON of_leaver TO PUBLIC;
SELECT postpipe_create_pipeline('by_leaver', 'stream:leaver', owner => 'leaver', statement => $$INSERT INTO of_leaver SELECT (event ->> 'id')::int FROM postpipe_batch$$);
SELECT postpipe_create_pipeline('by_helper', 'stream:leaver', owner => 'helper', target => 'of_low');
SELECT postpipe_create_pipeline('bystander', 'stream:leaver', target => 'of_nobody');
SQL
$redis->xadd('stream:leaver', id => 1);
wait_sql($node, 'postgres', 'SELECT (SELECT count(*) FROM of_leaver), (SELECT count(*) FROM of_low)', '1|1', 'pipelines of roles that will be dropped');
my $started = sql('SELECT pg_postmaster_start_time()');
sql('DROP ROLE leaver; DROP ROLE helper');
$redis->xadd('stream:leaver', id => 2);
wait_sql($node, 'postgres', "SELECT state, reason_code, reason FROM postpipe_stats WHERE pipeline = '$_'", qq(failed|sqlstate_42704|owner of pipeline "$_" does not exist), "$_: fails when its owner is dropped")
  for qw(by_leaver by_helper);
# Without what it had in memory it comes to the same.
sql("SELECT pg_terminate_backend(pid) FROM postpipe_workers WHERE pipeline IN ('by_leaver', 'by_helper')");
wait_sql($node, 'postgres', "SELECT count(*) FROM postpipe_stats WHERE pipeline IN ('by_leaver', 'by_helper') AND state = 'failed' AND reason_code = 'sqlstate_42704' AND worker_restarts > 0", '2', '... also when it starts');
$redis->xadd('stream:leaver', id => 3);
wait_sql($node, 'postgres', 'SELECT count(*) FROM of_nobody', '3', '... others go on');
is(sql('SELECT (SELECT count(*) FROM of_leaver), (SELECT count(*) FROM of_low), (SELECT count(*) FROM postpipe_dlq)'), '1|1|0', '... nothing is written as nobody, and nothing is dead');
like(sql(q(SELECT * FROM postpipe_pipelines WHERE pipeline = 'by_leaver')), qr/stream:leaver/, '... the views show it');
refused('app', q(SELECT postpipe_pause('by_leaver')), qr/owner of pipeline "by_leaver" does not exist.*HINT:  A superuser gives it another one/s, '... and who is no superuser is told why he may not manage it');
sql(q(SELECT postpipe_alter_pipeline('by_leaver', owner => 'app'); SELECT postpipe_alter_pipeline('by_helper', owner => 'low')));
wait_sql($node, 'postgres', q(SELECT (SELECT string_agg(id || who, ',' ORDER BY id) FROM of_leaver), (SELECT string_agg(id || who, ',' ORDER BY id) FROM of_low)), '1leaver,2app,3app|1low,2low,3low', '... with another owner they go on where they were');
is(sql('SELECT pg_postmaster_start_time()'), $started, '... and the server was never harmed');
sql("SELECT postpipe_drop_pipeline('$_')") for qw(by_leaver by_helper bystander);

# --- The password of postpipe.redis_url: known to the worker, shown to nobody.
my $secret = 'hunter2-' . $$;
my $closed = Postpipe::Test::Redis->new(password => $secret);
my $from = log_offset($node);
# The file is edited, as ALTER SYSTEM would be logged by log_statement if somebody asked for that.
$node->append_conf('postgresql.conf', "postpipe.redis_url = '" . $closed->url . "'");
sql('CREATE TABLE closed (id int PRIMARY KEY)');
sql(q(SELECT postpipe_create_pipeline('closed', 'stream:closed', target => 'closed')));
$node->reload;
$closed->xadd('stream:closed', id => 1);
wait_sql($node, 'postgres', 'SELECT count(*) FROM closed', '1', 'the worker logs in');
my $settings = q(SELECT concat_ws(' ', setting, boot_val, reset_val) FROM pg_settings WHERE name = 'postpipe.redis_url');
for my $role (undef, 'monitor')
{
	my $shown = as($role, $settings);
	my $who = $role // 'a superuser';
	like($shown, qr/\*\*\*/, "$who sees in pg_settings that there is a password");
	unlike($shown, qr/\Q$secret/, '... and not which');
	unlike(as($role, 'SELECT * FROM postpipe_stats'), qr/\Q$secret/, 'nor in postpipe_stats');
	unlike(as($role, 'SELECT * FROM postpipe_workers'), qr/\Q$secret/, 'nor in postpipe_workers');
	unlike(as($role, 'SELECT * FROM pg_stat_activity'), qr/\Q$secret/, 'nor in pg_stat_activity');
}
unlike(sql('SHOW postpipe.redis_url'), qr/\Q$secret/, 'nor by SHOW');
is(as('low', q(SELECT count(*) FROM pg_settings WHERE name = 'postpipe.redis_url')), 0, 'others do not see the setting');
# A wrong password, and a server that is away.
$closed->command('CONFIG', 'SET', 'requirepass', 'another');
$closed->command('CLIENT', 'KILL', 'TYPE', 'normal', 'SKIPME', 'yes');
wait_sql($node, 'postgres', q(SELECT state FROM postpipe_stats WHERE pipeline = 'closed' AND state IN ('failed', 'retrying') AND last_error IS NOT NULL), 'failed', 'a wrong password');
like(sql(q(SELECT concat_ws(' ', reason_code, reason, last_error) FROM postpipe_stats)), qr/WRONGPASS|NOAUTH|password/i, '... says what it is');
unlike(sql('SELECT * FROM postpipe_stats, postpipe_workers'), qr/\Q$secret/, '... without the password');
$closed->stop;
wait_sql($node, 'postgres', q(SELECT state FROM postpipe_stats WHERE pipeline = 'closed'), 'retrying', 'the server is away');
unlike(sql('SELECT * FROM postpipe_stats, postpipe_workers'), qr/\Q$secret/, '... without the password');
sql(q(SELECT postpipe_pause('closed'); SELECT postpipe_wait_state('closed', 'paused')));
my (undef, undef, $error) = $node->psql('postgres', q(SELECT postpipe_rewind('closed')));
like($error, qr/ERROR/, 'a function that needs Redis fails');
unlike($error, qr/\Q$secret/, '... without the password');
# A value that is refused at reload is not repeated in the log either.
$node->append_conf('postgresql.conf', "postpipe.redis_url = 'redis://:$secret\@127.0.0.1:99999'");
$node->reload;
wait_for { log_lines($node, qr/invalid value for parameter "postpipe\.redis_url"/, $from) } 'a bad value is refused at reload';
wait_for { log_lines($node, qr/The port must be a number from 1 to 65535/, $from) } '... with the reason';
my @lines = log_lines($node, qr/\Q$secret/, $from);
is(scalar @lines, 0, 'the password is not in the log') or diag(@lines);
$node->stop;

# Nor where the server speaks another language, or where the name is spelled otherwise in the file.
SKIP:
{
	my $locales = PostgreSQL::Test::Utils::tempdir();
	my ($where) = `pg_config --localedir` =~ /(.*)/;
	skip 'no German messages of the server are installed', 3 unless glob("$where/de/LC_MESSAGES/postgres*.mo");
	system("localedef -i de_DE -f UTF-8 $locales/de_DE.UTF-8 >/dev/null 2>&1");
	skip 'localedef cannot make a German locale', 3 unless -d "$locales/de_DE.UTF-8";
	local $ENV{LOCPATH} = $locales;
	my $german = pp_node('german', conf => "lc_messages = 'de_DE.UTF-8'");
	for my $name ('postpipe.redis_url', 'PostPipe.Redis_URL')
	{
		$from = log_offset($german);
		$german->append_conf('postgresql.conf', "$name = 'redis://:$secret\@127.0.0.1:1'");
		$german->reload;
		wait_for { log_lines($german, qr/redis_url.*\*\*\*|\Q$secret/, $from) } "$name in German";
		is(scalar log_lines($german, qr/\Q$secret/, $from), 0, "$name in German: the password is not in the log");
		$german->append_conf('postgresql.conf', "postpipe.redis_url = 'redis://127.0.0.1:1'");
		$german->reload;
		wait_sql($german, 'postgres', 'SHOW postpipe.redis_url', 'redis://127.0.0.1:1', 'another value');
	}
	$german->stop;
}

done_testing();

# As this role (undef: the superuser).
sub as
{
	my ($role, $query) = @_;
	return $node->safe_psql('postgres', defined $role ? "SET ROLE $role;\n$query" : $query);
}

sub refused
{
	my ($role, $query, $error, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my ($status, undef, $stderr) = $node->psql('postgres', defined $role ? "SET ROLE $role;\n$query" : $query);
	return $status == 0 ? fail("$what: it was accepted") : like($stderr, $error, $what);
}

sub not_superuser
{
	my ($when) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $is = sql(q(SELECT rolsuper, (SELECT count(*) FROM pg_auth_members WHERE member = r.oid) FROM pg_roles r WHERE rolname = 'low'));
	sql('ALTER ROLE low NOSUPERUSER; REVOKE pg_read_all_data FROM low') if $is ne 'f|0';
	return is($is, 'f|0', "$when the low role is what it was");
}

sub not_climbed
{
	my ($what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $called = sql('SELECT is_called FROM climbed');
	sql(q(SELECT setval('climbed', 1, false)));
	return is($called, 'f', $what);
}
