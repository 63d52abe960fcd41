-- Every index access method: built over rows, kept by changes, and giving the
-- same rows as a sequential scan.
CREATE SCHEMA index_methods;
SET search_path = index_methods, public;
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS bloom SCHEMA public;
RESET client_min_messages;

CREATE TABLE doc (
    id int, tags int[], words tsvector, data jsonb, place point, area box, span int4range, name text, sent timestamp, a int, b int, c int
) WITH (autovacuum_enabled = off);
CREATE FUNCTION fill(first int, last int) RETURNS void LANGUAGE sql AS $$
    INSERT INTO index_methods.doc
    SELECT i, ARRAY[i % 7, i % 11, 100 + i % 13], to_tsvector('simple', 'w' || i % 17 || ' v' || i % 5),
        jsonb_build_object('k', i % 9, 'n', jsonb_build_array(i % 4, 'x' || i % 6)), point(i % 100, i / 100), box(point(i, i), point(i + 3, i + 3)),
        int4range(i, i + i % 20 + 1), 'name ' || i % 50 || '/' || i, timestamp '2024-01-01' + i * interval '1 minute', i % 3, i % 10, i % 100
    FROM generate_series(first, last) i
$$;
SELECT fill(1, 3000);
CREATE INDEX doc_tags ON doc USING gin (tags);
CREATE INDEX doc_words ON doc USING gin (words) WITH (fastupdate = off);
CREATE INDEX doc_data ON doc USING gin (data jsonb_path_ops);
CREATE INDEX doc_place ON doc USING gist (place);
CREATE INDEX doc_area ON doc USING spgist (area);
CREATE INDEX doc_span ON doc USING gist (span);
CREATE INDEX doc_name ON doc USING spgist (name);
CREATE INDEX doc_sent ON doc USING brin (sent) WITH (pages_per_range = 4, autosummarize = off);
CREATE INDEX doc_sent_multi ON doc USING brin (sent timestamp_minmax_multi_ops) WITH (pages_per_range = 4);
CREATE INDEX doc_bloom ON doc USING bloom (a, b, c);

-- Each condition: rows by sequential scan, by bitmap scan, by index scan where
-- there is one, and whether the index was used.
CREATE TABLE question (position int GENERATED ALWAYS AS IDENTITY, condition text, index text);
INSERT INTO question (condition, index) VALUES
    ('tags @> ''{3,5}''', 'doc_tags'),
    ('tags && ''{6,112}''', 'doc_tags'),
    ('words @@ ''w3 & v2''', 'doc_words'),
    ('words @@ ''w3 | v2''', 'doc_words'),
    ('data @> ''{"k": 3}''', 'doc_data'),
    ('data @> ''{"n": ["x5"]}''', 'doc_data'),
    ('place <@ box ''((10,3),(20,9))''', 'doc_place'),
    ('area && box ''((100,100),(110,110))''', 'doc_area'),
    ('span @> 777', 'doc_span'),
    ('span && int4range(100, 120)', 'doc_span'),
    ('name ^@ ''name 7/''', 'doc_name'),
    ('sent BETWEEN ''2024-01-01 10:00'' AND ''2024-01-01 12:00''', 'doc_sent'),
    ('sent < ''2024-01-01 01:00''', 'doc_sent'),
    ('a = 1 AND b = 7 AND c = 37', 'doc_bloom');
CREATE FUNCTION ask(OUT condition text, OUT rows bigint, OUT ids bigint, OUT agree boolean, OUT used boolean) RETURNS SETOF record LANGUAGE plpgsql AS $$
DECLARE
    q record;
    query text;
    bitmap_rows bigint; bitmap_ids bigint; index_rows bigint; index_ids bigint;
BEGIN
    FOR q IN SELECT * FROM index_methods.question ORDER BY position LOOP
        condition := q.condition;
        query := 'SELECT count(*), sum(id) FROM index_methods.doc WHERE ' || q.condition;
        CALL only_scan('seqscan');
        EXECUTE query INTO rows, ids;
        CALL only_scan('bitmapscan');
        EXECUTE query INTO bitmap_rows, bitmap_ids;
        used := plan_has(query, CASE q.index WHEN 'doc_sent' THEN 'doc_sent' ELSE q.index END);
        CALL only_scan('indexscan');
        EXECUTE query INTO index_rows, index_ids;
        agree := (rows, ids) IS NOT DISTINCT FROM (bitmap_rows, bitmap_ids) AND (rows, ids) IS NOT DISTINCT FROM (index_rows, index_ids);
        RETURN NEXT;
    END LOOP;
    CALL only_scan('any');
END $$;
SELECT * FROM ask();

-- After inserts, updates, deletes; before and after VACUUM, summarising and REINDEX.
SELECT fill(3001, 4000);
UPDATE doc SET tags = tags || 3, data = data || '{"k": 3}', name = 'name 7/' || id WHERE id % 10 = 0;
UPDATE doc SET place = point(15, 5), area = box(point(105, 105), point(106, 106)), span = int4range(777, 778) WHERE id % 100 = 1;
UPDATE doc SET sent = '2024-01-01 11:00', words = to_tsvector('simple', 'w3 v2'), a = 1, b = 7, c = 37 WHERE id % 50 = 2;
DELETE FROM doc WHERE id % 7 = 0;
SELECT * FROM ask();
VACUUM doc;
SELECT * FROM ask();
SELECT brin_summarize_new_values('doc_sent') >= 0 AS summarised, brin_summarize_new_values('doc_sent_multi') >= 0;
SELECT brin_desummarize_range('doc_sent', 0);
SELECT gin_clean_pending_list('doc_tags') >= 0 AS cleaned;
SELECT * FROM ask();
REINDEX TABLE doc;
SELECT * FROM ask();

-- Undone changes.
BEGIN;
SELECT fill(5001, 5500);
UPDATE doc SET tags = '{3,5}', a = 1, b = 7, c = 37;
ROLLBACK;
SELECT * FROM ask();

-- Nearest neighbours, in order, with a limit.
CALL only_scan('indexscan');
SELECT plan_has($$SELECT id FROM doc ORDER BY place <-> point(50.2, 20.1) LIMIT 3$$, 'doc_place');
SELECT id, place FROM doc ORDER BY place <-> point(50.2, 20.1), id LIMIT 3;
CALL only_scan('any');

-- Bitmaps combined, and too large for the memory so that only pages are kept.
CALL only_scan('bitmapscan');
SELECT count(*), sum(id) FROM doc WHERE tags @> '{3}' AND span && int4range(100, 900);
SELECT plan_has($$SELECT * FROM doc WHERE tags @> '{3}' OR span @> 900$$, 'BitmapOr');
SELECT count(*), sum(id) FROM doc WHERE tags @> '{3}' OR span @> 900;
CALL only_scan('seqscan');
SELECT count(*), sum(id) FROM doc WHERE tags @> '{3}' AND span && int4range(100, 900);
SELECT count(*), sum(id) FROM doc WHERE tags @> '{3}' OR span @> 900;
CALL only_scan('any');
CREATE TABLE lossy (id int, v int, pad text);
ALTER TABLE lossy ALTER pad SET STORAGE PLAIN;
INSERT INTO lossy SELECT i, i % 10, repeat('p', 3000) FROM generate_series(1, 12000) i;
CREATE INDEX ON lossy (v);
SET work_mem = '64kB';
SET max_parallel_workers_per_gather = 0;
CALL only_scan('bitmapscan');
SELECT count(*), sum(id) FROM lossy WHERE v IN (3, 4);
SELECT count(*), sum(id) FROM lossy WHERE v = 3 AND id % 2 = 1;
UPDATE lossy SET v = 77 WHERE v = 3 AND id % 3 = 0;
SELECT count(*), sum(id) FROM lossy WHERE v IN (3, 77);
CALL only_scan('any');
RESET work_mem;
RESET max_parallel_workers_per_gather;
DROP TABLE lossy;

-- Exclusion constraints: a table of bookings.
CREATE TABLE booking (room int4range, during tsrange, EXCLUDE USING gist (room WITH &&, during WITH &&));
INSERT INTO booking VALUES ('[1,2)', '[2024-01-01 10:00,2024-01-01 11:00)'), ('[2,3)', '[2024-01-01 10:00,2024-01-01 11:00)');
INSERT INTO booking VALUES ('[1,2)', '[2024-01-01 11:00,2024-01-01 12:00)');
\set VERBOSITY sqlstate
INSERT INTO booking VALUES ('[1,9)', '[2024-01-01 10:30,2024-01-01 10:40)');
UPDATE booking SET room = '[1,3)' WHERE lower(during) = '2024-01-01 10:00';
ALTER TABLE booking ADD EXCLUDE USING gist (during WITH &&);
\set VERBOSITY default
DELETE FROM booking WHERE room = '[2,3)';
UPDATE booking SET room = '[1,3)' WHERE lower(during) = '2024-01-01 10:00';
SELECT count(*) FROM booking;
CREATE TABLE deferred (r int4range, CONSTRAINT apart EXCLUDE USING gist (r WITH &&) DEFERRABLE INITIALLY DEFERRED);
BEGIN;
INSERT INTO deferred VALUES ('[1,5)');
INSERT INTO deferred VALUES ('[4,8)');
UPDATE deferred SET r = '[5,8)' WHERE r = '[4,8)';
COMMIT;
\set VERBOSITY sqlstate
BEGIN;
INSERT INTO deferred VALUES ('[7,9)');
COMMIT;
\set VERBOSITY default
SELECT * FROM deferred ORDER BY r;

-- Built while others may write.
CREATE INDEX CONCURRENTLY doc_a ON doc (a, id);
CREATE UNIQUE INDEX CONCURRENTLY doc_id ON doc (id);
REINDEX INDEX CONCURRENTLY doc_tags;
REINDEX TABLE CONCURRENTLY doc;
CALL only_scan('indexscan');
SELECT count(*), sum(id) FROM doc WHERE a = 2 AND id < 1000;
CALL only_scan('any');
DROP INDEX CONCURRENTLY doc_a;
SELECT * FROM ask();
SELECT check_indexes('doc');
CREATE TABLE doubled (v int);
INSERT INTO doubled VALUES (1), (1);
\set VERBOSITY sqlstate
CREATE UNIQUE INDEX CONCURRENTLY doubled_v ON doubled (v);
\set VERBOSITY default
SELECT indisvalid FROM pg_index WHERE indexrelid = 'doubled_v'::regclass;
DELETE FROM doubled;
INSERT INTO doubled VALUES (1);
REINDEX INDEX CONCURRENTLY doubled_v;
SELECT indisvalid FROM pg_index WHERE indexrelid = 'doubled_v'::regclass;
