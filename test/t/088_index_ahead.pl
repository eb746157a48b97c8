# Where an index is larger than the server's buffers, the pages where a batch's entries go are asked for before they are
# needed (index_ahead.c), and the entries are those that they would be without. TAP, because it needs Redis streams, a
# server with few buffers, and its log, where a worker says what it has asked for.
use strict;
use warnings;
use Postpipe::Test;

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('ahead', redis => $redis, conf => "shared_buffers = 1MB\npostpipe.batch_size = 1000");
my ($there, $batch) = (60_000, 1000);
sql('CREATE EXTENSION postpipe; CREATE EXTENSION amcheck');
sql(q(SELECT postpipe_drop_pipeline('posts')));
sql('ALTER DATABASE postgres SET log_min_messages = debug2');
my $words = sql(q(SELECT count(*) FROM pg_collation WHERE collname = 'und-x-icu')) ? 'COLLATE "und-x-icu"' : '';

# Keys of several kinds in no order, also such whose bytes are in another order than they are themselves. Only the serial
# number grows at one end.
sql(<<"SQL");
CREATE TABLE far (gone int, n int PRIMARY KEY, id text, word text, small int, size numeric);
ALTER TABLE far DROP gone;
CREATE FUNCTION far(n int) RETURNS far IMMUTABLE LANGUAGE SQL AS \$\$
	SELECT n, md5(n::text), CASE n % 3 WHEN 0 THEN upper(md5(n || 'w')) WHEN 1 THEN md5(n || 'w') ELSE chr(233) || md5(n || 'w') END,
		CASE WHEN n % 5 > 0 THEN n % 7 END, CASE WHEN n % 4 > 0 THEN hashint4(n) / 16.0 END \$\$;
CREATE UNIQUE INDEX far_id ON far (id);
CREATE INDEX far_word ON far (word $words) INCLUDE (n);
CREATE INDEX far_small ON far (small DESC NULLS LAST, id DESC);
CREATE INDEX far_size ON far (size NULLS FIRST, word);
CREATE INDEX far_expression ON far (lower(id), (n % 10));
CREATE INDEX far_hash ON far USING hash (id);
INSERT INTO far SELECT (far(n)).* FROM generate_series(1, $there) n;
CREATE VIEW wrong AS SELECT n FROM far WHERE far::text <> far(n)::text;
SELECT postpipe_create_pipeline('far', 'stream:far', target => 'far', on_conflict => 'nothing', enabled => false);
SQL

my %asked = pages_asked_for($there + 1);
note(map { "$_ $asked{$_}\n" } sort keys %asked);
cmp_ok($asked{$_} // 0, '>', $batch / 2, "$_: its pages are asked for") for qw(far_expression far_id far_size far_small far_word);
cmp_ok($asked{far_pkey} // 0, '<', $batch / 10, 'far_pkey: it grows at its end');
ok(!exists $asked{far_hash}, 'far_hash: it is no B-tree');
all_right($there + $batch);

# --- An administrator has said that nothing is to be read ahead.
sql('ALTER SYSTEM SET maintenance_io_concurrency = 0');
sql('SELECT pg_reload_conf()');
is(join(' ', pages_asked_for($there + $batch + 1)), '', 'nothing is asked for where that is set');
all_right($there + 2 * $batch);
sql('ALTER SYSTEM RESET maintenance_io_concurrency');
sql('SELECT pg_reload_conf()');

# --- All but one of the batch are in the table already.
pages_asked_for($there + $batch + 2);
all_right($there + 2 * $batch + 1);

# --- A tree of one page, which grows.
sql('CREATE TABLE few (id text PRIMARY KEY)');
sql(q(SELECT postpipe_create_pipeline('few', 'stream:few', target => 'few')));
$redis->pipeline(map { [ 'XADD', 'stream:few', '*', id => $_ * 7919 % 10007 ] } 1 .. $batch);
wait_sql($node, 'postgres', 'SELECT count(*) FROM few', $batch, 'a tree of one page, which grows');
is(sql(q(SELECT bt_index_parent_check('few_pkey', true, true))), '', '... as it has to');

$node->stop;
done_testing();

sub sql { my ($query) = @_; return $node->safe_psql('postgres', $query) }

# A batch of the rows from this number on; returns how many pages of each index were asked for.
sub pages_asked_for
{
	my ($first) = @_;
	my $from = log_offset($node);
	my $last = $first + $batch - 1;
	my @rows = map { [ split /\|/, $_, -1 ] } split /\n/, sql("SELECT (far(n)).* FROM generate_series($first, $last) n");

	sql(q(SELECT postpipe_pause('far')));
	sql(q(SELECT postpipe_wait_state('far', 'paused')));
	$redis->pipeline(map { my %row; @row{qw(n id word small size)} = @$_; [ 'XADD', 'stream:far', '*', map { ($_ => $row{$_}) x ($row{$_} ne '') } sort keys %row ] } @rows);
	sql(q(SELECT postpipe_resume('far')));
	wait_sql($node, 'postgres', 'SELECT max(n) FROM far', $last, "rows $first to $last");
	my %pages;
	/asked ahead for (\d+) pages of index "(\w+)"/ and $pages{$2} += $1 for log_lines($node, qr/asked ahead/, $from);
	return %pages;
}

sub all_right
{
	my ($rows) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is(sql('SELECT count(*), count(DISTINCT id), (SELECT count(*) FROM wrong) FROM far'), "$rows|$rows|0", "$rows rows are there, and right");
	is(sql(q(SELECT count(bt_index_parent_check(c.oid, true, true)) FROM pg_index i JOIN pg_class c ON c.oid = indexrelid
		WHERE indrelid = 'far'::regclass AND relam = 403)), 6, '... in all B-trees, where they belong');
	return;
}
