# Entries that are trimmed unread in a group that has another consumer, again and again while the workers read: each time they
# are lost, and counted. Redis counts them by itself from the next entry that it delivers (8), or never (7.0). TAP, because it
# needs batches that wait while the stream is trimmed.

use strict;
use warnings;
use Postpipe::Test;
use Postpipe::Test::Pipelines qw(make xadds drop pause resume wait_state rows);

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('lost_shared', redis => $redis);
sql('CREATE EXTENSION postpipe');
sql(q(SELECT postpipe_drop_pipeline('posts')));

use constant { BATCH => 5, LEFT => 20 }; # a worker has a batch in hand, and one that it has read meanwhile

# Each batch waits for its own lock, so that they go on one at a time.
my $session = pp_session($node);
$session->('CREATE SEQUENCE step');
for my $workers (1, 2)
{
	my $p = "shared_$workers";
	$session->("CREATE TABLE t_$p (v text)");
	$session->("SELECT postpipe_create_pipeline('$p', 'stream:$p', workers => $workers, options => '{\"batch_size\": @{[ BATCH ]}}', statement => \$\$WITH w AS MATERIALIZED
		(SELECT pg_advisory_xact_lock_shared(nextval('step'))) INSERT INTO t_$p SELECT event ->> 'v' FROM w, postpipe_batch\$\$)");
	wait_sql($node, 'postgres', "SELECT state FROM postpipe_stats WHERE pipeline = '$p'", 'idle', "$p reads");
	$redis->command('XGROUP', 'CREATECONSUMER', "stream:$p", "postpipe_$p", 'python');
	wait_for { add($p, 1); sql("SELECT shared FROM postpipe_progress WHERE pipeline = '$p'") eq 't' } "$p: another consumer is seen";

	# What Redis does is known once the end has been reached after a gap; else two gaps may look like one, or like none.
	$session->(q(SELECT pg_advisory_lock(s + last_value) FROM step, generate_series(0, 500) s));
	lose($p, 400);
	settled($p, 'one gap');
	$session->(q(SELECT pg_advisory_lock(s + last_value) FROM step, generate_series(0, 500) s));
	lose($p, $_) for 200, 300, 300, 100;
	settled($p, 'more of them');
	$session->("SELECT postpipe_drop_pipeline('$p')");
}

# --- Set back while the pipeline rests, and trimmed, with what nobody has read: how many of them that were is not known, as
# another consumer may have settled them, and none that is on record is counted.
for my $at ([0], [ 0, 'ENTRIESREAD', 0 ])
{
	my $p = 'back_' . @$at;
	make($p);
	wait_state($p);
	$redis->command('XGROUP', 'CREATECONSUMER', "stream:$p", "postpipe_$p", 'python');
	add($p, 20);
	rows($p, 20);
	wait_sql($node, 'postgres', "SELECT shared FROM postpipe_progress WHERE pipeline = '$p'", 't', "$p: another consumer is seen");
	pause($p);
	$redis->command('XGROUP', 'SETID', "stream:$p", "postpipe_$p", @$at);
	$redis->transaction(xadds($p, 7), [ 'XTRIM', "stream:$p", 'MAXLEN', 3 ]);
	resume($p);
	rows($p, 23, "$p: set back and trimmed: what is left is read");
	wait_sql($node, 'postgres', "SELECT string_agg(coalesce(entries::text, 'some'), ' ') FROM postpipe_lost WHERE pipeline = '$p'", 'some', '... and some are lost');
	is(sql("SELECT count(*) FROM postpipe_epoch WHERE pipeline = '$p'"), 1, '... in one epoch');
	drop($p);
}

pp_balanced($node);
$node->stop;
done_testing();

sub add { my ($p, $n) = @_; return $redis->pipeline(xadds($p, $n)) }

# While each worker waits with a batch: so many entries are trimmed, with what was not read before. Then these batches may go.
sub lose
{
	my ($p, $n) = @_;
	my $waiting = q(FROM pg_locks WHERE locktype = 'advisory' AND NOT granted);
	my $workers = $p =~ s/.*_//r;
	wait_for { add($p, 1); sql("SELECT count(*) $waiting") == $workers } "$p: its workers wait";
	add($p, $n + LEFT * $workers);
	$redis->command('XTRIM', "stream:$p", 'MAXLEN', LEFT * $workers);
	my $steps = sql("SELECT string_agg(objid::text, ',') $waiting");
	$session->("SELECT pg_advisory_unlock(s) FROM unnest(ARRAY[$steps]) s");
	wait_sql($node, 'postgres', "SELECT count(*) $waiting AND objid NOT IN ($steps)", $workers, "$p: and wait again, with others", 20);
	return;
}

# What is added is applied or lost, and how many are lost is known.
sub settled
{
	my ($p, $what) = @_;
	$session->('SELECT pg_advisory_unlock_all()');
	wait_sql($node, 'postgres', "SELECT added - applied - lost, lost > 0, balance, count(v) = applied FROM postpipe_audit, t_$p WHERE pipeline = '$p' GROUP BY added, applied, lost, balance", '0|t|0|t', "$p: $what: all is accounted for", 10)
	  or diag(sql("SELECT a FROM postpipe_audit a; SELECT l FROM postpipe_lost l"));
	is(sql("SELECT count(*) FROM postpipe_lost WHERE pipeline = '$p' AND (entries IS NULL OR first_id > last_id)"), 0, '... with ranges and numbers');
	return;
}
