# Postpipe::Test: what every test in test/t uses, on top of PostgreSQL::Test::Cluster.
#
#   use Postpipe::Test;                     # also exports Test::More, and loads Redis, FakeRedis and Proxy
#   my $redis = Postpipe::Test::Redis->new;
#   my $node = pp_node('main', redis => $redis);
#   sql('CREATE EXTENSION postpipe');
#   $redis->xadd('stream:posts:parsed', ...);
#   wait_sql($node, 'postgres', 'SELECT count(*) FROM posts', '1', 'the post is in the table');
package Postpipe::Test;

use strict;
use warnings;
use Exporter 'import';
use Fcntl qw(:flock);
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Postpipe::Test::FakeRedis;
use Postpipe::Test::Proxy;
use Postpipe::Test::Redis;
use Postpipe::Test::Wait;
use Test::More;

our @EXPORT = (
	qw(pp_node pp_session pp_start pp_balanced sql error configure wait_for wait_sql consumers pending log_offset log_lines sample_file), @Test::More::EXPORT);

# The sample events, and what has to come of them (see Postpipe::Test::Data).
my ($data_dir) = map { s{perl/Postpipe/Test\.pm$}{data}r } __FILE__;
sub sample_file { my ($name) = @_; return "$data_dir/$name.resp" }

our @nodes;    # that the test made

# pp_node(name, redis => object with url() or a URL, databases => list as in the setting, conf => lines, ...)
#
# A running server that preloads postpipe. Without `redis` it is told of a port where nothing listens, never of the
# default, where somebody's Redis may be. start => 0: not started. fresh => 1: initdb instead of a copy of the template;
# all copies have the same system identifier, so use it where two servers meet at one Redis. install_path: another
# installation than that in PATH. Other options go to
# PostgreSQL::Test::Cluster->init (allows_streaming => 1 ...).
sub pp_node
{
	my ($name, %opt) = @_;
	my %ours = (start => 1, conf => '', databases => undef, redis => undef, fresh => 0, install_path => undef);
	for my $key (keys %ours)
	{
		$ours{$key} = delete $opt{$key} if exists $opt{$key};
	}

	my $node = PostgreSQL::Test::Cluster->new($name, install_path => $ours{install_path});
	if ($ours{fresh} || $opt{extra}) { $node->init(%opt) }
	else { _init_from_template($node, %opt) }

	my $url = ref $ours{redis} ? $ours{redis}->url : $ours{redis} // 'redis://127.0.0.1:1';
	$node->append_conf('postgresql.conf', join '', map { "$_\n" }
		"shared_preload_libraries = 'postpipe'",
		"postpipe.redis_url = '$url'",
		defined $ours{databases} ? "postpipe.databases = '$ours{databases}'" : (),
		# As in production, and not what PostgreSQL::Test::Cluster sets.
		'restart_after_crash = on',
		'log_statement = none',
		'log_replication_commands = off',
		"log_line_prefix = '%m [%p] %b '",
		'max_worker_processes = 32',
		$ours{conf});
	$node->start if $ours{start};
	push @nodes, $node;
	return $node;
}

# initdb takes most of the time of a short test, so it runs once for all tests and its result is copied.
sub _init_from_template
{
	my ($node, %opt) = @_;
	my $template = "$PostgreSQL::Test::Utils::tmp_check/initdb-template";
	my $run = \&PostgreSQL::Test::Utils::system_or_bail;

	open(my $lock, '>', "$template.lock") or die "$template.lock: $!";
	flock($lock, LOCK_EX) or die "$template.lock: $!";
	no warnings 'redefine';
	local *PostgreSQL::Test::Utils::system_or_bail = sub {
		my (@command) = @_;
		return $run->(@command) unless $command[0] eq 'initdb';
		my ($at) = grep { $command[$_] =~ /^(?:-D|--pgdata)$/ } 0 .. $#command;
		my $pgdata = $command[ $at + 1 ];
		if (!-d $template)
		{
			$command[ $at + 1 ] = "$template.new";
			$run->(@command);
			rename("$template.new", $template) or die "$template: $!";
		}
		return $run->('cp', '-a', $template, $pgdata);
	};
	return $node->init(%opt);
}

# SQL on the server that the test made first: what the query returns, and what is said of one that fails. A test that means
# another server has a `sql` of its own and says: use Postpipe::Test '!sql'.
sub sql { my ($query, $db) = @_; return $nodes[0]->safe_psql($db // 'postgres', $query) }

sub error
{
	my ($query, $db) = @_;
	my (undef, undef, $stderr) = $nodes[0]->psql($db // 'postgres', $query);
	return $stderr;
}

# A setting of that server, reset without a value; returns when everybody has been told of it.
sub configure
{
	my ($name, $value) = @_;
	my $before = sql('SELECT pg_conf_load_time()');
	sql('ALTER SYSTEM ' . (defined $value ? "SET $name = '$value'" : "RESET $name"));
	$nodes[0]->reload;
	return wait_for { sql("SELECT pg_conf_load_time() > '$before'") eq 't' } "$name is set";
}

# my $session = pp_session($node, $db); $session->('BEGIN; LOCK TABLE t'); ... $session->('COMMIT'); $session->(undef);
sub pp_session
{
	my ($node, $db) = @_;
	my ($in, $out, $n) = ('', '', 0);
	my $timeout = IPC::Run::timeout($Postpipe::Test::Wait::default_timeout);
	my $psql = IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr($db // 'postgres') ], '<', \$in, '>', \$out, '2>&1', $timeout);

	return sub {
		my ($sql) = @_;
		if (!defined $sql)
		{
			$psql->kill_kill;
			return;
		}
		$out = '';
		$in .= "$sql;\n\\echo end " . ++$n . "\n";
		$timeout->start;    # anew for each query, however long the session has been there
		$psql->pump until $out =~ /^end $n$/m;
		return $out =~ s/^end $n\n//mr;
	};
}

# Queries, one after the other, that go on in a session of their own: my $wait = pp_start($node, 'SELECT ...'); ... is($wait->(), 't');
# The call returns when they have ended, with what psql printed, errors too.
sub pp_start
{
	my ($node, @queries) = @_;
	my $out = '';
	my $timeout = IPC::Run::timeout($Postpipe::Test::Wait::default_timeout);
	my $psql = IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr('postgres'), map { ('-c', $_) } @queries ], '>', \$out, '2>&1', $timeout);

	return sub { $timeout->start; $psql->finish; return $out =~ s/\n$//r };
}

# pp_balanced(node, database): what the audit says at the end of a test: each balance is 0, or not told and why.
sub pp_balanced
{
	my ($node, $db) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_sql($node, $db // 'postgres', q(SELECT string_agg(format('%s epoch %s: balance %s, %s', pipeline, epoch, balance, reason), '; ')
		FROM postpipe_audit WHERE balance <> 0 OR (balance IS NULL AND reason IS NULL)), '', 'every entry is accounted for');
}

# wait_sql(node, database, query, expected text, what, seconds): polls until the query prints what is expected, then is().
# An error of the query (the server restarts, the table is not there yet) is an answer that is not the expected one.
sub wait_sql
{
	my ($node, $db, $query, $expected, $what, $timeout) = @_;
	my $answer = '';
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	my $poll = sub {
		my ($status, $stdout, $stderr) = $node->psql($db, $query, on_error_die => 0);
		$answer = $status == 0 ? $stdout : "error: $stderr";
		return $answer eq $expected;
	};
	my $done = Postpipe::Test::Wait::poll($poll, $timeout);
	is($answer, $expected, $what);
	_show_servers() unless $done;
	return $done;
}

# Number of consumers of the group, and of its pending entries; 0 when there is no such group.
sub consumers
{
	my ($redis, $stream, $group) = @_;
	my ($reply) = $redis->pipeline([ 'XINFO', 'CONSUMERS', $stream, $group ]);
	return ref $reply eq 'ARRAY' ? scalar @$reply : 0;
}

sub pending
{
	my ($redis, $stream, $group) = @_;
	my ($reply) = $redis->pipeline([ 'XPENDING', $stream, $group ]);
	return ref $reply eq 'ARRAY' ? $reply->[0] : 0;
}

# my $from = log_offset($node); ... my @lines = log_lines($node, qr/could not/, $from);
sub log_offset { my ($node) = @_; return -s $node->logfile // 0 }

sub log_lines
{
	my ($node, $regex, $from) = @_;
	return grep { $_ =~ $regex } split /\n/, slurp_file($node->logfile, $from // 0);
}

# After a wait that failed: what the views and the log of each server say.
sub _show_servers
{
	for my $node (@nodes)
	{
		next unless -e $node->data_dir . '/postmaster.pid';
		my (undef, $stats, $error) = $node->psql('postgres', 'SELECT * FROM postpipe_stats', extra_params => ['-x'], timeout => 10);
		my @log = log_lines($node, qr/./);
		splice(@log, 0, -20);
		diag('server ', $node->name, ":\n", join("\n", grep { $_ } $stats, $error, @log));
	}
	return;
}
push @Postpipe::Test::Wait::on_timeout, \&_show_servers;

1;
