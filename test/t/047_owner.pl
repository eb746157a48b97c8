# Who owns a consumer group: one pipeline of one database, until another one takes it over or it is given back.
# TAP, because it takes databases that want the same group, and a Redis that forgets.
use strict;
use warnings;
use Postpipe::Test '!sql';

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('owner', redis => $redis, databases => 'one, two, three');
for my $db (qw(one two three))
{
	$node->safe_psql('postgres', "CREATE DATABASE $db");
	sql($db, q(CREATE EXTENSION postpipe; SELECT postpipe_drop_pipeline('posts')));
}
my $system = sql('one', 'SELECT system_identifier FROM pg_control_system()');
my %oid = map { $_ => $node->safe_psql('postgres', "SELECT oid FROM pg_database WHERE datname = '$_'") } qw(one two);

# --- The second one on a group is fenced, says why, and reads nothing.
{
	make($_, 'a') for 'one';
	wait_state('one', 'a', 'idle');
	make('two', 'a');
	wait_state('two', 'a', 'fenced');
	is(sql('two', q(SELECT reason_code, reason FROM postpipe_stats)), qq(fenced|consumer group "g" of stream "stream:a" belongs to $system:$oid{one}:a), 'it says who owns the group');
	add('a', 10);
	rows('one', 'a', 10);
	is(sql('two', 'SELECT count(*) FROM t_a'), 0, 'the second one has read nothing');
	is(join(' ', names('a')), "postpipe:$system:$oid{one}:a:1", '... and has no consumer');
	sql('two', q(SELECT postpipe_pause('a'); SELECT postpipe_wait_state('a', 'paused'); SELECT postpipe_resume('a')));
	wait_state('two', 'a', 'fenced');
	sql('one', q(SELECT postpipe_pause('a'); SELECT postpipe_wait_state('a', 'paused')));
	sql('two', q(SELECT postpipe_pause('a'); SELECT postpipe_wait_state('a', 'paused'); SELECT postpipe_resume('a')));
	wait_state('two', 'a', 'fenced');
	sql('one', q(SELECT postpipe_resume('a')));
	wait_state('one', 'a', 'idle');
}

# --- To and fro while entries come: each entry in one of the two tables, once.
{
	my $sent = 10;
	for my $to (qw(two one two))
	{
		my $from = $to eq 'one' ? 'two' : 'one';
		add('a', 500);
		sql($to, q(SELECT postpipe_resume('a', take_over => true)));
		$sent += 500;
		wait_for { add('a', 1); $sent++; state($from, 'a') eq 'fenced' } "$to takes over: $from is fenced";
		wait_for { both('a') eq "$sent|$sent" && pending($redis, 'stream:a', 'g') == 0 } "each of $sent entries is in one table, once" or diag(both('a'));
		wait_state($to, 'a', 'idle');
	}
	is(scalar(my @warnings = log_lines($node, qr/gone back in time/)), 0, 'what another database has read is not missing here');
}

# --- Given back: by a drop, while it runs or rests; with the extension; with the database.
{
	make('one', $_) for qw(b c);
	wait_state('one', $_, 'idle') for qw(b c);
	sql('one', q(SELECT postpipe_drop_pipeline('b')));
	wait_for { !$redis->command('EXISTS', 'postpipe:{stream:b}:g') } 'a drop gives the group back';
	make('two', 'b');
	wait_state('two', 'b', 'idle');
	sql('one', q(SELECT postpipe_pause('c'); SELECT postpipe_wait_state('c', 'paused'); SELECT postpipe_drop_pipeline('c')));
	make('two', 'c');
	wait_state('two', 'c', 'idle');
	pp_balanced($node, "two");
	sql('two', 'DROP EXTENSION postpipe');
	make('three', $_) for qw(b c);
	wait_state('three', $_, 'idle') for qw(b c);
	add('b', 5);
	rows('three', 'b', 5);
	$node->safe_psql('postgres', 'DROP DATABASE three');
	make('one', 'b');
	wait_state('one', 'b', 'idle');
	add('b', 1);
	rows('one', 'b', 1);
}
pp_balanced($node, "one");
$node->stop('fast');

# --- A Redis that forgets: all, or what came since it was saved.
{
	my $kept = Postpipe::Test::Redis->new(conf => ['dbfilename dump.rdb']);
	my $server = pp_node('forgets', redis => $kept, databases => 'postgres');
	$server->safe_psql('postgres', q(CREATE EXTENSION postpipe; SELECT postpipe_drop_pipeline('posts'); CREATE TABLE t (n text);
		SELECT postpipe_create_pipeline('t', 'stream:t', consumer_group => 'g', statement => $$INSERT INTO t SELECT event ->> 'n' FROM postpipe_batch$$)));
	my $state = q(SELECT state FROM postpipe_stats);
	my $n = 0;
	my $add = sub { $kept->xadd('stream:t', n => ++$n); return wait_sql($server, 'postgres', 'SELECT count(*), count(DISTINCT n) FROM t', "$n|$n", shift) };
	$add->('an entry');
	$kept->command('FLUSHALL');
	wait_for { $kept->command('HGET', 'postpipe:{stream:t}:g', 'owner') } 'FLUSHALL: the owner writes its key again';
	$add->('... and reads on');
	$kept->command('DEL', 'postpipe:{stream:t}:g');
	$add->('the key alone is deleted, and an entry comes');
	wait_for { $kept->command('HGET', 'postpipe:{stream:t}:g', 'owner') } '... then the owner writes it again, too';
	$kept->command('SAVE');
	my $nonce = $kept->command('HGET', 'postpipe:{stream:t}:g', 'nonce');
	for (1 .. 3)
	{
		$server->restart;
		wait_sql($server, 'postgres', $state, 'idle', 'a restart');
	}
	isnt($kept->command('HGET', 'postpipe:{stream:t}:g', 'nonce'), $nonce, 'each start has a nonce of its own');
	$kept->kill9;
	$kept->start;
	wait_for { $kept->command('HGET', 'postpipe:{stream:t}:g', 'nonce') ne $nonce } 'a Redis that went back: the owner comes back by itself';
	$add->('... and reads on');
	pp_balanced($server);
	$server->stop('fast');
}
done_testing();

sub sql { my ($db, $query) = @_; return $node->safe_psql($db, $query) }
sub state { my ($db, $name) = @_; return sql($db, "SELECT state FROM postpipe_stats WHERE pipeline = '$name'") }

sub make
{
	my ($db, $name) = @_;
	return sql($db, "DROP TABLE IF EXISTS t_$name; CREATE TABLE t_$name (v text); SELECT postpipe_create_pipeline('$name', 'stream:$name', consumer_group => 'g',
		statement => 'INSERT INTO t_$name SELECT id FROM postpipe_batch')");
}

sub add { my ($name, $n) = @_; return $redis->pipeline(map { [ 'XADD', "stream:$name", '*', 'n', $_ ] } 1 .. $n) }

# Rows, and different ones, in the tables of both databases.
sub both
{
	my ($name) = @_;
	my @rows = map { split /\n/, sql($_, "SELECT v FROM t_$name") } qw(one two);
	my %seen = map { $_ => 1 } @rows;
	return scalar(@rows) . '|' . scalar keys %seen;
}

sub names { my ($name) = @_; return sort map { { @$_ }->{name} } @{ $redis->command('XINFO', 'CONSUMERS', "stream:$name", 'g') } }

sub rows
{
	my ($db, $name, $n) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_sql($node, $db, "SELECT count(*) FROM t_$name", $n, "$db: $n rows in t_$name");
}

sub wait_state
{
	my ($db, $name, $state) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_sql($node, $db, "SELECT state FROM postpipe_stats WHERE pipeline = '$name'", $state, "$db: $name is $state");
}
