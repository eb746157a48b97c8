# JSON in one field becomes the jsonb that PostgreSQL makes of it, or a dead letter with PostgreSQL's own reason. Objects
# have a parser of their own, so each text is compared with what a cast says of it.
# TAP, because it needs a Redis and background workers.

use strict;
use warnings;
use Encode qw(encode_utf8);
use Postpipe::Test;

my $seed = $ENV{SEED} // 17;
srand($seed);
my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('json', redis => $redis, conf => 'postpipe.max_retries = 0');
sql('CREATE EXTENSION postpipe');
sql(q(SELECT postpipe_drop_pipeline('posts')));
sql(<<'SQL');
CREATE TABLE events (n int, event jsonb);
CREATE TABLE texts (n int, raw bytea);
SELECT postpipe_create_pipeline('json', 'stream:json', options => '{"error_threshold": 1}', statement => $$INSERT INTO events SELECT (envelope ->> 'n')::int, event FROM postpipe_batch$$);
CREATE FUNCTION cast_it(raw bytea, OUT event jsonb, OUT message text) LANGUAGE plpgsql AS $$
BEGIN event := convert_from(raw, 'UTF8')::jsonb; EXCEPTION WHEN data_exception THEN message := sqlerrm; END $$;
SQL

# What is valid, what nearly is, and what lies at an edge.
my @texts = (
	'{}', ' { } ', "\t{\r\n}\n", '{"a":1}', '{"a" : "b" , "c" : null}', '{"a":true,"b":false,"c":null}', '{"":""}', '{"a":1,"a":2,"b":3,"a":4}', '{"b":1,"a":2,"cc":3,"c":4}',
	'{"n":0}', '{"n":-0}', '{"n":-0.0}', '{"n":1.50}', '{"n":1e3}', '{"n":1E-3}', '{"n":1.5e+10}', '{"n":123456789012345678}', '{"n":-123456789012345678}', '{"n":12345678901234567890123}', '{"n":9223372036854775807}',
	'{"n":-9223372036854775808}', '{"n":0.1}', '{"n":1e400}', '{"n":10000}', '{"n":99999999}',
	'{"n":01}', '{"n":-}', '{"n":1.}', '{"n":.5}', '{"n":1e}', '{"n":1e+}', '{"n":+1}', '{"n":0x1}', '{"n":1a}', '{"n":NaN}', '{"n":1e999999}', '{"n":1e999999@}', '{"n":1e999999 x}', '{"n":1e999999', '{"a":[1e999999@]}', '{"n":' . '9' x 140000 . '@}', '{"n":' . '9' x 140000 . '}', '{"n":-' . '1' x 120 . '.' . '5' x 120 . '}', '{"n":--1}', '{"n":1 2}',
	'{"s":"\u0041\u00e9\u0416\u20ac"}', '{"s":"\ud83d\ude80"}', '{"s":"\"\\\/\b\f\n\r\t"}', '{"\u0061":1,"a":2}', '{"s":"x\ny","t":"\u000a"}', '{"s":"' . ('\u0416' x 500) . '"}', '{"s":"' . ('abc\n' x 500) . '"}',
	'{"s":"\u0000"}', '{"s":"\ud83d"}', '{"s":"\ude80"}', '{"s":"\ud83dx"}', '{"s":"\ud83d\u0041"}', '{"s":"\u12"}', '{"s":"\u12g4"}', '{"s":"\x"}', '{"s":"\\', '{"s":"\u', '{"s":"abc', '{"s":"a' . "\n" . 'b"}', '{"s":"a' . "\x01" . '"}', '{"s":"' . "\x7f" . '"}',
	'{"a":[1,2,{"b":null}],"c":{"d":{}}}', '{"a":[]}', '{"a":{}}', '{"a":["x]","\"]}",{"b":"}"}],"z":1}', '{"a":["x"],"bb":{"c":[1,2.5,null]},"n":7,"s":"t"}', '{"a":["x",],"b":1}', '{"a":{"b"},"b":1}', '{"a":[1}]}', '{"a":[1','{"a":["', '{"a":["\\', '{"a":[]]}', '{"a":["\u0000"]}', '{"a":[}', '[]', '[1]', '1', '"a"', 'null', 'true', '', ' ', '{', '}', '{"a"', '{"a":', '{"a":1', '{"a":1,', '{"a":1,}', '{,}', '{"a":1}}', '{"a":1} x', '{"a":1}{"b":2}', '{a:1}', "{'a':1}",
	'{"a":tru}', '{"a":truex}', '{"a":True}', '{"a":nul}', '{"a" 1}', '{"a":1 "b":2}', '{"a":1;"b":2}', '{1:2}', '{null:1}', '{"a"::1}', '{"a":,"b":1}',
	'{"' . ('k' x 300) . '":"' . ('v' x 70000) . '"}', '{' . join(',', map { qq("k$_":$_) } 1 .. 300) . '}', '{' . join(',', map { qq("k$_":"$_") } 1 .. 256) . '}',
	encode_utf8("{\"\x{43a}\x{43b}\x{44e}\x{447}\":\"\x{440}\x{435}\x{43b}\x{438}\x{437} \x{1f680}\",\"x\":\"\x{e9}\"}"), encode_utf8("\x{feff}{}"), "{\"s\":\"\x{c3}\"}", "{\"s\":\"\x{ff}\x{fe}\"}",
	map { '{"p":"' . ('x' x $_) . '\"' . ('y' x (17 - $_)) . '","q":' . ('1' x ($_ + 1)) . '}' } 0 .. 17);
# Changes of a byte or a few in what is valid.
my @alphabet = (split(//, "{}[]\",:\\ntrue0123456789.eE+-u \t/"), "\x00", "\x1f", "\xd0", "\x96");
my @valid = ('{"y":["a","b\"\u0416",1.5,true,null,-0],"z":[], "n":[ 1 , 22]}', '{"id": 12, "text": "a\"b\u0416c\n", "ok": true, "no": null, "f": -1.25e2}', encode_utf8("{\"a\":\"\x{436}\x{436}\",\"b\":\"\\\\\",\"c\":false}"), '{"x":"0123456789abcdef","y":[1,{"z":"q"}]}');
for (1 .. 3000)
{
	my $text = $valid[ rand @valid ];
	substr($text, rand(length($text) + 1), rand(3)) = join '', map { $alphabet[ rand @alphabet ] } 1 .. rand(3) for 0 .. rand(2);
	push @texts, $text;
}

my $n = 0;
my @commands = map { [ 'XADD', 'stream:json', '*', 'n', $n++, 'data', $_ ] } @texts;
$redis->pipeline(splice(@commands, 0, 500)) while @commands;
for (my $i = 0; $i < @texts; $i += 500)
{
	my $last = $i + 499 < $#texts ? $i + 499 : $#texts;
	sql('INSERT INTO texts VALUES ' . join ', ', map { "($_, '\\x" . unpack('H*', $texts[$_]) . "')" } $i .. $last);
}
wait_sql($node, 'postgres', q(SELECT (SELECT count(*) FROM events) + (SELECT count(*) FROM postpipe_dlq)), scalar @texts, "all are settled (SEED=$seed)");

# What a cast makes of it, and the event: the same, by its text, by its parts, and in an index's order.
sql(q(CREATE TABLE compared AS SELECT n, raw, c.event AS wanted, c.message, e.event FROM texts t CROSS JOIN cast_it(raw) c LEFT JOIN events e USING (n)));
is(sql(q(SELECT count(*) FROM compared WHERE jsonb_typeof(wanted) = 'object' AND event IS NULL)), 0, 'every object is applied');
is(sql(q(SELECT count(*) FROM compared WHERE event IS NOT NULL AND wanted IS NULL)), 0, '... and nothing else');
my $different = q(SELECT string_agg(encode(raw, 'escape') || ' -> ' || event, '; ') FROM compared WHERE event IS NOT NULL AND );
is(sql("$different event::text <> wanted::text"), '', 'each event has the text of its cast');
is(sql("$different (event <> wanted OR jsonb_cmp(event, wanted) <> 0 OR jsonb_hash(event) <> jsonb_hash(wanted) OR NOT event @> wanted OR NOT wanted @> event)"), '', '... and is equal to it');
is(sql("$different EXISTS (SELECT FROM jsonb_each(wanted) w WHERE event -> key IS DISTINCT FROM value OR event ->> key IS DISTINCT FROM wanted ->> key)"), '', '... in each part');
is(sql(q(SELECT string_agg(format('%s: %s, not %s', encode(raw, 'escape'), d.message, c.message), '; ') FROM compared c JOIN postpipe_dlq d ON convert_from(d.fields[2], 'UTF8')::int = c.n
	WHERE (c.message LIKE '%json%' OR c.message LIKE '%Unicode%' OR c.message LIKE '%numeric%') AND d.message IS DISTINCT FROM 'field "data": ' || c.message)), '', 'what is dead names the field and has the reason of the cast');
is(sql(q(SELECT count(*) FROM compared JOIN postpipe_dlq d ON convert_from(d.fields[2], 'UTF8')::int = n WHERE d.message LIKE 'field "data"%' AND d.hint IS NULL)), 0, '... and why it was read as JSON');
is(sql(q(SELECT count(*) > 500 FROM compared WHERE event IS NOT NULL)), 't', 'many were applied');
is(sql(q(SELECT count(*) > 500 FROM compared WHERE event IS NULL)), 't', '... and many were not');

# Arrays in a string, and what is in an event already, as a value of type jsonb.
my @arrays = ('[]', ' [ ] ', '[1]', '["a"]', '["a", "b\"c\\u0416\n", "\ud83d\ude80"]', '[true,false,null]', '[0,-0,1.50,1e3,12345678901234567890123,-7]', '[[]]', '[[1],["x"]]', '["x",{"a":[1]}]', '[' . '[' x 50 . ']' x 51, '[' x 3000, '{"a":["x"]}', '"s"', 'null', 'true', '17', '1.50',
	'[', ']', '[,]', '[1,]', '[,1]', '[1 2]', '[1]]', '[1] x', '["a]', '["a"', "['a']", '["\x"]', '["a' . "\n" . '"]', '[tru]', '[truex]', '[01]', '[1e]', '["\u0000"]', '["\ud83d"]', '[1e999999]', '[1e999999@]', '[1e999999"]', '["a" "b"]', '["a":1]', '[}', '[1;2]', '[nan]', '', ' ',
	map({ '[' . join(',', map { qq("e$_") } 1 .. $_) . ']' } 31 .. 34, 63 .. 66, 300), map({ '["' . 'x' x $_ . '", 1, "' . 'y' x $_ . '", 2.5]' } 0 .. 9));
my @valid_arrays = ('["https://example.com/1","https://example.com/2"]', '[ "a\"b\u0416" , 12, -1.5e2 , true , null, "" ]', encode_utf8("[\"\x{436}\", \"\x{1f680}\"]"));
for (1 .. 1500)
{
	my $text = $valid_arrays[ rand @valid_arrays ];
	substr($text, rand(length($text) + 1), rand(3)) = join '', map { $alphabet[ rand @alphabet ] } 1 .. rand(3) for 0 .. rand(2);
	push @arrays, $text;
}
sql('TRUNCATE events, texts');
sql(q(SELECT postpipe_create_pipeline('arrays', 'stream:arrays', options => '{"error_threshold": 1}', statement => 'INSERT INTO events SELECT (event ->> ''n'')::int, (event ->> ''a'')::jsonb FROM postpipe_batch')));
@commands = map { [ 'XADD', 'stream:arrays', '*', n => $_, a => $arrays[$_] ] } 0 .. $#arrays;
sql('INSERT INTO texts VALUES ' . join ', ', map { "($_, '\\x" . unpack('H*', $arrays[$_]) . "')" } 0 .. $#arrays);
$redis->pipeline(splice(@commands, 0, 500)) while @commands;
wait_sql($node, 'postgres', q(SELECT (SELECT count(*) FROM events) + (SELECT count(*) FROM postpipe_dlq WHERE pipeline = 'arrays')), scalar @arrays, "all arrays are settled (SEED=$seed)");
is(sql(q(SELECT string_agg(encode(raw, 'escape'), '; ') FROM texts t CROSS JOIN cast_it(raw) c LEFT JOIN events e USING (n) WHERE e.event IS DISTINCT FROM c.event OR e.event::text IS DISTINCT FROM c.event::text OR jsonb_hash(e.event) IS DISTINCT FROM jsonb_hash(c.event))), '', 'each value is that of its cast, or there is none');
is(sql(q(SELECT string_agg(format('%s[%s]', encode(raw, 'escape'), i), '; ') FROM texts CROSS JOIN cast_it(raw) c JOIN events e USING (n) CROSS JOIN generate_series(-1, 299) i WHERE jsonb_typeof(c.event) = 'array' AND e.event -> i IS DISTINCT FROM c.event -> i)), '', '... in each element');
is(sql(q(SELECT string_agg(format('%s: %s, not %s', encode(raw, 'escape'), d.message, c.message), '; ') FROM texts CROSS JOIN cast_it(raw) c JOIN postpipe_dlq d ON convert_from(d.fields[2], 'UTF8')::int = n AND d.pipeline = 'arrays'
	WHERE (c.message LIKE '%json%' OR c.message LIKE '%Unicode%' OR c.message LIKE '%numeric%') AND d.message IS DISTINCT FROM c.message)), '', 'what is dead has the reason of the cast');
cmp_ok(sql('SELECT count(*) FROM events'), '>', 200, 'many were applied');
cmp_ok(sql(q(SELECT count(*) FROM postpipe_dlq WHERE pipeline = 'arrays')), '>', 200, '... and many were not');
sql('CREATE TABLE inner_values AS SELECT n + 10000 AS n, raw, event AS wanted FROM texts CROSS JOIN cast_it(raw) c WHERE event IS NOT NULL AND jsonb_typeof(event) NOT IN (\'string\', \'null\')');
$redis->pipeline(map { [ 'XADD', 'stream:arrays', '*', data => $_ ] } map { my ($n, $hex) = split /\|/; qq({"n": $n, "a": ) . pack('H*', $hex) . '}' } split /\n/, sql(q(SELECT n, encode(raw, 'hex') FROM inner_values)));
wait_sql($node, 'postgres', q(SELECT count(*) = (SELECT count(*) FROM inner_values) FROM events WHERE n >= 10000), 't', 'what is in an event is settled');
is(sql(q(SELECT count(*) FROM inner_values JOIN events USING (n) WHERE event IS DISTINCT FROM wanted OR event::text <> wanted::text OR jsonb_hash(event) <> jsonb_hash(wanted))), 0, '... and is what it was');

# Numbers of an event as a text and as other types, without a jsonb between.
my @numbers = (qw(0 -0 7 -7 10000 -10000 1.50 1e3 -1.5e2 -0.0 1e400 123456789012345678 -12345678901234567 -123456789012345678 1234567890123456789), ' 12 ', "3\n");
sql(q(CREATE TABLE numbers (n int, as_text text, as_numeric numeric, as_name name);
	SELECT postpipe_create_pipeline('numbers', 'stream:numbers', statement => 'INSERT INTO numbers SELECT (event ->> ''n'')::int, event ->> ''v'', (event ->> ''v'')::numeric, (event ->> ''v'')::name FROM postpipe_batch')));
$redis->pipeline(map { [ 'XADD', 'stream:numbers', '*', data => qq({"n": $_, "v":$numbers[$_]}) ] } 0 .. $#numbers);
wait_sql($node, 'postgres', 'SELECT count(*) FROM numbers', scalar @numbers, 'all numbers are there');
my $wanted = join ', ', map { "($_, '$numbers[$_]'::jsonb #>> '{}')" } 0 .. $#numbers;
is(sql("SELECT string_agg(format('%s: %s, %s, %s', wanted, as_text, as_numeric, as_name), '; ') FROM numbers JOIN (VALUES $wanted) w (n, wanted) USING (n) WHERE (as_text, as_numeric::text, as_name) IS DISTINCT FROM (wanted, wanted, wanted::name)"), '', '... as ->> has them');
pp_balanced($node);
$node->stop;
done_testing();
