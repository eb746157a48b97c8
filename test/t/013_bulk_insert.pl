# Where rows that are all new go into the table many at a time (bulk_insert.c), and where they must not: the rows are
# those of an INSERT either way. TAP, because it needs Redis streams, background workers and the server's log, where
# auto_explain writes which plan was run.

use strict;
use warnings;
use Postpipe::Test;

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('bulk', redis => $redis, conf => "postpipe.max_retries = 0\nauto_explain.log_min_duration = 0\nauto_explain.log_level = log\nauto_explain.log_verbose = on");
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'postpipe, auto_explain'");
$node->restart;
sql('CREATE EXTENSION postpipe');
sql(q(SELECT postpipe_drop_pipeline('posts')));
sql(<<'SQL');
CREATE TABLE log (what text);
CREATE FUNCTION rows_of(regclass) RETURNS bigint LANGUAGE plpgsql AS 'DECLARE n bigint; BEGIN EXECUTE ''SELECT count(*) FROM '' || $1 INTO n; RETURN n; END';
CREATE FUNCTION log_row() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO log VALUES (TG_WHEN || NEW.id); RETURN NEW; END';
CREATE FUNCTION log_statement() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO log SELECT ''new '' || count(*) FROM new; RETURN NULL; END';
CREATE TABLE parent (id int, v text) PARTITION BY RANGE (id);
CREATE ROLE limited;
GRANT CREATE ON SCHEMA public TO limited;
SQL

# name, its table, in bulk?, the rows that come of five entries with id 1 to 5 and v = 'v1' to 'v5', SQLSTATE of the
# dead letter that comes of a sixth with id 1000 and v = 'bad' ('': it is a row as well), what else is to be seen.
my @tables = (
	[ 'plain', 'CREATE TABLE plain (id int, v text)', 1, '1 v1,2 v2,3 v3,4 v4,5 v5', '' ],
	[ 'keyed', 'CREATE TABLE keyed (id int PRIMARY KEY, v text UNIQUE)', 1, '1 v1,2 v2,3 v3,4 v4,5 v5', '' ],
	[ 'generated', 'CREATE TABLE generated (id int, v text, twice int GENERATED ALWAYS AS (id * 2) STORED CHECK (twice < 2000))', 1, '1 v1 2,2 v2 4,3 v3 6,4 v4 8,5 v5 10', '23514' ],
	[ 'checked', q(CREATE TABLE checked (id int CHECK (id < 1000), v text NOT NULL)), 1, '1 v1,2 v2,3 v3,4 v4,5 v5', '23514' ],
	[ 'serial_default', 'CREATE TABLE serial_default (id int, v text, n serial)', 1, '1 v1 1,2 v2 2,3 v3 3,4 v4 4,5 v5 5', '' ],
	[ 'identity', 'CREATE TABLE identity (n int GENERATED ALWAYS AS IDENTITY (START 7), id int, v text)', 1, '7 1 v1,8 2 v2,9 3 v3,10 4 v4,11 5 v5', '' ],
	[ 'dropped', 'CREATE TABLE dropped (gone int NOT NULL, id int, gone_too text, v text); ALTER TABLE dropped DROP COLUMN gone, DROP COLUMN gone_too; ALTER TABLE dropped ADD COLUMN later int DEFAULT 3', 1, '1 v1 3,2 v2 3,3 v3 3,4 v4 3,5 v5 3', '' ],
	[ 'expression_index', q(CREATE TABLE expression_index (id int, v text); CREATE UNIQUE INDEX ON expression_index ((id % 1000)) WHERE v <> 'v5'; INSERT INTO expression_index VALUES (0, 'v0')), 1, '0 v0,1 v1,2 v2,3 v3,4 v4,5 v5', '23505' ],
	[ 'excluding', q(CREATE TABLE excluding (id int, v text, EXCLUDE USING btree (v WITH =)); INSERT INTO excluding VALUES (0, 'bad')), 1, '0 bad,1 v1,2 v2,3 v3,4 v4,5 v5', '23P01' ],
	[ 'part', 'CREATE TABLE part PARTITION OF parent FOR VALUES FROM (1) TO (6)', 1, '1 v1,2 v2,3 v3,4 v4,5 v5', '23514' ],
	[ 'partitioned', 'CREATE TABLE partitioned (id int, v text) PARTITION BY RANGE (id); CREATE TABLE partitioned_1 PARTITION OF partitioned FOR VALUES FROM (1) TO (6)', 0, '1 v1,2 v2,3 v3,4 v4,5 v5', '23514' ],
	[ 'looking', q(CREATE TABLE looking (id int, v text, n bigint DEFAULT rows_of('looking'))), 0, '1 v1 0,2 v2 1,3 v3 2,4 v4 3,5 v5 4', '' ],
	[ 'counting', q(CREATE TABLE counting (id int, v text, CHECK (rows_of('counting') < 6))), 0, '1 v1,2 v2,3 v3,4 v4,5 v5', '' ],
	[ 'counting_type', q(CREATE TABLE counting_type (id int, v text); CREATE DOMAIN few AS text CHECK (rows_of('counting_type') < 6); ALTER TABLE counting_type ALTER v TYPE few), 0, '1 v1,2 v2,3 v3,4 v4,5 v5', '' ],
	[ 'counting_array', q(CREATE TABLE counting_array (id int, v text); CREATE DOMAIN few_counting_array AS int CHECK (rows_of('counting_array') < 6); ALTER TABLE counting_array ADD n few_counting_array[] DEFAULT '{1}'), 0, '1 v1 {1},2 v2 {1},3 v3 {1},4 v4 {1},5 v5 {1}', '' ],
	[ 'counting_composite', q(CREATE TABLE counting_composite (id int, v text); CREATE DOMAIN few_counting_composite AS int CHECK (rows_of('counting_composite') < 6); CREATE TYPE pair_counting_composite AS (a int, b few_counting_composite); ALTER TABLE counting_composite ADD n pair_counting_composite DEFAULT '(1,2)'), 0, '1 v1 (1,2),2 v2 (1,2),3 v3 (1,2),4 v4 (1,2),5 v5 (1,2)', '' ],
	[ 'counting_range', q(CREATE TABLE counting_range (id int, v text); CREATE DOMAIN few_counting_range AS int CHECK (rows_of('counting_range') < 6); CREATE TYPE range_counting_range AS RANGE (subtype = few_counting_range, subtype_opclass = int4_ops); ALTER TABLE counting_range ADD n range_counting_range), 0, '1 v1 ,2 v2 ,3 v3 ,4 v4 ,5 v5 ', '' ],
	[ 'casting', q(CREATE TYPE counted AS (n bigint); CREATE TABLE casting (id int, v text, n counted); CREATE FUNCTION make_counted(text) RETURNS counted LANGUAGE plpgsql VOLATILE AS $$BEGIN RETURN row(rows_of('casting')); END$$; CREATE CAST (text AS counted) WITH FUNCTION make_counted(text)), 0, '1 v1 (0),2 v2 (1),3 v3 (2),4 v4 (3),5 v5 (4)', '' ],
	[ 'before', 'CREATE TABLE before (id int, v text); CREATE TRIGGER log BEFORE INSERT ON before FOR EACH ROW EXECUTE FUNCTION log_row()', 0, '1 v1,2 v2,3 v3,4 v4,5 v5', '', 'BEFORE1,BEFORE2,BEFORE3,BEFORE4,BEFORE5,BEFORE1000' ],
	[ 'after', 'CREATE TABLE after (id int, v text); CREATE TRIGGER log AFTER INSERT ON after REFERENCING NEW TABLE AS new FOR EACH STATEMENT EXECUTE FUNCTION log_statement()', 0, '1 v1,2 v2,3 v3,4 v4,5 v5', '', 'new 5,new 1' ],
	[ 'referring', 'CREATE TABLE referring (id int REFERENCES keyed_ids (id), v text)', 0, '1 v1,2 v2,3 v3,4 v4,5 v5', '23503' ],
	[ 'deferred_key', 'CREATE TABLE deferred_key (id int UNIQUE DEFERRABLE INITIALLY DEFERRED, v text); INSERT INTO deferred_key VALUES (1000, $$v0$$)', 0, '1 v1,2 v2,3 v3,4 v4,5 v5,1000 v0', '23505' ],
	[ 'ruled', q(CREATE TABLE ruled (id int, v text); CREATE RULE log AS ON INSERT TO ruled DO ALSO INSERT INTO log VALUES ('rule ' || NEW.id)), 0, '1 v1,2 v2,3 v3,4 v4,5 v5', '', 'rule 1,rule 2,rule 3,rule 4,rule 5,rule 1000' ],
	[ 'secured', 'CREATE TABLE secured (id int, v text); ALTER TABLE secured OWNER TO limited; ALTER TABLE secured ENABLE ROW LEVEL SECURITY; ALTER TABLE secured FORCE ROW LEVEL SECURITY; CREATE POLICY small ON secured WITH CHECK (id < 1000)', 0, '1 v1,2 v2,3 v3,4 v4,5 v5', '42501' ]);
sql('CREATE TABLE keyed_ids (id int PRIMARY KEY); INSERT INTO keyed_ids SELECT generate_series(1, 5)');

for my $table (@tables)
{
	my ($name, $create, $bulk, $rows, $dead, $log) = @$table;
	subtest $name => sub {
		sql("SET client_min_messages = error; TRUNCATE log; $create");
		my $from = log_offset($node);
		$redis->xadd("stream:$name", id => $_, v => "v$_") for 1 .. 5;
		sql("SELECT postpipe_create_pipeline('$name', 'stream:$name', target => '$name')");
		settled($name, '5|0');
		my ($plan) = log_lines($node, qr/Insert on public\.$name |^\t(?:Subquery Scan|Named Tuplestore Scan)/, $from);
		is($plan =~ /Insert on/ ? 0 : 1, $bulk, $bulk ? 'in bulk' : 'row by row');
		is(rows($name), $rows, 'the rows');
		is(sql("SET enable_seqscan = off; SELECT count(*) FROM $name WHERE id BETWEEN 1 AND 5"), 5, 'the same through its indexes');
		$redis->xadd("stream:$name", id => 1000, v => 'bad');
		settled($name, $dead ? '5|1' : '6|0');
		is(sql("SELECT string_agg(sqlstate, ',') FROM postpipe_dlq WHERE pipeline = '$name'"), $dead, 'the bad one');
		is(sql("SELECT count(*) FROM $name WHERE id = 1000 AND v = 'bad'"), $dead ? 0 : 1, $dead ? '... is no row' : '... is not bad here');
		is(sql(q(SELECT string_agg(what, ',' ORDER BY ctid) FROM log)), $log // '', 'what triggers and rules did');
		sql("SELECT postpipe_drop_pipeline('$name', discard_dead => true)");
	};
}

# --- More rows than wait for their index entries at once, with keys in no order, long ones, and none.
sql(q(CREATE TABLE many (id text PRIMARY KEY, v text, n int, w numeric); CREATE UNIQUE INDEX ON many (n DESC, v); CREATE INDEX ON many (w); CREATE INDEX ON many USING hash (v); CREATE INDEX ON many (lower(id), (id::name))));
sql(q(ALTER SYSTEM SET postpipe.batch_size = 10000; SELECT pg_reload_conf()));
sql(q(SELECT postpipe_create_pipeline('many', 'stream:many', target => 'many', enabled => false)));
my $n = 7000;
$redis->pipeline(map { [ 'XADD', 'stream:many', '*', id => sprintf('%x', $_ * 7919 % 10007) . 'k' x ($_ % 500), $_ % 3 ? (v => "v$_") : (), n => $_ * 31 % 101 - 50, $_ % 5 ? (w => $_ / 8) : () ] } 1 .. $n);
my $from = log_offset($node);
sql(q(SELECT postpipe_resume('many')));
settled('many', "$n|0");
unlike(join('', log_lines($node, qr/Insert on public\.many/, $from)), qr/./, 'many rows: in bulk');
sql(q(CREATE EXTENSION amcheck));
is(sql(q(SELECT count(bt_index_check(c.oid, true)) FROM pg_index i JOIN pg_class c ON c.oid = indexrelid WHERE indrelid = 'many'::regclass AND relam = 403)), 4, 'each row is in its btree indexes, in order');
is(sql(q(SET enable_seqscan = off; SET enable_bitmapscan = off; SELECT count(*) FROM many WHERE v = 'v4999')), 1, '... and in that of another kind');
is(sql(q(SELECT count(*), count(DISTINCT id), count(v), count(w) FROM many)), join('|', $n, $n, scalar(grep { $_ % 3 } 1 .. $n), scalar(grep { $_ % 5 } 1 .. $n)), 'the rows');

# --- A rule makes many rows of each, in another table.
sql(<<'SQL');
CREATE TABLE spread (id int, v text);
CREATE TABLE parts (id int, g int, v text CHECK (rows_of('parts') < 3000), PRIMARY KEY (id, g));
CREATE RULE spread AS ON INSERT TO spread DO INSTEAD INSERT INTO parts SELECT NEW.id, g, NEW.v FROM generate_series(1, 1500) g;
SQL
$redis->xadd('stream:spread', id => 1, v => 'v');
my $here = log_offset($node);
sql(q(SELECT postpipe_create_pipeline('spread', 'stream:spread', target => 'spread')));
settled('spread', '1|0');
is(sql(q(SET enable_seqscan = off; SELECT count(*) FROM parts WHERE id = 1 AND g > 0)), 1500, 'a rule makes many rows of one');
like(join('', log_lines($node, qr/Insert on public\.parts/, $here)), qr/./, '... row by row');

# --- Where all rows conflict that shows before all of them are in the table.
sql(q(CREATE TABLE there (id int PRIMARY KEY, v text); INSERT INTO there SELECT n, repeat('x', 1000) FROM generate_series(1, 1000) n; VACUUM there));
sql(q(SELECT postpipe_create_pipeline('there', 'stream:there', target => 'there', on_conflict => 'nothing', enabled => false)));
$redis->pipeline(map { [ 'XADD', 'stream:there', '*', id => $_, v => 'y' x 1000 ] } 1 .. 1000);
my $size = sql(q(SELECT pg_relation_size('there')));
sql(q(SELECT postpipe_resume('there')));
settled('there', '1000|0');
is(sql(q(SELECT count(*) FROM there WHERE v LIKE 'x%')), 1000, 'rows that are there stay');
cmp_ok(sql(q(SELECT pg_relation_size('there'))) - $size, '<', 300_000, '... and few others were tried');

# --- Keys of all kinds, columns that only go along, values that are stored elsewhere, indexes of all kinds.
sql(<<'SQL');
CREATE TABLE kinds (id int, n name, c "char", b bool, d numeric, f float8, a int[], y bytea, u uuid, t text, p point, i interval);
ALTER TABLE kinds ALTER t SET STORAGE EXTERNAL;
CREATE UNIQUE INDEX ON kinds (n, id DESC) INCLUDE (u, y, b);
CREATE INDEX ON kinds (c, b); CREATE INDEX ON kinds (b, d); CREATE INDEX ON kinds (d, f); CREATE INDEX ON kinds (f DESC NULLS LAST, a);
CREATE INDEX ON kinds (a); CREATE INDEX ON kinds (y); CREATE INDEX ON kinds (u, i); CREATE INDEX ON kinds (i);
CREATE INDEX ON kinds (md5(t), length(t)); CREATE INDEX ON kinds (left(t, 1000)); CREATE INDEX ON kinds ((a || id), int4range(id, id + 1));
CREATE INDEX by_hash ON kinds USING hash (u); CREATE INDEX by_gin ON kinds USING gin (a); CREATE INDEX by_gist ON kinds USING gist (p);
CREATE INDEX by_spgist ON kinds USING spgist (p); CREATE INDEX by_brin ON kinds USING brin (id) WITH (pages_per_range = 1, autosummarize = off);
SELECT postpipe_create_pipeline('kinds', 'stream:kinds', target => 'kinds', enabled => false);
SQL
$redis->pipeline(map {
	my $i = $_ * 7919 % 10007;
	[ 'XADD', 'stream:kinds', '*', id => $i, n => "n$i", c => chr(97 + $i % 26), b => $i % 2 ? 'true' : 'false', $i % 7 ? (d => $i / 16 - 100) : (), f => ($i - 5000) / 3, a => '[' . join(', ', $i % 10, $i) . ']',
		y => sprintf('\\\\x%x', $i + 0x100000), u => sprintf('%08x-0000-0000-0000-%012x', $i * 65537, $i), t => "t$i " . 'x' x ($i % 50 ? 10 : 9000), p => "($i, " . $i % 100 . ')', i => "$i minutes" ]
} 1 .. 3000);
$from = log_offset($node);
sql(q(SELECT postpipe_resume('kinds')));
settled('kinds', '3000|0');
unlike(join('', log_lines($node, qr/Insert on public\.kinds/, $from)), qr/./, 'keys of all kinds: in bulk');
is(sql(q(SELECT count(bt_index_check(c.oid, true)) FROM pg_index i JOIN pg_class c ON c.oid = indexrelid WHERE indrelid = 'kinds'::regclass AND relam = 403)), 12, 'each row is in its btree indexes, in order');
my %found = (by_hash => q(u = (SELECT u FROM kinds WHERE id = 7919)), by_gin => 'a @> ARRAY[7919]', by_gist => q(p <@ box '((7919,0),(7919,100))'), by_spgist => q(p <@ box '((7919,0),(7919,100))'), by_brin => 'id = 7919');
for my $index (sort keys %found)
{
	sql("BEGIN; @{[ map { qq(DROP INDEX $_;) } grep { $_ ne $index } $index =~ /gist/ ? qw(by_gist by_spgist) : () ]} SET LOCAL enable_seqscan = off;
		SELECT 1 / (count(*) = 1)::int FROM kinds WHERE $found{$index}; ROLLBACK");
	pass("$index finds what it has to find");
}
is(sql(q(SELECT count(*), count(d), sum(length(t)), count(DISTINCT u) FROM kinds)), sql(q(SELECT count(*), count(*) FILTER (WHERE i % 7 <> 0), sum(length('t' || i) + 1 + CASE WHEN i % 50 = 0 THEN 9000 ELSE 10 END), count(*) FROM (SELECT n * 7919 % 10007 AS i FROM generate_series(1, 3000) n) x)), 'the rows');

# --- An index that is being made while rows come: at first it takes none, then it takes all.
sql(q(CREATE TABLE growing (id int PRIMARY KEY, v text); SELECT postpipe_create_pipeline('growing', 'stream:growing', target => 'growing')));
my $in_between = sub { my ($first) = @_; $redis->pipeline(map { [ 'XADD', 'stream:growing', '*', id => $_ * 7919 % 10007, v => "v$_" ] } $first .. $first + 99); settled('growing', $first + 99 . '|0') };
$in_between->(1);
for my $command ('CREATE INDEX CONCURRENTLY growing_v ON growing (v)', 'REINDEX TABLE CONCURRENTLY growing')
{
	my @blockers = map { pp_session($node) } 1 .. 2;
	my $n = sql('SELECT count(*) FROM growing');
	$blockers[0]->('BEGIN; LOCK TABLE growing IN ROW EXCLUSIVE MODE');
	my $making = pp_start($node, $command);
	wait_sql($node, 'postgres', q(SELECT count(*) > 0 FROM pg_index WHERE indrelid = 'growing'::regclass AND NOT indisready), 't', "$command: it is not ready for rows");
	$in_between->($n + 1);
	$blockers[1]->('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1');
	$blockers[0]->('COMMIT');
	wait_sql($node, 'postgres', q(SELECT count(*) > 0 FROM pg_index WHERE indrelid = 'growing'::regclass AND indisready AND NOT indisvalid), 't', '... it is ready, and not valid');
	$in_between->($n + 101);
	$blockers[1]->('COMMIT');
	$making->();
	$_->(undef) for @blockers;
	is(sql(q(SELECT count(bt_index_check(indexrelid, true)), bool_and(indisvalid) FROM pg_index WHERE indrelid = 'growing'::regclass)), '2|t', '... each row is in each index');
}

# --- A key twice in a batch, and one that is there already: the plain insert fails, and what ON CONFLICT says is done.
$redis->pipeline(map { [ 'XADD', 'stream:many', '*', id => $_->[0], v => $_->[1], n => 1000 ] } [ 'new', 'first' ], [ '1eefk', 'x' ], [ 'new', 'second' ]);
settled('many', $n + 3 . '|0');
is(sql(q(SELECT v FROM many WHERE id = 'new')), 'second', 'the same key twice in a batch');

# --- Full batches through buffers of their own, also after one that failed in the middle.
$from = log_offset($node);
for my $first (8001, 9001, 10001)
{
	sql(q(SELECT postpipe_pause('many')));
	sql(q(SELECT postpipe_wait_state('many', 'paused')));
	$redis->pipeline(map { [ 'XADD', 'stream:many', '*', id => $_ == 9500 ? 'new' : "full $_", v => "v$_", n => $_ ] } $first .. $first + 999);
	sql(q(SELECT postpipe_resume('many')));
	wait_sql($node, 'postgres', "SELECT count(*) FROM many WHERE v = 'v@{[ $first + 999 ]}'", 1, "full batch from $first");
}
like(join('', log_lines($node, qr/Insert on public\.many/, $from)), qr/./, 'one conflicted');
is(sql(q(SELECT count(*), count(DISTINCT v) FROM many WHERE n > 8000)), '3000|3000', 'each row is there');

# --- What an event may have comes to the same, row by row or in bulk: the trigger makes it row by row.
my @columns = 'id int, t text, "Empty" text, c varchar(40), i bigint, f float8, b bool, n numeric, ts timestamptz, plain timestamp, j jsonb, a text[], source text, event_type text, d text DEFAULT ' . q('default');
sql("CREATE TABLE same_bulk (@columns); CREATE TABLE same_rows (@columns); CREATE FUNCTION pass() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
	CREATE TRIGGER pass BEFORE INSERT ON same_rows FOR EACH ROW EXECUTE FUNCTION pass()");
my @events = (
	[ id => 1, t => 'text', Empty => '', c => "caf\x{e9}", i => '-9007199254740993', f => '1e300', b => 'yes', n => '1.50', ts => '2026-01-02T03:04:05+02:00', plain => '2026-01-02T03:04:05+02:00', j => '{"a": [1]}', a => '["x", null]', source => 'field', d => 'given' ],
	[ id => 2 ], [ id => 3, map { $_ => '' } qw(t Empty c i f b n ts plain j a source event_type d) ],
	[ id => 40, t => 'first', id => 4, t => 'last' ], [ d => 'other order', t => 'x', id => 5 ], [ id => 6, unknown => 'u', t => 'x' ],
	[ data => '{"id": 7, "t": 1.50, "Empty": true, "c": false, "i": 12, "f": -0.5, "b": true, "n": 1e2, "j": {"b": 1, "a": [true, null]}, "a": ["x", "y"], "d": null}' ],
	[ data => '{"id": "8", "t": "\\\\u00e9\\\\n\\\\ud83d\\\\ude00", "Empty": "", "i": "", "j": [], "a": [], "source": {"deep": "er"}, "d": ""}' ],
	[ data => '{"id": 9, "t": null, "id": 10}', source => 'envelope', event_type => 'type' ], [ payload => '{"id": 11, "source": "inner", "ts": "2026-01-01"}', source => 'outer' ],
	[ data => '{"id": 12, "t": "a", "t": "b", "f": 3}', event_type => '' ], [ data => '{"id": 13, "t": {}, "c": [1, "2", {"x": "y"}]}' ]);
for my $table ('same_bulk', 'same_rows')
{
	$redis->pipeline(map { [ 'XADD', 'stream:same', '*', map { utf8::encode(my $bytes = $_); $bytes } @$_ ] } @events) if $table eq 'same_bulk';
	$from = log_offset($node);
	sql("SELECT postpipe_create_pipeline('$table', 'stream:same', target => '$table')");
	settled($table, @events . '|0');
	(($table eq 'same_bulk') == (join('', log_lines($node, qr/Insert on public\.$table/, $from)) eq '')) ? pass("$table: by its way") : fail("$table: by its way");
}
is(sql('SELECT count(*), count(bulk.id) FROM same_rows FULL JOIN same_bulk bulk ON same_rows::text = bulk::text'), '12|12', 'the same rows');
is(sql(q(SELECT t, "Empty", c, i, n, j, a, d FROM same_bulk WHERE id = 7)), '1.50|true|false|12|100|{"a": [true, null], "b": 1}|{x,y}|default', '... of JSON values');
is(sql(q(SELECT string_agg(coalesce(source, 'null'), ' ' ORDER BY id) FROM same_bulk WHERE id IN (10, 11)) ), 'envelope inner', '... of an envelope');
is(sql(q(SELECT t, i IS NULL, d FROM same_bulk WHERE id IN (3, 4) ORDER BY id)), "|t|\nlast|t|default", '... of what is empty, and of a name that repeats');

$node->stop;
done_testing();

sub settled
{
	my ($name, $counts) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_sql($node, 'postgres', "SELECT entries_applied, entries_dead FROM postpipe_stats WHERE pipeline = '$name'", $counts, "applied and dead: $counts");
	return;
}

sub rows
{
	my ($name) = @_;
	return join ',', map { tr/|/ /r } split /\n/, sql("SELECT * FROM $name ORDER BY id");
}
