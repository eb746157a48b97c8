# A posts table as production has it, made by its application before the extension comes: used as it is, never changed.
# TAP, because it needs a Redis stream, background workers, and roles, constraints and triggers that meet in one transaction.

use strict;
use warnings;
use JSON::PP ();
use Postpipe::Test;

my $json = JSON::PP->new->utf8->canonical;
my $stream = 'stream:posts:parsed';
my $channel_1 = '6f1a0c7e-1111-4c1c-9d53-000000000001';
my $channel_2 = '6f1a0c7e-1111-4c1c-9d53-00000000000a';
my $missing = '6f1a0c7e-1111-4c1c-9d53-0000000000ff';

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('production', redis => $redis, conf => 'postpipe.max_retries = 0');
$node->safe_psql('postgres', <<"SQL");
-- Expressions of the table are written out and read again: neither must depend on how a database shows its dates, bytes and numbers.
ALTER DATABASE postgres SET DateStyle = 'SQL, DMY';
ALTER DATABASE postgres SET IntervalStyle = 'sql_standard';
ALTER DATABASE postgres SET bytea_output = 'escape';
ALTER ROLE CURRENT_USER SET extra_float_digits = -10;

CREATE ROLE app_owner;
GRANT CREATE ON SCHEMA public TO app_owner;
SET ROLE app_owner;
CREATE TABLE channels (id uuid PRIMARY KEY, title text);
INSERT INTO channels VALUES ('$channel_1', 'one'), ('$channel_2', 'two');
CREATE TYPE mood AS ENUM ('good', 'bad');
CREATE DOMAIN language AS varchar(2) CHECK (VALUE ~ '^[a-z]*\$');
CREATE TABLE posts (
	id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
	channel_id uuid NOT NULL REFERENCES channels (id),
	telegram_message_id bigint NOT NULL,
	content text,
	media_urls jsonb NOT NULL DEFAULT '[]',
	posted_at timestamptz,
	created_at timestamptz NOT NULL DEFAULT now(),
	url text,
	telegram_post_url text,
	has_media boolean NOT NULL DEFAULT false,
	is_edited boolean NOT NULL DEFAULT false,
	views_count int DEFAULT 0,
	forwards_count int DEFAULT 0,
	reactions_count int DEFAULT 0,
	replies_count int,
	is_processed boolean NOT NULL DEFAULT false,
	processed_by text DEFAULT current_user,
	dropped int,
	tags text[],
	weights numeric(6,2)[],
	content_hash text,
	author_name varchar(20),
	mood mood,
	language language DEFAULT 'ru',
	edited_at timestamptz,
	legacy_since date DEFAULT '2020-03-04',
	"Mixed ""Case""" text,
	"order" int DEFAULT 7,
	seq bigint GENERATED ALWAYS AS IDENTITY,
	content_length int GENERATED ALWAYS AS (length(content)) STORED,
	search tsvector GENERATED ALWAYS AS (to_tsvector('simple', coalesce(content, ''))) STORED,
	UNIQUE (channel_id, telegram_message_id)
);
ALTER TABLE posts DROP COLUMN dropped;
CREATE TABLE audit (post uuid, operation text, who text, session text, path text, timezone text);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
	'BEGIN INSERT INTO audit VALUES (NEW.id, TG_OP, current_user, session_user, current_setting(''search_path''), current_setting(''TimeZone'')); RETURN NULL; END';
CREATE TRIGGER note AFTER INSERT OR UPDATE ON posts FOR EACH ROW EXECUTE FUNCTION note();
-- The application has a row already.
INSERT INTO posts (id, channel_id, telegram_message_id, content, has_media, is_processed, tags, views_count)
	VALUES ('00000000-0000-4000-8000-000000000001', '$channel_1', 1, 'from the application', true, true, '{own}', NULL);
TRUNCATE audit;
SQL
my $shape = columns('posts');
$node->safe_psql('postgres', 'CREATE EXTENSION postpipe');

# --- One event with every column, in each format: the same row but for its key.
my %full = (
	channel_id => $channel_1, text => 'Hello brave world', urls => [ 'https://e.com/1' ], posted_at => '2025-10-29T20:26:25', occurred_at => '2025-10-29T20:26:26+03:00',
	url => 'https://e.com', telegram_post_url => 'https://t.me/1', has_media => JSON::PP::true, is_edited => JSON::PP::false, views_count => 5, forwards_count => 6, reactions_count => 7,
	replies_count => 8, tags => [ 'a', 'b "c"', 'd,e' ], weights => [ '1.5', '2.25' ], content_hash => 'abc', author_name => 'twenty characters ok', mood => 'good', language => 'en',
	edited_at => '2025-11-02T01:00:00Z', legacy_since => '2021-05-06', 'Mixed "Case"' => 'Quoted', order => 3, schema_version => 'v1', trace_id => 'unknown', seq => 99, content_length => 1, search => 'x');
$redis->xadd($stream, as_flat(%full, telegram_message_id => 10, post_id => '00000000-0000-4000-8000-000000000010'));
$redis->xadd($stream, data => $json->encode({ %full, telegram_message_id => 11, post_id => '00000000-0000-4000-8000-000000000011' }));
my %post = (%full, id => '00000000-0000-4000-8000-000000000012', content => $full{text}, media_urls => $full{urls}, telegram_message_id => 12);
delete @post{qw(text urls occurred_at)};
$redis->xadd($stream, event_type => 'post.created', timestamp => $full{occurred_at}, source => 'sync', dedup_key => '0', data => $json->encode(\%post));
settle();
my $rest = q(to_jsonb(p) - '{id,telegram_message_id,seq,search,is_processed,processed_by}'::text[]);
is(sql("SELECT count(*), count(DISTINCT $rest), count(DISTINCT id) FROM posts p WHERE telegram_message_id BETWEEN 10 AND 12"), '3|1|3', 'all formats end in the same row');
my $row = $json->decode(sql("SET timezone = 'UTC'; SELECT $rest FROM posts p WHERE telegram_message_id = 11"));
my %expect = (
	%full, content => $full{text}, media_urls => $full{urls}, posted_at => '2025-10-29T20:26:25+00:00', created_at => '2025-10-29T17:26:26+00:00', edited_at => '2025-11-02T01:00:00+00:00',
	content_length => 17, weights => [ '1.50', '2.25' ]);
delete @expect{qw(text urls occurred_at schema_version trace_id seq search)};
is($json->encode(stringify($row)), $json->encode(stringify(\%expect)), 'every column that the event names is filled, generated ones by the server');
is(sql('SELECT id FROM posts WHERE telegram_message_id = 12'), '00000000-0000-4000-8000-000000000012', 'the id is the event\'s');
is(sql(q(SELECT search @@ to_tsquery('simple', 'brave') FROM posts WHERE telegram_message_id = 10)), 't', 'the search column is filled');

# --- Absent fields: the column's default.
$redis->xadd($stream, as_flat(channel_id => $channel_2, telegram_message_id => 20, text => 'short'));
$redis->xadd($stream, as_flat(channel_id => $channel_2, telegram_message_id => 21, (map { $_ => '' } grep { !/channel_id|^seq|^search|content_length/ } keys %full), post_id => ''));
$redis->xadd($stream, data => $json->encode({ channel_id => $channel_2, telegram_message_id => 22, map { $_ => undef } grep { !/channel_id/ } keys %full }));
settle();
for my $message (20 .. 22)
{
	is(sql("SELECT id IS NOT NULL, media_urls, created_at > now() - interval '5 min', has_media, is_edited, views_count, forwards_count, reactions_count, is_processed, processed_by, language, legacy_since IS NOT NULL, \"order\", num_nulls(posted_at, url, replies_count, tags, weights, content_hash, author_name, mood, edited_at, \"Mixed \"\"Case\"\"\"), seq > 0
		FROM posts WHERE telegram_message_id = $message"), 't|[]|t|f|f|0|0|0|f|app_owner|ru|t|7|10|t', "message $message: absent fields have the column's default");
}

# --- Absent fields on update: what the row has. The first row is the application's, with has_media, is_processed and tags.
my $had = sql('SELECT id, created_at, seq FROM posts WHERE telegram_message_id = 1');
$redis->xadd($stream, as_flat(channel_id => $channel_1, telegram_message_id => 1, text => 'newer', views_count => 3, post_id => '00000000-0000-4000-8000-0000000000aa', occurred_at => '2020-01-01T00:00:00Z'));
settle();
is(sql('SELECT content, content_length, has_media, is_processed, tags, views_count, media_urls FROM posts WHERE telegram_message_id = 1'), 'newer|5|t|t|{own}|3|[]', 'an update leaves what it does not mention');
is(sql('SELECT id, created_at, seq FROM posts WHERE telegram_message_id = 1'), $had, '... and id and time of creation as they were');
my @steps = (
	[ { has_media => 'false' }, 'f|t|3' ], [ { views_count => '2', is_processed => '' }, 'f|t|3' ], [ { has_media => 'True', views_count => '9' }, 't|t|9' ], [ { has_media => '' }, 't|t|9' ]);
for my $step (@steps)
{
	$redis->xadd($stream, channel_id => $channel_1, telegram_message_id => 1, %{ $step->[0] });
	settle();
	is(sql('SELECT has_media, is_processed, views_count FROM posts WHERE telegram_message_id = 1'), $step->[1], 'has_media, is_processed, views after ' . $json->encode($step->[0]));
}

# The same in one batch, and in one batch with rows that say the opposite.
sql(q(SELECT postpipe_pause('posts')));
is(sql(q(SELECT postpipe_wait_state('posts', 'paused'))), 't', 'paused');
my $batches = sql('SELECT batches FROM postpipe_stats');
$redis->xadd($stream, channel_id => $channel_1, telegram_message_id => 30, text => 'a', has_media => 'true', media_urls => '["x"]', legacy_since => '2022-07-08');
$redis->xadd($stream, channel_id => $channel_1, telegram_message_id => 31, text => 'b');
$redis->xadd($stream, channel_id => uc $channel_2, telegram_message_id => 32, text => 'c', has_media => 'true', views_count => 4);
$redis->xadd($stream, channel_id => $channel_1, telegram_message_id => 30, text => 'd');
$redis->xadd($stream, channel_id => $channel_1, telegram_message_id => 31, text => 'e', has_media => 'true');
$redis->xadd($stream, channel_id => $channel_2, telegram_message_id => 32, text => 'f', views_count => 1);
$redis->xadd($stream, channel_id => $channel_1, telegram_message_id => 31, text => 'g', has_media => 'false');
sql(q(SELECT postpipe_resume('posts')));
settle();
is(sql('SELECT batches FROM postpipe_stats') - $batches, 1, 'one batch');
is(sql(q(SELECT string_agg(concat_ws(' ', content, has_media, media_urls, views_count, legacy_since = '2022-07-08'), ', ' ORDER BY telegram_message_id) FROM posts WHERE telegram_message_id IN (30, 31, 32))),
	'd t ["x"] 0 t, g f [] 0 f, f t [] 4 f', 'one key many times in a batch, also when its channel is written in another way');

# --- Who did it.
like(sql('SELECT DISTINCT who, path, timezone FROM audit'), qr/^app_owner\|public(, public)?\|UTC$/, 'trigger and statement run as the owner of the table, with a fixed path and zone');
is(sql('SELECT count(*) >= 15 FROM audit'), 't', '... each time');
is(sql('SELECT DISTINCT owner FROM postpipe_workers WHERE backend_type LIKE \'%worker\''), 'app_owner', '... and postpipe_workers says so');

# --- Entries that the table refuses are dead letters, each with the name of what refused it; all others are rows.
sql(q(SELECT postpipe_pause('posts')));
sql(q(SELECT postpipe_wait_state('posts', 'paused')));
my $dead_before = sql('SELECT entries_dead FROM postpipe_stats');
is($dead_before, '0', 'nothing was dead until now');
my @bad = (
	[ { channel_id => $missing }, '23503|posts_channel_id_fkey|posts|' ],
	[ { author_name => 'x' x 21 }, '22001|||' ],
	[ { channel_id => 'no-uuid' }, '22P02|||' ],
	[ { post_id => 'no-uuid' }, '22P02|||' ],
	[ { post_id => '00000000-0000-4000-8000-000000000010' }, '23505|posts_pkey|posts|' ],
	[ { views_count => '3000000000' }, '22003|||' ],
	[ { mood => 'worse' }, '22P02|||' ],
	[ { language => 'R1' }, '23514|language_check||' ],
	[ { language => 'russian' }, '22001|||' ],
	[ { channel_id => '' }, '23502||posts|channel_id' ],
	[ { tags => '["a", ' }, '22P02|||' ],
	[ { weights => '["1.5", "many"]' }, '22P02|||' ]);
my @ids;
for my $i (0 .. 59)
{
	my $bad = $i % 5 == 2 ? $bad[ $i / 5 ] : undef;
	my $id = $redis->xadd($stream, channel_id => $channel_2, telegram_message_id => 100 + $i, text => 'row', $bad ? %{ $bad->[0] } : ());
	push @ids, $id if $bad;
}
$batches = sql('SELECT batches FROM postpipe_stats');
sql(q(SELECT postpipe_resume('posts')));
settle();
is(sql('SELECT batches FROM postpipe_stats') - $batches, 1, 'one batch');
is(sql('SELECT count(*) FROM posts WHERE telegram_message_id >= 100'), 60 - @bad, 'all others are rows');
is(sql('SELECT count(*) FROM postpipe_dlq'), scalar @bad, 'as many dead letters as bad entries');
for my $i (0 .. $#bad)
{
	is(sql("SELECT sqlstate, constraint_name, table_name, column_name FROM postpipe_dlq WHERE id = '$ids[$i]'"), $bad[$i][1], 'dead: ' . $json->encode($bad[$i][0]));
}
is(sql("SELECT event ->> 'channel_id' FROM postpipe_dlq WHERE id = '$ids[0]'"), $missing, 'a dead letter has the event');
is(columns('posts'), $shape, 'the table has not been changed');

# --- Other shapes, each a table and a pipeline of its own: one entry, and one that updates it.
my @shapes = (
	[ 'deferred', 'id int PRIMARY KEY, channel_id uuid REFERENCES channels (id) DEFERRABLE INITIALLY DEFERRED, note text', [ { id => 1, channel_id => $channel_1 }, { id => 2, channel_id => $missing }, { id => 3, channel_id => $channel_2 } ],
		"1|$channel_1|\n3|$channel_2|", '23503 deferred_channel_id_fkey' ],
	[ 'identity_always', 'id int PRIMARY KEY, n int GENERATED ALWAYS AS IDENTITY, note text', [ { id => 1 }, { id => 1, note => 'x', n => 5 } ], '1|1|x', '' ],
	[ 'identity_default', 'id int PRIMARY KEY, n int GENERATED BY DEFAULT AS IDENTITY (START 100), note text', [ { id => 1 }, { id => 2, n => 7 }, { id => 1, note => 'x' } ], "1|100|x\n2|7|", '' ],
	[ 'serial', 'id int PRIMARY KEY, n serial, note text', [ { id => 1, n => 7 }, { id => 1, note => 'x' } ], '1|7|x', '' ],
	[ 'domain_default', 'id int PRIMARY KEY, flag flag, note text', [ { id => 1 }, { id => 2, flag => 'true' }, { id => 2, note => 'x' } ], "1|f|\n2|t|x", '' ],
	[ 'date_default', q(id int PRIMARY KEY, since date DEFAULT '2020-03-04', pause interval DEFAULT '-1 day -02:03:04'), [ { id => 1 } ], q(1|04/03/2020|-1 2:03:04), '' ],
	[ 'bytes_default', q(id int PRIMARY KEY, raw bytea DEFAULT '\x00ff41', n float8 DEFAULT '0.30000000000000004'::float8), [ { id => 1 }, { id => 2, raw => '\x00ff5c' }, { id => 3, raw => '\\000A' } ],
		"1|00ff41|0.30000000000000004\n2|00ff5c|0.30000000000000004\n3|0041|0.30000000000000004", '' ],
	[ 'plain_time', 'id int PRIMARY KEY, at timestamp', [ { id => 1, at => '2025-10-29T20:26:25+03:00' }, { id => 2, at => '2025-10-29T20:26:25' } ], "1|2025-10-29 17:26:25\n2|2025-10-29 20:26:25", '' ],
	[ 'no_key', 'note text, n int DEFAULT 5', [ { note => 'a' }, { note => 'a', n => 6 } ], "a|5\na|6", '' ]);
sql(q(CREATE DOMAIN flag AS boolean DEFAULT false NOT NULL; GRANT USAGE ON TYPE flag TO app_owner));
for my $shape (@shapes)
{
	my ($name, $columns, $events) = @$shape;
	sql("SET ROLE app_owner; CREATE TABLE $name ($columns); RESET ROLE; SELECT postpipe_create_pipeline('$name', 'stream:$name', target => '$name')");
	$redis->xadd("stream:$name", %$_) for @$events;
}
for my $shape (@shapes)
{
	my ($name, undef, undef, $rows, $dead) = @$shape;
	settle($name);
	my ($show, $what) = ('', '*');
	$show = "SET datestyle = 'ISO';" if $name eq 'plain_time';
	($show, $what) = ('SET extra_float_digits = 1;', q(id, encode(raw, 'hex'), n)) if $name eq 'bytes_default';
	is(sql("$show SELECT $what FROM $name ORDER BY 1, 2"), $rows, "$name: rows");
	is(sql("SELECT concat_ws(' ', sqlstate, constraint_name) FROM postpipe_dlq WHERE pipeline = '$name'"), $dead, "$name: dead letters");
}

# --- What a statement of one's own makes into text does not depend on settings either.
sql(q(CREATE TABLE shown (raw text, n text, at text, pause text); SELECT postpipe_create_pipeline('shown', 'stream:shown', statement =>
	$$INSERT INTO shown SELECT (event->>'raw')::bytea, (event->>'n')::float8, (event->>'at')::timestamptz, (event->>'pause')::interval FROM postpipe_batch$$)));
$redis->xadd('stream:shown', raw => '\x00ff41', n => '0.30000000000000004', at => '2025-10-29T20:26:25+03:00', pause => '-1 day -02:03:04');
settle('shown');
is(sql('SELECT * FROM shown'), '\x00ff41|0.30000000000000004|2025-10-29 17:26:25+00|-1 days -02:03:04', 'text of bytes, numbers and times is that of the defaults');

$node->stop;
done_testing();

sub columns
{
	my ($table) = @_;
	return sql("SELECT string_agg(format('%s %s %s', attname, atttypid::regtype, attnotnull), ', ' ORDER BY attnum) FROM pg_attribute WHERE attrelid = '$table'::regclass AND attnum > 0");
}

sub as_flat
{
	my (%event) = @_;
	return map { $_ => JSON::PP::is_bool($event{$_}) ? ($event{$_} ? 'true' : 'false') : ref $event{$_} ? $json->encode($event{$_}) : $event{$_} } sort keys %event;
}

# Numbers of JSON and of Perl, as text.
sub stringify
{
	my ($value) = @_;
	return [ map { stringify($_) } @$value ] if ref $value eq 'ARRAY';
	return { map { $_ => stringify($value->{$_}) } keys %$value } if ref $value eq 'HASH';
	return JSON::PP::is_bool($value) || !defined $value ? $value : $value =~ /^\d+\.\d+$/ ? sprintf('%.2f', $value) : "$value";
}

# Every entry of the stream has been applied, filtered or found dead, and is acknowledged.
sub settle
{
	my ($name) = (@_, 'posts');
	my $from = $name eq 'posts' ? $stream : "stream:$name";
	my $n = $redis->command('XLEN', $from);
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_sql($node, 'postgres', "SELECT entries_applied + entries_filtered + entries_dead FROM postpipe_stats WHERE pipeline = '$name'", $n, "$name: all $n entries are settled");
	wait_for { pending($redis, $from, $name eq 'posts' ? 'post_persist_workers' : "postpipe_$name") == 0 } "$name: nothing is pending";
	return;
}
