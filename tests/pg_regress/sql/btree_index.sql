-- Btree indexes: built over existing rows, kept by changes, read in all ways.
CREATE SCHEMA btree_index;
SET search_path = btree_index, public;

CREATE TABLE item (id int, grp int, name text, price numeric);
INSERT INTO item SELECT i, i % 50, 'name ' || i % 1000, i * 1.5 FROM generate_series(1, 5000) i;
CREATE INDEX item_id ON item (id);
CREATE INDEX item_grp_id ON item (grp, id DESC);
CREATE INDEX item_name ON item (name COLLATE "C" text_pattern_ops);
CREATE INDEX item_covering ON item (price) INCLUDE (name);
SELECT check_indexes('item');

CALL only_scan('indexscan');
SELECT plan_has('SELECT * FROM item WHERE id = 77', 'item_id');
SELECT * FROM item WHERE id = 77;
SELECT id FROM item WHERE id BETWEEN 10 AND 15 ORDER BY id;
SELECT id FROM item WHERE id BETWEEN 10 AND 15 ORDER BY id DESC;
SELECT id FROM item WHERE id IN (5, 4999, 2500, 7000) ORDER BY id;
SELECT id FROM item WHERE grp = 7 ORDER BY id DESC LIMIT 5;
SELECT plan_has('SELECT id FROM item WHERE grp = 7 ORDER BY id DESC LIMIT 5', 'Sort');
SELECT count(*), sum(id) FROM item WHERE grp = ANY ('{1,2,3}') AND id < 1000;
SELECT count(*) FROM item WHERE name LIKE 'name 12%' COLLATE "C";
SELECT name, price FROM item WHERE price > 7490 ORDER BY price;
SELECT min(id), max(id) FROM item;
SELECT count(*) FROM item WHERE id > 0;
SELECT count(*) FROM item a JOIN item b ON a.id = b.grp AND a.id < 50;

-- Changes are followed by the indexes, in every kind of scan.
INSERT INTO item VALUES (6000, 7, 'late', 1), (NULL, 7, NULL, NULL);
UPDATE item SET grp = 100 WHERE id IN (1, 2, 3);
UPDATE item SET id = id + 10000 WHERE id BETWEEN 100 AND 109;
UPDATE item SET price = price + 0 WHERE id BETWEEN 200 AND 209;
DELETE FROM item WHERE id BETWEEN 300 AND 399;
CREATE FUNCTION by_every_scan(condition text) RETURNS TABLE (scan text, rows bigint, ids bigint, grps bigint) LANGUAGE plpgsql AS $$
BEGIN
    FOREACH scan IN ARRAY ARRAY['seqscan', 'indexscan', 'bitmapscan', 'indexonlyscan'] LOOP
        CALL only_scan(scan);
        EXECUTE 'SELECT count(*), sum(id), sum(grp) FROM item WHERE ' || condition INTO rows, ids, grps;
        RETURN NEXT;
    END LOOP;
    CALL only_scan('any');
END $$;
SELECT * FROM by_every_scan('id >= 0');
SELECT * FROM by_every_scan('id BETWEEN 90 AND 420');
SELECT * FROM by_every_scan('grp = 100');
SELECT * FROM by_every_scan('grp = 7 AND id > 4000');
SELECT * FROM by_every_scan('id IS NULL');
SELECT * FROM by_every_scan('id IS NOT NULL');
SELECT * FROM by_every_scan('id = 100 OR grp = 3');
SELECT * FROM by_every_scan('price < 100 AND id < 500');
SELECT check_indexes('item');

-- NULL order and mixed directions.
CREATE TABLE ordered (a int, b int);
INSERT INTO ordered SELECT NULLIF(i % 4, 0), NULLIF(i % 3, 0) FROM generate_series(1, 24) i;
CREATE INDEX ON ordered (a NULLS FIRST, b DESC NULLS LAST);
CALL only_scan('indexscan');
SELECT DISTINCT a, b FROM ordered ORDER BY a NULLS FIRST, b DESC NULLS LAST;
SELECT DISTINCT a, b FROM ordered ORDER BY a DESC NULLS LAST, b NULLS FIRST;
SELECT count(*) FROM ordered WHERE a IS NULL AND b = 2;
CALL only_scan('any');

-- An index made while the table has old versions: a query after it sees only
-- live rows, and a snapshot that is older than the index still sees its own.
CREATE TABLE churned (id int, v int);
INSERT INTO churned SELECT i, 0 FROM generate_series(1, 200) i;
UPDATE churned SET v = v + 1;
UPDATE churned SET v = v + 1 WHERE id <= 100;
DELETE FROM churned WHERE id > 150;
BEGIN;
INSERT INTO churned VALUES (1000, 0);
UPDATE churned SET v = 50 WHERE id = 1;
CREATE INDEX churned_v ON churned (v);
CALL only_scan('indexscan');
SELECT v, count(*) FROM churned WHERE v >= 0 GROUP BY v ORDER BY v;
COMMIT;
CREATE INDEX churned_id ON churned (id);
SELECT v, count(*) FROM churned WHERE v >= 0 GROUP BY v ORDER BY v;
SELECT count(*), sum(id) FROM churned WHERE id > 0;
CALL only_scan('any');
SELECT check_indexes('churned');

-- REINDEX, DROP INDEX and rollback of both.
REINDEX INDEX churned_v;
REINDEX TABLE churned;
BEGIN;
DROP INDEX churned_v;
CREATE INDEX churned_other ON churned (v, id);
ROLLBACK;
SELECT indexrelid::regclass FROM pg_index WHERE indrelid = 'churned'::regclass ORDER BY indexrelid::regclass::text;
SELECT check_indexes('churned');
DROP INDEX churned_v;

-- Many equal keys, and deletion of most of them.
CREATE TABLE equal_keys (k int, n int);
CREATE INDEX equal_keys_k ON equal_keys (k);
INSERT INTO equal_keys SELECT i % 3, i FROM generate_series(1, 6000) i;
DELETE FROM equal_keys WHERE k = 1;
VACUUM equal_keys;
INSERT INTO equal_keys SELECT 1, i FROM generate_series(1, 10) i;
CALL only_scan('indexscan');
SELECT k, count(*), sum(n) FROM equal_keys WHERE k >= 0 GROUP BY k ORDER BY k;
CALL only_scan('bitmapscan');
SELECT k, count(*), sum(n) FROM equal_keys WHERE k >= 0 GROUP BY k ORDER BY k;
CALL only_scan('any');
SELECT check_indexes('equal_keys');

-- Many versions of each key, so that the index removes the dead ones by itself.
CREATE TABLE hot_keys (id int PRIMARY KEY, v int, w int);
CREATE INDEX hot_keys_v ON hot_keys (v);
INSERT INTO hot_keys SELECT i, 0, 0 FROM generate_series(1, 100) i;
DO $$
BEGIN
    FOR i IN 1..100 LOOP
        UPDATE hot_keys SET v = v + 1;
    END LOOP;
END $$;
SELECT count(*), sum(v), min(v) FROM hot_keys;
DO $$
BEGIN
    FOR i IN 1..60 LOOP
        UPDATE hot_keys SET v = v + 1 WHERE id = i;
        COMMIT;
    END LOOP;
END $$;
CALL only_scan('indexscan');
SELECT v, count(*) FROM hot_keys WHERE v > 0 GROUP BY v ORDER BY v;
SELECT count(*) FROM hot_keys WHERE id > 0;
CALL only_scan('any');
SELECT check_indexes('hot_keys');
