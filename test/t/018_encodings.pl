# Databases that are not in UTF-8: what their encoding can hold is stored and read as it was, what it cannot is a dead letter with its
# bytes; and a dump of such a database can be restored. TAP, because it takes databases of several encodings, a Redis and pg_dump.

use strict;
use warnings;
use utf8;
use Encode ();
use PostgreSQL::Test::Utils;
use Postpipe::Test;

# Without a conversion in the server, SQL_ASCII takes any UTF-8 as the bytes that it is; but not \u of what is not ASCII.
my %fits = (latin1 => 'Grüße, ça va', sql_ascii => 'Привет 🚀 漢', euc_jp => '漢字とかな');
my %does_not = (latin1 => 'Привет', sql_ascii => undef, euc_jp => 'ракета 🚀');
my %names = (latin1 => 'größe', sql_ascii => 'длина', euc_jp => '長さ');
my $bom = "\x{feff}";

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('encodings', redis => $redis, databases => join(', ', sort keys %fits), conf => 'postpipe.max_retries = 0');
my $away = pp_node('restored', redis => $redis, fresh => 1, databases => join(', ', sort keys %fits), conf => 'postpipe.enabled = off');
my $dir = PostgreSQL::Test::Utils::tempdir();
# What the server's JSON says of \u00e9 where there is no conversion.
my $no_conversion = $node->safe_psql('postgres', 'SHOW server_version_num') >= 160000 ? '22P05' : '0A000';

for my $db (sort keys %fits)
{
	create($node, $db);
	$node->safe_psql($db, qq(SET client_encoding = 'UTF8'; CREATE EXTENSION postpipe; SELECT postpipe_drop_pipeline('posts');
		CREATE TABLE notes (id int PRIMARY KEY, v text, "@{[ bytes($names{$db}) ]}" text, j jsonb);
		SELECT postpipe_create_pipeline('notes', 'stream:$db', target => 'notes')));
	wait_sql($node, $db, 'SELECT state FROM postpipe_stats', 'idle', "$db: the pipeline is there");
	$node->safe_psql($db, q(SELECT postpipe_pause('notes'); SELECT postpipe_wait_state('notes', 'paused')));

	# name => [SQLSTATE or nothing, the text that is stored, fields]
	my ($fits, $does_not) = ($fits{$db}, $does_not{$db});
	my @cases = (
		[ 'ASCII', '', 'ascii', v => 'ascii' ],
		[ 'ASCII in JSON', '', 'ascii', data => '{"id": ID, "v": "ascii"}' ],
		[ 'what fits', '', $fits, v => $fits ],
		[ 'what fits, in JSON', '', $fits, data => qq({"id": ID, "v": "$fits"}) ],
		[ 'what fits, around JSON', '', 'x', source => $fits, data => '{"id": ID, "v": "x"}' ],
		[ 'a name that fits', '', 'x', v => 'x', $names{$db} => 'long' ],
		[ 'a name that fits, in JSON', '', 'x', data => qq({"id": ID, "v": "x", "$names{$db}": "long"}) ],
		[ 'what fits, as \u', $db eq 'sql_ascii' ? $no_conversion : '', $fits, data => '{"id": ID, "v": "' . escaped($fits) . '"}' ],
		[ 'ASCII as \u', '', 'A', data => '{"id": ID, "v": "\u0041"}' ],
		[ 'a NUL', '22021', undef, v => "a\0b" ],
		[ '\u0000', '22P05', undef, data => '{"id": ID, "v": "a\u0000"}' ],
		[ 'bad UTF-8', '22021', undef, v => \"a\xff\xfe" ],
		[ 'bad UTF-8 under a name that fits', '22021', undef, $names{$db} => \"a\xff\xfe" ],
		[ 'bad UTF-8 in JSON', '22021', undef, data => \qq({"id": ID, "v": "\xe9"}) ],
		[ 'a BOM', $db eq 'sql_ascii' ? '' : '22P05', "${bom}x", v => "${bom}x" ],
		[ 'a BOM before JSON', $db eq 'sql_ascii' ? '22P02' : '22P05', undef, data => $bom . '{"id": ID, "v": "x"}' ],
		defined $does_not
		? ( [ 'what does not fit', '22P05', undef, v => $does_not ],
			[ 'what does not fit, in JSON', '22P05', undef, data => qq({"id": ID, "v": "$does_not"}) ],
			[ 'what does not fit, around JSON', '22P05', undef, source => $does_not, data => '{"id": ID, "v": "x"}' ],
			[ 'a name that does not fit', '22P05', undef, $does_not => 'x' ],
			[ 'what does not fit, as \u', '22P05', undef, data => '{"id": ID, "v": "' . escaped($does_not) . '"}' ])
		: (),
		[ 'ASCII at the end', '', 'end', v => 'end' ]);
	my $id = 0;
	for my $case (@cases)
	{
		my (undef, undef, undef, @fields) = @$case;
		$id++;
		@fields = map { s/ID/$id/r } map { ref $_ ? $$_ : bytes($_) } @fields;
		@fields = (id => $id, @fields) unless grep { $_ eq 'data' } @fields;
		push @$case, { entry => $redis->xadd("stream:$db", @fields), fields => join ' ', map { unpack 'H*', $_ } @fields };
	}
	$node->safe_psql($db, q(SELECT postpipe_resume('notes')));
	wait_sql($node, $db, 'SELECT entries_applied + entries_dead FROM postpipe_stats', scalar @cases, "$db: all entries are settled");
	$id = 0;
	for my $case (@cases)
	{
		my ($name, $sqlstate, $text) = @$case;
		my ($entry, $fields) = @{ $case->[-1] }{qw(entry fields)};
		$id++;
		is(read_as_utf8($node, $db, "SELECT v FROM notes WHERE id = $id"), $sqlstate ne '' ? '' : bytes($text), "$db: $name: the row");
		is($node->safe_psql($db, "SELECT sqlstate, state, message <> '', (SELECT string_agg(encode(f, 'hex'), ' ' ORDER BY n) FROM unnest(fields) WITH ORDINALITY AS u (f, n))
			FROM postpipe_dlq WHERE id = '$entry'"), $sqlstate ne '' ? "$sqlstate|dead|t|$fields" : '', "$db: $name: the dead letter");
	}
	is(read_as_utf8($node, $db, qq(SELECT count(*) FROM notes WHERE "@{[ bytes($names{$db}) ]}" = 'long')), 2, "$db: the names were found");
	is(read_as_utf8($node, $db, qq(SELECT count(*) FROM postpipe_dlq WHERE detail = 'The field is "@{[ bytes($names{$db}) ]}".')), 1, '... and one is told');
	$redis->xadd("stream:$db", id => 1000, v => bytes($fits));
	wait_sql($node, $db, q(SELECT count(*) FROM notes WHERE id = 1000), 1, "$db: the pipeline goes on");
	wait_for { pending($redis, "stream:$db", 'postpipe_notes') == 0 } "$db: nothing is pending";
	wait_sql($node, $db, 'SELECT added, balance FROM postpipe_audit', @cases + 1 . '|0', "$db: every entry is accounted for");

	# A dump, restored into a database of this encoding, where nothing may read meanwhile.
	command_ok([ 'pg_dump', '-d', $node->connstr($db), '-f', "$dir/$db.sql" ], "$db: pg_dump");
	create($away, $db);
	command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', "$dir/$db.sql", '-d', $away->connstr($db) ], "$db: it is restored");
	# Dead letters are in no dump: copied by a client that wants UTF-8.
	local $ENV{PGCLIENTENCODING} = 'UTF8';
	command_ok([ 'psql', '-X', '-q', '-d', $node->connstr($db), '-c', "\\copy postpipe_dead_letter TO '$dir/letters'" ], "$db: the dead letters are copied");
	command_ok([ 'psql', '-X', '-q', '-d', $away->connstr($db), '-c', "\\copy postpipe_dead_letter FROM '$dir/letters'" ], '... into the copy');
	for my $query ('SELECT * FROM notes ORDER BY id', 'SELECT id, sqlstate, message, detail, state, fields, event FROM postpipe_dlq ORDER BY id')
	{
		my $rows = read_as_utf8($node, $db, $query);
		isnt($rows, '', "$db: " . $query =~ s/ORDER.*//r);
		is(read_as_utf8($away, $db, $query), $rows, '... is the same where it was restored');
	}
}

# The copy reads nothing, and the first server goes on.
$away->append_conf('postgresql.conf', 'postpipe.enabled = on');
$away->reload;
for my $db (sort keys %fits)
{
	wait_sql($away, $db, 'SELECT state FROM postpipe_stats', 'disarmed', "$db: the copy is disarmed");
	$redis->xadd("stream:$db", id => 1001, v => 'more');
	wait_sql($node, $db, q(SELECT count(*) FROM notes WHERE id = 1001), 1, '... and the first server goes on');
	is($away->safe_psql($db, 'SELECT count(*) FROM notes WHERE id = 1001'), 0, '... alone');
	$redis->xadd("stream:$db", id => 1002, j => bytes(qq(["$fits{$db}", "a\\"b", 1.5])));
	$redis->xadd("stream:$db", data => bytes(qq({"id": 1003, "j": ["$fits{$db}", null]})));
	wait_sql($node, $db, 'SELECT count(*) FROM notes WHERE id IN (1002, 1003)', 2, "$db: arrays are stored");
	is(read_as_utf8($node, $db, q(SELECT string_agg(j::text, '; ' ORDER BY id) FROM notes WHERE id > 1001)), bytes(qq(["$fits{$db}", "a\\"b", 1.5]; ["$fits{$db}", null])), '... as they are');
	pp_balanced($node, $db);
}
$_->stop for $node, $away;
done_testing();

sub bytes { my ($text) = @_; utf8::encode($text); return $text }

# As JSON writes it when everything is to be ASCII.
sub escaped { my ($text) = @_; return join '', map { sprintf '\u%04x', $_ } unpack 'n*', Encode::encode('UTF-16BE', $text) }

sub create
{
	my ($server, $db) = @_;
	return $server->safe_psql('postgres', "CREATE DATABASE $db TEMPLATE template0 ENCODING '\U$db' LC_COLLATE 'C' LC_CTYPE 'C'");
}

# What a client reads that wants UTF-8, as bytes.
sub read_as_utf8
{
	my ($server, $db, $query) = @_;
	my $text = $server->safe_psql($db, "SET client_encoding = 'UTF8'; $query");
	utf8::encode($text) if utf8::is_utf8($text);
	return $text;
}
