# Runs every command of the README, and then of docs/operations.md, in its order, as a reader would. TAP, because it takes a server and a Redis, and the
# commands come from the file. `make demo`, `make test` and the installation are what CI itself does.
use strict;
use warnings;
use FindBin;
use PostgreSQL::Test::Utils;
use Postpipe::Test;
use Postpipe::Test::Manual;

my $readme = slurp_file("$FindBin::RealBin/../../README.md");
my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('readme', redis => $redis);
# The row is there when the worker has had its turn.
my $rows = 'psql -c "SELECT id, channel_id, content FROM posts"';
my $manual = Postpipe::Test::Manual->new($node, $redis, after => \&wait_until_idle,
	programs => { $rows => sub { wait_for { qx($rows) =~ /p1 \| c1 +\| hello/ } 'what was published is in the table' } });

my $lines = () = $readme =~ /\n/g;
cmp_ok($lines, '<=', 200, 'the README has at most 200 lines');

# The settings that it names are the ones that there are, with the defaults that it names.
my %settings = map { $_ => 1 } split /\n/,
	$node->safe_psql('postgres', "SELECT name FROM pg_settings WHERE name LIKE 'postpipe.%'");
while ($readme =~ /^\| `(postpipe\.\w+)` \| `?([^|`]*)`? +\|/mg)
{
	my ($name, $default) = ($1, $2);
	$default =~ s/\s+$//;
	ok($settings{$name}, "$name is a setting");
	is($node->safe_psql('postgres', "SELECT current_setting('$name') FROM pg_settings WHERE name = '$name' AND source = 'default'"),
		$default, "its default is '$default'")
	  unless $name eq 'postpipe.redis_url';
}

for my $name (sort keys %settings)
{
	like($readme, qr/^\| `\Q$name\E` \|/m, "$name is in the table of settings");
}
unlike($readme, qr/^\|.*\n\n\|(?! \|)/m, 'no table is cut in two by an empty line');

# docs/configuration.md has all settings, with defaults and limits, and all options.
my $configuration = slurp_file("$FindBin::RealBin/../../docs/configuration.md");
for my $line (split /\n/, $node->safe_psql('postgres', q(SELECT name, boot_val, coalesce(min_val || ' to ' || max_val, '') FROM pg_settings WHERE name LIKE 'postpipe.%')))
{
	my ($name, $default, $limits) = split /\|/, $line;
	$default = $default eq '' ? '' : "`$default` ";
	like($configuration, qr/^\| `\Q$name\E` \| \Q$default\E\| \Q$limits\E/m, "docs/configuration.md has $name, its default and its limits");
}
my (undef, undef, $refused) = $node->psql('postgres', q(CREATE EXTENSION postpipe; SELECT postpipe_create_pipeline('x', 'x', options => '{"unknown": 1}', statement => 'SELECT')));
my ($options) = $refused =~ /HINT:  Options are (.*)\./;
like($configuration, qr/^\| `$_` \| .* \|.*\|$/m, "docs/configuration.md has the option $_") for split /, | and /, $options;
is(scalar(() = $configuration =~ /^\| `[a-z_]+` \|/mg), scalar(split /, | and /, $options), '... and no other one');
$node->safe_psql('postgres', 'DROP EXTENSION postpipe');

is($manual->run($readme), 9, 'all blocks were found');

# And it does what it says: the counting pipeline counts.
$redis->xadd('stream:clicks', id => "c$_", url => '/', at => '2026-01-02T03:04:05Z') for 1 .. 5;
wait_sql($node, 'postgres', 'SELECT count(*) FROM clicks', '5', 'the pipeline clicks works after all of it');
$redis->xadd('stream:channels:updated', channel_id => 'c1', title => 't', members => 5, seen_at => '2026-01-02T03:04:05');
wait_sql($node, 'postgres', "SELECT title || members FROM channels WHERE id = 'c1'", 't5', 'and the pipeline channels');

# The manual of operations, with what it speaks of: consumers of others, which have left entries behind.
$redis->command('XADD', 'stream:posts:parsed', '*', post_id => "left$_", channel_id => 'c1', telegram_message_id => 100 + $_, text => 'x') for 1 .. 5;
wait_sql($node, 'postgres', q(SELECT count(*) FROM posts WHERE id LIKE 'left%'), '5', 'entries are applied');
$redis->command('XGROUP', 'CREATECONSUMER', 'stream:posts:parsed', 'post_persist_workers', 'python-worker-3');
is($manual->run(slurp_file("$FindBin::RealBin/../../docs/operations.md")), 45, 'all blocks of docs/operations.md were found');
is(consumers($redis, 'stream:posts:parsed', 'post_persist_workers'), 1, 'and after all of it only ours is left');

$node->stop('fast');
done_testing();

# The next block may read what the pipeline was to do.
sub wait_until_idle
{
	my (undef, $language) = @_;
	return if $language ne 'sql';
	return wait_sql($node, 'postgres', "SELECT bool_and(state = 'idle') FROM postpipe_stats", 't', 'all pipelines run');
}
