-- Rows in segments: read, changed, locked, referenced and removed like any others. On heap there is
-- nothing to show: see cold_rows_1.out.
SELECT current_setting('default_table_access_method') = 'heap' AS on_heap \gset
\if :on_heap
\quit
\endif
CREATE SCHEMA cold_rows;
SET search_path = cold_rows, public;
CREATE FUNCTION flush_once(regclass, OUT rows bigint, OUT blocks bigint, OUT segments bigint, OUT left_out bigint, OUT gone bool)
    RETURNS SETOF record LANGUAGE c STRICT AS '$libdir/kalamdb', 'flush_inline_wrapper';
CREATE FUNCTION compact(regclass, OUT rows bigint, OUT blocks bigint, OUT segments bigint, OUT left_out bigint, OUT gone bool)
    RETURNS SETOF record LANGUAGE c STRICT AS '$libdir/kalamdb', 'compact_inline_wrapper';
CREATE FUNCTION cold_share(relation regclass) RETURNS numeric LANGUAGE plpgsql AS $$
DECLARE
    total bigint;
BEGIN
    EXECUTE format('SELECT count(*) FROM %s', relation) INTO total;
    RETURN round((SELECT sum(live_rows) FROM kalam.table_segments(relation)) / total, 2);
END $$;

CREATE TABLE m (id bigint PRIMARY KEY, topic int, body text, at timestamptz DEFAULT '2026-01-01 00:00:00+00', meta jsonb);
CREATE INDEX m_topic ON m (topic);
INSERT INTO m SELECT i, i % 50, 'message ' || i, '2026-01-01 00:00:00+00'::timestamptz + i * interval '1 second', jsonb_build_object('n', i, 'tags', ARRAY['a', 'b'])
FROM generate_series(1, 10000) i;
CREATE TABLE plain USING heap AS SELECT * FROM m;
CALL flush('m');
SELECT cold_share('m');
SELECT rows, live_rows, location, bytes > 0 AS has_bytes, state FROM kalam.segments WHERE tablename = 'm' AND schemaname = 'cold_rows';
SELECT cold_bytes > 0 AS has_cold FROM kalam.table_stats('m');

-- By key, by range, by scans of each kind, by sample and by TID.
SELECT * FROM m WHERE id = 4711;
SELECT count(*), min(id), max(id) FROM m WHERE id BETWEEN 100 AND 5200;
CALL only_scan('seqscan');
SELECT (SELECT fingerprint('m')) = (SELECT fingerprint('plain')) AS same;
SELECT count(*), sum(id) FROM m WHERE topic = 7;
CALL only_scan('bitmapscan');
SELECT count(*), sum(id) FROM m WHERE topic = 7;
CALL only_scan('indexscan');
SELECT count(*), sum(id) FROM m WHERE topic = 7;
CALL only_scan('any');
SELECT count(*) FROM m TABLESAMPLE BERNOULLI (100);
SELECT count(*) FROM m JOIN plain USING (id) WHERE m.ctid = (SELECT x.ctid FROM m x WHERE x.id = m.id) AND m.id < 50;
SELECT count(*) FROM m WHERE meta @> '{"n": 17}';
SELECT id, xmin <> '0' AS has_xmin, xmax, cmin FROM m WHERE id = 1;
DECLARE c SCROLL CURSOR WITH HOLD FOR SELECT id FROM m ORDER BY id;
FETCH ABSOLUTE 9999 FROM c;
FETCH BACKWARD 2 FROM c;
CLOSE c;

-- Changes make blocks hot again; nothing else notices.
UPDATE m SET body = 'changed' WHERE id = 17 RETURNING id, topic, body;
UPDATE m SET topic = 1000 WHERE id = 18 RETURNING *;
DELETE FROM m WHERE id = 19 RETURNING *;
INSERT INTO m VALUES (20, 0, 'upsert') ON CONFLICT (id) DO UPDATE SET body = excluded.body RETURNING id, topic, body;
INSERT INTO m VALUES (21, 0, 'nothing') ON CONFLICT DO NOTHING;
INSERT INTO m VALUES (22, 0, 'duplicate');
MERGE INTO m USING (VALUES (23, 'merged'), (10001, 'new')) v (id, body) ON m.id = v.id
    WHEN MATCHED THEN UPDATE SET body = v.body WHEN NOT MATCHED THEN INSERT (id, body) VALUES (v.id, v.body);
SELECT id, topic, body FROM m WHERE id BETWEEN 17 AND 23 OR topic = 1000 OR id > 10000 ORDER BY id;
SELECT cold_share('m') BETWEEN 0.5 AND 1 AS most_are_cold;
BEGIN;
UPDATE m SET body = 'not kept' WHERE id % 100 = 0;
DELETE FROM m WHERE id % 100 = 1;
SAVEPOINT s;
UPDATE m SET topic = -1;
ROLLBACK TO s;
SELECT count(*), count(*) FILTER (WHERE body = 'not kept') FROM m;
ROLLBACK;
SELECT count(*), count(*) FILTER (WHERE body = 'not kept') FROM m;
SELECT id FROM m WHERE id = 5000 FOR UPDATE;
BEGIN;
SELECT id FROM m WHERE id = 5001 FOR NO KEY UPDATE NOWAIT;
UPDATE m SET body = 'locked' WHERE id = 5001;
COMMIT;
SELECT body FROM m WHERE id = 5001;

-- The next flush and a compaction: what changed goes back, outdated copies go.
CALL flush('m');
SELECT cold_share('m') FROM kalam.segments WHERE tablename = 'm' AND schemaname = 'cold_rows' LIMIT 1;
SELECT count(*), sum(id), sum(topic), count(DISTINCT id) FROM m;
-- A job may have done it already.
SELECT segments <= 1 AS compacted FROM compact('m');
SELECT count(*), bool_and(rows = live_rows) AS nothing_outdated FROM kalam.segments
WHERE tablename = 'm' AND schemaname = 'cold_rows' AND state <> 'unused';
SELECT count(*), sum(id), sum(topic), count(DISTINCT id) FROM m;
SELECT id, topic, body FROM m WHERE id BETWEEN 17 AND 23 ORDER BY id;
SELECT check_indexes('m');

-- VACUUM leaves cold blocks alone, and its cutoffs move on.
CREATE TABLE ages AS SELECT relfrozenxid::text::bigint AS before FROM pg_class WHERE oid = 'm'::regclass;
CALL wait_for_old_snapshots();
VACUUM (FREEZE) m;
SELECT relfrozenxid::text::bigint > before AS moved, reltuples::int = 10000 AS counted FROM pg_class, ages WHERE oid = 'm'::regclass;
CALL wait_for_old_snapshots();
VACUUM (DISABLE_PAGE_SKIPPING) m;
ANALYZE m;
SELECT n_distinct::int FROM pg_stats WHERE tablename = 'm' AND schemaname = 'cold_rows' AND attname = 'topic';
SELECT count(*), sum(id), sum(topic) FROM m;

-- Foreign keys in both directions.
CREATE TABLE child (id int PRIMARY KEY, m bigint REFERENCES m ON DELETE CASCADE);
INSERT INTO child SELECT i, i FROM generate_series(100, 200) i;
CALL flush('child');
CALL flush('m');
INSERT INTO child VALUES (1, 99999);
INSERT INTO child VALUES (1, 6000);
DELETE FROM m WHERE id = 150;
SELECT count(*) FROM child;
UPDATE m SET id = 20000 WHERE id = 151;

-- The definition changes under cold rows.
ALTER TABLE m ADD COLUMN flag bool DEFAULT true, ADD COLUMN note text;
SELECT id, flag, note FROM m WHERE id = 4000;
INSERT INTO m (id, flag, note) VALUES (30000, false, 'late');
CALL flush('m');
SELECT id, flag, note FROM m WHERE id IN (4000, 30000) ORDER BY id;
ALTER TABLE m DROP COLUMN body;
SELECT * FROM m WHERE id IN (4000, 30000) ORDER BY id;
ALTER TABLE m ADD COLUMN body int;
UPDATE m SET body = 5 WHERE id = 4000;
CALL flush('m');
SELECT id, body, note FROM m WHERE id IN (4000, 4001, 30000) ORDER BY id;
SELECT compact('m') IS NOT NULL AS done;
SELECT id, body, note, flag FROM m WHERE id IN (4000, 4001, 30000) ORDER BY id;
CREATE INDEX m_at ON m (at);
CALL only_scan('indexscan');
SELECT id FROM m WHERE at = '2026-01-01 00:50:00+00';
CALL only_scan('any');
SELECT check_indexes('m');

-- Rewrites, moves and truncation.
ALTER TABLE m ALTER COLUMN topic TYPE bigint;
SELECT count(*), sum(topic) FROM m;
SELECT count(*) FROM kalam.table_segments('m');
CALL flush('m');
CLUSTER m USING m_pkey;
CALL flush('m');
ALTER TABLE m SET ACCESS METHOD heap;
SELECT count(*), sum(topic) FROM m;
ALTER TABLE m SET ACCESS METHOD kalam_shared;
CALL flush('m');
SELECT count(*), sum(topic) FROM m;
BEGIN;
TRUNCATE m CASCADE;
SELECT count(*) FROM m;
ROLLBACK;
SELECT count(*) FROM m;
TRUNCATE m CASCADE;
SELECT count(*) FROM m;
SELECT count(*) FROM kalam.table_segments('m');

-- What cannot be flushed.
CREATE TEMP TABLE temporary (a int) USING kalam_shared;
SELECT flush_once('temporary');
CREATE UNLOGGED TABLE unlogged (a int) USING kalam_shared;
SELECT flush_once('unlogged');
SELECT flush_once('plain');
CREATE TABLE nothing (a int) USING kalam_shared;
SELECT rows, segments FROM flush_once('nothing');
CREATE MATERIALIZED VIEW seen USING kalam_shared AS SELECT i AS n FROM generate_series(1, 1000) i;
CALL flush('seen');
SELECT sum(n) FROM seen;
REFRESH MATERIALIZED VIEW seen;
SELECT sum(n) FROM seen;

-- Rows share no large values with each other; versions of a row do.
CREATE FUNCTION count_values(regclass, OUT there bigint, OUT unnamed bigint) RETURNS SETOF record LANGUAGE c STRICT
    AS '$libdir/kalamdb', 'count_values_wrapper';
CREATE TABLE copies (id int PRIMARY KEY, n int, b text);
ALTER TABLE copies ALTER b SET STORAGE EXTERNAL;
ALTER TABLE copies SET (kalam.flush_policy = 'off');
INSERT INTO copies VALUES (1, 0, noise(1, 100000));
INSERT INTO copies SELECT 2, 0, b FROM copies;
MERGE INTO copies USING (SELECT b FROM copies WHERE id = 1) one ON false WHEN NOT MATCHED THEN INSERT VALUES (3, 0, one.b);
UPDATE copies SET n = n + 1;
SELECT * FROM count_values('copies');
-- Values of rows that do not become cold again keep no segment, nor what was deleted and is still in it.
CALL flush('copies');
UPDATE copies SET n = n + 1;
SELECT segments FROM compact('copies');
SELECT kalam.checkpoint();
DO $$ BEGIN
    FOR attempt IN 1 .. 3000 LOOP
        EXIT WHEN NOT EXISTS (SELECT FROM kalam.table_segments('copies'));
        PERFORM pg_sleep(0.01);
    END LOOP;
END $$;
SELECT count(*) FROM kalam.table_segments('copies');
SELECT id, n, b = noise(1, 100000) AS same FROM copies ORDER BY id;

-- Segments are the owner's.
CREATE ROLE cold_rows_reader;
CALL flush('child');
GRANT USAGE ON SCHEMA cold_rows TO cold_rows_reader;
GRANT SELECT ON ALL TABLES IN SCHEMA cold_rows TO cold_rows_reader;
SET ROLE cold_rows_reader;
SELECT count(*) FROM kalam.segments;
SELECT count(*) FROM kalam.table_segments('child');
SELECT count(*) FROM child;
RESET ROLE;
DROP OWNED BY cold_rows_reader;
DROP ROLE cold_rows_reader;
DROP SCHEMA cold_rows CASCADE;
