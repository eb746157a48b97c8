# Postpipe::Test::Torture::Checker: is every entry where it has to be, exactly once?
#
# What has to be there: what is in the stream at the end, with what the producers know of it (by the uid that each entry
# has). An entry that Redis itself has lost, because it was started from an older state, may have been applied or not,
# but not twice. What is there: the rows and the dead letters, read in one snapshot.
package Postpipe::Test::Torture::Checker;

use strict;
use warnings;
use List::Util qw(max);
use Postpipe::Test;
use Postpipe::Test::Torture::Producer;
use PostgreSQL::Test::Utils;

use constant PAGE => 20_000;
use constant SHOWN => 5;

# "ID uid" of each entry of a page, in one string: much less to read than the entries.
my $ids_script = q(local lines = {}
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[2], 'COUNT', ARGV[3])) do
	local uid = ''
	for i = 1, #entry[2], 2 do
		if entry[2][i] == 'uid' then uid = entry[2][i + 1] end
	end
	lines[#lines + 1] = entry[1] .. ' ' .. uid
end
return table.concat(lines, '\n'));

sub new { my ($class, $torture) = @_; return bless { t => $torture, verified => {} }, $class }

# The entries of a stream after an ID, as [id, uid], up to and with another.
sub _stream
{
	my ($self, $stream, $after, $to) = @_;
	my @entries;

	while (1)
	{
		my $page = $self->{t}->redis->command('EVAL', $ids_script, 1, $stream, "($after", $to // '+', PAGE);
		my @lines = split /\n/, $page;
		push @entries, map { [ split / / ] } @lines;
		return @entries if @lines < PAGE;
		$after = $entries[-1][0];
	}
}

# The group of a pipeline, as XINFO GROUPS tells it, and the stream's last-generated-id.
sub _group
{
	my ($self, $name) = @_;
	my ($groups, $stream) = $self->{t}->redis->pipeline(
		[ 'XINFO', 'GROUPS', $self->{t}->stream($name) ], [ 'XINFO', 'STREAM', $self->{t}->stream($name) ]);

	return {} unless ref $groups eq 'ARRAY' && ref $stream eq 'ARRAY';
	my ($group) = grep { $_->{name} eq $self->{t}->group($name) } map { +{@$_} } @$groups;
	return $group ? { %$group, last => {@$stream}->{'last-generated-id'} } : {};
}

sub _pending
{
	my ($self, $name) = @_;
	my $lines = $self->{t}->redis->command('EVAL', q(local ids = {}
		for _, entry in ipairs(redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1000000)) do ids[#ids + 1] = entry[1] end
		return table.concat(ids, '\n')), 1, $self->{t}->stream($name), $self->{t}->group($name));
	return split /\n/, $lines;
}

# How many entries of a pipeline were acknowledged, all in all.
sub acknowledged
{
	my ($self, $name) = @_;
	my $group = $self->_group($name);
	return ($group->{'entries-read'} // 0) - ($group->{pending} // 0);
}

# The IDs that are acknowledged: delivered and not pending; not again those below all that was pending the last time.
sub acknowledged_ids
{
	my ($self, $name) = @_;
	my $group = $self->_group($name);
	my %pending = map { $_ => 1 } $self->_pending($name);
	my @ids = map { $_->[0] } $self->_stream($self->{t}->stream($name), $self->{verified}{$name} // '0-0', $group->{'last-delivered-id'});
	my ($first) = grep { $pending{ $ids[$_] } } 0 .. $#ids;

	$first //= @ids;
	$self->{verified}{$name} = $ids[ $first - 1 ] if $first > 0;
	return grep { !$pending{$_} } @ids;
}

# Which of these IDs have no row and no dead letter?
sub without_row
{
	my ($self, $name, @ids) = @_;
	my $list = join ',', @ids;

	return split /\n/, $self->{t}->node->safe_psql('postgres', "CREATE TEMP TABLE wanted (id text);
COPY wanted FROM stdin;
@{[ join qq(\n), @ids, '\.' ]}
SELECT id FROM wanted EXCEPT (SELECT id FROM public.$name UNION ALL
	SELECT id::text FROM postpipe_dlq WHERE pipeline = '$name')");
}

# Waits until each group has been read to the end of its stream and nothing is pending.
sub settled
{
	my ($self, $seconds) = @_;
	my $state = '';
	my $done = Postpipe::Test::Wait::poll(
		sub {
			my @open;
			for my $name ($self->{t}->pipelines)
			{
				my $group = $self->_group($name);
				push @open, !$group->{name} ? "$name: no group" : "$name: $group->{pending} pending, lag " . ($group->{lag} // '?')
				  unless $group->{name} && $group->{pending} == 0 && $group->{'last-delivered-id'} eq $group->{last};
			}
			$state = join '; ', @open;
			return $state eq '';
		},
		$seconds);

	is($state, '', "nothing is left to read or to acknowledge within $seconds s");
	return 1 if $done;
	$_->() for @Postpipe::Test::Wait::on_timeout;
	return;
}

# All checks of what is in the tables. Returns whether all is well.
sub check
{
	my ($self) = @_;
	my $t = $self->{t};

	$self->_read;
	my $ok = 1;
	$ok = $self->_check_rows($_) && $ok for qw(hits solo);
	$ok = $self->_check_counter && $ok;
	$ok = $self->_check_posts && $ok;
	$ok = $self->_check_dead($_) && $ok for $t->pipelines;
	$ok = $self->_check_audit && $ok;
	return $ok;
}

# What was added, and what is there.
sub _read
{
	my ($self) = @_;
	my $t = $self->{t};
	my %added = map { $_->{uid} => $_ } map { Postpipe::Test::Torture::Producer::read_log($_) } $t->logs;

	for my $stream (Postpipe::Test::Torture::Producer::STREAM, Postpipe::Test::Torture::Producer::POSTS)
	{
		for my $entry ($self->_stream($stream, '0-0'))
		{
			my ($id, $uid) = @$entry;
			$added{$uid}{present} = 1;
			$added{$uid}{id} //= $id;
		}
	}
	$self->{added} = \%added;

	my $uid = q((SELECT convert_from(fields[i + 1], 'UTF8') FROM generate_subscripts(fields, 1) i WHERE i % 2 = 1 AND fields[i] = 'uid'));
	my $text = $t->node->safe_psql('postgres', "BEGIN ISOLATION LEVEL REPEATABLE READ;
		SELECT 'hits', uid, id, n, length FROM hits; SELECT 'solo', uid, id, n, length FROM solo;
		SELECT 'counter', n, entries FROM counter;
		SELECT 'posts', channel_id, telegram_message_id, entry_id, split_part(content, ' ', 1), views_count FROM posts;
		SELECT 'dead', pipeline, id, coalesce($uid, ''), state FROM postpipe_dlq;
		SELECT 'lost', pipeline, count(*) FROM postpipe_lost_range GROUP BY pipeline;
		COMMIT");
	my %tables = map { $_ => [] } qw(hits solo counter posts dead lost);
	for my $line (split /\n/, $text)
	{
		my ($table, @values) = split /\|/, $line, -1;
		push @{ $tables{$table} }, \@values;
	}
	$self->{tables} = \%tables;
	return;
}

sub _list { my (@items) = @_; return @items <= SHOWN ? "@items" : "@items[0 .. SHOWN - 1] and " . (@items - SHOWN) . ' more' }

# Each entry once: a row, or a dead letter. With the ID that it has in the stream.
sub _check_rows
{
	my ($self, $name) = @_;
	my %row = map { $_->[0] => 0 } @{ $self->{tables}{$name} };
	my %dead;
	my (@lost, @twice, @other_id, @unknown, @wrong_place);

	for my $row (@{ $self->{tables}{$name} })
	{
		my ($uid, $id, $n) = @$row;
		my $entry = $self->{added}{$uid} // {};
		push @unknown, $uid unless $entry->{kind};
		push @other_id, "$uid: $id" if $entry->{id} && $entry->{id} ne $id || ($entry->{n} // $n) != $n;
		push @wrong_place, "$uid (row)" if ($entry->{kind} // '') eq 'bad';
		$row{$uid}++;
	}
	for my $dead (grep { $_->[0] eq $name } @{ $self->{tables}{dead} })
	{
		$dead{ $dead->[2] }++;
		push @wrong_place, "$dead->[2] (dead)" if ($self->{added}{ $dead->[2] }{kind} // '') !~ /^(?:bad|late)$/;
	}
	my $total = 0;
	for my $entry (grep { $_->{stream} && $_->{stream} eq $self->{t}->stream($name) } values %{ $self->{added} })
	{
		my $times = ($row{ $entry->{uid} } // 0) + ($dead{ $entry->{uid} } // 0);
		push @twice, "$entry->{uid} (" . ($entry->{id} // '?') . ", $times times)" if $times > 1;
		push @lost, "$entry->{uid} (" . ($entry->{id} // '?') . ')' if $times == 0 && ($entry->{present} || ($entry->{id} && !$self->{t}{stale}));
		$total++ if $entry->{present};
		$self->{gone}{$name}++ if $times > 0 && !$entry->{present};
	}
	my $bad = join "\n", map { @{ $_->[1] } ? "$_->[0]: " . _list(sort @{ $_->[1] }) : () }
	  [ lost => \@lost ], [ twice => \@twice ], [ 'with another ID or content' => \@other_id ],
	  [ unknown => \@unknown ], [ 'in the wrong place' => \@wrong_place ];
	return is($bad, '', "$name: each of $total entries once");
}

# The sums. What Redis has lost may be in them or not.
sub _check_counter
{
	my ($self) = @_;
	my ($n, $entries) = @{ $self->{tables}{counter}[0] };
	my ($n_wanted, $wanted, $n_more, $more) = (0, 0, 0, 0);

	for my $entry (grep { $_->{stream} && $_->{stream} eq $self->{t}->stream('counter') && $_->{kind} =~ /^(?:ok|late)$/ } values %{ $self->{added} })
	{
		if ($entry->{present}) { $n_wanted += $entry->{n}; $wanted++ }
		else { $n_more += $entry->{n}; $more++ }
	}
	($n_more, $more) = (0, 0) unless $self->{t}{stale};
	return ok($entries >= $wanted && $entries <= $wanted + $more && $n >= $n_wanted && $n <= $n_wanted + $n_more,
		"counter: $entries entries of $wanted ($more lost by Redis), sum $n of $n_wanted");
}

# One row per key, of the newest entry, and the greatest number of views.
sub _check_posts
{
	my ($self) = @_;
	my (%newest, %views, @wrong, %seen);

	for my $entry (grep { $_->{stream} && $_->{stream} eq $self->{t}->stream('posts') && $_->{kind} eq 'ok' && $_->{present} } values %{ $self->{added} })
	{
		my $key = "$entry->{channel}:$entry->{message}";
		$newest{$key} = $entry if !$newest{$key} || _id_order($entry->{id}) gt _id_order($newest{$key}{id});
		$views{$key} = max($views{$key} // 0, $entry->{views});
	}
	for my $row (@{ $self->{tables}{posts} })
	{
		my ($channel, $message, $id, $uid, $views) = @$row;
		my $key = "$channel:$message";
		my $entry = $newest{$key};
		$seen{$key} = 1;
		next if $self->{t}{stale} && !$self->{added}{$uid}{present};
		push @wrong, "$key: unknown" unless $entry;
		push @wrong, "$key: $uid ($id), not $entry->{uid} ($entry->{id})" if $entry && ($entry->{uid} ne $uid || $entry->{id} ne $id);
		push @wrong, "$key: $views views, not $views{$key}" if $entry && ($self->{t}{stale} ? $views < $views{$key} : $views != $views{$key});
	}
	push @wrong, "$_: missing" for grep { !$seen{$_} } keys %newest;
	return is(_list(sort @wrong), '', 'posts: ' . keys(%newest) . ' keys, each with its newest entry');
}

sub _id_order { my ($ms, $sequence) = split /-/, $_[0]; return sprintf '%020d-%020d', $ms, $sequence }

# What cannot be applied is a dead letter, once, and nothing else is.
sub _check_dead
{
	my ($self, $name) = @_;
	my (%dead, @wrong);

	$dead{ $_->[2] }++ for grep { $_->[0] eq $name } @{ $self->{tables}{dead} };
	for my $uid (sort keys %dead)
	{
		my $kind = $self->{added}{$uid}{kind} // 'unknown';
		push @wrong, "$uid is $kind" unless $kind eq 'bad' || ($kind eq 'late' && $name ne 'counter');
		push @wrong, "$uid $dead{$uid} times" if $dead{$uid} > 1;
	}
	for my $entry (grep { $_->{stream} && $_->{stream} eq $self->{t}->stream($name) && $_->{kind} eq 'bad' && $_->{present} } values %{ $self->{added} })
	{
		push @wrong, "$entry->{uid} ($entry->{id}) is missing" unless $dead{ $entry->{uid} };
	}
	my @lost = grep { $_->[0] eq $name } @{ $self->{tables}{lost} };
	return is(_list(@wrong, map { "$_->[1] noted as lost" } @lost), '', "$name: " . keys(%dead) . ' dead letters, those that have to be');
}

# The audit, when the supervisor has measured since. What Redis has lost but was applied makes it negative: that many
# more are on record than were ever added, as Redis tells it.
sub _check_audit
{
	my ($self) = @_;
	my $t = $self->{t};
	my $rows = '';

	Postpipe::Test::Wait::poll(
		sub {
			$rows = $t->try_sql(q(SELECT pipeline, coalesce(balance::text, 'NULL'), coalesce(reason, '')
				FROM (SELECT *, row_number() OVER (PARTITION BY pipeline ORDER BY epoch DESC) AS last FROM postpipe_audit) a
				WHERE last = 1 ORDER BY pipeline)) // '';
			return $rows !~ /\|NULL\|/ && $rows =~ /\|/;
		},
		20);
	my @wrong;
	for my $row (map { [ split /\|/, $_, -1 ] } split /\n/, $rows)
	{
		my ($name, $balance, $reason) = @$row;
		my $gone = $t->{stale} ? $self->{gone}{$name} // 1e9 : 0;
		my $fine =
		    $balance eq 'NULL' ? $t->{stale}
		  : $name =~ /^(?:hits|solo)$/ ? $balance == 0 || $balance == -$gone
		  : $balance <= 0 && $balance >= -$gone;
		push @wrong, "$name: balance $balance $reason" . ($gone ? " ($gone lost by Redis)" : '') unless $fine;
	}
	push @wrong, 'not all pipelines are there' unless (() = $rows =~ /^\w+\|/gm) == (() = $t->pipelines);
	my $ok = is(join('; ', @wrong), '', 'postpipe_audit: balance 0' . ($t->{stale} ? ', or what Redis has lost' : ''));
	diag($t->try_sql('SELECT * FROM postpipe_audit') // 'no answer') unless $ok;
	return $ok;
}

# Consumers, processes, the log, and a stop.
sub check_end
{
	my ($self) = @_;
	my $t = $self->{t};
	my $node = $t->node;

	my @leaked = grep { consumers($t->redis, $t->stream($_), $t->group($_)) > $t->workers($_) } $t->pipelines;
	my $ok = is("@leaked", '', 'no consumer was left behind');

	my $wanted = 2;
	$wanted += $t->workers($_) for $t->pipelines;
	my $running = 0;
	Postpipe::Test::Wait::poll(
		sub { $running = $t->try_sql(q(SELECT count(*) FROM pg_stat_activity WHERE backend_type ~ '^postpipe')) // -1; $running == $wanted }, 40);
	$ok = is($running, $wanted, 'each process runs once') && $ok;

	$ok = ok($node->stop('fast', fail_ok => 1) // 1, 'the server stops') && $ok;
	$node->stop('immediate', fail_ok => 1) if -e $node->data_dir . '/postmaster.pid';
	my $data = $node->data_dir;
	my $left;
	Postpipe::Test::Wait::poll(sub { !($left = join ' ', _processes_in($data)) }, 10);
	$ok = is($left, '', 'no process is left') && $ok;
	return $self->_check_log && $ok;
}

sub _processes_in
{
	my ($dir) = @_;
	return map { m{(\d+)/cwd} } grep { index(readlink($_) // '', $dir) == 0 } glob('/proc/[0-9]*/cwd');
}

# No crash but those that we made.
sub _check_log
{
	my ($self) = @_;
	my @crashes = log_lines($self->{t}->node, qr/was terminated by signal|exited with exit code (?![01]\b)|PANIC|TRAP:|could not write to|stuck spinlock/);

	@crashes = grep { !(/\(PID (\d+)\) was terminated by signal 9/ && $self->{t}{killed}{$1}) } @crashes;
	return is(join("\n", @crashes), '', 'nothing crashed but what was killed');
}

1;
