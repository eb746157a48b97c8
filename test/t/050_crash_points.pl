# A worker is killed, or the whole server stopped at once, at each point of an entry's way: read, apply, dead letter,
# ledger, commit, flush, acknowledge. Every entry is there exactly once afterwards. TAP, because processes die. Needs a
# library with fault points (src/fault.h).

use strict;
use warnings;
use Postpipe::Test;
use Postpipe::Test::Fault;
use Postpipe::Test::Hits;

my @points = qw(after_read after_apply after_dead_letter after_ledger before_commit after_commit after_flush after_ack);

# Three statements: an INSERT without any key, a count, and the built-in one with its key. Each sees the same entries.
my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('main', redis => $redis, conf => 'postpipe.max_retries = 0');
my $fault = Postpipe::Test::Fault->new($node);
my $hits = Postpipe::Test::Hits->new(node => $node, redis => $redis);
my %streams = (hits => [ $hits->stream, $hits->group ], counted => [ 'stream:counted', 'postpipe_counted' ],
	posts => [ 'stream:posts:parsed', 'post_persist_workers' ]);
my ($good, $bad) = (0, 0);
sql(<<'SQL');
CREATE TABLE counter (n bigint);
INSERT INTO counter VALUES (0);
SELECT postpipe_create_pipeline('counted', 'stream:counted', statement => 'UPDATE public.counter SET n = n + (SELECT count(*) FROM postpipe_batch)');
SELECT postpipe_resume('posts');
SQL
publish();
settled('before any fault');
balanced('before any fault');

for my $point (@points)
{
	my $from = log_offset($node);
	$fault->set("$point:kill");
	reached("$point, killed");
	wait_for { log_lines($node, qr/all server processes terminated; reinitializing/, $from) } "$point: one crash restart";
	settled("$point, killed");

	$fault->set("$point:sleep:60000");
	reached("$point, stopped");
	$node->stop('immediate');
	$node->start;
	settled("$point, immediate stop");
	balanced($point);
}
# --- In the transaction that tries a letter again: nothing is read meanwhile, so no other transaction comes to these points.
my @retry_points = qw(after_apply before_commit after_commit);
my $tried = 0;
sql(<<'SQL');
CREATE TABLE retried (v text, CONSTRAINT v CHECK (v <> 'bad'));
SELECT postpipe_create_pipeline('retried', 'stream:retried', target => 'retried', options => '{"max_retries": 1000, "retry_delay": "3s"}');
SQL
for my $point (@retry_points)
{
	for my $how ('killed', 'stopped')
	{
		sql(q(ALTER TABLE retried ADD CONSTRAINT w CHECK (v <> 'bad') NOT VALID)) if $tried > 0;
		$redis->xadd('stream:retried', v => 'bad');
		wait_sql($node, 'postgres', q(SELECT count(*) FROM postpipe_dlq WHERE pipeline = 'retried'), 1, "$point of a retry, $how: a letter");
		my $from = log_offset($node);
		sql('ALTER TABLE retried DROP CONSTRAINT ' . ($tried == 0 ? 'v' : 'w'));
		$fault->set($how eq 'killed' ? "$point:kill" : "$point:sleep:60000");
		wait_for { $fault->fired } "$point of a retry, $how: the worker is there";
		if ($how eq 'killed')
		{
			wait_for { log_lines($node, qr/all server processes terminated; reinitializing/, $from) } "$point of a retry: one crash restart";
		}
		else
		{
			$node->stop('immediate');
			$node->start;
		}
		$tried++;
		wait_sql($node, 'postgres', q(SELECT (SELECT count(*) FROM retried), count(*) FROM postpipe_dlq WHERE pipeline = 'retried'), "$tried|0", "$point of a retry, $how: applied once");
		wait_sql($node, 'postgres', q(SELECT balance FROM postpipe_audit WHERE pipeline = 'retried'), 0, "$point of a retry, $how: the audit balances");
	}
}
is(sql('SELECT count(*) FROM postpipe_dlq WHERE sqlstate = \'XX000\''), 0, 'no entry is suspected of anything');
is(scalar log_lines($node, qr/all server processes terminated; reinitializing/), @points + @retry_points, 'each kill was one');

done_testing();

# Some entries for each pipeline, one of them a dead letter.
sub publish
{
	for my $entry (1 .. 5)
	{
		my @fields = $entry == 3 ? (data => '[]') : (channel_id => 1, telegram_message_id => ++$good);
		$bad++ if $entry == 3;
		for my $name (sort keys %streams)
		{
			my $id = $redis->xadd($streams{$name}[0], @fields);
			push @{ $hits->{ids} }, $id if $name eq 'hits';
		}
	}
	return;
}

# Publishes until a worker has come to the fault: the first entries may come before the setting.
sub reached
{
	my ($what) = @_;
	return wait_for { $fault->fired or do { publish(); 0 } } "$what: the worker is there";
}

sub settled
{
	my ($what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	$hits->settled($what);
	wait_sql($node, 'postgres', q(SELECT (SELECT n FROM counter) || ' counted, ' || (SELECT count(*) FROM posts) || ' posts, dead: '
		|| (SELECT string_agg(n::text, ' ') FROM (SELECT count(*) AS n FROM postpipe_dlq GROUP BY pipeline) x)),
		"$good counted, $good posts, dead: $bad $bad $bad", "$what: everything is there once");
	is(join(' ', map { pending($redis, @$_) } values %streams), '0 0 0', "$what: nothing is pending");
	return;
}

sub balanced
{
	my ($what) = @_;
	return wait_sql($node, 'postgres', q(SELECT string_agg(balance::text, ' ') FROM postpipe_audit), '0 0 0', "$what: the audit balances");
}
