# Tables whose rows no WAL of ours holds: nothing may be acknowledged for them, unless that is accepted.
# TAP, because tables change while background workers write them.

use strict;
use warnings;
use Postpipe::Test;
use Postpipe::Test::Pipelines qw(definition);

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('targets', redis => $redis);
sql('CREATE EXTENSION postpipe');
sql(q(SELECT postpipe_drop_pipeline('posts')));
sql(<<'SQL');
CREATE ROLE app LOGIN;
GRANT CREATE, USAGE ON SCHEMA public TO app;
GRANT EXECUTE ON FUNCTION postpipe_create_pipeline, postpipe_drop_pipeline TO app;
CREATE FOREIGN DATA WRAPPER dummy;
CREATE SERVER dummy FOREIGN DATA WRAPPER dummy;
CREATE UNLOGGED TABLE unlogged (id int, v text);
CREATE TABLE parts (id int, v text) PARTITION BY RANGE (id);
CREATE TABLE logged_part PARTITION OF parts FOR VALUES FROM (0) TO (10);
CREATE TABLE sub PARTITION OF parts FOR VALUES FROM (10) TO (20) PARTITION BY RANGE (id);
CREATE UNLOGGED TABLE unlogged_part PARTITION OF sub FOR VALUES FROM (10) TO (20);
CREATE TABLE remote_parts (id int, v text) PARTITION BY RANGE (id);
CREATE FOREIGN TABLE remote PARTITION OF remote_parts FOR VALUES FROM (0) TO (10) SERVER dummy;
ALTER TABLE unlogged OWNER TO app;
GRANT ALL ON parts, remote_parts, remote TO app;
SQL

# --- When the pipeline is made: by whatever way the rows would get there, and for everybody.
my $values = q(SELECT (event->>'id')::int, event->>'v' FROM postpipe_batch);
for my $role (qw(app none))
{
	refused($role, statement => "INSERT INTO unlogged $values", qr/may not write unlogged table public.unlogged/);
	refused($role, statement => "WITH w AS (INSERT INTO unlogged $values) SELECT", qr/may not write unlogged table public.unlogged/);
	refused($role, statement => "UPDATE parts SET v = b.event->>'v' FROM postpipe_batch b WHERE parts.id = 1", qr/may not write unlogged table public.unlogged_part/);
	refused($role, statement => "INSERT INTO parts $values", qr/may not write unlogged table public.unlogged_part.*After a crash it would be empty/s);
	refused($role, statement => "INSERT INTO remote_parts $values", qr/may not write foreign table public.remote.*when what is written there is durable.*allow_unlogged/s);
}
refused("none", target => 'parts', qr/may not write unlogged table public.unlogged_part/);
refused("none", target => 'remote_parts', qr/may not write foreign table public.remote/);
refused("none", target => 'remote', qr/is not a table/);
make('accepted', statement => "INSERT INTO unlogged $values", options => '{"allow_unlogged": true}', owner => 'app');
$redis->xadd('stream:accepted', id => 1);
wait_sql($node, 'postgres', 'SELECT count(*) FROM unlogged', 1, 'with allow_unlogged it is accepted');

# --- Later: a table that becomes unlogged, or a partition; one that is foreign is attached. The pipeline stops until it is mended.
for my $how (qw(target statement))
{
	my %what = map { $_ => $how eq 'target' ? $_ : "INSERT INTO $_ $values" } "turns_$how", "tree_$how";
	sql("CREATE TABLE turns_$how (id int, v text); CREATE TABLE tree_$how (id int, v text) PARTITION BY RANGE (id); CREATE TABLE leaf_$how PARTITION OF tree_$how FOR VALUES FROM (0) TO (10)");
	make($_, $how => $what{$_}) for sort keys %what;
	$redis->xadd("stream:$_", id => 1) for keys %what;
	wait_sql($node, 'postgres', "SELECT count(*) FROM $_", 1, "$_: one is there") for sort keys %what;
	for my $case ([ "turns_$how", "turns_$how SET UNLOGGED", "turns_$how SET LOGGED" ], [ "tree_$how", "leaf_$how SET UNLOGGED", "leaf_$how SET LOGGED" ],
		[ "tree_$how", "tree_$how ATTACH PARTITION remote_$how FOR VALUES FROM (10) TO (20)", "tree_$how DETACH PARTITION remote_$how" ])
	{
		my ($name, $change, $mend) = @$case;
		my $before = sql("SELECT count(*) FROM $name");
		sql("CREATE FOREIGN TABLE IF NOT EXISTS remote_$how (id int, v text) SERVER dummy; ALTER TABLE $change");
		$redis->xadd("stream:$name", id => 2);
		wait_sql($node, 'postgres', "SELECT state, reason_code FROM postpipe_stats WHERE pipeline = '$name'", 'failed|sqlstate_55000', "ALTER TABLE $change: stops");
		is(pending($redis, "stream:$name", "postpipe_$name"), 1, '... and nothing acknowledged');
		sql("ALTER TABLE $mend");
		wait_sql($node, 'postgres', "SELECT count(*) FROM $name", $before + 1, "ALTER TABLE $mend: goes on");
	}
}

# --- Tables of our own.
sql('CREATE TABLE own (id int, v text)');
make('own', target => 'own');
my $n = 0;
for my $table (qw(postpipe_ledger postpipe_dead_letter))
{
	$redis->xadd('stream:own', id => ++$n);
	wait_sql($node, 'postgres', 'SELECT count(*) FROM own', $n, "$table: before");
	sql("ALTER TABLE $table SET UNLOGGED");
	$redis->xadd('stream:own', id => ++$n);
	wait_sql($node, 'postgres', q(SELECT state, reason_code FROM postpipe_stats WHERE pipeline = 'own'), 'failed|sqlstate_55000', "$table becomes unlogged: stops");
	like(sql(q(SELECT reason FROM postpipe_stats WHERE pipeline = 'own')), qr/^table public.$table is unlogged/, '... and says why');
	is(pending($redis, 'stream:own', 'postpipe_own'), 1, '... and nothing acknowledged');
	sql("ALTER TABLE $table SET LOGGED");
	wait_sql($node, 'postgres', 'SELECT count(*) FROM own', $n, "$table is logged: goes on");
}
is(sql('SELECT count(*) FROM postpipe_dlq'), 0, 'nothing is dead');
pp_balanced($node);
$node->stop;
done_testing();

sub make { return sql(definition(@_)) }

sub refused
{
	my ($role, $how, $what, $regex) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my (undef, undef, $error) = $node->psql('postgres', "SET ROLE $role; " . definition('refused', $how => $what));
	return like($error, $regex, "$role: $what");
}
