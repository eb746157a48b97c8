# What there is only so much of: worker processes, for workers, supervisors and the launcher, and slots for pipelines. Who has
# to wait says for what, once, costs nothing meanwhile, and runs when there is one. TAP, because it takes servers with few.

use strict;
use warnings;
use PostgreSQL::Test::Utils;
use Postpipe::Test;

my $redis = Postpipe::Test::Redis->new;
my $status = q(SELECT concat_ws(' ', state, reason_code) FROM postpipe_stats WHERE pipeline = );

# --- More pipelines than shared memory has slots for
my $node = pp_node('many', redis => $redis);
my $many = sub { return $node->safe_psql('postgres', $_[0]) };
$many->('CREATE EXTENSION postpipe; CREATE DATABASE watch');
wait_sql($node, 'postgres', "$status 'posts'", 'idle', 'posts runs');
my $create = q(postpipe_create_pipeline('p' || g, 'stream:p', statement => 'SELECT FROM postpipe_batch', enabled => false));
is($many->("SELECT count($create) FROM generate_series(1, 127) g"), 127, 'with posts, 128 pipelines');
wait_sql($node, 'postgres', q(SELECT count(*) FROM postpipe_stats WHERE state = 'paused'), 127, '... and each has its slot');
my ($rc, undef, $stderr) = $node->psql('postgres', "SELECT $create FROM generate_series(128, 128) g");
is($rc, 3, 'the next one is refused');
like($stderr, qr/ERROR:  too many pipelines: all databases together can have 128\nHINT:  Drop one/, '... with the reason');
($rc, undef, $stderr) = $node->psql('postgres', "SELECT postpipe_drop_pipeline('p1'), count($create) FROM generate_series(128, 129) g");
like($stderr, qr/too many pipelines/, '... also two in one transaction that drops one');

# It can come from a restore, all the same.
my $from = log_offset($node);
$many->(q(INSERT INTO postpipe_pipeline (pipeline, owner, stream, consumer_group, statement, search_path, system_identifier, database_oid, extension_oid)
	SELECT 'late', owner, 'stream:late', 'late', statement, search_path, system_identifier, database_oid, extension_oid FROM postpipe_pipeline LIMIT 1));
wait_sql($node, 'postgres', "$status 'late'", 'waiting no_pipeline_slot', 'one that was restored waits, and says for what');
my $commits = q(SELECT xact_commit FROM pg_stat_database WHERE datname = 'postgres');
my $before = $node->safe_psql('watch', $commits);
my $reads = sub { return ($redis->cli('INFO', 'commandstats') =~ /cmdstat_xreadgroup:calls=(\d+)/)[0] };
my $until = $reads->() + 2;
wait_for { $reads->() >= $until } 'posts has read twice, which takes some seconds';
cmp_ok($node->safe_psql('watch', $commits) - $before, '<', 20, 'the supervisor looks again now and then, not a hundred times a second');
is(scalar log_lines($node, qr/LOG:.*supervisor.*pipelines wait: 128 pipelines/, $from), 1, 'it is said once');
$many->(q(SELECT postpipe_drop_pipeline('p1')));
wait_sql($node, 'postgres', "$status 'late'", 'idle', 'it runs when a slot is free');
$node->stop;

# --- No process for a supervisor. One slot is the server's own, one the launcher's; so two are left.
$node = pp_node('few', redis => $redis, databases => 'postgres, one', conf => "max_worker_processes = 4\n");
$node->safe_psql('postgres', 'CREATE EXTENSION postpipe; SELECT postpipe_drop_pipeline($$posts$$)');
$node->safe_psql('postgres', q(SELECT postpipe_create_pipeline('p', 'stream:few', statement => 'SELECT FROM postpipe_batch')));
wait_sql($node, 'postgres', "$status 'p'", 'idle', 'supervisor and worker of one database');
my $launcher = q(SELECT concat_ws(' ', state, reason_code) FROM postpipe_workers WHERE backend_type = 'launcher');
is($node->safe_psql('postgres', $launcher), 'running', 'nothing waits');
for my $round (1, 2)
{
	$from = log_offset($node);
	$node->safe_psql('postgres', 'CREATE DATABASE one');
	wait_sql($node, 'postgres', $launcher, 'waiting no_slot', "round $round: no slot for the supervisor of another");
	$node->safe_psql('one', 'CREATE EXTENSION postpipe');
	wait_sql($node, 'one', "$status 'posts'", 'waiting no_slot', '... and its pipeline says so');
	$node->safe_psql('postgres', q(SELECT postpipe_pause('p')));
	wait_sql($node, 'postgres', $launcher, 'running', '... until there is one');
	is(join(' ', map { /launcher: (\w+)/ } log_lines($node, qr/launcher: /, $from)), 'waiting running', '... which the log has once each');
	$node->safe_psql('postgres', 'DROP DATABASE one');
	$node->safe_psql('postgres', q(SELECT postpipe_resume('p')));
	wait_sql($node, 'postgres', "$status 'p'", 'idle', '... and the slot goes round');
}
$node->stop;

# --- None for the launcher either
$node->append_conf('postgresql.conf', 'max_worker_processes = 1');
$node->start;
wait_sql($node, 'postgres', "$status 'p'", 'stopped no_launcher', 'no slot for the launcher');
like($node->safe_psql('postgres', 'SELECT reason FROM postpipe_stats'), qr/raise max_worker_processes and restart/, '... and what to do');
$node->append_conf('postgresql.conf', 'max_worker_processes = 8');
$node->restart;
wait_sql($node, 'postgres', "$status 'p'", 'idle', '... which helps');

done_testing();
