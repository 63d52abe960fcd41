-- Values from one byte to ten megabytes: stored, read, kept by updates of
-- other columns, deleted, rolled back. Only lengths and md5 sums are shown.
CREATE SCHEMA large_values;
SET search_path = large_values, public;

-- Lengths around every limit that a storage layout could have.
CREATE TABLE sized (length int, plain text, packed text, bytes bytea);
ALTER TABLE sized ALTER plain SET STORAGE EXTERNAL;
CREATE TABLE lengths (length int);
INSERT INTO lengths VALUES (0), (1), (2), (31), (125), (126), (127), (128), (1995), (2000), (2032), (4000), (4084), (4091), (4092), (4093),
    (4095), (4096), (4097), (4100), (8000), (8160), (8191), (8192), (8193), (16384), (32600), (32719), (32720), (32721), (32767), (32768), (32769),
    (65495), (65535), (65536), (100000), (131072), (1048576);
INSERT INTO sized SELECT length, noise(length, length), repeat('abcdefgh', length / 8 + 1), convert_to(noise(-length, length), 'UTF8') FROM lengths;
SELECT count(*), sum(length(plain)), sum(length(packed)), sum(length(bytes)) FROM sized;
SELECT length, length(plain), length(packed), length(bytes) FROM sized
WHERE plain <> noise(length, length) OR packed <> repeat('abcdefgh', length / 8 + 1) OR convert_from(bytes, 'UTF8') <> noise(-length, length) ORDER BY sized.length;
SELECT length, md5(plain), md5(bytes) FROM sized WHERE length IN (0, 1, 4096, 32768, 100000, 1048576) ORDER BY length;

-- Parts of a value.
SELECT length, substr(plain, 1, 8), substr(plain, length - 7, 8), substr(plain, length / 2, 8) = substr(noise(length, length), length / 2, 8) AS middle,
    get_byte(bytes, length - 1) = get_byte(convert_to(noise(-length, length), 'UTF8'), length - 1) AS last_byte
FROM sized WHERE length IN (4096, 8193, 100000, 1048576) ORDER BY length;
SELECT count(*) FROM sized WHERE substr(plain, 5000, 10) = substr(noise(length, length), 5000, 10);

-- An update of another column keeps the values, again and again.
CREATE TABLE before AS SELECT length, md5(plain) AS plain, md5(packed) AS packed, md5(bytes) AS bytes FROM sized;
ALTER TABLE sized ADD counter int DEFAULT 0;
UPDATE sized SET counter = counter + 1;
UPDATE sized SET counter = counter + 1 WHERE length > 1000;
UPDATE sized SET counter = counter + 1;
SELECT counter, count(*) FROM sized GROUP BY counter ORDER BY counter;
SELECT count(*) FROM sized JOIN before USING (length) WHERE md5(sized.plain) <> before.plain OR md5(sized.packed) <> before.packed OR md5(sized.bytes) <> before.bytes;

-- An update of one large value leaves its neighbours; rollback brings it back.
BEGIN;
UPDATE sized SET plain = noise(7, 200000) WHERE length = 100000;
SELECT length(plain), md5(plain) = md5(noise(7, 200000)) AS replaced, length(bytes) FROM sized WHERE length = 100000;
ROLLBACK;
BEGIN;
SAVEPOINT s;
UPDATE sized SET plain = 'small', bytes = NULL WHERE length >= 4096;
SELECT count(*), count(bytes) FROM sized WHERE plain = 'small';
ROLLBACK TO s;
SELECT count(*) FROM sized WHERE plain = 'small';
COMMIT;
SELECT count(*) FROM sized JOIN before USING (length) WHERE md5(sized.plain) <> before.plain OR md5(sized.packed) <> before.packed OR md5(sized.bytes) <> before.bytes;

-- Grow and shrink one row's value over the inline limit and back.
CREATE TABLE breathing (id int PRIMARY KEY, v text);
ALTER TABLE breathing ALTER v SET STORAGE EXTERNAL;
INSERT INTO breathing VALUES (1, 'x'), (2, noise(2, 3000));
DO $$
BEGIN
    FOR i IN 1..40 LOOP
        UPDATE breathing SET v = noise(i, (i % 5) * 12000 + i) WHERE id = 1;
        ASSERT (SELECT v = noise(i, (i % 5) * 12000 + i) FROM breathing WHERE id = 1), i;
    END LOOP;
END $$;
SELECT id, length(v), v = noise(CASE id WHEN 1 THEN 40 ELSE 2 END, length(v)) AS intact FROM breathing ORDER BY id;

-- Deleted, and inserted again.
DELETE FROM sized WHERE length BETWEEN 4096 AND 65535;
SELECT count(*), sum(length(plain)) FROM sized;
INSERT INTO sized SELECT length, noise(length, length), '', '' FROM lengths WHERE length BETWEEN 4096 AND 65535;
SELECT count(*), sum(length(plain)), bool_and(plain = noise(length, length)) FROM sized;

-- Copied between tables, into arrays and composites, through a function and a temporary variable.
CREATE TABLE copied AS SELECT * FROM sized;
INSERT INTO copied SELECT * FROM sized WHERE length = 100000;
SELECT count(*), sum(length(plain)), bool_and(plain = noise(length, length)) FROM copied;
CREATE TYPE holder AS (a text, b text[]);
CREATE TABLE composed (id int, h holder, hs holder[], j jsonb);
INSERT INTO composed SELECT 1, (plain, ARRAY[plain, 'x', plain])::holder, ARRAY[(plain, NULL)::holder, (NULL, ARRAY[plain])::holder], jsonb_build_object('k', plain, 'n', 1)
FROM sized WHERE length = 8193;
DELETE FROM sized WHERE length = 8193;
SELECT length((h).a), length((h).b[3]), length(hs[1].a), length(hs[2].b[1]), length(j ->> 'k'), (h).b[3] = noise(8193, 8193) AS intact FROM composed;
DROP TABLE sized;
SELECT count(*), bool_and(plain = noise(length, length)) FROM copied;
DO $$
DECLARE
    kept text;
BEGIN
    SELECT plain INTO kept FROM copied WHERE length = 1048576;
    DELETE FROM copied WHERE length = 1048576;
    ASSERT kept = noise(1048576, 1048576);
    INSERT INTO copied (length, plain) VALUES (1048576, kept || kept);
END $$;
SELECT length(plain) FROM copied WHERE length = 1048576;

-- Comparison, sorting, grouping and hashing of large values.
SELECT count(DISTINCT plain), count(*) FROM copied;
SELECT length FROM copied ORDER BY plain COLLATE "C" DESC LIMIT 3;
SELECT count(*) FROM copied a JOIN copied b USING (plain);

-- Ten megabytes in several columns.
CREATE TABLE huge (id int PRIMARY KEY, a text, b bytea, c text, n int);
ALTER TABLE huge ALTER c SET STORAGE EXTERNAL;
INSERT INTO huge VALUES (1, noise(1, 10 * 1024 * 1024), convert_to(noise(2, 10 * 1024 * 1024), 'UTF8'), repeat(noise(3, 1024), 10 * 1024), 0);
INSERT INTO huge SELECT 2, left(a, 5000000), substr(b, 2), 'tiny', 0 FROM huge;
SELECT id, length(a), md5(a), length(b), md5(b), length(c), md5(c), n FROM huge ORDER BY id;
UPDATE huge SET n = n + 1;
UPDATE huge SET n = n + 1, c = reverse(c) WHERE id = 1;
SELECT id, length(a), md5(a), length(b), md5(b), length(c), md5(c), n FROM huge ORDER BY id;
BEGIN;
DELETE FROM huge;
SELECT count(*) FROM huge;
ROLLBACK;
SELECT id, md5(a), substr(a, 9999990, 7), n FROM huge ORDER BY id;
BEGIN;
INSERT INTO huge SELECT 3, a, b, c, n FROM huge WHERE id = 1;
SELECT count(*), sum(length(a)) FROM huge;
ROLLBACK;
DELETE FROM huge WHERE id = 1;
SELECT id, length(a), md5(a), n FROM huge;

-- COPY of large values both ways.
\getenv abs_builddir PG_ABS_BUILDDIR
\set file :abs_builddir '/results/large_values.data'
CREATE TABLE through_copy (LIKE copied);
COPY copied TO STDOUT \g :file
\set command '\\copy through_copy from ' :'file'
:command
SELECT (fingerprint('copied')) = (fingerprint('through_copy')) AS same;

-- An index entry must fit on an index page.
CREATE INDEX ON copied (plain) WHERE length < 2000;
\set VERBOSITY sqlstate
CREATE INDEX ON copied (plain);
\set VERBOSITY default
CREATE INDEX copied_hash ON copied USING hash (plain);
CALL only_scan('indexscan');
SELECT length, count(*) FROM copied WHERE plain = noise(100000, 100000) GROUP BY length;
SELECT plan_has($$SELECT * FROM copied WHERE plain = 'x'$$, 'copied_hash');
CALL only_scan('any');

-- Different storage settings, and one that is changed under existing rows.
CREATE TABLE storages (a text, b text, c text, d text);
ALTER TABLE storages ALTER a SET STORAGE EXTENDED, ALTER b SET STORAGE EXTERNAL, ALTER c SET STORAGE MAIN, ALTER d SET STORAGE PLAIN;
INSERT INTO storages SELECT noise(i, 20000), noise(i, 20000), repeat('m', 20000), noise(i, 1000) FROM generate_series(1, 5) i;
ALTER TABLE storages ALTER a SET STORAGE EXTERNAL, ALTER b SET STORAGE EXTENDED, ALTER c SET STORAGE EXTENDED;
INSERT INTO storages SELECT noise(i, 20000), noise(i, 20000), repeat('m', 20000), noise(i, 1000) FROM generate_series(6, 10) i;
SELECT count(*), count(DISTINCT a), bool_and(a = b), bool_and(c = repeat('m', 20000)), sum(length(d)) FROM storages;
UPDATE storages SET a = a || 'x', d = d || 'y';
SELECT count(*), bool_and(a = b || 'x'), sum(length(d)) FROM storages;

-- A column's STORAGE and COMPRESSION decide how a long value is kept; what cannot get shorter stays as it is.
CREATE TABLE methods (p text COMPRESSION pglz, l text COMPRESSION lz4, e text, m text COMPRESSION lz4, n text);
ALTER TABLE methods ALTER e SET STORAGE EXTERNAL, ALTER m SET STORAGE MAIN;
INSERT INTO methods SELECT v, v, v, v, noise(1, 6000) FROM repeat('compressible ', 1000) v;
SELECT pg_column_compression(p), pg_column_compression(l), pg_column_compression(e), pg_column_compression(m), pg_column_compression(n),
    pg_column_size(p) < 1000 AS p_short, pg_column_size(e) FROM methods;
-- A compressed value keeps its form in another column; a longer one too, and where it leaves the row.
INSERT INTO methods (p, l) SELECT l, p FROM methods;
INSERT INTO methods (p, l) SELECT v, v FROM (SELECT string_agg(noise(i, 50) || repeat('-', 50), '') AS v FROM generate_series(1, 2000) i) long;
SELECT pg_column_compression(p), pg_column_compression(l), length(p), p = l AS same, md5(p) = md5(l) AS same_sum FROM methods;
DROP TABLE methods;
DROP TABLE huge, copied, through_copy;
