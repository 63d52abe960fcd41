-- Who a session acts for, and what changes it. On heap there is nothing to
-- show: see identity_1.out.
SELECT current_setting('default_table_access_method') = 'heap' AS on_heap \gset
\if :on_heap
\quit
\endif
CREATE ROLE regress_kalam_ann;
CREATE ROLE regress_kalam_gate;
SELECT kalam.user_id() = session_user AS is_role;

-- The session's own role, which SET ROLE changes and a SECURITY DEFINER
-- function does not.
SET ROLE regress_kalam_ann;
SELECT kalam.user_id();
RESET ROLE;
CREATE FUNCTION definer() RETURNS text LANGUAGE sql SECURITY DEFINER RETURN kalam.user_id();
ALTER FUNCTION definer() OWNER TO regress_kalam_ann;
SELECT definer() = session_user AS is_caller;
SET SESSION AUTHORIZATION regress_kalam_gate;
SELECT kalam.user_id(), definer();

-- The setting is for superusers and whoever was granted it.
SET kalam.user_id = 'bob';
SELECT set_config('kalam.user_id', 'bob', false);
CREATE FUNCTION pg_temp.sets() RETURNS text LANGUAGE sql SET kalam.user_id = 'bob' RETURN kalam.user_id();
RESET SESSION AUTHORIZATION;
GRANT SET ON PARAMETER kalam.user_id TO regress_kalam_gate;
SET SESSION AUTHORIZATION regress_kalam_gate;
BEGIN;
SET LOCAL kalam.user_id = 'bob';
SELECT kalam.user_id();
SAVEPOINT s;
SET LOCAL kalam.user_id = 'carol';
SELECT kalam.user_id(), definer();
ROLLBACK TO s;
SELECT kalam.user_id();
COMMIT;
SELECT kalam.user_id();
SET kalam.user_id = 'dave';
SET ROLE regress_kalam_gate;
SELECT kalam.user_id();
DISCARD ALL;
SELECT session_user, kalam.user_id() = session_user AS is_role;

-- It is read when the statement runs, not when it is planned.
SET plan_cache_mode = force_generic_plan;
PREPARE who AS SELECT kalam.user_id();
SET kalam.user_id = 'bob';
EXECUTE who;
SET kalam.user_id = 'carol';
EXECUTE who;
RESET kalam.user_id;
RESET plan_cache_mode;

-- Names that cannot be.
SET kalam.user_id = E'two\nlines';
SET kalam.user_id = ' padded';
SELECT set_config('kalam.user_id', repeat('x', 256), false);
SELECT length(set_config('kalam.user_id', repeat('x', 255), false));
SET kalam.user_id = '';
SELECT kalam.user_id() = session_user AS is_role;

-- Nobody sets the login but the library itself, by whatever way.
SET kalam.session_login = '10:password:0:bob';
SELECT set_config('kalam.session_login', '10:password:0:bob', true);
ALTER ROLE regress_kalam_ann SET kalam.session_login = '10:password:0:bob';
ALTER SYSTEM SET kalam.session_login = '10:password:0:bob';
CREATE FUNCTION pg_temp.sets() RETURNS text LANGUAGE sql SET kalam.session_login = '10:password:0:bob' RETURN kalam.user_id();
SET SESSION AUTHORIZATION regress_kalam_gate;
SET kalam.session_login = '';
SET kalam.session_login = '10:password:0:bob';
RESET SESSION AUTHORIZATION;

-- Parallel workers act for the same user.
CREATE TABLE many AS SELECT i FROM generate_series(1, 20000) i;
ALTER TABLE many SET (parallel_workers = 2);
SET kalam.bcrypt_cost = 10;
SELECT kalam.create_user('regress_par', 'a long password');
BEGIN;
ALTER FUNCTION kalam.user_id() PARALLEL SAFE;
SET LOCAL parallel_setup_cost = 0;
SET LOCAL parallel_tuple_cost = 0;
SET LOCAL min_parallel_table_scan_size = 0;
SELECT plan_has('SELECT kalam.user_id(), count(*) FROM many WHERE i > 0 GROUP BY 1', 'Gather');
SET LOCAL parallel_leader_participation = off;
SET LOCAL kalam.user_id = 'bob';
SELECT max(kalam.user_id() || i % 1), count(*) FROM many;
SELECT kalam.login('regress_par', 'a long password');
SELECT max(kalam.user_id() || i % 1), count(*) FROM many;
ROLLBACK;

-- A login lasts as long as a session setting does.
SELECT kalam.user_id() = session_user AS is_role;
BEGIN;
SELECT kalam.login('regress_par', 'a long password');
ROLLBACK;
SELECT kalam.user_id() = session_user AS is_role;
SELECT kalam.login('regress_par', 'a long password');
SET kalam.user_id = 'bob';
SET ROLE regress_kalam_ann;
SELECT kalam.user_id(), definer();
RESET ROLE;
BEGIN;
SET LOCAL SESSION AUTHORIZATION regress_kalam_ann;
SELECT kalam.user_id();
RESET kalam.user_id;
ROLLBACK;
SELECT kalam.user_id();
BEGIN;
SELECT kalam.logout();
SELECT kalam.user_id();
ROLLBACK;
SELECT kalam.user_id();
RESET kalam.user_id;
RESET SESSION AUTHORIZATION;
SELECT kalam.user_id() = session_user AS is_role;
SELECT kalam.login('regress_par', 'a long password');
SELECT set_config('session_authorization', 'regress_kalam_ann', false);
SELECT kalam.user_id();
RESET SESSION AUTHORIZATION;
SELECT kalam.login('regress_par', 'a long password');
RESET ALL;
SELECT kalam.user_id() = session_user AS is_role;
SET kalam.bcrypt_cost = 10;
SELECT kalam.login('regress_par', 'a long password');
DISCARD ALL;
SELECT kalam.user_id() = session_user AS is_role;
SELECT kalam.logout();
DROP FUNCTION definer();
REVOKE SET ON PARAMETER kalam.user_id FROM regress_kalam_gate;
DROP ROLE regress_kalam_ann, regress_kalam_gate;
