-- ANALYZE: row counts, statistics of the values, and estimates that follow.
CREATE SCHEMA analyzed;
SET search_path = analyzed, public;

CREATE FUNCTION estimate(query text) RETURNS int LANGUAGE plpgsql AS $$
DECLARE
    plan json;
BEGIN
    EXECUTE 'EXPLAIN (FORMAT json) ' || query INTO plan;
    RETURN plan -> 0 -> 'Plan' ->> 'Plan Rows';
END $$;

CREATE TABLE event (id int, kind text, weight float8, note text) WITH (autovacuum_enabled = off);
INSERT INTO event SELECT i, 'kind ' || i % 10, i / 1000.0, CASE WHEN i % 4 = 0 THEN 'note' END FROM generate_series(1, 10000) i;
SELECT reltuples FROM pg_class WHERE oid = 'event'::regclass;
ANALYZE event;
SELECT reltuples, relpages > 0 AS pages FROM pg_class WHERE oid = 'event'::regclass;
SELECT attname, null_frac, n_distinct FROM pg_stats WHERE schemaname = 'analyzed' AND tablename = 'event' ORDER BY attname;
SELECT attname, array_length(most_common_vals::text::text[], 1) AS common FROM pg_stats WHERE schemaname = 'analyzed' AND tablename = 'event' AND attname = 'kind';
SELECT correlation = 1 AS sorted FROM pg_stats WHERE schemaname = 'analyzed' AND tablename = 'event' AND attname = 'id';
SELECT estimate('SELECT * FROM event'), estimate('SELECT * FROM event WHERE note IS NULL'), estimate('SELECT * FROM event WHERE id = 5');
SELECT estimate('SELECT * FROM event WHERE id < 1000') BETWEEN 950 AND 1050 AS near_1000;
SELECT estimate($$SELECT * FROM event WHERE kind = 'kind 3'$$) BETWEEN 950 AND 1050 AS near_1000;

-- Deleted and updated rows do not count.
DELETE FROM event WHERE id % 2 = 0;
UPDATE event SET weight = -1 WHERE id <= 1000;
ANALYZE event;
SELECT reltuples FROM pg_class WHERE oid = 'event'::regclass;
BEGIN;
INSERT INTO event SELECT i FROM generate_series(20001, 21000) i;
DELETE FROM event WHERE id = 1;
ANALYZE event;
SELECT reltuples FROM pg_class WHERE oid = 'event'::regclass;
ROLLBACK;
ANALYZE event;
SELECT reltuples FROM pg_class WHERE oid = 'event'::regclass;
VACUUM ANALYZE event;
SELECT reltuples FROM pg_class WHERE oid = 'event'::regclass;
SELECT estimate('SELECT * FROM event') AS all_rows, estimate('SELECT * FROM event WHERE weight < 0') BETWEEN 450 AND 550 AS near_500;

-- Indexes: their row counts, statistics of an expression, of part of the rows.
CREATE INDEX event_id ON event (id);
CREATE INDEX event_expression ON event ((id % 7)) WHERE note IS NULL;
SELECT relname, reltuples FROM pg_class WHERE oid IN ('event'::regclass, 'event_id'::regclass, 'event_expression'::regclass) ORDER BY relname;
ANALYZE event;
SELECT relname, reltuples FROM pg_class WHERE oid IN ('event'::regclass, 'event_id'::regclass, 'event_expression'::regclass) ORDER BY relname;
SELECT n_distinct FROM pg_stats WHERE schemaname = 'analyzed' AND tablename = 'event_expression';

-- Single columns, extended statistics, empty tables, tables that became empty.
ANALYZE event (id, kind);
CREATE STATISTICS event_stats (dependencies, ndistinct) ON kind, note FROM event;
ANALYZE event;
SELECT n_distinct IS NOT NULL AS present FROM pg_stats_ext WHERE schemaname = 'analyzed' AND statistics_name = 'event_stats';
CREATE TABLE empty (a int);
ANALYZE empty;
SELECT reltuples, relpages FROM pg_class WHERE oid = 'empty'::regclass;
TRUNCATE event;
SELECT reltuples, relpages FROM pg_class WHERE oid = 'event'::regclass;
ANALYZE event;
SELECT reltuples, relpages FROM pg_class WHERE oid = 'event'::regclass;

-- More rows than a sample: the estimate stays near the truth, also when rows
-- are of very different width.
CREATE TABLE large (id int, grp int, filler text) WITH (autovacuum_enabled = off);
INSERT INTO large SELECT i, i % 100, CASE WHEN i % 1000 < 100 THEN noise(i, 500) ELSE 'x' END FROM generate_series(1, 60000) i;
ALTER TABLE large ALTER id SET STATISTICS 10, ALTER grp SET STATISTICS 10, ALTER filler SET STATISTICS 10;
ANALYZE large;
SELECT reltuples BETWEEN 58000 AND 62000 AS near_60000 FROM pg_class WHERE oid = 'large'::regclass;
SELECT estimate('SELECT * FROM large WHERE grp = 5') BETWEEN 250 AND 1200 AS near_600;
ALTER TABLE large ALTER grp SET STATISTICS 300;
ANALYZE large;
SELECT reltuples FROM pg_class WHERE oid = 'large'::regclass;
SELECT n_distinct FROM pg_stats WHERE schemaname = 'analyzed' AND tablename = 'large' AND attname = 'grp';

-- Values that are not kept in the row are analysed, too.
CREATE TABLE wide (id int, v text);
ALTER TABLE wide ALTER v SET STORAGE EXTERNAL;
INSERT INTO wide SELECT i, noise(i % 3, 10000) FROM generate_series(1, 60) i;
ANALYZE wide;
SELECT reltuples FROM pg_class WHERE oid = 'wide'::regclass;
SELECT null_frac, avg_width > 0 AS width FROM pg_stats WHERE schemaname = 'analyzed' AND tablename = 'wide' AND attname = 'v';

-- Before the first ANALYZE the planner looks at the size of the table.
CREATE TABLE unseen (id int, v text) WITH (autovacuum_enabled = off);
INSERT INTO unseen SELECT i, 'some text ' || i FROM generate_series(1, 50000) i;
SELECT estimate('SELECT * FROM unseen') BETWEEN 15000 AND 150000 AS plausible;
SELECT pg_relation_size('unseen') >= 0 AND pg_total_relation_size('unseen') >= 0 AND pg_table_size('unseen') >= 0 AS sizes;
