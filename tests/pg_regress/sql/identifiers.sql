-- Identifiers that sort by time. On heap there is nothing to show: see
-- identifiers_1.out.
SELECT current_setting('default_table_access_method') = 'heap' AS on_heap \gset
\if :on_heap
\quit
\endif
CREATE TABLE made AS SELECT n, kalam.snowflake_id() AS s, kalam.uuid_v7() AS u, kalam.ulid() AS l FROM generate_series(1, 20000) n;
-- Unique, and in the order in which they were made.
SELECT count(DISTINCT s), count(DISTINCT u), count(DISTINCT l) FROM made;
SELECT count(*) FROM made a JOIN made b ON b.n = a.n + 1 WHERE a.s >= b.s OR a.u >= b.u OR a.l COLLATE "C" >= b.l COLLATE "C";
-- Their parts.
SELECT bool_and(timestamptz '2024-01-01 00:00+00' + (s >> 22) * interval '1 millisecond' BETWEEN now() - interval '1 hour' AND clock_timestamp()) AS time,
    bool_and((s >> 12) & 1023 = 0) AS worker, max(s & 4095) <= 4095 AS sequence FROM made;
SELECT bool_and(to_timestamp(('x' || translate(left(u::text, 13), '-', ''))::bit(48)::bigint / 1000.0) BETWEEN now() - interval '1 hour' AND clock_timestamp() + interval '1 second') AS time,
    bool_and(substr(u::text, 15, 1) = '7') AS version, bool_and(substr(u::text, 20, 1) IN ('8', '9', 'a', 'b')) AS variant FROM made;
SELECT bool_and(l ~ '^[0-7][0-9A-HJKMNP-TV-Z]{25}$') AS form FROM made;
-- As a default, over several statements.
CREATE TABLE defaults (id bigint PRIMARY KEY DEFAULT kalam.snowflake_id(), u uuid UNIQUE DEFAULT kalam.uuid_v7(), l text UNIQUE DEFAULT kalam.ulid(), v int);
INSERT INTO defaults (v) SELECT generate_series(1, 5000);
INSERT INTO defaults (v) VALUES (0) RETURNING id > (SELECT max(id) FROM defaults) AS later;
-- Eight sessions at once.
CREATE EXTENSION dblink;
CREATE TABLE concurrent (session int, n int, s bigint, u uuid, l text) USING heap;
SELECT count(dblink_connect('c' || n, format('host=%s port=%s dbname=%s', split_part(current_setting('unix_socket_directories'), ',', 1), current_setting('port'), current_database()))) FROM generate_series(1, 8) n;
SELECT sum(dblink_send_query('c' || n, format('INSERT INTO concurrent SELECT %s, i, kalam.snowflake_id(), kalam.uuid_v7(), kalam.ulid() FROM generate_series(1, 10000) i', n))) FROM generate_series(1, 8) n;
SELECT count(*) FROM generate_series(1, 8) n, dblink_get_result('c' || n) AS r (status text);
SELECT count(*), count(DISTINCT s), count(DISTINCT u), count(DISTINCT l) FROM concurrent;
-- Each session's own grow too.
SELECT count(*) FROM (SELECT s <= lag(s) OVER w AS back, u <= lag(u) OVER w OR l COLLATE "C" <= lag(l) OVER w COLLATE "C" AS back2 FROM concurrent WINDOW w AS (PARTITION BY session ORDER BY n)) x WHERE back OR back2;
SELECT count(dblink_disconnect('c' || n)) FROM generate_series(1, 8) n;
DROP EXTENSION dblink;
SET kalam.worker_id = 5;
ALTER SYSTEM SET kalam.worker_id = 1024;
