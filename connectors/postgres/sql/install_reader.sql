-- What Verity's PostgreSQL connector needs on the server that it observes. Run it as a superuser in
-- the database that the connector's dsn names. Running it again is safe.
--
-- The role below gets to read the server's jsonlog files and nothing else: the functions run with
-- the rights of their owner, accept file names only (no folder, nothing but *.json) and refuse all
-- else. Direct grants on pg_read_binary_file would open every file of the data directory.

BEGIN;

-- The name travels as a value, never as part of a program text.
SELECT pg_catalog.set_config('verity.collector', {role_literal}, true);

DO $verity$
BEGIN
  -- A schema that somebody else prepared could swap the functions for others.
  IF EXISTS (
    SELECT FROM pg_catalog.pg_namespace n
    JOIN pg_catalog.pg_roles r ON r.oid = n.nspowner
    WHERE n.nspname = 'audit_reader' AND NOT r.rolsuper
  ) THEN
    RAISE EXCEPTION 'schema audit_reader belongs to a role that is no superuser: remove it first';
  END IF;
  IF NOT EXISTS (
    SELECT FROM pg_catalog.pg_roles
    WHERE rolname = pg_catalog.current_setting('verity.collector')
  ) THEN
    -- No password: set one with \password, or let pg_hba.conf identify the role another way.
    EXECUTE pg_catalog.format(
      'CREATE ROLE %I LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION',
      pg_catalog.current_setting('verity.collector')
    );
  END IF;
END
$verity$;

CREATE SCHEMA IF NOT EXISTS audit_reader;

CREATE OR REPLACE FUNCTION audit_reader.list_logs()
RETURNS TABLE (name text, size bigint, modification timestamptz)
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $verity$
  SELECT l.name, l.size, l.modification
  FROM pg_catalog.pg_ls_logdir() AS l
  WHERE l.name ~ '^[A-Za-z0-9_.-]+\.json$'
$verity$;

CREATE OR REPLACE FUNCTION audit_reader.read_log(file_name text, file_offset bigint, length bigint)
RETURNS bytea
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $verity$
BEGIN
  IF file_name IS NULL OR file_name !~ '^[A-Za-z0-9_.-]+\.json$' OR file_name LIKE '%..%' THEN
    RAISE EXCEPTION 'not the name of a log file' USING ERRCODE = 'invalid_parameter_value';
  END IF;
  IF file_offset IS NULL OR file_offset < 0 OR length IS NULL OR length < 0 THEN
    RAISE EXCEPTION 'offset and length are counts of bytes' USING ERRCODE = 'invalid_parameter_value';
  END IF;
  -- Bytes, because a piece of the file may end inside a character. NULL where there is no file.
  RETURN pg_catalog.pg_read_binary_file(
    pg_catalog.current_setting('log_directory') || '/' || file_name,
    file_offset, least(length, 8388608), true
  );
END
$verity$;

CREATE OR REPLACE FUNCTION audit_reader.log_filename()
RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $verity$ SELECT pg_catalog.current_setting('log_filename') $verity$;

REVOKE ALL ON SCHEMA audit_reader FROM PUBLIC;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA audit_reader FROM PUBLIC;
GRANT USAGE ON SCHEMA audit_reader TO {role};
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA audit_reader TO {role};

-- Without this every read of the log writes lines that the next read finds.
ALTER ROLE {role} SET log_statement = 'none';
ALTER ROLE {role} SET log_min_duration_statement = -1;
ALTER ROLE {role} SET pgaudit.log = 'none';

COMMIT;
