# postpipe_alter_pipeline() while entries flow: nothing is lost, nothing comes twice, and what is wrong changes nothing.
# TAP, because it needs a Redis and background workers.

use strict;
use warnings;
use Postpipe::Test;

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('alter', redis => $redis, conf => 'postpipe.max_retries = 0');
sql('CREATE EXTENSION postpipe');
sql(<<'SQL');
SELECT postpipe_drop_pipeline('posts');
CREATE TABLE t (id int PRIMARY KEY, v text, w text, n int);
CREATE TABLE log (id int);
CREATE ROLE app; CREATE ROLE other;
GRANT USAGE, CREATE ON SCHEMA public TO app;
SELECT postpipe_create_pipeline('p', 'stream:p', target => 't', options => '{"batch_size": 10, "lock_timeout": "3s"}');
SQL
my $id = 0;
my $created = sql(q(SELECT created_at FROM postpipe_pipelines WHERE pipeline = 'p'));

# --- Each thing that can be changed; entries are published before, while and after.
changes('workers => 3', q(SELECT workers FROM postpipe_stats WHERE pipeline = 'p'), 3);
changes('workers => 1', q(SELECT workers FROM postpipe_stats WHERE pipeline = 'p'), 1);
changes(q(columns => '{"w": {"fields": ["other"]}}'), q(SELECT statement ~ 'other' FROM postpipe_pipelines WHERE pipeline = 'p'), 't');
add(other => 'x');
wait_sql($node, 'postgres', "SELECT w FROM t WHERE id = $id", 'x', 'the field has another name now');
changes(q(reset => '{columns}'), q(SELECT statement ~ 'other' FROM postpipe_pipelines WHERE pipeline = 'p'), 'f');
changes(q(on_conflict => 'nothing'), q(SELECT on_conflict FROM postpipe_pipelines WHERE pipeline = 'p'), 'nothing');
changes(q(on_conflict => 'newer', newer_by => 'n'), q(SELECT on_conflict, newer_by FROM postpipe_pipelines WHERE pipeline = 'p'), 'newer|n');
changes(q(reset => '{on_conflict,newer_by}'), q(SELECT on_conflict, newer_by FROM postpipe_pipelines WHERE pipeline = 'p'), 'update|');
changes(q(event_types => '{wanted}'), q(SELECT event_types FROM postpipe_pipelines WHERE pipeline = 'p'), '{wanted}');
add(event_type => 'other');
wait_sql($node, 'postgres', q(SELECT filtered FROM postpipe_audit WHERE pipeline = 'p'), 1, 'an event of another type is filtered');
my $filtered = $id;
changes(q(reset => '{event_types}'), q(SELECT event_types IS NULL FROM postpipe_pipelines WHERE pipeline = 'p'), 't');
changes(q(options => '{"batch_size": 5, "notify": "c"}'), q(SELECT options FROM postpipe_pipelines WHERE pipeline = 'p'), '{"notify": "c", "batch_size": 5, "lock_timeout": "3s"}');
changes(q(options => '{"notify": null, "batch_size": null}'), q(SELECT options FROM postpipe_pipelines WHERE pipeline = 'p'), '{"lock_timeout": "3s"}');
changes(q(reset => '{options}'), q(SELECT options FROM postpipe_pipelines WHERE pipeline = 'p'), '{}');
changes(q(statement => 'WITH l AS (INSERT INTO log SELECT (event ->> ''id'')::int FROM postpipe_batch) INSERT INTO t (id) SELECT (event ->> ''id'')::int FROM postpipe_batch'), q(SELECT target IS NULL, generated, key IS NULL FROM postpipe_pipelines WHERE pipeline = 'p'), 't|f|t');
is(sql('SELECT count(*) > 0 FROM log'), 't', 'the statement runs');
changes(q(target => 't', key => '{id}'), q(SELECT target, generated, key FROM postpipe_pipelines WHERE pipeline = 'p'), 'public.t|t|{id}');
sql('ALTER TABLE t OWNER TO app');
changes(q(owner => 'app'), q(SELECT owner FROM postpipe_pipelines WHERE pipeline = 'p'), 'app');
is(sql(q(SELECT created_at, altered_at > created_at FROM postpipe_pipelines WHERE pipeline = 'p')), "$created|t", 'when it was created stays');
complete('all of it');

# --- What is wrong changes nothing, and is said.
my $before = sql(q(SELECT p FROM postpipe_pipelines p WHERE pipeline = 'p'));
refused(q(target => 't', statement => 'SELECT'), qr/needs either a target or a statement/);
refused(q(statement => 'SELEC'), qr/syntax error/);
refused(q(statement => 'INSERT INTO nowhere SELECT FROM postpipe_batch'), qr/relation "nowhere" does not exist/);
refused(q(target => 'nowhere'), qr/relation "nowhere" does not exist/);
refused(q(key => '{v}'), qr/ERROR/);
refused(q(on_conflict => 'sometimes'), qr/invalid on_conflict "sometimes".*HINT:  Valid values are/s);
refused(q(newer_by => 'nocolumn', on_conflict => 'newer'), qr/needs newer_by to name a column of the target/);
refused(q(columns => '{"nocolumn": {}}'), qr/nocolumn/);
refused(q(workers => 0), qr/workers is 0, outside the valid range 1 to 64/);
refused(q(workers => 65), qr/workers is 65/);
refused(q(redis => 'other'), qr/server "other" of foreign-data wrapper postpipe_redis does not exist.*HINT/s);
refused(q(owner => 'nobody_here'), qr/role "nobody_here" does not exist/);
refused(q(options => '{"batchsize": 1}'), qr/unrecognized option "batchsize"/);
refused(q(options => '{"batchsize": null}'), qr/unrecognized option "batchsize"/);
refused(q(options => '{"batch_size": 0}'), qr/batch_size is 0/);
refused(q(reset => '{stream}'), qr/"stream" cannot be reset.*HINT:  reset names arguments/s);
refused(q(new_name => 'q'), qr/cannot be renamed.*HINT:  Drop it.*consumer_group => 'postpipe_p'/s);
like(error(q(SELECT postpipe_alter_pipeline('nobody', workers => 2))), qr/pipeline "nobody" does not exist/, 'a pipeline that is not there');
like(error(q(GRANT EXECUTE ON FUNCTION postpipe_alter_pipeline TO other; SET ROLE other; SELECT postpipe_alter_pipeline('p', workers => 2))), qr/ERROR:  (?:must be|permission denied)/, 'who is no member of the owner may not');
sql(q(BEGIN; SELECT postpipe_alter_pipeline('p', workers => 2); ROLLBACK));
is(sql(q(SELECT p FROM postpipe_pipelines p WHERE pipeline = 'p')), $before, 'all is as it was');

# --- Who may not act as the owner may not say what is done as the owner, where the server tells the two apart.
my $tells = sql('SHOW server_version_num') >= 160000;
sql(q(GRANT EXECUTE ON FUNCTION postpipe_alter_pipeline, postpipe_test, postpipe_backfill TO other; GRANT app TO other) . ($tells ? ' WITH INHERIT TRUE, SET FALSE' : ''));
sql(q(SET ROLE app; CREATE TABLE shadow (LIKE t INCLUDING ALL)));
for my $call (q(postpipe_test('p', statement => 'SELECT FROM postpipe_batch')), q(postpipe_backfill('p', into_table => 'shadow')), q(postpipe_alter_pipeline('p', statement => 'SELECT FROM postpipe_batch')))
{
	like(error("SET ROLE other; SELECT $call"), $tells ? qr/must be able to SET ROLE "app"/ : qr/^$/, "a member that cannot act as the owner: $call");
}
is(error(q(SET ROLE other; SELECT postpipe_test('p'), postpipe_backfill('p'))), '', '... may run what the owner has defined');
sql(q(SELECT postpipe_alter_pipeline('p', target => 't', key => '{id}'))) unless $tells;

# --- At the same time as a pause, and as another one: both count.
my $one = pp_session($node);
$one->(q(BEGIN; SELECT postpipe_alter_pipeline('p', workers => 3)));
my @others = map { pp_start($node, $_) } q(SELECT postpipe_pause('p', 'meanwhile')), q(SELECT postpipe_alter_pipeline('p', options => '{"batch_size": 8}'));
wait_sql($node, 'postgres', q(SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query ~ 'postpipe_(pause|alter)'), 2, 'both wait');
$one->('COMMIT');
$_->() for @others;
is(sql(q(SELECT workers, options, enabled, enabled_reason FROM postpipe_pipelines WHERE pipeline = 'p')), '3|{"batch_size": 8}|f|meanwhile', 'an alter, a pause and another alter at the same time');
$one->(undef);
sql(q(SELECT postpipe_resume('p')));

# --- A restart keeps it; the built-in pipeline gets a row.
sql(q(SELECT postpipe_alter_pipeline('p', workers => 2, options => '{"batch_size": 7}')));
$node->restart;
wait_sql($node, 'postgres', q(SELECT workers FROM postpipe_stats WHERE pipeline = 'p'), 2, 'after a restart');
is(sql(q(SELECT options FROM postpipe_pipelines WHERE pipeline = 'p')), '{"batch_size": 7}', '... with its options');
add() for 1 .. 20;
complete('after a restart');
$node->safe_psql('postgres', q(CREATE DATABASE two));
$node->safe_psql('two', 'CREATE EXTENSION postpipe');
configure('postpipe.databases', 'postgres, two');
wait_sql($node, 'two', q(SELECT state FROM postpipe_stats), 'idle', 'the built-in pipeline runs');
$node->safe_psql('two', q(SELECT postpipe_alter_pipeline('posts', options => '{"batch_size": 3}')));
wait_sql($node, 'two', q(SELECT s.state, options, p.altered_at > p.created_at OR p.altered_at = p.created_at FROM postpipe_stats s JOIN postpipe_pipelines p USING (pipeline)), 'idle|{"batch_size": 3}|t', '... with an option');
$redis->xadd('stream:posts:parsed', post_id => 'a', channel_id => 'c', telegram_message_id => 1);
wait_sql($node, 'two', 'SELECT id FROM posts', 'a', '... and applies');
pp_balanced($node, $_) for qw(postgres two);
$node->stop;
done_testing();

sub add { my @more = @_; $redis->xadd('stream:p', id => ++$id, v => "v$id", @more); return }

# Changes it while entries are published; then every entry is there, and the query says so.
sub changes
{
	my ($arguments, $query, $expected) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	add(event_type => 'wanted') for 1 .. 30;
	sql("SELECT postpipe_alter_pipeline('p', $arguments)");
	add(event_type => 'wanted') for 1 .. 30;
	wait_sql($node, 'postgres', $query, $expected, $arguments);
	return complete($arguments);
}

sub complete
{
	my ($what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $wanted = $id - (defined $filtered ? 1 : 0);
	return wait_sql($node, 'postgres', q(SELECT count(*), count(DISTINCT id), (SELECT sum(applied) FROM postpipe_audit WHERE pipeline = 'p'), (SELECT count(*) FROM postpipe_dlq) FROM t), "$wanted|$wanted|$wanted|0", "$what: each entry once");
}

sub refused
{
	my ($arguments, $regex) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return like(error("SELECT postpipe_alter_pipeline('p', $arguments)"), $regex, "refused: $arguments");
}
