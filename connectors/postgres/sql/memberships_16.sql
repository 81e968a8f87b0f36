-- Memberships from PostgreSQL 16 on: each grant says whether it is inherited and may be set to.
SELECT mr.rolname::text AS member, gr.rolname::text AS role, g.rolname::text AS grantor,
       m.admin_option, m.inherit_option, m.set_option
FROM pg_catalog.pg_auth_members m
JOIN pg_catalog.pg_roles mr ON mr.oid = m.member
JOIN pg_catalog.pg_roles gr ON gr.oid = m.roleid
LEFT JOIN pg_catalog.pg_roles g ON g.oid = m.grantor
ORDER BY 1, 2, 3
