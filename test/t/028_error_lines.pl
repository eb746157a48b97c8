# Every error line of Redis, in reply to every command that a worker sends: what it means is shown, and nothing else
# happens. TAP, because the answers come from a server of the test. A pipeline for each error, so that all of them are
# tried at once.

use strict;
use warnings;
use Postpipe::Test;

# Error line, reason code, and its class: the moment's, of a setting, of the structure in Redis.
my @errors = (
	[ 'LOADING Redis is loading the dataset in memory', 'redis_loading', 'm' ],
	[ 'BUSY Redis is busy running a script.', 'redis_busy', 'm' ],
	[ 'BUSYGROUP Consumer Group name already exists', 'redis_busygroup', 'm' ],
	[ q(MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.), 'redis_masterdown', 'm' ],
	[ q(READONLY You can't write against a read only replica.), 'redis_readonly', 'm' ],
	[ 'NOREPLICAS Not enough good replicas to write.', 'redis_noreplicas', 'm' ],
	[ 'MISCONF Redis is configured to save RDB snapshots', 'redis_misconf', 'm' ],
	[ 'CLUSTERDOWN Hash slot not served', 'redis_clusterdown', 'm' ],
	[ 'TRYAGAIN Multiple keys request during rehashing of slot', 'redis_tryagain', 'm' ],
	[ q(OOM command not allowed when used memory > 'maxmemory'.), 'redis_oom', 'm' ],
	[ 'ERR max number of clients reached', 'redis_maxclients', 'm' ],
	[ 'UNBLOCKED the stream key no longer exists', 'redis_unblocked', 's' ],
	[ 'NOGROUP No such consumer group', 'redis_nogroup', 's' ],
	[ 'ERR no such key', 'redis_nokey', 's' ],
	[ 'NOAUTH Authentication required.', 'redis_auth', 'f' ],
	[ 'WRONGPASS invalid username-password pair or user is disabled.', 'redis_auth', 'f' ],
	[ q(NOPERM this user has no permissions to run the command), 'redis_noperm', 'f' ],
	[ 'DENIED Redis is running in protected mode', 'redis_denied', 'f' ],
	[ 'NOPROTO unsupported protocol version', 'redis_noproto', 'f' ],
	[ 'MOVED 3999 127.0.0.1:6381', 'redis_cluster', 'f' ],
	[ 'ASK 3999 127.0.0.1:6381', 'redis_cluster', 'f' ],
	[ q(CROSSSLOT Keys in request don't hash to the same slot), 'redis_cluster', 'f' ],
	[ 'WRONGTYPE Operation against a key holding the wrong kind of value', 'redis_wrongtype', 'f' ],
	[ q(ERR unknown command 'X'), 'redis_command', 'f' ],
	[ 'ERR something else', 'redis_error', 'm' ],
	[ "WHAT \xff\x01 is this", 'redis_error', 'm' ],
	[ '', 'redis_error', 'm' ]);
my @names = map { sprintf 'e%02d', $_ } 0 .. $#errors;

my $fake = Postpipe::Test::FakeRedis->new(replies => {});
my $node = pp_node('main', redis => $fake, conf => "max_worker_processes = 50\npostpipe.max_workers = 40");
sql('CREATE EXTENSION postpipe');
sql(q(SELECT postpipe_drop_pipeline('posts')));
my $groups = '*' . @names . "\r\n" . join '', map { "*6\r\n" . bulk('name', "postpipe_$_", 'pending') . ":0\r\n" . bulk('last-delivered-id', '0-0') } @names;
$fake->set('XINFO GROUPS' => $groups);
sql("SELECT postpipe_create_pipeline('$_', 'stream:$_', statement => 'SELECT 1 FROM postpipe_batch')") for @names;
my $postmaster = sql('SELECT pg_postmaster_start_time()');
everyone('no error', map { 'idle|' } @names);

for my $command ('XREADGROUP', 'XACK', 'XINFO STREAM', 'XINFO GROUPS', 'XINFO CONSUMERS', 'XPENDING', 'XGROUP CREATE', 'HGETALL', 'WATCH', 'HGET', 'HSET', 'HINCRBY')
{
	$fake->set($command => { by => { map { ("stream:$names[$_]" => "-$errors[$_][0]\r\n") } 0 .. $#names } });
	$fake->set(XREADGROUP => bulk([ [ 's', [ [ '5-0', [ 'n', '1' ] ] ] ] ])) if $command eq 'XACK';
	$fake->set('XINFO GROUPS' => "*0\r\n") if $command eq 'XGROUP CREATE';
	sql('UPDATE postpipe_pipeline SET altered_at = now()');
	everyone($command, map { expected($command, $_->[1], $_->[2]) } @errors);
	$fake->set($command => undef, XREADGROUP => undef, 'XINFO GROUPS' => $groups);
}
sql('UPDATE postpipe_pipeline SET altered_at = now()');
everyone('no error any more', map { 'idle|' } @names);
is(sql('SELECT pg_postmaster_start_time()'), $postmaster, 'the server was never harmed');
is(sql('SELECT count(*) FROM postpipe_dlq'), 0, 'and no entry is dead');
is(scalar log_lines($node, qr/exited with exit code [^01]/), 0, 'every process left with code 0 or 1');
$node->stop;
done_testing();

# A reply of strings, or of an array of such.
sub bulk { return join '', map { ref $_ ? '*' . @$_ . "\r\n" . bulk(@$_) : '$' . length($_) . "\r\n$_\r\n" } @_ }

# State and code that are to be seen.
sub expected
{
	my ($command, $code, $class) = @_;

	# What can be done without, or says that there is nothing.
	return 'idle|' if $command eq 'HINCRBY';
	return 'idle|' if $command eq 'XINFO CONSUMERS' && $class eq 'f';
	return 'idle|' if $command =~ /^(?:XINFO STREAM|XINFO GROUPS|XPENDING)$/ && $class eq 's';
	return 'idle|' if $command eq 'XGROUP CREATE' && $code eq 'redis_busygroup';
	# The key has the nonce already, and for want of memory it need not be written.
	return 'idle|' if $command =~ /^(?:WATCH|HGET|HSET)$/ && $code eq 'redis_oom';
	return ($class eq 'f' ? 'failed' : 'retrying') . "|$code";
}

# Waits until each pipeline was seen as it is expected; between two attempts it may look otherwise.
sub everyone
{
	my ($what, @expected) = @_;
	my %missing = map { ($names[$_] => $expected[$_]) } 0 .. $#names;
	my %state;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	Postpipe::Test::Wait::poll(sub {
			%state = map { split /\|/, $_, 2 } split /\n/, sql('SELECT pipeline, state, reason_code FROM postpipe_stats');
			delete @missing{ grep { $state{$_} eq $missing{$_} } keys %missing };
			return !%missing;
		}, 30);
	return is_deeply({ map { ($_ => $state{$_}) } keys %missing }, \%missing, $what);
}
