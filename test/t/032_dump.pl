# A dump, restored into another server: it restores clean, and a pipeline in it does not start to read what the first server reads.
# TAP, because it takes two servers with different system identifiers, pg_dump and pg_restore.

use strict;
use warnings;
use PostgreSQL::Test::Utils;
use Postpipe::Test;

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('source', redis => $redis);
my $away = pp_node('restored', redis => $redis, fresh => 1, databases => 'listed');
my $identifier = 'SELECT system_identifier FROM pg_control_system()';
isnt($away->safe_psql('postgres', $identifier), $node->safe_psql('postgres', $identifier), 'two servers that are not copies');

# --- What is dumped: pipelines of both kinds, one paused, the built-in one dropped, dead letters, tables that use the type.
my $sql = sub { return $node->safe_psql('postgres', $_[0]) };
$sql->('CREATE ROLE app');
$sql->('CREATE EXTENSION postpipe');
$sql->(q(SELECT postpipe_drop_pipeline('posts')));
$sql->(<<'SQL');
CREATE SCHEMA "Odd Schema";
CREATE TABLE "Odd Schema".clicks (id int PRIMARY KEY, v text);
CREATE TABLE counter (n bigint);
INSERT INTO counter VALUES (0);
CREATE TABLE history (entry postpipe_id PRIMARY KEY, v text);
CREATE INDEX ON history USING hash (entry);
CREATE VIEW counted AS SELECT max(entry), count(*) FROM history WHERE entry > '1-0';
ALTER TABLE counter OWNER TO app;
SELECT postpipe_create_pipeline('clicks', 'stream:clicks', target => '"Odd Schema".clicks', columns => '{"v": {"merge": "replace"}}', options => '{"batch_size": 7}');
SELECT postpipe_create_pipeline('counting', 'stream:clicks', statement => 'UPDATE counter SET n = n + (SELECT count(*) FROM postpipe_batch)', owner => 'app', event_types => '{a,"b c"}');
SELECT postpipe_create_pipeline('history', 'stream:clicks', statement => $$INSERT INTO history SELECT id, event ->> 'v' FROM postpipe_batch$$);
SELECT postpipe_create_pipeline('resting', 'stream:clicks', target => '"Odd Schema".clicks', enabled => false);
SQL
$redis->xadd('stream:clicks', id => 1, v => 'one', event_type => 'a');
$redis->xadd('stream:clicks', id => 'not a number', v => 'bad');
wait_sql($node, 'postgres', q(SELECT count(*) FROM "Odd Schema".clicks), '1', 'the first server reads');
wait_sql($node, 'postgres', 'SELECT dead_letters FROM postpipe_stats WHERE pipeline = $$clicks$$', '1', '... and has a dead letter');
wait_sql($node, 'postgres', q(SELECT count(*) FROM history), '2', '... and IDs in a table');
wait_sql($node, 'postgres', q(SELECT n FROM counter), '2', '... and a counter');

my $definitions = q(SELECT pipeline, owner, stream, consumer_group, target, key, on_conflict, columns, event_types, statement, generated, workers, enabled, enabled_reason, options FROM postpipe_pipelines ORDER BY 1);
my $before = $sql->($definitions);
my $dir = PostgreSQL::Test::Utils::tempdir();
command_ok([ 'pg_dump', '-d', $node->connstr('postgres'), '-f', "$dir/plain.sql" ], 'pg_dump, plain');
command_ok([ 'pg_dump', '-Fc', '-d', $node->connstr('postgres'), '-f', "$dir/custom" ], 'pg_dump, custom');
my $dump = slurp_file("$dir/plain.sql");
like($dump, qr/COPY public\.postpipe_pipeline /, 'definitions are in the dump');
unlike($dump, qr/(?:COPY|CREATE TABLE) public\.postpipe_(?:ledger|epoch)/, 'the ledger is not');

# --- Restored.
$away->safe_psql('postgres', "CREATE ROLE $_") for 'app';
for my $case ([ 'plain', 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', "$dir/plain.sql", '-d' ], [ 'custom', 'pg_restore', '--exit-on-error', "$dir/custom", '-d' ])
{
	my ($db, @command) = @$case;
	$away->safe_psql('postgres', "CREATE DATABASE $db");
	command_ok([ @command, $away->connstr($db) ], "$db: it is restored without an error");
	is($away->safe_psql($db, $definitions), $before, "$db: the definitions are the same");
	list_databases($away, $db);
	wait_sql($away, $db, q(SELECT string_agg(pipeline || ' ' || state || ' ' || reason_code, ', ' ORDER BY pipeline) FROM postpipe_stats),
		'clicks disarmed disarmed, counting disarmed disarmed, history disarmed disarmed, resting paused paused', "$db: the pipelines are disarmed");
	like($away->safe_psql($db, q(SELECT reason FROM postpipe_stats WHERE pipeline = 'clicks')), qr/postpipe_resume\(.*take_over => true\)/, "$db: ... and the reason says what to do");
	is($away->safe_psql($db, 'SELECT count(*) FROM history'), 2, "$db: the data are there");
	is($away->safe_psql($db, q(SELECT count(*) FROM postpipe_workers WHERE backend_type = 'worker')), 0, "$db: no worker runs");
}
$redis->xadd('stream:clicks', id => 2, v => 'two', event_type => 'a');
wait_sql($node, 'postgres', q(SELECT count(*) FROM "Odd Schema".clicks), '2', 'the first server goes on');
wait_sql($node, 'postgres', q(SELECT n FROM counter), '3', '... with all pipelines');
for my $db (qw(plain custom))
{
	is($away->safe_psql($db, q(SELECT (SELECT count(*) FROM "Odd Schema".clicks), (SELECT n FROM counter))), '1|2', "$db: nothing was read");
}
is(consumers($redis, 'stream:clicks', "postpipe_$_"), 1, "$_: no consumer was added") for qw(clicks counting history);

# --- Not by accident, but when it is said.
for my $call (q(postpipe_resume('clicks')), q(postpipe_resume('resting')))
{
	my ($status, undef, $stderr) = $away->psql('plain', "SELECT $call");
	isnt($status, 0, "$call of a disarmed pipeline is refused");
	like($stderr, qr/comes from another server.*take_over => true/s, '... and says how it is done');
}
$away->safe_psql('plain', q(SELECT postpipe_pause('clicks', 'still'); SELECT postpipe_wait_state('clicks', 'paused')));
is($away->safe_psql('plain', q(SELECT state FROM postpipe_stats WHERE pipeline = 'clicks')), 'paused', 'a disarmed pipeline can be paused');
$sql->(q(SELECT postpipe_pause('clicks'); SELECT postpipe_wait_state('clicks', 'paused')));
$away->safe_psql('plain', q(SELECT postpipe_resume('clicks', take_over => true)));
wait_sql($away, 'plain', q(SELECT state FROM postpipe_stats WHERE pipeline = 'clicks'), 'idle', 'take_over arms it');
$redis->xadd('stream:clicks', id => 3, v => 'three', event_type => 'a');
wait_sql($away, 'plain', q(SELECT max(id) FROM "Odd Schema".clicks), '3', '... and it reads');
is($away->safe_psql('plain', q(SELECT state FROM postpipe_stats WHERE pipeline = 'counting')), 'disarmed', '... and the others do not');
$away->safe_psql('plain', q(SELECT postpipe_pause('clicks'); SELECT postpipe_wait_state('clicks', 'paused'); SELECT postpipe_resume('clicks')));
wait_sql($away, 'plain', q(SELECT state FROM postpipe_stats WHERE pipeline = 'clicks'), 'idle', 'once armed, resume is enough');

# --- Data only, into a database that has the extension, and a database that is a copy on the same server.
$away->safe_psql('postgres', 'CREATE DATABASE only_data');
$away->safe_psql('only_data', 'CREATE EXTENSION postpipe');
command_ok([ 'pg_dump', '-a', '-t', 'postpipe_pipeline', '-d', $node->connstr('postgres'), '-f', "$dir/data.sql" ], 'pg_dump of the definitions alone');
command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', "$dir/data.sql", '-d', $away->connstr('only_data') ], '... is restored');
list_databases($away, 'only_data');
wait_sql($away, 'only_data', q(SELECT string_agg(DISTINCT state, ' ') FROM postpipe_stats WHERE pipeline IN ('counting', 'history')), 'disarmed', '... and disarmed, also without its tables');
list_databases($node, 'copy');
$node->safe_psql('template1', 'CREATE DATABASE copy TEMPLATE postgres');
wait_sql($node, 'copy', q(SELECT string_agg(DISTINCT state, ' ') FROM postpipe_stats WHERE pipeline IN ('counting', 'history')), 'disarmed', 'a copy of the database is disarmed');
wait_sql($node, 'postgres', q(SELECT string_agg(DISTINCT state, ' ') FROM postpipe_stats WHERE pipeline IN ('counting', 'history')), 'idle', '... and the one it was copied from runs');

# --- DROP EXTENSION and CREATE EXTENSION keep the tables of the user.
$sql->(q(SELECT count(*) FROM "Odd Schema".clicks));
my (undef, undef, $stderr) = $node->psql('postgres', 'DROP EXTENSION postpipe');
like($stderr, qr/depends on type postpipe_id/, 'a column of type postpipe_id holds the extension');
$sql->('DROP VIEW counted; ALTER TABLE history ALTER entry TYPE text USING entry::text');
$sql->('DROP EXTENSION postpipe');
is($sql->(q(SELECT (SELECT count(*) FROM "Odd Schema".clicks), (SELECT n FROM counter), (SELECT count(*) FROM history))), '2|4|4', 'DROP EXTENSION keeps the tables');
$sql->('CREATE EXTENSION postpipe');
wait_sql($node, 'postgres', q(SELECT pipeline, state FROM postpipe_stats), 'posts|idle', 'CREATE EXTENSION begins anew');
$redis->xadd('stream:posts:parsed', post_id => 'p', channel_id => 'c', telegram_message_id => 1, text => 'kept');
wait_sql($node, 'postgres', 'SELECT content FROM posts', 'kept', 'a post');
$sql->('DROP EXTENSION postpipe');
is($sql->('SELECT content FROM posts'), 'kept', 'DROP EXTENSION keeps posts');
$sql->('CREATE EXTENSION postpipe');
$redis->xadd('stream:posts:parsed', post_id => 'q', channel_id => 'c', telegram_message_id => 2, text => 'more');
wait_sql($node, 'postgres', q(SELECT string_agg(content, ' ' ORDER BY id) FROM posts), 'kept more', 'CREATE EXTENSION goes on with the table that is there');
is($sql->('SELECT count(*) FROM posts'), 2, '... and reads nothing twice');

$_->stop for $node, $away;

done_testing();

# Lists one more database, and waits for its supervisor.
sub list_databases
{
	my ($server, $db) = @_;
	my $list = $server->safe_psql('postgres', 'SHOW postpipe.databases');
	$server->safe_psql('postgres', "ALTER SYSTEM SET postpipe.databases = '$list, $db'");
	$server->reload;
	return;
}
