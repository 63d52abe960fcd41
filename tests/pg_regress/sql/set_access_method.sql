-- Large values move from one access method to the other, both ways. On heap
-- there is nothing to show: see set_access_method_1.out.
SELECT current_setting('default_table_access_method') = 'heap' AS on_heap \gset
\if :on_heap
\quit
\endif
CREATE SCHEMA set_access_method;
SET search_path = set_access_method, public;
CREATE TABLE moving (id int PRIMARY KEY, gone int, v text, w text) USING heap;
ALTER TABLE moving ALTER w SET STORAGE EXTERNAL;
INSERT INTO moving SELECT i, i, noise(i, i * 400), noise(-i, i * 100) FROM generate_series(1, 100) i;
INSERT INTO moving VALUES (1000, 0, noise(1000, 2000000), NULL);
ALTER TABLE moving DROP gone;
ALTER TABLE moving SET ACCESS METHOD kalam_shared;
SELECT count(*), bool_and(v = noise(id, CASE id WHEN 1000 THEN 2000000 ELSE id * 400 END)), bool_and(w = noise(-id, id * 100)) FROM moving;
UPDATE moving SET w = w || '!' WHERE id % 2 = 0;
BEGIN;
ALTER TABLE moving SET ACCESS METHOD heap;
SELECT count(*), bool_and(v = noise(id, CASE id WHEN 1000 THEN 2000000 ELSE id * 400 END)) FROM moving;
ROLLBACK;
SELECT count(*), bool_and(v = noise(id, CASE id WHEN 1000 THEN 2000000 ELSE id * 400 END)) FROM moving;
ALTER TABLE moving SET ACCESS METHOD heap;
SELECT count(*), bool_and(v = noise(id, CASE id WHEN 1000 THEN 2000000 ELSE id * 400 END)),
    bool_and(w = noise(-id, id * 100) || CASE WHEN id % 2 = 0 THEN '!' ELSE '' END) FROM moving;
SELECT a.amname FROM pg_class c JOIN pg_am a ON a.oid = c.relam WHERE c.oid = 'moving'::regclass;
SELECT check_indexes('moving');
-- A table that was made by us and never was on heap.
CREATE TABLE ours (id int PRIMARY KEY, v text) USING kalam_shared;
INSERT INTO ours SELECT i, noise(i, i * 400) FROM generate_series(1, 100) i;
ALTER TABLE ours SET ACCESS METHOD heap;
SELECT count(*), bool_and(v = noise(id, id * 400)) FROM ours;
SELECT check_indexes('ours');
-- A materialized view.
CREATE MATERIALIZED VIEW summary USING kalam_shared AS SELECT id, v FROM ours;
ALTER MATERIALIZED VIEW summary SET ACCESS METHOD heap;
REFRESH MATERIALIZED VIEW summary;
ALTER MATERIALIZED VIEW summary SET ACCESS METHOD kalam_shared;
SELECT count(*), bool_and(v = noise(id, id * 400)) FROM summary;
