# Postpipe::Test::Torture::Faults: what is done to PostgreSQL, Redis and the network between them.
#
# Each fault is a method fault_<name> that starts it, and has its end come by itself (heal_later of the torture), so that
# faults overlap. Whatever a fault meets may have been damaged by another one: it does what it can.
package Postpipe::Test::Torture::Faults;

use strict;
use warnings;
use IPC::Run ();
use Postpipe::Test;
use Postpipe::Test::Client;
use Postpipe::Test::Torture::Dice;
use PostgreSQL::Test::Utils;
use Time::HiRes ();

# How often each is chosen.
my %weights = (
	kill_worker => 5,
	kill_backend => 2,
	kill_parent => 2,
	terminate => 8,
	cancel => 4,
	immediate => 4,
	fast => 3,
	kill_postmaster => 2,
	redis_kill => 5,
	redis_freeze => 3,
	redis_older => 2,
	client_kill => 4,
	client_pause => 2,
	client_unblock => 2,
	network => 14,
	stop_worker => 4,
	group_back => 3,
	group_gone => 3,
	claim => 4,
	redis_rewrite => 3,
	pause => 4,
	reload => 4,
	disable => 2,
	lock => 5,
	weather => 4,
	slow => 6,
	target_away => 3,
	ddl => 3,
	parent => 6);

my $is_worker = q(backend_type = 'postpipe worker');

sub new
{
	my ($class, $torture) = @_;
	my %mine = %weights;
	my @only = @{ $torture->{only} };

	for my $name (@only)
	{
		die "no fault is called $name; there are: @{[ sort keys %weights ]}\n" unless $class->can("fault_$name");
	}
	# After this one sums cannot be told exactly any more, so most rounds do without it.
	delete $mine{redis_older} if rand() < 0.7;
	%mine = map { $_ => 1 } @only if @only;
	return bless { t => $torture, weights => \%mine, number => 0 }, $class;
}

# Starts one fault.
sub one
{
	my ($self) = @_;
	my $name = roll($self->{weights}) // return;
	my $method = "fault_$name";
	my $done = eval { $self->$method } // ($@ ? "could not: $@" : 'nobody there');

	chomp $done;
	$self->{t}->tell("$name: $done");
	return;
}

# After the ends of all faults: whatever should run runs.
sub heal_all
{
	my ($self) = @_;
	my $t = $self->{t};

	$t->proxy->command('pass');
	$t->redis->thaw if $t->redis->pid;
	$t->redis->start unless $t->redis->pid;
	wait_for { $t->redis->command('PING') } 'Redis answers';
	$self->_start_server;
	wait_for { defined $t->try_sql('SELECT 1') } 'PostgreSQL answers';
	wait_for
	{
		defined $t->try_sql("UPDATE weather SET sqlstate = NULL, seconds = 0") && defined $t->try_sql('ALTER SYSTEM RESET ALL')
	}
	'the settings are back';
	for my $name (qw(hits solo counter))
	{
		$t->try_sql("ALTER TABLE IF EXISTS public.${name}_away RENAME TO $name");
	}
	$t->try_sql('SELECT pg_reload_conf()');
	wait_for { defined $t->try_sql('SELECT postpipe_resume(pipeline) FROM postpipe_pipelines') } 'the pipelines are resumed';
	return;
}

sub _pick { my (@list) = @_; return $list[ rand @list ] }
sub _table { return _pick(qw(hits solo counter)) }

# The PIDs of processes of the server, in a stable order.
sub _pids
{
	my ($self, $condition) = @_;
	return split /\n/, $self->{t}->try_sql("SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND $condition ORDER BY backend_type, pid") // '';
}

sub _kill
{
	my ($self, $condition) = @_;
	my $pid = _pick($self->_pids($condition)) // return;

	$self->{t}{killed}{$pid} = 1;
	kill('KILL', $pid);
	return $pid;
}

sub fault_kill_worker { return $_[0]->_kill($is_worker) }
sub fault_kill_parent { return $_[0]->_kill(q(backend_type IN ('postpipe launcher', 'postpipe supervisor'))) }
sub fault_kill_backend { return $_[0]->_kill(q(backend_type !~ '^postpipe')) }

sub fault_terminate
{
	my ($self) = @_;
	my @pids = $self->_pids(rand() < 0.8 ? $is_worker : q(backend_type ~ '^postpipe'));

	@pids = _pick(@pids) if rand() < 0.6;
	$self->{t}->try_sql("SELECT pg_terminate_backend(pid) FROM unnest('{@{[ join ',', @pids ]}}'::int[]) pid") // return;
	return "@pids";
}

sub fault_cancel
{
	my ($self) = @_;
	return $self->{t}->try_sql("SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE $is_worker AND random() < 0.7");
}

sub _start_server
{
	my ($self) = @_;
	my $node = $self->{t}->node;

	return if $node->{_pid} && kill(0, $node->{_pid});
	return wait_for { undef $node->{_pid}; $node->start(fail_ok => 1) } 'the server starts', 30;
}

sub _stop_server
{
	my ($self, $mode) = @_;
	my $node = $self->{t}->node;
	my $stopped = $node->stop($mode, fail_ok => 1);

	return if !defined $stopped || $stopped;
	fail("the server stops ($mode)");
	$node->stop('immediate', fail_ok => 1);
	return;
}

sub fault_immediate
{
	my ($self) = @_;
	$self->_stop_server('immediate');
	$self->{t}->breathe(1) if rand() < 0.5;
	$self->_start_server;
	return 'stop and start';
}

# Not while a worker is stopped by a signal, which serves no other: this has to be quick.
sub fault_fast
{
	my ($self) = @_;
	$self->_continue_workers;
	my $began = Time::HiRes::time();
	$self->_stop_server('fast');
	my $seconds = Time::HiRes::time() - $began;
	cmp_ok($seconds, '<', 20, 'a fast stop is fast') if $seconds >= 20;
	$self->_start_server;
	return sprintf 'stop and start, %.1f s', $seconds;
}

sub fault_kill_postmaster
{
	my ($self) = @_;
	my $node = $self->{t}->node;

	$self->_continue_workers;
	my $postmaster = $node->{_pid};
	my @pids = ($postmaster, split /\s+/, slurp_file("/proc/$postmaster/task/$postmaster/children"));
	$node->kill9;
	wait_for { !grep { kill(0, $_) } @pids } 'kill -9 of the postmaster: nothing is left', 20;
	$self->_start_server;
	return 'kill -9 and start';
}

sub fault_redis_kill
{
	my ($self) = @_;
	my $redis = $self->{t}->redis;

	$redis->kill9;
	$self->{t}->breathe(2) if rand() < 0.5;
	$redis->start;
	return 'kill -9 and start';
}

sub fault_redis_freeze
{
	my ($self) = @_;
	my $seconds = rand 4;

	$self->{t}->redis->freeze;
	$self->{t}->heal_later($seconds, 'freezing Redis', sub { $self->{t}->redis->thaw });
	return sprintf '%.1f s', $seconds;
}

# Redis forgets the last second or so: entries, deliveries and acknowledgements. The file is only ever appended to, so a
# copy of it is the state that Redis had at that moment.
sub fault_redis_older
{
	my ($self) = @_;
	my $redis = $self->{t}->redis;
	my $files = $redis->dir . '/appendonlydir';
	my $copy = $redis->dir . '/older';

	$redis->thaw;
	system('rm', '-rf', $copy);
	system('cp', '-a', $files, $copy);
	# The copy may have parts of both the old files and the new ones.
	my $rewriting = $self->_redis('INFO', 'persistence') =~ /aof_rewrite_in_progress:1/;
	my ($now, $then) = map { -e "$_/appendonly.aof.manifest" ? slurp_file("$_/appendonly.aof.manifest") : '' } $files, $copy;
	return 'not while the files are rewritten' if $rewriting || $now ne $then;
	$self->{t}->breathe(1.5);
	$redis->kill9;
	system('rm', '-rf', $files);
	rename($copy, $files) or die "$copy: $!";
	$self->{t}{stale} = 1;
	$redis->start;
	return 'kill -9 and start with the files of a moment ago';
}

sub fault_redis_rewrite { my ($self) = @_; return $self->_redis('BGREWRITEAOF') }

# Runs SQL that must not be missed, also when the server is just coming back.
sub _persist
{
	my ($self, $sql) = @_;
	return Postpipe::Test::Wait::poll(sub { defined $self->{t}->try_sql($sql) }, 20);
}

# An own connection for commands to a Redis that may be frozen or gone.
sub _redis
{
	my ($self, @command) = @_;
	my $client = Postpipe::Test::Client->new($self->{t}->redis->port, 2) or die "no Redis\n";
	return $client->command(@command);
}

sub _clients
{
	my ($self) = @_;
	return map { /^id=(\d+) .*\bname=postpipe:/ ? $1 : () } split /\n/, $self->_redis('CLIENT', 'LIST');
}

sub fault_client_kill
{
	my ($self) = @_;
	return $self->_redis('CLIENT', 'KILL', 'TYPE', 'normal', 'SKIPME', 'yes') . ' clients' if rand() < 0.2;
	my @ids = $self->_clients or return;
	@ids = _pick(@ids) if rand() < 0.7;
	$self->_redis('CLIENT', 'KILL', 'ID', $_) for @ids;
	return "@ids";
}

sub fault_client_unblock
{
	my ($self) = @_;
	my @ids = $self->_clients;
	$self->_redis('CLIENT', 'UNBLOCK', $_, _pick(qw(TIMEOUT ERROR))) for @ids;
	return "@ids";
}

sub fault_client_pause
{
	my ($self) = @_;
	my $ms = int rand 2500;
	$self->_redis('CLIENT', 'PAUSE', $ms, _pick(qw(WRITE ALL)));
	return "$ms ms";
}

sub fault_network
{
	my ($self) = @_;
	my $proxy = $self->{t}->proxy;
	my $direction = _pick(qw(c2s s2c both));
	my $seconds = rand 4;
	my @faults = (
		[ 'rst', 0 ],
		[ 'refuse on', $seconds, 'rst' ],
		[ "stall $direction", $seconds ],
		[ "stall $direction", 6 + rand 6 ],
		[ "drop $direction", $seconds ],
		[ "delay $direction " . int rand 300, $seconds ],
		[ "dribble $direction", $seconds ],
		[ "dup $direction", $seconds / 2 ],
		[ 'noise s2c ' . (1 + int rand 50), $seconds, 'rst' ],
		[ "cut s2c " . int rand 20_000, 2 ],
		[ "cut c2s " . int rand 2_000, 2 ],
		[ "cuton c2s XACK " . _pick(qw(before after)), 2 ],
		[ "cuton s2c *2 " . _pick(qw(before after)) . ' ' . (1 + int rand 5), 2 ]);
	my ($command, $time, @more) = @{ _pick(@faults) };

	$proxy->command($_) for $command, @more;
	if ($time > 0)
	{
		# What was swallowed leaves connections that wait for ever on the other side: a real network would end them.
		my @end = $command =~ /^(?:drop|dribble)/ ? qw(pass rst) : 'pass';
		$self->{t}->heal_later($time, $command, sub { $proxy->command($_) for @end });
	}
	return sprintf '%s, %.1f s', $command, $time;
}

sub fault_stop_worker
{
	my ($self) = @_;
	my $pid = _pick($self->_pids($is_worker)) // return;

	kill('STOP', $pid);
	$self->{stopped}{$pid} = 1;
	$self->{t}->heal_later(rand 5, "stopping $pid", sub { $self->_continue_workers($pid) });
	return $pid;
}

sub _continue_workers
{
	my ($self, @pids) = @_;
	@pids = keys %{ $self->{stopped} } unless @pids;
	for my $pid (@pids)
	{
		kill('CONT', $pid) if delete $self->{stopped}{$pid};
	}
	return;
}

# Somebody moves a group back: all after that is delivered again, and nothing is applied again. Never forward, where
# entries would be skipped.
sub fault_group_back
{
	my ($self) = @_;
	my $t = $self->{t};
	my $name = _pick($t->pipelines);
	my $part = rand() < 0.4 ? 0 : rand;

	my ($group) = grep { $_->{name} eq $t->group($name) } map { +{@$_} } @{ $self->_redis('XINFO', 'GROUPS', $t->stream($name)) };
	my ($first) = @{ $self->_redis('XRANGE', $t->stream($name), '-', '+', 'COUNT', 1) };
	my ($from, $to) = map { /^(\d+)/ } $first->[0], $group->{'last-delivered-id'};
	my $id = $part && $to > $from ? int($from + $part * ($to - $from)) . '-0' : '0';
	$self->_redis('XGROUP', 'SETID', $t->stream($name), $t->group($name), $id);
	return "$name to $id";
}

sub fault_group_gone
{
	my ($self) = @_;
	my $t = $self->{t};
	my $name = _pick($t->pipelines);

	$self->_redis('XGROUP', 'DESTROY', $t->stream($name), $t->group($name));
	return $name;
}

# Somebody gives what one worker has in hand to the other one.
sub fault_claim
{
	my ($self) = @_;
	my $t = $self->{t};
	my $name = _pick(qw(hits counter));
	my @names = map { {@$_}->{name} } @{ $self->_redis('XINFO', 'CONSUMERS', $t->stream($name), $t->group($name)) };
	my @ids = map { $_->[0] } @{ $self->_redis('XPENDING', $t->stream($name), $t->group($name), '-', '+', 1000) };

	return unless @names && @ids;
	$self->_redis('XCLAIM', $t->stream($name), $t->group($name), _pick(sort @names), 0, @ids, 'JUSTID');
	return @ids . " entries of $name";
}

sub fault_pause
{
	my ($self) = @_;
	my $name = _pick($self->{t}->pipelines);

	defined $self->{t}->try_sql("SELECT postpipe_pause('$name', 'torture')") or return;
	$self->{t}->heal_later(rand 3, "pause of $name", sub { $self->_persist("SELECT postpipe_resume('$name')") });
	return $name;
}

sub fault_reload
{
	my ($self) = @_;
	my $size = _pick(1, 10, 300, 1000);
	my $bytes = _pick('64kB', '1MB', '16MB');

	$self->{t}->try_sql("ALTER SYSTEM SET postpipe.batch_size = $size") // return;
	$self->{t}->try_sql("ALTER SYSTEM SET postpipe.batch_bytes = '$bytes'") // return;
	$self->{t}->try_sql('SELECT pg_reload_conf()') // return;
	return "batch_size $size, batch_bytes $bytes";
}

sub fault_disable
{
	my ($self) = @_;
	my $set = sub { $self->_persist("ALTER SYSTEM SET postpipe.enabled = $_[0]"); $self->_persist('SELECT pg_reload_conf()') };

	$set->('off');
	$self->{t}->heal_later(rand 2, 'postpipe.enabled = off', sub { $set->('on') });
	return 'postpipe.enabled = off';
}

# A lock on a target, for a while: a worker with a lock_timeout tries again and again, one without waits.
sub fault_lock
{
	my ($self) = @_;
	my $table = _pick(qw(hits solo counter posts postpipe_ledger));
	my $mode = _pick('ACCESS EXCLUSIVE', 'SHARE', 'SHARE ROW EXCLUSIVE');
	my $seconds = 0.2 + rand 3;
	my ($in, $out) = ("SET lock_timeout = '2s'; BEGIN; LOCK TABLE $table IN $mode MODE;\n", '');
	my $psql = IPC::Run::start([ 'psql', '-XAtq', '-d', $self->{t}->node->connstr('postgres') ], '<', \$in, '>', \$out, '2>&1', IPC::Run::timeout(60));

	$psql->pump_nb;
	$self->{t}->heal_later($seconds, "lock of $table", sub { $psql->kill_kill });
	return sprintf '%s in %s mode, %.1f s', $table, $mode, $seconds;
}

# The statement fails for a while, for a reason that is no entry's.
sub fault_weather
{
	my ($self) = @_;
	my $code = _pick(qw(40001 40P01 53100 55P03 57014 58030));

	$code = '40001' if $code eq '57014';
	$self->{t}->try_sql("UPDATE weather SET sqlstate = '$code'") // return;
	$self->{t}->heal_later(rand 2, "errors $code", sub { $self->_persist('UPDATE weather SET sqlstate = NULL') });
	return $code;
}

# The statement takes its time, so that the other faults meet it under way.
sub fault_slow
{
	my ($self) = @_;
	my $seconds = rand 0.2;

	$self->{t}->try_sql("UPDATE weather SET seconds = $seconds") // return;
	$self->{t}->heal_later(1 + rand 5, 'slow statements', sub { $self->_persist('UPDATE weather SET seconds = 0') });
	return sprintf '%.3f s', $seconds;
}

# The table is not there for a while.
sub fault_target_away
{
	my ($self) = @_;
	my $table = _table();

	$self->{t}->try_sql("ALTER TABLE $table RENAME TO ${table}_away") // return;
	$self->{t}->heal_later(rand 2, "renaming $table", sub { $self->_persist("ALTER TABLE IF EXISTS ${table}_away RENAME TO $table") });
	return $table;
}

sub fault_ddl
{
	my ($self) = @_;
	my $table = _table();
	my $number = $self->{number}++;
	my @commands = (
		"ALTER TABLE $table ADD COLUMN extra$number int",
		"ALTER TABLE $table SET (fillfactor = @{[ 50 + int rand 50 ]})",
		"ANALYZE $table",
		"VACUUM FULL $table",
		'VACUUM FULL postpipe_ledger',
		'REINDEX TABLE postpipe_ledger',
		"CREATE INDEX ON $table (n)",
		'CHECKPOINT');
	my $command = _pick(@commands);

	$self->{t}->try_sql($command) // return;
	return $command;
}

# What entries of the kind "late" refer to.
sub fault_parent
{
	my ($self) = @_;
	my $id = 1 + int rand 20;
	$self->{t}->try_sql("INSERT INTO parents VALUES ($id) ON CONFLICT DO NOTHING") // return;
	return $id;
}

1;
