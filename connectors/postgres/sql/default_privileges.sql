-- What future objects will grant: ALTER DEFAULT PRIVILEGES. An entry of a schema holds additions
-- only, one without a schema is the whole default.
SELECT CASE d.defaclobjtype WHEN 'r' THEN 'TABLES' WHEN 'S' THEN 'SEQUENCES'
            WHEN 'f' THEN 'FUNCTIONS' WHEN 'T' THEN 'TYPES' WHEN 'n' THEN 'SCHEMAS'
            WHEN 'L' THEN 'LARGE OBJECTS' ELSE d.defaclobjtype::text END AS kind,
       n.nspname::text AS schema, pg_catalog.quote_ident(n.nspname) AS printed_schema,
       c.rolname::text AS creator,
       CASE WHEN a.grantee = 0 THEN NULL
            ELSE coalesce(ge.rolname::text, 'oid:' || a.grantee) END AS grantee,
       coalesce(gr.rolname::text, 'oid:' || a.grantor) AS grantor,
       a.privilege_type AS privilege, a.is_grantable,
       CASE WHEN a.grantee = 0 THEN 'public' WHEN a.grantee = d.defaclrole THEN 'owner'
            ELSE 'direct' END AS mechanism
FROM pg_catalog.pg_default_acl d
CROSS JOIN LATERAL pg_catalog.aclexplode(d.defaclacl) AS a
LEFT JOIN pg_catalog.pg_namespace n ON n.oid = d.defaclnamespace
LEFT JOIN pg_catalog.pg_roles c ON c.oid = d.defaclrole
LEFT JOIN pg_catalog.pg_roles ge ON ge.oid = a.grantee
LEFT JOIN pg_catalog.pg_roles gr ON gr.oid = a.grantor
ORDER BY creator, schema NULLS FIRST, kind, grantee NULLS FIRST, privilege
