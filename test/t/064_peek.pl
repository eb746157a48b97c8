# postpipe_peek(): entries of the stream as the pipeline sees them, and what became of each. TAP, because it needs a Redis
# with another consumer, and entries in every state.

use strict;
use warnings;
use Postpipe::Test;

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('peek', redis => $redis, conf => "postpipe.max_retries = 100\npostpipe.retry_delay = 1h\nmax_files_per_process = 100");
sql('CREATE EXTENSION postpipe');
sql(q(SELECT postpipe_drop_pipeline('posts')));
sql(q(CREATE TABLE looked (v text CHECK (v <> 'later'))));
sql(q(SELECT postpipe_create_pipeline('looked', 'stream:looked', target => 'looked', event_types => '{wanted}')));

# --- Nothing to be seen: no stream; an empty one.
is(sql(q(SELECT count(*) FROM postpipe_peek('looked'))), 0, 'an empty stream');

# --- What is settled, with its event.
my @ids;
push(@ids, $redis->xadd('stream:looked', @$_)) for (
	[ v => 'flat' ],
	[ data => '{"v": "json", "n": 1.50, "deep": {"a": [null]}}', source => 'bot' ],
	[ v => 'other', event_type => 'unwanted' ],
	[ data => '[1]' ],
	[ v => 'later' ]);
wait_sql($node, 'postgres', q(SELECT applied, filtered, dead, retrying FROM postpipe_audit WHERE pipeline = 'looked'), '2|1|1|1', 'all are settled');
is(sql(q(SELECT id, event, envelope, status FROM postpipe_peek('looked'))), join("\n",
		"$ids[0]|{\"v\": \"flat\"}||applied", "$ids[1]|{\"n\": 1.50, \"v\": \"json\", \"deep\": {\"a\": [null]}}|{\"source\": \"bot\"}|applied",
		"$ids[2]|{\"v\": \"other\", \"event_type\": \"unwanted\"}||filtered", "$ids[3]|||dead", "$ids[4]|{\"v\": \"later\"}||retrying"), 'what became of each');
is(sql(q(SELECT bool_and(added_at = postpipe_id_time(id)) FROM postpipe_peek('looked'))), 't', '... and when it was added');

# --- What is not: read by another consumer, which acknowledges one of them; and by nobody.
sql(q(SELECT postpipe_pause('looked')));
sql(q(SELECT postpipe_wait_state('looked', 'paused')));
wait_for { $redis->cli('CLIENT', 'LIST') !~ /name=postpipe:\d+:\d+:looked:1 / } 'nobody reads';
push(@ids, $redis->xadd('stream:looked', v => "more $_")) for 1 .. 4;
$redis->command('XREADGROUP', 'GROUP', 'postpipe_looked', 'python', 'COUNT', 3, 'STREAMS', 'stream:looked', '>');
$redis->command('XACK', 'stream:looked', 'postpipe_looked', $ids[6]);
is(sql("SELECT string_agg(coalesce(status, 'null'), ' ' ORDER BY id) FROM postpipe_peek('looked', '$ids[5]')"), 'pending null pending unread', 'pending, acknowledged by somebody else, unread');

# --- Ranges.
is(peeked("'($ids[0]', '$ids[2]'"), 2, 'a bracket leaves the first one out');
is(peeked("'-', '($ids[2]'"), 2, '... or the last one');
is(peeked("'$ids[2]', '$ids[1]'"), 0, 'a range that is none');
is(peeked("max_entries => 3"), 3, 'as many as asked for');
my ($ms) = split /-/, $ids[0];
is(sql("SELECT min(id) = '$ids[0]' FROM postpipe_peek('looked', '$ms')"), 't', 'milliseconds alone: from the first one');
is(sql("SELECT min(id) = '$ids[0]' FROM postpipe_peek('looked', '-', '$ms')"), 't', '... to the last one');
$redis->pipeline(map { [ 'XADD', 'stream:looked', '*', 'v', "many $_" ] } 1 .. 1000);
is(peeked('max_entries => 100000'), 1009, 'more than a page');
is(sql(q(SELECT count(DISTINCT id) FROM postpipe_peek('looked', max_entries => 100000))), 1009, '... each once');
$redis->command('XADD', 'stream:looked', '*', 'v', 'x' x 20_000_000) for 1 .. 3;
is(sql(q(SELECT count(*), max(length(event ->> 'v')) FROM postpipe_peek('looked', max_entries => 2000))), '1012|20000000', 'large entries');

# --- More entries are pending than are there: those that are gone lie between.
$redis->command('XGROUP', 'CREATE', 'stream:gaps', 'postpipe_gaps', 0, 'MKSTREAM');
sql(q(SELECT postpipe_create_pipeline('gaps', 'stream:gaps', target => 'looked', enabled => false)));
my @gaps = $redis->pipeline(map { [ 'XADD', 'stream:gaps', '*', 'v', $_ ] } 1 .. 1004);
$redis->command('XREADGROUP', 'GROUP', 'postpipe_gaps', 'python', 'COUNT', 1003, 'STREAMS', 'stream:gaps', '>');
$redis->command('XDEL', 'stream:gaps', @gaps[ 2 .. 1001 ]);
is(sql(q(SELECT string_agg(status, ' ' ORDER BY id) FROM postpipe_peek('gaps'))), 'pending pending pending unread', 'both sides of a thousand that are gone are pending');

# --- A group that is gone, and then a stream that is none.
sql(q(SELECT postpipe_create_pipeline('lonely', 'stream:looked', target => 'looked', enabled => false)));
is(sql(q(SELECT DISTINCT coalesce(status, 'null') FROM postpipe_peek('lonely'))), 'unread', 'no group yet: all is unread');
$redis->command('SET', 'stream:string', 'x');
sql(q(SELECT postpipe_create_pipeline('typed', 'stream:string', target => 'looked', enabled => false)));
like(error(q(SELECT * FROM postpipe_peek('typed'))), qr/WRONGTYPE/, 'a key of another type');

# --- A session that asks often: each connection is given back, of a call that fails, too. All files of extensions together have
# a limit, which is far below a hundred here.
for my $case ([ 'lonely', 'succeed' ], [ 'typed', 'fail' ])
{
	is(sql(<<SQL), 1, "a hundred calls in a session that $case->[1]");
DO \$\$ BEGIN
	FOR i IN 1 .. 100 LOOP
		BEGIN PERFORM postpipe_peek('$case->[0]'); EXCEPTION WHEN OTHERS THEN NULL; END;
	END LOOP;
END \$\$;
SELECT count(*) FROM postpipe_peek('lonely', max_entries => 1);
SQL
}

# --- What cannot be asked.
like(error(q(SELECT * FROM postpipe_peek('looked', 'yesterday'))), qr/invalid from_id "yesterday".*HINT:.*entry ID/s, 'an ID that is none');
like(error(q{SELECT * FROM postpipe_peek('looked', to_id => '(x')}), qr/invalid to_id "\(x"/, '... with a bracket');
like(error(q(SELECT * FROM postpipe_peek('looked', max_entries => 0))), qr/max_entries must be greater than zero/, 'no entries');
like(error(q(SELECT * FROM postpipe_peek('absent'))), qr/pipeline "absent" does not exist/, 'no such pipeline');
$redis->stop;
like(error(q(SELECT * FROM postpipe_peek('looked'))), qr/ERROR:  Redis: .*HINT/s, 'Redis is away');
$node->stop;
done_testing();

sub peeked { my ($arguments) = @_; return sql("SELECT count(*) FROM postpipe_peek('looked', $arguments)") }
