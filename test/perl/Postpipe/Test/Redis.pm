# Postpipe::Test::Redis: a private redis-server on a free port of 127.0.0.1 and a Unix socket, gone with the object.
#
#   my $redis = Postpipe::Test::Redis->new(conf => ['maxclients 50']);
#   $redis->xadd('stream:posts:parsed', post_id => 1, ...);         # returns the ID
#   $redis->command('XLEN', 'stream:posts:parsed');                 # a value; dies on an error reply
#   $redis->cli('XINFO', 'GROUPS', 'stream:posts:parsed');          # what redis-cli prints
#   $redis->stop; $redis->start; $redis->kill9; $redis->restart; $redis->freeze; $redis->thaw;
#
# Nothing is written to disk, so a restart is an empty Redis; with keep => 1 every write is synced (appendonly).
package Postpipe::Test::Redis;

use strict;
use warnings;
use IPC::Run ();
use POSIX ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Postpipe::Test::Client;
use Postpipe::Test::Wait;

# new(conf => [lines], keep => bool, password => text, port => number, start => 0 to start it later)
sub new
{
	my ($class, %opt) = @_;
	my $self = bless {
		port => PostgreSQL::Test::Cluster::get_free_port(),
		dir => PostgreSQL::Test::Utils::tempdir_short(),
		conf => [],
		start => 1,
		%opt,
		owner => $$
	}, $class;

	$self->start if $self->{start};
	return $self;
}

sub port { return $_[0]->{port} }
sub pid { return $_[0]->{pid} }
sub dir { return $_[0]->{dir} }
sub socket_path { return "$_[0]->{dir}/redis.sock" }
sub logfile { return "$_[0]->{dir}/redis.log" }

sub _login { my ($self) = @_; return defined $self->{password} ? ":$self->{password}@" : '' }

# For postpipe.redis_url; url(db => 3) for another database.
sub url
{
	my ($self, %opt) = @_;
	return 'redis://' . $self->_login . "127.0.0.1:$self->{port}" . (defined $opt{db} ? "/$opt{db}" : '');
}

sub unix_url
{
	my ($self) = @_;
	return 'unix://' . $self->_login . $self->socket_path;
}

# start(loading => 1) does not wait until it has loaded its data.
sub start
{
	my ($self, %opt) = @_;
	my $config = "$self->{dir}/redis.conf";

	die 'redis is running' if $self->{pid};
	open(my $fh, '>', $config) or die "$config: $!";
	print $fh map { "$_\n" } 'bind 127.0.0.1', "port $self->{port}", "unixsocket $self->{dir}/redis.sock", "dir $self->{dir}",
	  "logfile $self->{dir}/redis.log", 'save ""',
	  ($self->{keep} ? ('appendonly yes', 'appendfsync always') : ('appendonly no')),
	  (defined $self->{password} ? "requirepass $self->{password}" : ()), @{ $self->{conf} };
	close($fh);

	$self->_launch($config);
	# It ends when somebody's connection has its port, or that of a cluster's bus, for the moment.
	my $is_up = wait_for {
		waitpid($self->{pid}, POSIX::WNOHANG()) == 0 or $self->_launch($config);
		$self->_is_up($opt{loading})
	} 'Redis starts';
	return $self if $is_up;
	die "redis-server did not start:\n" . (-e $self->logfile ? slurp_file($self->logfile) : '');
}

sub _launch
{
	my ($self, $config) = @_;
	$self->{pid} = fork // die "fork: $!";
	return if $self->{pid};
	exec('redis-server', $config) or POSIX::_exit(127);
}

# It listens, and has loaded its data.
sub _is_up
{
	my ($self, $may_load) = @_;
	my $client = Postpipe::Test::Client->new($self->{port}) or return;
	$client->send_only(['PING']);
	return $client->receive !~ /^LOADING/ || $may_load;
}

sub _end
{
	my ($self, $signal) = @_;
	my $pid = delete $self->{pid} or return;

	delete $self->{client};
	kill($signal, $pid);
	kill('CONT', $pid);    # a frozen process serves no signal but SIGKILL
	waitpid($pid, 0);
	return;
}

sub stop { $_[0]->_end('TERM'); return }
sub kill9 { $_[0]->_end('KILL'); return }
sub restart { my ($self) = @_; $self->stop; return $self->start }

# A hung server: the kernel still accepts connections and data, nobody answers.
sub freeze { kill('STOP', $_[0]->{pid}); return }
sub thaw { kill('CONT', $_[0]->{pid}); return }

# Runs redis-cli and returns its output; dies when it cannot connect. cli({stdin => $text}, @args) feeds it.
sub cli
{
	my ($self, @args) = @_;
	my $stdin = ref $args[0] ? shift(@args)->{stdin} : '';
	my ($stdout, $stderr);

	local $ENV{REDISCLI_AUTH} = $self->{password} if defined $self->{password};
	IPC::Run::run([ 'redis-cli', '-h', '127.0.0.1', '-p', $self->{port}, @args ], '<', \$stdin, '>', \$stdout, '2>', \$stderr)
	  or die "redis-cli @args: $stderr$stdout";
	chomp $stdout;
	return $stdout;
}

# Sends a file of commands in RESP, such as those of test/data.
sub pipe_file
{
	my ($self, $path) = @_;
	open(my $fh, '<:raw', $path) or die "$path: $!";
	my $stdout = $self->cli({ stdin => do { local $/; <$fh> } }, '--pipe');
	die "redis-cli --pipe: $stdout" unless $stdout =~ /errors: 0\b/;
	return $stdout =~ /replies: (\d+)/ ? $1 : undef;
}

# Sends all commands (array references) in one write and returns the replies; error replies are values here.
sub pipeline
{
	my ($self, @commands) = @_;
	my @replies = eval {
		$self->_client->send_only(@commands);
		map { $self->{client}->receive } @commands;
	};

	return @replies unless $@;
	delete $self->{client};
	die $@;
}

# All commands in one step, which nobody sees the middle of, and returns their replies as pipeline() does.
sub transaction
{
	my ($self, @commands) = @_;
	my $replies = ($self->pipeline(['MULTI'], @commands, ['EXEC']))[-1];
	die "redis: EXEC: $replies\n" unless ref $replies eq 'ARRAY';
	return @$replies;
}

# One command; an error reply dies with its text.
sub command
{
	my ($self, @args) = @_;
	my ($reply) = $self->pipeline(\@args);
	die "redis: $args[0]: $reply\n" if ref $reply eq 'Postpipe::Test::Resp::Error';
	return $reply;
}

# Closes the connection of the client of this name; false when there is none.
sub kill_client
{
	my ($self, $name) = @_;
	my ($id) = $self->command('CLIENT', 'LIST') =~ /^id=(\d+) [^\n]*\bname=\Q$name\E /m or return 0;
	$self->pipeline([ 'CLIENT', 'KILL', 'ID', $id ]);
	return 1;
}

# The connection that the methods above share.
sub _client
{
	my ($self) = @_;

	return $self->{client} if $self->{client};
	$self->{client} = Postpipe::Test::Client->new($self->{port}) or die "redis: cannot connect to port $self->{port}\n";
	$self->{client}->command('AUTH', $self->{password}) if defined $self->{password};
	return $self->{client};
}

# xadd($stream, field => value, ...) or xadd($stream, {id => '5-1'}, field => value, ...): returns the ID.
sub xadd
{
	my ($self, $stream, @fields) = @_;
	my $id = ref $fields[0] ? shift(@fields)->{id} : '*';
	return $self->command('XADD', $stream, $id, @fields);
}

sub DESTROY
{
	my ($self) = @_;
	local ($?, $@, $!);
	$self->_end('KILL') if $self->{owner} == $$;
	return;
}

1;
