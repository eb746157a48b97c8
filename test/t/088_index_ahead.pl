# Where an index is larger than the server's buffers, the pages where a batch's entries go are asked for before they are
# needed (index_ahead.c), and the entries are those that they would be without. TAP, because it needs Redis streams, a
# server with few buffers, and its log, where a worker says what it has asked for.
use strict;
use warnings;
use Postpipe::Test;

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('ahead', redis => $redis, conf => "shared_buffers = 1MB\npostpipe.batch_size = 1000");
my ($there, $batch) = (60_000, 1000);
sql('CREATE EXTENSION postpipe; CREATE EXTENSION amcheck; CREATE EXTENSION pageinspect');
sql(q(SELECT postpipe_drop_pipeline('posts')));
sql('ALTER DATABASE postgres SET log_min_messages = debug3');
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
CREATE INDEX far_wide ON far (repeat(id, 8) DESC);
CREATE INDEX far_equal ON far (lpad((n % 200)::text, 100)) WITH (deduplicate_items = off);
CREATE INDEX far_hash ON far USING hash (id);
INSERT INTO far SELECT (far(n)).* FROM generate_series(1, $there) n;
CREATE VIEW wrong AS SELECT n FROM far WHERE far::text <> far(n)::text;
CREATE FUNCTION leaves(index text, first int) RETURNS SETOF bigint LANGUAGE SQL AS \$\$
	SELECT DISTINCT block FROM generate_series(1, pg_relation_size(index) / current_setting('block_size')::int - 1) block,
		LATERAL bt_page_items(index, block), LATERAL unnest(coalesce(tids, ARRAY[htid])) row JOIN far ON far.ctid = row WHERE n >= first \$\$;
SELECT postpipe_create_pipeline('far', 'stream:far', target => 'far', on_conflict => 'nothing', enabled => false);
SQL

my %asked = pages_asked_for($there + 1);
for my $index (qw(far_expression far_id far_size far_small far_wide far_word))
{
	my @pages = @{ $asked{$index} // [] };
	cmp_ok(scalar @pages, '>', $batch / 2, "$index: as many pages as its keys in no order need");
	right_pages($index, \@pages);
}
cmp_ok(scalar @{ $asked{far_equal} // [] }, '>', $batch / 10, 'far_equal: one for each of its keys, of which there are few');
right_pages('far_equal', $asked{far_equal} // []);
cmp_ok(scalar @{ $asked{far_pkey} // [] }, '<', $batch / 10, 'far_pkey: it grows at its end');
ok(!exists $asked{far_hash}, 'far_hash: it is no B-tree');
all_right($there + $batch);

# --- An administrator has said that nothing is to be read ahead.
configure('maintenance_io_concurrency', 0);
is(join(' ', keys %{ { pages_asked_for($there + $batch + 1) } }), '', 'nothing is asked for where that is set');
all_right($there + 2 * $batch);
configure('maintenance_io_concurrency');

# --- All but one of the batch are in the table already.
pages_asked_for($there + $batch + 2);
all_right($there + 2 * $batch + 1);

$node->stop;
done_testing();

# A batch of the rows from this number on; returns which pages of each index were asked for.
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
	/asking ahead for page (\d+) of index "(\w+)"/ and push @{ $pages{$2} }, $1 for log_lines($node, qr/asking ahead/, $from);
	return %pages;
}

# Where the new rows are now. Some have moved since, to a page that was split off.
sub right_pages
{
	my ($index, $pages) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my %is_right = map { $_ => 1 } split /\n/, sql("SELECT leaves('$index', $there + 1)");
	my @wrong = grep { !$is_right{$_} } @$pages;
	cmp_ok(@wrong, '<=', @$pages / 10, "$index: ... and the right ones");
	note("$index: asked for " . @$pages . ', wrong ' . @wrong . ", @wrong[0 .. ($#wrong > 9 ? 9 : $#wrong)]");
	return;
}

sub all_right
{
	my ($rows) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is(sql('SELECT count(*), count(DISTINCT id), (SELECT count(*) FROM wrong) FROM far'), "$rows|$rows|0", "$rows rows are there, and right");
	is(sql(q(SELECT count(bt_index_parent_check(c.oid, true, true)) FROM pg_index i JOIN pg_class c ON c.oid = indexrelid
		WHERE indrelid = 'far'::regclass AND relam = 403)), 8, '... in all B-trees, where they belong');
	return;
}
