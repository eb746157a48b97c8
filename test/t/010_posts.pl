# Every rule of the events that producers write, for all three formats: each event ends in the same, right row.
# TAP, because it needs a Redis stream, background workers, and settings of server, role and database that are against it.

use strict;
use warnings;
use utf8;
use JSON::PP ();
use PostgreSQL::Test::Utils;
use Postpipe::Test;
use Postpipe::Test::Data;

my $json = JSON::PP->new->utf8->canonical->allow_nonref;
my ($true, $false, $null) = (JSON::PP::true, JSON::PP::false, undef);
my $stream = 'stream:posts:parsed';

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('posts', redis => $redis, databases => 'postgres, cyrillic', conf => <<'CONF');
postpipe.max_retries = 0
timezone = 'Europe/Moscow'
datestyle = 'SQL, DMY'
CONF
# The workers run as the bootstrap superuser in this database: both may have settings of their own.
$node->safe_psql('postgres', <<'SQL');
ALTER ROLE CURRENT_USER SET TimeZone = 'America/New_York';
ALTER DATABASE postgres SET DateStyle = 'German';
ALTER DATABASE postgres SET IntervalStyle = 'sql_standard';
SQL

# --- The group is made from the start of the stream: what was there before CREATE EXTENSION is read.
$redis->xadd($stream, post_id => 'early', channel_id => 'before', telegram_message_id => 1, text => 'early');
$node->safe_psql('postgres', 'CREATE EXTENSION postpipe');
wait_sql($node, 'postgres', q(SELECT id FROM posts WHERE channel_id = 'before'), 'early', 'an entry from before the group is read');
like($redis->cli('XINFO', 'GROUPS', $stream), qr/post_persist_workers/, 'the group of the pipeline is there');

# MKSTREAM: a pipeline whose stream does not exist yet makes group and stream.
make_pipeline('nothing', 'stream:nothing');
wait_for { $redis->command('EXISTS', 'stream:nothing') } 'the group is made although its stream was not there';
wait_sql($node, 'postgres', q(SELECT state FROM postpipe_stats WHERE pipeline = 'nothing'), 'idle', '... and it waits for entries');

# --- The rules. Each case has a key of its own, and events that follow each other; `expect` is what the row has then.
# An event is a hash of JSON values; undef is JSON null, and in a flat entry an absent field. A scalar instead is the event type.
my $text_2 = "Привет, мир 🚀\nlinks: https://example.com/1 «ёлки»\t\"quoted\" \\ back";
my @cases = (
	# Aliases: the first that is there wins, '' is not there.
	[ 'post_id before id', [ { post_id => 'a1', id => 'a2' } ], { id => 'a1' } ],
	[ 'id alone', [ { id => 'a3' } ], { id => 'a3' } ],
	[ "post_id '' gives way to id", [ { post_id => '', id => 'a4' } ], { id => 'a4' } ],
	[ 'post_id null gives way to id', [ { post_id => $null, id => 'a5' } ], { id => 'a5' } ],
	[ 'text before content', [ { text => 't', content => 'c' } ], { content => 't' } ],
	[ 'content alone', [ { content => 'c' } ], { content => 'c' } ],
	[ "text '' gives way to content", [ { text => '', content => 'c' } ], { content => 'c' } ],
	[ "text '' alone is NULL", [ { text => '' } ], { content => $null } ],
	[ 'media_urls before urls', [ { media_urls => ['m'], urls => ['u'] } ], { media_urls => ['m'] } ],
	[ 'urls alone', [ { urls => [ 'u', 'v' ] } ], { media_urls => [ 'u', 'v' ] } ],
	[ "media_urls '' gives way to urls", [ { media_urls => '', urls => ['u'] } ], { media_urls => ['u'] } ],
	[ 'an empty list is there', [ { media_urls => [], urls => ['u'] } ], { media_urls => [] } ],
	[ 'occurred_at first', [ { occurred_at => '2025-01-01T00:00:00Z', created_at => '2025-01-02T00:00:00Z', timestamp => '2025-01-03T00:00:00Z' } ],
		{ created_at => '2025-01-01T00:00:00+00:00' } ],
	[ 'created_at second', [ { created_at => '2025-01-02T00:00:00Z', timestamp => '2025-01-03T00:00:00Z' } ], { created_at => '2025-01-02T00:00:00+00:00' } ],
	[ 'timestamp third', [ { occurred_at => '', created_at => '', timestamp => '2025-01-03T00:00:00Z' } ], { created_at => '2025-01-03T00:00:00+00:00' } ],
	[ 'tg_message_id as key', [ { telegram_message_id => $null, tg_message_id => 'KEY' } ], {} ],
	[ "telegram_message_id '' gives way", [ { telegram_message_id => '', tg_message_id => 'KEY' } ], {} ],
	[ 'telegram_message_id before tg_message_id', [ { tg_message_id => 1 } ], {} ],
	[ 'both URLs have columns', [ { url => 'https://e.com/1', telegram_post_url => 'https://t.me/1' } ],
		{ url => 'https://e.com/1', telegram_post_url => 'https://t.me/1' } ],

	# Absent.
	[ 'nothing but the key', [ {} ],
		{ id => $null, content => $null, media_urls => $null, posted_at => $null, url => $null, telegram_post_url => $null,
			has_media => $null, is_edited => $null, views_count => 0, forwards_count => 0, reactions_count => 0 } ],
	[ "everything ''", [ { map { $_ => '' } qw(post_id text media_urls posted_at occurred_at url telegram_post_url has_media is_edited views_count forwards_count reactions_count) } ],
		{ id => $null, content => $null, media_urls => $null, posted_at => $null, url => $null, telegram_post_url => $null,
			has_media => $null, is_edited => $null, views_count => 0, forwards_count => 0, reactions_count => 0 } ],

	# Types.
	(map { [ "boolean $_", [ { has_media => $_, is_edited => $_ } ], { has_media => $true, is_edited => $true } ] } qw(true True TRUE 1 yes t on y)),
	(map { [ "boolean $_", [ { has_media => $_ } ], { has_media => $false } ] } qw(false False FALSE 0 no f off n)),
	[ 'JSON booleans', [ { has_media => $true, is_edited => $false } ], { has_media => $true, is_edited => $false } ],
	[ 'JSON numbers as booleans', [ { has_media => 1, is_edited => 0 } ], { has_media => $true, is_edited => $false } ],
	[ 'counts as numbers', [ { views_count => 9223372036854775807, forwards_count => 0, reactions_count => 17 } ],
		{ views_count => 9223372036854775807, forwards_count => 0, reactions_count => 17 } ],
	[ 'counts as text', [ { views_count => '12', forwards_count => '3', reactions_count => '5000000000' } ],
		{ views_count => 12, forwards_count => 3, reactions_count => 5000000000 } ],
	[ 'key as text', [ { telegram_message_id => 'TEXT KEY' } ], {} ],
	[ 'media_urls as JSON text', [ { media_urls => '["https://e.com/1", "https://e.com/2"]' } ], { media_urls => [ 'https://e.com/1', 'https://e.com/2' ] } ],
	[ 'urls as JSON text of an empty list', [ { urls => '[]' } ], { media_urls => [] } ],
	[ 'media_urls as a list of objects', [ { media_urls => [ { type => 'photo', url => 'ж' } ] } ], { media_urls => [ { type => 'photo', url => 'ж' } ] } ],
	[ 'text with emoji, quotes and line ends', [ { text => $text_2 } ], { content => $text_2 } ],
	[ '4,096 characters', [ { text => 'ж🚀' x 2048 } ], { content => 'ж🚀' x 2048 } ],
	[ 'a text that looks like JSON', [ { text => '{"post_id": "x"}' } ], { content => '{"post_id": "x"}' } ],
	[ 'a text of blanks is no absent one', [ { text => '  ' } ], { content => '  ' } ],

	# Times.
	(map { [ "time $_->[0]", [ { posted_at => $_->[0], occurred_at => $_->[0] } ], { posted_at => $_->[1], created_at => $_->[1] } ] }
		  [ '2025-10-29T20:26:25Z', '2025-10-29T20:26:25+00:00' ],
		  [ '2025-10-29T20:26:25+00:00', '2025-10-29T20:26:25+00:00' ],
		  [ '2025-10-29T20:26:25+03:00', '2025-10-29T17:26:25+00:00' ],
		  [ '2025-10-29T20:26:25', '2025-10-29T20:26:25+00:00' ],
		  [ '2025-10-29 20:26:25', '2025-10-29T20:26:25+00:00' ],
		  [ '2025-10-29T20:26:25.123456', '2025-10-29T20:26:25.123456+00:00' ],
		  [ '2025-10-29T20:26:25.5Z', '2025-10-29T20:26:25.5+00:00' ],
		  [ '2025-10-29T20:26:25.123+03:00', '2025-10-29T17:26:25.123+00:00' ],
		  [ '2025-03-30T02:30:00', '2025-03-30T02:30:00+00:00' ],
		  [ '2025-02-03T01:00:00+03:00', '2025-02-02T22:00:00+00:00' ],
		  [ '2025-02-03', '2025-02-03T00:00:00+00:00' ],
		  [ '02/03/2025 04:05:06', '2025-02-03T04:05:06+00:00' ]),

	# What comes later, on conflict with the key.
	[ 'the newer text wins', [ { text => 'one' }, { text => 'two' } ], { content => 'two' } ],
	[ 'a newer event without a text', [ { text => 'one' }, { views_count => 1 } ], { content => $null } ],
	[ 'id and created_at are kept', [ { post_id => 'k1', occurred_at => '2025-01-01T00:00:00Z' }, { post_id => 'k2', occurred_at => '2025-02-01T00:00:00Z' } ],
		{ id => 'k1', created_at => '2025-01-01T00:00:00+00:00' } ],
	[ 'what is there replaces', [
			{ media_urls => ['a'], posted_at => '2025-01-01T00:00:00Z', url => 'a', telegram_post_url => 'a', has_media => $true, is_edited => $false },
			{ media_urls => ['b'], posted_at => '2025-01-02T00:00:00Z', url => 'b', telegram_post_url => 'b', has_media => $false, is_edited => $true } ],
		{ media_urls => ['b'], posted_at => '2025-01-02T00:00:00+00:00', url => 'b', telegram_post_url => 'b', has_media => $false, is_edited => $true } ],
	[ 'what is absent is kept', [
			{ media_urls => ['a'], posted_at => '2025-01-01T00:00:00Z', url => 'a', telegram_post_url => 'a', has_media => $true, is_edited => $false },
			{ media_urls => '', posted_at => '', url => '', telegram_post_url => '', has_media => '', is_edited => '' },
			{ text => 'x' } ],
		{ media_urls => ['a'], posted_at => '2025-01-01T00:00:00+00:00', url => 'a', telegram_post_url => 'a', has_media => $true, is_edited => $false } ],
	[ 'an empty list replaces', [ { media_urls => ['a'] }, { media_urls => [] } ], { media_urls => [] } ],
	[ 'counts take the greatest', [ { views_count => 5, forwards_count => 1, reactions_count => 7 }, { views_count => 3, forwards_count => 2 }, { views_count => 4 } ],
		{ views_count => 5, forwards_count => 2, reactions_count => 7 } ],
	[ 'one key as number and as text', [ { text => 'number' }, { telegram_message_id => 'TEXT KEY', text => 'text' } ], { content => 'text' } ],
	[ 'one key by either name', [ { text => 'one' }, { telegram_message_id => $null, tg_message_id => 'KEY', text => 'two' } ], { content => 'two' } ],
	[ 'one key written in two ways', [ { text => 'one', views_count => 9 }, { telegram_message_id => 'ZERO KEY', text => 'two', views_count => 1 }, { text => 'three', views_count => 5 } ],
		{ content => 'three', views_count => 9 } ],
	[ 'the same key 60 times', [ map { { text => "text $_", views_count => ($_ * 37) % 61, ($_ % 7 ? () : (url => "url $_")) } } 1 .. 60 ],
		{ content => 'text 60', views_count => 60, url => 'url 56' } ],

	# Event types.
	[ 'created, then updated', [ 'post.created', { text => 'one', views_count => 1 }, 'post.updated', { text => 'two', views_count => 2 } ], { content => 'two', views_count => 2 } ],
	[ 'updated before created', [ 'post.updated', { text => 'two', views_count => 2 }, 'post.created', { text => 'one', views_count => 1, post_id => 'u1' } ],
		{ content => 'one', views_count => 2 } ],
	[ 'no type is created', [ '', { text => 'no type' } ], { content => 'no type' } ],
	[ 'another type is filtered', [ 'post.created', { text => 'one' }, 'post.deleted', { text => 'deleted' }, 'channel.updated', { text => 'channel' }, 'Post.Created', { text => 'case' } ],
		{ content => 'one' } ],
	[ 'only another type: no row', [ 'channel.updated', { text => 'channel' } ], 'no row' ],

	# Unknown fields.
	[ 'unknown fields are ignored', [ { schema_version => 'v1', trace_id => 'x', idempotency_key => 'y', user_id => 'u', tg_channel_id => -1001, is_pinned => $true,
				forward_from => { a => [1] }, grouped_id => 'not a number', "it's" => 1, '' => 'no name', 'ключ' => 'ж', text => 'known' } ], { content => 'known' } ],
	[ 'entry_id is ours alone', [ { entry_id => '9999999999999-0', text => 'one' }, { text => 'two' } ], { content => 'two' } ],

	# A post_id that another key has: that entry is dead, and only it.
	[ 'the first with a post_id', [ { post_id => 'twice', text => 'first' } ], { id => 'twice', content => 'first' } ],
	[ 'the second with it', [ { post_id => 'twice', text => 'second' } ], 'no row' ],
	[ 'its neighbor', [ { post_id => 'neighbor' } ], { id => 'neighbor' } ]);

# The same entries four times: in each format as one batch, and one at a time.
my %formats = (flat => \&as_flat, json => \&as_json, envelope => \&as_envelope, single => \&as_flat);
for my $name (sort keys %formats)
{
	my %options = $name eq 'single' ? (batch_size => 1) : ();
	make_pipeline($name, "stream:$name", paused => 1, options => \%options);
	my @commands;
	for my $i (0 .. $#cases)
	{
		my $type = 'post.created';
		for my $event (@{ $cases[$i][1] })
		{
			if (!ref $event) { $type = $event; next }
			push @commands, [ 'XADD', "stream:$name", '*', $formats{$name}->($type, with_key($event, 1000 + $i)) ];
		}
	}
	$redis->pipeline(@commands);
	$node->safe_psql('postgres', "SELECT postpipe_resume('$name')");
}
settle($_) for sort keys %formats;

my %got = map { $_ => rows("posts_$_") } sort keys %formats;
for my $name (sort keys %formats)
{
	for my $i (0 .. $#cases)
	{
		my ($what, undef, $expect) = @{ $cases[$i] };
		my $row = $got{$name}{ 1000 + $i };
		my $got = ref $row && ref $expect ? { map { $_ => $row->{$_} } keys %$expect } : $row // 'no row';
		is($json->encode($got), $json->encode($expect), "$name: $what");
	}
	is(sql("SELECT batches FROM postpipe_stats WHERE pipeline = '$name'"), $name eq 'single' ? $redis->command('XLEN', "stream:$name") : 1,
		"$name: the number of batches");
	is(sql("SELECT entries_filtered || ' ' || entries_dead FROM postpipe_stats WHERE pipeline = '$name'"), '4 1', "$name: filtered and dead are counted");
	is(sql("SELECT sqlstate, constraint_name, count(*) OVER () FROM postpipe_dlq WHERE pipeline = '$name'"), "23505|posts_${name}_id_key|1", "$name: one dead letter, for the post_id");
}

# One batch or one at a time, flat or JSON: the same table. (Unset times of creation are the moment's.)
for my $table (values %got)
{
	for my $row (values %$table)
	{
		delete $row->{entry_id};
		$row->{created_at} = 'now' if $row->{created_at} !~ /^2025-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?\+00:00$/ || $row->{created_at} gt '2025-12-31';
	}
}
is($json->encode($got{$_}), $json->encode($got{single}), "$_ in one batch leaves the same table as one at a time") for qw(flat json envelope);
is(sql(q(SELECT count(*) FROM posts_flat WHERE created_at NOT BETWEEN '2024-12-31' AND now() OR created_at IS NULL)), '0', 'no created_at is missing or in the future');
is(sql(q(SELECT count(*) FROM posts_flat WHERE telegram_message_id = 1000 AND created_at > now() - interval '10 minutes')), '1', 'created_at is now() when it is absent');

# --- The envelope: its flat fields count, the post's own come first.
my @envelopes = (
	[ 'event_type and timestamp of the envelope', { content => 'x' }, [ event_type => 'post.created', timestamp => '2025-05-05T05:05:05+05:00', source => 's', dedup_key => 'd' ],
		'x|2025-05-05 00:05:05' ],
	[ 'created_at of the post comes first', { created_at => '2025-05-04T00:00:00' }, [ event_type => 'post.updated', timestamp => '2025-05-05T05:05:05' ], '|2025-05-04 00:00:00' ],
	[ 'a type in the post alone', { content => 'x', event_type => 'post.created' }, [ timestamp => '2025-05-05T05:05:05' ], 'x|2025-05-05 05:05:05' ],
	[ "an envelope's type '' and an unwanted one in the post", { event_type => 'post.deleted' }, [ event_type => '' ], '' ],
	[ 'an unwanted type in the post alone', { event_type => 'post.deleted' }, [ source => 's' ], '' ],
	[ 'the type of the envelope counts', { event_type => 'post.created' }, [ event_type => 'channel.updated' ], '' ],
	[ 'other flat fields are not the post', { created_at => '2025-05-04T00:00:00' }, [ text => 'outside', content => 'outside' ], '|2025-05-04 00:00:00' ]);
for my $i (0 .. $#envelopes)
{
	my ($what, $post, $around) = @{ $envelopes[$i] };
	my $field = $i % 2 ? 'payload' : 'data';
	$redis->xadd('stream:envelope', @$around, $field => $json->encode({ channel_id => 'around', telegram_message_id => $i, %$post }));
}
$redis->xadd('stream:json', payload => $json->encode({ channel_id => 'around', telegram_message_id => 1, text => 'payload' }));
$redis->xadd('stream:json', payload => '{}', data => $json->encode({ channel_id => 'around', telegram_message_id => 2, text => 'data' }));
settle($_) for qw(envelope json);
is(sql(qq(SELECT content, to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS') FROM posts_envelope WHERE channel_id = 'around' AND telegram_message_id = $_)),
	$envelopes[$_][3], "envelope: $envelopes[$_][0]") for 0 .. $#envelopes;
is(sql(q(SELECT string_agg(content, ' ' ORDER BY telegram_message_id) FROM posts_json WHERE channel_id = 'around')), 'payload data', 'payload is read, and data comes before it');

# A field that a flat entry has twice: the last counts, as in a JSON object.
$redis->xadd('stream:flat', channel_id => 'again', telegram_message_id => 1, text => 'one', text => 'two');
settle('flat');
is(sql(q(SELECT content FROM posts_flat WHERE channel_id = 'again')), 'two', 'of a field that is there twice the last counts');

# --- A type that holds: '2025' in one format is not an error in another.
my @wrong = ([ has_media => 'maybe', '22P02' ], [ views_count => 'many', '22P02' ], [ posted_at => 'yesterday evening', '22007' ], [ media_urls => 'https://no.json', '22P02' ]);
for my $name (qw(flat json envelope))
{
	$redis->xadd("stream:$name", $formats{$name}->('post.created', { channel_id => 'wrong', telegram_message_id => 1, $_->[0] => $_->[1] })) for @wrong;
	settle($name);
	is(sql("SELECT string_agg(sqlstate, ' ' ORDER BY id) FROM postpipe_dlq WHERE pipeline = '$name' AND sqlstate <> '23505'"), join(' ', map { $_->[2] } @wrong),
		"$name: a value of the wrong type is a dead letter, not 0, false or now()");
}

# --- The sample events as their producers write them, and each of them in every format: identical rows.
make_pipeline("sample_$_", "stream:sample_$_", paused => 1) for qw(flat json envelope);
my @files = map { sample_file($_) } qw(posts updates smoke);
my $samples = 0;
for my $command (map { Postpipe::Test::Data::commands($_) } @files)
{
	my (undef, undef, undef, %fields) = @$command;
	my %event = %{ Postpipe::Test::Data::event(\%fields) };
	if (!exists $event{channel_id} || !exists $fields{channel_id})
	{
		# What stands around a post in JSON belongs to the event, too.
		%event = ((map { $_ => $fields{$_} } grep { !/^(data|payload)$/ } keys %fields), %event);
	}
	else { utf8::decode($_) for values %event }
	my $type = delete $event{event_type} // '';
	$redis->xadd("stream:sample_$_", $formats{$_}->($type, \%event)) for qw(flat json envelope);
	$samples++;
}
$redis->pipe_file($_) for @files;
$node->safe_psql('postgres', join ';', map { "SELECT postpipe_resume('sample_$_')" } qw(flat json envelope));
settle($_, $_ eq 'posts' ? $stream : undef) for qw(posts sample_flat sample_json sample_envelope);
my ($entries, $posts) = Postpipe::Test::Data::expected(@files);
is($samples, $entries, 'all sample events are published');
my $columns = 'id, channel_id, telegram_message_id, content, media_urls, posted_at, created_at, url, telegram_post_url, has_media, is_edited, views_count, forwards_count, reactions_count';
is(sql(q(SELECT count(*) FROM posts WHERE channel_id <> 'before')), $posts, 'the sample posts are in the table');
for my $name (qw(flat json envelope))
{
	is(sql("SELECT count(*) FROM posts_sample_$name"), $posts, "samples as $name: all posts");
	is(sql("WITH a AS (SELECT $columns FROM posts WHERE channel_id <> 'before'), b AS (SELECT $columns FROM posts_sample_$name)
		SELECT (SELECT count(*) FROM (TABLE a EXCEPT ALL TABLE b) x), (SELECT count(*) FROM (TABLE b EXCEPT ALL TABLE a) y)"), '0|0',
		"samples as $name: the same rows as their producers' own formats");
}
is(sql(q(SELECT sum(entries_dead) FROM postpipe_stats WHERE pipeline = 'posts' OR pipeline LIKE 'sample%')), '0', 'no sample event is dead');

# --- A database that is not in UTF-8.
$node->safe_psql('postgres', q(CREATE DATABASE cyrillic TEMPLATE template0 ENCODING 'WIN1251' LC_COLLATE 'C' LC_CTYPE 'C'));
$node->safe_psql('cyrillic', q(BEGIN; CREATE EXTENSION postpipe; SELECT postpipe_pause('posts'); COMMIT));
$node->safe_psql('cyrillic', <<'SQL');
CREATE TABLE notes (id int PRIMARY KEY, content text);
SELECT postpipe_create_pipeline('notes', 'stream:notes', target => 'notes');
SQL
$redis->xadd('stream:notes', id => 1, content => bytes('Привет'));
$redis->xadd('stream:notes', data => bytes('{"id": 2, "content": "Привет"}'));
$redis->xadd('stream:notes', source => bytes('ж'), data => '{"id": 3, "content": "\u041f\u0440\u0438\u0432\u0435\u0442"}');
$redis->xadd('stream:notes', id => 4, content => bytes('ракета 🚀'));
$redis->xadd('stream:notes', id => 5, content => 'ascii');
wait_sql($node, 'cyrillic', q(SELECT entries_applied + entries_dead FROM postpipe_stats WHERE pipeline = 'notes'), '5', 'WIN1251: all entries are settled');
is($node->safe_psql('cyrillic', q(SELECT string_agg(id || encode(convert_to(content, 'UTF8'), 'hex'), ' ' ORDER BY id) FROM notes)),
	join(' ', (map { $_ . unpack('H*', bytes('Привет')) } 1 .. 3), '5' . unpack('H*', 'ascii')), 'WIN1251: text is converted');
is($node->safe_psql('cyrillic', q(SELECT sqlstate, convert_from(fields[2], 'UTF8') FROM postpipe_dlq)), '22P05|4', 'WIN1251: what it cannot hold is a dead letter');

$node->stop;
done_testing();

sub bytes { my ($text) = @_; utf8::encode($text); return $text }

# A pipeline with the rules of posts and a table like it.
sub make_pipeline
{
	my ($name, $from, %opt) = @_;
	my $options = $json->encode($opt{options} // {});
	my $enabled = $opt{paused} ? 'false' : 'true';
	sql(<<"SQL");
CREATE TABLE posts_$name (LIKE posts INCLUDING ALL);
SELECT postpipe_create_pipeline('$name', '$from', target => 'posts_$name', key => key, on_conflict => on_conflict, newer_by => newer_by,
	columns => columns, event_types => event_types, options => '$options', enabled => $enabled)
FROM postpipe_pipelines WHERE pipeline = 'posts';
SQL
	return;
}

# The event with channel and message, where it does not say them itself.
sub with_key
{
	my ($event, $key) = @_;
	my %event = (channel_id => 'канал', telegram_message_id => $key, %$event);
	for my $name (qw(telegram_message_id tg_message_id))
	{
		next unless defined $event{$name};
		$event{$name} = { KEY => $key, 'TEXT KEY' => "$key", 'ZERO KEY' => "0$key" }->{ $event{$name} } // $event{$name};
	}
	return \%event;
}

# The three formats: the fields of the entry.
sub as_flat
{
	my ($type, $event) = @_;
	my %fields = (%$event, $type ne '' ? (event_type => $type) : ());
	return map { bytes($_) => flat_value($fields{$_}) } grep { defined $fields{$_} } sort keys %fields;
}

sub flat_value
{
	my ($value) = @_;
	return $value ? 'true' : 'false' if JSON::PP::is_bool($value);
	return ref $value ? $json->encode($value) : bytes($value);
}

sub as_json
{
	my ($type, $event) = @_;
	return (data => $json->encode({ %$event, $type ne '' ? (event_type => $type) : () }));
}

# The table's own names, the time and the type outside.
sub as_envelope
{
	my ($type, $event) = @_;
	my %post = %$event;
	my %names = (post_id => 'id', text => 'content', urls => 'media_urls');
	for my $name (keys %names)
	{
		my $own = $names{$name};
		$post{$own} = delete $post{$name} if exists $post{$name} && (!exists $post{$own} || ($own ne 'media_urls' && defined $post{$name} && $post{$name} ne ''));
	}
	my $time = !grep({ defined $post{$_} && $post{$_} ne '' } qw(occurred_at created_at)) ? delete $post{timestamp} : undef;
	return (
		$type ne '' ? (event_type => $type) : (),
		defined $time && $time ne '' ? (timestamp => $time) : (),
		source => 'sync_adapter',
		dedup_key => '0123456789abcdef',
		data => $json->encode(\%post));
}

# Every entry of the stream has been applied, filtered or found dead, and is acknowledged.
sub settle
{
	my ($name, $from) = @_;
	$from //= "stream:$name";
	my $n = $redis->command('XLEN', $from);
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_sql($node, 'postgres', "SELECT entries_applied + entries_filtered + entries_dead FROM postpipe_stats WHERE pipeline = '$name'", $n, "$name: all $n entries are settled");
	wait_for { pending($redis, $from, $name eq 'posts' ? 'post_persist_workers' : "postpipe_$name") == 0 } "$name: nothing is pending";
	return;
}

# The table's rows by message, as decoded JSON; times in UTC.
sub rows
{
	my ($table) = @_;
	my $text = sql("SET timezone = 'UTC'; SELECT json_object_agg(telegram_message_id, to_jsonb(t)) FROM $table t");
	utf8::encode($text) if utf8::is_utf8($text);
	return $json->decode($text);
}
