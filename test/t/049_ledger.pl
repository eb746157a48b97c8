# The ledger stays small: rows of small batches are merged, old ones pruned, and what was settled stays settled.
# TAP, because it needs a Redis stream and background workers.

use strict;
use warnings;
use Postpipe::Test;
use Postpipe::Test::Pipelines qw(drop pause resume);

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('ledger', redis => $redis,
	conf => "shared_preload_libraries = 'postpipe, pg_stat_statements'\npg_stat_statements.track = all\n");
sql('CREATE EXTENSION postpipe');
sql('CREATE EXTENSION pg_stat_statements');
sql(q(SELECT postpipe_drop_pipeline('posts')));

# --- Full batches: 24 bytes for an entry at most, with everything.
make('full', 20000);
sql('VACUUM FULL postpipe_ledger');
my $bytes = sql(q(SELECT pg_total_relation_size('postpipe_ledger') / 20000.0));
cmp_ok($bytes, '<=', 24, "full batches: $bytes bytes for each entry");
again('full', 20000);
drop('full');

# --- Batches of one entry: merged, by one worker and by two.
for my $workers (1, 2)
{
	my $p = "single_$workers";
	make($p, 3000, workers => $workers, options => '{"batch_size": 1}');
	is(sql("SELECT sum(applied) FROM postpipe_ledger WHERE pipeline = '$p'"), 3000, "$p: nothing is lost from the sums");
	cmp_ok(sql("SELECT count(*) FROM postpipe_ledger WHERE pipeline = '$p'"), '<', 2000, "$p: in few rows");
	is_small($p);
	sql("SELECT postpipe_pause('$p')");
	wait_sql($node, 'postgres', "SELECT state FROM postpipe_stats WHERE pipeline = '$p'", 'paused', "$p: paused");
	sql("SELECT postpipe_resume('$p')");
	again($p, sql("SELECT count(*) FROM t_$p"));
	drop($p);
}

# --- What is old is pruned; but for what is pending, and the last row of each worker.
my ($refused, undef, $why) = $node->psql('postgres', q(SELECT postpipe_create_pipeline('short', 'stream:short', options => '{"ledger_retention": "59s"}', statement => 'SELECT FROM postpipe_batch')));
like($why, qr/ledger_retention is "59s", no interval from 60 s/, 'a retention that is shorter than entries wait is refused');
make('pruned', 10, options => '{"ledger_retention": "1min", "batch_size": 1}');
my ($settled) = map { add('pruned', "more $_") } 1 .. 3;
wait_sql($node, 'postgres', 'SELECT count(*) FROM t_pruned', 13, 'three more');
sql(q(SELECT postpipe_pause('pruned')));
wait_sql($node, 'postgres', q(SELECT state FROM postpipe_stats WHERE pipeline = 'pruned'), 'paused', 'paused');
my $held = add('pruned', 'held by another');
$redis->command('XREADGROUP', 'GROUP', 'postpipe_pruned', 'python', 'COUNT', 1, 'STREAMS', 'stream:pruned', '>');
# One that is settled and pending again, as if its acknowledgement had not come.
$redis->command('XCLAIM', 'stream:pruned', 'postpipe_pruned', 'python', 0, $settled, 'FORCE', 'JUSTID');
sql(q(SELECT postpipe_resume('pruned')));
my $n = 13;
for my $round (1 .. 4)
{
	# After a thousand batches it looks after the ledger.
	sql(q(UPDATE postpipe_ledger SET settled_at = settled_at - interval '2 minutes' WHERE pipeline = 'pruned'));
	add('pruned', 'n' . ++$n) for 1 .. 1001;
	wait_sql($node, 'postgres', 'SELECT count(*) FROM t_pruned', $n, "round $round: all are applied");
}
wait_sql($node, 'postgres', "SELECT pruned_id > '$held' FROM postpipe_progress WHERE pipeline = 'pruned'", 't', 'old rows are pruned, past one that is pending for another');
is(sql(q(SELECT holes FROM postpipe_progress WHERE pipeline = 'pruned')), "{$held}", 'that one is a hole, and the one that is settled is none');
is(sql(q(SELECT e.applied + (SELECT coalesce(sum(applied), 0) FROM postpipe_ledger l WHERE l.pipeline = 'pruned' AND NOT summed) FROM postpipe_epoch e WHERE pipeline = 'pruned')), $n, 'the sums go to the epoch');
cmp_ok(sql(q(SELECT count(*) FROM postpipe_ledger WHERE pipeline = 'pruned')), '<', 1100, 'few rows are left');
$redis->command('XGROUP', 'SETID', 'stream:pruned', 'postpipe_pruned', '0');
wait_sql($node, 'postgres', q(SELECT entries_deduplicated >= ) . $n . q( FROM postpipe_stats WHERE pipeline = 'pruned'), 't', 'set back: what comes again is known');
wait_sql($node, 'postgres', q(SELECT count(*), count(DISTINCT v) FROM t_pruned), ($n + 1) . '|' . ($n + 1), '... and only the hole is applied');
sql(q(SELECT postpipe_pause('pruned')));
wait_sql($node, 'postgres', q(SELECT state FROM postpipe_stats WHERE pipeline = 'pruned'), 'paused', 'paused');
sql(q(SELECT postpipe_rewind('pruned')));
sql(q(SELECT postpipe_resume('pruned')));
wait_sql($node, 'postgres', q(SELECT count(*), count(DISTINCT v) FROM t_pruned), (2 * $n + 2) . '|' . ($n + 1), 'a rewind from SQL applies all of it again, pruned or not');

# --- An entry that is still in the stream, and neither pending nor on record, is applied before the ledger forgets what was
# settled around it: also where entries cannot be counted, and while others come.
for my $workers (1, 2)
{
	my $p = "missing_$workers";
	add($p, 'before the group');
	$redis->command('XGROUP', 'CREATE', "stream:$p", "postpipe_$p", '$');
	make($p, 20, workers => $workers, options => '{"ledger_retention": "1min", "batch_size": 1}');
	sql("SELECT postpipe_pause('$p')");
	wait_sql($node, 'postgres', "SELECT state FROM postpipe_stats WHERE pipeline = '$p'", 'paused', "$p: paused");
	# As if the group had passed over some of what was received, long ago.
	sql("UPDATE postpipe_epoch SET base_added = NULL WHERE pipeline = '$p'");
	my $ids = join ', ', map { "'$_->[0]'" } @{ $redis->command('XRANGE', "stream:$p", '-', '+') }[ 6, 7, 16 ];
	is(sql("WITH forgotten AS (DELETE FROM postpipe_ledger WHERE pipeline = '$p' AND last_id IN ($ids) RETURNING first_id, last_id) SELECT count(*) FROM forgotten WHERE first_id = last_id"), 3, "$p: three are not on record");
	sql("DELETE FROM t_$p WHERE v IN ('v6', 'v7', 'v16')");
	sql("SELECT postpipe_resume('$p')");
	for (my $n = 20; $n < 6000 && sql("SELECT count(*) FROM t_$p") < $n;)
	{
		sql("UPDATE postpipe_ledger SET settled_at = settled_at - interval '2 minutes' WHERE pipeline = '$p'");
		$redis->pipeline(map { [ 'XADD', "stream:$p", '*', 'v', 'n' . ++$n ] } 1 .. 1001);
		wait_for { sql("SELECT count(*) FROM t_$p") >= $n - 3 } "$p: what comes is applied";
	}
	my $sent = $redis->command('XLEN', "stream:$p") - 1;
	is(sql("SELECT count(*), count(DISTINCT v) FROM t_$p"), "$sent|$sent", "$p: so are those three, each once");
	drop($p);
}

# --- What a worker asks the ledger when it opens the stream, and now and then while entries come, does not grow with what is on record.
make('long', 10, options => '{"batch_size": 1}');
pause('long');
sql(<<'SQL');
INSERT INTO postpipe_ledger (pipeline, epoch, worker, first_id, last_id, applied, filtered, dead, lost, sequence, ids, summed)
SELECT pipeline, epoch, worker, (i || '-0')::postpipe_id, (i || '-9')::postpipe_id, 10, 0, 0, 0, 0, ids, true
FROM generate_series(1, 20000) i, (SELECT * FROM postpipe_ledger WHERE pipeline = 'long' LIMIT 1) one;
ANALYZE postpipe_ledger;
SQL
my $read = read_rows();
resume('long');
add('long', "more $_") for 1 .. 10;
wait_sql($node, 'postgres', 'SELECT count(*) FROM t_long', 20, 'more entries are applied, with 20,000 old rows');
pause('long');
cmp_ok(read_rows() - $read, '<', 10000, 'a worker from its start to its end does not read them');
drop('long');

# --- Nor does what keeps it small while entries come one by one: what was merged and is not vacuumed yet is not read in each round.
# Whatever plan its statistics, or settings as this one, would suggest.
sql($_) for 'ALTER SYSTEM SET autovacuum = off', 'ALTER SYSTEM SET random_page_cost = 1000', 'SELECT pg_reload_conf()';
make('dead', 10, options => '{"batch_size": 1}',
	statement => q(INSERT INTO t_dead SELECT current_setting('enable_bitmapscan') || ' ' || current_setting('enable_seqscan') FROM postpipe_batch));
pause('dead');
sql(<<'SQL');
WITH gone AS (INSERT INTO postpipe_ledger (pipeline, epoch, worker, first_id, last_id, applied, filtered, dead, lost, sequence, ids)
SELECT pipeline, epoch, worker, (i || '-0')::postpipe_id, (i || '-0')::postpipe_id, 1, 0, 0, 0, 0, ids
FROM generate_series(1, 100000) i, (SELECT * FROM postpipe_ledger WHERE pipeline = 'dead' LIMIT 1) one RETURNING 1) SELECT count(*) FROM gone;
DELETE FROM postpipe_ledger WHERE pipeline = 'dead' AND last_id <= '100000-0';
ANALYZE postpipe_ledger;
SQL
sql('SELECT pg_stat_statements_reset()');
resume('dead');
$redis->pipeline(map { [ 'XADD', 'stream:dead', '*', 'v', $_ ] } 1 .. 4000);
wait_sql($node, 'postgres', 'SELECT count(*) FROM t_dead', 4010, '4000 batches, with the traces of 100,000 rows');
pause('dead');
my ($rounds, $blocks) = split /\|/, sql(q(SELECT max(calls), sum(shared_blks_hit + shared_blks_read) FROM pg_stat_statements WHERE query LIKE 'WITH page AS%postpipe_ledger%'));
cmp_ok($rounds, '>=', 10, 'ten rounds or more');
cmp_ok($blocks, '<', 1000 * $rounds, "... without reading what was there before ($blocks blocks)");
is(sql('SELECT DISTINCT v FROM t_dead'), 'on on', '... and the statement is planned as it was');
drop('dead');

pp_balanced($node);
$node->stop;
done_testing();

sub make
{
	my ($name, $n, %opt) = @_;
	my @commands = map { [ 'XADD', "stream:$name", '*', 'v', "v$_" ] } 1 .. $n;
	$redis->pipeline(splice(@commands, 0, 1000)) while @commands;
	Postpipe::Test::Pipelines::make($name, %opt);
	wait_sql($node, 'postgres', "SELECT count(*) FROM t_$name", $n, "$name: $n entries");
	return;
}

# What is left of a row that was merged must not hold an index page: a plain VACUUM frees it all.
sub is_small
{
	my ($p) = @_;
	my @pages;
	for (0 .. 7)
	{
		my $n = sql("SELECT count(*) FROM t_$p");
		add($p, 'more ' . ($n + $_)) for 1 .. 3000;
		wait_sql($node, 'postgres', "SELECT count(*) FROM t_$p", $n + 3000, "$p: 3000 more");
		sql('VACUUM postpipe_ledger');
		push @pages, sql(q(SELECT pg_indexes_size('postpipe_ledger') / 8192));
	}
	# A page that VACUUM has freed is there for the round after the next.
	cmp_ok($pages[7], '<', 1.2 * $pages[2], "$p: the indexes do not grow with each round (@pages)");
	return;
}

# How many rows of the ledger were read, by processes that have ended.
sub read_rows { return sql(q(SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_user_tables WHERE relname = 'postpipe_ledger')) }

sub add { my ($name, $value) = @_; return $redis->command('XADD', "stream:$name", '*', 'v', $value) }

# The group is set back: everything comes again, and nothing is applied again.
sub again
{
	my ($name, $n) = @_;
	$redis->command('XGROUP', 'SETID', "stream:$name", "postpipe_$name", '0');
	# One by one that takes longer than a wait may, where the machine is slow.
	wait_sql($node, 'postgres', "SELECT entries_deduplicated >= $_ FROM postpipe_stats WHERE pipeline = '$name'", 't', "$name: $_ of $n come again")
	  for (map { 3000 * $_ } 1 .. ($n - 1) / 3000), $n;
	is(sql("SELECT count(*), count(DISTINCT v) FROM t_$name"), "$n|$n", '... and none is applied again');
	wait_sql($node, 'postgres', "SELECT balance FROM postpipe_audit WHERE pipeline = '$name'", 0, '... the audit balances');
	return;
}
