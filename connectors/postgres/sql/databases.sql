SELECT d.datname::text AS database, d.datallowconn AS is_open, o.rolname::text AS owner
FROM pg_catalog.pg_database d
LEFT JOIN pg_catalog.pg_roles o ON o.oid = d.datdba
ORDER BY d.datname
