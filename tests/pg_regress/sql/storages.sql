-- Storages of cold segments: definitions, privileges, checks. On heap there is
-- nothing to show: see storages_1.out. No object store is asked for anything
-- but one port that nobody listens on.
SELECT current_setting('default_table_access_method') = 'heap' AS on_heap \gset
\if :on_heap
\quit
\endif
SET client_min_messages = warning;
SELECT kalam.install_roles();
RESET client_min_messages;
CREATE ROLE regress_storage_dba IN ROLE kalam_dba;
CREATE ROLE regress_storage_plain;
SELECT regexp_replace(current_setting('data_directory'), '/[^/]*$', '/regress_storage') AS directory,
    current_setting('data_directory') AS data_directory \gset

-- One storage is always there.
SELECT name, kind, url, options, secrets FROM kalam.storages;
SELECT status, error, jsonb_path_query_array(operations, '$[*].operation') AS operations FROM kalam.storage_check('local', extended => true);
SELECT kalam.drop_storage('local');
SELECT kalam.alter_storage('local', 's3://bucket');
SELECT kalam.create_storage('local', 's3://bucket');
SELECT kalam.create_storage('local', 'local:');

-- What is wrong with a definition is said, and no secret with it.
SELECT kalam.create_storage('Archive', 's3://bucket');
SELECT kalam.create_storage(NULL, 's3://bucket');
SELECT kalam.create_storage('archive', NULL);
SELECT kalam.create_storage('archive', 's3://key:hush@bucket');
SELECT kalam.create_storage('archive', 'ftp://bucket');
SELECT kalam.create_storage('archive', 's3://bucket/../other');
SELECT kalam.create_storage('archive', 's3://bucket', '[]');
SELECT kalam.create_storage('archive', 's3://bucket', '{"nonsense": 1}');
SELECT kalam.create_storage('archive', 's3://bucket', '{"timeout": "soon"}');
SELECT kalam.create_storage('archive', 's3://bucket', '{"secret_access_key": "hush"}');
SELECT kalam.create_storage('archive', 's3://bucket', '{"user_template": "{namespace}/{table}"}');
SELECT kalam.create_storage('archive', 's3://bucket', '{"shared_template": "../{table}"}');
SELECT kalam.create_storage('archive', 's3://bucket', '{"endpoint": "http://127.0.0.1:1"}');

-- A store that is not there: making it asks nothing of it, checking it tells.
SELECT kalam.create_storage('archive', 's3://bucket/cold/', '{"endpoint": "http://127.0.0.1:1", "allow_http": true,
    "access_key_id": "key", "secret_access_key": "hush", "retries": 0}');
SELECT kalam.create_storage('archive', 's3://bucket');
SELECT name, kind, url, options, secrets FROM kalam.storages WHERE name = 'archive';
SELECT status, milliseconds >= 0 AS timed, jsonb_array_length(operations) AS operations, error LIKE 'could not list storage "archive": %' AS said
FROM kalam.storage_check('archive');
SELECT status, jsonb_path_query_array(operations, '$[*].operation') AS operations, operations::text LIKE '%hush%' AS secret_shown
FROM kalam.storage_check('archive', extended => true);
SELECT * FROM kalam.storage_check('nowhere');

-- Changes keep what they do not name, and go with their transaction.
SELECT kalam.alter_storage('archive', options => '{"retries": 2, "region": "eu-north-1", "endpoint": "https://127.0.0.1:1", "allow_http": null}');
SELECT kalam.alter_storage('archive', options => '{"retries": 2, "region": "eu-north-1", "endpoint": "https://127.0.0.1:1", "allow_http": null,
    "secret_access_key": "hush again"}');
SELECT options, secrets FROM kalam.storages WHERE name = 'archive';
BEGIN;
SELECT kalam.alter_storage('archive', 's3://other', '{"secret_access_key": "another"}');
SELECT kalam.create_storage('second', 'gs://bucket');
SAVEPOINT one;
SELECT kalam.drop_storage('archive');
ROLLBACK TO one;
ROLLBACK;
SELECT name, url FROM kalam.storages;
SELECT kalam.alter_storage('archive', options => '{"secret_access_key": null}');
SELECT kalam.alter_storage('archive', options => '{"secret_access_key": null, "access_key_id": null, "anonymous": true}');
SELECT options, secrets FROM kalam.storages WHERE name = 'archive';
SELECT kalam.alter_storage('nowhere', 's3://bucket');
BEGIN;
SELECT kalam.alter_storage('archive', options => '{"retries": 1}');
PREPARE TRANSACTION 'storage';

-- Directories: absolute, outside of the data directory, the server's alone.
SELECT kalam.create_storage('disk', 'file://relative');
SELECT kalam.create_storage('disk', 'file:///');
SELECT kalam.create_storage('disk', 'file:///a/../b');
\set VERBOSITY sqlstate
SELECT kalam.create_storage('disk', 'file://' || :'data_directory' || '/base');
SELECT kalam.create_storage('disk', 'file://' || regexp_replace(:'data_directory', '/[^/]*$', ''));
\set VERBOSITY default
SELECT kalam.create_storage('disk', 'file://' || :'directory');
SELECT url = 'file://' || :'directory' AS url FROM kalam.storages WHERE name = 'disk';
SELECT status, error, jsonb_path_query_array(operations, '$[*].operation') AS operations FROM kalam.storage_check('disk', extended => true);

-- A user's own storage keeps it from being dropped.
SELECT kalam.set_user_storage('alice', 'disk');
SELECT kalam.set_user_storage('alice', 'nowhere');
SELECT kalam.set_user_storage('', 'disk');
SELECT * FROM kalam.user_storages;
SELECT kalam.drop_storage('disk');
SELECT kalam.alter_storage('disk', 's3://bucket');
SELECT kalam.set_user_storage('alice', NULL);
SELECT kalam.drop_storage('disk');

-- So does a table's option.
CREATE TABLE storage_message (id int PRIMARY KEY, body text);
SELECT kalam.create_storage('second', 'file://' || :'directory' || '2');
SELECT kalam.set_options('storage_message', storage => 'nowhere');
ALTER TABLE storage_message SET (kalam.storage = 'second');
SELECT kalam.drop_storage('second');
INSERT INTO storage_message SELECT i, 'body ' || i FROM generate_series(1, 5000) i;
-- A snapshot of autovacuum may keep the rows hot for a moment.
DO $$
BEGIN
    LOOP
        PERFORM kalam.flush('storage_message', wait => true);
        COMMIT;
        EXIT WHEN EXISTS (SELECT FROM kalam.table_segments('storage_message'));
    END LOOP;
END $$;
ALTER TABLE storage_message RESET (kalam.storage);
SELECT kalam.drop_storage('second');
SELECT kalam.alter_storage('second', 's3://bucket');
SELECT location, rows FROM kalam.segments WHERE tablename = 'storage_message';
SELECT count(*), sum(length(body)) FROM storage_message;
DROP TABLE storage_message;

-- Who may do what.
SET ROLE regress_storage_plain;
SELECT name, kind, url, options, secrets FROM kalam.storages WHERE name <> 'second';
SELECT kalam.create_storage('x', 's3://bucket');
SELECT kalam.alter_storage('archive', 's3://bucket');
SELECT kalam.drop_storage('archive');
SELECT kalam.set_user_storage('alice', 'archive');
SELECT * FROM kalam.storage_check('archive');
SELECT * FROM kalam.storage_catalog;
SELECT * FROM kalam.storage_secrets;
SET ROLE regress_storage_dba;
SELECT kalam.create_storage('x', 's3://bucket', '{"access_key_id": "k", "secret_access_key": "hush"}');
SELECT name, url, secrets FROM kalam.storages WHERE name <> 'second';
SELECT * FROM kalam.storage_secrets;
SELECT kalam.create_storage('disk', 'file:///tmp/regress_storage_dba');
SELECT kalam.alter_storage('x', 'file:///tmp/regress_storage_dba', '{"access_key_id": null, "secret_access_key": null}');
RESET ROLE;
SELECT kalam.drop_storage('x');
SELECT kalam.drop_storage('archive');
SELECT kalam.drop_storage('archive');
SELECT name FROM kalam.storages WHERE name <> 'second';
SELECT count(*) AS secrets FROM kalam.storage_secrets;
SELECT action, target, details ->> 'url' IS NOT NULL AS url, details::text LIKE '%hush%' AS secret_shown, count(*)
FROM kalam.audit_log WHERE action LIKE '%storage' GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3;

DROP ROLE regress_storage_dba, regress_storage_plain;
