-- Changes of KalamDB tables are not decoded: nobody is to believe that they
-- are published. On heap there is nothing to show: see publications_1.out.
SELECT current_setting('default_table_access_method') = 'heap' AS on_heap \gset
\if :on_heap
\quit
\endif
SET client_min_messages = error;
CREATE SCHEMA publications;
CREATE SCHEMA "Other";
RESET client_min_messages;
SET search_path = publications;
CREATE TABLE ours (id int PRIMARY KEY);
CREATE TABLE theirs (id int PRIMARY KEY) USING heap;
CREATE TABLE parent (id int PRIMARY KEY) PARTITION BY RANGE (id);
CREATE TABLE low PARTITION OF parent FOR VALUES FROM (0) TO (10) USING heap;

-- By name.
\set VERBOSITY sqlstate
CREATE PUBLICATION named FOR TABLE theirs, ours;
\set VERBOSITY default
SET client_min_messages = error;
CREATE PUBLICATION named FOR TABLE theirs, parent;
RESET client_min_messages;
ALTER PUBLICATION named ADD TABLE ours;
ALTER PUBLICATION named SET TABLE theirs, ours;
SELECT tablename FROM pg_publication_tables WHERE pubname = 'named' ORDER BY 1;

-- A table that is published becomes no KalamDB table, alone or as a partition.
ALTER TABLE theirs SET ACCESS METHOD kalam_shared;
CREATE TABLE middle PARTITION OF parent FOR VALUES FROM (10) TO (20);
ALTER TABLE parent ATTACH PARTITION ours FOR VALUES FROM (10) TO (20);
CREATE TABLE middle PARTITION OF parent FOR VALUES FROM (10) TO (20) USING heap;
SELECT a.amname FROM pg_class c JOIN pg_am a ON a.oid = c.relam WHERE c.oid = 'theirs'::regclass;

-- Statements about something else are none of its business.
ALTER TABLE ours ADD COLUMN v text;
CREATE TABLE another (id int);
CREATE TEMPORARY TABLE passing (id int);
ALTER PUBLICATION named SET (publish = 'insert');
DROP PUBLICATION named;
ALTER TABLE theirs SET ACCESS METHOD kalam_shared;
ALTER TABLE theirs SET ACCESS METHOD heap;

-- One for all tables, or for those of a schema, leaves them out and says so.
SET client_min_messages = warning;
CREATE PUBLICATION one_schema FOR TABLES IN SCHEMA publications;
DROP PUBLICATION one_schema;
CREATE PUBLICATION one_schema FOR TABLES IN SCHEMA "Other";
CREATE TABLE "Other"."Table" (id int);
-- Once is enough.
CREATE TABLE "Other".more (id int);
DROP TABLE "Other".more;
\c -
SET search_path = publications;
SET client_min_messages = warning;
ALTER TABLE another SET SCHEMA "Other";
ALTER PUBLICATION one_schema ADD TABLES IN SCHEMA publications;
DROP PUBLICATION one_schema;
CREATE TABLE fourth AS SELECT 4 AS id;
SELECT 5 AS id INTO fifth;
CREATE UNLOGGED TABLE sixth (id int);
ALTER TABLE sixth SET LOGGED;
DROP TABLE "Other"."Table", "Other".another;
\set VERBOSITY terse
CREATE PUBLICATION everything FOR ALL TABLES;
\set VERBOSITY default
CREATE TABLE seventh (id int);
ALTER TABLE seventh ADD COLUMN v text;
CREATE TABLE eighth (id int) USING heap;
\c -
SET search_path = publications;
SET client_min_messages = warning;
ALTER TABLE eighth SET ACCESS METHOD kalam_shared;
CREATE TEMPORARY TABLE ninth (id int);
DROP PUBLICATION everything;

-- Changes go on as before.
INSERT INTO ours VALUES (1), (2);
DELETE FROM ours WHERE id = 1;
SELECT id FROM ours;
SELECT kalam.check_publications();

SET client_min_messages = error;
DROP SCHEMA publications, "Other" CASCADE;
