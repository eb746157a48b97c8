# The commands of docs/migration.md, in their order: from the Python worker to postpipe, the direct way, and back. Producers add events
# all the time, and a journal of all writes to the table proves what the document says: how often each was applied. TAP, because it takes
# two servers, other programs, and the commands come from the file.
use strict;
use warnings;
use FindBin;
use JSON::PP ();
use PostgreSQL::Test::Utils;
use Postpipe::Test;
use Postpipe::Test::Child;
use Postpipe::Test::Manual;
use Postpipe::Test::PythonWorker;

my ($stream, $group) = ('stream:posts:parsed', 'post_persist_workers');
my ($channel, $late, $never) = map { "6f1a0c7e-1111-4c1c-9d53-00000000000$_" } 1 .. 3;
my $json = JSON::PP->new->utf8->canonical;
chdir(PostgreSQL::Test::Utils::tempdir()) or die "chdir: $!";    # \copy writes a file

# The server has neither the library nor its settings; dead letters are not tried again by themselves.
my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('migration', redis => $redis, conf => "shared_preload_libraries = ''\npostpipe.max_retries = 0");
sql(<<"SQL");
CREATE ROLE app;
GRANT CREATE ON SCHEMA public TO app;
SET ROLE app;
CREATE TABLE channels (id uuid PRIMARY KEY, title text);
INSERT INTO channels VALUES ('$channel', 'one');
CREATE TABLE posts (
	id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
	channel_id uuid NOT NULL REFERENCES channels (id),
	telegram_message_id bigint NOT NULL,
	content text,
	media_urls jsonb NOT NULL DEFAULT '[]',
	posted_at timestamptz,
	created_at timestamptz NOT NULL DEFAULT now(),
	views_count int DEFAULT 0,
	is_processed boolean NOT NULL DEFAULT false,
	content_length int GENERATED ALWAYS AS (length(content)) STORED,
	UNIQUE (channel_id, telegram_message_id)
);
-- Append-only: each event has a content of its own.
CREATE TABLE journal (mark text);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO public.journal VALUES (NEW.content); RETURN NULL; END';
CREATE TRIGGER note AFTER INSERT OR UPDATE ON posts FOR EACH ROW EXECUTE FUNCTION note();
SQL

# --- What there is: a worker that has been started often, one that was stopped in a batch before, and one that runs.
$redis->command('XGROUP', 'CREATE', $stream, $group, '0', 'MKSTREAM');
$redis->pipeline(map { [ 'XGROUP', 'CREATECONSUMER', $stream, $group, "leaked-$_" ] } 1 .. 296);
my $producer = producer('faulty', \&publish);
$redis->xadd("$stream:dlq", original_stream => $stream, original_message_id => '1-1', error => 'x', channel_id => 'no-uuid', telegram_message_id => 1);
my $python = start_python();
wait_sql($node, 'postgres', 'SELECT count(*) > 100 FROM journal', 't', 'the Python worker works');
$python->stop;
cmp_ok(pending($redis, $stream, $group), '>', 0, '... and leaves something when it is stopped');
$python = start_python();
wait_sql($node, 'postgres', 'SELECT count(*) > 400 FROM journal', 't', '... which the next one does once more');

# --- The document.
my (%at_least_once, %count, $moved);
my @hooks = (
	[ before => qr/CREATE TABLE python_left/, \&note_what_python_did ],
	[ before => qr/DO \$\$/, \&mend_the_cause ],
	[ after => qr/FROM python_left WHERE applied IS NULL;/, \&apply_by_hand ],
	[ after => qr/postpipe_reap_consumers/, sub { is(foreign(), 0, 'no consumer of the Python worker is left') } ],
	[ after => qr/postpipe_wait_state\('posts', 'running'\);\n\z/, \&postpipe_works ],
	[ before => qr/enabled = off/, sub { $moved = applied() } ],
	[ after => qr/enabled = off/, \&the_direct_way ],
	[ before => qr/postpipe_replay/, \&make_dead_letters ],
	[ before => qr/left_to_python/, \&nothing_settled_is_pending ]);
my $manual = Postpipe::Test::Manual->new($node, $redis, before => sub { hook(before => @_) }, after => sub { hook(after => @_) },
	programs => {
		'systemctl restart postgresql' => sub { $python->stop; $node->restart; $python = start_python(); left_is_taken() },
		'docker stop worker-container' => sub { $python->stop },
		'docker start worker-container' => sub { $python = start_python() } });
is($manual->run(slurp_file("$FindBin::RealBin/../../docs/migration.md")), 21, 'all blocks of docs/migration.md were found');

# --- At the end: the Python worker goes on alone with what postpipe has left to it.
wait_sql($node, 'postgres', 'SELECT count(*) > ' . sql('SELECT count(*) FROM journal') . ' + 100 FROM journal', 't', 'the Python worker works again');
finish($producer, 'faulty');
wait_for { pending($redis, $stream, $group) == 0 && group_facts()->{lag} == 0 } 'everything is read and acknowledged';
$python->stop;
every_event_is_there();

$node->stop('fast');
done_testing();

sub applied { return sql('SELECT count(*) FROM journal') }
sub start_python { return Postpipe::Test::PythonWorker->new(redis => $redis, node => $node, stream => $stream, group => $group) }

# What the one before has left in the middle of a batch is done: a worker that was stopped before that would leave it once more.
sub left_is_taken
{
	return wait_for { @{ $redis->command('XPENDING', $stream, $group)->[3] // [] } <= 1 } 'the Python worker has taken what was left';
}

sub foreign { return sql(q(SELECT count(*) FROM postpipe_consumers('posts') WHERE NOT ours)) }

# What XINFO GROUPS says of the group.
sub group_facts
{
	my ($facts) = grep { $_->{name} eq $group } map { +{@$_} } @{ $redis->command('XINFO', 'GROUPS', $stream) };
	return $facts;
}

sub hook
{
	my ($when, $code) = @_;
	for my $hook (@hooks)
	{
		$hook->[2]->() if $hook->[0] eq $when && $code =~ $hook->[1];
	}
	return;
}

# --- Producers: children that send event after event until they are stopped, and then say how many it were.
sub producer
{
	my ($name, $send) = @_;
	pipe(my $from, my $to) or die "pipe: $!";
	my $work = sub {
		my ($child) = @_;
		my $n = 0;
		my $via = $send->();
		until ($child->{stop}) { $via->(event($name, ++$n), $n); select(undef, undef, undef, 0.004) }
		return syswrite($to, "$n\n");
	};
	return Postpipe::Test::Child->new(from => $from, work => $work);
}

sub finish
{
	my ($producer, $name) = @_;
	$producer->stop;
	my $n = readline($producer->{from});
	chomp $n;
	cmp_ok($n, '>', 50, "producer $name sent $n events");
	$count{$name} = $n;
	return;
}

# Every tenth is a second event of the post before. Some are of a channel that comes later.
sub event
{
	my ($name, $n) = @_;
	my $base = { faulty => 1_000_000, direct => 2_000_000 }->{$name};
	my $key = $base + ($n % 10 == 5 ? $n - 1 : $n);
	return { channel_id => $name eq 'faulty' && $n % 40 == 37 ? $late : $channel, telegram_message_id => $key, text => "$name $n" };
}

# In the three formats, with what the Python worker will do wrong about it.
sub publish
{
	my $client = Postpipe::Test::Client->new($redis->port);
	my %fault = (7 => 'swallowed', 17 => 'dead', 25 => 'dead', 33 => 'twice');
	return sub {
		my ($event, $n) = @_;
		my @fault = $fault{ $n % 40 } && !-e 'no_faults' ? (fault => $fault{ $n % 40 }) : ();
		my @fields = $n % 3 == 0 ? %$event : (data => $json->encode($event));
		push(@fields, event_type => 'post.created', timestamp => '2026-01-01T00:00:00Z', source => 'sync', dedup_key => "d$n") if $n % 3 == 2;
		return $client->command('XADD', $stream, '*', @fields, @fault);
	};
}

sub ingest
{
	my $session = pp_session($node);
	return sub {
		my ($event) = @_;
		my $said = $session->("SELECT postpipe_ingest('posts', '" . $json->encode($event) . "')");
		return $said eq "1\n" || die "postpipe_ingest: $said";
	};
}

# --- What happens between the blocks of the document.

# What it has written more than once, or has written and not acknowledged: the one thing that is not exact.
sub note_what_python_did
{
	open(my $fh, '>', 'no_faults') or die "no_faults: $!";
	close($fh);
	$at_least_once{$_} = 1 for split /\n/, sql('SELECT mark FROM journal GROUP BY 1 HAVING count(*) > 1');
	my $pending = sql(q(SELECT string_agg(coalesce(event ->> 'text', ''), E'\n') FROM postpipe_peek('posts', max_entries => 1000000) WHERE status = 'pending'));
	my %written = map { $_ => 1 } split /\n/, sql('SELECT mark FROM journal');
	my @both = grep { $written{$_} } split /\n/, $pending;
	is(scalar @both, 1, 'it was stopped between an upsert and its XACK');
	$at_least_once{ $both[0] } = 1;
	is(sql(q(SELECT count(*) FROM postpipe_workers WHERE pipeline IS NOT NULL)), 0, 'postpipe has read nothing so far');
	return;
}

sub mend_the_cause
{
	my %of = map { split /\|/ } split /\n/, sql(q(SELECT concat(in_dlq, has_row), count(*) FROM python_left GROUP BY 1));
	cmp_ok($of{$_} // 0, '>', 0, "there are entries of the kind $_") for qw(f t tt);    # acknowledged, dead, dead and an update
	sql(qq(INSERT INTO channels VALUES ('$late', 'late')));
	return;
}

# As the document says: an update that failed is applied on purpose, a copy of what was applied is not; what nothing helps stays.
sub apply_by_hand
{
	is(sql(q(SELECT string_agg(concat(id, ' ', error), ', ') FROM python_left WHERE applied IS NULL AND has_row IS NULL)), '1-1 invalid input syntax for type uuid: "no-uuid"',
		'what cannot be applied stays, with its reason');
	cmp_ok(sql(q(SELECT count(*) FROM python_left WHERE applied = 1)), '>', 10, 'all others are');
	my $n = sql(q(WITH u AS (UPDATE python_left SET has_row = NULL WHERE has_row AND event ->> 'text' NOT IN (SELECT mark FROM journal) RETURNING 1) SELECT count(*) FROM u));
	cmp_ok($n, '>', 0, 'updates that failed are chosen by hand');
	my ($do) = slurp_file("$FindBin::RealBin/../../docs/migration.md") =~ /^(DO \$\$.*?END \$\$;)/ms;
	sql($do) for 1 .. 2;
	is(sql(q(SELECT count(*) FROM python_left WHERE applied IS NULL AND has_row IS NULL)), 1, '... and applied');
	return;
}

sub postpipe_works
{
	wait_sql($node, 'postgres', 'SELECT count(*) > ' . applied() . ' + 100 FROM journal', 't', 'postpipe works');
	wait_sql($node, 'postgres', q(SELECT count(*) FROM postpipe_pending('posts', 1000) WHERE consumer NOT LIKE 'postpipe:%'), 0, 'nothing is pending for the Python worker');
	# While entries are moving there is no balance, and it says so.
	kill('STOP', $producer->pid);
	wait_sql($node, 'postgres', q(SELECT balance, dead, lost, reason FROM postpipe_audit WHERE pipeline = 'posts' ORDER BY epoch DESC LIMIT 1), '0|0|0|', '... and the audit is exact');
	kill('CONT', $producer->pid);
	return;
}

# One producer has changed over, the other one still publishes; nobody reads.
sub the_direct_way
{
	wait_sql($node, 'postgres', q(SELECT count(*) FROM postpipe_workers WHERE backend_type LIKE '%worker'), 0, 'nothing is read');
	my $direct = producer('direct', \&ingest);
	my $before = sql(q(SELECT ingested FROM postpipe_audit WHERE pipeline = 'posts' ORDER BY epoch DESC LIMIT 1));
	wait_sql($node, 'postgres', qq(SELECT ingested - $before > 60 FROM postpipe_audit WHERE pipeline = 'posts' ORDER BY epoch DESC LIMIT 1), 't', 'events go into the table directly');
	finish($direct, 'direct');
	is(sql(q(SELECT count(*) FROM journal WHERE mark LIKE 'direct %')), $count{direct}, '... each once');
	is(sql(q(SELECT postpipe_ingest('posts', '{"channel_id": "x"}', '1764200000000-7'))), 0, 'the second call with an ID does nothing');
	return;
}

# Two that can be applied after all, one that cannot, one that is no JSON.
sub make_dead_letters
{
	my $other = $never =~ s/3$/4/r;
	$redis->xadd($stream, channel_id => $other, telegram_message_id => $_, text => "replayed $_") for 1, 2;
	$redis->xadd($stream, channel_id => $never, telegram_message_id => 3, text => 'never');
	$redis->xadd($stream, data => '[not JSON');
	wait_sql($node, 'postgres', q(SELECT count(*) FROM postpipe_dlq WHERE pipeline = 'posts'), 4, 'four dead letters');
	sql(qq(INSERT INTO channels VALUES ('$other', 'other')));
	return;
}

sub nothing_settled_is_pending
{
	is(sql(q(SELECT count(*) FROM postpipe_dlq)), 0, 'no dead letter is left in the database');
	my $file = slurp_file('postpipe_dlq.csv');
	like($file, qr/^posts,.*,23503,.*""never""/ms, '... they are in the file: one of a channel that is not there');
	like($file, qr/^posts,.*,22P02,/m, '... and one that is no JSON');
	my ($last) = @{ $redis->command('XREVRANGE', "$stream:dlq", '+', '-', 'COUNT', 1) };
	my $event = $json->decode({ @{ $last->[1] } }->{data});
	is("$event->{text} $event->{original_stream} $event->{retry_count}", "never $stream 1", '... and the event is in the stream of dead letters');
	is(sql(q(SELECT count(*) FROM postpipe_pending('posts', 1000000) WHERE in_ledger)), 0, 'nothing that is settled is pending');
	return;
}

# Each event of each producer is in the journal once; those that the Python worker itself had in hand at a stop, twice.
sub every_event_is_there
{
	my %journal = map { split /\|/ } split /\n/, sql('SELECT mark, count(*) FROM journal GROUP BY 1');
	my @expected = map { my $name = $_; map { "$name $_" } 1 .. $count{$name} } sort keys %count;
	push(@expected, 'replayed 1', 'replayed 2');
	my @missing = grep { !$journal{$_} } @expected;
	is("@missing[0 .. ($#missing > 9 ? 9 : $#missing)]", '', 'of ' . @expected . ' events none is lost');
	is(delete $journal{Hello}, 2, '... nor one of the document');
	my @more = grep { $journal{$_} > ($at_least_once{$_} ? 2 : 1) } sort keys %journal;
	is("@more", '', '... and none was applied twice, but for those that the Python worker wrote without acknowledging them');
	cmp_ok(scalar keys %at_least_once, '<=', 8, '... of which there are ' . join(', ', sort keys %at_least_once));
	is(scalar keys %journal, scalar @expected, '... and there is nothing else');
	is(sql('SELECT count(*) FROM posts'), sql('SELECT count(DISTINCT (channel_id, telegram_message_id)) FROM posts'), '... with a row for each post');
	return;
}
