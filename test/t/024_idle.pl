# Idle costs nothing: no transaction, snapshot or lock, no SQL, no WAL, no log line, over several turns of the blocking read;
# and pg_stat_activity says who is who. TAP, because it needs a server that nothing else uses, and Redis to count the turns.

use strict;
use warnings;
use Postpipe::Test;
use Postpipe::Test::Hits;

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('main', redis => $redis, databases => 'postgres, empty',
	conf => "shared_preload_libraries = 'postpipe, pg_stat_statements'\npg_stat_statements.track = all\nautovacuum = off\n");

# What is asked here is asked from another database, so that the numbers of this one are those of postpipe alone.
$node->safe_psql('postgres', 'CREATE DATABASE empty');
$node->safe_psql('postgres', 'CREATE DATABASE watch');
$node->safe_psql('watch', 'CREATE EXTENSION pg_stat_statements');
my $hits = Postpipe::Test::Hits->new(node => $node, redis => $redis, workers => 2);
$hits->publish(20);
$hits->settled('before');
$hits->sql("SELECT postpipe_resume('posts')");
wait_sql($node, 'postgres', "SELECT string_agg(state, ' ') FROM postpipe_stats", 'idle idle', 'everything is idle');

# Until what the busy time left is written and flushed, and compared with the ledger once: nothing changes over
# three turns.
my $before;
wait_for { my $last = numbers(); turns(3); is_same($last, $before = numbers()) } 'it has come to rest', 120;
my $from = log_offset($node);
turns(3);
is_deeply(numbers(), $before, 'three turns of the blocking read: no transaction, no SQL, no WAL');
is_deeply([ log_lines($node, qr/./, $from) ], [], '... and no log line');

my $ours = "FROM pg_stat_activity a WHERE backend_type LIKE 'postpipe%'";
is($node->safe_psql('watch', "SELECT count(*) $ours"), 6, 'launcher, two supervisors, three workers');
is($node->safe_psql('watch', "SELECT count(*) $ours AND (backend_xid IS NOT NULL OR backend_xmin IS NOT NULL OR xact_start IS NOT NULL)"),
	0, 'no transaction and no snapshot');
is($node->safe_psql('watch', "SELECT count(*) $ours AND EXISTS (SELECT FROM pg_locks l WHERE l.pid = a.pid)"), 0, 'no lock');

# --- who is who
my $who = $node->safe_psql('watch', "SELECT backend_type, coalesce(datname, '-'), application_name, state, query $ours ORDER BY 1, 2, 3");
is("$who\n", <<'END', 'who is who');
postpipe launcher|-|postpipe launcher|idle|watching the supervisors
postpipe supervisor|empty|postpipe supervisor empty|idle|waiting for CREATE EXTENSION
postpipe supervisor|postgres|postpipe supervisor postgres|idle|watching the workers
postpipe worker|postgres|postpipe worker hits/1|idle|waiting for entries
postpipe worker|postgres|postpipe worker hits/2|idle|waiting for entries
postpipe worker|postgres|postpipe worker posts/1|idle|waiting for entries
END
is($node->safe_psql('watch', "SELECT count(*) $ours AND (wait_event_type IS NULL OR wait_event IS NULL)"),
	0, 'each says what it waits for');

# --- busy: what it is doing
my $session = $hits->session;
$session->('BEGIN; LOCK TABLE hits');
$hits->publish(1);
$hits->stuck;
is($node->safe_psql('watch', "SELECT state $ours AND wait_event_type = 'Lock'"), 'active', 'active while a batch is applied');
like($node->safe_psql('watch', "SELECT query $ours AND wait_event_type = 'Lock'"), qr/^applying a batch/, '... and says so');
is($node->safe_psql('watch', "SELECT count(*) $ours AND xact_start IS NOT NULL"), 1, '... one transaction');
$session->('COMMIT');
$session->(undef);
$hits->settled('after');
wait_sql($node, 'watch', "SELECT count(*) $ours AND (xact_start IS NOT NULL OR state <> 'idle')", 0, 'idle again: no transaction');
wait_sql($node, 'postgres', "SELECT n_tup_ins FROM pg_stat_user_tables WHERE relname = 'hits'", 21,
	'idle again: the statistics of the table are reported');

done_testing();

# Blocking reads that Redis has served since it started.
sub reads { return ($redis->cli('INFO', 'commandstats') =~ /cmdstat_xreadgroup:calls=(\d+)/)[0] }

# Waits until each worker has begun so many reads more.
sub turns
{
	my ($n) = @_;
	my $until = reads() + 3 * $n;
	wait_for { reads() >= $until } "$n turns of the blocking read";
	return;
}

sub numbers
{
	my @rows = map { $node->safe_psql('watch', $_) } (
		q(SELECT datname, xact_commit, xact_rollback, tup_returned FROM pg_stat_database WHERE datname IN ('postgres', 'empty') ORDER BY 1),
		q(SELECT sum(calls) FROM pg_stat_statements WHERE dbid IN (SELECT oid FROM pg_database WHERE datname IN ('postgres', 'empty'))),
		'SELECT pg_current_wal_insert_lsn()');
	return \@rows;
}

sub is_same { my ($x, $y) = @_; return "@$x" eq "@$y" }
