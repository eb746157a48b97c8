# What is not an entry's fault costs no entry: a look-up in the ledger that fails.
# TAP, because it needs a Redis, background workers and several sessions.

use strict;
use warnings;
use Postpipe::Test;

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('main', redis => $redis, conf => "postpipe.retry_delay = 200ms");
sql('CREATE EXTENSION postpipe');
sql(q(SELECT postpipe_drop_pipeline('posts')));

# --- A batch that may be on record is not applied before the ledger has said so, whatever goes wrong with asking it: neither
# when the wait for its table is cancelled, long after a run of a statement that has a timeout, ...
sql(q(CREATE TABLE t (id text)));
sql(q(SELECT postpipe_create_pipeline('p', 'stream:p', statement => 'INSERT INTO t SELECT id FROM postpipe_batch', options => '{"statement_timeout": "300ms"}')));
$redis->pipeline(map { [ 'XADD', 'stream:p', '*', 'n', $_ ] } 1 .. 20);
wait_sql($node, 'postgres', 'SELECT count(*) FROM t', 20, 'twenty entries');
wait_for { pending($redis, 'stream:p', 'postpipe_p') == 0 } 'and acknowledged';
sql('SELECT pg_sleep(0.4)');
my $session = pp_session($node);
$session->('BEGIN; LOCK TABLE postpipe_ledger');
$redis->command('XGROUP', 'SETID', 'stream:p', 'postpipe_p', '0');
$redis->xadd('stream:p', n => 21);
my $waits = q(SELECT count(*) FROM pg_locks WHERE relation = 'postpipe_ledger'::regclass AND NOT granted);
wait_sql($node, 'postgres', $waits, 1, 'the worker waits for the ledger');
sql(q(SELECT pg_cancel_backend(pid) FROM postpipe_workers WHERE backend_type = 'worker'));
wait_sql($node, 'postgres', q(SELECT state, reason_code FROM postpipe_stats), 'retrying|sqlstate_57014', 'cancelled: it is tried again');
wait_sql($node, 'postgres', $waits, 1, '... and waits again');
$session->('COMMIT');
settled('the ledger is free', 21);

# --- ... nor when a row of it is damaged.
sql(q(CREATE TABLE copy AS SELECT ctid AS at, ids FROM postpipe_ledger));
sql(q(UPDATE postpipe_ledger SET ids = '\x02'));
$redis->command('XGROUP', 'SETID', 'stream:p', 'postpipe_p', '0');
$redis->xadd('stream:p', n => 22);
wait_sql($node, 'postgres', q(SELECT state, reason_code FROM postpipe_stats), 'failed|sqlstate_XX001', 'a damaged row of the ledger: failed');
is(sql('SELECT count(*) FROM t'), 21, '... and nothing is applied');
is(sql('SELECT count(*) FROM postpipe_dlq'), 0, '... and nothing dead');
sql(q(UPDATE postpipe_ledger l SET ids = o.ids FROM (SELECT row_number() OVER (ORDER BY at) n, ids FROM copy) o,
	(SELECT ctid c, row_number() OVER (ORDER BY ctid) n FROM postpipe_ledger) x WHERE l.ctid = x.c AND x.n = o.n));
settled('the row is mended', 22);
$session->(undef);
is(scalar log_lines($node, qr/was terminated by signal|PANIC/), 0, 'nothing has crashed');
$node->stop;
done_testing();

sub sql { my ($query) = @_; return $node->safe_psql('postgres', $query) }

# Each entry is in t, once, and acknowledged.
sub settled
{
	my ($when, $n) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_sql($node, 'postgres', 'SELECT count(DISTINCT id) FROM t', $n, "$when: all are applied");
	wait_for { pending($redis, 'stream:p', 'postpipe_p') == 0 } "$when: all are acknowledged";
	return is(sql('SELECT count(*) FROM t'), $n, "$when: each once");
}
