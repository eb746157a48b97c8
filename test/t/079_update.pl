# ALTER EXTENSION postpipe UPDATE: while workers run, and with the same objects at the end as a fresh install. TAP, because it takes an
# installation of its own, with more versions than there are.
#
# From each real version there is a path to the present one by the scripts of sql/, and what it ends with is compared with the present
# script. As long as there is one version, versions that are made here, before and after it, test the machinery.
use strict;
use warnings;
use File::Basename qw(basename dirname);
use File::Path qw(mkpath);
use IPC::Run ();
use PostgreSQL::Test::Utils;
use Postpipe::Test;

my ($bin, $share, $lib) = map { chomp(my $dir = qx(pg_config --$_)); $dir } qw(bindir sharedir pkglibdir);
my ($now) = slurp_file("$share/extension/postpipe.control") =~ /^default_version *= *'(.*)'/m;
my ($old, $before, $after) = ('0.0.0', '0.0.1', $now =~ s/(\d+)$/$1 + 1/er);
my $extension = install();
my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('update', redis => $redis, databases => 'postgres, checked', install_path => dirname(place($bin)));

# --- Each real version but the present one, if there are any: updated, it is what a fresh install is.
sql('CREATE DATABASE fresh');
sql('CREATE EXTENSION postpipe', 'fresh');
my $fresh = objects('fresh');
cmp_ok(scalar(split /\n/, $fresh), '>', 150, 'the objects of a fresh install');
my @versions = split /\n/, sql("SELECT source FROM pg_extension_update_paths('postpipe') WHERE target = '$now' AND path IS NOT NULL ORDER BY 1");
my @real = grep { -e "$share/extension/postpipe--$_.sql" } @versions;
for my $version (grep { $_ ne $now } map { basename($_) =~ /^postpipe--([^-]+)\.sql$/ } glob("$share/extension/postpipe--*.sql"))
{
	ok(scalar(grep { $_ eq $version } @real), "there is a path from $version to $now");
}
is_deeply([ sort @versions ], [ sort @real, $old, $before ], 'paths are from the real versions and the one that is made here');
updated($_, $now, $fresh) for @versions;

# --- A later one: the same, and a difference would be seen.
write_file("$extension/postpipe--$after.sql", script($now));
updated($now, $after, $fresh);
for my $change ('GRANT DELETE ON postpipe_dlq TO pg_monitor', q(COMMENT ON VIEW postpipe_dlq IS 'x'), 'REVOKE EXECUTE ON FUNCTION postpipe_id_time FROM PUBLIC',
	'ALTER EXTENSION postpipe DROP VIEW postpipe_status', 'ALTER TABLE postpipe_ledger ADD x int', 'DROP INDEX postpipe_ledger_age', 'ALTER FUNCTION postpipe_pause STRICT',
	q(ALTER TABLE postpipe_pipeline ALTER workers SET DEFAULT 2), 'ALTER VIEW postpipe_dlq RESET (security_barrier)')
{
	sql($change, 'fresh');
	my $changed = objects('fresh');
	isnt($changed, $fresh, "seen: $change");
	$fresh = $changed;
}

# --- The way of an upgrade: the library is the new one, the objects are old, and everything runs.
sql("CREATE EXTENSION postpipe VERSION '$before'");
sql(q(SELECT postpipe_drop_pipeline('posts'); CREATE TABLE hits (n int); CREATE TABLE item (id int PRIMARY KEY, v text);
	SELECT postpipe_create_pipeline('hits', 'stream:hits', workers => 2, statement => 'INSERT INTO hits SELECT (event ->> ''n'')::int FROM postpipe_batch');
	SELECT postpipe_create_pipeline('item', 'stream:item', target => 'item')));
my $n = 0;
works("with the objects of $before");
is(version_line(), "error|the library has version $now, the SQL objects have $before|ALTER EXTENSION postpipe UPDATE; if the library is the older one, restart the server.",
	'postpipe_check says that they are old, and what to do');
is(sql('SELECT library, sql FROM postpipe_version()'), "$now|$before", '... and postpipe_version has both');
my $pids = workers();
sql("BEGIN; ALTER EXTENSION postpipe UPDATE TO '$now'; ROLLBACK");
works('after an update that was rolled back');
like(version_line(), qr/^error/, '... which is none');
under_load("ALTER EXTENSION postpipe UPDATE TO '$now'");
works('after the update');
is(version_line(), "ok|library and SQL objects have version $now|", 'postpipe_check is content');
is(sql(q(SELECT count(*) FROM postpipe_check() WHERE status = 'error')), 0, '... with all of it');
is(workers(), $pids, 'no worker was restarted');

# --- The objects are newer than the library.
under_load("ALTER EXTENSION postpipe UPDATE TO '$after'");
works("with the objects of $after");
is(version_line() =~ s/\|ALTER.*//r, "error|the library has version $now, the SQL objects have $after", 'postpipe_check says that the library is old');
$node->restart;
works('after a restart');

# --- Objects that are too old for the library: each definition is refused with what to do, which costs nobody else anything, and
# nothing is applied, or lost, until it is done.
my $from = log_offset($node);
my $database = sql(q(CREATE DATABASE checked)) . $node->safe_psql('checked', <<"SQL");
CREATE EXTENSION postpipe VERSION '$old';
CREATE TABLE late (v text);
INSERT INTO postpipe_pipeline (pipeline, owner, stream, consumer_group, statement, search_path, system_identifier, database_oid)
	SELECT 'late', current_user::regrole, 'stream:late', 'late', 'INSERT INTO public.late SELECT event ->> ''v'' FROM postpipe_batch', 'public', system_identifier, oid FROM pg_control_system(), pg_database WHERE datname = 'checked';
SQL
$redis->xadd('stream:late', v => $_) for 1 .. 3;
for my $query ('SELECT * FROM postpipe_stats', 'SELECT * FROM postpipe_pipelines', q(SELECT postpipe_pause('late')), q(SELECT postpipe_ingest('late', '{}')))
{
	like(error($query, 'checked'), qr/^[^\n]*ERROR:  extension postpipe is older than its library \Q$now\E\n(?:CONTEXT.*\n)?HINT:  Run ALTER EXTENSION postpipe UPDATE\./m, "older than the library: $query");
}
wait_for { log_lines($node, qr/ERROR:  extension postpipe is older than its library/, $from) > 1 } '... and the supervisor says so';
is($node->safe_psql('checked', 'SELECT count(*) FROM late'), 0, '... and applies nothing');
works('beside a database that has such objects');
is($node->safe_psql('checked', q(SELECT status FROM postpipe_check() WHERE check_name = 'version')), 'error', 'postpipe_check answers there');
$node->safe_psql('checked', "ALTER EXTENSION postpipe UPDATE TO '$now'");
is(objects('checked'), objects('postgres'), 'an update there adds what is missing');
wait_sql($node, 'checked', 'SELECT count(*), count(DISTINCT v) FROM late', '3|3', '... and the pipeline runs');
is(scalar log_lines($node, qr/terminated by signal|PANIC/, $from), 0, '... and nothing has crashed');
$node->safe_psql('checked', q(SELECT postpipe_drop_pipeline('late')));

is(sql(q(SELECT string_agg(pipeline, ' ' ORDER BY pipeline) FROM postpipe_pipelines)), 'hits item', 'the pipelines are there');
pp_balanced($node);
$node->stop('fast');
done_testing();

sub version_line { return sql(q(SELECT status, detail, hint FROM postpipe_check() WHERE check_name = 'version')) }
sub workers { return sql(q(SELECT string_agg(pid::text, ' ' ORDER BY pid) FROM postpipe_workers WHERE datname = 'postgres')) }

# What makes a version: its script, or that of the version before it and what has changed since.
sub script
{
	my ($version) = @_;
	my $whole = "$share/extension/postpipe--$version.sql";
	return slurp_file($whole) if -e $whole;
	my ($change) = glob("$share/extension/postpipe--*--$version.sql") or die "no script makes version $version";
	my ($from) = $change =~ /postpipe--(.*?)--/;
	return script($from) . slurp_file($change);
}

sub write_file { my ($path, $text) = @_; open(my $fh, '>', $path) or die "$path: $!"; print $fh $text; return close($fh) }

# Where a folder of the installation is in our own: below the test's folder, as it was to the others.
sub place
{
	my ($dir) = @_;
	our $top //= PostgreSQL::Test::Utils::tempdir();
	my $common = "$bin/";
	$common =~ s{[^/]+/\z}{} until "$share/" =~ /^\Q$common\E/ && "$lib/" =~ /^\Q$common\E/;
	return "$top/" . substr("$dir/", length $common) =~ s{/\z}{}r;
}

# An installation of our own, because others' tests run with the one in PATH: copies of the programs, which find the rest relative to
# themselves, and links to it, but for the folder of the extensions, where scripts are added. Returns that folder.
sub install
{
	my $extensions = place($share) . '/extension';
	mkpath([ place($bin), $extensions, dirname(place($lib)) ]);
	system_or_bail('cp', '-pL', glob("$bin/*"), place($bin));
	symlink($lib, place($lib)) or die "symlink: $!";
	symlink($_, place($share) . '/' . basename($_)) for grep { !m{/extension$} } glob("$share/*");
	symlink($_, "$extensions/" . basename($_)) for glob("$share/extension/*");
	write_file("$extensions/postpipe--$before.sql", script($now));
	write_file("$extensions/postpipe--$before--$now.sql", "-- Nothing has changed.\n");
	# One that lacks the last column of the definitions.
	write_file("$extensions/postpipe--$old.sql", script($now) =~ s/,( *--[^\n]*\n) *extension_oid +oid[^\n]*\n/$1/r);
	write_file("$extensions/postpipe--$old--$now.sql", "ALTER TABLE \@extschema\@.postpipe_pipeline ADD COLUMN extension_oid oid;
UPDATE \@extschema\@.postpipe_pipeline SET extension_oid = (SELECT oid FROM pg_catalog.pg_extension WHERE extname OPERATOR(pg_catalog.=) 'postpipe');\n");
	write_file("$extensions/postpipe--$now--$after.sql", "-- Nothing has changed.\n");
	return $extensions;
}

# In a database of its own: one version, and then the other one.
sub updated
{
	my ($from, $to, $expected) = @_;
	my $db = "from $from to $to";
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	sql(qq(CREATE DATABASE "$db"));
	sql("CREATE EXTENSION postpipe VERSION '$from'; ALTER EXTENSION postpipe UPDATE TO '$to'", $db);
	is(sql(q(SELECT extversion FROM pg_extension WHERE extname = 'postpipe'), $db), $to, "$from is updated to $to");
	is(objects($db), $expected, '... and has the objects of a fresh install');
	return;
}

# Every member of the extension, a line each: what it is, its comment, its rights, and how it is defined.
sub objects
{
	my ($db) = @_;
	return sql(<<'SQL', $db);
WITH member AS (
	SELECT classid, objid FROM pg_depend WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e'
		AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'postpipe')
), part AS (
	SELECT *, (pg_identify_object(classid, objid, 0)).type AS kind, (pg_identify_object(classid, objid, 0)).identity AS name FROM member
), rights AS (
	SELECT oid, coalesce(proacl, acldefault('f', proowner)) AS acl FROM pg_proc
	UNION ALL SELECT oid, coalesce(relacl, acldefault('r', relowner)) FROM pg_class
	UNION ALL SELECT oid, coalesce(typacl, acldefault('T', typowner)) FROM pg_type
), definition AS (
	SELECT oid, CASE WHEN prokind = 'a' THEN (SELECT concat_ws(' ', a.aggtransfn, a.aggsortop::regoperator, a.aggtranstype::regtype, proparallel) FROM pg_aggregate a WHERE a.aggfnoid = p.oid)
		ELSE pg_get_functiondef(oid) END AS text FROM pg_proc p WHERE oid IN (SELECT objid FROM member)
	UNION ALL SELECT oid, concat_ws(E'\n', relkind, relpersistence, reloptions, CASE WHEN relkind = 'v' THEN pg_get_viewdef(oid) END,
		(SELECT string_agg(concat_ws(' ', attname, format_type(atttypid, atttypmod), attnotnull, attstorage, pg_get_expr(adbin, adrelid), col_description(attrelid, attnum)), E'\n' ORDER BY attnum)
			FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped),
		(SELECT string_agg(pg_get_indexdef(indexrelid), E'\n' ORDER BY pg_get_indexdef(indexrelid)) FROM pg_index WHERE indrelid = c.oid),
		(SELECT string_agg(conname || ' ' || pg_get_constraintdef(k.oid), E'\n' ORDER BY conname) FROM pg_constraint k WHERE conrelid = c.oid),
		(SELECT string_agg(pg_get_triggerdef(t.oid), E'\n' ORDER BY tgname) FROM pg_trigger t WHERE tgrelid = c.oid AND NOT tgisinternal),
		(SELECT extcondition[array_position(extconfig, c.oid)] || ' dumped' FROM pg_extension WHERE c.oid = ANY (extconfig))) FROM pg_class c
	UNION ALL SELECT oid, concat_ws(' ', typlen, typbyval, typtype, typcategory, typalign, typstorage, typinput, typoutput, typreceive, typsend) FROM pg_type WHERE typtype = 'b'
	UNION ALL SELECT oid, concat_ws(' ', oprcode, oprcom::regoperator, oprnegate::regoperator, oprrest, oprjoin, oprcanmerge, oprcanhash) FROM pg_operator
	UNION ALL SELECT oid, concat_ws(' ', opcdefault, opcintype::regtype, opckeytype::regtype,
		(SELECT string_agg(concat_ws(' ', amopstrategy, amopopr::regoperator), ', ' ORDER BY amopstrategy) FROM pg_amop WHERE amopfamily = opcfamily),
		(SELECT string_agg(concat_ws(' ', amprocnum, amproc::regprocedure), ', ' ORDER BY amprocnum) FROM pg_amproc WHERE amprocfamily = opcfamily)) FROM pg_opclass
)
SELECT kind, name, obj_description(objid, classid::regclass::name), (SELECT string_agg(a::text, ' ' ORDER BY a::text) FROM rights r, unnest(r.acl) a WHERE r.oid = objid), d.text
FROM part LEFT JOIN definition d ON d.oid = objid ORDER BY kind, name
SQL
}

# Entries of both pipelines are applied, once.
sub add
{
	$n++;
	$redis->pipeline(map { [ 'XADD', 'stream:hits', '*', 'n', $n ], [ 'XADD', 'stream:item', '*', 'id', $n * 10 + $_, 'v', $n ] } 1 .. 10);
	return;
}

sub works
{
	my ($what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	add();
	return wait_sql($node, 'postgres', 'SELECT (SELECT count(*) FROM hits), (SELECT count(DISTINCT n) FROM hits), (SELECT count(*) FROM item)', join('|', $n * 10, $n, $n * 10), "both pipelines work $what");
}

# Entries are added before a command, while it runs, and after it.
sub under_load
{
	my ($command) = @_;
	add() for 1 .. 100;
	my $psql = IPC::Run::start([ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-c', $command, '-d', $node->connstr('postgres') ], '>', \my $out, '2>&1', IPC::Run::timeout(120));
	while ($psql->pumpable) { add(); $psql->pump_nb }
	ok($psql->finish, "under load: $command") or diag($out);
	add() for 1 .. 100;
	return;
}
