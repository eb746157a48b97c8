# What a generated statement makes of types, defaults and keys: the row is the one that a plain INSERT would make, and stays
# that when what the statement speaks of changes under it. TAP, because that happens while a background worker runs.

use strict;
use warnings;
use Postpipe::Test;

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('generated', redis => $redis);
sql('CREATE EXTENSION postpipe; CREATE SCHEMA types; CREATE EXTENSION citext SCHEMA types');
sql(q(SELECT postpipe_drop_pipeline('posts')));

# --- A type whose name alone means one of length 1, and offsets in arrays.
make('types', 'id int PRIMARY KEY, a char(3)[], b bit(3), bs bit(3)[], q pg_catalog."bit", at timestamp[]');
rows('types', 'SELECT a, b, bs, q, at FROM types', '{abc,"de "}|101|{101,010}|10101|{"2026-01-02 01:04:05"}', 'values keep their length, and their offset counts',
	[ id => 1, a => '["abc", "de"]', b => 101, bs => '["101", "010"]', q => 10101, at => '["2026-01-02T03:04:05+02"]' ]);
rows('types', 'SELECT a, at FROM types WHERE id = 2', '{abc,"de "}|{"2026-01-02 01:04:05"}', '... also as array literals', [ id => 2, a => '{abc,de}', at => '{2026-01-02T03:04:05+02}' ]);
$redis->xadd('stream:types', id => 3, a => '["abcd"]');
wait_sql($node, 'postgres', 'SELECT sqlstate FROM postpipe_dlq', '22001', 'one that is too long is not cut');
sql('SELECT postpipe_discard(pipeline) FROM (SELECT DISTINCT pipeline FROM postpipe_dlq) d');
make('citext', 'id types.citext PRIMARY KEY, v types.citext NOT NULL');
rows('citext', 'SELECT id, v FROM citext', 'Ä|', q('' is a value of citext, as of text), [ id => 'Ä', v => '' ]);
rows('citext', 'SELECT id, v FROM citext', 'Ä|new', '... whose operators are found', [ id => 'ä', v => 'new' ]);

# --- Defaults of another type than the column's.
sql('CREATE SEQUENCE numbers; CREATE DOMAIN five AS int DEFAULT 5');
make('defaults', q(id bigint PRIMARY KEY, n bigint DEFAULT 0::float8, m numeric DEFAULT random(), u text DEFAULT gen_random_uuid(), w varchar DEFAULT nextval('numbers'), t time DEFAULT now(), j json DEFAULT '{}'::jsonb));
rows('defaults', 'SELECT n, m, w, t, j FROM defaults', '9007199254740993|0.12345678901234567890123|w|01:02:03|[1]', 'what the event has is not converted to the type of the default',
	[ id => 1, n => '9007199254740993', m => '0.12345678901234567890123', w => 'w', t => '01:02:03', j => '[1]' ]);
rows('defaults', 'SELECT n, m < 1, length(u), w, t IS NULL, j FROM defaults WHERE id = 2', '0|t|36|1|f|{}', 'defaults are converted to that of the column', [ id => 2 ]);

# --- The default of a column is not what an event says of it, however the key is written.
sql(<<'SQL');
CREATE FUNCTION fold() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.id := lower(NEW.id); RETURN NEW; END $$;
SQL
for my $case ([ stamps => 'timestamptz(0)', '2026-01-01T00:00:05.4Z' ], [ numbers => 'numeric(6,2)', '1.239' ], [ padded => 'char(4)', 'ab  ' ], [ cut => 'types.citext', 'X' ])
{
	my ($name, $type, $key) = @$case;
	make("by_$name", "id $type PRIMARY KEY, v text DEFAULT 'default', w text");
	rows("by_$name", "SELECT v, w FROM by_$name", 'v|', "$type: a row", [ id => $key, v => 'v' ]);
	rows("by_$name", "SELECT v, w FROM by_$name", 'v|w', '... keeps what the event does not have', [ id => $key, w => 'w' ]);
}
sql('CREATE TABLE by_nulls (a int, b int, v text DEFAULT $$default$$, w text, UNIQUE NULLS NOT DISTINCT (a, b))');
sql(q(SELECT postpipe_create_pipeline('by_nulls', 'stream:by_nulls', target => 'by_nulls', key => '{a,b}')));
make('by_both', q(a int, b types.citext, v text DEFAULT 'default', w text, PRIMARY KEY (a, b)));
for my $case ([ by_nulls => a => 1 ], [ by_both => a => 1, b => 'B' ])
{
	my ($name, @key) = @$case;
	rows($name, "SELECT v, w FROM $name", 'v|', "$name: a row", [ @key, v => 'v' ]);
	rows($name, "SELECT v, w FROM $name", 'v|w', '... keeps what the event does not have', [ @key, w => 'w' ]);
}

# --- What the statement speaks of changes, and the table does not.
make('changes', q(id int PRIMARY KEY, n int DEFAULT nextval('numbers'), five five));
rows('changes', 'SELECT n, five FROM changes', '2|5', 'before', [ id => 1 ]);
sql('ALTER SEQUENCE numbers RENAME TO other; CREATE SEQUENCE numbers START 1000; ALTER DOMAIN five SET DEFAULT 6');
rows('changes', 'SELECT n, five FROM changes WHERE id = 2', '3|6', 'a sequence is renamed, and a domain has another default', [ id => 2 ]);
sql('ALTER SCHEMA types RENAME TO kinds');
rows('citext', q(SELECT id, v FROM citext WHERE v = 'again'), 'Ä|again', 'the schema of a type is renamed', [ id => 'ä', v => 'again' ]);
sql(<<'SQL');
CREATE FUNCTION rows_of(name) RETURNS bigint LANGUAGE plpgsql AS $$ DECLARE n bigint; BEGIN EXECUTE format('SELECT count(*) FROM %I', $1) INTO n; RETURN n; END $$;
CREATE DOMAIN few_rows AS int;
CREATE DOMAIN fewer_rows AS int CHECK (rows_of('checked') < 3);
SQL
make('few', 'id few_rows');
make('checked', 'id int');
sql(q(ALTER TABLE checked ADD CHECK ((id::fewer_rows) IS NOT NULL)));
rows('few', 'SELECT count(*) FROM few', 1, 'rows that may wait for each other', [ id => 1 ]);
sql(q(ALTER DOMAIN few_rows ADD CHECK (rows_of('few') < 3) NOT VALID));
for my $table (qw(few checked))
{
	lock_while($table, sub { $redis->xadd("stream:$table", id => $_) for 11 .. 18 });
	wait_sql($node, 'postgres', qq(SELECT count(*) + (SELECT count(*) FROM postpipe_dlq WHERE pipeline = '$table') FROM $table), $table eq 'few' ? 9 : 8, "$table: each has its row or its letter");
	is(sql("SELECT count(*) FROM $table"), 3, '... and those that its check refuses, because of rows before them, have letters');
}

# --- What the input function of a type keeps while it is used, as a check and the functions in that, is of one batch: an error in it is
# forgotten, and another function in the place of one is used.
sql(<<'SQL');
CREATE TABLE most (n int);
INSERT INTO most VALUES (100);
CREATE FUNCTION is_few(v int) RETURNS boolean LANGUAGE sql VOLATILE AS 'SELECT 100 / (v - 7) < (SELECT n FROM public.most) OR v > 0';
CREATE DOMAIN checked_few AS int CHECK (public.is_few(VALUE));
CREATE TYPE pair AS (a int, b checked_few);
SQL
make('paired', 'id int PRIMARY KEY, d pair', options => '{"max_retries": 0}');
rows('paired', 'SELECT d FROM paired', '(1,2)', 'a check in a composite type', [ id => 1, d => '(1,2)' ]);
rows('paired', q(SELECT sqlstate FROM postpipe_dlq WHERE pipeline = 'paired'), '22012', '... fails', [ id => 2, d => '(1,7)' ]);
rows('paired', 'SELECT d FROM paired WHERE id = 3', '(1,3)', '... and passes again', [ id => 3, d => '(1,3)' ]);
sql(q(CREATE OR REPLACE FUNCTION is_few(v int) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RETURN v > 0; END'));
rows('paired', 'SELECT d FROM paired WHERE id = 4', '(1,7)', '... as the function that is now in it says', [ id => 4, d => '(1,7)' ]);

# --- So is the input function itself.
sql(<<'SQL');
SET client_min_messages = error;
CREATE TYPE num;
CREATE FUNCTION num_in(cstring) RETURNS num LANGUAGE internal IMMUTABLE STRICT AS 'int4in';
CREATE FUNCTION num_out(num) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'int4out';
CREATE TYPE num (INPUT = num_in, OUTPUT = num_out, LIKE = int4);
SQL
make('numbered', 'id int PRIMARY KEY, n num');
rows('numbered', 'SELECT n FROM numbered', 12, 'an input function', [ id => 1, n => 12 ]);
sql(q(CREATE OR REPLACE FUNCTION num_in(cstring) RETURNS num LANGUAGE internal IMMUTABLE STRICT AS 'oidin'));
rows('numbered', 'SELECT n FROM numbered WHERE id = 2', -1, '... and another one in its place', [ id => 2, n => 4294967295 ]);

# --- Where a plain INSERT is not the same as one with ON CONFLICT, although nothing conflicts.
sql('CREATE ROLE app; GRANT CREATE ON SCHEMA public TO app; CREATE TABLE fired (n int)');
make('secured', 'id int PRIMARY KEY, v text');
sql(<<'SQL');
ALTER TABLE secured OWNER TO app;
ALTER TABLE secured ENABLE ROW LEVEL SECURITY;
ALTER TABLE secured FORCE ROW LEVEL SECURITY;
CREATE POLICY i ON secured FOR INSERT WITH CHECK (true);
CREATE POLICY s ON secured FOR SELECT USING (id < 100);
CREATE POLICY u ON secured FOR UPDATE USING (true);
SQL
$redis->xadd('stream:secured', id => $_) for 1, 500;
wait_sql($node, 'postgres', q(SELECT (SELECT string_agg(id::text, ',') FROM secured), (SELECT string_agg(sqlstate, ',') FROM postpipe_dlq WHERE pipeline = 'secured')), '1|42501', 'policies are those of ON CONFLICT, for the first row already');
make('triggered', 'id int PRIMARY KEY, v text');
sql(<<'SQL');
CREATE FUNCTION fire() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO fired VALUES (1); RETURN NULL; END $$;
CREATE TRIGGER fire AFTER UPDATE ON triggered FOR EACH STATEMENT EXECUTE FUNCTION fire();
SQL
rows('triggered', 'SELECT id, (SELECT count(*) > 0 FROM fired) FROM triggered', '1|t', 'so are triggers of the statement', [ id => 1 ]);
like(error(definition('late', 'id int UNIQUE DEFERRABLE', key => '{id}')), qr/unique constraint for the key of target "late" is deferrable.*NOT DEFERRABLE/s, 'a deferrable key is refused');
like(error(definition('none', 'id int GENERATED ALWAYS AS IDENTITY')), qr/target "none" has no column that can be filled/, 'a table without columns to fill is refused');
like(error(definition('by', 'id int PRIMARY KEY, at int', newer_by => 'at')), qr/newer_by has no effect with on_conflict "update".*on_conflict => 'newer'/s, 'newer_by alone is refused');

sql('SELECT postpipe_discard(pipeline) FROM (SELECT DISTINCT pipeline FROM postpipe_dlq) d');
pp_balanced($node);
$node->stop;
done_testing();

# A table, and a pipeline of the same name into it.
sub definition
{
	my ($name, $columns, %opt) = @_;
	return "CREATE TABLE $name ($columns); SELECT postpipe_create_pipeline(" . join(', ', "'$name'", "'stream:$name'", "target => '$name'", map { "$_ => '$opt{$_}'" } sort keys %opt) . ')';
}

sub make { return sql(definition(@_)) }

# Entries, and what a query shows when they are applied.
sub rows
{
	my ($name, $query, $expected, $what, @entries) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$redis->xadd("stream:$name", @$_) for @entries;
	return wait_sql($node, 'postgres', $query, $expected, $what);
}

# What is added meanwhile comes in one batch, or two.
sub lock_while
{
	my ($table, $work) = @_;
	my $session = pp_session($node);
	$session->("BEGIN; LOCK TABLE $table");
	$work->();
	wait_sql($node, 'postgres', "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND relation = '$table'::regclass", 't', "$table: the worker waits");
	$session->('COMMIT');
	return $session->(undef);
}
