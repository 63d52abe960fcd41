-- CREATE TABLE AS, SELECT INTO, LIKE and materialized views.
CREATE SCHEMA create_table_as;
SET search_path = create_table_as, public;

CREATE TABLE base (id int PRIMARY KEY, grp int, body text);
INSERT INTO base SELECT i, i % 5, noise(i, i) FROM generate_series(1, 2000) i;

CREATE TABLE all_rows AS SELECT * FROM base;
CREATE TABLE no_rows AS SELECT * FROM base WITH NO DATA;
CREATE TABLE renamed (a, b) AS SELECT id, body FROM base WHERE grp = 1;
CREATE TABLE IF NOT EXISTS renamed AS SELECT 1;
CREATE TABLE from_values AS VALUES (1, 'one'), (2, 'two');
SELECT grp, count(*) AS n, sum(length(body)) AS size INTO grouped FROM base GROUP BY grp;
SELECT fingerprint('all_rows') = fingerprint('base') AS same;
SELECT count(*) FROM no_rows;
SELECT count(*), sum(a), max(length(b)) FROM renamed;
SELECT * FROM from_values ORDER BY 1;
SELECT * FROM grouped ORDER BY grp;
PREPARE half AS SELECT id FROM base WHERE id <= $1;
CREATE TABLE prepared AS EXECUTE half(1000);
SELECT count(*), max(id) FROM prepared;

-- An error or a rollback leaves no table.
\set VERBOSITY sqlstate
CREATE TABLE failed AS SELECT id, 1 / (1000 - id) AS x FROM base;
\set VERBOSITY default
SELECT to_regclass('failed') IS NULL AS gone;
BEGIN;
CREATE TABLE failed AS SELECT * FROM base;
SELECT count(*) FROM failed;
ROLLBACK;
SELECT to_regclass('failed') IS NULL AS gone;

-- LIKE.
CREATE TABLE alike (LIKE base INCLUDING ALL);
INSERT INTO alike SELECT * FROM base;
\set VERBOSITY sqlstate
INSERT INTO alike SELECT * FROM base LIMIT 1;
\set VERBOSITY default
SELECT fingerprint('alike') = fingerprint('base') AS same;

-- Materialized views.
CREATE MATERIALIZED VIEW summary AS SELECT grp, count(*) AS n, max(id) AS last FROM base GROUP BY grp;
CREATE MATERIALIZED VIEW later AS SELECT id, body FROM base WHERE grp = 2 WITH NO DATA;
CREATE UNIQUE INDEX ON summary (grp);
SELECT * FROM summary ORDER BY grp;
\set VERBOSITY sqlstate
SELECT * FROM later;
INSERT INTO summary VALUES (9, 9, 9);
\set VERBOSITY default
REFRESH MATERIALIZED VIEW later;
SELECT count(*), sum(length(body)) FROM later;
DELETE FROM base WHERE id > 1990;
INSERT INTO base VALUES (5000, 77, 'new');
SELECT * FROM summary ORDER BY grp;
BEGIN;
REFRESH MATERIALIZED VIEW summary;
SELECT * FROM summary ORDER BY grp;
ROLLBACK;
SELECT * FROM summary ORDER BY grp;
REFRESH MATERIALIZED VIEW summary;
SELECT * FROM summary ORDER BY grp;
UPDATE base SET grp = 3 WHERE grp = 77;
REFRESH MATERIALIZED VIEW summary;
SELECT * FROM summary ORDER BY grp;
CALL only_scan('indexscan');
SELECT * FROM summary WHERE grp = 3;
CALL only_scan('any');
REFRESH MATERIALIZED VIEW summary WITH NO DATA;
\set VERBOSITY sqlstate
SELECT * FROM summary;
\set VERBOSITY default
DROP MATERIALIZED VIEW summary, later;
