-- Memberships up to PostgreSQL 15: whether privileges are inherited is up to the member.
SELECT mr.rolname::text AS member, gr.rolname::text AS role, g.rolname::text AS grantor,
       m.admin_option, mr.rolinherit AS inherit_option, true AS set_option
FROM pg_catalog.pg_auth_members m
JOIN pg_catalog.pg_roles mr ON mr.oid = m.member
JOIN pg_catalog.pg_roles gr ON gr.oid = m.roleid
LEFT JOIN pg_catalog.pg_roles g ON g.oid = m.grantor
ORDER BY 1, 2, 3
