-- KalamDB 0.1.0

\echo Use "CREATE EXTENSION kalamdb" to load this file. \quit

CREATE SCHEMA kalam;
COMMENT ON SCHEMA kalam IS 'KalamDB: functions and control tables';
GRANT USAGE ON SCHEMA kalam TO PUBLIC;

-- Table access method

CREATE FUNCTION kalam.shared_handler(internal) RETURNS table_am_handler
    LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'kalam_shared_handler';
COMMENT ON FUNCTION kalam.shared_handler(internal) IS 'table access method of shared tables';

CREATE ACCESS METHOD kalam_shared TYPE TABLE HANDLER kalam.shared_handler;
COMMENT ON ACCESS METHOD kalam_shared IS 'KalamDB table whose rows all users share';

CREATE FUNCTION kalam.user_handler(internal) RETURNS table_am_handler
    LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'kalam_user_handler';
COMMENT ON FUNCTION kalam.user_handler(internal) IS 'table access method of user tables';

CREATE ACCESS METHOD kalam_user TYPE TABLE HANDLER kalam.user_handler;
COMMENT ON ACCESS METHOD kalam_user IS 'KalamDB table in which every user has rows of their own';

CREATE FUNCTION kalam.stream_handler(internal) RETURNS table_am_handler
    LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'kalam_stream_handler';
COMMENT ON FUNCTION kalam.stream_handler(internal) IS 'table access method of stream tables';

CREATE ACCESS METHOD kalam_stream TYPE TABLE HANDLER kalam.stream_handler;
COMMENT ON ACCESS METHOD kalam_stream IS 'KalamDB table in which every user has events of their own, which vanish after a while';

-- Engine

CREATE FUNCTION kalam.checkpoint() RETURNS void
    LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'engine_checkpoint_wrapper';
COMMENT ON FUNCTION kalam.checkpoint() IS 'wait until everything logged before the call is durable in the store';
REVOKE ALL ON FUNCTION kalam.checkpoint() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION kalam.checkpoint() TO pg_checkpoint;

CREATE FUNCTION kalam.stats(OUT name text, OUT value bigint, OUT unit text, OUT description text) RETURNS SETOF record
    LANGUAGE c STRICT VOLATILE ROWS 25 AS 'MODULE_PATHNAME', 'engine_stats_wrapper';
COMMENT ON FUNCTION kalam.stats() IS 'counters and positions of the engine';
REVOKE ALL ON FUNCTION kalam.stats() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION kalam.stats() TO pg_monitor;

CREATE FUNCTION kalam.table_stats(relation regclass, missing_ok boolean DEFAULT false,
        OUT storage bigint, OUT blocks bigint, OUT hot_bytes bigint, OUT index_bytes bigint, OUT cold_bytes bigint,
        OUT total_bytes bigint)
    RETURNS SETOF record
    LANGUAGE c STRICT VOLATILE ROWS 1 AS 'MODULE_PATHNAME', 'table_stats_wrapper';
COMMENT ON FUNCTION kalam.table_stats(regclass, boolean) IS
    'storage, blocks of 32 KB and bytes on disk of a KalamDB table; bytes of rows as of the last checkpoint';

CREATE VIEW kalam.tables AS
    -- Materialized, so that no other relation reaches the function.
    WITH kalam AS MATERIALIZED (
        SELECT n.nspname, c.relname, a.amname, c.oid
        FROM pg_catalog.pg_class c
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        JOIN pg_catalog.pg_am a ON a.oid = c.relam
        WHERE a.amhandler IN ('kalam.shared_handler(internal)'::pg_catalog.regprocedure,
                'kalam.user_handler(internal)'::pg_catalog.regprocedure,
                'kalam.stream_handler(internal)'::pg_catalog.regprocedure)
            AND c.relkind IN ('r', 'm')
    )
    SELECT k.nspname AS schemaname, k.relname AS tablename, k.amname AS access_method, s.blocks, s.hot_bytes, s.index_bytes,
        s.cold_bytes, s.total_bytes
    FROM kalam k
    CROSS JOIN LATERAL kalam.table_stats(k.oid, missing_ok => true) s;
COMMENT ON VIEW kalam.tables IS 'KalamDB tables of the database and their sizes; without a size: the storage is missing';
GRANT SELECT ON kalam.tables TO PUBLIC;

CREATE VIEW kalam.namespaces AS
    SELECT t.schemaname, pg_catalog.count(*) AS tables, pg_catalog.sum(t.hot_bytes)::bigint AS hot_bytes,
        pg_catalog.sum(t.index_bytes)::bigint AS index_bytes, pg_catalog.sum(t.cold_bytes)::bigint AS cold_bytes,
        pg_catalog.sum(t.total_bytes)::bigint AS total_bytes
    FROM kalam.tables t GROUP BY t.schemaname;
COMMENT ON VIEW kalam.namespaces IS 'schemas with KalamDB tables: how many, and their sizes together';
GRANT SELECT ON kalam.namespaces TO PUBLIC;

-- Deleted rows

CREATE TABLE kalam.deleted_rows (
    relation oid NOT NULL,
    row_type oid NOT NULL,
    user_id bytea,
    deleted_at timestamptz NOT NULL,
    xid xid8 NOT NULL,
    shape bytea NOT NULL,
    rows bytea NOT NULL
) USING heap;
COMMENT ON TABLE kalam.deleted_rows IS 'rows that DELETE removed from KalamDB tables, until their retention ends; read with kalam.history';
-- lz4 costs a bulk delete a third of what the default method costs; not every server is built with it.
DO $$
BEGIN
    ALTER TABLE kalam.deleted_rows ALTER COLUMN rows SET COMPRESSION lz4;
EXCEPTION WHEN feature_not_supported THEN NULL;
END $$;
CREATE INDEX deleted_rows_by_relation ON kalam.deleted_rows (relation, deleted_at);

CREATE FUNCTION kalam.history(relation regclass, OUT deleted_at timestamptz, OUT xid xid8, OUT tid tid, OUT deleted_row jsonb)
    RETURNS SETOF record
    LANGUAGE c STRICT VOLATILE AS 'MODULE_PATHNAME', 'kalam_history';
COMMENT ON FUNCTION kalam.history(regclass) IS 'rows that DELETE removed from a KalamDB table, until their retention ends';

CREATE FUNCTION kalam.history_of(row_type anyelement) RETURNS SETOF anyelement
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'kalam_history_typed';
COMMENT ON FUNCTION kalam.history_of(anyelement) IS 'deleted rows of a KalamDB table as rows of it: kalam.history_of(NULL::app.messages)';

CREATE FUNCTION kalam.undelete(relation regclass, VARIADIC key "any") RETURNS jsonb
    LANGUAGE c STRICT VOLATILE AS 'MODULE_PATHNAME', 'kalam_undelete';
COMMENT ON FUNCTION kalam.undelete(regclass, "any") IS 'inserts the last deleted row with this primary key again, and returns it';

-- Segments

CREATE FUNCTION kalam.table_segments(relation regclass, OUT segment bigint, OUT user_id text, OUT location text, OUT path text,
        OUT rows bigint, OUT live_rows bigint, OUT bytes bigint, OUT hot_bytes bigint, OUT min_tid text, OUT max_tid text,
        OUT columns jsonb, OUT schema_version integer, OUT created_at timestamptz, OUT state text)
    RETURNS SETOF record
    LANGUAGE c STRICT VOLATILE ROWS 10 AS 'MODULE_PATHNAME', 'table_segments_wrapper';
COMMENT ON FUNCTION kalam.table_segments(regclass) IS
    'segments with the cold rows of a KalamDB table that the caller owns; of a user table, those with rows that the statement may see. columns: least and greatest value by attribute number';

CREATE FUNCTION kalam.rebuild_segments(relation regclass) RETURNS bigint
    LANGUAGE c STRICT VOLATILE AS 'MODULE_PATHNAME', 'rebuild_segments_wrapper';
COMMENT ON FUNCTION kalam.rebuild_segments(regclass) IS
    'makes segments known again whose files are in a storage of the database and which the engine does not know; returns how many';
REVOKE ALL ON FUNCTION kalam.rebuild_segments(regclass) FROM PUBLIC;

CREATE VIEW kalam.segments AS
    -- Materialized, so that no other relation reaches the function.
    WITH kalam AS MATERIALIZED (
        SELECT n.nspname, c.relname, c.oid
        FROM pg_catalog.pg_class c
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        JOIN pg_catalog.pg_am a ON a.oid = c.relam
        WHERE a.amhandler IN ('kalam.shared_handler(internal)'::pg_catalog.regprocedure,
                'kalam.user_handler(internal)'::pg_catalog.regprocedure)
            AND c.relkind IN ('r', 'm')
            AND pg_catalog.pg_has_role(c.relowner, 'USAGE')
    )
    SELECT k.nspname AS schemaname, k.relname AS tablename, s.*
    FROM kalam k
    CROSS JOIN LATERAL kalam.table_segments(k.oid) s;
COMMENT ON VIEW kalam.segments IS 'segments with the cold rows of the KalamDB tables that the user owns';
GRANT SELECT ON kalam.segments TO PUBLIC;

-- Identity

CREATE FUNCTION kalam.user_id() RETURNS text
    LANGUAGE c STABLE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'kalam_user_id';
COMMENT ON FUNCTION kalam.user_id() IS
    'user whose rows the session sees: the one logged in, else the setting kalam.user_id, else the session''s role';

-- Users

CREATE TABLE kalam.user_accounts (
    name text COLLATE "C" PRIMARY KEY,
    password_hash text,
    role text NOT NULL CHECK (role IN ('user', 'service', 'dba', 'system')),
    email text,
    created_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    deleted_at timestamptz
) USING heap;
COMMENT ON TABLE kalam.user_accounts IS 'users that KalamDB itself knows; read the view kalam.users';
SELECT pg_catalog.pg_extension_config_dump('kalam.user_accounts', '');

CREATE TABLE kalam.login_attempts (
    name text COLLATE "C" NOT NULL,
    at timestamptz NOT NULL,
    failures integer NOT NULL
) USING heap;
COMMENT ON TABLE kalam.login_attempts IS 'failures in a row after each login with a password; appended by the library itself';
CREATE INDEX login_attempts_name_at ON kalam.login_attempts (name, at);

CREATE VIEW kalam.users AS
    SELECT u.name, u.role, u.email, u.password_hash IS NOT NULL AS has_password, u.created_at, u.updated_at,
        (SELECT max(a.at) FROM kalam.login_attempts a WHERE a.name = u.name AND a.failures = 0) AS last_login_at,
        CASE WHEN l.failures >= 5 AND l.at > pg_catalog.clock_timestamp() - interval '15 minutes'
            THEN l.at + interval '15 minutes' END AS locked_until,
        u.deleted_at
    FROM kalam.user_accounts u
    LEFT JOIN LATERAL (
        SELECT a.at, a.failures FROM kalam.login_attempts a WHERE a.name = u.name ORDER BY a.at DESC LIMIT 1
    ) l ON true;
COMMENT ON VIEW kalam.users IS 'users that KalamDB itself knows, the dropped ones too';

CREATE FUNCTION kalam.create_user(name text, password text DEFAULT NULL, role text DEFAULT 'user', email text DEFAULT NULL)
    RETURNS void
    LANGUAGE c VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'create_user_wrapper';
COMMENT ON FUNCTION kalam.create_user(text, text, text, text) IS
    'makes a user; without a password it can log in with tokens only';
REVOKE ALL ON FUNCTION kalam.create_user(text, text, text, text) FROM PUBLIC;

CREATE FUNCTION kalam.alter_user(name text, password text DEFAULT NULL, role text DEFAULT NULL, email text DEFAULT NULL)
    RETURNS void
    LANGUAGE c VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'alter_user_wrapper';
COMMENT ON FUNCTION kalam.alter_user(text, text, text, text) IS
    'changes what is not null of a user; a new password ends a lock after failed logins';
REVOKE ALL ON FUNCTION kalam.alter_user(text, text, text, text) FROM PUBLIC;

CREATE FUNCTION kalam.drop_user(name text) RETURNS void
    LANGUAGE c VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'drop_user_wrapper';
COMMENT ON FUNCTION kalam.drop_user(text) IS 'drops a user; kalam.restore_user() brings it back until its rows are erased';
REVOKE ALL ON FUNCTION kalam.drop_user(text) FROM PUBLIC;

CREATE FUNCTION kalam.restore_user(name text) RETURNS void
    LANGUAGE c VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'restore_user_wrapper';
COMMENT ON FUNCTION kalam.restore_user(text) IS 'brings a dropped user back';
REVOKE ALL ON FUNCTION kalam.restore_user(text) FROM PUBLIC;

CREATE FUNCTION kalam.login(name text, password text) RETURNS text
    LANGUAGE c VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'login_wrapper';
COMMENT ON FUNCTION kalam.login(text, text) IS 'makes a user the effective one of this session, if the password is right';

CREATE FUNCTION kalam.logout() RETURNS void
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'logout_wrapper';
COMMENT ON FUNCTION kalam.logout() IS 'ends the login of this session';

-- Tokens

CREATE FUNCTION kalam.authenticate(jwt text) RETURNS text
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'authenticate_wrapper';
COMMENT ON FUNCTION kalam.authenticate(text) IS 'makes the subject of a JSON web token the effective user of this session';

CREATE FUNCTION kalam.issue_token_for(seconds double precision) RETURNS text
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'issue_token_wrapper';
COMMENT ON FUNCTION kalam.issue_token_for(double precision) IS 'a JSON web token for the effective user, valid for so many seconds';

CREATE FUNCTION kalam.issue_token(ttl interval DEFAULT '1 hour') RETURNS text
    LANGUAGE sql VOLATILE
    RETURN kalam.issue_token_for(pg_catalog.date_part('epoch', ttl));
COMMENT ON FUNCTION kalam.issue_token(interval) IS 'a JSON web token for the effective user, valid for at most 24 hours';

-- Roles and acting for others

CREATE FUNCTION kalam.install_roles() RETURNS void
    LANGUAGE c VOLATILE SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'install_roles_wrapper';
COMMENT ON FUNCTION kalam.install_roles() IS 'makes the roles kalam_user, kalam_service and kalam_dba and gives them their rights';
REVOKE ALL ON FUNCTION kalam.install_roles() FROM PUBLIC;

CREATE FUNCTION kalam.set_access_level(relation regclass, level text) RETURNS void
    LANGUAGE c VOLATILE SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'set_access_level_wrapper';
COMMENT ON FUNCTION kalam.set_access_level(regclass, text) IS
    'grants and revokes rights on a shared table: public, private, restricted or dba';

CREATE FUNCTION kalam.execute_as(name text, statement text) RETURNS SETOF json
    LANGUAGE c VOLATILE ROWS 100 AS 'MODULE_PATHNAME', 'execute_as_wrapper';
COMMENT ON FUNCTION kalam.execute_as(text, text) IS 'runs one query with the rows of another user; always audited';

-- Audit

CREATE TABLE kalam.audit_log (
    id bigint PRIMARY KEY,
    "time" timestamptz NOT NULL,
    actor text NOT NULL,
    subject text,
    action text NOT NULL,
    target text,
    details jsonb NOT NULL,
    address inet
) USING heap;
COMMENT ON TABLE kalam.audit_log IS 'logins, changes of users, acting for others, grants, exports and erasures; append-only';
SELECT pg_catalog.pg_extension_config_dump('kalam.audit_log', '');

CREATE FUNCTION kalam.refuse_change() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'refuse_change_wrapper';
COMMENT ON FUNCTION kalam.refuse_change() IS 'trigger that keeps a table append-only';
REVOKE ALL ON FUNCTION kalam.refuse_change() FROM PUBLIC;

CREATE TRIGGER append_only BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON kalam.audit_log
    FOR EACH STATEMENT EXECUTE FUNCTION kalam.refuse_change();
ALTER TABLE kalam.audit_log ENABLE ALWAYS TRIGGER append_only;

-- Identifiers

CREATE FUNCTION kalam.snowflake_id() RETURNS bigint
    LANGUAGE c VOLATILE PARALLEL SAFE AS 'MODULE_PATHNAME', 'snowflake_id_wrapper';
COMMENT ON FUNCTION kalam.snowflake_id() IS
    'identifier that is unique in the server and grows with time: 41 bits of milliseconds since 2024, 10 of kalam.worker_id, 12 of a sequence';

CREATE FUNCTION kalam.uuid_v7() RETURNS uuid
    LANGUAGE c VOLATILE PARALLEL SAFE AS 'MODULE_PATHNAME', 'uuid_v7_wrapper';
COMMENT ON FUNCTION kalam.uuid_v7() IS 'UUID of version 7: sorts by time';

CREATE FUNCTION kalam.ulid() RETURNS text
    LANGUAGE c VOLATILE PARALLEL SAFE AS 'MODULE_PATHNAME', 'ulid_wrapper';
COMMENT ON FUNCTION kalam.ulid() IS 'ULID: 26 characters that sort by time';

-- Messages

CREATE FUNCTION kalam.install_messages(schema text) RETURNS void
    LANGUAGE c VOLATILE SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'install_messages_wrapper';
COMMENT ON FUNCTION kalam.install_messages(text) IS 'makes the message store in a schema: a table and two functions';

-- Storages

CREATE TABLE kalam.storage_catalog (
    name text COLLATE "C" PRIMARY KEY,
    url text NOT NULL,
    options json NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
) USING heap;
COMMENT ON TABLE kalam.storage_catalog IS 'places for cold segments; read the view kalam.storages';
SELECT pg_catalog.pg_extension_config_dump('kalam.storage_catalog', $$WHERE name <> 'local'$$);
INSERT INTO kalam.storage_catalog (name, url) VALUES ('local', 'local:');

-- Not dumped: a dump would show them.
CREATE TABLE kalam.storage_secrets (
    name text COLLATE "C" PRIMARY KEY REFERENCES kalam.storage_catalog ON DELETE CASCADE,
    options json NOT NULL
) USING heap;
COMMENT ON TABLE kalam.storage_secrets IS 'credentials of storages, for the library itself only';

-- No foreign key: a parallel restore may bring this table before the other. Only the functions below change both.
CREATE TABLE kalam.user_storages (
    user_name text COLLATE "C" PRIMARY KEY,
    storage text COLLATE "C" NOT NULL
) USING heap;
COMMENT ON TABLE kalam.user_storages IS 'users whose cold rows go to a storage of their own; changed by kalam.set_user_storage()';
SELECT pg_catalog.pg_extension_config_dump('kalam.user_storages', '');

CREATE FUNCTION kalam.create_storage(name text, url text, options jsonb DEFAULT '{}') RETURNS void
    LANGUAGE c VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'create_storage_wrapper';
COMMENT ON FUNCTION kalam.create_storage(text, text, jsonb) IS
    'makes a place for cold segments: file:///directory, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix';
REVOKE ALL ON FUNCTION kalam.create_storage(text, text, jsonb) FROM PUBLIC;

CREATE FUNCTION kalam.alter_storage(name text, url text DEFAULT NULL, options jsonb DEFAULT NULL) RETURNS void
    LANGUAGE c VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'alter_storage_wrapper';
COMMENT ON FUNCTION kalam.alter_storage(text, text, jsonb) IS
    'changes what is not null of a storage; options that are given replace those of the same name, null removes one';
REVOKE ALL ON FUNCTION kalam.alter_storage(text, text, jsonb) FROM PUBLIC;

CREATE FUNCTION kalam.drop_storage(name text) RETURNS void
    LANGUAGE c VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'drop_storage_wrapper';
COMMENT ON FUNCTION kalam.drop_storage(text) IS 'drops a storage that no segment, table or user needs';
REVOKE ALL ON FUNCTION kalam.drop_storage(text) FROM PUBLIC;

CREATE FUNCTION kalam.storage_check(name text, extended boolean DEFAULT false,
        OUT status text, OUT milliseconds double precision, OUT operations jsonb, OUT error text)
    RETURNS SETOF record
    LANGUAGE c VOLATILE ROWS 1 SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'storage_check_wrapper';
COMMENT ON FUNCTION kalam.storage_check(text, boolean) IS
    'lists a storage; extended, also puts, gets and deletes an object: healthy, degraded or unreachable';
REVOKE ALL ON FUNCTION kalam.storage_check(text, boolean) FROM PUBLIC;

CREATE FUNCTION kalam.set_user_storage(user_name text, storage text) RETURNS void
    LANGUAGE c VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'set_user_storage_wrapper';
COMMENT ON FUNCTION kalam.set_user_storage(text, text) IS
    'sends a user''s rows to a storage when they become cold; null: to that of the table again';
REVOKE ALL ON FUNCTION kalam.set_user_storage(text, text) FROM PUBLIC;

CREATE VIEW kalam.storages AS
    SELECT c.name,
        CASE WHEN c.url LIKE 's3:%' THEN 's3' WHEN c.url LIKE 'gs:%' THEN 'gcs' WHEN c.url LIKE 'az:%' THEN 'azure'
            ELSE 'file' END AS kind,
        CASE WHEN r.may_change THEN c.url END AS url,
        CASE WHEN r.may_change THEN c.options::jsonb END AS options,
        CASE WHEN r.may_change THEN ARRAY(SELECT json_object_keys(s.options) FROM kalam.storage_secrets s WHERE s.name = c.name ORDER BY 1)
            END AS secrets,
        c.created_at, c.updated_at
    FROM kalam.storage_catalog c
    CROSS JOIN (SELECT pg_catalog.has_function_privilege('kalam.create_storage(text, text, jsonb)', 'EXECUTE') AS may_change) r;
COMMENT ON VIEW kalam.storages IS 'places for cold segments; URL and options for those who may change them, of secrets only which are set';
GRANT SELECT ON kalam.storages TO PUBLIC;

-- Ownership

CREATE FUNCTION kalam.user_usage(name text DEFAULT kalam.user_id(), OUT relation regclass, OUT rows bigint, OUT bytes bigint)
    RETURNS SETOF record
    LANGUAGE c VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = on
    AS 'MODULE_PATHNAME', 'user_usage_wrapper';
COMMENT ON FUNCTION kalam.user_usage(text) IS 'rows of a user in each user table, and their bytes before compression';

CREATE FUNCTION kalam.user_rows(name text DEFAULT kalam.user_id(), OUT relation regclass, OUT "row" json) RETURNS SETOF record
    LANGUAGE c VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = on
    AS 'MODULE_PATHNAME', 'user_rows_wrapper';
COMMENT ON FUNCTION kalam.user_rows(text) IS 'every row of a user in every user table; always audited';

CREATE TABLE kalam.user_exports (
    id bigint PRIMARY KEY,
    user_name text COLLATE "C" NOT NULL,
    storage text COLLATE "C" NOT NULL REFERENCES kalam.storage_catalog,
    requested_at timestamptz NOT NULL,
    finished_at timestamptz,
    files jsonb,
    dropped_at timestamptz
) USING heap;
COMMENT ON TABLE kalam.user_exports IS 'exports of users that are in a storage; appended by the library itself';

CREATE FUNCTION kalam.export_user(name text, storage text DEFAULT 'local', wait boolean DEFAULT false) RETURNS text
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'export_user_wrapper';
COMMENT ON FUNCTION kalam.export_user(text, text, boolean) IS
    'writes everything that a user owns to a storage, in a job whose id is returned; always audited';

CREATE FUNCTION kalam.drop_export(export bigint) RETURNS void
    LANGUAGE c STRICT VOLATILE AS 'MODULE_PATHNAME', 'drop_export_wrapper';
COMMENT ON FUNCTION kalam.drop_export(bigint) IS 'has the files of an export deleted; always audited';

CREATE TABLE kalam.user_erasure (
    id bigint PRIMARY KEY DEFAULT kalam.snowflake_id(),
    user_name text COLLATE "C" NOT NULL,
    requested_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    finished_at timestamptz,
    rows jsonb NOT NULL,
    kept_rows bigint NOT NULL,
    -- The number of the first transaction that began to write when the erasure was over.
    rows_before bigint,
    -- Until it is finished: segments that had the user's rows.
    proof jsonb
) USING heap;
CREATE INDEX user_erasure_unfinished ON kalam.user_erasure (id) WHERE finished_at IS NULL;
COMMENT ON TABLE kalam.user_erasure IS 'users that were erased; finished when nothing of them is left on disk';
SELECT pg_catalog.pg_extension_config_dump('kalam.user_erasure', '');

CREATE VIEW kalam.erasures AS
    SELECT e.user_name, e.requested_at, e.finished_at, e.rows, e.kept_rows,
        CASE WHEN e.finished_at IS NOT NULL THEN e.proof END AS proof
    FROM kalam.user_erasure e;
COMMENT ON VIEW kalam.erasures IS 'users that were erased: rows by table, and the proof when nothing of them is left on disk';

-- Triggers and foreign keys would get in the way: all tables lose the user's rows together.
CREATE FUNCTION kalam.erase_user(name text, OUT relation regclass, OUT rows bigint) RETURNS SETOF record
    LANGUAGE c VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = on
    SET session_replication_role = replica AS 'MODULE_PATHNAME', 'erase_user_wrapper';
COMMENT ON FUNCTION kalam.erase_user(text) IS
    'deletes every row of a user in every user table, and the account; returns the counts; a job removes what is left on disk';
REVOKE ALL ON FUNCTION kalam.erase_user(text) FROM PUBLIC;

CREATE FUNCTION kalam.clean_up_users(wait boolean DEFAULT false) RETURNS text
    LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'clean_up_users_wrapper';
COMMENT ON FUNCTION kalam.clean_up_users(boolean) IS
    'removes what erased users left on disk, and users dropped long enough ago, in a job whose id is returned';
REVOKE ALL ON FUNCTION kalam.clean_up_users(boolean) FROM PUBLIC;

-- User tables

CREATE FUNCTION kalam.scan_user() RETURNS text
    LANGUAGE c STABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'kalam_scan_user';
COMMENT ON FUNCTION kalam.scan_user() IS 'user whose rows the running statement sees; null when it sees those of all users';

CREATE FUNCTION kalam.table_users(relation regclass, OUT user_id text, OUT partition bigint, OUT blocks bigint)
    RETURNS SETOF record
    LANGUAGE c STRICT VOLATILE AS 'MODULE_PATHNAME', 'table_users_wrapper';
COMMENT ON FUNCTION kalam.table_users(regclass) IS 'users that have or had rows in a user table, and their blocks of 32 KB';
REVOKE ALL ON FUNCTION kalam.table_users(regclass) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION kalam.table_users(regclass) TO pg_monitor;

CREATE FUNCTION kalam.prepare_ddl() RETURNS event_trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'kalam_prepare_ddl';
COMMENT ON FUNCTION kalam.prepare_ddl() IS 'adds the column and the keys that make a table a user table';
REVOKE ALL ON FUNCTION kalam.prepare_ddl() FROM PUBLIC;

CREATE EVENT TRIGGER kalam_user_tables ON ddl_command_start
    WHEN TAG IN ('CREATE TABLE', 'ALTER TABLE', 'CREATE INDEX', 'CREATE TABLE AS', 'SELECT INTO', 'CREATE MATERIALIZED VIEW',
        'CREATE SCHEMA', 'ALTER DOMAIN', 'ALTER TYPE', 'CREATE FOREIGN TABLE', 'ALTER FOREIGN TABLE', 'ALTER MATERIALIZED VIEW', 'CREATE STATISTICS',
        'ALTER VIEW', 'CREATE RULE')
    EXECUTE FUNCTION kalam.prepare_ddl();
COMMENT ON EVENT TRIGGER kalam_user_tables IS 'user tables of KalamDB: a column "_user_id", and keys that begin with it';

CREATE FUNCTION kalam.complete_table() RETURNS event_trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'kalam_complete_table';
COMMENT ON FUNCTION kalam.complete_table() IS 'gives the column "_user_id" of a table that was made from a query its default';
REVOKE ALL ON FUNCTION kalam.complete_table() FROM PUBLIC;
CREATE EVENT TRIGGER kalam_new_user_tables ON ddl_command_end WHEN TAG IN ('CREATE TABLE AS', 'SELECT INTO')
    EXECUTE FUNCTION kalam.complete_table();
COMMENT ON EVENT TRIGGER kalam_new_user_tables IS 'user tables of KalamDB that were made from a query: the default of "_user_id"';

-- Table options

CREATE TABLE kalam.table_options (
    relation regclass NOT NULL,
    option text COLLATE "C" NOT NULL,
    value text NOT NULL,
    PRIMARY KEY (relation, option)
) USING heap;
COMMENT ON TABLE kalam.table_options IS 'options that KalamDB tables set themselves; changed by ALTER TABLE or kalam.set_options';
GRANT SELECT ON kalam.table_options TO PUBLIC;
SELECT pg_catalog.pg_extension_config_dump('kalam.table_options', 'WHERE relation IN (SELECT oid FROM pg_catalog.pg_class)');

CREATE FUNCTION kalam.normalize_option(option text, value text) RETURNS text
    LANGUAGE c STRICT STABLE AS 'MODULE_PATHNAME', 'normalize_option_wrapper';
COMMENT ON FUNCTION kalam.normalize_option(text, text) IS 'the value of a table option in its normal form';
REVOKE ALL ON FUNCTION kalam.normalize_option(text, text) FROM PUBLIC;

CREATE FUNCTION kalam.note_option_change(relation oid) RETURNS void
    LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'note_option_change_wrapper';
COMMENT ON FUNCTION kalam.note_option_change(oid) IS 'tells sessions and the engine that options of a table change';
REVOKE ALL ON FUNCTION kalam.note_option_change(oid) FROM PUBLIC;

-- Whatever changes the table, a restore too, changes it to values that mean something, and is noticed.
CREATE FUNCTION kalam.table_options_changed() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF TG_OP <> 'INSERT' THEN
        PERFORM kalam.note_option_change(OLD.relation);
    END IF;
    IF TG_OP = 'DELETE' THEN
        RETURN OLD;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_class WHERE oid = NEW.relation) THEN
        RETURN NULL;
    END IF;
    NEW.value := kalam.normalize_option(NEW.option, NEW.value);
    PERFORM kalam.note_option_change(NEW.relation);
    RETURN NEW;
END $$;
COMMENT ON FUNCTION kalam.table_options_changed() IS 'trigger of kalam.table_options';
REVOKE ALL ON FUNCTION kalam.table_options_changed() FROM PUBLIC;
CREATE TRIGGER table_options_changed BEFORE INSERT OR UPDATE OR DELETE ON kalam.table_options
    FOR EACH ROW EXECUTE FUNCTION kalam.table_options_changed();

CREATE FUNCTION kalam.forget_dropped_tables() RETURNS event_trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    DELETE FROM kalam.table_options
    WHERE relation IN (SELECT objid FROM pg_event_trigger_dropped_objects() WHERE classid = 'pg_class'::regclass AND objsubid = 0);
    DELETE FROM kalam.deleted_rows
    WHERE relation IN (SELECT objid FROM pg_event_trigger_dropped_objects() WHERE classid = 'pg_class'::regclass AND objsubid = 0);
END $$;
COMMENT ON FUNCTION kalam.forget_dropped_tables() IS 'event trigger that removes options and deleted rows of dropped tables';
REVOKE ALL ON FUNCTION kalam.forget_dropped_tables() FROM PUBLIC;
CREATE EVENT TRIGGER kalam_forget_dropped_tables ON sql_drop EXECUTE FUNCTION kalam.forget_dropped_tables();
COMMENT ON EVENT TRIGGER kalam_forget_dropped_tables IS 'removes options and deleted rows of dropped tables';

CREATE FUNCTION kalam.set_option_list(relation regclass, names text[], "values" text[]) RETURNS void
    LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'set_table_options_wrapper';
COMMENT ON FUNCTION kalam.set_option_list(regclass, text[], text[]) IS 'sets options of a table by name; null leaves one as it is';

CREATE FUNCTION kalam.set_options(relation regclass, flush_policy text DEFAULT NULL, flush_rows integer DEFAULT NULL,
        flush_interval integer DEFAULT NULL, storage text DEFAULT NULL, compression text DEFAULT NULL,
        row_group_rows integer DEFAULT NULL, bloom_columns text DEFAULT NULL, cluster_by text DEFAULT NULL,
        deleted_retention interval DEFAULT NULL, ttl interval DEFAULT NULL, max_bytes bigint DEFAULT NULL,
        encryption_key text DEFAULT NULL)
    RETURNS void LANGUAGE sql
BEGIN ATOMIC
    SELECT kalam.set_option_list(relation,
        ARRAY['flush_policy', 'flush_rows', 'flush_interval', 'storage', 'compression', 'row_group_rows', 'bloom_columns', 'cluster_by',
            'deleted_retention', 'ttl', 'max_bytes', 'encryption_key'],
        ARRAY[flush_policy, flush_rows::text, flush_interval::text, storage, compression, row_group_rows::text, bloom_columns,
            cluster_by, deleted_retention::text, ttl::text, max_bytes::text, encryption_key]);
END;
COMMENT ON FUNCTION kalam.set_options(regclass, text, integer, integer, text, text, integer, text, text, interval, interval, bigint, text)
    IS 'sets options of a KalamDB table';

CREATE FUNCTION kalam.reset_options(relation regclass, VARIADIC options text[] DEFAULT '{}') RETURNS void
    LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'reset_table_options_wrapper';
COMMENT ON FUNCTION kalam.reset_options(regclass, text[]) IS 'gives options of a KalamDB table back to their defaults, all if none is named';

CREATE FUNCTION kalam.effective_options(relation regclass, OUT option text, OUT value text, OUT source text) RETURNS SETOF record
    LANGUAGE c STRICT STABLE ROWS 12 AS 'MODULE_PATHNAME', 'effective_options_wrapper';
COMMENT ON FUNCTION kalam.effective_options(regclass) IS 'the options of a KalamDB table with their values, and whether the table sets them';

-- Jobs

CREATE TABLE kalam.job (
    id text COLLATE "C" PRIMARY KEY CHECK (id ~ '^[A-Z]{2}[0-9a-f]{12}$'),
    type text COLLATE "C" NOT NULL,
    state text COLLATE "C" NOT NULL DEFAULT 'new'
        CHECK (state IN ('new', 'queued', 'running', 'completed', 'failed', 'retrying', 'cancelled')),
    relation oid NOT NULL,
    schema_name text,
    table_name text,
    parameters jsonb NOT NULL,
    message text,
    error text,
    sqlstate text,
    idempotency_key text NOT NULL,
    automatic boolean NOT NULL,
    attempts integer NOT NULL DEFAULT 0,
    rows_done bigint,
    rows_total bigint,
    bytes_done bigint,
    bytes_total bigint,
    created_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    not_before timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    started_at timestamptz,
    finished_at timestamptz,
    node text,
    pid integer,
    requested_by oid NOT NULL
) USING heap;
COMMENT ON TABLE kalam.job IS 'jobs, written by job processes only; see the view kalam.jobs';
CREATE UNIQUE INDEX job_active_key ON kalam.job (idempotency_key) WHERE state IN ('new', 'queued', 'running', 'retrying');
CREATE INDEX job_active_created_at ON kalam.job (created_at, id) WHERE state IN ('new', 'queued', 'running', 'retrying');
CREATE INDEX job_finished_at ON kalam.job (finished_at);

CREATE FUNCTION kalam.job_progress(id text, OUT pid integer, OUT rows_done bigint, OUT rows_total bigint, OUT bytes_done bigint,
        OUT bytes_total bigint, OUT seconds double precision)
    RETURNS SETOF record
    LANGUAGE c STRICT VOLATILE ROWS 1 AS 'MODULE_PATHNAME', 'job_progress_wrapper';
COMMENT ON FUNCTION kalam.job_progress(text) IS 'what a running job has done so far; 0 in all is unknown';

CREATE VIEW kalam.jobs WITH (security_barrier) AS
    -- Materialized, so that no other job reaches the function.
    WITH visible AS MATERIALIZED (
        SELECT j.*
        FROM kalam.job j
        LEFT JOIN pg_catalog.pg_class c ON c.oid = j.relation
        WHERE pg_catalog.pg_has_role('pg_monitor', 'USAGE') OR pg_catalog.pg_has_role(j.requested_by, 'USAGE')
            OR pg_catalog.pg_has_role(c.relowner, 'USAGE')
    )
    SELECT v.id, v.type, v.state, v.schema_name AS schemaname, v.table_name AS tablename, v.relation, v.parameters, v.message,
        v.error, v.sqlstate, v.idempotency_key, v.automatic, v.attempts,
        coalesce(p.rows_done, v.rows_done) AS rows_done, coalesce(p.rows_total, v.rows_total) AS rows_total,
        coalesce(p.bytes_done, v.bytes_done) AS bytes_done, coalesce(p.bytes_total, v.bytes_total) AS bytes_total,
        CASE WHEN p.rows_done > 0 AND p.rows_total >= p.rows_done THEN pg_catalog.clock_timestamp()
            + pg_catalog.make_interval(secs => p.seconds * (p.rows_total - p.rows_done) / p.rows_done) END AS eta,
        v.created_at, v.started_at, v.finished_at, v.node, coalesce(p.pid, v.pid) AS pid,
        pg_catalog.pg_get_userbyid(v.requested_by) AS requested_by
    FROM visible v
    LEFT JOIN LATERAL kalam.job_progress(CASE v.state WHEN 'running' THEN v.id END) p ON true;
COMMENT ON VIEW kalam.jobs IS 'jobs that the user asked for, or on tables that the user owns; all of them for pg_monitor';
GRANT SELECT ON kalam.jobs TO PUBLIC;

CREATE VIEW kalam.progress AS
    SELECT j.id, j.type, j.schemaname, j.tablename, j.pid, j.rows_done, j.rows_total, j.bytes_done, j.bytes_total,
        pg_catalog.round(100.0 * j.rows_done / nullif(j.rows_total, 0), 1) AS percent,
        pg_catalog.clock_timestamp() - j.started_at AS elapsed, j.eta
    FROM kalam.jobs j
    WHERE j.state = 'running';
COMMENT ON VIEW kalam.progress IS 'jobs of kalam.jobs that run at the moment, and how far they are';
GRANT SELECT ON kalam.progress TO PUBLIC;

CREATE FUNCTION kalam.flush(relation regclass, wait boolean DEFAULT false) RETURNS text
    LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'job_flush_wrapper';
COMMENT ON FUNCTION kalam.flush(regclass, boolean) IS 'moves the rows of a table into segments, in a job whose id is returned';

CREATE FUNCTION kalam.flush_schema(schema text, wait boolean DEFAULT false) RETURNS text
    LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'job_flush_schema_wrapper';
COMMENT ON FUNCTION kalam.flush_schema(text, boolean) IS 'moves the rows of those tables of a schema into segments that the user owns';

CREATE FUNCTION kalam.flush_all(wait boolean DEFAULT false) RETURNS text
    LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'job_flush_all_wrapper';
COMMENT ON FUNCTION kalam.flush_all(boolean) IS 'moves the rows of those tables of the database into segments that the user owns';

CREATE FUNCTION kalam.compact(relation regclass, wait boolean DEFAULT false) RETURNS text
    LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'job_compact_wrapper';
COMMENT ON FUNCTION kalam.compact(regclass, boolean) IS 'merges the segments of a table, in a job whose id is returned';

CREATE FUNCTION kalam.job_cancel(id text) RETURNS boolean
    LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'job_cancel_wrapper';
COMMENT ON FUNCTION kalam.job_cancel(text) IS 'cancels a job; false if it had ended';

CREATE FUNCTION kalam.wait_for_job(id text, microseconds bigint) RETURNS text
    LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'job_wait_wrapper';
COMMENT ON FUNCTION kalam.wait_for_job(text, bigint) IS 'waits for the end of a job as kalam.job_wait does; a time below zero stands for no limit';

CREATE FUNCTION kalam.job_wait(id text, timeout interval DEFAULT NULL) RETURNS text LANGUAGE sql
RETURN kalam.wait_for_job(id, coalesce((extract(epoch FROM timeout) * 1000000)::bigint, -1));
COMMENT ON FUNCTION kalam.job_wait(text, interval) IS 'waits for the end of a job, at most for the time if there is one, and returns its state then';

-- Publications

CREATE FUNCTION kalam.check_publications() RETURNS event_trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'kalam_check_publications' SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION kalam.check_publications() IS 'refuses to publish KalamDB tables, whose changes are not decoded';
REVOKE ALL ON FUNCTION kalam.check_publications() FROM PUBLIC;

CREATE EVENT TRIGGER kalam_check_publications ON ddl_command_end
    WHEN TAG IN ('CREATE PUBLICATION', 'ALTER PUBLICATION', 'CREATE TABLE', 'CREATE TABLE AS', 'SELECT INTO', 'ALTER TABLE', 'CREATE SCHEMA')
    EXECUTE FUNCTION kalam.check_publications();
COMMENT ON EVENT TRIGGER kalam_check_publications IS 'refuses to publish KalamDB tables, whose changes are not decoded';
