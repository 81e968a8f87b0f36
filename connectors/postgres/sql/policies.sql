-- Row-level security: one row a policy and role; role NULL is PUBLIC. pg_get_expr() looks at the
-- latest state and gives NULL for a table that has gone meanwhile.
SELECT n.nspname::text AS schema, c.relname::text AS name,
       pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname) AS printed_name,
       p.polname::text AS policy,
       CASE p.polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE'
            WHEN 'd' THEN 'DELETE' ELSE 'ALL' END AS privilege,
       CASE WHEN u.role_oid = 0 THEN NULL
            ELSE coalesce(r.rolname::text, 'oid:' || u.role_oid) END AS grantee,
       p.polpermissive AS is_permissive,
       pg_catalog.pg_get_expr(p.polqual, p.polrelid) AS using_expression,
       pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid) AS check_expression,
       c.relrowsecurity AS row_security, c.relforcerowsecurity AS force_row_security
FROM pg_catalog.pg_policy p
JOIN pg_catalog.pg_class c ON c.oid = p.polrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
CROSS JOIN LATERAL unnest(p.polroles) AS u (role_oid)
LEFT JOIN pg_catalog.pg_roles r ON r.oid = u.role_oid
ORDER BY schema, name, policy, grantee NULLS FIRST
