# Dead letters by hand: postpipe_replay and postpipe_discard, for whom and with which filter; letters that hold anything;
# retention; and the copies in a Redis stream.
# TAP, because it needs a Redis, background workers, two sessions and roles.

use strict;
use warnings;
use Digest::MD5 qw(md5_hex);
use Postpipe::Test;
use Postpipe::Test::Pipelines qw(letters wait_state);

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('main', redis => $redis, databases => 'postgres, cyrillic', conf => "postpipe.max_retries = 0\nlog_error_verbosity = terse");
sql('CREATE EXTENSION postpipe');
sql(q(SELECT postpipe_drop_pipeline('posts')));
sql(<<'SQL');
CREATE ROLE app LOGIN;
CREATE ROLE member LOGIN IN ROLE app;
CREATE ROLE other LOGIN;
GRANT EXECUTE ON FUNCTION postpipe_replay, postpipe_discard TO app, other;
CREATE TABLE item (id int PRIMARY KEY, v text, who text DEFAULT current_user || ' ' || current_setting('TimeZone'), CONSTRAINT v CHECK (v <> 'bad'));
ALTER TABLE item OWNER TO app;
SELECT postpipe_create_pipeline('item', 'stream:item', target => 'item', owner => 'app');
SQL
wait_state('item');

# --- Letters of several kinds.
my %id;
$id{$_} = $redis->xadd('stream:item', id => $_, v => 'bad') for 1 .. 6;
$id{text} = $redis->xadd('stream:item', id => 'x', v => 'y');
$id{json} = $redis->xadd('stream:item', data => '[1]');
$redis->xadd('stream:item', id => 100, v => 'good');
letters('item', 8);

# --- Nothing passes: nothing is lost, the errors are the new ones.
is(sql(q(SELECT * FROM postpipe_replay('item'))), '8|0|8', 'a replay of all that fails');
letters('item', 8);
is(sql(q(SELECT DISTINCT state, attempts, last_failed_at > first_failed_at FROM postpipe_dlq)), 'dead|1|t', '... is noted');
sql(q(ALTER TABLE item ADD CONSTRAINT later CHECK (id <> 2), DROP CONSTRAINT v));
is(sql(qq(SELECT * FROM postpipe_replay('item', ids => '{$id{2}}'))), '1|0|1', 'by ID');
is(sql(qq(SELECT constraint_name, attempts FROM postpipe_dlq WHERE id = '$id{2}')), 'later|1', '... with the error of today, and is none of the attempts');

# --- Filters; each replay applies what it should, as the pipeline would.
is(sql(qq(SELECT * FROM postpipe_replay('item', ids => '{$id{1},0-1}'))), '1|1|0', 'an ID list');
is(sql('SELECT v, who FROM item WHERE id = 1'), 'bad|app UTC', '... as the owner of the table, with the settings of a batch');
is(sql(q(SELECT * FROM postpipe_replay('item', sqlstate => '23505'))), '0|0|0', 'a SQLSTATE that none has');
is(sql(q(SELECT * FROM postpipe_replay('item', sqlstate => '23514', max_entries => 2))), '2|1|1', 'SQLSTATE and number: the first ones');
is(sql('SELECT string_agg(id::text, $$ $$ ORDER BY id) FROM item'), '1 3 100', '... in stream order, the one that fails left out');
is(sql(q(SELECT * FROM postpipe_replay('item', since => now()))), '0|0|0', 'since');
is(sql(q(SELECT * FROM postpipe_replay('item', until => now() - interval '1 hour'))), '0|0|0', 'until');
like(error(q(SELECT postpipe_replay('item', max_entries => -1))), qr/max_entries must not be negative/, 'a negative number');
like(error(q(SELECT postpipe_replay(NULL))), qr/pipeline must not be NULL/, 'no pipeline');
like(error(q(SELECT postpipe_replay('nope'))), qr/pipeline "nope" does not exist/, 'an unknown pipeline');

# --- Rolled back, nothing has happened; counters follow the commit.
my $applied = sql('SELECT entries_applied FROM postpipe_stats');
sql(qq(BEGIN; SELECT postpipe_replay('item', ids => '{$id{4}}'); ROLLBACK));
is(sql('SELECT count(*) FROM item WHERE id = 4'), 0, 'a replay that is rolled back');
letters('item', 6);
is(sql('SELECT entries_applied FROM postpipe_stats'), $applied, '... counts nothing');
sql(q(INSERT INTO item (id) VALUES (4)));
sql(qq(SELECT postpipe_replay('item', ids => '{$id{4}}')));
is(sql('SELECT entries_applied FROM postpipe_stats'), $applied + 1, '... and one that is not counts one');
is(sql('SELECT entries_conflicted FROM postpipe_stats'), 1, '... which has met a row with its key, as one of a batch may');

# --- What the pipeline is to blame for is thrown, and nothing is noted.
sql('ALTER TABLE item RENAME TO away');
like(error(q(SELECT postpipe_replay('item'))), qr/target table .*item of pipeline "item" does not exist/, 'no table');
sql('ALTER TABLE away RENAME TO item');
is(sql(qq(SELECT attempts FROM postpipe_dlq WHERE id = '$id{5}')), 1, '... is no attempt');
like(error(q(SET statement_timeout = '200ms'; SELECT postpipe_replay('item'), pg_sleep(5))), qr/statement timeout/,
	'the statement_timeout of the session still counts after entries that fail');

# --- A transaction that has a letter keeps others off it, and the pipeline's definition from being changed.
{
	my $session = pp_session($node);
	$session->(qq(BEGIN; SELECT applied FROM postpipe_replay('item', ids => '{$id{5}}');));
	like(error(qq(SET lock_timeout = '100ms'; SELECT postpipe_discard('item', ids => '{$id{5}}'))), qr/lock timeout/, 'a letter in a replay is locked');
	like(error(q(SET lock_timeout = '100ms'; SELECT postpipe_drop_pipeline('item', discard_dead => true))), qr/lock timeout/, '... and its pipeline');
	$redis->xadd('stream:item', id => 200, v => 'good');
	wait_sql($node, 'postgres', 'SELECT count(*) FROM item WHERE id = 200', 1, '... which goes on meanwhile');
	$session->('COMMIT;');
}
is(sql('SELECT count(*) FROM item WHERE id = 5'), 1, '... and is applied at commit');

# --- Whose letters they are.
for my $call (qw(postpipe_replay postpipe_discard))
{
	like(error(qq(SET ROLE other; SELECT $call('item'))), qr/must be a member of role "app"/, "$call by somebody else");
}
is(sql(qq(SET ROLE member; SELECT * FROM postpipe_replay('item', ids => '{$id{6}}'))), '1|1|0', 'a member of the owner replays');
is(sql('SELECT who FROM item WHERE id = 6'), 'app UTC', '... as the owner of the table');
like(error(q(SET ROLE member; DELETE FROM postpipe_dead_letter)), qr/permission denied/, '... and has no other right');

# --- Discard.
is(sql(qq(SELECT postpipe_discard('item', ids => '{$id{2}}', reason => 'of no use'))), 1, 'discard by ID');
is(scalar log_lines($node, qr/1 dead letters were discarded by .*: of no use/), 1, '... with a reason in the log');
is(sql(q(SELECT postpipe_discard('item', sqlstate => '22P02'))), 1, 'discard by SQLSTATE');
is(sql(q(SELECT postpipe_discard('item', sqlstate => '22P02'))), 0, '... only once');
letters('item', 1);

# --- Retrying ones are replayed as well; order counts as for retries.
sql(<<'SQL');
CREATE TABLE late (id int PRIMARY KEY, v text, w text);
SELECT postpipe_create_pipeline('late', 'stream:late', target => 'late', options => '{"max_retries": 5, "retry_delay": "1h"}');
SQL
wait_state('late');
sql(q(ALTER TABLE late ADD CONSTRAINT v CHECK (v NOT LIKE 'bad%')));
$redis->xadd('stream:late', id => 1, v => 'bad 1', w => 'filled');
$redis->xadd('stream:late', id => 2, v => 'bad 2', w => 'older');
letters('late', 2);
$redis->xadd('stream:late', id => 1, v => 'newer');
my $last = $redis->xadd('stream:late', id => 2, v => 'bad newer');
letters('late', 3);
wait_sql($node, 'postgres', 'SELECT v FROM late', 'newer', 'a later entry');
is(sql(q(SELECT DISTINCT state FROM postpipe_dlq WHERE pipeline = 'late')), 'retrying', 'letters that wait an hour');
sql('ALTER TABLE late DROP CONSTRAINT v');
is(sql(qq(SELECT * FROM postpipe_replay('late', ids => '{$last}'))), '1|1|0', 'the last one first');
is(sql(q(SELECT * FROM postpipe_replay('late'))), '2|2|0', '... then the others');
is(sql('SELECT * FROM late ORDER BY id'), "1|newer|filled\n2|bad newer|older", 'a replay sets nothing back');

# --- So it does where the key could not be told before the definition was mended.
sql(q(CREATE TABLE mended (id int PRIMARY KEY, v text, w text); SELECT postpipe_create_pipeline('mended', 'stream:mended', target => 'mended')));
wait_state('mended');
$redis->xadd('stream:mended', ident => 1, v => 'older', w => 'filled');
letters('mended', 1);
is(sql(q(SELECT * FROM postpipe_replay('mended'))), '1|0|1', 'a letter without a key');
is(sql(q(SELECT count(key_hash) FROM postpipe_dead_letter WHERE pipeline = 'mended')), 1, '... of which it is on record that it has none, so that nobody looks for it again');
sql(q(SELECT postpipe_alter_pipeline('mended', columns => '{"id": {"fields": ["id", "ident"]}}')));
$redis->xadd('stream:mended', ident => 1, v => 'newer');
wait_sql($node, 'postgres', 'SELECT v FROM mended', 'newer', 'a later entry, by the new definition');
is(sql(q(SELECT * FROM postpipe_replay('mended'))), '1|1|0', '... then a replay of what failed by the old one');
is(sql('SELECT * FROM mended'), '1|newer|filled', '... which sets nothing back');

# --- And where the table got another key since: while the pipeline runs, and while it rests; before it had one, too.
for my $case ([ 'rekeyed', 'running', 'id int PRIMARY KEY, ref int' ], [ 'rested', 'paused', 'id int PRIMARY KEY, ref int' ], [ 'keyless', 'running', 'id int, ref int' ])
{
	my ($t, $state, $columns) = @$case;
	sql(qq(CREATE TABLE $t ($columns, v text, w text, CONSTRAINT v CHECK (v NOT LIKE 'bad%')); SELECT postpipe_create_pipeline('$t', 'stream:$t', target => '$t')));
	wait_state($t);
	my @late = map { $redis->xadd("stream:$t", id => 1, ref => $_, v => "bad $_", w => 'filled') } 7, 8;
	letters($t, 2);
	if ($state eq 'paused')
	{
		sql("SELECT postpipe_pause('$t')");
		wait_state($t, 'paused');
	}
	sql("ALTER TABLE $t DROP CONSTRAINT IF EXISTS ${t}_pkey, ADD PRIMARY KEY (ref); ALTER TABLE $t ALTER id DROP NOT NULL");
	sql("SELECT postpipe_resume('$t')") if $state eq 'paused';
	$redis->xadd("stream:$t", id => 2, ref => 7, v => 'newer');
	wait_sql($node, 'postgres', "SELECT v FROM $t", 'newer', "$t: a later entry, by the new key");
	my $newer = $redis->xadd("stream:$t", id => 3, ref => 8, v => 'bad newer');
	letters($t, 3);
	sql("ALTER TABLE $t DROP CONSTRAINT v");
	is(sql("SELECT * FROM postpipe_replay('$t', ids => '{$newer}')"), '1|1|0', '... and one that is replayed');
	is(sql("SELECT * FROM postpipe_replay('$t')"), '2|2|0', '... then what failed with the old key');
	is(sql("SELECT * FROM $t ORDER BY ref"), "2|7|newer|filled\n3|8|bad newer|filled", '... which sets nothing back');
}

# --- Many, more than fit in one piece, and one that fails among them.
sql(q(CREATE TABLE many (id int PRIMARY KEY, v text, CONSTRAINT v CHECK (v <> 'bad')); SELECT postpipe_create_pipeline('many', 'stream:many', target => 'many', options => '{"error_threshold": 1}')));
wait_state('many');
$redis->pipeline(map { [ 'XADD', 'stream:many', '*', id => $_, v => $_ == 1777 ? 'worse' : 'bad' ] } 1 .. 2500);
sql(q(ALTER TABLE many ADD CONSTRAINT w CHECK (v <> 'worse') NOT VALID));
$redis->xadd('stream:many', id => 3000, v => 'worse');
wait_sql($node, 'postgres', q(SELECT count(*) + (SELECT count(*) FROM many) FROM postpipe_dlq WHERE pipeline = 'many'), 2501, '2501 are settled');
sql('ALTER TABLE many DROP CONSTRAINT v');
my $failed = sql(q(SELECT count(*) FROM postpipe_dlq WHERE pipeline = 'many' AND constraint_name = 'w'));
is(sql(q(SELECT matched - applied, failed FROM postpipe_replay('many'))), "$failed|$failed", 'a replay of 2500');
is(sql('SELECT count(*) FROM many'), 2501 - $failed, '... all rows are there');

# --- Anything: bytes that are no text, and a large one; kept, mirrored, and replayed.
sql(q(CREATE TABLE anything (id text PRIMARY KEY, n int, v text); SELECT postpipe_create_pipeline('anything', 'stream:anything', target => 'anything',
	options => '{"dead_letter_stream": "stream:anything:dead", "batch_size": 10}')));
wait_state('anything');
my $big = '0123456789abcdef' x (4 * 1024 * 1024);
my @entries = ([ id => "nul\0", v => 'x' ], [ id => 'utf', v => "\xff\xfe" ], [ "na\0me" => 'x', id => 'name' ], [ data => '{"id": 1' ], [ id => 'big', n => 'no number', v => $big ]);
my @ids = map { $redis->xadd('stream:anything', @$_) } @entries;
letters('anything', scalar @entries);
for my $i (0 .. $#entries)
{
	is(sql("SELECT string_agg(md5(f), ' ' ORDER BY n) FROM postpipe_dlq, unnest(fields) WITH ORDINALITY AS u (f, n) WHERE id = '$ids[$i]'"),
		join(' ', map { md5_hex($_) } @{ $entries[$i] }), "letter $i: its bytes");
}
wait_for { $redis->command('XLEN', 'stream:anything:dead') == @entries } 'every letter is copied to the stream';
my $copies = $redis->command('XRANGE', 'stream:anything:dead', '-', '+');
my %copy = map { my %f = @{ $_->[1] }[ 0 .. 7 ]; ($f{id} => [ \%f, @{ $_->[1] }[ 8 .. $#{ $_->[1] } ] ]) } @$copies;
is(join(' ', map { $copy{$_}[0]{sqlstate} } @ids), '22021 22021 22021 22P02 22P02', '... with SQLSTATE');
like($copy{ $ids[0] }[0]{message}, qr/NUL/, '... and message');
is($copy{ $ids[0] }[0]{pipeline}, 'anything', '... and pipeline');
is(md5_hex(join '|', @{ $copy{ $ids[1] } }[ 1 .. 4 ]), md5_hex(join '|', @{ $entries[1] }), '... and the fields, where there is no event');
is($copy{ $ids[4] }[1], 'data', '... else the event');
is(length $copy{ $ids[4] }[2], length(qq({"n": "no number", "v": "$big", "id": "big"})), '... all of it');
sql(q(ALTER TABLE anything ALTER n TYPE text));
is(sql(q(SELECT * FROM postpipe_replay('anything'))), '5|1|4', 'replayed');
is(sql(q(SELECT md5(v) FROM anything)), md5_hex($big), '... all 64 MB of it');
is(sql(q(SELECT postpipe_discard('anything', ids => (SELECT array_agg(id) FROM postpipe_dlq WHERE pipeline = 'anything')))), 4, 'and discarded');

# --- Copies are UTF-8, whatever the database is.
sql(q(CREATE DATABASE cyrillic TEMPLATE template0 ENCODING 'WIN1251' LC_COLLATE 'C' LC_CTYPE 'C'));
$node->safe_psql('cyrillic', q(CREATE EXTENSION postpipe; SELECT postpipe_drop_pipeline('posts'); CREATE TABLE item (n int);
	SELECT postpipe_create_pipeline('cyrillic', 'stream:cyrillic', target => 'item', options => '{"dead_letter_stream": "stream:cyrillic:dead"}')));
$redis->xadd('stream:cyrillic', n => "\xd0\x96");
wait_for { ($redis->command('XLEN', 'stream:cyrillic:dead') // 0) == 1 } 'a letter of a WIN1251 database is copied';
my %utf8 = @{ $redis->command('XRANGE', 'stream:cyrillic:dead', '-', '+')->[0][1] };
is($utf8{data}, qq({"n": "\xd0\x96"}), '... its event in UTF-8');
like($utf8{message}, qr/"\xd0\x96"/, '... and its message');

# --- A copy that cannot be made is said once and holds nobody up.
$redis->command('DEL', 'stream:anything:dead');
$redis->command('SET', 'stream:anything:dead', 'no stream');
$redis->xadd('stream:anything', data => '[]') for 1 .. 3;
$redis->xadd('stream:anything', id => 'after');
wait_sql($node, 'postgres', q(SELECT count(*) FROM anything WHERE id = 'after'), 1, 'the pipeline goes on without copies');
letters('anything', 3);
wait_sql($node, 'postgres', q(SELECT state, pending FROM postpipe_stats WHERE pipeline = 'anything'), 'idle|0', '... and is well');
is(scalar log_lines($node, qr/could not copy a dead letter to stream "stream:anything:dead"/), 1, '... which is said once');
$redis->command('DEL', 'stream:anything:dead');
$redis->xadd('stream:anything', data => '[]');
wait_for { $redis->command('XLEN', 'stream:anything:dead') == 1 } 'then it can be made';
$redis->pipeline([ 'DEL', 'stream:anything:dead' ], [ 'SET', 'stream:anything:dead', 'no stream' ]);
$redis->xadd('stream:anything', data => '[]');
wait_for { log_lines($node, qr/could not copy a dead letter to stream "stream:anything:dead"/) == 2 } '... and what goes wrong after that is said again';

# --- Retention: old ones go, in steps, and stay counted; a worker that starts looks at once.
sql(q(SELECT postpipe_create_pipeline('old', 'stream:old', target => 'item', owner => 'app', options => '{"dead_letter_retention": "1 day", "error_threshold": 1}')));
wait_state('old');
$redis->pipeline(map { [ 'XADD', 'stream:old', '*', 'data', '[]' ] } 1 .. 2200);
letters('old', 2200);
sql(q(UPDATE postpipe_dead_letter SET last_failed_at = now() - interval '2 days' WHERE pipeline = 'old' AND id > (SELECT min(id) FROM postpipe_dead_letter WHERE pipeline = 'old')));
sql(q(SELECT postpipe_pause('old')));
wait_state('old', 'paused');
sql(q(SELECT postpipe_resume('old')));
letters('old', 1);

# --- What a subtransaction replayed is not counted when it is rolled back, and is when it is not.
sql(<<'SQL');
CREATE TABLE sub (v text, CONSTRAINT v CHECK (v NOT LIKE 'bad%'));
SELECT postpipe_create_pipeline('sub', 'stream:sub', target => 'sub');
SQL
wait_state('sub');
my @sub = map { $redis->xadd('stream:sub', v => "bad $_") } 1 .. 4;
letters('sub', 4);
sql('ALTER TABLE sub DROP CONSTRAINT v');
my $counted = q(SELECT entries_applied FROM postpipe_stats WHERE pipeline = 'sub');
sql(qq(BEGIN; SAVEPOINT s; SELECT postpipe_replay('sub', ids => '{$sub[0]}'); ROLLBACK TO s; COMMIT));
is(sql($counted), 0, 'ROLLBACK TO SAVEPOINT: a replay counts nothing');
sql(qq(BEGIN; SAVEPOINT s; SELECT postpipe_replay('sub', ids => '{$sub[0]}'); RELEASE s; COMMIT));
is(sql($counted), 1, 'RELEASE SAVEPOINT: it counts');

# --- By time. The letters are told apart by when they failed.
sql(q(UPDATE postpipe_dead_letter SET first_failed_at = now() - interval '1 hour' WHERE pipeline = 'sub' AND id = ) . "'$sub[1]'");
is(sql(q(SELECT * FROM postpipe_replay('sub', since => now() - interval '2 hours', until => now() - interval '1 minute'))), '1|1|0', 'since and until: what failed an hour ago');
is(sql(q(SELECT * FROM postpipe_replay('sub', since => now() - interval '1 minute', max_entries => 1))), '1|1|0', 'since: one of those that failed now');
is(sql(q(SELECT * FROM postpipe_replay('sub', until => now()))), '1|1|0', 'until: the other one');
is(sql('SELECT string_agg(v, $$ $$ ORDER BY v) FROM sub'), 'bad 1 bad 2 bad 3 bad 4', '... each once');

# --- What the caller has deferred is his: a replay does not check it, nor fire it as somebody else.
sql(<<'SQL');
CREATE TABLE parent (id int PRIMARY KEY);
CREATE TABLE child (id int REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
SQL
like(error(q(BEGIN; INSERT INTO child VALUES (1); SELECT postpipe_replay('sub'); INSERT INTO parent VALUES (1); COMMIT)),
	qr/postpipe_replay\(\) cannot run while this transaction has deferred constraints.*SET CONSTRAINTS ALL IMMEDIATE/s, 'with deferred constraints to check: refused');
is(error(q(BEGIN; SELECT postpipe_replay('sub'); INSERT INTO parent VALUES (1); INSERT INTO child VALUES (1); SET CONSTRAINTS ALL IMMEDIATE; SELECT postpipe_replay('sub'); COMMIT)), '', '... before and after they were checked: not');

# --- Replays by hand are none of the retries; nor do both apply a letter.
sql(<<'SQL');
CREATE TABLE hand (v text, CONSTRAINT v CHECK (v NOT LIKE 'bad%'));
SELECT postpipe_create_pipeline('hand', 'stream:hand', statement => 'INSERT INTO hand SELECT event ->> $$v$$ FROM postpipe_batch', options => '{"max_retries": 2, "retry_delay": "1s"}');
SQL
wait_state('hand');
$redis->xadd('stream:hand', v => 'bad');
letters('hand', 1);
sql(q(SELECT postpipe_replay('hand'))) for 1 .. 3;
wait_sql($node, 'postgres', q(SELECT state, attempts FROM postpipe_dlq WHERE pipeline = 'hand'), 'dead|3', 'three replays by hand take none of two retries');
sql(q(SELECT postpipe_alter_pipeline('hand', options => '{"max_retries": 100}')));
$redis->xadd('stream:hand', v => 'bad too');
letters('hand', 2);
{
	my $session = pp_session($node);
	# Locked before it can be applied, so that the worker is not the first to do so.
	$session->(q(BEGIN; SELECT count(*) FROM (SELECT FROM postpipe_dead_letter WHERE pipeline = 'hand' AND state = 'retrying' FOR UPDATE) l;));
	sql(q(ALTER TABLE hand DROP CONSTRAINT v));
	$session->(q(SELECT applied FROM postpipe_replay('hand', ids => (SELECT array_agg(id) FROM postpipe_dlq WHERE pipeline = 'hand' AND state = 'retrying'));));
	# The worker finds it due, and locked; it looks again each second.
	wait_sql($node, 'postgres', q(SELECT count(*) FROM postpipe_dlq WHERE pipeline = 'hand' AND next_retry_at < now() - interval '1.5 seconds'), 1, 'a letter that is being replayed is due');
	is(sql('SELECT count(*) FROM hand'), 0, '... and left alone');
	$session->('COMMIT;');
}
letters('hand', 1);
is(sql('SELECT string_agg(v, $$ $$) FROM hand'), 'bad too', '... and applied once');

# --- As many as are tried again together are in a replay that takes its time: others that are due do not wait for it.
sql(q(SELECT postpipe_create_pipeline('held', 'stream:held', target => 'late', options => '{"max_retries": 5, "retry_delay": "1h", "error_threshold": 1}')));
wait_state('held');
sql(q(ALTER TABLE late ADD CONSTRAINT v CHECK (v <> 'held')));
$redis->pipeline(map { [ 'XADD', 'stream:held', '*', id => $_, v => 'held' ] } 1001 .. 1101);
letters('held', 101);
sql(q(SELECT postpipe_pause('held')));
wait_state('held', 'paused');
sql(q(ALTER TABLE late DROP CONSTRAINT v; UPDATE postpipe_dead_letter SET next_retry_at = added_at WHERE pipeline = 'held'));
{
	my $session = pp_session($node);
	is($session->(q(BEGIN; SELECT applied FROM postpipe_replay('held', max_entries => 100);)), "100\n", 'a replay of a hundred letters');
	sql(q(SELECT postpipe_resume('held')));
	wait_sql($node, 'postgres', q(SELECT string_agg(id::text, ' ') FROM late WHERE v = 'held'), '1101', '... does not hold up another one that is due', 30);
	wait_state('held');
	$session->('COMMIT;');
}
is(sql(q(SELECT count(*) FROM late WHERE v = 'held')), 101, '... and all are applied');
letters('held', 0);
sql(q(DELETE FROM late WHERE v = 'held'));

# --- A letter that changes while a discard waits for it is discarded all the same.
{
	my $session = pp_session($node);
	$session->(q(BEGIN; UPDATE postpipe_dead_letter SET last_failed_at = now() WHERE pipeline = 'hand';));
	my $discard = pp_start($node, q(SELECT postpipe_discard('hand')));
	wait_sql($node, 'postgres', q(SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%postpipe_discard%' AND wait_event_type = 'Lock'), 1, 'a discard waits');
	$session->('COMMIT;');
	is($discard->(), 1, '... for a letter that was changed, and discards it');
}

# --- Two sessions with the same letters at once: the second one waits, and then has what the first one has left.
sql(<<'SQL');
CREATE TABLE twice (v text, CONSTRAINT v CHECK (v NOT LIKE 'bad%'));
SELECT postpipe_create_pipeline('twice', 'stream:twice', statement => 'INSERT INTO twice SELECT event ->> $$v$$ FROM postpipe_batch');
SQL
wait_state('twice');
my %function = (replay => 'matched, applied, failed FROM postpipe_replay', discard => '* FROM postpipe_discard');
my @cases = ([ 'replay', 'COMMIT', 'replay', '1|1|0', 2 ], [ 'replay', 'ROLLBACK', 'replay', '2|2|0', 2 ], [ 'replay', 'COMMIT', 'discard', 1, 1 ], [ 'replay', 'ROLLBACK', 'discard', 2, 0 ],
	[ 'discard', 'COMMIT', 'replay', '1|1|0', 1 ], [ 'discard', 'ROLLBACK', 'replay', '2|2|0', 2 ], [ 'discard', 'COMMIT', 'discard', 1, 0 ]);
my @twice = map { $redis->xadd('stream:twice', v => "bad $_") } 0 .. 2 * @cases - 1;
letters('twice', scalar @twice);
sql('ALTER TABLE twice DROP CONSTRAINT v');
my $rows = 0;
for my $i (0 .. $#cases)
{
	my ($first, $end, $second, $result, $passed) = @{ $cases[$i] };
	my @both = @twice[ 2 * $i, 2 * $i + 1 ];
	my $session = pp_session($node);
	like($session->("BEGIN; SELECT $function{$first}('twice', ids => '{$both[0]}')"), qr/^1\b/, "$first of a letter");
	my $other = pp_start($node, "SELECT $function{$second}('twice', ids => '{@{[join ',', @both]}}')");
	wait_sql($node, 'postgres', q(SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%''twice''%' AND wait_event_type = 'Lock'), 1, "... a $second of it and another one waits");
	$session->($end);
	$session->(undef);
	is($other->(), $result, "... and has what is left after $end");
	$rows += $passed;
	is(sql('SELECT count(*), count(DISTINCT v) FROM twice'), "$rows|$rows", '... and none is applied twice');
	is(sql("SELECT count(*) FROM postpipe_dlq WHERE id = ANY ('{@{[join ',', @both]}}')"), 0, '... and none is left');
}
wait_sql($node, 'postgres', q(SELECT applied, dead, discarded, balance FROM postpipe_audit WHERE pipeline = 'twice'), "$rows|0|@{[@twice - $rows]}|0", 'each is counted once');

# The same beside the worker, which has a letter in hand that it tries again.
sql(<<'SQL');
CREATE TABLE door (closed bool);
INSERT INTO door VALUES (true);
CREATE FUNCTION pass_door() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF (SELECT closed FROM public.door) THEN RAISE 'closed'; END IF;
	PERFORM pg_advisory_xact_lock(42);
	RETURN NEW;
END $$;
CREATE TRIGGER pass_door BEFORE INSERT ON twice FOR EACH ROW EXECUTE FUNCTION pass_door();
SELECT postpipe_alter_pipeline('twice', options => '{"max_retries": 1000, "retry_delay": "10ms"}');
SQL
wait_state('twice');
for my $function (qw(replay discard))
{
	my $session = pp_session($node);
	$session->('SELECT pg_advisory_lock(42)');
	sql('UPDATE door SET closed = true');
	$redis->xadd('stream:twice', v => $function);
	letters('twice', 1);
	sql('UPDATE door SET closed = false');
	my $waits = q(SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND);
	wait_sql($node, 'postgres', "$waits application_name LIKE '%twice/1'", 1, 'the worker tries a letter again');
	my $other = pp_start($node, "SELECT $function{$function}('twice')");
	wait_sql($node, 'postgres', "$waits query LIKE '%''twice''%'", 1, "... a $function waits for it");
	$session->('SELECT pg_advisory_unlock(42)');
	$session->(undef);
	is($other->(), $function eq 'replay' ? '0|0|0' : '0', '... and has nothing to do then');
	is(sql("SELECT count(*) FROM twice WHERE v = '$function'"), 1, '... as it is applied, once');
}
sql(q(SELECT postpipe_drop_pipeline('twice')));

# --- Two letters under one ID, of different entries: the later one stays, the other one counts as discarded.
$redis->xadd('stream:hand', data => '[1]');
letters('hand', 1);
sql(q(UPDATE postpipe_dead_letter SET fields = '{data,old}' WHERE pipeline = 'hand'; DELETE FROM postpipe_ledger WHERE pipeline = 'hand' AND dead = 1 AND last_id = (SELECT max(last_id) FROM postpipe_ledger WHERE pipeline = 'hand');
	UPDATE postpipe_epoch SET dead = dead + 1 WHERE pipeline = 'hand'));
$redis->command('XGROUP', 'SETID', 'stream:hand', 'postpipe_hand', '0');
$redis->xadd('stream:hand', v => 'after');
wait_sql($node, 'postgres', q(SELECT count(*) FROM hand WHERE v = 'after'), 1, 'read again');
is(sql(q(SELECT convert_from(fields[2], 'UTF8') FROM postpipe_dlq WHERE pipeline = 'hand')), '[1]', 'a letter of another entry under the same ID is replaced');
is(sql(q(SELECT dead, discarded FROM postpipe_audit WHERE pipeline = 'hand')), '1|2', '... and counts as discarded');
sql(qq(SELECT postpipe_drop_pipeline('$_', discard_dead => true))) for qw(sub hand);

# --- A rewind: letters whose entries are read again are discarded, those whose entries are gone or others by now stay.
sql(<<'SQL');
CREATE TABLE again (v text, CONSTRAINT v CHECK (v NOT LIKE 'bad%'));
SELECT postpipe_create_pipeline('again', 'stream:again', statement => 'INSERT INTO again SELECT event ->> $$v$$ FROM postpipe_batch');
SQL
wait_state('again');
# Large ones, of which no memory is left in the process by chance.
my @again = map { $redis->xadd('stream:again', v => $_, large => 'x' x 1_000_000) } 'bad before', 'a', 'bad 1', 'bad gone', 'b', 'bad other';
letters('again', 4);
sql(q(ALTER TABLE again DROP CONSTRAINT v; SELECT postpipe_pause('again')));
wait_state('again', 'paused');
# The stream is made anew, up to the same ID, with another entry at its end.
my @kept = map { [ 'XADD', 'stream:again', $_->[0], @{ $_->[1] } ] } @{ $redis->command('XRANGE', 'stream:again', '-', $again[4]) };
$redis->transaction([ 'DEL', 'stream:again' ], @kept, [ 'XDEL', 'stream:again', $again[3] ], [ 'XADD', 'stream:again', $again[5], 'v', 'c' ],
	[ 'XGROUP', 'CREATE', 'stream:again', 'postpipe_again', $again[5] ]);
is(sql("SELECT postpipe_rewind('again', to_id => '$again[0]')"), 4, 'a rewind');
is(sql(q(SELECT string_agg(event->>'v', ', ' ORDER BY id) FROM postpipe_dlq WHERE pipeline = 'again')), 'bad before, bad gone, bad other', '... discards the letter of what is read again');
is(scalar log_lines($node, qr/pipeline "again": 1 dead letters were discarded, because a rewind reads their entries again/), 1, '... and says so');
sql(q(SELECT postpipe_resume('again')));
wait_sql($node, 'postgres', 'SELECT string_agg(v, $$, $$ ORDER BY v) FROM again', 'a, a, b, b, bad 1, c', '... which is applied once');
is(sql(q(SELECT * FROM postpipe_replay('again'))), '3|3|0', 'a replay then');
is(sql('SELECT string_agg(v, $$, $$ ORDER BY v) FROM again'), 'a, a, b, b, bad 1, bad before, bad gone, bad other, c', '... applies the others, and nothing twice');
is(sql(q(SELECT string_agg(concat_ws(' ', applied, dead, discarded), ', ' ORDER BY epoch) FROM postpipe_audit WHERE pipeline = 'again')), '5 0 1, 0 0 0, 4 0 0', 'each is counted, in the epoch of its letter');
sql(q(SELECT postpipe_drop_pipeline('again')));

# --- The same by the setting, with a reload; the option wins.
sql(q(SELECT postpipe_create_pipeline('set', 'stream:set', target => 'item', owner => 'app', options => '{"error_threshold": 1}');
	SELECT postpipe_create_pipeline('unset', 'stream:unset', target => 'item', owner => 'app', options => '{"error_threshold": 1, "dead_letter_retention": "10 days"}')));
$redis->xadd("stream:$_", data => '[]') for qw(set unset);
letters($_, 1) for qw(set unset);
sql(q(UPDATE postpipe_dead_letter SET last_failed_at = now() - interval '2 days' WHERE pipeline IN ('set', 'unset')));
$node->append_conf('postgresql.conf', "postpipe.dead_letter_retention = '1d'");
$node->reload;
letters('set', 0);
letters('unset', 1);
is(sql(q(SELECT discarded FROM postpipe_audit WHERE pipeline = 'set')), 1, 'discarded by the setting');

# --- Every entry is somewhere.
my %sums = (item => '7|0|1|2', late => '4|0|0|0', held => '101|0|0|0', many => 2501 - $failed . "|0|$failed|0", anything => '2|0|5|4', old => '0|0|1|2199');
wait_sql($node, 'postgres', "SELECT applied, retrying, dead, discarded, balance FROM postpipe_audit WHERE pipeline = '$_'", "$sums{$_}|0", "$_: the audit balances", 30) for sort keys %sums;
is(scalar log_lines($node, qr/was terminated by signal|PANIC/), 0, 'nothing has crashed');
pp_balanced($node);
$node->stop;
done_testing();
