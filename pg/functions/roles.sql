DO $kalam$
DECLARE
    one record;
BEGIN
    FOR one IN SELECT * FROM (VALUES ('kalam_user'), ('kalam_service'), ('kalam_dba')) AS v (name) LOOP
        IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles r WHERE r.rolname OPERATOR(pg_catalog.=) one.name) THEN
            EXECUTE pg_catalog.format('CREATE ROLE %I NOLOGIN', one.name);
        END IF;
    END LOOP;
    GRANT kalam_user TO kalam_service;
    GRANT kalam_service TO kalam_dba;
    -- Whatever this version has of what each role may call and read.
    FOR one IN
        SELECT p.oid::pg_catalog.regprocedure AS name, v.role
        FROM (VALUES
            ('flush', 'kalam_service'), ('flush_schema', 'kalam_service'), ('flush_all', 'kalam_service'),
            ('compact', 'kalam_service'), ('job_wait', 'kalam_service'),
            ('create_user', 'kalam_dba'), ('alter_user', 'kalam_dba'), ('drop_user', 'kalam_dba'),
            ('restore_user', 'kalam_dba'), ('erase_user', 'kalam_dba'), ('clean_up_users', 'kalam_dba'), ('job_cancel', 'kalam_dba'), ('create_storage', 'kalam_dba'),
            ('alter_storage', 'kalam_dba'), ('drop_storage', 'kalam_dba'), ('storage_check', 'kalam_dba'),
            ('set_user_storage', 'kalam_dba'), ('checkpoint', 'kalam_dba'), ('stats', 'kalam_dba')
        ) AS v (function, role)
        JOIN pg_catalog.pg_proc p ON p.proname OPERATOR(pg_catalog.=) v.function::pg_catalog.name
        WHERE p.pronamespace OPERATOR(pg_catalog.=) 'kalam'::pg_catalog.regnamespace
    LOOP
        EXECUTE pg_catalog.format('GRANT EXECUTE ON FUNCTION %s TO %I', one.name, one.role);
    END LOOP;
    FOR one IN
        SELECT c.oid::pg_catalog.regclass AS name
        FROM (VALUES ('users'), ('audit_log'), ('jobs'), ('storages'), ('segments'), ('erasures')) AS v (relation)
        JOIN pg_catalog.pg_class c ON c.relname OPERATOR(pg_catalog.=) v.relation::pg_catalog.name
        WHERE c.relnamespace OPERATOR(pg_catalog.=) 'kalam'::pg_catalog.regnamespace
    LOOP
        EXECUTE pg_catalog.format('GRANT SELECT ON %s TO kalam_dba', one.name);
    END LOOP;
END $kalam$
