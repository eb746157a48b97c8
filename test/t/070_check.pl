# postpipe_check(), the doctor: each thing is broken on a real server, and its line says so, with what to run; and when all is
# well it says that. postpipe_selftest(): an event on its way, step by step, and nothing is left. TAP, because servers are broken.

use strict;
use warnings;
use Postpipe::Test;

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('check', redis => $redis, allows_streaming => 1, conf => "postpipe.max_retries = 0\nfsync = on");
sql('CREATE EXTENSION postpipe');
sql(q(SELECT postpipe_drop_pipeline('posts')));
sql(q(CREATE TABLE item (id int PRIMARY KEY, v text); CREATE ROLE monitor LOGIN; GRANT pg_monitor TO monitor; CREATE ROLE limited; GRANT limited TO postgres));
sql(q(SELECT postpipe_create_pipeline('item', 'stream:item', target => 'item')));
$redis->xadd('stream:item', id => 1, v => 'x');
wait_sql($node, 'postgres', q(SELECT balance FROM postpipe_audit WHERE pipeline = 'item' AND applied = 1), '0', 'the pipeline runs');

# --- All is well.
is(sql(q(SELECT string_agg(coalesce(pipeline || '.', '') || check_name, ' ') FROM postpipe_check())),
	'version standby settings supervisor workers redis eviction clock item.state item.target item.dead_letters item.lost item.audit item.rights item.stream item.group item.consumers item.trimming', 'what is looked at');
is(sql(q(SELECT * FROM postpipe_check() WHERE status <> 'ok')), '', 'all is well');
is(sql(q(SELECT count(*) FROM postpipe_check() WHERE status = 'ok' AND hint IS NOT NULL)), 0, '... and there is nothing to run');
like(line('redis'), qr/^ok\|redis:.* answers, version \d/, '... Redis with its version');
is(sql(q(SET ROLE monitor; SELECT check_name, detail FROM postpipe_check('item') WHERE status <> 'ok')), 'target|not checked: that is for members of role "postgres"', 'a monitor runs no statement');
like(error(q(SELECT * FROM postpipe_check('absent'))), qr/pipeline "absent" does not exist/, 'no such pipeline');

# --- The pipeline's own.
sql(q(SELECT postpipe_pause('item', 'for a test'); ));
wait_sql($node, 'postgres', q(SELECT status, hint FROM postpipe_check() WHERE check_name = 'state'), q(warning|SELECT postpipe_resume('item');), 'paused');
like(line('state'), qr/^warning\|paused.*for a test/, '... with the reason');
sql(q(SELECT postpipe_resume('item')));
sql(q(SELECT postpipe_create_pipeline('limited', 'stream:limited', target => 'item', enabled => false)));
sql(q(CREATE TABLE other (id int PRIMARY KEY); ALTER TABLE other OWNER TO limited));
sql(q(SELECT postpipe_create_pipeline('owned', 'stream:owned', statement => 'INSERT INTO other SELECT (event ->> $$id$$)::int FROM postpipe_batch', owner => 'limited', enabled => false)));
sql(q(ALTER TABLE other OWNER TO postgres; REVOKE ALL ON other FROM limited));
like(line('target', 'owned'), qr/^error\|permission denied for table other\|/, 'a revoked grant');
sql(q(SELECT postpipe_drop_pipeline('owned'); SELECT postpipe_drop_pipeline('limited')));
sql(q(ALTER TABLE item DROP CONSTRAINT item_pkey));
sql(q(ALTER TABLE item RENAME TO gone));
like(line('target'), qr/^error\|target table .*item of pipeline "item" does not exist\|Create it/, 'a table that is gone');
sql(q(ALTER TABLE gone RENAME TO item; ALTER TABLE item ADD PRIMARY KEY (id)));
$redis->xadd('stream:item', id => 'bad');
wait_sql($node, 'postgres', q(SELECT status, detail ~ '^1 entries are dead' FROM postpipe_check() WHERE check_name = 'dead_letters'), 'warning|t', 'a dead letter');
sql(q(SELECT postpipe_discard('item')));
like(line('dead_letters'), qr/^ok/, '... discarded');
sql(q(INSERT INTO postpipe_lost_range (pipeline, epoch, first_id, last_id, entries, cause) VALUES ('item', 1, '1-1', '1-2', 2, 'trimmed_before_read')));
like(line('lost'), qr/^warning\|2 entries are lost, because they were gone before/, 'lost entries');
wait_sql($node, 'postgres', q(SELECT status FROM postpipe_check() WHERE check_name = 'audit'), 'error', '... which the audit does not know');
sql(q(INSERT INTO postpipe_lost_range (pipeline, epoch, first_id, last_id, cause) VALUES ('item', 1, '2-1', '2-2', 'trimmed_before_read')));
like(line('lost'), qr/^warning\|at least 2 entries are lost, because they were gone before/, '... and some of which the number is not known');
sql(q(DELETE FROM postpipe_lost_range));
wait_sql($node, 'postgres', q(SELECT count(*) FROM postpipe_check() WHERE status <> 'ok'), 0, 'all is well again');

# --- What Redis has: other consumers, a stream that is trimmed, a key that is none, no group.
sql(q(SELECT postpipe_pause('item')));
sql(q(SELECT postpipe_wait_state('item', 'paused')));
wait_for { $redis->cli('CLIENT', 'LIST') !~ /name=postpipe:\d+:\d+:item:1 / } 'nobody reads';
$redis->xadd('stream:item', id => $_) for 10 .. 12;
$redis->command('XREADGROUP', 'GROUP', 'postpipe_item', 'python', 'COUNT', 2, 'STREAMS', 'stream:item', '>');
like(line('consumers'), qr/^warning\|2 entries are pending for 1 consumers .*postpipe_claim\('item'\)/, 'entries of a consumer that is none of ours');
$redis->command('XDEL', 'stream:item', $redis->xadd('stream:item', id => 13));
like(line('trimming'), qr/^warning\|entries were deleted/, 'entries that were deleted unread') unless $redis->cli('INFO', 'server') =~ /redis_version:6/;
$redis->command('XGROUP', 'DESTROY', 'stream:item', 'postpipe_item');
like(line('group'), qr/^warning\|the stream has no group.*postpipe_create_group/, 'no group');
$redis->command('SET', 'stream:string', 'x');
sql(q(SELECT postpipe_create_pipeline('typed', 'stream:string', target => 'item', enabled => false)));
like(line('stream', 'typed'), qr/^error\|"stream:string" is a string, not a stream/, 'a key of another type');
sql(q(SELECT postpipe_drop_pipeline('typed')));
$redis->command('CONFIG', 'SET', 'maxmemory-policy', 'allkeys-lru');
like(line('eviction'), qr/^warning\|maxmemory-policy is allkeys-lru.*CONFIG SET/, 'eviction');
$redis->command('CONFIG', 'SET', 'maxmemory-policy', 'noeviction');

# --- Rights in Redis; a wrong password is shown nowhere.
$redis->command('ACL', 'SETUSER', 'few', 'on', '>sesame', '~*', '+@all', '-xack', '-hset');
(my $url = $redis->url) =~ s{redis://}{redis://few:sesame\@};
set("postpipe.redis_url = '$url'");
my $has_dry_run = $redis->cli('INFO', 'server') !~ /redis_version:6/;
like(line('rights'), qr/^error\|the Redis user may not run XACK, HSET\|.*ACL SETUSER/, 'what the user may not') if $has_dry_run;
$redis->command('ACL', 'SETUSER', 'few', '+xack', '+hset', '-client', '-memory', '-xadd');
like(line('rights'), qr/^warning\|the Redis user may not run CLIENT, MEMORY, without/, '... and what a worker can do without') if $has_dry_run;
$redis->command('ACL', 'SETUSER', 'few', '-acl');
like(line('rights'), qr/^warning\|Redis does not tell what the user may do/, '... or may not ask');
$url =~ s/sesame/secret/;
set("postpipe.redis_url = '$url'");
like(line('redis'), qr/^error\|Redis: .*WRONGPASS.*redis_url/, 'a wrong password');
unlike(sql('SELECT * FROM postpipe_check()'), qr/secret|sesame/, '... which is not shown');
like(line('eviction'), qr/^warning\|not checked: Redis: .*WRONGPASS/, '... and nothing else is asked');
set("postpipe.redis_url = '@{[ $redis->url ]}'");

# --- The server's.
set('postpipe.enabled = off');
like(line('settings'), qr/^warning\|postpipe.enabled is off/, 'reading is off');
set('postpipe.enabled = on');
set("postpipe.databases = 'other'");
like(line('settings'), qr/^error\|database "postgres" is not in postpipe.databases \(other\)/, 'a database that is not listed');
set("postpipe.databases = 'postgres'");
sql(q(SELECT postpipe_alter_pipeline('item', workers => 60); SELECT postpipe_resume('item')));
like(line('workers'), qr/^error\|the pipelines of this database want 60 workers.*Raise postpipe.max_workers/, 'too few workers');
sql(q(SELECT postpipe_pause('item'); SELECT postpipe_alter_pipeline('item', workers => 1)));

# --- The self-test.
is(sql(q(SELECT step, ok FROM postpipe_selftest())), join("\n", map { "$_|t" } qw(connect create publish receive apply record deliver_again acknowledge clean_up)), 'the self-test');
nothing_left('after it');
$redis->command('ACL', 'SETUSER', 'default', '-xack');
like(sql(q(SELECT step, ok, detail FROM postpipe_selftest() WHERE NOT ok)), qr/^acknowledge\|f\|.*NOPERM/, '... fails where it is broken');
$redis->command('ACL', 'SETUSER', 'default', '+xack');
nothing_left('after it failed');
like(sql(q(SELECT step, ok, detail FROM postpipe_selftest('1us'::interval * 1000) WHERE NOT ok)), qr/\|f\|time is up/, '... or when time is up');
nothing_left('when time is up');
like(error(q(SELECT * FROM postpipe_selftest('0'))), qr/timeout must be greater than zero/, '... and needs some');
like(error(q(BEGIN READ ONLY; SELECT * FROM postpipe_selftest())), qr/cannot execute postpipe_selftest\(\) in a read-only transaction/, '... and has to write');

# --- Redis is away; a standby.
$redis->stop;
like(line('redis'), qr/\Aerror\|Redis: [^\n]*\z/, 'Redis is away: one line');
is(sql(q(SELECT count(*) > 5 FROM postpipe_check() WHERE status = 'ok')), 't', '... and all else is looked at');
like(sql(q(SELECT step, ok, detail FROM postpipe_selftest())), qr/^connect\|f\|Redis: /, '... nor does the self-test pass');
$redis->start;
$node->backup('copy');
my $standby = PostgreSQL::Test::Cluster->new('check_standby');
$standby->init_from_backup($node, 'copy', has_streaming => 1);
$standby->start;
like($standby->safe_psql('postgres', q(SELECT detail, hint FROM postpipe_check() WHERE check_name = 'standby')), qr/^this server is a standby.*pg_promote/, 'a standby');
is($standby->safe_psql('postgres', q(SELECT count(*) FROM postpipe_check() WHERE detail ~ 'read-only|recovery')), 0, '... on which nothing is written');
$standby->stop;
$node->stop;
done_testing();

sub line
{
	my ($check, $pipeline) = @_;
	my $of = $pipeline ? "pipeline = '$pipeline'" : "pipeline IS NULL OR pipeline = 'item'";
	return sql("SELECT status, detail, hint FROM postpipe_check() WHERE check_name = '$check' AND ($of)");
}

# A setting, and that it is in force.
sub set
{
	my ($line) = @_;
	my ($name) = $line =~ /^(\S+)/;
	my $before = sql(q(SELECT pg_conf_load_time()));
	$node->append_conf('postgresql.conf', $line);
	$node->reload;
	return wait_sql($node, 'postgres', "SELECT pg_conf_load_time() > '$before'", 't', "$name is set");
}

sub nothing_left
{
	my ($when) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is($redis->cli('KEYS', 'postpipe:selftest*') . sql(q(SELECT count(*) FROM pg_class WHERE relname LIKE 'postpipe_selftest%')) . sql(q(SELECT count(*) FROM postpipe_ledger WHERE pipeline LIKE 'selftest%')),
		'00', "nothing is left $when");
	return;
}
