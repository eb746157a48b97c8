# postpipe_skip: an entry that is unread, pending or tried again becomes a dead letter and is never run. TAP, because it needs
# a Redis with consumers of others, workers that hold entries, crashes, and sessions that wait for each other.

use strict;
use warnings;
use Postpipe::Test;
use Postpipe::Test::Pipelines qw(pause resume wait_state);

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('skip', redis => $redis, conf => "log_error_verbosity = terse\npostpipe.retry_delay = '1h'");
sql(<<'SQL');
CREATE EXTENSION postpipe;
SELECT postpipe_drop_pipeline('posts');
CREATE ROLE app LOGIN;
CREATE ROLE other LOGIN;
GRANT EXECUTE ON FUNCTION postpipe_skip TO app, other;
CREATE TABLE item (id int, v text, CONSTRAINT v CHECK (v <> 'bad'));
ALTER TABLE item OWNER TO app;
SELECT postpipe_create_pipeline('item', 'stream:item', target => 'item', owner => 'app', options => '{"batch_size": 10}');
SQL
wait_state('item', 'idle');

# --- Unread: the letter is there at once, and the pipeline passes by when it comes to it.
pause('item');
my @ids = map { $redis->xadd('stream:item', id => $_, v => 'x') } 1 .. 100;
is(sql("SET ROLE app; SELECT postpipe_skip('item', '$ids[49]', 'of no use')"), 't', 'an unread entry is skipped');
my $row = q(SELECT state, sqlstate, message, attempts, event FROM postpipe_dlq WHERE id = ');
is(sql("$row$ids[49]'"), 'dead|57000|skipped by "app": of no use|1|{"v": "x", "id": "50"}', '... it is in the dead letters: by whom and why');
is(scalar log_lines($node, qr/pipeline "item": entry $ids[49] was skipped by "app": of no use/), 1, '... and in the log');
is(sql("SELECT postpipe_skip('item', '$ids[49]')"), 'f', '... and not skipped again');
is(sql("SELECT matched FROM postpipe_replay('item')"), 0, '... nor replayed while the pipeline is to come to it');
is(sql("SELECT postpipe_discard('item')"), 0, '... nor discarded');
is(sql(q(SELECT dead, balance IS NULL OR balance = 0 FROM postpipe_audit)), '0|t', '... for the audit it is unread');
is(sql("BEGIN; SELECT postpipe_skip('item', '$ids[59]'); ROLLBACK; SELECT postpipe_skip('item', '$ids[0]')"), "t\nt", 'one that is rolled back, and the first');
resume('item');
wait_sql($node, 'postgres', q(SELECT applied, dead, pending + lag FROM postpipe_audit), '98|2|0', 'the others are applied');
is(items('item', '50', '1', '60'), '60', '... and those two are not');
wait_for { pending($redis, 'stream:item', 'postpipe_item') == 0 } '... but acknowledged';
pp_balanced($node);
is(sql("SELECT postpipe_skip('item', '$_')"), 'f', "$_ is settled, or not in the stream") for $ids[1], $ids[49], '1-1', '0-0', '18446744073709551615-1';

# --- A letter of it is like any other now.
is(sql(qq(SELECT * FROM postpipe_replay('item', sqlstate => '57000', max_entries => 1))), '1|1|0', 'a replay applies it after all');
is(sql(qq(SELECT postpipe_discard('item', sqlstate => '57000'))), 1, 'a discard removes it');
wait_sql($node, 'postgres', q(SELECT applied, dead, discarded, balance FROM postpipe_audit), '99|0|1|0', '... and they are counted as that');

# --- Running, with nothing in hand: what comes is skipped before it is read, or not at all.
{
	my $session = pp_session($node);
	$session->('BEGIN; LOCK TABLE item');
	my @held = map { $redis->xadd('stream:item', id => 200 + $_, v => 'x') } 1 .. 30;
	wait_sql($node, 'postgres', q(SELECT count(*) FROM pg_locks WHERE relation = 'item'::regclass AND NOT granted), 1, 'a worker has a batch in hand, and waits');
	my $skip = pp_start($node, "SET application_name = 'skip'; SELECT id, postpipe_skip('item', id) FROM unnest('{$held[0],$held[14],$held[29]}'::postpipe_id[]) id");
	wait_sql($node, 'postgres', q(SELECT count(*) FROM pg_stat_activity WHERE application_name = 'skip' AND wait_event_type = 'Lock'), 1, '... the function waits for it');
	$session->('COMMIT');
	$session->(undef);
	my $answer = $skip->();
	my %skipped = $answer =~ /^(\S+)\|([tf])$/mg;
	is(scalar keys %skipped, 3, 'it says of each whether it was skipped') or diag $answer;
	my @not = grep { $skipped{$_} eq 't' } @held[ 0, 14, 29 ];
	wait_sql($node, 'postgres', 'SELECT count(*) FROM item WHERE id > 200', 30 - @not, 'that many are applied');
	is(sql(q(SELECT string_agg(id::text, ' ' ORDER BY id) FROM postpipe_dlq)), join(' ', @not), '... the others are letters');
	is($skipped{ $held[0] }, 'f', 'the one in hand had been applied');
	ok(@not > 0, 'some had not');
	pp_balanced($node);
}

# --- What holds the pipeline up is skipped while it is in hand, between two attempts.
{
	sql(<<'SQL');
	CREATE TABLE slow (id int);
	CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.id = 13 THEN RAISE EXCEPTION 'not now' USING ERRCODE = '55P03'; END IF; RETURN NEW; END $$;
	CREATE TRIGGER hold BEFORE INSERT ON slow FOR EACH ROW EXECUTE FUNCTION hold();
	SELECT postpipe_create_pipeline('slow', 'stream:slow', target => 'slow', workers => 2, options => '{"dead_letter_stream": "stream:slow:dead"}');
SQL
	wait_state('slow', 'idle');
	my %id = map { ($_ => $redis->xadd('stream:slow', id => $_)) } 11 .. 15;
	wait_state('slow', 'retrying');
	is(sql("SELECT postpipe_skip('slow', '$id{13}', 'locks')"), 't', 'one that fails again and again, and is no letter');
	wait_sql($node, 'postgres', 'SELECT string_agg(id::text, $$ $$ ORDER BY id) FROM slow', '11 12 14 15', '... then the others pass');
	wait_for { pending($redis, 'stream:slow', 'postpipe_slow') == 0 } '... and it is acknowledged';
	wait_for { $redis->command('XLEN', 'stream:slow:dead') == 1 } '... and copied';
	my %copy = @{ $redis->command('XRANGE', 'stream:slow:dead', '-', '+')->[0][1] };
	like($copy{message}, qr/^skipped by ".*": locks$/, '... with the reason');
	wait_sql($node, 'postgres', q(SELECT entries_dead FROM postpipe_stats WHERE pipeline = 'slow'), 1, '... and counted');
	pp_balanced($node);
}

# --- Pending for somebody else, also when it is gone from the stream by the time it is claimed.
{
	$redis->command('XGROUP', 'CREATE', 'stream:theirs', 'theirs', '0', 'MKSTREAM');
	my @theirs = map { $redis->xadd('stream:theirs', id => $_) } 1 .. 6;
	$redis->command('XREADGROUP', 'GROUP', 'theirs', 'python', 'COUNT', 5, 'STREAMS', 'stream:theirs', '>');
	sql(q(CREATE TABLE theirs (id int); SELECT postpipe_create_pipeline('theirs', 'stream:theirs', target => 'theirs', consumer_group => 'theirs')));
	wait_sql($node, 'postgres', 'SELECT count(*) FROM theirs', 1, 'a group of which five are pending for another one');
	is(sql("SELECT postpipe_skip('theirs', '$theirs[$_]')"), 't', "entry $_ is skipped") for 1, 3;
	$redis->command('XDEL', 'stream:theirs', $theirs[3]);
	sql(q(SELECT postpipe_claim('theirs', min_idle => '0')));
	wait_sql($node, 'postgres', 'SELECT string_agg(id::text, $$ $$ ORDER BY id) FROM theirs', '1 3 5 6', 'the others are claimed and applied');
	wait_for { pending($redis, 'stream:theirs', 'theirs') == 0 } '... and all are acknowledged';
	is(sql(q(SELECT count(*) FROM postpipe_dlq WHERE pipeline = 'theirs')), 2, '... two are letters');
	sql(q(SELECT count(*) FROM postpipe_reap_consumers('theirs', min_idle => '0')));
}

# --- The worker cannot read the letters when it comes to the entry: it reads them again, and does not run it.
{
	$redis->command('XGROUP', 'CREATE', 'stream:locked', 'locked', '0', 'MKSTREAM');
	my @locked = map { $redis->xadd('stream:locked', id => $_) } 1 .. 3;
	$redis->command('XREADGROUP', 'GROUP', 'locked', 'python', 'COUNT', 2, 'STREAMS', 'stream:locked', '>');
	sql(q(CREATE TABLE locked (id int); SELECT postpipe_create_pipeline('locked', 'stream:locked', target => 'locked', consumer_group => 'locked')));
	wait_sql($node, 'postgres', 'SELECT count(*) FROM locked', 1, 'a worker that knows of no skipped entries');
	is(sql("SELECT postpipe_skip('locked', '$locked[0]')"), 't', 'one is skipped');
	my $session = pp_session($node);
	my $waiting = q(FROM pg_locks WHERE relation = 'postpipe_dead_letter'::regclass AND NOT granted);
	$session->('BEGIN; LOCK TABLE postpipe_dead_letter');
	sql(q(SELECT postpipe_claim('locked', min_idle => '0')));
	wait_sql($node, 'postgres', "SELECT count(*) $waiting", 1, '... the worker comes to it, and waits');
	my $from = log_offset($node);
	sql("SELECT pg_cancel_backend(pid) $waiting");
	wait_for { log_lines($node, qr/pipeline "locked", worker 1: retrying: canceling statement/, $from) } '... is cancelled';
	$session->('COMMIT');
	$session->(undef);
	wait_for { pending($redis, 'stream:locked', 'locked') == 0 } '... and goes on';
	is(sql('SELECT string_agg(id::text, $$ $$ ORDER BY id) FROM locked'), '2 3', 'the skipped entry is not applied');
	is(sql(q(SELECT count(*) FROM postpipe_dlq WHERE pipeline = 'locked')), 1, '... but a letter');
	sql(q(SELECT count(*) FROM postpipe_reap_consumers('locked', min_idle => '0')));
}

# --- Acknowledged by somebody else after that: a backfill leaves it out as well.
{
	$redis->command('XGROUP', 'CREATE', 'stream:left', 'left', '0', 'MKSTREAM');
	my @left = map { $redis->xadd('stream:left', id => $_) } 1 .. 3;
	$redis->command('XREADGROUP', 'GROUP', 'left', 'python', 'COUNT', 2, 'STREAMS', 'stream:left', '>');
	sql(q(CREATE TABLE left_over (id int); SELECT postpipe_create_pipeline('left', 'stream:left', target => 'left_over', consumer_group => 'left')));
	wait_sql($node, 'postgres', 'SELECT count(*) FROM left_over', 1, 'a group of which two are pending for another one');
	is(sql("SELECT postpipe_skip('left', '$left[0]')"), 't', 'one of them is skipped');
	$redis->command('XACK', 'stream:left', 'left', @left[ 0, 1 ]);
	is(sql(q(SELECT * FROM postpipe_backfill('left'))), '3|1|2|0', 'a backfill of what the other one has acknowledged');
	is(sql('SELECT string_agg(id::text, $$ $$ ORDER BY id) FROM left_over'), '2 3', '... does not run it');
	is(sql(q(SELECT id, state FROM postpipe_dlq WHERE pipeline = 'left')), "$left[0]|dead", '... its letter stays');
	is(sql(q(SELECT * FROM postpipe_backfill('left', again => true))), '3|2|1|0', '... nor does one of what is settled');
}

# --- Tried again: it becomes dead, also without Redis.
my $bad = $redis->xadd('stream:item', id => 300, v => 'bad');
$redis->xadd('stream:item', id => 301, v => 'good');
wait_sql($node, 'postgres', "SELECT state FROM postpipe_dlq WHERE id = '$bad'", 'retrying', 'a letter that is tried again');
$redis->freeze;
is(sql("SELECT postpipe_skip('item', '$bad')"), 't', '... is skipped');
like(error("SELECT postpipe_skip('item', '$ids[1]')"), qr/Redis: /, 'for what is no letter Redis is asked');
$redis->thaw;
like(sql("SELECT state, next_retry_at IS NULL, sqlstate, message, detail, hint FROM postpipe_dlq WHERE id = '$bad'"),
	qr/^dead\|t\|57000\|skipped by "[^"]+"\|Its last error was 23514: .*violates check constraint.*\|To apply it after all, run postpipe_replay\('item', ids => '\{$bad\}'\)\.$/,
	'... with its last error, and what to do to apply it');
is(sql("SELECT postpipe_skip('item', '$bad')"), 'f', '... once');
is(sql(q(SELECT sum(value) FROM postpipe_metrics WHERE labels ->> 'pipeline' = 'item' AND name = 'post_persist_dlq_total')),
	sql(q(SELECT entries_dead FROM postpipe_stats WHERE pipeline = 'item')), '... and counts among the dead by their SQLSTATE');

# --- Skipped, then the server crashes; a new epoch begins; and the stream is rewound: the letter stays in force.
pause('item');
my @more = map { $redis->xadd('stream:item', id => 400 + $_, v => 'x') } 1 .. 5;
is(sql("SELECT postpipe_skip('item', '$more[2]')"), 't', 'skipped before a rewind');
sql("SELECT postpipe_rewind('item', to_id => '$ids[99]')");
sql('CHECKPOINT');
$node->stop('immediate');
$node->start;
sql('SELECT count(*) FROM item');
resume('item');
wait_sql($node, 'postgres', 'SELECT count(*) FROM item WHERE id BETWEEN 401 AND 405', 4, 'after a crash and a rewind: the others are applied');
wait_sql($node, 'postgres', "SELECT epoch, state FROM postpipe_dlq WHERE id = '$more[2]'", '2|dead', '... and it is a letter of the new epoch');
is(items('item', 403), '', '... and not run');
pp_balanced($node);

# --- Trimmed before the pipeline came to it: lost for the audit; the letter is all that is left, and can be discarded.
pause('item');
my @lost = map { $redis->xadd('stream:item', id => 500 + $_, v => 'x') } 1 .. 3;
is(sql("SELECT postpipe_skip('item', '$lost[0]')"), 't', 'skipped before it is trimmed');
$redis->command('XTRIM', 'stream:item', 'MINID', '=', $lost[1]);
resume('item');
wait_sql($node, 'postgres', 'SELECT count(*) FROM item WHERE id IN (502, 503)', 2, 'those after it are applied');
pp_balanced($node);
is(sql("SELECT state FROM postpipe_dlq WHERE id = '$lost[0]'"), 'dead', '... its letter is there');
wait_for { $redis->xadd('stream:item', id => 600, v => 'x'); sql("SELECT postpipe_discard('item', ids => '{$lost[0]}')") == 1 } '... until it is discarded';

# --- Thousands, against two workers that read all the time: each entry once, in the table or in the letters, as it was said.
sql(<<'SQL');
CREATE TABLE race (id int);
CREATE FUNCTION linger() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.002); RETURN NEW; END $$;
CREATE TRIGGER linger BEFORE INSERT ON race FOR EACH ROW EXECUTE FUNCTION linger();
SELECT postpipe_create_pipeline('race', 'stream:race', target => 'race', workers => 2, options => '{"batch_size": 20}');
SQL
wait_state('race', 'idle');
my %said;
for my $round (1 .. 8)
{
	my @race = $redis->pipeline(map { [ 'XADD', 'stream:race', '*', 'id', $round * 1000 + $_ ] } 1 .. 300);
	my @some = map { $race[ 10 * $_ + 9 ] } reverse 0 .. 29;
	my $answers = $node->safe_psql('postgres', join '', map { "SELECT '$_', postpipe_skip('race', '$_');" } @some);
	%said = (%said, $answers =~ /^(\S+)\|([tf])$/mg);
}
my @said = grep { $said{$_} eq 't' } keys %said;
is(scalar keys %said, 240, 'many calls against two workers');
note scalar(@said) . ' of 240 were skipped before they were applied';
wait_sql($node, 'postgres', 'SELECT count(*), count(DISTINCT id) FROM race', join('|', (2400 - @said) x 2), 'what was skipped is not applied, and nothing else is missing');
is(sql(q(SELECT string_agg(id::text, ' ' ORDER BY id) FROM postpipe_dlq WHERE pipeline = 'race' AND state = 'dead')),
	join(' ', sort { my @x = split /-/, $a; my @y = split /-/, $b; $x[0] <=> $y[0] || $x[1] <=> $y[1] } @said), '... and is in the letters');
wait_for { pending($redis, 'stream:race', 'postpipe_race') == 0 } 'all are acknowledged';

# --- Who may, and how.
like(error(q(SET ROLE other; SELECT postpipe_skip('item', '1-1'))), qr/must be a member of role "app"/, 'somebody else');
like(error("SELECT $_->[0]"), $_->[1], "$_->[0]") for
	[ q(postpipe_skip('nope', '1-1')), qr/pipeline "nope" does not exist/ ], [ q(postpipe_skip('item', NULL)), qr/id must not be NULL/ ], [ q(postpipe_skip(NULL, '1-1')), qr/pipeline must not be NULL/ ];
like(error(q(BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT postpipe_skip('item', '1-1'))), qr/isolation level read committed/, 'repeatable read');

pp_balanced($node);
$node->stop;
done_testing();

sub items { my ($table, @ids) = @_; return sql("SELECT string_agg(id::text, ' ' ORDER BY id) FROM $table WHERE id IN (" . join(', ', @ids) . ')') }
