# A publication FOR ALL TABLES has the extension's own tables, too: they go on being written, and are the same on the subscriber.
# TAP, because it needs a Redis stream, background workers and two servers.

use strict;
use warnings;
use PostgreSQL::Test::Cluster;
use Postpipe::Test;
use Postpipe::Test::Hits;

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('publisher', redis => $redis, allows_streaming => 'logical');
my $hits = Postpipe::Test::Hits->new(node => $node, redis => $redis, options => '{"batch_size": 1}');
$hits->sql('CREATE PUBLICATION everything FOR ALL TABLES');
my $subscriber = pp_node('subscriber', databases => 'none');
$subscriber->safe_psql('postgres', 'CREATE EXTENSION postpipe; CREATE ROLE hits_owner; CREATE TABLE hits (id text)');
$subscriber->safe_psql('postgres', sprintf(q(CREATE SUBSCRIPTION everything CONNECTION $$%s$$ PUBLICATION everything), $node->connstr('postgres')));

# After a thousand batches the ledger is looked after: rows are merged, closed, and pruned.
$hits->publish(3000);
$hits->settled('small batches');
wait_sql($node, 'postgres', 'SELECT count(*) < 2000 FROM postpipe_ledger', 't', 'the ledger is compacted');
is($hits->sql(q(SELECT last_error FROM postpipe_stats WHERE pipeline = 'hits')), '', '... without an error');
my @own = split /\n/, $hits->sql(q(SELECT c.relname FROM pg_class c JOIN pg_depend d ON d.objid = c.oid AND d.classid = 'pg_class'::regclass AND d.deptype = 'e'
	WHERE c.relkind = 'r' ORDER BY 1));
cmp_ok(scalar @own, '>=', 7, 'our own tables');
for my $table (@own)
{
	my (undef, undef, $error) = $node->psql('postgres', "BEGIN; UPDATE $table SET pipeline = pipeline WHERE false; DELETE FROM $table WHERE false; ROLLBACK");
	is($error, '', "rows of $table can be updated and deleted");
}
pp_balanced($node);
$hits->sql(q(SELECT postpipe_pause('hits')));
$hits->shows(qr/^paused/, 'paused');
$node->wait_for_catchup('everything');
for my $table ('hits', @own)
{
	my $rows = "SELECT count(*), md5(string_agg(t::text, ' ' ORDER BY t::text COLLATE \"C\")) FROM $table t";
	wait_sql($subscriber, 'postgres', $rows, $hits->sql($rows), "the subscriber has the same rows in $table");
}
is($hits->sql(q(SELECT postpipe_drop_pipeline('hits'))), 't', 'the pipeline is dropped');
is($hits->sql('SELECT count(*) FROM postpipe_ledger'), 0, '... and its ledger with it');

done_testing();
