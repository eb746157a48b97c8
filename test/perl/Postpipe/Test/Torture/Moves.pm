# Postpipe::Test::Torture::Moves: what others may do to a stream and its group while workers read it, at random: entries are
# trimmed and deleted, the group is moved, destroyed and made again, its consumers are deleted, entries are claimed for them. Then
# each entry that was ever added is a row or counted as lost, none is there twice, and the audit balances in one epoch.
#
#   Postpipe::Test::Torture::Moves->new(seed => 42)->round;
#
# Six pipelines, each with a stream of its own, one worker or two, and batches of 1, 3 or 1000. While a pipeline is held, an entry
# whose v ends with w waits, and one whose v ends with f fails.
package Postpipe::Test::Torture::Moves;

use strict;
use warnings;
use Postpipe::Test;
use Postpipe::Test::Pipelines;
use Postpipe::Test::Torture::Dice;
use Time::HiRes ();

use constant PIPELINES => 6;
use constant MOVES => 120;
use constant SETTLE_SECONDS => 60;

# How often each is chosen.
my %weights = (
	add => 7,
	hold => 2,
	trim => 1,
	add_and_trim => 1,
	delete_entry => 1,
	set_id => 1,
	destroy => 1,
	make_again => 1,
	delete_consumer => 1,
	claim => 1,
	claim_idle => 1,
	cut => 1,
	pause => 1,
	wait => 3,
	restart => 0.1);
my $rounds = 0;

# new(seed, verbose => 0)
sub new
{
	my ($class, %opt) = @_;
	my $self = bless { verbose => 0, %opt, serial => 0, began => Time::HiRes::time() }, $class;

	$rounds++;
	srand($self->{seed});
	$self->{redis} = Postpipe::Test::Redis->new;
	$self->{node} = pp_node("moves$rounds", redis => $self->{redis}, conf => "deadlock_timeout = 100ms\nautovacuum = off");
	$self->{session} = pp_session($self->{node});
	$self->_sql(<<'SQL');
CREATE EXTENSION postpipe;
SELECT postpipe_drop_pipeline('posts');
CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF NEW.v LIKE '%w' THEN
		PERFORM pg_advisory_xact_lock(TG_ARGV[0]::int);
	ELSIF NEW.v LIKE '%f' AND NOT pg_try_advisory_xact_lock(TG_ARGV[0]::int) THEN
		RAISE lock_not_available;
	END IF;
	RETURN NEW;
END $$;
SQL
	$self->{pipelines} = [ map { $self->_make($_) } 1 .. PIPELINES ];
	return $self;
}

sub _sql { my ($self, $sql) = @_; return $self->{node}->safe_psql('postgres', $sql) }
sub _pick { my (@list) = @_; return $list[ rand @list ] }

sub _make
{
	my ($self, $number) = @_;
	my $p = { name => "p$number", stream => "stream:p$number", group => "postpipe_p$number", lock => $number, workers => 1 + $number % 2, added => 0 };
	my $size = _pick(1, 3, 1000);

	$self->_sql("CREATE TABLE $p->{name} (v text);
		CREATE TRIGGER hold BEFORE INSERT ON $p->{name} FOR EACH ROW EXECUTE FUNCTION hold($number)");
	$self->_sql(Postpipe::Test::Pipelines::definition($p->{name}, workers => $p->{workers}, options => qq({"batch_size": $size}),
		statement => "INSERT INTO $p->{name} SELECT event ->> 'v' FROM postpipe_batch"));
	$self->_sql("SELECT postpipe_wait_state('$p->{name}', 'idle')");
	$self->_tell($p, "$p->{workers} workers, batches of $size");
	return $p;
}

# What was done, with the seconds since the start: shown when the round fails.
sub _tell
{
	my ($self, $p, $text) = @_;
	my $line = sprintf '%6.2f %s: %s', Time::HiRes::time() - $self->{began}, $p->{name}, $text;

	push @{ $p->{diary} }, $line;
	diag($line) if $self->{verbose};
	return;
}

# One round: moves of all kinds, then everything has to be right.
sub round
{
	my ($self) = @_;
	my @pipelines = @{ $self->{pipelines} };
	my $ok = 1;

	$self->_move(_pick(@pipelines)) for 1 .. MOVES;
	for my $p (@pipelines)
	{
		$self->move_hold($p) if $p->{held};
		$self->move_pause($p) if $p->{paused};
	}
	# What others have done last is noticed with the next entries at the latest.
	$self->{redis}->transaction($self->_adds($_, 3)) for @pipelines;
	$ok = $self->_check($_) && $ok for @pipelines;
	$self->{session}->(undef);
	$self->{node}->stop;
	$self->{redis}->kill9;
	return $ok;
}

sub _move
{
	my ($self, $p) = @_;
	my $name = roll(\%weights) // return;
	my $method = "move_$name";

	$self->_tell($p, "$name " . ($self->$method($p) // 'nothing there'));
	return;
}

# Commands that add up to n entries, of which no two are alike.
sub _adds
{
	my ($self, $p, $n) = @_;
	$p->{added} += $n;
	return map { [ 'XADD', $p->{stream}, '*', 'v', ++$self->{serial} . _pick(('') x 7, 'w', 'f') ] } 1 .. $n;
}

sub _ids { my ($self, $p) = @_; return map { $_->[0] } @{ $self->{redis}->command('XRANGE', $p->{stream}, '-', '+') } }

sub _consumer
{
	my ($self, $p) = @_;
	my ($reply) = $self->{redis}->pipeline([ 'XINFO', 'CONSUMERS', $p->{stream}, $p->{group} ]);
	return _pick(map { +{@$_}->{name} } ref $reply eq 'ARRAY' ? @$reply : ());
}

sub move_add
{
	my ($self, $p) = @_;
	my $n = _pick(1 .. 5, 40);
	$self->{redis}->transaction($self->_adds($p, $n));
	return $n;
}

sub move_hold
{
	my ($self, $p) = @_;
	$p->{held} = !$p->{held};
	$self->{session}->($p->{held} ? "SELECT pg_advisory_lock($p->{lock})" : "SELECT pg_advisory_unlock($p->{lock})");
	return $p->{held} ? 'begins' : 'ends';
}

sub move_trim
{
	my ($self, $p) = @_;
	my $left = int rand 20;
	$self->{redis}->command('XTRIM', $p->{stream}, 'MAXLEN', $left);
	return "to $left";
}

sub move_add_and_trim
{
	my ($self, $p) = @_;
	my $left = int rand 10;
	$self->{redis}->transaction($self->_adds($p, 15), [ 'XTRIM', $p->{stream}, 'MAXLEN', $left ]);
	return "to $left";
}

sub move_delete_entry
{
	my ($self, $p) = @_;
	my $id = _pick($self->_ids($p)) // return;
	$self->{redis}->command('XDEL', $p->{stream}, $id);
	return $id;
}

sub move_set_id
{
	my ($self, $p) = @_;
	my $id = _pick('0', '$', '$', ($self->_ids($p))[-1] // (), _pick($self->_ids($p)) // ());
	$self->{redis}->transaction($self->_adds($p, int rand 4), [ 'XGROUP', 'SETID', $p->{stream}, $p->{group}, $id ]);
	return $id;
}

sub move_destroy
{
	my ($self, $p) = @_;
	$self->{redis}->transaction([ 'XGROUP', 'DESTROY', $p->{stream}, $p->{group} ], $self->_adds($p, int rand 4));
	return '';
}

sub move_make_again
{
	my ($self, $p) = @_;
	my $id = _pick('0', '$');
	$self->{redis}->transaction([ 'XGROUP', 'DESTROY', $p->{stream}, $p->{group} ], $self->_adds($p, int rand 4),
		[ 'XGROUP', 'CREATE', $p->{stream}, $p->{group}, $id ], $self->_adds($p, int rand 3));
	return $id;
}

sub move_delete_consumer
{
	my ($self, $p) = @_;
	my $name = $self->_consumer($p) // return;
	$self->{redis}->pipeline([ 'XGROUP', 'DELCONSUMER', $p->{stream}, $p->{group}, $name ]);
	return $name;
}

# Also what is settled. Not what was not delivered yet: if that is deleted, it is lost twice.
sub move_claim
{
	my ($self, $p) = @_;
	my $name = $self->_consumer($p) // return;
	my $delivered = { map { %{ +{@$_} } } @{ $self->{redis}->command('XINFO', 'GROUPS', $p->{stream}) } }->{'last-delivered-id'};
	my @ids = map { $_->[0] } grep { rand() < 0.4 } @{ $self->{redis}->command('XRANGE', $p->{stream}, '-', $delivered) } or return;
	$self->{redis}->pipeline([ 'XCLAIM', $p->{stream}, $p->{group}, $name, 0, @ids, 'FORCE', 'JUSTID' ]);
	return "$name " . @ids;
}

sub move_claim_idle
{
	my ($self, $p) = @_;
	my $name = $self->_consumer($p) // return;
	$self->{redis}->pipeline([ 'XAUTOCLAIM', $p->{stream}, $p->{group}, $name, 0, '0' ]);
	return $name;
}

sub move_cut
{
	my ($self, $p) = @_;
	my $name = $self->_consumer($p) // return;
	return $self->{redis}->kill_client($name) ? $name : undef;
}

sub move_pause
{
	my ($self, $p) = @_;
	$p->{paused} = !$p->{paused};
	$self->_sql($p->{paused} ? "SELECT postpipe_pause('$p->{name}')" : "SELECT postpipe_resume('$p->{name}')");
	return $p->{paused} ? 'begins' : 'ends';
}

sub move_wait
{
	my ($self, $p) = @_;
	Postpipe::Test::Wait::poll(sub { pending($self->{redis}, $p->{stream}, $p->{group}) == 0 }, rand 2);
	return '';
}

# Of the server, which holds nothing then.
sub move_restart
{
	my ($self) = @_;
	$self->{node}->stop('immediate');
	$self->{node}->start;
	$self->{session}->(undef);
	$self->{session} = pp_session($self->{node});
	for my $p (@{ $self->{pipelines} })
	{
		$p->{held} = 0;
		$self->_tell($p, 'the server has crashed');
	}
	return '';
}

# Each entry once: a row, or lost; in one epoch. Where the group was destroyed and nothing that is known was left, it cannot be told
# how many entries there were.
sub _check
{
	my ($self, $p) = @_;
	my ($name, $redis) = ($p->{name}, $self->{redis});
	my ($missing, %row, $audit);

	Postpipe::Test::Wait::poll(
		sub {
			%row = ();
			$row{$_}++ for split /\n/, $self->_sql("SELECT v FROM $name");
			my @entries = @{ $redis->command('XRANGE', $p->{stream}, '-', '+') };
			$missing = join ' ', map { $_->[0] } grep { !$row{ $_->[1][1] } } @entries;
			return $missing eq '' && pending($redis, $p->{stream}, $p->{group}) == 0;
		},
		SETTLE_SECONDS);
	my $ok = is($missing, '', "$name: nothing in the stream is missing");
	$ok = is(pending($redis, $p->{stream}, $p->{group}), 0, '... nor pending') && $ok;
	$ok = is(join(' ', grep { $row{$_} > 1 } sort keys %row), '', '... nor there twice') && $ok;

	my $counted = "0 first " . ($p->{added} - keys %row);
	my $unknown = qr/^how many entries the epoch began with could not be determined first(?: group_gone)+$/;
	Postpipe::Test::Wait::poll(
		sub {
			$audit = $self->_sql("SELECT concat_ws(' ', balance, reason, (SELECT string_agg(cause, ' ' ORDER BY epoch) FROM postpipe_epoch e WHERE e.pipeline = a.pipeline),
				CASE WHEN balance IS NOT NULL THEN (SELECT coalesce(sum(entries), 0) FROM postpipe_lost l WHERE l.pipeline = a.pipeline) END)
				FROM postpipe_audit a WHERE pipeline = '$name' ORDER BY epoch DESC LIMIT 1");
			return $audit eq $counted || $audit =~ $unknown;
		},
		SETTLE_SECONDS);
	$ok = is($audit, $audit =~ $unknown ? $audit : $counted, "... and what is no row is lost, of $p->{added}") && $ok;
	diag("seed $self->{seed}, what was done:\n", (map { "  $_\n" } @{ $p->{diary} }), 'files: ', $self->{node}->logfile) unless $ok;
	return $ok;
}

1;
