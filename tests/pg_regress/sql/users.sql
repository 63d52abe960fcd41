-- Users of KalamDB: making, changing, dropping and locking them. On heap there
-- is nothing to show: see users_1.out.
SELECT current_setting('default_table_access_method') = 'heap' AS on_heap \gset
\if :on_heap
\quit
\endif
SELECT kalam.user_id() IS NOT NULL AS loaded;
SET kalam.bcrypt_cost = 9;
SET kalam.bcrypt_cost = 15;
SET kalam.bcrypt_cost = 10;
SET client_min_messages = warning;
SELECT kalam.install_roles();
SELECT kalam.install_roles();
RESET client_min_messages;
SELECT r.rolname, r.rolcanlogin, ARRAY(SELECT roleid::regrole::text FROM pg_auth_members WHERE member = r.oid) AS member_of
FROM pg_roles r WHERE rolname IN ('kalam_user', 'kalam_service', 'kalam_dba') ORDER BY 1;
CREATE ROLE regress_kalam_dba IN ROLE kalam_dba;
CREATE ROLE regress_kalam_service IN ROLE kalam_service;
CREATE ROLE regress_kalam_plain;

-- Passwords.
SELECT kalam.create_user('u1', 'short');
SELECT kalam.create_user('u1', repeat('x', 73));
SELECT kalam.create_user('u1', 'PassWord123');
SELECT kalam.create_user('u1', 'zzzzzzzzzz');
SELECT kalam.create_user('longer name', 'Longer Name');
SELECT kalam.create_user('u1', repeat('é', 37));
SELECT kalam.create_user('u72', repeat('y', 35) || repeat('z', 37));
SELECT kalam.login('u72', repeat('y', 35) || repeat('z', 37));
SELECT kalam.logout();
-- What bcrypt would ignore counts.
SELECT kalam.login('u72', repeat('y', 35) || repeat('z', 38));
SELECT kalam.login('u72', repeat('y', 35) || repeat('z', 36));

-- Names and roles.
SELECT kalam.create_user('', 'a good password');
SELECT kalam.create_user(NULL, 'a good password');
SELECT kalam.create_user(' u1', 'a good password');
SELECT kalam.create_user('u1', 'a good password', 'root');
SELECT kalam.create_user('u1', 'a good password', email => 'u1@example.org');
SELECT kalam.create_user('u1', 'a good password');
SELECT kalam.create_user('Zoë; DROP TABLE x --', 'a good password');
SELECT kalam.create_user('tokens only');
SELECT name, role, email, has_password, last_login_at IS NOT NULL AS logged_in, locked_until, deleted_at FROM kalam.users WHERE name NOT LIKE 'regress%' ORDER BY name COLLATE "C";
SELECT count(*) FROM kalam.user_accounts WHERE password_hash NOT LIKE '$2b$10$%';

-- Who may.
SET ROLE regress_kalam_plain;
SELECT kalam.create_user('u2', 'a good password');
SELECT * FROM kalam.users;
SELECT password_hash FROM kalam.user_accounts;
SELECT * FROM kalam.login_attempts;
SELECT * FROM kalam.audit_log;
SET ROLE regress_kalam_service;
SELECT kalam.create_user('u2', 'a good password');
SELECT count(*) FROM kalam.users;
SET ROLE regress_kalam_dba;
SELECT kalam.create_user('u2', 'a good password');
SELECT kalam.create_user('d2', 'a good password', 'dba');
SELECT kalam.create_user('s2', 'a good password', 'system');
SELECT kalam.create_user('regress_kalam_plain', 'a good password');
SELECT count(*) > 0 AS readable FROM kalam.users;
SELECT password_hash FROM kalam.user_accounts;
RESET ROLE;
SELECT kalam.create_user('sys', 'a good password', 'system');
SET ROLE regress_kalam_dba;
SELECT kalam.alter_user('sys', password => 'another password');
SELECT kalam.drop_user('sys');
SELECT kalam.alter_user('u2', role => 'system');
-- Whoever acts for a user may do what the user may.
SELECT kalam.login('u2', 'a good password');
SELECT kalam.create_user('u3', 'a good password');
SELECT kalam.logout();
SELECT kalam.login('d2', 'a good password');
SELECT kalam.create_user('u3', 'a good password');
SELECT kalam.logout();
RESET ROLE;
SET kalam.user_id = 'u3';
SELECT kalam.drop_user('u2');
RESET kalam.user_id;

-- Every failure looks the same.
SELECT kalam.login('u1', 'wrong password');
SELECT kalam.login('nobody', 'a good password');
SELECT kalam.login('tokens only', 'a good password');
SELECT kalam.login('u1', '');
SELECT kalam.login('u1', NULL);
SELECT kalam.login(NULL, NULL);
SELECT kalam.login('', '');
SELECT kalam.login(repeat('long', 1000), 'a good password') FROM generate_series(1, 1);
SELECT kalam.user_id() = session_user AS is_role;
SELECT kalam.login('u1', 'a good password');
SELECT kalam.logout();
SELECT kalam.logout();

-- Changes.
SELECT kalam.alter_user('u1', email => 'other@example.org');
SELECT kalam.alter_user('u1', password => 'a new password', role => 'service');
SELECT kalam.login('u1', 'a good password');
SELECT kalam.login('u1', 'a new password');
SELECT kalam.logout();
SELECT kalam.alter_user('nobody', email => 'x');
SELECT role, email FROM kalam.users WHERE name = 'u1';
BEGIN;
SELECT kalam.alter_user('u1', role => 'dba');
ROLLBACK;
SELECT role, email FROM kalam.users WHERE name = 'u1';

-- Dropped and restored.
SELECT kalam.drop_user('u1');
SELECT kalam.drop_user('u1');
SELECT kalam.login('u1', 'a new password');
SELECT kalam.alter_user('u1', email => 'x');
SELECT kalam.create_user('u1', 'a good password');
SELECT kalam.restore_user('u1');
SELECT kalam.restore_user('u1');
SELECT kalam.restore_user('nobody');
SELECT kalam.login('u1', 'a new password');
SELECT kalam.logout();

-- Five failures lock, and what becomes of their transactions does not matter.
SELECT kalam.login('u1', 'wrong 1');
BEGIN;
SELECT kalam.login('u1', 'wrong 2');
ROLLBACK;
BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
SELECT count(*) FROM kalam.users WHERE name = 'u1';
SAVEPOINT s;
SELECT kalam.login('u1', 'wrong 3');
ROLLBACK TO s;
COMMIT;
SELECT locked_until FROM kalam.users WHERE name = 'u1';
DO $$
BEGIN
    PERFORM kalam.login('u1', 'wrong 4');
EXCEPTION WHEN invalid_password THEN
    RAISE NOTICE '% %', SQLSTATE, SQLERRM;
END $$;
SELECT outcome('SELECT kalam.login(''u1'', ''wrong 5'')');
SELECT kalam.login('u1', 'a new password');
SELECT locked_until BETWEEN now() + '14 minutes' AND now() + '15 minutes' AS locked FROM kalam.users WHERE name = 'u1';
-- Others are not locked with it; a dba ends a lock.
SELECT kalam.login('u2', 'a good password');
SELECT kalam.logout();
SELECT kalam.alter_user('u1', password => 'a third password');
SELECT kalam.login('u1', 'a third password');
SELECT kalam.logout();
-- A lock ends after its time, and counting begins anew.
SELECT outcome('SELECT kalam.login(''u3'', ''wrong'')') FROM generate_series(1, 6);
SELECT outcome('SELECT kalam.login(''u3'', ''a good password'')');
UPDATE kalam.login_attempts SET at = at - interval '16 minutes' WHERE name = 'u3';
SELECT outcome('SELECT kalam.login(''u3'', ''wrong'')');
SELECT kalam.login('u3', 'a good password');
SELECT kalam.logout();

-- Eight sessions that guess at once have five tries together.
CREATE EXTENSION dblink;
SELECT kalam.create_user('u4', 'a good password');
SELECT count(dblink_connect('c' || n, format('host=%s port=%s dbname=%s options=-ckalam.bcrypt_cost=10', split_part(current_setting('unix_socket_directories'), ',', 1), current_setting('port'), current_database()))) FROM generate_series(1, 8) n;
SELECT sum(dblink_send_query('c' || n, 'SELECT kalam.login(''u4'', ''wrong'')')) FROM generate_series(1, 8) n;
SET client_min_messages = error;
SELECT count(r) FROM generate_series(1, 8) n LEFT JOIN LATERAL dblink_get_result('c' || n, false) AS r (name text) ON true;
RESET client_min_messages;
SELECT details->>'reason' AS reason, count(*) FROM kalam.audit_log WHERE subject = 'u4' AND action = 'login_failed' GROUP BY 1 ORDER BY 1;
-- And eight that know the password all get in.
SELECT count(dblink_disconnect('c' || n)) FROM generate_series(1, 8) n;
SELECT kalam.alter_user('u4', password => 'another password');
SELECT count(dblink_connect('c' || n, format('host=%s port=%s dbname=%s options=-ckalam.bcrypt_cost=10', split_part(current_setting('unix_socket_directories'), ',', 1), current_setting('port'), current_database()))) FROM generate_series(1, 8) n;
SELECT sum(dblink_send_query('c' || n, 'SELECT kalam.login(''u4'', ''another password'')')) FROM generate_series(1, 8) n;
SELECT count(name), min(name) FROM generate_series(1, 8) n, dblink_get_result('c' || n) AS r (name text);
SELECT count(dblink_disconnect('c' || n)) FROM generate_series(1, 8) n;
DROP EXTENSION dblink;

-- A success is in a transaction that may be undone, its trace is not.
BEGIN;
SELECT kalam.login('u3', 'a good password');
ROLLBACK;
SELECT kalam.user_id() = session_user AS is_role;

SELECT action, subject, details->>'reason' AS reason, count(*) FROM kalam.audit_log WHERE action LIKE 'log%' AND subject IN ('u1', 'u3', 'nobody', '')
GROUP BY 1, 2, 3 ORDER BY 1, 2, 3;
SELECT actor = session_user AS by_us, subject, action, details - 'role' AS details FROM kalam.audit_log WHERE action LIKE '%user' AND subject NOT LIKE 'regress%' ORDER BY id;
SELECT max(length(subject)) FROM kalam.audit_log;
DROP OWNED BY regress_kalam_dba, regress_kalam_service, regress_kalam_plain;
DROP ROLE regress_kalam_dba, regress_kalam_service, regress_kalam_plain;
