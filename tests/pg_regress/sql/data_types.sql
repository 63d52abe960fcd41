-- Every built-in type that a column can have is stored, read, compared,
-- updated and found again through an index where it has an operator class.
CREATE SCHEMA data_types;
SET search_path = data_types, public;
SET timezone = 'UTC';
SET lc_monetary = 'C';
SET datestyle = 'ISO, MDY';
SET intervalstyle = 'postgres';

CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE DOMAIN positive AS int CHECK (value > 0);
CREATE DOMAIN short_text AS varchar(10) NOT NULL DEFAULT 'none';
CREATE TYPE pair AS (a int, b text);
CREATE TYPE nested AS (p pair, ps pair[], m mood);
CREATE DOMAIN pair_domain AS pair CHECK ((value).a > 0);
CREATE TYPE text_range AS RANGE (subtype = text, collation = "C");

-- One table per type: store two values and a NULL, read them back, count
-- equal ones (through the text form, as some types have no equality),
-- then swap them by UPDATE.
CREATE FUNCTION try_type(type text, one text, two text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    stored text[];
    swapped text[];
    nulls int;
BEGIN
    CREATE TABLE t (id int, before int);
    EXECUTE format('ALTER TABLE t ADD v %s, ADD behind int', type);
    EXECUTE format('INSERT INTO t VALUES (1, 11, %L, 21), (2, 12, %L, 22), (3, 13, NULL, 23)', one, two);
    SELECT array_agg(v::text ORDER BY id), count(*) FILTER (WHERE v::text IS NULL) INTO stored, nulls FROM t WHERE before = id + 10 AND behind = id + 20;
    UPDATE t SET v = (SELECT o.v FROM t o WHERE o.id = 3 - t.id) WHERE id < 3;
    SELECT array_agg(v::text ORDER BY id) INTO swapped FROM t WHERE before = id + 10 AND behind = id + 20;
    DROP TABLE t;
    IF nulls <> 1 OR swapped[1] IS DISTINCT FROM stored[2] OR swapped[2] IS DISTINCT FROM stored[1] OR swapped[3] IS NOT NULL THEN
        RAISE EXCEPTION 'type %: stored %, swapped %', type, stored, swapped;
    END IF;
    RETURN format('%s | %s', stored[1], stored[2]);
END $$;

CREATE TABLE sample (place int GENERATED ALWAYS AS IDENTITY, type text, one text, two text);
INSERT INTO sample (type, one, two) VALUES
    ('bool', 'true', 'false'),
    ('"char"', 'a', ''),
    ('smallint', '-32768', '32767'),
    ('int', '-2147483648', '2147483647'),
    ('bigint', '-9223372036854775808', '9223372036854775807'),
    ('real', '-3.4028235e38', '1e-45'),
    ('double precision', 'NaN', '-Infinity'),
    ('numeric', '0.000000000000000000000000000001', '-99999999999999999999999999999999999999.5'),
    ('numeric(8,3)', '12345.678', 'NaN'),
    ('numeric', 'Infinity', '0'),
    ('money', '-12.34', '92233720368547758.07'),
    ('text', '', 'grüße 你好 🐘'),
    ('varchar', 'x', '  y  '),
    ('varchar(5)', 'abcde', ''),
    ('char', 'a', ''),
    ('char(8)', 'abc', 'abcdefgh'),
    ('name', 'a_name', repeat('n', 63)),
    ('bytea', '\x', '\x00ff00'),
    ('bit', '1', '0'),
    ('bit(11)', '10101010101', '00000000000'),
    ('varbit', '', '1011'),
    ('varbit(70)', repeat('10', 35), '1'),
    ('date', '4713-01-01 BC', 'infinity'),
    ('time', '00:00:00', '24:00:00'),
    ('time(2)', '12:34:56.789', '23:59:59.999'),
    ('timetz', '12:34:56+05:30', '00:00:00-12'),
    ('timestamp', '294276-12-31 23:59:59.999999', '-infinity'),
    ('timestamptz', '2024-02-29 12:00:00+02', 'infinity'),
    ('interval', '1 year -2 mons 3 days -04:05:06.789', '0'),
    ('interval day to second', '1 day 02:03:04', '-1 day'),
    ('uuid', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '00000000-0000-0000-0000-000000000000'),
    ('json', '{"b": [1, 2, {"c": null}], "a":  "x"}', '[]'),
    ('jsonb', '{"b": [1, 2, {"c": null}], "a":  "x"}', '"scalar"'),
    ('jsonpath', '$.a[*] ? (@ > 1)', '$'),
    ('xml', '<a><b c="d">e</b></a>', 'content only'),
    ('inet', '192.168.1.5/24', '::1'),
    ('cidr', '10.0.0.0/8', '2001:db8::/32'),
    ('macaddr', '08:00:2b:01:02:03', 'ff:ff:ff:ff:ff:ff'),
    ('macaddr8', '08:00:2b:01:02:03:04:05', '00:00:00:00:00:00:00:00'),
    ('point', '(1.5,-2)', '(0,0)'),
    ('line', '{1,-1,0}', '{0,1,2}'),
    ('lseg', '[(0,0),(1,1)]', '[(-1,2),(3,4)]'),
    ('box', '(2,2),(0,0)', '(1,1),(1,1)'),
    ('path', '((0,0),(1,1),(2,0))', '[(0,0),(1,1)]'),
    ('polygon', '((0,0),(0,1),(1,1))', '((0,0))'),
    ('circle', '<(1,2),3>', '<(0,0),0>'),
    ('tsvector', '''fat'':2A ''cat'':3', ''),
    ('tsquery', '''fat'' & ( ''cat'' | !''rat'' )', '''a'' <-> ''b'':*'),
    ('int4range', '[1,5)', 'empty'),
    ('int8range', '(,5]', '[7,)'),
    ('numrange', '[1.5,2.5]', '(,)'),
    ('daterange', '[2024-01-01,2024-02-01)', 'empty'),
    ('tsrange', '[2024-01-01 00:00:00,2024-02-01 00:00:00)', '(,infinity]'),
    ('tstzrange', '[2024-01-01 00:00:00+00,2024-02-01 00:00:00+00)', '(,)'),
    ('text_range', '[a,m)', '(z,]'),
    ('int4multirange', '{[1,3),[5,8)}', '{}'),
    ('int8multirange', '{(,3),[5,)}', '{}'),
    ('nummultirange', '{[1.0,2.0],(3,4)}', '{}'),
    ('datemultirange', '{[2024-01-01,2024-01-05),[2024-02-01,)}', '{}'),
    ('tsmultirange', '{[2024-01-01 00:00:00,2024-02-01 00:00:00)}', '{}'),
    ('tstzmultirange', '{[2024-01-01 00:00:00+00,2024-02-01 00:00:00+00)}', '{}'),
    ('mood', 'happy', 'sad'),
    ('positive', '1', '2147483647'),
    ('pair', '(1,"x, y")', '(,)'),
    ('nested', '("(1,x)","{""(2,y)"",""(3,)""}",ok)', '(,,)'),
    ('pair_domain', '(1,x)', '(2,"")'),
    ('int[]', '{1,2,NULL,4}', '{}'),
    ('int[][]', '{{1,2},{3,4}}', '[0:1][-1:0]={{5,6},{7,8}}'),
    ('text[]', '{a,"b,c",NULL,"NULL","",grüße}', '{}'),
    ('bool[]', '{t,f,NULL}', '{t}'),
    ('numeric[]', '{1.5,NaN,NULL}', '{}'),
    ('bytea[]', '{"\\x00","\\xff"}', '{}'),
    ('timestamptz[]', '{"2024-01-01 00:00:00+00",infinity}', '{}'),
    ('jsonb[]', '{"{\"a\": 1}","[]"}', '{}'),
    ('mood[]', '{sad,ok,happy}', '{}'),
    ('positive[]', '{1,2}', '{}'),
    ('pair[]', '{"(1,x)","(2,\"a b\")"}', '{}'),
    ('int4range[]', '{"[1,5)",empty}', '{}'),
    ('point[]', '{"(1,2)","(3,4)"}', '{}'),
    ('box[]', '{(2,2),(0,0);(4,4),(3,3)}', '{}'),
    ('oid', '0', '4294967295'),
    ('xid', '3', '4294967295'),
    ('xid8', '3', '18446744073709551615'),
    ('cid', '0', '7'),
    ('tid', '(0,1)', '(4294967294,291)'),
    ('oidvector', '1 2 3', ''),
    ('int2vector', '1 -2 3', ''),
    ('pg_lsn', '0/0', 'FFFFFFFF/FFFFFFFF'),
    ('pg_snapshot', '10:20:10,14,15', '1:1:'),
    ('txid_snapshot', '10:20:10,14,15', '1:1:'),
    ('regclass', 'pg_class', 'pg_type'),
    ('regtype', 'integer', 'text'),
    ('regproc', 'now', 'boolin'),
    ('regprocedure', 'abs(numeric)', 'lower(text)'),
    ('regoper', '||/', '|/'),
    ('regoperator', '+(integer,integer)', '-(bigint,bigint)'),
    ('regrole', 'pg_monitor', 'pg_read_all_data'),
    ('regnamespace', 'pg_catalog', 'pg_toast'),
    ('regcollation', '"C"', '"POSIX"'),
    ('regconfig', 'simple', 'english'),
    ('regdictionary', 'simple', 'english_stem'),
    ('aclitem', 'pg_monitor=r/pg_monitor', '=r/pg_monitor'),
    ('aclitem[]', '{pg_monitor=r/pg_monitor}', '{}'),
    ('refcursor', 'my_cursor', ''),
    ('gtsvector[]', '{}', '{}');
SELECT type, try_type(type, one, two) FROM sample ORDER BY place;

-- A domain with NOT NULL and a default.
CREATE TABLE domains (id int, d short_text, p positive);
INSERT INTO domains VALUES (1, 'abc', 5), (2, DEFAULT, NULL);
INSERT INTO domains (id) VALUES (3);
SELECT id, d, p FROM domains ORDER BY id;
\set VERBOSITY sqlstate
INSERT INTO domains VALUES (4, NULL, 1);
INSERT INTO domains VALUES (4, 'x', 0);
INSERT INTO domains VALUES (4, 'far too long a text', 1);
UPDATE domains SET p = -1 WHERE id = 1;
\set VERBOSITY default
SELECT count(*) FROM domains;

-- All of them side by side in one row.
CREATE TABLE everything (id int);
DO $$
DECLARE
    s record;
BEGIN
    FOR s IN SELECT * FROM sample ORDER BY place LOOP
        EXECUTE format('ALTER TABLE everything ADD %I %s', 'c' || s.place, s.type);
    END LOOP;
    EXECUTE (SELECT format('INSERT INTO everything VALUES (1, %s), (2, %s)',
                string_agg(quote_literal(one), ', ' ORDER BY place), string_agg(quote_literal(two), ', ' ORDER BY place)) FROM sample);
    INSERT INTO everything (id) VALUES (3);
END $$;
SELECT id, (SELECT count(*) FROM json_each(row_to_json(e)) j WHERE j.value::text <> 'null') AS filled FROM everything e ORDER BY id;
-- The i-th column of rows 1 and 2 is the i-th sample.
CREATE FUNCTION column_text(id int, place int) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    result text;
BEGIN
    EXECUTE format('SELECT %I::text FROM everything WHERE id = %s', 'c' || place, id) INTO result;
    RETURN result;
END $$;
CREATE FUNCTION normal_text(type text, value text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    result text;
BEGIN
    EXECUTE format('SELECT (%L::%s)::text', value, type) INTO result;
    RETURN result;
END $$;
SELECT type FROM sample
WHERE column_text(1, place) IS DISTINCT FROM normal_text(type, one)
   OR column_text(2, place) IS DISTINCT FROM normal_text(type, two)
   OR column_text(3, place) IS NOT NULL;
CREATE TABLE everything_copy AS SELECT * FROM everything;
SELECT (fingerprint('everything')).md5 = (fingerprint('everything_copy')).md5 AS same;
DELETE FROM everything WHERE id = 2;
SELECT count(*) FROM everything;

-- Index lookups by type, counted against a sequential scan.
CREATE FUNCTION try_index(method text, type text, expression text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    by_scan text;
    by_index text;
    node boolean;
    query text := format('SELECT string_agg(id::text, '','' ORDER BY id) FROM k WHERE v = (SELECT v FROM k WHERE id = 40)', type);
BEGIN
    EXECUTE format('CREATE TABLE k AS SELECT i AS id, (%s)::%s AS v FROM generate_series(1, 100) i', expression, type);
    INSERT INTO k VALUES (101, NULL);
    CALL only_scan('seqscan');
    EXECUTE query INTO by_scan;
    EXECUTE format('CREATE INDEX ON k USING %s (v)', method);
    INSERT INTO k SELECT id + 1000, v FROM k;
    CALL only_scan('indexscan');
    EXECUTE replace(query, 'FROM k WHERE v', 'FROM k WHERE id <= 101 AND v') INTO by_index;
    node := plan_has('SELECT * FROM k WHERE v = (SELECT v FROM k WHERE id = 40)', 'Index Scan');
    CALL only_scan('any');
    DROP TABLE k;
    IF by_scan IS DISTINCT FROM by_index THEN
        RAISE EXCEPTION 'type %: % by scan, % by index', type, by_scan, by_index;
    END IF;
    RETURN format('%s %s', node, by_index);
END $$;
SELECT type, try_index('btree', type, expression) AS btree, try_index('hash', type, expression) AS hash
FROM (VALUES
    (1, 'bool', 'i % 2 = 0 AND i IN (40, 41, 42)'),
    (2, '"char"', 'chr(64 + i % 50)'),
    (3, 'smallint', 'i - 50'),
    (4, 'bigint', 'i * 10000000000'),
    (5, 'real', 'i / 7.0'),
    (6, 'double precision', '1 / i::float8'),
    (7, 'numeric', 'i % 30 + 0.5'),
    (8, 'text', '''text '' || i % 30'),
    (9, 'char(5)', 'i % 30'),
    (10, 'name', '''n'' || i'),
    (11, 'bytea', 'decode(md5(i::text), ''hex'')'),
    (12, 'date', '''2024-01-01''::date + i % 30'),
    (13, 'time', '''00:00''::time + i * interval ''1 min'''),
    (14, 'timestamptz', '''2024-01-01 00:00+00''::timestamptz + i * interval ''1 hour'''),
    (15, 'interval', 'i * interval ''1 hour'''),
    (16, 'uuid', 'md5((i % 30)::text)'),
    (17, 'inet', '''10.0.0.'' || i'),
    (18, 'macaddr', '''00:00:00:00:00:'' || lpad(i::text, 2, ''0'')'),
    (19, 'jsonb', 'jsonb_build_object(''k'', i % 30)'),
    (20, 'mood', 'CASE WHEN i % 10 = 0 THEN ''happy'' ELSE ''ok'' END'),
    (21, 'int[]', 'ARRAY[i % 30, i % 3]'),
    (22, 'int4range', 'int4range(i % 30, i % 30 + 5)'),
    (23, 'int4multirange', 'int4multirange(int4range(i % 30, i % 30 + 5))'),
    (24, 'oid', 'i'),
    (25, 'pg_lsn', '''0/'' || i'),
    (26, 'positive', 'i % 30 + 1')
) AS s (place, type, expression)
ORDER BY place;

-- Composite values: fields, whole rows, a row type of a table.
CREATE TABLE composites (id int PRIMARY KEY, p pair, n nested, r sample);
INSERT INTO composites VALUES (1, (1, 'one'), (ROW(1, 'x'), ARRAY[(2, 'y')::pair], 'ok'), (SELECT s FROM sample s WHERE place = 3));
UPDATE composites SET p.b = 'uno', n.m = 'happy', n.ps[2] = (3, 'z') WHERE (p).a = 1;
SELECT id, (p).b, (n).m, (n).ps[2].b, (r).type FROM composites;
CREATE INDEX ON composites (p);
CALL only_scan('indexscan');
SELECT id FROM composites WHERE p = (1, 'uno')::pair;
CALL only_scan('any');

-- Arrays: element and slice assignment.
CREATE TABLE arrays (id int, a int[], t text[][]);
INSERT INTO arrays VALUES (1, '{1,2,3}', '{{a,b},{c,d}}');
UPDATE arrays SET a[5] = 5, t[1][2] = 'B';
UPDATE arrays SET a[2:3] = '{20,30}';
SELECT * FROM arrays;
SELECT id, u FROM arrays, unnest(a) WITH ORDINALITY x (u, n) ORDER BY n;

-- A new enum label, a type made of it, and its order.
ALTER TYPE mood ADD VALUE 'fine' BEFORE 'happy';
CREATE TABLE moods (m mood);
INSERT INTO moods VALUES ('happy'), ('fine'), ('sad'), ('ok');
SELECT m FROM moods ORDER BY m;
