# DDL under running workers: on the target, on the extension, on the database. Nothing crashes, hangs or is lost, and what
# was taken away heals by itself when it is back. TAP, because it needs several sessions and databases and a running Redis.

use strict;
use warnings;
use PostgreSQL::Test::Utils;
use Postpipe::Test;
use Postpipe::Test::Hits;

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('main', redis => $redis, databases => 'postgres, one, two');
my $postmaster = $node->safe_psql('postgres', 'SELECT pg_postmaster_start_time()');

# --- CREATE EXTENSION where it will not run: the exact command
$node->safe_psql('postgres', 'CREATE DATABASE unlisted');
my $warning = stderr_of($node, 'unlisted', 'CREATE EXTENSION postpipe');
like($warning, qr/^WARNING:  database "unlisted" is not listed in postpipe\.databases/m, 'unlisted: a warning');
my ($command) = $warning =~ /^HINT:  Run (ALTER SYSTEM .*?; SELECT pg_reload_conf\(\);)$/m;
is($command, "ALTER SYSTEM SET postpipe.databases = 'postgres, one, two, unlisted'; SELECT pg_reload_conf();", '... with the command');
is(stderr_of($node, 'unlisted', split /(?<=;) /, $command), '', '... which runs');
my $up = "SELECT count(*) FROM postpipe_workers WHERE datname = current_database() AND backend_type = 'worker' AND pid <> 0";
wait_sql($node, 'unlisted', $up, '1', '... and is all that was missing');
$node->safe_psql('postgres', 'DROP DATABASE unlisted');
$node->safe_psql('postgres', "ALTER SYSTEM SET postpipe.databases = 'postgres, one, two'");
$node->reload;

my $plain = PostgreSQL::Test::Cluster->new('plain');
$plain->init;
$plain->append_conf('postgresql.conf', q(shared_preload_libraries = '$libdir/auto_explain'));
$plain->start;
$warning = stderr_of($plain, 'postgres', 'CREATE EXTENSION postpipe');
like($warning, qr/^WARNING:  postpipe is not preloaded/m, 'not preloaded: a warning');
like($warning, qr/^HINT:  Run (ALTER SYSTEM SET shared_preload_libraries = '\$libdir\/auto_explain', 'postpipe';) and restart the server\.$/m, '... with the command');
$plain->safe_psql('postgres', $warning =~ /(ALTER SYSTEM .*?;)/ ? $1 : '', extra_params => []);
$plain->append_conf('postgresql.conf', "postpipe.redis_url = '" . $redis->url(db => 9) . "'\n");
$plain->restart;
wait_sql($plain, 'postgres', $up, '1', '... which is all that was missing');
$plain->stop;

# --- a superuser's statement into his own table
$node->safe_psql('postgres', 'CREATE EXTENSION postpipe; CREATE TABLE own (id text)');
my ($status, undef, $stderr) = $node->psql('postgres', q(SELECT postpipe_create_pipeline('own', 'stream:own',
	statement => 'INSERT INTO public.own SELECT id::text FROM postpipe_batch')), on_error_die => 0);
is("$status $stderr", '0 ', 'a pipeline of a superuser with a statement into his own table');
$node->safe_psql('postgres', "SELECT postpipe_drop_pipeline('own', if_exists => true)");

my $hits = Postpipe::Test::Hits->new(node => $node, redis => $redis, options => '{"batch_size": 5}');
my $other = Postpipe::Test::Hits->new(node => $node, redis => $redis, name => 'other');
$hits->publish(10);
$hits->settled('on a good day');

# --- DROP TABLE and CREATE TABLE of the target
my $from = log_offset($node);
$hits->sql('DROP TABLE hits');
$hits->{ids} = [];
$hits->publish(10);
$hits->shows(qr/^failed\|sqlstate_42P01\|[^|]*relation "public\.hits" does not exist\|relation/, 'DROP TABLE: shown');
$hits->attempts(4);
is(scalar log_lines($node, qr/pipeline "hits", worker 1: failed: .*does not exist/, $from), 1, 'DROP TABLE: said once');
$other->publish(10);
$other->settled('DROP TABLE: others flow');
is($hits->sql('SELECT count(*) FROM postpipe_dlq'), 0, 'DROP TABLE: nothing is dead-lettered');
$hits->sql('CREATE TABLE hits (id text); ALTER TABLE hits OWNER TO hits_owner');
$hits->settled('CREATE TABLE heals');
$hits->fresh;

# ... of the generated statement's target, by the pipeline `posts`
$hits->sql("SELECT postpipe_resume('posts')");
wait_sql($node, 'postgres', "SELECT state FROM postpipe_stats WHERE pipeline = 'posts'", 'idle', 'posts runs');
$hits->sql('DROP TABLE posts');
$redis->xadd('stream:posts:parsed', channel_id => 7, telegram_message_id => 8, text => 'x');
wait_sql($node, 'postgres', "SELECT state || ' ' || reason_code FROM postpipe_stats WHERE pipeline = 'posts'",
	'failed sqlstate_42P01', 'posts without its table');
$hits->sql("SELECT postpipe_pause('posts'); SELECT postpipe_wait_state('posts', 'paused')");
$hits->sql("SELECT postpipe_resume('posts')");
wait_sql($node, 'postgres', 'SELECT count(*) FROM posts', '1', 'pause and resume make it again, as the hint says');
$hits->sql("SELECT postpipe_pause('posts')");

# --- REVOKE and GRANT
$hits->sql('ALTER TABLE hits OWNER TO CURRENT_USER; GRANT INSERT ON hits TO hits_owner');
$hits->publish(5);
$hits->settled('GRANT INSERT is enough');
$hits->sql('REVOKE INSERT ON hits FROM hits_owner');
$hits->publish(5);
$hits->shows(qr/^failed\|sqlstate_42501\|permission denied for table hits\|permission denied/, 'REVOKE: shown');
$hits->sql('GRANT INSERT ON hits TO hits_owner');
$hits->settled('GRANT heals');
$hits->sql('ALTER TABLE hits OWNER TO hits_owner');
$hits->fresh;

# --- VACUUM FULL, TRUNCATE and a long lock: it waits, others flow
my $session = $hits->session;
$session->('BEGIN; LOCK TABLE hits');
$hits->publish(10);
$hits->stuck;
$other->publish(10);
$other->settled('a long lock: others flow');
like($hits->status, qr/^running\|\|\|/, 'a long lock: no failure');
$session->('COMMIT');
$hits->settled('a long lock');
for my $statement ('VACUUM FULL hits', 'TRUNCATE hits', 'VACUUM FULL postpipe_ledger', 'REINDEX TABLE postpipe_ledger')
{
	$hits->publish(20);
	if ($statement =~ /TRUNCATE/)
	{
		$hits->settled('before TRUNCATE');
		$hits->{ids} = [];
	}
	$hits->sql("SET statement_timeout = '20s'; $statement") if $statement !~ /VACUUM/;
	is(($node->psql('postgres', $statement, timeout => 30))[0], 0, $statement) if $statement =~ /VACUUM/;
	$hits->publish(20);
	$hits->settled($statement);
}

# --- DROP EXTENSION, rolled back
$from = log_offset($node);
$session->('BEGIN; DROP EXTENSION postpipe CASCADE');
$hits->publish(10);
$session->('ROLLBACK');
$hits->settled('DROP EXTENSION, rolled back');
is(workers('postgres'), 2, 'the workers are still there');

# --- DROP EXTENSION and CREATE EXTENSION under load
for my $round (1 .. 3)
{
	$hits->publish(200);
	my $errors = stderr_of($node, 'postgres', 'SET client_min_messages = error', "SET statement_timeout = '20s'",
		'DROP EXTENSION postpipe CASCADE');
	is($errors, '', "DROP EXTENSION under load, round $round");
	wait_for { workers('postgres') == 0 } "round $round: its workers leave";
	$hits->create;
	# The ledger went with the extension. A batch that was committed and not acknowledged may come twice; none may be lost.
	wait_sql($node, 'postgres', 'SELECT count(DISTINCT id) FROM hits', scalar @{ $hits->{ids} }, "round $round: nothing is lost");
	wait_for { pending($redis, $hits->stream, $hits->group) == 0 } "round $round: nothing is pending";
	$hits->forget;
}
$hits->sql('SET client_min_messages = error; DROP EXTENSION postpipe CASCADE; CREATE EXTENSION postpipe') for 1 .. 10;
$hits->create;
$hits->publish(20);
$hits->settled('DROP and CREATE EXTENSION ten times in a row');
is(scalar log_lines($node, qr/ERROR|exited with exit code [^01]/, $from), 0, 'no process of ours met what was not there any more')
  or diag(join "\n", log_lines($node, qr/ERROR|exited with/, $from));

# --- DROP SCHEMA CASCADE with the extension in it, DROP OWNED
$hits->sql('DROP EXTENSION postpipe CASCADE; CREATE SCHEMA ext; CREATE EXTENSION postpipe SCHEMA ext');
wait_for { workers('postgres') == 1 } 'the extension in a schema of its own: posts runs';
$hits->sql('SET client_min_messages = error; DROP SCHEMA ext CASCADE');
wait_for { workers('postgres') == 0 } 'DROP SCHEMA CASCADE: its worker leaves';
$hits->sql('CREATE ROLE someone SUPERUSER; SET ROLE someone; CREATE EXTENSION postpipe; RESET ROLE');
wait_for { workers('postgres') == 1 } 'the extension of another role: posts runs';
$hits->sql('SET client_min_messages = error; DROP OWNED BY someone CASCADE; DROP ROLE someone');
wait_for { workers('postgres') == 0 } 'DROP OWNED: its worker leaves';
is($hits->sql("SELECT count(*) FROM pg_extension WHERE extname = 'postpipe'"), 0, 'DROP OWNED: the extension is gone');

# --- databases: each statement ends long before the server gives up waiting (5 s) or we do (10 s)
my $one = made('one');
$one->publish(20);
quick('postgres', 'CREATE DATABASE copy TEMPLATE one');
$one->publish(20);
$one->settled('CREATE DATABASE ... TEMPLATE');
quick('postgres', 'ALTER DATABASE one RENAME TO two');
$one->{db} = 'two';
$one->publish(20);
$one->settled('ALTER DATABASE RENAME: it runs under the other name');
is(workers('one'), 0, 'and nothing under the old one');
quick('postgres', 'ALTER DATABASE two RENAME TO one');
$one->{db} = 'one';
$one->publish(20);
$one->settled('and back');
quick('postgres', 'DROP DATABASE one');
wait_for { workers('one') == 0 } 'DROP DATABASE of a listed one with running workers';
$from = log_offset($node);
$redis->cli('DEL', $one->stream);

# ... made anew
$one = made('one');
$one->publish(20);
$one->settled('the database made anew');
$one->publish(20);
quick('postgres', 'DROP DATABASE one WITH (FORCE)');
wait_for { workers('one') == 0 } 'DROP DATABASE WITH (FORCE)';
$session->('SELECT 1');
$redis->cli('DEL', $one->stream);
$one = made('one');
$one->publish(20);
$one->settled('the database made anew after FORCE');
cmp_ok(scalar log_lines($node, qr/database "one" does not exist/, $from), '<=', 3, 'no flood of complaints');

# ... with a statement that does not end by itself: the worker is made to leave
$session->(undef);
$one->sql(q(SELECT postpipe_create_pipeline('slow', 'stream:slow', owner => 'hits_owner',
	statement => 'INSERT INTO public.hits SELECT id::text FROM postpipe_batch, pg_catalog.pg_sleep(600)')));
$redis->xadd('stream:slow', n => 1);
wait_sql($node, 'postgres', "SELECT wait_event FROM pg_stat_activity WHERE application_name = 'postpipe worker slow/1'",
	'PgSleep', 'a statement that does not end');
($status, undef, $stderr) = $node->psql('postgres', 'DROP DATABASE one', on_error_die => 0, timeout => 30);
is("$status $stderr", '0 ', 'DROP DATABASE while a statement does not end');

is($node->safe_psql('postgres', 'SELECT pg_postmaster_start_time()'), $postmaster, 'the server was never harmed');
is(scalar log_lines($node, qr/PANIC|terminated by signal/), 0, 'no crash is in the log');

done_testing();

sub stderr_of
{
	my ($server, $db, @statements) = @_;
	my (undef, undef, $errors) = $server->psql($db, '', on_error_die => 0, extra_params => [ map { ('-c', $_) } @statements ]);
	return $errors;
}

# Workers of a database that are up.
sub workers
{
	my ($db) = @_;
	return $node->safe_psql('template1', "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'postpipe worker' AND datname = '$db'");
}

sub made
{
	my ($db) = @_;
	quick('postgres', "CREATE DATABASE $db");
	return Postpipe::Test::Hits->new(node => $node, redis => $redis, db => $db);
}

sub quick
{
	my ($db, $statement) = @_;
	is(stderr_of($node, $db, "SET statement_timeout = '4s'", $statement), '', $statement);
	return;
}
