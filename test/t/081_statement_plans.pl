# What a user's statement makes of a batch, whatever its plan: the scan may take the entries themselves (batch_scan.c) or has
# to read a tuplestore. Each query runs over a table of the same rows as well, and must give the same. TAP, because it needs
# Redis streams and background workers.

use strict;
use warnings;
use Postpipe::Test;
use Postpipe::Test::Pipelines qw(wait_state);

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('plans', redis => $redis, conf => "postpipe.max_retries = 0\njit_above_cost = 0");
sql('CREATE EXTENSION postpipe');
sql(q(SELECT postpipe_drop_pipeline('posts')));
sql(<<'SQL');
CREATE SCHEMA same;
CREATE TABLE same.postpipe_batch (id postpipe_id, ord int, stream text, event jsonb, envelope jsonb, added_at timestamptz);
CREATE TABLE kind (name text PRIMARY KEY, weight int);
INSERT INTO kind VALUES ('a', 1), ('b', 10), ('c', 100);
CREATE TYPE letter AS ENUM ('a', 'b', 'c');
CREATE DOMAIN digits AS int CHECK (VALUE > 0);
SQL

my %queries = (
	fields => q(SELECT (event ->> 'id')::int AS id, event ->> 'kind' AS kind, event ->> 'none' AS none, nullif(event ->> 'n', '') AS n FROM postpipe_batch),
	filtered => q(SELECT event ->> 'id' AS id, event ->> 'kind' AS kind FROM postpipe_batch WHERE event ->> 'kind' <> 'b' AND event ->> 'n' <> ''),
	none_left => q(SELECT event ->> 'id' AS id FROM postpipe_batch WHERE event ->> 'kind' = 'x'),
	guarded => q(SELECT (event ->> 'n')::int AS n FROM postpipe_batch WHERE event ->> 'n' ~ '^[0-9]+$'),
	guarded_by_case => q(SELECT CASE WHEN event ->> 'n' ~ '^[0-9]+$' THEN (event ->> 'n')::int END AS n FROM postpipe_batch),
	guarded_by_coalesce => q(SELECT coalesce(event ->> 'kind', (event ->> 'n')::int::text) AS v FROM postpipe_batch),
	guarded_by_and => q(SELECT event ->> 'n' ~ '^[0-9]+$' AND (event ->> 'n')::int > 2 AS v FROM postpipe_batch),
	first_of => q(SELECT coalesce(event ->> 'none', nullif(event ->> 'n', ''), event ->> 'kind') AS v, coalesce(nullif(event ->> 'none', '')::int, (event ->> 'id')::int, 7) AS i FROM postpipe_batch),
	cast_first => q(SELECT coalesce(event ->> 'none', event ->> 'id')::bigint AS i, coalesce((event ->> 'none')::date, '2025-01-02') AS d, (event ->> 'id')::numeric(6, 2) AS x, (event ->> 'kind')::varchar(1) AS k, (event ->> 'id')::int8 + 1 AS next FROM postpipe_batch),
	types => q(SELECT (event ->> 'kind')::letter AS l, (event ->> 'id')::digits AS d, (event ->> 'a')::int[] AS a, (event ->> 'kind')::name AS n, (event ->> 'kind')::"char" AS c, (event ->> 'a')::text COLLATE "C" AS t, (nullif(event ->> 'n', ''))::bytea AS b FROM postpipe_batch),
	all_columns => q(SELECT id, ord, stream, event, envelope, added_at FROM postpipe_batch),
	whole_event => q(SELECT event, event ->> 'id' AS id, ord FROM postpipe_batch WHERE event ? 'n'),
	grouped => q(SELECT event ->> 'kind' AS kind, count(*) AS n, sum((event ->> 'id')::int) AS ids FROM postpipe_batch GROUP BY 1),
	counted => q(SELECT count(*) AS n, count(DISTINCT event ->> 'kind') AS kinds FROM postpipe_batch),
	sorted => q(SELECT ord, row_number() OVER (ORDER BY event ->> 'kind', ord DESC) AS place FROM postpipe_batch),
	last_ones => q(SELECT event ->> 'id' AS id FROM postpipe_batch ORDER BY ord DESC LIMIT 2),
	joined => q(SELECT b.event ->> 'id' AS id, k.weight FROM postpipe_batch b JOIN kind k ON k.name = b.event ->> 'kind'),
	joined_left => q(SELECT k.name, b.event ->> 'id' AS id FROM kind k LEFT JOIN postpipe_batch b ON b.event ->> 'kind' = k.name AND (b.event ->> 'id')::int > 2),
	repeated => q(SELECT g, b.event ->> 'id' AS id FROM generate_series(1, 3) g, postpipe_batch b WHERE b.ord % 4 <> g),
	unnested => q(SELECT b.ord, e.key, e.value FROM postpipe_batch b, LATERAL jsonb_each_text(b.event) e),
	twice => q(SELECT a.event ->> 'id' AS id, b.event ->> 'id' AS before FROM postpipe_batch a LEFT JOIN postpipe_batch b ON b.ord = a.ord - 1),
	asked_again => q(SELECT g, (SELECT string_agg(event ->> 'id', ',' ORDER BY ord) FROM postpipe_batch b WHERE b.ord <= g) AS ids FROM generate_series(0, 4) g),
	asked_once => q(SELECT k.name, (SELECT max((event ->> 'id')::int) FROM postpipe_batch) AS last FROM kind k),
	with => q(WITH w AS MATERIALIZED (SELECT event ->> 'kind' AS kind, ord FROM postpipe_batch) SELECT w.*, v.ord AS other FROM w JOIN w v USING (kind)),
	in_union => q(SELECT event ->> 'id' AS id FROM postpipe_batch UNION ALL SELECT name FROM kind),
	whole_row => q(SELECT (to_jsonb(b) - '{id,stream,envelope,added_at}'::text[]) AS row FROM postpipe_batch b));

for my $name (sort keys %queries)
{
	sql(qq(SET search_path = same, public; CREATE TABLE public.out_$name AS $queries{$name} WITH NO DATA));
	sql("SELECT postpipe_create_pipeline('$name', 'stream:all', statement => \$s\$INSERT INTO out_$name $queries{$name}\$s\$, enabled => false)");
}

# Few entries and many have plans of their own; all are in one batch. In the end expressions are compiled.
my $before = 0;
for my $case ([ 5, 'off' ], [ 40, 'off' ], [ 40, 'on' ])
{
	my ($n, $jit) = @$case;
	configure('jit', $jit);
	sql('TRUNCATE same.postpipe_batch');
	for my $i (1 .. $n)
	{
		my @fields = (id => $i, kind => (qw(a b c))[ $i % 3 ], n => $i % 4 == 1 ? '' : $i % 4 == 2 ? 'x' : $i, a => "{$i,7}");
		my $id = $redis->xadd('stream:all', @fields);
		my ($ms) = split /-/, $id;
		sql("INSERT INTO same.postpipe_batch SELECT '$id', $i, 'stream:all', jsonb_object('{" . join(',', map { qq("$_") } @fields) . "}'), NULL, to_timestamp($ms / 1000.0)");
	}
	for my $name (sort keys %queries)
	{
		sql("TRUNCATE out_$name; SELECT postpipe_resume('$name')");
		settled($name, $before + $n . '|0');
		sql("SELECT postpipe_pause('$name', 'until the next ones are there')");
		wait_state($name, 'paused');
		my $same = sql("SET search_path = same, public; SELECT string_agg(r::text, E'\\n' ORDER BY r::text) FROM ($queries{$name}) r");
		is(sql("SELECT string_agg(r::text, E'\\n' ORDER BY r::text) FROM out_$name r"), $same, "$name, of $n entries, jit $jit");
	}
	$before += $n;
}

# Points in time: the usual form is read here, all others by the type's input function, and the result is the same.
my @times = map { my $day = $_; map { my $time = $_; map { "$day$time$_" } 'Z', '+03:00', '-11:30', '+0545', '+03', '', ' UTC', '+15:00', '+15:59', '+16:00', '+3', '+03:60', 'z', ' +02' } 'T21:00:30', ' 00:00:00', 'T23:59:59.5', 'T12:30:15.123456', 'T12:30:15.1234567', 'T24:00:00', 'T24:00:01', 'T23:59:60', 'T12:60:00', 'T7:00:00', 'T12:30', 'T12:30:15.' }
  '2025-10-28', '2024-02-29', '2023-02-29', '1900-02-29', '0001-01-01', '0000-01-01', '2025-13-01', '2025-04-31', '2025-1-1', '9999-12-31', '12025-01-01';
sql(q(CREATE TABLE stamps (id int, t text, at timestamptz)));
sql(q(SELECT postpipe_create_pipeline('times', 'stream:times', statement => 'INSERT INTO stamps SELECT (event ->> ''id'')::int, event ->> ''t'', (event ->> ''t'')::timestamptz FROM postpipe_batch', options => '{"error_threshold": 1}')));
sql(<<'SQL');
CREATE FUNCTION is_time(t text) RETURNS boolean LANGUAGE plpgsql SET TimeZone = 'UTC' AS $$ BEGIN PERFORM t::timestamptz; RETURN true; EXCEPTION WHEN data_exception THEN RETURN false; END $$;
SQL
my $id = 0;
$redis->pipeline(map { [ 'XADD', 'stream:times', '*', id => ++$id, t => $_ ] } @times);
wait_sql($node, 'postgres', q(SELECT applied + dead, pending FROM postpipe_audit WHERE pipeline = 'times'), @times . '|0', 'all times are settled');
is(sql(q(SET TimeZone = 'UTC'; SELECT count(*) FROM stamps WHERE at IS DISTINCT FROM t::timestamptz)), 0, 'what was read is what the type reads');
is(sql(q(SELECT count(*) FROM postpipe_dlq WHERE pipeline = 'times' AND is_time(event ->> 't'))), 0, '... and what was refused is none');
cmp_ok(sql(q(SELECT count(*) FROM stamps)), '>', 200, 'some were read');
cmp_ok(sql(q(SELECT count(*) FROM postpipe_dlq WHERE pipeline = 'times')), '>', 200, '... and some refused');

# What fails says which statement it was, as from SQL.
sql('CREATE TABLE positive (id int CHECK (id > 0))');
sql(q(SELECT postpipe_create_pipeline('failing', 'stream:failing', statement => 'INSERT INTO positive SELECT (event ->> ''id'')::int FROM postpipe_batch')));
$redis->xadd('stream:failing', id => $_) for 1, -1, 2;
settled('failing', '2|1');
like(sql(q(SELECT context FROM postpipe_dlq WHERE pipeline = 'failing')), qr/^SQL statement "INSERT INTO positive/, 'the context of an error');

# A program that it starts does not get the connection to Redis, which would stay open as long as the program runs.
sql(<<'SQL');
CREATE TABLE started (id int);
CREATE TABLE inherited (file text);
CREATE FUNCTION start_program() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN COPY public.inherited FROM PROGRAM 'ls -l /proc/self/fd | grep -e "-> [ps]"'; RETURN NULL; END $$;
CREATE TRIGGER start_program AFTER INSERT ON started FOR EACH ROW EXECUTE FUNCTION start_program();
SELECT postpipe_create_pipeline('starting', 'stream:starting', target => 'started');
SQL
$redis->xadd('stream:starting', id => 1);
settled('starting', '1|0');
is(sql(q(SELECT count(*) FILTER (WHERE file ~ 'socket:'), count(*) > 0 FROM inherited)), '0|t', 'a program has pipes, and no connection to Redis');

# Who has waited for a table sees what it was waited for, also with a plan that is kept.  (Neither table has an index or a TOAST
# table: those would be rebuilt, which others are told at once, and not when it is committed.)
sql(<<'SQL');
CREATE TABLE weights (kind int, weight int);
INSERT INTO weights VALUES (1, 1);
CREATE TABLE weighed (id int, weight int);
CREATE TABLE totals (kind int, n int);
INSERT INTO totals VALUES (1, 0);
SELECT postpipe_create_pipeline('weighing', 'stream:waits', statement => 'INSERT INTO weighed SELECT (b.event ->> ''id'')::int, w.weight FROM postpipe_batch b JOIN weights w ON w.kind = (b.event ->> ''kind'')::int');
SELECT postpipe_create_pipeline('totalling', 'stream:waits', statement => 'UPDATE totals t SET n = n + 1 FROM postpipe_batch b WHERE t.kind = (b.event ->> ''kind'')::int');
SQL
wait_state($_, 'idle') for qw(weighing totalling);
$redis->xadd('stream:waits', id => 1, kind => 1);
settled($_, '1|0') for qw(weighing totalling);
my $session = pp_session($node);
$session->('BEGIN; TRUNCATE weights; INSERT INTO weights VALUES (1, 2); ALTER TABLE totals ALTER n TYPE bigint');
$redis->xadd('stream:waits', id => 2, kind => 1);
wait_sql($node, 'postgres', q(SELECT count(*) FROM pg_locks WHERE NOT granted AND relation IN ('weights'::regclass, 'totals'::regclass)), 2, 'both wait');
$session->('COMMIT');
settled($_, '2|0') for qw(weighing totalling);
is(sql('SELECT * FROM weighed ORDER BY id'), "1|1\n2|2", 'a table that was filled anew is joined');
is(sql('SELECT n FROM totals'), 2, '... and one that was rewritten is updated');
$session->(undef);

pp_balanced($node);
done_testing();

sub settled
{
	my ($pipeline, $want) = @_;
	wait_sql($node, 'postgres', "SELECT entries_applied, entries_dead FROM postpipe_stats WHERE pipeline = '$pipeline'", $want, "$pipeline settled them");
	return;
}
