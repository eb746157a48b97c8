# Pipelines with a Redis server of their own: its address is a foreign server, the log-in a user mapping. TAP, because it needs
# several Redis servers, some of which go away.

use strict;
use warnings;
use PostgreSQL::Test::Utils;
use Postpipe::Test;

my $secret = 'S3cret-of-app';
my ($redis, $other, $third) = map { Postpipe::Test::Redis->new(keep => 1) } 1 .. 3;
my $node = pp_node('servers', redis => $redis);
$other->command('ACL', 'SETUSER', 'app', 'on', ">$secret", '~*', '+@all');
$other->command('ACL', 'SETUSER', 'bare', 'on', 'nopass', '~*', '+@all');
$other->command('ACL', 'SETUSER', 'default', 'on', '>of-default');
$other->{password} = 'of-default';
sql(<<'SQL');
CREATE EXTENSION postpipe;
SELECT postpipe_drop_pipeline('posts');
CREATE ROLE app LOGIN;
CREATE ROLE reader LOGIN IN ROLE pg_monitor;
CREATE TABLE here (id int);
CREATE TABLE there (id int);
ALTER TABLE there OWNER TO app;
SELECT postpipe_create_pipeline('here', 'stream:e', target => 'here', consumer_group => 'g');
CREATE FOREIGN DATA WRAPPER unrelated;
CREATE SERVER unrelated FOREIGN DATA WRAPPER unrelated;
SQL

# --- What is refused, and does not show the password.
my $make = 'CREATE SERVER there FOREIGN DATA WRAPPER postpipe_redis';
refused("$make OPTIONS (url 'redis://app:$secret\@localhost')", qr/option "url" must not contain a user or a password.*HINT:.*USER MAPPING/s);
refused("$make OPTIONS (url 'http://$secret')", qr/invalid value for option "url".*DETAIL:.*redis:\/\//s);
refused("$make OPTIONS (uri 'redis://localhost')", qr/invalid option "uri".*HINT/s);
refused("$make OPTIONS (password '$secret')", qr/invalid option "password"/);
my $create = q(SELECT postpipe_create_pipeline('there', 'stream:e', target => 'there', consumer_group => 'g', owner => 'app', redis => 'there'));
refused($create, qr/server "there" of foreign-data wrapper postpipe_redis does not exist.*HINT:  CREATE SERVER there/s);
refused($create =~ s/redis => 'there'/redis => 'unrelated'/r, qr/server "unrelated" of foreign-data wrapper postpipe_redis does not exist/);
sql($make);
refused($create, qr/role "app" must have USAGE on server "there"/);
sql('GRANT USAGE ON FOREIGN SERVER there TO app');
refused($create, qr/option "url" of server "there" is not usable/);
sql("ALTER SERVER there OPTIONS (ADD url '@{[plain($other)]}')");
refused("CREATE USER MAPPING FOR app SERVER there OPTIONS (pass '$secret')", qr/invalid option "pass"/);

# --- Without a log-in, with a wrong one, with the right one: it heals by itself.
sql($create);
wait_sql($node, 'postgres', q(SELECT state, reason_code FROM postpipe_stats WHERE pipeline = 'there'), 'failed|redis_auth', 'no user mapping: Redis refuses');
like(sql(q(SELECT hint FROM postpipe_events WHERE pipeline = 'there' AND reason_code = 'redis_auth' LIMIT 1)), qr/user mapping of its owner/, '... and what to do');
sql("CREATE USER MAPPING FOR app SERVER there OPTIONS (user 'app', password 'wrong')");
wait_sql($node, 'postgres', q(SELECT state, reason_code FROM postpipe_stats WHERE pipeline = 'there'), 'failed|redis_auth', 'a wrong password');
sql("ALTER USER MAPPING FOR app SERVER there OPTIONS (SET user 'bare', DROP password)");
wait_sql($node, 'postgres', q(SELECT postpipe_wait_state('there', 'idle')), 't', 'a user who needs no password');
is(sql(q(SELECT reconnects FROM postpipe_stats WHERE pipeline = 'there')), 0, '... which is the first connection, whatever was tried before');
sql("ALTER USER MAPPING FOR app SERVER there OPTIONS (SET user 'app', ADD password '$secret')");
add($redis, 1 .. 3);
add($other, 11 .. 15);
wait_sql($node, 'postgres', 'SELECT string_agg(id::text, $$ $$ ORDER BY id) FROM here', '1 2 3', 'each pipeline reads its own server');
wait_sql($node, 'postgres', 'SELECT string_agg(id::text, $$ $$ ORDER BY id) FROM there', '11 12 13 14 15', '... under the same names of stream and group');
wait_sql($node, 'postgres', 'SELECT pipeline, added, applied, balance FROM postpipe_audit ORDER BY 1', "here|3|3|0\nthere|5|5|0", '... and each is measured there');
is(sql(q(SELECT pipeline, redis FROM postpipe_pipelines ORDER BY 1)), "here|\nthere|there", 'the list says which');
is(sql(q(SELECT pipeline, redis FROM postpipe_workers WHERE backend_type = 'worker' ORDER BY 1)), "here|@{[$redis->url]}\nthere|@{[plain($other)]}", '... and the workers where that is');

# --- Functions ask the pipeline's server.
my $id = sql(q(SELECT postpipe_publish('there', '{"id": 16}')));
is(sql("SELECT postpipe_wait('there', '$id')"), 't', 'published there, and applied');
is($redis->command('XLEN', 'stream:e'), 3, '... not here');
is(sql(q(SELECT count(*) FROM postpipe_peek('there'))), 6, 'postpipe_peek');
is(sql(q(SELECT count(*) FROM postpipe_consumers('there'))), 1, 'postpipe_consumers');
wait_sql($node, 'postgres', q(SELECT * FROM postpipe_check('there') WHERE pipeline = 'there' AND status <> 'ok'), '', 'postpipe_check');
$other->command('REPLICAOF', '127.0.0.1', '1');
wait_sql($node, 'postgres', q(SELECT pipeline, status, detail ~ 'is a replica$', hint FROM postpipe_check() WHERE check_name = 'redis' AND status <> 'ok'),
	'there|error|t|ALTER SERVER there OPTIONS (SET url ...), with the master\'s.', '... of a server that is a replica');
$other->command('REPLICAOF', 'NO', 'ONE');
$other->command('CONFIG', 'SET', 'maxmemory-policy', 'allkeys-lru');
is(sql(q(SELECT pipeline, status FROM postpipe_check() WHERE check_name = 'eviction' ORDER BY 1)), "there|warning\n|ok", '... or may evict streams');
$other->command('CONFIG', 'SET', 'maxmemory-policy', 'noeviction');

# --- The server is away: its numbers are unknown, those of others are not.
$other->freeze;
wait_sql($node, 'postgres', q(SELECT pipeline, lag IS NULL FROM postpipe_stats ORDER BY 1), "here|f\nthere|t", 'one server hangs');
add($redis, 4);
wait_sql($node, 'postgres', q(SELECT max(id) FROM here), 4, '... the other pipeline goes on');
wait_sql($node, 'postgres', q(SELECT added FROM postpipe_audit WHERE pipeline = 'here'), 4, '... and is measured');
like(sql(q(SELECT detail FROM postpipe_check() WHERE pipeline = 'there' AND check_name = 'redis')), qr/did not answer/, '... postpipe_check says so');
wait_sql($node, 'postgres', q(SELECT * FROM postpipe_check() WHERE pipeline = 'here' AND status <> 'ok'), '', '... and asks the other one');
$other->thaw;
wait_sql($node, 'postgres', q(SELECT lag FROM postpipe_stats WHERE pipeline = 'there'), 0, 'it answers again');

# --- It moves, loses its rights, is dropped, comes back: without a restart, and seen in the state.
sql("ALTER USER MAPPING FOR app SERVER there OPTIONS (DROP user, DROP password)");
sql("ALTER SERVER there OPTIONS (SET url '@{[plain($third)]}')");
add($third, 21);
wait_sql($node, 'postgres', q(SELECT max(id) FROM there), 21, 'another address');
sql('REVOKE USAGE ON FOREIGN SERVER there FROM app');
wait_sql($node, 'postgres', q(SELECT state, reason_code, reason FROM postpipe_stats WHERE pipeline = 'there'), 'failed|redis_server|role "app" must have USAGE on server "there"', 'no right any more');
refused(q(SELECT * FROM postpipe_peek('there')), qr/role "app" must have USAGE on server "there".*HINT:.*GRANT USAGE/s);
sql('GRANT USAGE ON FOREIGN SERVER there TO app');
add($third, 22);
wait_sql($node, 'postgres', q(SELECT max(id) FROM there), 22, 'the right is back');
sql('REVOKE USAGE ON FOREIGN SERVER there FROM app; CREATE ROLE users; GRANT USAGE ON FOREIGN SERVER there TO users');
wait_sql($node, 'postgres', q(SELECT state, reason_code FROM postpipe_stats WHERE pipeline = 'there'), 'failed|redis_server', 'the right is a group\'s');
wait_sql($node, 'postgres', q(SELECT next_attempt_at > now() + interval '2s' FROM postpipe_workers WHERE pipeline = 'there'), 't', '... and nothing has happened for some attempts');
sql('GRANT users TO app');
add($third, 220);
wait_sql($node, 'postgres', q(SELECT count(*) FROM there WHERE id = 220), 1, '... of which the owner becomes a member');
sql('DROP SERVER there CASCADE');
wait_sql($node, 'postgres', q(SELECT state, reason_code FROM postpipe_stats WHERE pipeline = 'there'), 'failed|redis_server', 'no server any more');
wait_sql($node, 'postgres', q(SELECT lag IS NULL FROM postpipe_stats WHERE pipeline = 'there'), 't', '... it is not measured');
sql("$make OPTIONS (url '@{[plain($third)]}'); GRANT USAGE ON FOREIGN SERVER there TO app");
add($third, 23);
wait_sql($node, 'postgres', q(SELECT count(*) FROM there WHERE id = 23), 1, 'it is back');

# --- To the server of the other one, and to its own again.
sql(q(SELECT postpipe_alter_pipeline('there', reset => '{redis}')));
wait_sql($node, 'postgres', q(SELECT state FROM postpipe_stats WHERE pipeline = 'there'), 'fenced', 'redis is reset: there the group has another owner');
sql(q(SELECT postpipe_alter_pipeline('there', redis => 'there')));
sql(q(SELECT postpipe_resume('there', take_over => true)));
add($third, 24);
wait_sql($node, 'postgres', q(SELECT count(*) FROM there WHERE id = 24), 1, 'redis is set again, and nothing is applied twice');
is(sql('SELECT count(*) FROM there WHERE id = 23'), 1, '... of what was before');

# --- Nobody has seen the password.
my $reader = sub { my ($query) = @_; return $node->safe_psql('postgres', $query, extra_params => [ '-U', 'reader' ]) };
is($reader->('SELECT count(*) FROM pg_user_mappings WHERE umoptions IS NOT NULL'), 0, 'a monitor does not see the options of a mapping');
unlike(join("\n", map { $reader->("SELECT x::text FROM $_ x") } qw(postpipe_stats postpipe_workers postpipe_events postpipe_pipelines postpipe_metrics pg_settings pg_foreign_server)), qr/$secret/, 'no view shows the password');
is(join("\n", grep { !/STATEMENT:|statement:/ } log_lines($node, qr/$secret/)), '', '... nor does the log, but for the statements that had it');
$node->stop;
done_testing();

sub add { my ($server, @ids) = @_; return $server->pipeline(map { [ 'XADD', 'stream:e', '*', 'id', $_ ] } @ids) }
sub plain { my ($server) = @_; return 'redis://127.0.0.1:' . $server->port }

sub refused
{
	my ($query, $regex) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my ($status, undef, $stderr) = $node->psql('postgres', $query);
	like($stderr, $regex, $query =~ s/\Q$secret\E/.../r);
	return unlike($stderr =~ s/^LINE .*//msr, qr/\Q$secret\E/, '... without the password');
}
