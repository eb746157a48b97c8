# Rows of an INSERT go into their table as values (batch_row.c), whatever is asked of them on the way. Each statement runs over
# a table of the same entries as well, by psql, and must leave the same. TAP, because it needs Redis streams and background
# workers.

use strict;
use warnings;
use Postpipe::Test;

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('rows', redis => $redis, conf => "postpipe.max_retries = 0\njit_above_cost = 0\njit = off");
sql('CREATE EXTENSION postpipe; CREATE EXTENSION btree_gist');
sql(q(SELECT postpipe_drop_pipeline('posts')));
sql('CREATE DOMAIN positive AS int CHECK (VALUE > 0)');
for my $schema (qw(by_pipeline by_psql))
{
	sql(<<~"SQL");
		CREATE SCHEMA $schema;
		CREATE TABLE $schema.noted (what text);
		CREATE SEQUENCE $schema.looks;
		CREATE TABLE $schema.measured (what text, n int GENERATED ALWAYS AS (length(what)) STORED);
		CREATE FUNCTION $schema.note(text) RETURNS text LANGUAGE sql AS 'INSERT INTO $schema.noted VALUES (\$1) RETURNING what';
		SQL
}
sql('CREATE TABLE by_psql.postpipe_batch (ord int, event jsonb)');

# For each: its table %T, what stands behind the INSERT of (id, v) into it, and before it.
my $set = 'ON CONFLICT (id) DO UPDATE SET v = t.v || excluded.v';
my %cases = (
	keyed => [ 'CREATE TABLE %T (id int PRIMARY KEY, v text)', $set ],
	nothing => [ 'CREATE TABLE %T (id int PRIMARY KEY, v text)', 'ON CONFLICT DO NOTHING' ],
	no_key => [ 'CREATE TABLE %T (id int, v text)', 'RETURNING note(v)' ],
	excluding => [ 'CREATE TABLE %T (id int, v text, EXCLUDE USING gist (id WITH =))', 'ON CONFLICT DO NOTHING RETURNING note(v)' ],
	conditional => [ 'CREATE TABLE %T (id int PRIMARY KEY, v text)', "$set WHERE excluded.id % 2 = 0 AND length(t.v) < 30 RETURNING note(t.id::text)" ],
	generated => [ 'CREATE TABLE %T (id int PRIMARY KEY, v text, n int GENERATED ALWAYS AS (length(v)) STORED, w text GENERATED ALWAYS AS (upper(v)) STORED)', "$set || excluded.w RETURNING note(t.w || t.n)" ],
	dropped => [ 'CREATE TABLE %T (gone int, id int PRIMARY KEY, gone_too text, v text); ALTER TABLE %T DROP COLUMN gone, DROP COLUMN gone_too; ALTER TABLE %T ADD COLUMN later text DEFAULT $$later$$ NOT NULL', "$set, later = excluded.later || t.id RETURNING note(t::text)" ],
	large => [ 'CREATE TABLE %T (id int PRIMARY KEY, v text); ALTER TABLE %T ALTER v SET STORAGE EXTERNAL', 'ON CONFLICT (id) DO UPDATE SET v = repeat(excluded.v, 2000)' ],
	kept_plain => [ 'CREATE TABLE %T (id int PRIMARY KEY, v text); ALTER TABLE %T ALTER v SET STORAGE PLAIN', $set ],
	checked => [ 'CREATE TABLE %T (id positive PRIMARY KEY, v varchar(400) NOT NULL CHECK (v <> $$x$$))', "$set RETURNING note(t.v)" ],
	system_columns => [ 'CREATE TABLE %T (id int PRIMARY KEY, v text)', "$set RETURNING note(concat_ws(',', t.id, t.xmax = 0, t.tableoid = 'system_columns'::regclass, t.ctid IS NOT NULL))" ],
	transactions => [ 'CREATE TABLE %T (id int PRIMARY KEY, v text)', "$set RETURNING note(concat_ws(',', t.id, t.xmin = pg_current_xact_id()::xid, (SELECT t.cmin::text <> '')))" ],
	rows => [ 'CREATE TABLE %T (id int PRIMARY KEY, v text)', "$set RETURNING note(to_jsonb(t)::text), t.*, t" ],
	partial_index => [ 'CREATE TABLE %T (id int PRIMARY KEY, v text); CREATE INDEX ON %T (lower(v)) WHERE id % 2 = 0', $set ],
	also_written => [ 'CREATE TABLE %T (id int PRIMARY KEY, v text, n int GENERATED ALWAYS AS (length(v)) STORED)', 'ON CONFLICT (id) DO UPDATE SET v = (SELECT what FROM x) || excluded.v RETURNING note(t.v)', q(WITH x AS (INSERT INTO measured VALUES (repeat('written', 20)) RETURNING what)) ],
	viewed => [ q(CREATE TABLE %T_below (id int, v text); CREATE VIEW %T AS SELECT * FROM %T_below WHERE xmin::text <> '0' AND nextval('looks') > 0 WITH CHECK OPTION), '' ]);
my %statement = map { my (undef, $after, $before) = @{ $cases{$_} }; $_ => ($before // '') . " INSERT INTO $_ AS t (id, v) SELECT (event ->> 'id')::int, event ->> 'v' FROM postpipe_batch $after" } keys %cases;

for my $name (sort keys %cases)
{
	my $create = $cases{$name}[0] =~ s/%T/$name/gr;
	sql("SET search_path = $_, public; $create") for qw(by_pipeline by_psql);
	sql("SET search_path = by_pipeline, public; SELECT postpipe_create_pipeline('$name', 'stream:rows', statement => \$s\$$statement{$name}\$s\$, enabled => false)");
}

# New rows; half of them again, with new ones; and so with expressions compiled. Few entries have a plan of their own.
my $settled = 0;
for my $case ([ 1, 5, 'off' ], [ 4, 8, 'off' ], [ 1, 30, 'off' ], [ 16, 45, 'off' ], [ 31, 60, 'on' ])
{
	my ($first, $last, $jit) = @$case;
	configure('jit', $jit);
	sql('TRUNCATE by_psql.postpipe_batch');
	for my $id (reverse $first .. $last)
	{
		$redis->xadd('stream:rows', id => $id, v => "value $id $last");
		sql("INSERT INTO by_psql.postpipe_batch VALUES ($id, '{\"id\": \"$id\", \"v\": \"value $id $last\"}')");
	}
	$settled += $last - $first + 1;
	for my $name (sort keys %cases)
	{
		sql('TRUNCATE by_pipeline.noted, by_psql.noted');
		sql("SELECT postpipe_resume('$name')");
		wait_sql($node, 'postgres', "SELECT entries_applied, entries_dead FROM postpipe_stats WHERE pipeline = '$name'", "$settled|0", "$name: $first to $last are settled");
		sql("SELECT postpipe_pause('$name', 'until the next ones are there')");
		wait_sql($node, 'postgres', "SELECT postpipe_wait_state('$name', 'paused')", 't', "$name is paused");
		sql("SET search_path = by_psql, public; $statement{$name}");
		is(contents('by_pipeline', $name), contents('by_psql', $name), "$name, $first to $last, jit $jit: the rows");
		is(contents('by_pipeline', 'noted'), contents('by_psql', 'noted'), '... and what was noted of them');
	}
}
is(sql('SELECT last_value FROM by_pipeline.looks'), sql('SELECT last_value FROM by_psql.looks'), 'no row was checked more than once: nothing had failed');
pp_balanced($node);
$node->stop;
done_testing();

sub contents { my ($schema, $table) = @_; $table =~ s/^viewed$/viewed_below/; return sql("SELECT string_agg(md5(r::text) || left(r::text, 60), E'\\n' ORDER BY r::text) FROM $schema.$table r") }
