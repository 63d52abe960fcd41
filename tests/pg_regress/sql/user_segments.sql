-- Who sees which segments of a user table. On heap there are none: see user_segments_1.out.
SELECT current_setting('default_table_access_method') = 'heap' AS on_heap \gset
\if :on_heap
\quit
\endif
CREATE ROLE user_segments_alice;
CREATE ROLE user_segments_bob;
CREATE ROLE user_segments_carol;
CREATE SCHEMA user_segments AUTHORIZATION user_segments_alice;
SET search_path = user_segments, public;
SET ROLE user_segments_alice;
CREATE TABLE diary (id int PRIMARY KEY, body text) USING kalam_user;
GRANT ALL ON diary TO PUBLIC;
GRANT USAGE ON SCHEMA user_segments TO PUBLIC;
ALTER TABLE diary SET (kalam.flush_policy = 'off');
RESET ROLE;
SET kalam.user_id = 'alice';
INSERT INTO diary SELECT i, repeat('a', 500) FROM generate_series(1, 500) i;
SET kalam.user_id = 'bob';
INSERT INTO diary SELECT i, repeat('b', 500) FROM generate_series(1, 700) i;
CALL wait_for_old_snapshots();
SELECT kalam.flush('diary', wait => true) IS NOT NULL AS flushed;

-- The owner of the table sees what is theirs, like any other user of it.
SET kalam.user_id = 'alice';
SET ROLE user_segments_alice;
SELECT user_id, least = repeat('a', length(least)) AS own FROM (SELECT user_id, columns -> '2' ->> 'min' AS least FROM kalam.segments) s;
SELECT count(*) FROM kalam.table_segments('diary') WHERE user_id <> 'alice';
RESET ROLE;
SELECT DISTINCT user_id FROM kalam.table_segments('diary');
SET kalam.user_id = 'bob';
SELECT DISTINCT user_id FROM kalam.table_segments('diary');
SET kalam.user_id = 'carol';
SELECT DISTINCT user_id FROM kalam.table_segments('diary');
-- Only a table's owner sees any.
SET kalam.user_id = 'bob';
SET ROLE user_segments_bob;
SELECT count(*) FROM kalam.table_segments('diary');
RESET ROLE;

-- All of them with row_security = off, for those who may.
SET row_security = off;
SELECT user_id, sum(rows) > 0 AS has_rows FROM kalam.table_segments('diary') GROUP BY user_id ORDER BY user_id;
SET ROLE user_segments_alice;
SELECT count(*) FROM kalam.table_segments('diary');
RESET ROLE;
RESET row_security;
RESET kalam.user_id;
DROP SCHEMA user_segments CASCADE;
DROP ROLE user_segments_alice, user_segments_bob, user_segments_carol;
