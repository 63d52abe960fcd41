-- Logins with tokens, honest and hostile. On heap there is nothing to show:
-- see tokens_1.out.
SELECT current_setting('default_table_access_method') = 'heap' AS on_heap \gset
\if :on_heap
\quit
\endif
CREATE EXTENSION pgcrypto;
CREATE SCHEMA tokens;
SET search_path = tokens, public;
SET kalam.bcrypt_cost = 10;
SELECT kalam.create_user('token_user', 'a good password');
SELECT kalam.create_user('token_dba', role => 'dba');
SELECT kalam.create_user('token_gone');
SELECT kalam.drop_user('token_gone');

-- Makes a token; whatever is null is left out.
CREATE FUNCTION base64url(bytes bytea) RETURNS text LANGUAGE sql AS $$
    SELECT translate(encode(bytes, 'base64'), E'+/=\n', '-_')
$$;
CREATE FUNCTION signed(body text, secret text, header text DEFAULT '{"alg":"HS256","typ":"JWT"}') RETURNS text LANGUAGE sql AS $$
    SELECT input || '.' || base64url(hmac(input, secret, 'sha256'))
    FROM (SELECT base64url(convert_to(header, 'UTF8')) || '.' || base64url(convert_to(body, 'UTF8')) AS input) i
$$;
CREATE FUNCTION claims(sub text DEFAULT 'token_user', role text DEFAULT 'user', iss text DEFAULT 'kalamdb',
    exp bigint DEFAULT extract(epoch FROM now() + '1 hour')::bigint) RETURNS text LANGUAGE sql AS $$
    SELECT jsonb_strip_nulls(jsonb_build_object('sub', sub, 'role', role, 'iss', iss, 'exp', exp))::text
$$;
-- What came of a token, and who the session is afterwards.
CREATE FUNCTION tried(token text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    detail text;
BEGIN
    PERFORM kalam.authenticate(token);
    RETURN 'accepted for ' || kalam.user_id();
EXCEPTION WHEN invalid_password THEN
    GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL;
    RETURN SQLSTATE || ' ' || SQLERRM || ': ' || detail || CASE WHEN kalam.user_id() = session_user THEN '' ELSE ' BUT LOGGED IN' END;
END $$;

-- Keys come from files.
SELECT kalam.authenticate('x.y.z');
\set secret abcdefghijklmnopqrstuvwxyz0123456789
\set rsa '-----BEGIN PUBLIC KEY-----|MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAtbmKuEjNMS27q1W6u9Kl|2JWQ5ZL4mJgI8+ZVLMT8fYqDBiMATB3yWEHZpAt5Xz4bfnmRv2UGWyqlEsm8AJRC|EHxilSn8TIJlZPt4ESFyAPvoQHrEIdTU7/L/Zxm1qRXrmq0lieRvGASyMgzQvP47|uCnOyV0g0Eo1psTO4cDWrjM6YbSMooyMRojngRYeZuO9TpN3Knz9wIcOHEBUEtKY|uUk2CpM2QXIAfPgvgUKsHOloe9k2bxSCBI1959Uw9IiCYxbNudsEZvs3BYX08gAJ|bp1DnfKh2kGTTbE2S1RDtfhxv4hWGzrp+MNDBXyumvZr8uOw3Mrc7Dydn4ijV4dF|cQIDAQAB|-----END PUBLIC KEY-----|'
\set ec '-----BEGIN PUBLIC KEY-----|MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEjIRNUHADyYt+WFfaBMvjwx4fAqBB|xL4M1LkL15StCzcmQHMCfN5Ovys6nYYbSj1+sMUA45cBvf6qlrLoAmR/iQ==|-----END PUBLIC KEY-----|'
-- Writes a file of a mode on the server.
CREATE PROCEDURE write_file(path text, mode text, content text) LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('COPY (SELECT unnest(string_to_array(%L, ''|''))) TO PROGRAM %L', content,
        format('rm -f "%s" && umask 077 && cat > "%s" && chmod %s "%s"', path, path, mode, path));
END $$;
CALL write_file('regress_kalam_secret', '0600', :'secret');
CALL write_file('regress_kalam_open', '0604', :'secret');
CALL write_file('regress_kalam_short', '0600', left(:'secret', 31));
CALL write_file('regress_kalam_rsa', '0644', :'rsa');
CALL write_file('regress_kalam_ec', '0644', :'ec');
\set VERBOSITY terse
SET kalam.jwt_secret_file = 'regress_kalam_missing';
SELECT kalam.authenticate('x.y.z');
SET kalam.jwt_secret_file = 'regress_kalam_open';
SELECT kalam.authenticate('x.y.z');
SET kalam.jwt_secret_file = 'regress_kalam_short';
SELECT kalam.authenticate('x.y.z');
SET kalam.jwt_secret_file = 'base';
SELECT kalam.authenticate('x.y.z');
SET kalam.jwt_secret_file = '';
SET kalam.jwt_public_key_file = 'regress_kalam_secret';
SELECT kalam.authenticate('x.y.z');
SET kalam.jwt_public_key_file = '';
\set VERBOSITY default
CREATE ROLE regress_kalam_nobody;
SET ROLE regress_kalam_nobody;
SET kalam.jwt_secret_file = 'regress_kalam_short';
SHOW kalam.jwt_secret_file;
SELECT name FROM pg_settings WHERE name LIKE 'kalam.jwt%' ORDER BY 1;
RESET ROLE;
DROP ROLE regress_kalam_nobody;

-- HS256.
SET kalam.jwt_secret_file = 'regress_kalam_secret';
SELECT tried(signed(claims(), :'secret'));
SELECT kalam.user_id();
SELECT kalam.logout();
SELECT tried(signed(claims('token_dba', 'dba'), :'secret'));
SELECT kalam.logout();
-- The stored role counts, whatever lower one the token names.
SELECT tried(signed(claims('token_dba', 'user'), :'secret'));
SELECT kalam.logout();

-- Hostile tokens.
SELECT tried('');
SELECT tried(NULL);
SELECT tried('x');
SELECT tried('..');
SELECT tried(signed(claims(), 'abcdefghijklmnopqrstuvwxyz012345678X'));
SELECT tried(signed(claims(), ''));
SELECT tried(signed(claims(), :'secret') || 'A');
SELECT tried(left(signed(claims(), :'secret'), -1));
SELECT tried(split_part(t, '.', 1) || '.' || base64url(convert_to(claims('token_dba', 'dba'), 'UTF8')) || '.' || split_part(t, '.', 3)) FROM signed(claims(), :'secret') t;
SELECT tried(split_part(t, '.', 1) || '.' || split_part(t, '.', 2) || '.') FROM signed(claims(), :'secret') t;
SELECT tried(split_part(t, '.', 1) || '.' || split_part(t, '.', 2)) FROM signed(claims(), :'secret') t;
SELECT tried(base64url('{"alg":"none","typ":"JWT"}') || '.' || base64url(convert_to(claims(), 'UTF8')) || '.');
SELECT tried(signed(claims(), :'secret', '{"alg":"none"}'));
SELECT tried(signed(claims(), :'secret', '{"alg":"None"}'));
SELECT tried(signed(claims(), :'secret', '{"alg":"HS512"}'));
SELECT tried(signed(claims(), :'secret', '{"alg":"RS256"}'));
SELECT tried(signed(claims(), :'secret', '{"typ":"JWT"}'));
SELECT tried(signed(claims(exp => extract(epoch FROM now())::bigint - 2), :'secret'));
SELECT tried(signed(claims(exp => NULL), :'secret'));
SELECT tried(signed('{"sub":"token_user","role":"user","iss":"kalamdb","exp":"never"}', :'secret'));
SELECT tried(signed(claims(iss => 'somebody else'), :'secret'));
SELECT tried(signed(claims(iss => NULL), :'secret'));
SELECT tried(signed(claims(role => NULL), :'secret'));
SELECT tried(signed(claims(role => 'root'), :'secret'));
SELECT tried(signed(claims(role => 'service'), :'secret'));
SELECT tried(signed(claims(role => 'system'), :'secret'));
SELECT tried(signed(claims(sub => NULL), :'secret'));
SELECT tried(signed(claims(sub => ''), :'secret'));
SELECT tried(signed(claims(sub => 'token_none'), :'secret'));
SELECT tried(signed(claims(sub => 'token_gone'), :'secret'));
SELECT tried(signed(claims(sub => session_user), :'secret'));
SELECT tried(signed('{"sub":["token_user"],"role":"user","iss":"kalamdb","exp":4102444800}', :'secret'));
SELECT tried(signed('[]', :'secret'));
SELECT tried(signed('not json', :'secret'));
SELECT tried(signed((claims()::jsonb || '{"nbf": 4102444800}')::text, :'secret'));
SELECT tried(signed((claims()::jsonb || '{"aud": "another"}')::text, :'secret'));
SELECT tried(signed(claims(sub => repeat('x', 20000)), :'secret'));
SELECT kalam.user_id() = session_user AS is_role;

-- An audience, once there is one, must be named.
SET kalam.jwt_audience = 'chat';
SELECT tried(signed(claims(), :'secret'));
SELECT tried(signed((claims()::jsonb || '{"aud": "another"}')::text, :'secret'));
SELECT tried(signed((claims()::jsonb || '{"aud": ["another", "chat"]}')::text, :'secret'));
SELECT kalam.logout();
RESET kalam.jwt_audience;

-- RS256 and ES256: the key's kind decides, and a public key is no secret.
\set rs eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJ0b2tlbl91c2VyIiwicm9sZSI6InVzZXIiLCJpc3MiOiJrYWxhbWRiIiwiZXhwIjo0MTAyNDQ0ODAwfQ.AE36kWuZLveBLdDjPPuDK0cLuHAR2Jh0LbIpLEqYzTHvhChxe1Z22QYscReKla7A4FJLwnqgJNN1BSVssoOtVpbGY8rZ3PtQlDE5W5FCJuL6iYoNSLGfd5Ovc2MygDZD-NuZSpChLKesCd7K7iApO8500G7RXzcDbnWZzYf5b2mOA9ovyr0SyuQJAoPGvPj_4SgAvjxa0HUoktmU5bDDWbMs__zc3Lzui4SrhyBXnmbrm4EABXlFntmmzRQaxmkXnG6nBGQ4PcIP1YRNG_862TGh8EZRD_FOQI0FZRGovr5r8nL19hrnD56OuXf0Qhtqv93x2aAO1Be0lcGAF6Lxlw
\set es eyJhbGciOiJFUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJ0b2tlbl91c2VyIiwicm9sZSI6InVzZXIiLCJpc3MiOiJrYWxhbWRiIiwiZXhwIjo0MTAyNDQ0ODAwfQ.M4fGi43cu3ryNP_hNcDMB6AtSdEGRX3aANYhlJp_7-lz_Ya9clD52Ppb4ejDjrVWuV6ALUxQvA5g-Bkt_FUNSw
SELECT tried(:'rs');
SET kalam.jwt_public_key_file = 'regress_kalam_rsa';
SELECT tried(:'rs');
SELECT kalam.logout();
SELECT tried(:'es');
SELECT tried(left(:'rs', -8) || 'AAAAAAAA');
SELECT tried(signed(claims('token_dba', 'dba'), replace(:'rsa', '|', E'\n')));
SELECT tried(signed(claims('token_dba', 'dba'), rtrim(replace(:'rsa', '|', E'\n'), E'\n')));
SELECT tried(signed(claims(), :'secret'));
SELECT kalam.logout();
SET kalam.jwt_secret_file = '';
SELECT tried(signed(claims(), :'secret'));
SELECT tried(signed(claims('token_dba', 'dba'), replace(:'rsa', '|', E'\n')));
SET kalam.jwt_public_key_file = 'regress_kalam_ec';
SELECT tried(:'es');
SELECT kalam.logout();
SELECT tried(:'rs');
SELECT tried(left(:'es', -8) || 'AAAAAAAA');
SET kalam.jwt_public_key_file = '';

-- Issued tokens.
SELECT kalam.login('token_user', 'a good password');
SELECT kalam.issue_token();
SET kalam.jwt_secret_file = 'regress_kalam_secret';
SELECT kalam.issue_token() AS token \gset
SELECT kalam.logout();
SELECT tried(:'token');
SELECT kalam.logout();
SELECT convert_from(decode(rpad(translate(split_part(:'token', '.', 2), '-_', '+/'), 4 * ceil(length(split_part(:'token', '.', 2)) / 4.0)::int, '='), 'base64'), 'UTF8')::jsonb - '{exp,iat}'::text[];
SET kalam.user_id = 'token_user';
SELECT kalam.issue_token('0 s');
SELECT kalam.issue_token('-1 h');
SELECT kalam.issue_token('24 hours 1 second');
SELECT kalam.issue_token(NULL);
SELECT kalam.issue_token_for('NaN');
SELECT kalam.issue_token('24 hours') IS NOT NULL AS issued;
RESET kalam.user_id;
SELECT outcome('SELECT kalam.issue_token()');
-- A dropped user has neither a session nor tokens any more.
SELECT tried(:'token');
SET kalam.bcrypt_cost = 10;
BEGIN;
SELECT kalam.user_id();
UPDATE kalam.user_accounts SET deleted_at = now() WHERE name = 'token_user';
COMMIT;
SELECT kalam.user_id();
SELECT tried(:'token');
SELECT kalam.logout();
SELECT tried(:'token');
SELECT kalam.restore_user('token_user');
-- A token does not prolong itself.
SELECT extract(epoch FROM now() + '5 minutes')::bigint AS soon \gset
SELECT tried(signed(claims(exp => :soon), :'secret'));
SELECT (convert_from(decode(rpad(translate(split_part(t, '.', 2), '-_', '+/'), 4 * ceil(length(split_part(t, '.', 2)) / 4.0)::int, '='), 'base64'), 'UTF8')::jsonb->>'exp')::bigint <= :soon AS not_later FROM kalam.issue_token('1 hour') t;
SELECT kalam.logout();
-- A login ends with its token.
BEGIN;
SELECT tried(signed(claims(exp => extract(epoch FROM clock_timestamp())::bigint + 2), :'secret'));
DO $$
BEGIN
    LOOP
        EXIT WHEN extract(epoch FROM clock_timestamp()) > split_part(current_setting('kalam.session_login'), ':', 3)::bigint;
    END LOOP;
END $$;
SAVEPOINT s;
SELECT kalam.user_id();
ROLLBACK TO s;
SELECT kalam.logout();
SELECT kalam.user_id() = session_user AS is_role;
COMMIT;

SELECT subject, regexp_replace(regexp_replace(details->>'reason', ' JSON error.*', ' JSON error'), 'Base64 error.*|InvalidSignature', 'signature') AS reason, count(*)
FROM kalam.audit_log WHERE action = 'authenticate_failed' GROUP BY 1, 2 ORDER BY 1, 2;
SELECT action, subject, count(*) FROM kalam.audit_log WHERE action IN ('authenticate', 'issue_token') GROUP BY 1, 2 ORDER BY 1, 2;
COPY (SELECT 1) TO PROGRAM 'cat > /dev/null; rm -f regress_kalam_secret regress_kalam_open regress_kalam_short regress_kalam_rsa regress_kalam_ec';
SET client_min_messages = warning;
DROP SCHEMA tokens CASCADE;
DROP EXTENSION pgcrypto;
