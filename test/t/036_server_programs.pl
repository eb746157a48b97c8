# What is run on a server that preloads the library, or does not: installcheck, single-user mode, pg_dumpall and its restore,
# pg_upgrade. Nothing of ours gets in the way, and nothing reads from Redis. TAP, because these are programs.

use strict;
use warnings;
use Cwd;
use FindBin;
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Postpipe::Test;
use Postpipe::Test::Hits;

my $redis = Postpipe::Test::Redis->new;
my $top = Cwd::abs_path("$FindBin::RealBin/../..");

# --- make installcheck: only against a server that preloads the library
my $plain = PostgreSQL::Test::Cluster->new('plain');
$plain->init;
$plain->start;
my ($rc, $stderr) = make($plain, 'installcheck', 'REGRESS=postpipe_id');
isnt($rc, 0, 'installcheck against a server without the library fails');
like($stderr, qr/installcheck: this server does not preload postpipe \(shared_preload_libraries = ''\)/, '... with the reason');
like($stderr, qr/HINT: add shared_preload_libraries = 'postpipe' to postgresql.conf and restart the server/, '... and what to do');
$plain->append_conf('postgresql.conf', "shared_preload_libraries = 'pg_stat_statements,postpipe'\npostpipe.redis_url = 'redis://127.0.0.1:1'\n");
$plain->restart;
is((make($plain, 'installcheck', 'REGRESS=postpipe_id'))[0], 0, 'with it, as one of several, installcheck runs');
$plain->stop;

# --- Single-user mode, as for repairs and by pg_rewind
my $node = pp_node('main', redis => $redis, databases => 'postgres, app', fresh => 1);
$node->safe_psql('postgres', 'CREATE DATABASE app');
my $hits = Postpipe::Test::Hits->new(node => $node, redis => $redis, db => 'app');
$hits->publish(20);
$hits->settled('before');
$node->stop;
my $connections = connections();
my ($stdin, $stdout) = ("SELECT 'rows ' || count(*) FROM public.hits\nSELECT state FROM postpipe_stats\nVACUUM public.hits\n", '');
ok(IPC::Run::run([ 'postgres', '--single', '-D', $node->data_dir, 'app' ], '<', \$stdin, '>', \$stdout, '2>&1'), 'postgres --single');
like($stdout, qr/rows 20/, '... works');
is(connections(), $connections, '... and nobody came to Redis');
$node->start;
$hits->publish(5);
$hits->settled('after single-user mode');

# --- pg_dumpall, restored into a server that preloads the library and lists the databases
my $dump = PostgreSQL::Test::Utils::tempdir() . '/all.sql';
$hits->sql(q(CREATE TABLE clicks (id int PRIMARY KEY); ALTER TABLE clicks OWNER TO hits_owner;
	SELECT postpipe_create_pipeline('clicks', 'stream:clicks', target => 'clicks', owner => 'hits_owner')));
my $user = $node->safe_psql('postgres', 'SELECT current_user');
$hits->sql('CREATE TABLE IF NOT EXISTS posts (id text)');
for my $enabled (qw(off on))
{
	# A worker that runs meanwhile makes the table posts before the dump does: docs/operations.md has postpipe.enabled for that.
	$hits->sql('DROP TABLE posts') if $enabled eq 'on';
	command_ok([ 'pg_dumpall', '--no-sync', '-d', $node->connstr('postgres'), '-f', $dump ], 'pg_dumpall');
	my $text = slurp_file($dump) =~ s/^CREATE ROLE \Q$user\E;\n//mr;
	open(my $fh, '>', $dump) or die $!;
	print $fh $text;
	close($fh);
	my $away = pp_node("restored_$enabled", redis => $redis, fresh => 1, databases => 'postgres, app', conf => "postpipe.enabled = $enabled\n");
	my $restore = IPC::Run::run([ 'psql', '-Xq', '-v', 'ON_ERROR_STOP=1', '-d', $away->connstr('postgres'), '-f', $dump ], '>', \$stdout, '2>', \$stderr,
		IPC::Run::timeout(60));
	ok($restore, "enabled = $enabled: restored without an error") or diag $stderr;
	is($away->safe_psql('app', 'SELECT count(*) FROM hits'), 25, '... with all rows');
	$away->append_conf('postgresql.conf', 'postpipe.enabled = on');
	$away->reload;
	wait_sql($away, 'app', q(SELECT string_agg(pipeline || ' ' || state, ', ' ORDER BY pipeline) FROM postpipe_stats), 'clicks disarmed, hits disarmed, posts paused',
		'... and nothing of it runs');
	$away->stop;
}
$hits->publish(5);
$hits->settled('the first server goes on');
is(consumers($redis, $hits->stream, $hits->group), 1, '... as the only one');

# --- pg_upgrade starts both servers with the library
my $new = PostgreSQL::Test::Cluster->new('new');
$new->init;
$new->append_conf('postgresql.conf', "shared_preload_libraries = 'postpipe'\npostpipe.databases = 'postgres, app, template1'\npostpipe.redis_url = '" . $redis->url . "'\n");
# What a worker has in hand when the old server stops is pending for a consumer of that server: read in its name here, because a
# server that stops ends whatever a worker waits for as well, and then it may be applied.
$node->stop;
$hits->publish(5);
my ($consumer) = map { +{@$_}->{name} } @{ $redis->command('XINFO', 'CONSUMERS', $hits->stream, $hits->group) };
$redis->command('XREADGROUP', 'GROUP', $hits->group, $consumer, 'STREAMS', $hits->stream, '>');
$connections = connections();
my ($bindir) = split /\n/, `pg_config --bindir`;
chdir(PostgreSQL::Test::Utils::tempdir()) or die $!;
command_ok([ 'pg_upgrade', '--no-sync', '-d', $node->data_dir, '-D', $new->data_dir, '-b', $bindir, '-B', $bindir, '-s', $new->host, '-p', $node->port, '-P', $new->port ], 'pg_upgrade')
  or diag join "\n", map { slurp_file($_) } glob($new->data_dir . '/pg_upgrade_output.d/*/log/*.log');
chdir($top) or die $!;
is(connections(), $connections, '... and nobody came to Redis');
$new->start;
wait_sql($new, 'app', q(SELECT string_agg(pipeline || ' ' || state, ', ' ORDER BY pipeline) FROM postpipe_stats), 'clicks disarmed, hits disarmed, posts paused',
	'after pg_upgrade the pipelines are disarmed');
$hits->publish(5);
$new->safe_psql('app', q(SELECT postpipe_resume('hits', take_over => true)));
$hits->{node} = $new;
wait_sql($new, 'app', 'SELECT count(*) FROM hits', @{ $hits->{ids} } - 5, '... until they are told to go on');
is($new->safe_psql('app', q(SELECT postpipe_claim('hits', min_idle => '0'))), 5, '... and to claim what the old server had in hand');
$hits->settled('after pg_upgrade');

done_testing();

sub make
{
	my ($server, @args) = @_;
	local $ENV{PGHOST} = $server->host;
	local $ENV{PGPORT} = $server->port;
	my ($out, $err);
	IPC::Run::run([ 'make', '-s', '-C', $top, 'PG_CONFIG=pg_config', 'with_llvm=no', @args ], '>', \$out, '2>', \$err, IPC::Run::timeout(120));
	return ($? >> 8, $out . $err);
}

# How many connections Redis has had, but for the ones that ask.
sub connections
{
	my ($total) = $redis->cli('INFO', 'stats') =~ /total_connections_received:(\d+)/;
	our $asked;
	return $total - ++$asked;
}
