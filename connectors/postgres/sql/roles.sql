-- Roles and their attributes; shared by the whole server, readable by every role.
SELECT r.rolname::text AS role, r.oid::bigint AS oid, r.oid < 16384 AS is_predefined,
       r.rolsuper, r.rolbypassrls, r.rolcreaterole, r.rolcreatedb, r.rolreplication,
       r.rolcanlogin, r.rolinherit, r.rolconnlimit, r.rolvaliduntil::text AS rolvaliduntil
FROM pg_catalog.pg_roles r
ORDER BY r.rolname
