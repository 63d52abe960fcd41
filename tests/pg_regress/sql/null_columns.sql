-- NULLs in every position and tables up to the 1,600-column limit.
CREATE SCHEMA null_columns;
SET search_path = null_columns, public;

CREATE TABLE small (a int, b text, c int, d text);
INSERT INTO small
SELECT CASE WHEN i & 1 = 0 THEN i END, CASE WHEN i & 2 = 0 THEN 'b' || i END,
       CASE WHEN i & 4 = 0 THEN i END, CASE WHEN i & 8 = 0 THEN 'd' || i END
FROM generate_series(0, 15) i;
SELECT * FROM small ORDER BY a, b, c, d;
SELECT count(*), count(a), count(b), count(c), count(d) FROM small;
SELECT count(*) FROM small WHERE a IS NULL AND b IS NULL AND c IS NULL AND d IS NULL;
WITH changed AS (UPDATE small SET a = 1 WHERE a IS NULL AND d IS NULL RETURNING *)
SELECT * FROM changed ORDER BY b, c;
UPDATE small SET a = NULL, b = NULL, c = NULL, d = NULL;
SELECT DISTINCT * FROM small;

-- Eight columns and nine: the null bitmap grows by a byte.
CREATE TABLE eight (c1 bool, c2 bool, c3 bool, c4 bool, c5 bool, c6 bool, c7 bool, c8 bool);
CREATE TABLE nine (LIKE eight, c9 bool);
INSERT INTO eight VALUES (NULL, true, NULL, false, NULL, true, NULL, NULL);
INSERT INTO eight VALUES (true, true, true, true, true, true, true, true);
INSERT INTO nine SELECT *, NULL FROM eight;
INSERT INTO nine SELECT *, true FROM eight;
SELECT * FROM eight ORDER BY 1, 2;
SELECT * FROM nine ORDER BY 1, 2, 9;

-- Alignment: a narrow column before each wide one, with and without NULLs.
CREATE TABLE aligned (a bool, b bigint, c "char", d float8, e bool, f int, g bool, h smallint, i text, j bigint, k char(3), l numeric);
INSERT INTO aligned VALUES (true, 1, 'x', 2.5, false, 3, true, 4, 'five', 6, 'abc', 7.125);
INSERT INTO aligned (b, d, f, h, j, l) VALUES (1, 2.5, 3, 4, 6, 7.125);
INSERT INTO aligned (a, c, e, g, i, k) VALUES (true, 'x', false, true, 'five', 'abc');
SELECT * FROM aligned ORDER BY a, b;
SELECT l, j FROM aligned ORDER BY a, b;

-- 1,600 columns of one byte, of four bytes, all NULL, and one too many.
CREATE FUNCTION wide(name text, columns int, type text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('CREATE TABLE %I (%s)', name,
        (SELECT string_agg(format('c%s %s', i, type), ', ' ORDER BY i) FROM generate_series(1, columns) i));
END $$;
SELECT wide('bools', 1600, 'bool'), wide('ints', 1600, 'int');
\set VERBOSITY sqlstate
SELECT wide('too_many', 1601, 'int');
\set VERBOSITY default
DO $$
DECLARE
    list text;
BEGIN
    SELECT string_agg(CASE i % 3 WHEN 0 THEN 'true' WHEN 1 THEN 'false' ELSE 'NULL' END, ', ' ORDER BY i) INTO list
    FROM generate_series(1, 1600) i;
    EXECUTE 'INSERT INTO bools VALUES (' || list || ')';
    INSERT INTO bools (c1600) VALUES (true);
    INSERT INTO bools DEFAULT VALUES;
    SELECT string_agg(i::text, ', ' ORDER BY i) INTO list FROM generate_series(1, 1600) i;
    EXECUTE 'INSERT INTO ints VALUES (' || list || ')';
    INSERT INTO ints (c1, c800, c1600) VALUES (-1, -800, -1600);
    INSERT INTO ints DEFAULT VALUES;
END $$;
SELECT c1, c2, c3, c798, c799, c800, c1598, c1599, c1600 FROM bools ORDER BY c1, c1600;
SELECT c1, c2, c799, c800, c801, c1599, c1600 FROM ints ORDER BY c1600;
SELECT md5(i::text) FROM ints i ORDER BY c1600;
SELECT md5(b::text) FROM bools b ORDER BY c1, c1600;
SELECT count(*), sum(c1600), count(c799) FROM ints;
WITH changed AS (UPDATE ints SET c800 = 0 RETURNING c799, c800, c801)
SELECT * FROM changed ORDER BY c799, c801;
UPDATE ints SET c1600 = NULL WHERE c1 = 1;
SELECT c1599, c1600 FROM ints WHERE c1 = 1;
CREATE INDEX ON ints (c1600);
CREATE INDEX ON ints (c1599);
CALL only_scan('indexscan');
SELECT c1, c1600 FROM ints WHERE c1599 = 1599;
SELECT c1, c1599 FROM ints WHERE c1600 = -1600;
CALL only_scan('any');

-- Text columns, of which only the first and the last are filled.
SELECT wide('texts', 1600, 'text');
INSERT INTO texts (c1, c1600) VALUES ('first', 'last');
SELECT c1, c800, c1600 FROM texts;

-- Added columns read as NULL in old rows, dropped ones stay out of the way.
CREATE TABLE grown (a int);
INSERT INTO grown VALUES (1);
ALTER TABLE grown ADD b text, ADD c int;
INSERT INTO grown VALUES (2, 'two', 22);
ALTER TABLE grown DROP b;
INSERT INTO grown VALUES (3, 33);
ALTER TABLE grown ADD b text;
SELECT * FROM grown ORDER BY a;
UPDATE grown SET b = 'b' || a;
SELECT * FROM grown ORDER BY a;
SELECT count(*) FROM grown WHERE c IS NULL;
