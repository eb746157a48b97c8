# What others measure by: counters that only grow until they begin anew, and say so; the transaction IDs that a pipeline takes; what
# the server knows of a table that is written. TAP, because a server crashes, and others look while workers work.

use strict;
use warnings;
use Postpipe::Test;
use Postpipe::Test::Child;
use Postpipe::Test::Pipelines qw(make xadds drop pause resume rows wait_state letters balanced);
use Time::HiRes ();

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('numbers', redis => $redis, conf => "autovacuum = off\nautovacuum_naptime = 1s\nautovacuum_analyze_scale_factor = 0\nautovacuum_analyze_threshold = 10\npostpipe.max_retries = 0");
sql('CREATE EXTENSION postpipe');
sql(q(SELECT postpipe_drop_pipeline('posts')));

# --- Transaction IDs: one for each batch, and few for an entry that is bad, whatever the number of entries.
make('xids', options => '{"batch_size": 20}');
sql(q(ALTER TABLE t_xids ADD CHECK (v <> 'bad')));
add('xids', 1);
rows('xids', 1);
my ($xids, $batches) = burned('xids', 2000, sub { add('xids', 2000) });
rows('xids', 2001);
cmp_ok($batches, '>=', 100, '2000 entries are a hundred batches or more');
cmp_ok($xids, '>=', $batches, '... each with a transaction ID');
cmp_ok($xids, '<=', $batches + 20, '... and nearly none besides');
($xids, $batches) = burned('xids', 200, sub { for (1 .. 10) { add('xids', 10); $redis->xadd('stream:xids', v => 'bad'); add('xids', 9) } });
letters('xids', 10);
# 2 log2(20) + 2 runs of the statement for one that is bad, each in a subtransaction.
cmp_ok($xids, '<=', $batches + 10 * 12 + 20, 'ten entries that are bad take few');
cmp_ok($xids, '>', $batches, '... which were counted');
sql('ALTER TABLE t_xids RENAME TO away');
add('xids', 1);
wait_state('xids', 'failed');
my $before = next_xid();
my %seen;
wait_for { my $at = sql(q(SELECT next_attempt_at FROM postpipe_workers WHERE pipeline = 'xids')); $seen{$at}++ if $at; keys %seen > 4 } 'it fails again and again';
cmp_ok(next_xid() - $before, '<=', 10 * keys %seen, '... which takes few, too');
sql('ALTER TABLE away RENAME TO t_xids');
rows('xids', 2192);
balanced('xids');

# --- Counters while who scrapes looks at them, as often as it can: none goes back, and each histogram is one.
sql(<<'SQL');
CREATE TABLE scraped (n int, complaint text);
CREATE TABLE looks (pid int);
CREATE TABLE enough ();
CREATE PROCEDURE scrape(forever boolean) LANGUAGE plpgsql AS $$
DECLARE
	before jsonb := '{}';
	now jsonb;
	wrong text;
	n int := 0;
BEGIN
	LOOP
		EXIT WHEN to_regclass('public.enough') IS NULL;
		BEGIN
			SELECT jsonb_object_agg(concat(name, labels), value) INTO now FROM postpipe_metrics WHERE type <> 'gauge' AND value IS NOT NULL;
			SELECT string_agg(format('%s: %s, %s', key, before ->> key, value), '; ') INTO wrong FROM jsonb_each_text(now) WHERE value::float8 < (before ->> key)::float8;
			SELECT concat(wrong, string_agg(format('%s%s: %s of %s', name, labels, buckets, count), '; ')) INTO wrong FROM postpipe_histograms
				WHERE count < buckets[cardinality(buckets)] OR EXISTS (SELECT FROM generate_subscripts(buckets, 1) i WHERE buckets[i] < buckets[i - 1]);
			PERFORM count(*) FROM postpipe_prometheus();
			PERFORM count(*) FROM postpipe_stats, postpipe_audit;
			INSERT INTO scraped SELECT n, wrong WHERE wrong <> '';
			INSERT INTO looks VALUES (pg_backend_pid());
			before := now;
		EXCEPTION WHEN OTHERS THEN
			IF NOT forever THEN RAISE; END IF;
			INSERT INTO scraped VALUES (n, SQLSTATE);
		END;
		COMMIT;
		n := n + 1;
	END LOOP;
	INSERT INTO scraped VALUES (n, NULL);
END $$;
SQL
make('seen', workers => 2, options => '{"batch_size": 10}');
my @scrapers = map { scraper('false') } 1 .. 4;
my $n = 0;
wait_for { $n += add('seen', 200); $n >= 4000 && sql('SELECT count(*) FROM (SELECT FROM looks GROUP BY pid HAVING count(*) > 5) x') == 4 } 'each of four has looked many times, while entries came';
rows('seen', $n, 'they look all the time');
wait_for { running() } 'they look still';
sql('DROP TABLE enough');
ended($_) for @scrapers;
is(sql(q(SELECT count(*) FILTER (WHERE complaint IS NULL AND n > 5), string_agg(complaint, '; ') FROM scraped)), '4|', '... and find nothing wrong, each of them many times');
is(sql(q(SELECT count(*), count(DISTINCT v) FROM t_seen)), "$n|$n", '... while each entry is applied once');

# --- A crash of the server: the counters begin anew, which stats_reset says; the audit, of tables, does not.
my $numbers = q(SELECT entries_read, entries_applied, entries_deduplicated, entries_dead, batches, stats_reset, (SELECT applied FROM postpipe_audit a WHERE a.pipeline = s.pipeline) FROM postpipe_stats s WHERE pipeline = 'crash');
make('crash', options => '{"batch_size": 10}');
my $child = Postpipe::Test::Child->new(work => sub { my ($self) = @_; my $n = 0; my $client = Postpipe::Test::Client->new($redis->port); until ($self->{stop}) { $client->command('XADD', 'stream:crash', '*', 'v', "c$$." . ++$n); Time::HiRes::usleep(2000) } });
my (@samples, @resets);
for my $crash (0 .. 2)
{
	my $from = log_offset($node);
	kill('KILL', sql(q(SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'))) if $crash;
	wait_for { log_lines($node, qr/all server processes terminated; reinitializing/, $from) } "crash $crash" if $crash;
	my $more = 0;
	wait_for
	{
		my $sample = sample() or return 0;
		push @samples, $sample;
		push @resets, $sample->[5] if $sample->[5] ne ($resets[-1] // '');
		$sample->[1] > 0 && @resets == $crash + 1 && ++$more > 20
	}
	"crash $crash: it is looked at";
}
$child->stop;
my $all = $redis->command('XLEN', 'stream:crash');
rows('crash', $all, 'after two crashes: each entry once');
balanced('crash');
my @wrong;
for my $i (1 .. $#samples)
{
	my ($old, $new) = @samples[ $i - 1, $i ];
	push @wrong, "@$old, @$new" if $new->[5] lt $old->[5] || ($new->[5] eq $old->[5] && grep { $new->[$_] < $old->[$_] } 0 .. 4, 6);
}
is(join("\n", @wrong), '', 'what is counted never goes back without a word');
is(scalar @resets, 3, '... which is said at each crash');
wait_sql($node, 'postgres', q(SELECT entries_read = entries_applied + entries_deduplicated + entries_dead FROM postpipe_stats WHERE pipeline = 'crash'), 't', 'what was read since is applied, or was before');
is((sample())->[6], $all, 'the audit has all of them');

# --- The server knows how much is written while the worker has no pause, and analyzes the table.
my %statements = (statement => q(INSERT INTO t_%s SELECT event ->> 'v' FROM postpipe_batch, pg_sleep(0.02)), target => undef);
sql('CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN PERFORM pg_sleep(0.02); RETURN NEW; END$$');
configure('autovacuum', 'on');
for my $kind (sort keys %statements)
{
	sql("CREATE TABLE t_$kind (v text)");
	sql("CREATE TRIGGER slow BEFORE INSERT ON t_$kind FOR EACH ROW EXECUTE FUNCTION slow()") if $kind eq 'target';
	sql("SELECT postpipe_create_pipeline('$kind', 'stream:$kind', options => '{\"batch_size\": 1}', enabled => false, " . ($kind eq 'target' ? "target => 't_$kind')" : sprintf("statement => \$\$$statements{$kind}\$\$)", $kind)));
	add($kind, 1000);
	resume($kind);
	wait_sql($node, 'postgres', "SELECT n_tup_ins > 0 AND (SELECT count(*) FROM t_$kind) < 1000 FROM pg_stat_user_tables WHERE relname = 't_$kind'", 't', "$kind: rows are reported while it has no pause");
	pause($kind);
	wait_sql($node, 'postgres', "SELECT autoanalyze_count > 0 FROM pg_stat_user_tables WHERE relname = 't_$kind'", 't', '... and the table is analyzed');
	$redis->command('DEL', "stream:$kind");
	sql("SELECT postpipe_drop_pipeline('$kind')");
}

# --- The extension goes while others look: they are told so, or see nothing.
sql('TRUNCATE scraped; CREATE TABLE enough ()');
@scrapers = map { scraper('true') } 1 .. 4;
for my $round (1 .. 5)
{
	wait_for { running() } "round $round: they look";
	is(error('SET statement_timeout = $$60s$$; SET deadlock_timeout = $$50s$$; SET client_min_messages = error; DROP EXTENSION postpipe CASCADE; CREATE EXTENSION postpipe'), '', '... while the extension goes and comes');
}
sql('DROP TABLE enough');
ended($_) for @scrapers;
is(sql(q(SELECT count(*) FROM scraped WHERE complaint IS NULL)), 4, 'they come to an end');
is(sql(q(SELECT string_agg(DISTINCT complaint, ' ') FROM scraped WHERE complaint NOT IN ('42P01', '42883', '55000', 'XX000', '40P01'))), '', '... and were told nothing but that it was not there, or that it was about to go');
is(scalar(grep { !/by signal 9/ } log_lines($node, qr/terminated by signal|PANIC/)), 0, 'nothing has crashed by itself');
$node->stop;
done_testing();

sub add { my ($name, $n) = @_; return $redis->pipeline(xadds($name, $n)) }
sub next_xid { return sql('SELECT pg_snapshot_xmax(pg_current_snapshot())') }

# Transaction IDs and batches of n entries that are added while the pipeline is paused, and read then.
sub burned
{
	my ($name, $n, $do) = @_;
	my $settled = "SELECT entries_applied + entries_dead FROM postpipe_stats WHERE pipeline = '$name'";
	my $all = sql($settled) + $n;
	my $has = "SELECT batches FROM postpipe_stats WHERE pipeline = '$name'";
	pause($name);
	my $since = next_xid();
	my $batches_before = sql($has);
	$do->();
	resume($name);
	wait_sql($node, 'postgres', $settled, $all, "$name: all is settled");
	return (next_xid() - $since - 2, sql($has) - $batches_before); # pause and resume
}

# Nothing while the server is not up, or no process of ours is.
sub sample
{
	my ($rc, $out) = $node->psql('postgres', $numbers, on_error_die => 0, timeout => 30);
	return $rc == 0 && $out =~ /^\d/ ? [ split /\|/, $out ] : undef;
}

# A session that looks until the table is gone.
sub scraper { my ($forever) = @_; return pp_start($node, "CALL scrape($forever)") }
sub running { return sql(q(SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'CALL scrape%')) == 4 }

sub ended
{
	my ($scraper) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is($scraper->(), '', 'one that has looked');
}
