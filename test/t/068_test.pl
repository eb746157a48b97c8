# postpipe_test(): real entries through the real statement, or another one, and nothing of it stays. TAP, because it needs a
# Redis, and a pipeline that runs beside it.

use strict;
use warnings;
use Postpipe::Test;

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('test', redis => $redis, conf => "postpipe.max_retries = 0");
sql('CREATE EXTENSION postpipe');
sql(q(SELECT postpipe_drop_pipeline('posts')));
sql(<<'SQL');
CREATE TABLE parent (id int PRIMARY KEY);
CREATE TABLE item (id int PRIMARY KEY, v text CHECK (v <> 'bad'), n numeric, at timestamptz DEFAULT '2026-01-01 UTC', parent int REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
SELECT postpipe_create_pipeline('item', 'stream:item', target => 'item', event_types => '{wanted}', enabled => false);
SQL

# --- A pipeline that never ran: the first entries, a verdict for each.
is(sql(q(SELECT count(*) FROM postpipe_test('item'))), 0, 'no stream: no rows');
my @ids = map { $redis->xadd('stream:item', @$_) } (
	[ id => 1, v => 'one', n => '1.50' ], [ id => 2, v => 'bad' ], [ id => 'x' ], [ data => '[1]' ],
	[ id => 3, v => 'other', event_type => 'unwanted' ], [ id => 4, parent => 9 ], [ id => 1, v => 'again' ]);
is(sql(q(SELECT id, ok, sqlstate, message, result FROM postpipe_test('item'))), join("\n",
		qq($ids[0]|t|||[{"n": 1.50, "v": "one", "at": "2026-01-01T00:00:00+00:00", "id": 1, "parent": null}]),
		qq($ids[1]|f|23514|new row for relation "item" violates check constraint "item_v_check"|),
		qq($ids[2]|f|22P02|invalid input syntax for type integer: "x"|),
		qq($ids[3]|f|22023|field "data" is not a JSON object|),
		qq($ids[4]|t||filtered: its type is not one of event_types|),
		qq($ids[5]|f|23503|insert or update on table "item" violates foreign key constraint "item_parent_fkey"|),
		qq($ids[6]|t|||[{"n": null, "v": "again", "at": "2026-01-01T00:00:00+00:00", "id": 1, "parent": null}])), 'a verdict for each');
like(sql(qq(SELECT detail FROM postpipe_test('item', 1, '$ids[1]'))), qr/^Failing row contains \(2, bad, /, '... with the detail');
nothing('of a pipeline that never ran');

# --- The same as what the pipeline then does; what is there is merged.
sql(q(SELECT postpipe_resume('item')));
wait_sql($node, 'postgres', q(SELECT applied, dead, filtered FROM postpipe_audit WHERE pipeline = 'item'), '2|4|1', 'the pipeline does the same');
is(sql(q(SELECT sqlstate, message FROM postpipe_dlq ORDER BY id)), sql(q(SELECT sqlstate, message FROM postpipe_test('item', from_id => '-') WHERE NOT ok)), '... with the same errors');
is(sql(qq(SELECT result FROM postpipe_test('item', 1, '$ids[0]'))), '[{"n": 1.50, "v": "one", "at": "2026-01-01T00:00:00+00:00", "id": 1, "parent": null}]', 'the row that would be written');
is(sql('SELECT v, n FROM item'), 'again|1.50', '... is not');

# --- Which entries: what is pending, else what is unread, else the newest.
is(tested('entries => 2'), "$ids[5] $ids[6]", 'all is settled: the newest');
sql(q(SELECT postpipe_pause('item')));
sql(q(SELECT postpipe_wait_state('item', 'paused')));
wait_for { $redis->cli('CLIENT', 'LIST') !~ /name=postpipe:\d+:\d+:item:1 / } 'nobody reads';
push(@ids, map { $redis->xadd('stream:item', id => $_) } 10 .. 12);
is(tested('entries => 2'), "$ids[7] $ids[8]", 'what is unread');
$redis->command('XREADGROUP', 'GROUP', 'postpipe_item', 'python', 'COUNT', 2, 'STREAMS', 'stream:item', '>');
$redis->command('XACK', 'stream:item', 'postpipe_item', $ids[7]);
is(tested('entries => 2'), "$ids[8] $ids[9]", 'what is pending');
is(tested("entries => 1, from_id => '($ids[0]'"), $ids[1], 'from where it is said');
my $pending = $redis->cli('XPENDING', 'stream:item', 'postpipe_item');

# --- Another statement, with and without rows that it returns; it runs as the owner, as the pipeline would run it.
sql('CREATE TABLE other (what text, who name); CREATE ROLE limited; GRANT INSERT, SELECT ON other TO limited; CREATE SEQUENCE seq');
is(try_statement(q(INSERT INTO other SELECT event ->> 'id', current_user FROM postpipe_batch RETURNING *, 1 AS one)), 't||[{"one": 1, "who": "postgres", "what": "1"}]', 'another statement');
is(try_statement(q(INSERT INTO other SELECT event ->> 'id' FROM postpipe_batch)), 't||', '... that returns nothing');
is(try_statement(q(WITH a AS (INSERT INTO other SELECT 'a' FROM postpipe_batch RETURNING what) SELECT what, id FROM a, postpipe_batch)), qq(t||[{"id": "$ids[0]", "what": "a"}]), '... of several parts');
is(try_statement(q(INSERT INTO item SELECT 1 / (length(event ->> 'id') - 1) FROM postpipe_batch)), 'f|22012|', '... that fails');
like(error(q(SELECT * FROM postpipe_test('item', statement => 'INSERT INTO nowhere SELECT FROM postpipe_batch'))), qr/relation "nowhere" does not exist/, '... that is none');
like(error(q(SELECT * FROM postpipe_test('item', statement => 'COMMIT'))), qr/cannot be COPY or a transaction command/, '... that commits');
sql(q(GRANT limited TO postgres; SELECT postpipe_create_pipeline('small', 'stream:item', statement => 'INSERT INTO other SELECT event ->> $$id$$, current_user FROM postpipe_batch RETURNING *', owner => 'limited', enabled => false)));
is(sql(q(SELECT result FROM postpipe_test('small', 1))), '[{"who": "limited", "what": "1"}]', 'as the owner');
like(error(q(SELECT * FROM postpipe_test('small', statement => 'INSERT INTO item SELECT 7 FROM postpipe_batch'))), qr/permission denied for table item/, '... who may do no more than else');
is(sql(q(SELECT current_user)), 'postgres', '... for as long as it takes');

# --- While the pipeline runs, in a transaction that goes on: neither waits for the other.
sql(q(SELECT postpipe_resume('item')));
my $session = pp_session($node);
$session->('BEGIN');
like($session->(q(SELECT count(*) FROM postpipe_test('item', 5, '-'))), qr/^5/, 'in an open transaction');
$redis->xadd('stream:item', id => 20, v => 'meanwhile');
wait_sql($node, 'postgres', 'SELECT v FROM item WHERE id = 20', 'meanwhile', '... the pipeline goes on');
like($session->('INSERT INTO item VALUES (50, $$mine$$); SELECT count(*) FROM item WHERE id = 50'), qr/^1/, '... and so does the transaction');
$session->('ROLLBACK');
$session->(undef);

# --- What cannot be.
like(error(q(BEGIN; INSERT INTO item (id, parent) VALUES (60, 9); SELECT * FROM postpipe_test('item'))), qr/postpipe_test\(\) cannot run while this transaction has deferred/, 'with constraints that are to be checked');
like(error(q(BEGIN READ ONLY; SELECT * FROM postpipe_test('item'))), qr/cannot execute postpipe_test\(\) in a read-only transaction/, 'read-only');
like(error(q(SELECT * FROM postpipe_test('item', 0))), qr/entries must be between 1 and 1000/, 'no entries');
like(error(q(SELECT * FROM postpipe_test('item', from_id => 'x'))), qr/invalid from_id "x"/, 'an ID that is none');
like(error(q(SELECT * FROM postpipe_test(NULL))), qr/pipeline must not be NULL/, 'no name');
like(error(q(SET statement_timeout = '200ms'; SELECT * FROM postpipe_test('item', 1, '-', 'INSERT INTO other SELECT pg_sleep(1000)::text FROM postpipe_batch'))), qr/canceling statement due to statement timeout/, 'a cancel is nobody\'s verdict');
sql('DROP TABLE item CASCADE');
like(sql(q(SELECT sqlstate, message FROM postpipe_test('item', 1, '-'))), qr/^42P01\|target table .*item of pipeline "item" does not exist$/, 'a target that is gone');
$redis->stop;
like(error(q(SELECT * FROM postpipe_test('item'))), qr/ERROR:  Redis: .*HINT/s, 'Redis is away');
$node->stop;
done_testing();

sub tested { my ($arguments) = @_; return sql("SELECT string_agg(id::text, ' ' ORDER BY id) FROM postpipe_test('item', $arguments)") }

sub try_statement
{
	my ($statement) = @_;
	my $verdict = sql("SELECT ok, sqlstate, result FROM postpipe_test('item', 1, '$ids[0]', \$\$$statement\$\$)");
	nothing('of another statement');
	return $verdict;
}

# Neither rows, nor letters, nor anything on record, nor in Redis.
sub nothing
{
	my ($what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $other = sql(q(SELECT to_regclass('other') IS NOT NULL)) eq 't' ? ', (SELECT count(*) FROM other)' : ', 0';
	my $settled = @ids > 7 ? '1|4|0|1' : '0|0|0|0';
	is(sql("SELECT (SELECT count(*) FROM item), (SELECT count(*) FROM postpipe_dlq)$other, (SELECT count(*) FROM postpipe_ledger)"), $settled, "nothing stays $what");
	is($redis->cli('XPENDING', 'stream:item', 'postpipe_item'), $pending, '... nor in Redis') if defined $pending;
	return;
}
