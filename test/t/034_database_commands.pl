# What other sessions do to databases and definitions: copies, templates, tablespaces, prepared transactions. Our processes step
# aside only where the server will do it, and never need a second event to notice something. TAP, because processes come and go.

use strict;
use warnings;
use PostgreSQL::Test::Utils;
use Postpipe::Test;
use Postpipe::Test::Hits;

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('main', redis => $redis, databases => 'postgres, template1, one', conf => "max_prepared_transactions = 5\n");
my $hits = Postpipe::Test::Hits->new(node => $node, redis => $redis);
$hits->shows(qr/^idle/, 'a pipeline runs');
my $worker = $hits->worker('pid');

# --- Who may not do it does not make them leave.
$hits->sql('CREATE ROLE maker CREATEDB LOGIN; CREATE ROLE owner_only LOGIN; CREATE DATABASE one OWNER owner_only');
my $one = Postpipe::Test::Hits->new(node => $node, redis => $redis, db => 'one', name => 'one');
$one->shows(qr/^idle/, 'and one in another database');
my $other = $one->worker('pid');
my $superuser = $hits->sql('SELECT current_user');
for my $case (
	[ 'maker', 'CREATE DATABASE copy TEMPLATE postgres', qr/permission denied to copy database "postgres"/ ],
	[ 'maker', 'DROP DATABASE one', qr/must be owner of database one/ ],
	[ 'owner_only', 'ALTER DATABASE one RENAME TO two', qr/permission denied to rename database/ ],
	[ 'owner_only', 'CREATE DATABASE copy TEMPLATE one', qr/permission denied to create database/ ],
	[ 'owner_only', 'CREATE DATABASE copy TEMPLATE 5', qr/permission denied to create database/ ],
	[ 'maker', 'CREATE DATABASE copy TEMPLATE 5', qr/template database "5" does not exist/ ],
	[ $superuser, 'BEGIN; CREATE DATABASE copy TEMPLATE one', qr/cannot run inside a transaction block/ ],
	[ $superuser, 'BEGIN; DROP DATABASE one', qr/cannot run inside a transaction block/ ],
	[ $superuser, 'BEGIN; ALTER DATABASE one SET TABLESPACE pg_default', qr/cannot run inside a transaction block/ ])
{
	my ($role, $statement, $error) = @$case;
	my $from = log_offset($node);
	my (undef, undef, $stderr) = $node->psql('template1', "SET ROLE \"$role\"; $statement", on_error_die => 0);
	like($stderr, $error, "$statement by $role is refused");
	is(join("\n", log_lines($node, qr/postpipe.*stopped/, $from)), '', '... and no process of ours has left for it');
}
is($hits->worker('pid') . ' ' . $one->worker('pid'), "$worker $other", 'they are the same as before');

# --- Who may: they leave, and are back.
$one->publish(20);
is(stderr_of('postgres', 'CREATE DATABASE copy TEMPLATE one'), '', 'CREATE DATABASE ... TEMPLATE');
$one->settled('after the copy');
isnt($one->worker('pid'), $other, 'it was another process');
my $dir = PostgreSQL::Test::Utils::tempdir();
is(stderr_of('postgres', "CREATE TABLESPACE elsewhere LOCATION '$dir'"), '', 'a tablespace');
$one->publish(20);
is(stderr_of('postgres', 'ALTER DATABASE one SET TABLESPACE elsewhere'), '', 'ALTER DATABASE ... SET TABLESPACE');
$one->publish(20);
$one->settled('SET TABLESPACE');
is(stderr_of('postgres', 'DROP DATABASE copy'), '', 'DROP DATABASE of a copy');

# --- A template
my $warning = stderr_of('template1', 'CREATE EXTENSION postpipe');
like($warning, qr/WARNING:  database "template1" is a template, so no pipeline of it will run/, 'CREATE EXTENSION in template1: a warning');
unlike($warning, qr/ALTER SYSTEM/, '... and no command that would not help');
is(scalar log_lines($node, qr/launcher: database "template1" .*is a template/), 1, 'a template in postpipe.databases: said once');
is(stderr_of('postgres', 'CREATE DATABASE child', 'DROP DATABASE child'), '', '... and it is copied as ever');
$node->safe_psql('template1', 'DROP EXTENSION postpipe');

# --- A prepared transaction: noticed at COMMIT PREPARED
$hits->sql("CREATE TABLE prepared (id text); ALTER TABLE prepared OWNER TO hits_owner");
my $prepared = q(SELECT postpipe_create_pipeline('prepared', 'stream:prepared', owner => 'hits_owner',
	statement => 'INSERT INTO public.prepared SELECT id::text FROM postpipe_batch'));
$hits->sql("BEGIN; $prepared; PREPARE TRANSACTION 'made'");
is($hits->sql(q(SELECT count(*) FROM postpipe_pipelines WHERE pipeline = 'prepared')), 0, 'prepared: not there yet');
$hits->sql(q(COMMIT PREPARED 'made'));
wait_sql($node, 'postgres', q(SELECT state FROM postpipe_stats WHERE pipeline = 'prepared'), 'idle', 'COMMIT PREPARED: it runs');
$hits->sql(q(BEGIN; SELECT postpipe_drop_pipeline('prepared'); PREPARE TRANSACTION 'dropped'));
$hits->sql(q(COMMIT PREPARED 'dropped'));
wait_sql($node, 'postgres', q(SELECT count(*) FROM postpipe_workers WHERE pipeline = 'prepared'), '0', '... and is gone by another');
$hits->sql("BEGIN; $prepared; PREPARE TRANSACTION 'made'");
$hits->sql(q(ROLLBACK PREPARED 'made'));

# --- Waiting in the transaction that has changed it would be in vain.
my $waiting = stderr_of('postgres', q(SELECT postpipe_pause('hits'); SELECT postpipe_wait_state('hits', 'paused', '1min')));
like($waiting, qr/ERROR:  pipeline "hits" was changed in this transaction.*\nHINT:  .*psql -c/, 'pause and wait_state in one string: refused at once');
is($hits->sql(q(SELECT postpipe_wait_state('hits', 'running', '5s'))), 't', 'an idle pipeline counts as running');
is($hits->sql(q(SELECT postpipe_wait_state('hits', 'idle', '5s'))), 't', '... and is idle');
is($hits->sql(q(SELECT postpipe_pause('hits'))), '', 'in one transaction each');
is($hits->sql(q(SELECT postpipe_wait_state('hits', 'paused', '5s'))), 't', '... it works');
is($hits->sql(q(SELECT postpipe_wait_state('hits', 'running', '0s'))), 'f', 'a paused one is not running');
$hits->sql(q(SELECT postpipe_resume('hits')));

# --- The log has a line when a worker starts, one for each state, and one when it stops.
$hits->shows(qr/^idle/, 'resumed');
my $from = log_offset($node);
$hits->fresh;
$hits->publish(30);
$hits->settled('entries');
$hits->shows(qr/^idle/, 'idle again');
is(join(' ', map { /"hits", worker 1: (\w+)/ } log_lines($node, qr/"hits", worker 1: /, $from)), 'stopped starting idle',
	'the log: stopped, started, and none for entries');
$hits->sql('DROP TABLE hits');
$hits->publish(1);
$hits->shows(qr/^failed/, 'no table');
$hits->sql('BEGIN; CREATE TABLE hits (id text); ALTER TABLE hits OWNER TO hits_owner; COMMIT');
$hits->shows(qr/^idle/, 'the table is back');
is(join(' ', map { /"hits", worker 1: (\w+)/ } log_lines($node, qr/"hits", worker 1: /, $from)) =~ s/running/idle/r,
	'stopped starting idle failed idle', '... one for each change of state');

# --- Definitions: shown to whom they concern, and no lock is left behind by looking.
$hits->sql("CREATE TABLE target (id int PRIMARY KEY); ALTER TABLE target OWNER TO hits_owner; CREATE ROLE stranger LOGIN; CREATE ROLE watcher LOGIN IN ROLE pg_monitor");
$hits->sql(q(SELECT postpipe_create_pipeline('tgt', 'stream:tgt', target => 'target', owner => 'hits_owner')));
my $seen = q(SELECT string_agg(pipeline, ' ' ORDER BY pipeline) FROM postpipe_pipelines);
is($hits->sql("SET ROLE stranger; $seen"), '', 'a stranger sees no definition');
is($hits->sql("SET ROLE hits_owner; $seen"), 'hits tgt', 'their owner does');
is($hits->sql("SET ROLE watcher; $seen"), 'hits posts tgt', 'and pg_monitor');
is($hits->sql("BEGIN; SELECT count(statement) FROM postpipe_pipelines WHERE pipeline = 'tgt'; SELECT count(*) FROM pg_locks WHERE relation IN ('target'::regclass, 'target_pkey'::regclass) AND pid = pg_backend_pid(); COMMIT"),
	"1\n0", 'who has looked holds no lock on the targets');

# --- The owner of a pipeline may not log in, and is gone: his pipeline stops, the others go on.
$hits->sql(q(CREATE ROLE leaver; CREATE TABLE left_behind (id text); GRANT INSERT ON left_behind TO leaver;
	SELECT postpipe_create_pipeline('leaver', 'stream:leaver', owner => 'leaver', statement => 'INSERT INTO public.left_behind SELECT id::text FROM postpipe_batch');
	ALTER ROLE leaver NOLOGIN));
$redis->xadd('stream:leaver', n => 1);
wait_sql($node, 'postgres', 'SELECT count(*) FROM left_behind', 1, 'an owner who may not log in');
$hits->sql('REVOKE ALL ON left_behind FROM leaver; DROP ROLE leaver');
$redis->xadd('stream:leaver', n => 2);
wait_sql($node, 'postgres', q(SELECT state || ' ' || reason FROM postpipe_stats WHERE pipeline = 'leaver'), 'failed owner of pipeline "leaver" does not exist', 'an owner who is gone');
$hits->forget;
$hits->publish(5);
$hits->settled('the others go on');
is($hits->sql(q(SELECT postpipe_drop_pipeline('leaver'))), 't', 'and a superuser drops what he left');

# --- A role that the database sets for its sessions is not that of our processes.
$hits->sql(q(ALTER DATABASE one SET role = 'owner_only'; SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'one' AND backend_type = 'postpipe worker'));
$one->publish(5);
wait_sql($node, 'one', 'SET ROLE NONE; SELECT count(*) FROM one', scalar @{ $one->{ids} }, 'a database that sets a role: the worker goes on');
$hits->sql('ALTER DATABASE one RESET role');
$one->settled('... and applies each entry once');

done_testing();

sub stderr_of
{
	my ($db, @statements) = @_;
	my (undef, undef, $errors) = $node->psql($db, '', on_error_die => 0, extra_params => [ map { ('-c', $_) } @statements ]);
	return $errors;
}
