# Copies of a database that reads a stream: clones, dumps, older backups in its place, standbys. One of them reads.
# TAP, because it takes several servers at one Redis, base backups and promotion.
use strict;
use warnings;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Postpipe::Test;

my $redis = Postpipe::Test::Redis->new;
my $main = pp_node('main', redis => $redis, databases => 'postgres', allows_streaming => 1);
$main->safe_psql('postgres', q(CREATE EXTENSION postpipe; SELECT postpipe_drop_pipeline('posts')));
make($_) for qw(a b c d);
idle($main, $_) for qw(a b c d);
my %sent;
add($_, 20) for qw(a b c d);
complete($main, $_) for qw(a b c d);

# --- A clone of a server at work: fenced, and the server goes on.
$main->backup('t0');
my $clone = copy('clone');
$clone->start;
wait_for { add('a', 1); state($clone, 'a') eq 'fenced' } 'the clone is fenced';
like($clone->safe_psql('postgres', q(SELECT reason FROM postpipe_stats WHERE pipeline = 'a')), qr/which is at work/, '... because the other one is at work');
complete($main, 'a');
is($clone->safe_psql('postgres', 'SELECT count(*) FROM t_a'), 20, '... and reads nothing');
for my $mode (qw(fast immediate fast immediate))
{
	$main->stop($mode);
	$main->start;
	idle($main, 'a', "after a stop ($mode) the owner is back");
}
add('a', 5);
complete($main, 'a');
pp_balanced($_) for $main, $clone;
$clone->stop;

# --- A clone from before the owner's last start has an old nonce: fenced, also while the owner is down.
my $old = copy('old');
$main->stop;
add('a', 5);
$old->start;
wait_sql($old, 'postgres', q(SELECT string_agg(DISTINCT state, ' ') FROM postpipe_stats), 'fenced', 'an old clone is fenced while the owner is down');
$old->safe_psql('postgres', q(SELECT postpipe_resume('a', take_over => true)));
idle($old, 'a', 'when told to, it takes over');
complete($old, 'a', 'what was acknowledged since the backup is read again, once');
balanced($old, 'a');
$main->start;
wait_sql($main, 'postgres', q(SELECT state FROM postpipe_stats WHERE pipeline = 'a'), 'fenced', 'the former owner is fenced when it comes back');
idle($main, 'b', 'not where nobody took over');
add('a', 5);
complete($old, 'a', 'the new owner goes on');
pp_balanced($_) for $main, $old;
$old->stop;

# --- A dump, restored elsewhere: disarmed, and its own pipeline on the same group is fenced.
{
	my $away = pp_node('away', redis => $redis, fresh => 1, databases => 'postgres');
	my $file = PostgreSQL::Test::Utils::tempdir() . '/dump.sql';
	add('posts', 3) if $main->safe_psql('postgres', q(CREATE DATABASE app)) eq '';
	$main->safe_psql('postgres', q(ALTER SYSTEM SET postpipe.databases = 'postgres, app'));
	$main->reload;
	$main->safe_psql('app', q(CREATE EXTENSION postpipe; CREATE TABLE t_e (v text);
		SELECT postpipe_create_pipeline('e', 'stream:e', statement => 'INSERT INTO t_e SELECT id FROM postpipe_batch')));
	wait_sql($main, 'app', q(SELECT string_agg(DISTINCT state, ' ') FROM postpipe_stats), 'idle', 'both pipelines read');
	command_ok([ 'pg_dump', '-d', $main->connstr('app'), '-f', $file ], 'pg_dump');
	command_ok([ 'psql', '-XAqt', '-v', 'ON_ERROR_STOP=1', '-d', $away->connstr('postgres'), '-f', $file ], 'into another server');
	wait_sql($away, 'postgres', q(SELECT string_agg(pipeline || ' ' || state, ', ' ORDER BY pipeline) FROM postpipe_stats), 'e disarmed, posts fenced', 'disarmed, and the built-in one is fenced');
	idle($main, 'posts', 'the first server goes on', 'app');
	pp_balanced($away);
	$away->stop;
}

# --- A dump, restored over the database that it was made of: the tables are as they were, and the ledger is gone.
{
	my $file = PostgreSQL::Test::Utils::tempdir() . '/same.dump';
	my $definition = q(SELECT postpipe_create_pipeline('f', 'stream:f', statement => 'INSERT INTO t_f SELECT id FROM postpipe_batch'));
	my $f = sub { return $main->safe_psql('app', $_[0]) };
	$f->("CREATE TABLE t_f (v text); $definition");
	idle($main, 'f', undef, 'app');
	my $last = (add('f', 20))[-1];
	wait_sql($main, 'app', 'SELECT count(*) FROM t_f', 20, 'f: read before the dump');
	command_ok([ 'pg_dump', '-Fc', '-d', $main->connstr('app'), '-f', $file ], 'pg_dump');
	add('f', 10);
	wait_sql($main, 'app', 'SELECT count(*) FROM t_f', 30, 'f: read after it');
	wait_for { pending($redis, 'stream:f', 'postpipe_f') == 0 } 'f: all is acknowledged';
	$main->safe_psql('postgres', 'ALTER SYSTEM SET postpipe.enabled = off');
	$main->reload;
	wait_sql($main, 'app', q(SELECT count(*) FROM postpipe_workers WHERE backend_type = 'worker'), 0, 'no worker runs');
	command_ok([ 'pg_restore', '--clean', '--if-exists', '--exit-on-error', '-d', $main->connstr('app'), $file ], 'pg_restore --clean');
	my $from = log_offset($main);
	$main->safe_psql('postgres', 'ALTER SYSTEM RESET postpipe.enabled');
	$main->reload;
	wait_sql($main, 'app', q(SELECT state FROM postpipe_stats WHERE pipeline = 'f'), 'disarmed', 'f: disarmed, also in the database that it comes from');
	$f->(q(SELECT postpipe_resume('f', take_over => true)));
	idle($main, 'f', undef, 'app');
	is(scalar log_lines($main, qr/WARNING.*"f": consumer group .* this database has no record of what was read/, $from), 1, '... and then there is a WARNING');
	$f->(q(SELECT postpipe_pause('f')));
	$f->(q(SELECT postpipe_wait_state('f', 'paused')));
	$f->("SELECT postpipe_rewind('f', to_id => '$last')");
	$f->(q(SELECT postpipe_resume('f')));
	wait_sql($main, 'app', 'SELECT count(*), count(DISTINCT v) FROM t_f', '30|30', 'f: rewound to the time of the dump, each entry is there once');
	pp_balanced($main, 'app');
}

# --- A copy on the same server, by its own name: what the original has read since is missing in it.
{
	$main->safe_psql('postgres', 'CREATE DATABASE copy TEMPLATE app');
	add('f', 10);
	wait_sql($main, 'app', 'SELECT count(*) FROM t_f', 40, 'f: the original reads');
	wait_for { pending($redis, 'stream:f', 'postpipe_f') == 0 } 'f: all is acknowledged';
	$main->safe_psql('postgres', q(ALTER SYSTEM SET postpipe.databases = 'postgres, app, copy'));
	$main->reload;
	wait_sql($main, 'copy', q(SELECT state FROM postpipe_stats WHERE pipeline = 'f'), 'disarmed', 'f: the copy is disarmed');
	my $from = log_offset($main);
	$main->safe_psql('copy', q(SELECT postpipe_resume('f', take_over => true)));
	idle($main, 'f', 'f: the copy takes over', 'copy');
	is(scalar log_lines($main, qr/WARNING.*"f": the database has gone back in time/, $from), 1, '... and says that it lacks what the original has read');
	$main->safe_psql('postgres', q(ALTER SYSTEM SET postpipe.databases = 'postgres, app'));
	$main->reload;
	$main->safe_psql('postgres', 'DROP DATABASE copy');
}

# --- The database goes back in time: what Redis knows as acknowledged is read again.
{
	$main->safe_psql('postgres', q(SELECT postpipe_drop_pipeline('a')));
	$redis->command('XGROUP', 'CREATECONSUMER', 'stream:d', 'g_d', 'python');
	$main->backup('t1');
	my %ids = map { $_ => [ add($_, 500) ] } qw(b c d);
	complete($main, $_) for qw(b c d);
	wait_for { pending($redis, "stream:$_", "g_$_") == 0 } "$_: all is acknowledged" for qw(b c d);
	$main->stop;
	$redis->command('XTRIM', 'stream:c', 'MINID', $ids{c}[100]);
	system_or_bail('rm', '-rf', $main->data_dir);
	system_or_bail('cp', '-a', $main->backup_dir . '/t1', $main->data_dir);
	my $from = log_offset($main);
	$main->start;
	idle($main, $_) for qw(b c d);
	complete($main, 'b', 'b: what the database has forgotten is applied again, each entry once');
	balanced($main, 'b');
	is(scalar log_lines($main, qr/WARNING.*"b": 500 entries that the group had passed over/, $from), 1, 'b: with a warning');
	wait_sql($main, 'postgres', 'SELECT count(*), count(DISTINCT v) FROM t_c', '420|420', 'c: what is left of it is applied');
	is($main->safe_psql('postgres', q(SELECT entries, first_id <= $$) . $ids{c}[0] . q($$, last_id >= $$) . $ids{c}[99] . q($$ FROM postpipe_lost WHERE pipeline = 'c')), '100|t|t', 'c: what was trimmed meanwhile is lost, and its range known');
	balanced($main, 'c');
	is(scalar log_lines($main, qr/WARNING.*"c": \d+ entries of stream "stream:c" were trimmed before they were read/, $from), 1, '... with a WARNING');
	is(scalar log_lines($main, qr/WARNING.*"d": the database has gone back in time/, $from), 1, 'd: in a group with others it is reported');
	is($main->safe_psql('postgres', 'SELECT count(*) FROM t_d'), 20, '... and nothing is read again');
	$redis->xadd('stream:d', n => 1);
	wait_sql($main, 'postgres', 'SELECT count(*) FROM t_d', 21, '... and the pipeline goes on');
	$main->restart;
	idle($main, $_) for qw(b c d);
	complete($main, 'b');
	is(scalar log_lines($main, qr/WARNING.*(?:gone back|passed over)/, $from), 3, 'a restart finds nothing more');
}

# --- A standby that is promoted has the last nonce.
{
	$main->backup('t2');
	my $standby = copy('standby', 't2', has_streaming => 1);
	$standby->start;
	add('b', 10);
	complete($main, 'b');
	$main->restart;
	idle($main, 'b');
	$main->wait_for_catchup($standby, 'replay');
	is($standby->safe_psql('postgres', q(SELECT count(*) FROM postpipe_workers WHERE backend_type = 'worker')), 0, 'a standby reads nothing');
	$main->stop('fast');
	add('b', 10);
	$standby->promote;
	idle($standby, 'b', 'a standby that is promoted reads at once');
	complete($standby, 'b');
	balanced($standby, 'b');
	pp_balanced($standby);
	$standby->stop;
}
done_testing();

sub state { my ($node, $name) = @_; return $node->safe_psql('postgres', "SELECT state FROM postpipe_stats WHERE pipeline = '$name'") }

sub make
{
	my ($name) = @_;
	return $main->safe_psql('postgres', "CREATE TABLE t_$name (v text); SELECT postpipe_create_pipeline('$name', 'stream:$name', consumer_group => 'g_$name',
		statement => 'INSERT INTO t_$name SELECT id FROM postpipe_batch')");
}

sub copy
{
	my ($name, $backup, @options) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);
	$node->init_from_backup($main, $backup // 't0', @options);
	return $node;
}

sub add
{
	my ($name, $n) = @_;
	$sent{$name} += $n;
	return $redis->pipeline(map { [ 'XADD', "stream:$name", '*', 'n', $_ ] } 1 .. $n);
}

# Each entry that was sent is in the table, once.
sub complete
{
	my ($node, $name, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_sql($node, 'postgres', "SELECT count(*), count(DISTINCT v) FROM t_$name", "$sent{$name}|$sent{$name}", $what // "$name: each entry once");
}

sub idle
{
	my ($node, $name, $what, $db) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_sql($node, $db // 'postgres', "SELECT state FROM postpipe_stats WHERE pipeline = '$name'", 'idle', $what // "$name reads");
}

sub balanced
{
	my ($node, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_sql($node, 'postgres', "SELECT balance FROM postpipe_audit WHERE pipeline = '$name' ORDER BY epoch DESC LIMIT 1", 0, "$name: the audit balances");
}
