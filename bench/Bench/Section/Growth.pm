# Does it stay as fast and as small? Backlogs of up to five million entries, 100,000 entries that are pending at a restart,
# 50 pipelines, and (--long) a table that is full already.
package Bench::Section::Growth;

use strict;
use warnings;
use Bench::Meter;
use Bench::Pipeline;
use Bench::Posts;
use Bench::Rounds;
use List::Util qw(min);
use Time::HiRes qw(time);

my $piece = 250_000; # posts that are in Redis at one time: some 300 MB
my $beside_each = 3; # small backlogs before each piece
my $copies = 3; # by COPY, at the end
my $disk_rounds = 3; # into a table that is not in memory
my $disk_share = 1 / 10;
my $disk_buffers = '128MB'; # less than an index of the largest backlog
my $pipelines = 50;
my $restart_share = 1 / 2;
my ($bytes_per_post, $bytes_besides) = (1_800, 9e9); # of the table with its indexes, the ledger; of WAL and generated posts

sub run
{
	my ($stage) = @_;
	my $pipeline = Bench::Pipeline->posts($stage);
	my $rounds = Bench::Rounds->new($stage, 'growing backlogs, and many of everything');
	my $largest = largest($stage, $rounds);
	my ($small, $medium, $large) = map { int($largest / $_) } 500, 50, 5;

	my $restart = Bench::Posts->new($stage, entries => $stage->entries($restart_share));
	$rounds->compare(contenders => [
		(map { my $n = $_; "backlog_$n" => sub { backlog($stage, $pipeline, [$n])->{$n} } } $small, $medium),
		backlog => sub { new_backlog($stage, $pipeline, $restart) },
		pending => sub { pending($stage, $pipeline, $restart) }
	]);
	Bench::Posts::forget();
	$stage->sql('CREATE TABLE posts_beside (LIKE posts INCLUDING ALL)');
	my ($long, $beside) = backlog_with_small_ones($stage, $pipeline, [ $large, $largest ], $small);
	my $last = $long->{$largest}{last};
	my @copied = map { copy_more($stage, $largest + $_ * $last->{entries}, $last->{entries}) } 0 .. $copies - 1;
	$stage->sql('DROP TABLE posts_beside');
	my $disk = from_disk($stage, $pipeline, $largest + $copies * $last->{entries});
	my $many = many_pipelines($stage);
	my $full = $stage->option('long') ? full_table($stage, $pipeline, 2 * $largest) : undef;
	$stage->empty('posts');

	my $plain = plain_backend_kb($stage);
	my $above_mb = ($long->{$largest}{memory_kb} - $plain) / 1024;

	$rounds->once('time_largest_to_smallest', "time per entry, $largest / $small", '',
		microseconds($long->{$largest}) / microseconds($beside), 'at most', 1.1)
	  ->once('time_beside', "time per entry, backlogs of $small beside that of $largest", 'us', microseconds($beside))
	  ->once('last_to_copy', "last $last->{entries} of $largest / COPY of as many more", '',
		Bench::Rounds::median(map { microseconds($_->{large}) } @copied) / microseconds($last))
	  ->value('copy_large_to_empty', "COPY of $last->{entries} into the table of $largest / into an empty one", '',
		[ map { Bench::Rounds::rounded($_->{large}{seconds} / $_->{empty}{seconds}) } @copied ])
	  ->value('disk_to_copy', "into a table of $largest that is not in memory, postpipe / COPY", '',
		[ map { Bench::Rounds::rounded($_->{copy} / $_->{postpipe}) } @$disk ])
	  ->value('disk_time', '... time per entry', 'us', [ map { Bench::Rounds::rounded($_->{postpipe} * 1e6) } @$disk ])
	  ->once('memory_above_backend', "memory at $largest above a plain backend", 'MB', $above_mb, 'at most', 64)
	  ->ratio('pending_to_backlog', "$restart->{entries} entries, pending at the start / new", 'pending', 'backlog')
	  ->once('pipelines_to_one', "$pipelines pipelines / one, entries per second", '', $many->{ratio})
	  ->once('pipelines_memory', "memory of a worker of $pipelines pipelines", 'MB', $many->{memory_kb} / 1024);
	$rounds->once('full_table', 'into a table of ' . 2 * $largest . ' rows, postpipe / COPY', '', $full->{to_copy})
	  ->once('full_table_to_empty', '... full table / empty table', '', $full->{to_empty})
	  if $full;
	for my $size ([ smallest => $small ], [ small => $medium ])
	{
		my ($name, $entries) = @$size;
		$rounds->figure("time_$name", "time per entry, backlog of $entries", 'us', sub { microseconds($_[0]{"backlog_$entries"}) });
	}
	for my $size ([ large => $large ], [ largest => $largest ])
	{
		my ($name, $entries) = @$size;
		$rounds->once("time_$name", "time per entry, backlog of $entries", 'us', microseconds($long->{$entries}))
		  ->once("memory_$name", "memory, backlog of $entries", 'MB', $long->{$entries}{memory_kb} / 1024);
	}
	return $rounds->contender('backlog', "$restart->{entries} new entries")
	  ->contender('pending', "$restart->{entries} entries that were pending")
	  ->note("One worker process from the first to the last entry; it is held (SIGSTOP) while the next $piece are published, and"
		  . ' the time counts while it runs. The table grows with the backlog.')
	  ->note("Once: the backlogs of $large (part of that of $largest) and $largest, and the $pipelines pipelines.")
	  ->note('A plain backend has ' . sprintf('%.1f MB', $plain / 1024) . ' of private memory.')
	  ->result;
}

sub microseconds
{
	my ($result) = @_;
	return $result->{seconds} / $result->{entries} * 1e6;
}

# The largest backlog for which there is room on the disk.
sub largest
{
	my ($stage, $rounds) = @_;
	my $wanted = $stage->option('largest');
	my ($free_kb) = (split ' ', (split /\n/, $stage->run('df -Pk .'))[1])[3];
	my $rows = $wanted * ($stage->option('long') ? 3 : 1);
	return $wanted if $stage->quick || $free_kb * 1024 > $rows * $bytes_per_post + $bytes_besides;

	my $fits = int($wanted / 10);
	$rounds->note("The largest backlog is $fits instead of $wanted: the disk has " . int($free_kb / 1e6) . ' GB left.');
	return $fits;
}

# Before each piece of a large backlog some small ones, each into an empty table of the same kind. What the host of a virtual
# machine does changes within minutes: so it hits both. Returns what all small ones together have needed, too.
sub backlog_with_small_ones
{
	my ($stage, $pipeline, $marks, $small) = @_;
	my %all = (entries => 0, seconds => 0);

	my $beside = Bench::Pipeline->like_posts($stage, 'beside', 'posts_beside');
	$beside->resume;
	$beside->wait_state('idle');
	my ($pid) = $beside->pids;
	my $meter = Bench::Meter->new($pid);
	my $at = backlog($stage, $pipeline, $marks, sub {
		for (1 .. $beside_each)
		{
			$stage->sql('TRUNCATE posts_beside');
			my $posts = Bench::Posts->new($stage, entries => $small, stream => $beside->{stream});
			$all{seconds} += drain_held($beside, $posts, $pid, $meter);
			$all{entries} += $small;
		}
	});
	$beside->pause;
	$beside->drop;
	return ($at, \%all);
}

# One process drains all; returns what it had needed at each of the marks, the last of which is the end.
sub backlog
{
	my ($stage, $pipeline, $marks, $before) = @_;
	my ($done, $seconds, $last, %at) = (0, 0);

	$stage->empty('posts');
	$stage->redis("XTRIM $pipeline->{stream} MAXLEN 0");
	$pipeline->resume;
	$pipeline->wait_state('idle');
	my ($pid) = $pipeline->pids;
	my $meter = Bench::Meter->new($pid);
	for my $mark (@$marks)
	{
		while ($done < $mark)
		{
			$before->() if $before;
			my $posts = Bench::Posts->new($stage, entries => min($piece, $mark - $done), first => $done);
			$last = { seconds => drain_held($pipeline, $posts, $pid, $meter), entries => $posts->{entries} };
			$seconds += $last->{seconds};
			$done += $posts->{entries};
			$stage->progress("   $done of $marks->[-1]") if $mark > $piece;
			Bench::Posts::forget() if $mark > $piece;
		}
		my %used = $meter->result;
		$at{$mark} = { entries => $mark, seconds => $seconds, last => $last, %used };
	}
	$pipeline->pause;
	my $count = $stage->sql('SELECT count(*) FROM posts');
	die "the table has $count rows, not $done\n" if $count != $done;
	return \%at;
}

sub drain_held
{
	my ($pipeline, $posts, $pid, $meter) = @_;
	kill 'STOP', $pid or die "worker $pid is gone\n";
	eval { $posts->publish; 1 } or do { my $error = $@; kill 'CONT', $pid; die $error };
	my $last_id = $pipeline->last_id;
	my $start = time;
	kill 'CONT', $pid;
	$pipeline->wait_acknowledged($last_id, sub { $meter->look });
	my $seconds = time - $start;
	$pipeline->wait_state('idle');
	return $seconds;
}

# More posts by COPY, into the table as it is and into an empty one: what a table of that size costs anybody. Without a
# checkpoint before: after it each page of the large one would be logged as a whole once more.
sub copy_more
{
	my ($stage, $rows, $entries) = @_;
	my $posts = Bench::Posts->new($stage, entries => $entries, first => $rows);
	$stage->sql('TRUNCATE posts_beside');
	my %copied = (large => $posts->copy('posts'), empty => $posts->copy('posts_beside'));
	Bench::Posts::forget();
	return \%copied;
}

# The next posts into the table when neither the server nor the system has it in memory: for nearly each of them a page of an
# index is read. Seconds per entry.
sub from_disk
{
	my ($stage, $pipeline, $rows) = @_;
	my $entries = $stage->entries($disk_share);
	my @rounds;

	for my $round (1 .. $disk_rounds)
	{
		my %took;
		for my $who ($round % 2 ? qw(postpipe copy) : qw(copy postpipe))
		{
			my $posts = Bench::Posts->new($stage, entries => $entries, first => $rows);
			$posts->publish if $who eq 'postpipe';
			$stage->restart_server("shared_buffers=$disk_buffers");
			$pipeline->wait_state('paused');
			$stage->forget_table('posts');
			my $result = $who eq 'copy' ? $posts->copy('posts') : $pipeline->drain;
			$took{$who} = $result->{seconds} / $entries;
			$rows += $entries;
		}
		push @rounds, \%took;
	}
	$stage->restart_server;
	return \@rounds;
}

sub new_backlog
{
	my ($stage, $pipeline, $posts) = @_;
	$posts->publish;
	$stage->empty('posts');
	my $result = $pipeline->drain;
	$posts->verify('posts', 'new entries');
	return $result;
}

# All entries are delivered to worker 1 while it does not run, as if it had been killed: it takes what is pending for it first,
# and looks up each in the ledger.
sub pending
{
	my ($stage, $pipeline, $posts) = @_;
	$stage->redis("XTRIM $pipeline->{stream} MAXLEN 0");
	$pipeline->resume;
	$pipeline->wait_state('idle');
	my $consumer = $pipeline->consumer;
	$pipeline->pause;
	$posts->publish;
	$stage->run('redis-cli -p ' . $stage->redis_port . " XREADGROUP GROUP $pipeline->{group} $consumer COUNT $posts->{entries}"
		  . " STREAMS $pipeline->{stream} '>' >/dev/null");
	my $pending = $pipeline->group_info->{pending};
	die "$pending entries are pending, not $posts->{entries}\n" if $pending != $posts->{entries};
	$stage->empty('posts');
	my $result = $pipeline->drain;
	$posts->verify('posts', 'pending entries');
	return $result;
}

# Small entries, divided among many pipelines that start at once, and the same number in one.
sub many_pipelines
{
	my ($stage) = @_;
	my $each = int($stage->entries($restart_share) / $pipelines);
	my $one = one_of_many($stage, 0, $each * $pipelines);
	my @all = map { one_of_many($stage, $_, $each) } 1 .. $pipelines;
	my $alone = $one->drain;
	my $meter = Bench::Meter->new;
	my $start = time;

	my $names = join ', ', map { "'$_->{name}'" } @all;
	$stage->sql("SELECT postpipe_resume(pipeline) FROM postpipe_pipelines WHERE pipeline IN ($names)");
	$_->wait_acknowledged($_->last_id) for @all;
	my $seconds = time - $start;
	$meter->add(map { $_->pids } @all);
	my %used = $meter->result;

	for my $pipeline ($one, @all)
	{
		my $count = $stage->sql("SELECT count(*) FROM $pipeline->{name}");
		die "table $pipeline->{name} has $count rows\n" if $count != ($pipeline == $one ? $each * $pipelines : $each);
		$pipeline->pause;
		$pipeline->drop;
		$stage->sql("DROP TABLE $pipeline->{name}");
	}
	return { ratio => $alone->{seconds} / $seconds, memory_kb => $used{memory_kb} / $pipelines };
}

sub one_of_many
{
	my ($stage, $number, $entries) = @_;
	my $name = sprintf 'many_%02d', $number;
	$stage->sql("CREATE TABLE $name (id text PRIMARY KEY, body text)");
	my $pipeline = Bench::Pipeline->create($stage, $name, "target => '$name'");
	$stage->run('./items', $entries, $stage->option('seed') + $number, $pipeline->{stream}, 500,
		'generated.many.resp', 'generated.many.copy');
	$stage->publish('generated.many.resp');
	return $pipeline;
}

# The same posts into an empty table, into one that has very many rows, and by COPY into that.
sub full_table
{
	my ($stage, $pipeline, $rows) = @_;
	my $entries = $stage->entries($restart_share);
	my $more = sub { Bench::Posts->new($stage, entries => $entries, first => $rows + $_[0] * $entries) };
	my $drain = sub { $_[0]->publish; $stage->write_out; $pipeline->drain };

	$stage->empty('posts');
	my $empty = $drain->($more->(0));
	$stage->empty('posts');
	for (my $done = 0; $done < $rows; $done += $piece)
	{
		Bench::Posts->new($stage, entries => min($piece, $rows - $done), first => $done)->copy('posts');
		$stage->progress("   filling the table: $done of $rows");
		Bench::Posts::forget();
	}
	$stage->sql('VACUUM ANALYZE posts');
	my $full = $drain->($more->(1));
	my $posts = $more->(2);
	$stage->write_out;
	my $copied = $posts->copy('posts');
	return { to_empty => $empty->{seconds} / $full->{seconds}, to_copy => $copied->{seconds} / $full->{seconds} };
}

sub plain_backend_kb
{
	my ($stage) = @_;
	my $session = Bench::Session->psql;
	my $pid = $session->ask('SELECT pg_backend_pid()');
	$session->ask('SELECT count(*) FROM (SELECT FROM posts LIMIT 1) AS row');
	my $kb = Bench::Meter::anonymous_kb($pid);
	$session->close;
	return $kb;
}

1;
