# What a user's statement makes of a batch, whatever its plan: the scan may take the entries themselves (batch_scan.c) or has
# to read a tuplestore. Each query runs over a table of the same rows as well, and must give the same. TAP, because it needs
# Redis streams and background workers.

use strict;
use warnings;
use Postpipe::Test;

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('plans', redis => $redis, conf => 'postpipe.max_retries = 0');
sql('CREATE EXTENSION postpipe');
sql(q(SELECT postpipe_drop_pipeline('posts')));
sql(<<'SQL');
CREATE SCHEMA same;
CREATE TABLE same.postpipe_batch (ord int, event jsonb);
CREATE TABLE kind (name text PRIMARY KEY, weight int);
INSERT INTO kind VALUES ('a', 1), ('b', 10), ('c', 100);
SQL

my %queries = (
	fields => q(SELECT (event ->> 'id')::int AS id, event ->> 'kind' AS kind, event ->> 'none' AS none, nullif(event ->> 'n', '') AS n FROM postpipe_batch),
	filtered => q(SELECT event ->> 'id' AS id, event ->> 'kind' AS kind FROM postpipe_batch WHERE event ->> 'kind' <> 'b' AND event ->> 'n' <> ''),
	none_left => q(SELECT event ->> 'id' AS id FROM postpipe_batch WHERE event ->> 'kind' = 'x'),
	guarded => q(SELECT (event ->> 'n')::int AS n FROM postpipe_batch WHERE event ->> 'n' ~ '^[0-9]+$'),
	guarded_by_case => q(SELECT CASE WHEN event ->> 'n' ~ '^[0-9]+$' THEN (event ->> 'n')::int END AS n FROM postpipe_batch),
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

# Few entries and many have plans of their own; all are in one batch.
my $before = 0;
for my $n (5, 40)
{
	sql('TRUNCATE same.postpipe_batch');
	for my $i (1 .. $n)
	{
		my @fields = (id => $i, kind => (qw(a b c))[ $i % 3 ], n => $i % 4 == 1 ? '' : $i % 4 == 2 ? 'x' : $i);
		$redis->xadd('stream:all', @fields);
		sql("INSERT INTO same.postpipe_batch SELECT $i, jsonb_object('{" . join(',', map { qq("$_") } @fields) . "}')");
	}
	for my $name (sort keys %queries)
	{
		sql("TRUNCATE out_$name; SELECT postpipe_resume('$name')");
		settled($name, $before + $n . '|0');
		sql("SELECT postpipe_pause('$name', 'until the next ones are there')");
		wait_state($name, 'paused');
		my $same = sql("SET search_path = same, public; SELECT string_agg(r::text, E'\\n' ORDER BY r::text) FROM ($queries{$name}) r");
		is(sql("SELECT string_agg(r::text, E'\\n' ORDER BY r::text) FROM out_$name r"), $same, "$name, of $n entries");
	}
	$before += $n;
}

# What fails says which statement it was, as from SQL.
sql('CREATE TABLE positive (id int CHECK (id > 0))');
sql(q(SELECT postpipe_create_pipeline('failing', 'stream:failing', statement => 'INSERT INTO positive SELECT (event ->> ''id'')::int FROM postpipe_batch')));
$redis->xadd('stream:failing', id => $_) for 1, -1, 2;
settled('failing', '2|1');
like(sql('SELECT context FROM postpipe_dlq'), qr/^SQL statement "INSERT INTO positive/, 'the context of an error');

pp_balanced($node);
done_testing();

sub settled
{
	my ($pipeline, $want) = @_;
	wait_sql($node, 'postgres', "SELECT entries_applied, entries_dead FROM postpipe_stats WHERE pipeline = '$pipeline'", $want, "$pipeline settled them");
	return;
}

sub wait_state
{
	my ($pipeline, $state) = @_;
	wait_sql($node, 'postgres', "SELECT postpipe_wait_state('$pipeline', '$state')", 't', "$pipeline is $state");
	return;
}

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql) }
