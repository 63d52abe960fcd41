-- Sizes of tables: kalam.table_stats() and kalam.tables. On heap there is
-- nothing to show: see table_stats_1.out.
SELECT current_setting('default_table_access_method') = 'heap' AS on_heap \gset
\if :on_heap
\quit
\endif
CREATE SCHEMA table_stats;
SET search_path = table_stats, public;

CREATE TABLE message (id int PRIMARY KEY, body text);
SELECT storage > 0 AS storage, blocks, hot_bytes, index_bytes, cold_bytes, total_bytes = index_bytes AS total
FROM kalam.table_stats('message');

-- The rows count once a checkpoint has brought them into the store, and then about as they are: noise is hex, of which
-- compression saves half.
INSERT INTO message SELECT i, noise(i, 1000) FROM generate_series(1, 2000) i;
SELECT kalam.checkpoint();
SELECT blocks BETWEEN 60 AND 80 AS blocks, hot_bytes BETWEEN 800000 AND 2200000 AS hot_bytes,
    index_bytes = pg_indexes_size('message') AS index_bytes, index_bytes > 0 AS has_index,
    total_bytes = hot_bytes + index_bytes AS total
FROM kalam.table_stats('message');

-- Values that are stored out of their rows count too.
CREATE TABLE long (id int, body text);
INSERT INTO long VALUES (1, noise(7, 1000000));
SELECT kalam.checkpoint();
SELECT blocks, hot_bytes BETWEEN 400000 AND 1200000 AS hot_bytes, index_bytes FROM kalam.table_stats('long');

-- Each storage has its own figures, and TRUNCATE gives a table a new one.
SELECT count(DISTINCT s.storage)
FROM (VALUES ('message'::regclass), ('long')) AS t (relation), kalam.table_stats(t.relation) s;
SELECT storage AS before FROM kalam.table_stats('long') \gset
TRUNCATE long;
SELECT storage > :before AS new_storage, blocks, hot_bytes FROM kalam.table_stats('long');

-- A materialized view is a table, too; others have no storage of ours.
CREATE MATERIALIZED VIEW summary AS SELECT count(*) FROM message;
SELECT blocks FROM kalam.table_stats('summary');
CREATE TABLE plain (id int PRIMARY KEY) USING heap;
CREATE VIEW looking AS SELECT 1;
CREATE TABLE parted (id int) PARTITION BY RANGE (id);
SELECT * FROM kalam.table_stats('plain');
SELECT outcome($$SELECT * FROM kalam.table_stats('plain')$$);
SELECT * FROM kalam.table_stats('message_pkey');
SELECT * FROM kalam.table_stats('looking');
SELECT outcome($$SELECT * FROM kalam.table_stats('parted')$$);
SELECT outcome($$SELECT * FROM kalam.table_stats('pg_class')$$);
SELECT outcome($$SELECT * FROM kalam.table_stats('nowhere')$$);
SELECT * FROM kalam.table_stats(NULL);
SELECT count(*) FROM kalam.table_stats(4294967295::oid);

-- The view has them all.
SELECT tablename, access_method, blocks, hot_bytes IS NOT NULL AS has_size, index_bytes > 0 AS has_index
FROM kalam.tables WHERE schemaname = 'table_stats' ORDER BY tablename;

SELECT n.tables = s.tables AND n.hot_bytes = s.hot AND n.index_bytes = s.index AND n.cold_bytes = s.cold AND n.total_bytes = s.total AS summed
FROM kalam.namespaces n, LATERAL (SELECT count(*) AS tables, sum(hot_bytes) AS hot, sum(index_bytes) AS index, sum(cold_bytes) AS cold,
    sum(total_bytes) AS total FROM kalam.tables t WHERE t.schemaname = n.schemaname) s WHERE schemaname = 'table_stats';

-- A large value whose row cannot be stored goes with its statement.
CREATE TABLE refused (fixed text, v text);
ALTER TABLE refused ALTER fixed SET STORAGE PLAIN, ALTER v SET STORAGE EXTERNAL;
DO $$
BEGIN
    FOR i IN 1..20 LOOP
        BEGIN
            INSERT INTO refused VALUES (repeat('x', 40000), noise(i, 500000));
        EXCEPTION WHEN program_limit_exceeded THEN NULL;
        END;
    END LOOP;
END
$$;
SELECT kalam.checkpoint();
SELECT hot_bytes < 1000000 AS given_back FROM kalam.table_stats('refused');

-- Anybody may ask who can name the table, as for pg_relation_size().
CREATE ROLE table_stats_reader;
GRANT USAGE ON SCHEMA table_stats TO table_stats_reader;
SET ROLE table_stats_reader;
SELECT outcome('SELECT * FROM message');
SELECT blocks > 0 AS blocks FROM kalam.table_stats('message');
SELECT count(*) FROM kalam.tables WHERE schemaname = 'table_stats';
RESET ROLE;

DROP SCHEMA table_stats CASCADE;
DROP ROLE table_stats_reader;
