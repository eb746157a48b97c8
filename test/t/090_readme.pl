# Runs every command of the README, and then of docs/entries.md and docs/operations.md, in its order, as a reader would. TAP, because it takes a server and a Redis, and the
# commands come from the file. `make demo`, `make test` and the installation are what CI itself does.
use strict;
use warnings;
use FindBin;
use PostgreSQL::Test::Utils;
use Postpipe::Test;
use Postpipe::Test::Manual;

my $readme = slurp_file("$FindBin::RealBin/../../README.md");
my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('readme', redis => $redis);
# The row is there when the worker has had its turn.
my $rows = 'psql -c "SELECT id, channel_id, content FROM posts"';
my $manual = Postpipe::Test::Manual->new($node, $redis, after => \&wait_until_idle,
	programs => { $rows => sub { wait_for { qx($rows) =~ /p1 \| c1 +\| hello/ } 'what was published is in the table' } });

my $lines = () = $readme =~ /\n/g;
cmp_ok($lines, '<=', 200, 'the README has at most 200 lines');

# The settings that it names are the ones that there are, with the defaults that it names.
my %settings = map { $_ => 1 } split /\n/,
	$node->safe_psql('postgres', "SELECT name FROM pg_settings WHERE name LIKE 'postpipe.%'");
while ($readme =~ /^\| `(postpipe\.\w+)` \| `?([^|`]*)`? +\|/mg)
{
	my ($name, $default) = ($1, $2);
	$default =~ s/\s+$//;
	ok($settings{$name}, "$name is a setting");
	is($node->safe_psql('postgres', "SELECT current_setting('$name') FROM pg_settings WHERE name = '$name' AND source = 'default'"),
		$default, "its default is '$default'")
	  unless $name eq 'postpipe.redis_url';
}

for my $name (sort keys %settings)
{
	like($readme, qr/^\| `\Q$name\E` \|/m, "$name is in the table of settings");
}
unlike($readme, qr/^\|.*\n\n\|(?! \|)/m, 'no table is cut in two by an empty line');

# docs/configuration.md has all settings, with defaults and limits, and all options.
my $configuration = slurp_file("$FindBin::RealBin/../../docs/configuration.md");
for my $line (split /\n/, $node->safe_psql('postgres', q(SELECT name, boot_val, coalesce(min_val || ' to ' || max_val, '') FROM pg_settings WHERE name LIKE 'postpipe.%')))
{
	my ($name, $default, $limits) = split /\|/, $line;
	$default = $default eq '' ? '' : "`$default` ";
	like($configuration, qr/^\| `\Q$name\E` \| \Q$default\E\| \Q$limits\E/m, "docs/configuration.md has $name, its default and its limits");
}
my (undef, undef, $refused) = $node->psql('postgres', q(CREATE EXTENSION postpipe; SELECT postpipe_create_pipeline('x', 'x', options => '{"unknown": 1}', statement => 'SELECT')));
my ($options) = $refused =~ /HINT:  Options are (.*)\./;
like($configuration, qr/^\| `$_` \| .* \|.*\|$/m, "docs/configuration.md has the option $_") for split /, | and /, $options;
my ($arguments, $table) = $configuration =~ /^(## Arguments of a pipeline\n.*)(^## Options of a pipeline\n.*)/ms;
is(scalar(() = $table =~ /^\| `[a-z_]+` \|/mg), scalar(split /, | and /, $options), '... and no other one');
my @documented = map { /`([a-z_]+)`/g } $arguments =~ /^\| (`[^|]*) \|/mg;
is("@documented", $node->safe_psql('postgres', q(SELECT array_to_string(array(SELECT n FROM unnest(proargnames) WITH ORDINALITY a (n, o) ORDER BY o), ' ') FROM pg_proc WHERE proname = 'postpipe_create_pipeline')),
	'docs/configuration.md has all arguments of postpipe_create_pipeline, in their order');
$node->safe_psql('postgres', 'DROP EXTENSION postpipe');

is($manual->run($readme), 9, 'all blocks were found');

# And it does what it says: the counting pipeline counts.
$redis->xadd('stream:clicks', id => "c$_", url => '/', at => '2026-01-02T03:04:05Z') for 1 .. 5;
wait_sql($node, 'postgres', 'SELECT count(*) FROM clicks', '5', 'the pipeline clicks works after all of it');
$redis->xadd('stream:channels:updated', channel_id => 'c1', title => 't', members => 5, seen_at => '2026-01-02T03:04:05');
wait_sql($node, 'postgres', "SELECT title || members FROM channels WHERE id = 'c1'", 't5', 'and the pipeline channels');

# docs/entries.md, and each of its sentences.
is($manual->run(slurp_file("$FindBin::RealBin/../../docs/entries.md")), 3, 'all blocks of docs/entries.md were found');
entries();

# The manual of operations, with what it speaks of: consumers of others, which have left entries behind.
$redis->command('XADD', 'stream:posts:parsed', '*', post_id => "left$_", channel_id => 'c1', telegram_message_id => 100 + $_, text => 'x') for 1 .. 5;
wait_sql($node, 'postgres', q(SELECT count(*) FROM posts WHERE id LIKE 'left%'), '5', 'entries are applied');
$redis->command('XGROUP', 'CREATECONSUMER', 'stream:posts:parsed', 'post_persist_workers', 'python-worker-3');
is($manual->run(slurp_file("$FindBin::RealBin/../../docs/operations.md")), 47, 'all blocks of docs/operations.md were found');
is(consumers($redis, 'stream:posts:parsed', 'post_persist_workers'), 1, 'and after all of it only ours is left');

$node->stop('fast');
done_testing();

# The next block may read what the pipeline was to do.
sub wait_until_idle
{
	my (undef, $language) = @_;
	return if $language ne 'sql';
	return wait_sql($node, 'postgres', "SELECT bool_and(state = 'idle') FROM postpipe_stats", 't', 'all pipelines run');
}

# Publishes an entry with this key, or the fields as they are, and says what became of it: columns, or the error of its letter.
sub became
{
	my ($columns, @fields) = @_;
	my $id = $redis->command('XADD', 'stream:entries', '*', @fields);
	my $settled = "SELECT coalesce((SELECT status FROM postpipe_peek('entries', '$id', '$id')), '') IN ('applied', 'filtered', 'dead')";
	wait_for { $node->safe_psql('postgres', $settled) eq 't' } 'it is settled';
	my $row = $node->safe_psql('postgres', "SELECT concat_ws(',', status, (SELECT sqlstate FROM postpipe_dlq d WHERE d.id = p.id)) FROM postpipe_peek('entries', '$id', '$id') p");
	return $row if $row ne 'applied';
	return $node->safe_psql('postgres', "SELECT $columns FROM entries ORDER BY changed DESC LIMIT 1");
}

sub entries
{
	is($node->safe_psql('postgres', q(SELECT id, note = '', n IS NULL, at, at_utc, tags, raw, source, entry IS NOT NULL, made, ok FROM readings ORDER BY id)),
		qq(r1|t|t|2026-01-02 03:04:05+00||{a,b}|{"x": 1}||t|here|\nr2||t||2026-01-02 00:04:05|{a,b}||probe|t|here|t), 'docs/entries.md: the rows of its example');
	is($node->safe_psql('postgres', q(SELECT status, event ->> 'id', envelope FROM postpipe_peek('readings'))),
		qq(applied|r1|\napplied||{"source": "probe", "event_type": "reading"}\nfiltered|r3|{"event_type": "other"}), '... and its entries');
	$node->safe_psql('postgres', q(SELECT postpipe_drop_pipeline('readings');
		CREATE TABLE entries (id text PRIMARY KEY, t text, v varchar(3), nn text NOT NULL DEFAULT 'd', e text, i int, num numeric, b boolean, tz timestamptz, ts timestamp, day date, a int[], ta text[], j jsonb, d int DEFAULT 7,
			g int, f int, r int, rd int DEFAULT 7, source text, dedup_key text, "timestamp" text, other text, kind text, x text, y text, gen text GENERATED ALWAYS AS (t || '!') STORED, ai int GENERATED ALWAYS AS IDENTITY, changed timestamptz);
		CREATE FUNCTION changed() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN NEW.changed = clock_timestamp(); RETURN NEW; END$$;
		CREATE TRIGGER changed BEFORE INSERT OR UPDATE ON entries FOR EACH ROW EXECUTE FUNCTION changed();
		SELECT postpipe_create_pipeline('entries', 'stream:entries', target => 'entries', event_types => '{wanted}', options => '{"max_retries": 0, "error_threshold": 1}',
			columns => '{"*": {"empty": "keep"}, "e": {"empty": "null"}, "nn": {"empty": "null"}, "g": {"merge": "greatest"}, "f": {"merge": "first"}, "r": {"merge": "replace"}, "rd": {"merge": "replace"},
			"kind": {"fields": ["a_kind", "event_type", "b_kind"]}, "x": {"fields": ["x1", "x2"]}, "y": {"fields": ["y", "$id"]}}')));

	my @cases = (
		# Fields to an event.
		[ 'flat', 't, i', 'x|5', id => 'a', t => 'x', i => 5 ],
		[ 'JSON in data, with payload beside it', 't', 'x', data => '{"id": "a", "t": "x"}', payload => 'no JSON' ],
		[ 'JSON in payload', 't', 'x', payload => '{"id": "a", "t": "x"}', t => 'y' ],
		[ 'Data is no data', 't', 'x', id => 'a', Data => 'plain', t => 'x' ],
		(map { [ "data: $_", '', "dead,$_->[1]", data => $_->[0] ] } [ 'plain', '22P02' ], [ '', '22P02' ], [ '"x"', '22023' ], [ '[1]', '22023' ], [ '{"id": "a", "t": "\\u0000"}', '22P05' ]),
		[ 'payload that is none', '', 'dead,22P02', id => 'a', payload => 'x' ],
		[ 'two of data', 't', 'first', data => '{"id": "a", "t": "first"}', data => '{"id": "a", "t": "last"}' ],
		[ 'two of payload', 't', 'last', payload => '{"id": "a", "t": "first"}', payload => '{"id": "a", "t": "last"}' ],
		[ 'two of another', 't', 'last', id => 'a', t => 'first', t => 'last' ],
		[ 'two in JSON', 't', 'last', data => '{"id": "a", "t": "first", "t": "last"}' ],
		[ 'two in the envelope', 'source', 'last', data => '{"id": "a"}', source => 'first', source => 'last' ],
		[ 'no UTF-8', '', 'dead,22021', id => 'a', t => "\xff" ],
		[ 'a NUL', '', 'dead,22021', id => 'a', t => "\0" ],
		# event_types
		[ 'a type', 't', 'x', id => 'a', t => 'x', event_type => 'wanted' ],
		[ 'another one', '', 'filtered', id => 'a', event_type => 'other' ],
		[ 'the one of the envelope counts', '', 'filtered', data => '{"id": "a", "event_type": "wanted"}', event_type => 'other' ],
		[ 'else that of the event', '', 'filtered', data => '{"id": "a", "event_type": "other"}', event_type => '' ],
		[ 'an empty type, and a number', 't', 'x', data => '{"id": "a", "t": "x", "event_type": 5}', event_type => '' ],
		# An event to columns.
		[ 'null and what is not there', 'd, rd, t', '7|7|x', data => '{"id": "new1", "d": null, "t": "x"}' ],
		[ 'names of an object in it', 'i, j', '|{"i": 5}', data => '{"id": "new2", "j": {"i": 5}}' ],
		[ 'what is never filled', 'gen, ai > 0', 'x!|t', data => '{"id": "new3", "t": "x", "gen": "no", "ai": -1, "unknown": 1}' ],
		[ 'the first that has a value', 'x', '2', data => '{"id": "new4", "x1": null, "x2": "2"}' ],
		[ '... of two', 'x', '1', data => '{"id": "new5", "x2": "2", "x1": "1"}' ],
		[ '$id', q(y ~ '^\d+-\d+$'), 't', data => '{"id": "new6", "y": "no"}' ],
		[ 'empty', q(e IS NULL, nn = '', t = ''), 't|t|t', id => 'new7', e => '', nn => '', t => '' ],
		[ 'no merge yet', 'i, g, f, r, rd, d', '1|5||1|1|1', data => '{"id": "m", "i": 1, "g": 5, "r": 1, "rd": 1, "d": 1}' ],
		[ '... and without values', 'i, g, f, r, rd, d', '1|5|||7|1', data => '{"id": "m"}' ],
		[ '... and with others', 'i, g, f, r, rd, d', '2|5||2|2|2', data => '{"id": "m", "i": 2, "g": 4, "f": 2, "r": 2, "rd": 2, "d": 2}' ],
		[ 'the envelope', 'source, dedup_key, timestamp, other', 's|k|z|', data => '{"id": "new8"}', source => 's', dedup_key => 'k', timestamp => 'z', other => 'no' ],
		[ '... after the event', 'source', 'e', data => '{"id": "new9", "source": "e"}', source => 's' ],
		[ '... after all fields', 'kind', 'b', data => '{"id": "new10", "b_kind": "b"}', event_type => 'wanted' ],
		[ '... in "fields"', 'kind', 'wanted', data => '{"id": "new11"}', event_type => 'wanted' ],
		# What a column makes of a value.
		(map { [ "text of $_->[0]", 't', $_->[1], data => qq({"id": "a", "t": $_->[0]}) ] } [ '1.50', '1.50' ], [ 'true', 'true' ], [ '["a",1]', '["a", 1]' ], [ '{"x":1}', '{"x": 1}' ]),
		[ 'too long', '', 'dead,22001', id => 'a', v => 'long' ],
		[ "'' of other types", 'i, b, tz, j, a', '||||', id => 'new12', i => '', b => '', tz => '', j => '', a => '' ],
		(map { [ "boolean $_", 'b', 't', id => 'a', b => $_ ] } qw(true True t 1 yes on)),
		(map { [ "boolean $_", 'b', 'f', id => 'a', b => $_ ] } qw(false False f 0 no off)),
		[ 'an integer', 'i', '12', id => 'a', i => '12' ],
		[ 'none', '', 'dead,22P02', id => 'a', i => '12.0' ],
		(map { [ "$_->[0] $_->[1]", $_->[0], $_->[2], id => 'a', @$_[ 0, 1 ] ] } [ 'tz', '2026-01-02T03:04:05', '2026-01-02 03:04:05+00' ], [ 'tz', '2026-01-02T03:04:05+03:00', '2026-01-02 00:04:05+00' ],
			[ 'ts', '2026-01-02T03:04:05', '2026-01-02 03:04:05' ], [ 'ts', '2026-01-02T03:04:05+03:00', '2026-01-02 00:04:05' ], [ 'day', '2026-01-02T01:00:00+03:00', '2026-01-02' ],
			[ 'a', '[1, null]', '{1,NULL}' ], [ 'a', '{3,4}', '{3,4}' ], [ 'ta', '["a,b", "c"]', '{"a,b",c}' ], [ 'j', '["a"]', '["a"]' ], [ 'j', '"hello"', '"hello"' ]),
		(map { [ "$_->[0] $_->[1] in JSON", $_->[0], $_->[2], data => qq({"id": "a", "$_->[0]": $_->[1]}) ] } [ 'a', '[1, null]', '{1,NULL}' ], [ 'a', '"{3,4}"', '{3,4}' ], [ 'j', '["a"]', '["a"]' ], [ 'j', '"[1]"', '[1]' ],
			[ 'j', '"\\"hello\\""', '"hello"' ], [ 'i', '12', '12' ]),
		[ 'a string into jsonb', '', 'dead,22P02', data => '{"id": "a", "j": "hello"}' ],
		[ 'seconds', '', 'dead,22008', id => 'a', tz => '1764200000' ]);
	for my $case (@cases)
	{
		my ($what, $columns, $wanted, @fields) = @$case;
		is(became($columns, @fields), $wanted, "docs/entries.md: $what");
	}
	is($node->safe_psql('postgres', q(SELECT envelope FROM postpipe_peek('entries', max_entries => 1000) WHERE envelope ->> 'data' LIKE '%last%' OR envelope ->> 'payload' LIKE '%first%')),
		qq({"data": "{\\"id\\": \\"a\\", \\"t\\": \\"last\\"}"}\n{"payload": "{\\"id\\": \\"a\\", \\"t\\": \\"first\\"}"}), 'docs/entries.md: the other one is in the envelope');
	$node->safe_psql('postgres', q(SELECT postpipe_drop_pipeline('entries', discard_dead => true)));
	return;
}
