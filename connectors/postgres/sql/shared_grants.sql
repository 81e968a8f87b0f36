-- Grants on what the whole server shares: databases, tablespaces, configuration parameters.
-- A missing ACL is not "nobody": it stands for the built-in default, which acldefault() spells out.
WITH object (kind, acl_kind, name, owner, acl, is_default_acl) AS (
  SELECT 'DATABASE', 'd', d.datname::text, d.datdba, d.datacl, d.datacl IS NULL
  FROM pg_catalog.pg_database d
  UNION ALL
  SELECT 'TABLESPACE', 't', t.spcname::text, t.spcowner, t.spcacl, t.spcacl IS NULL
  FROM pg_catalog.pg_tablespace t
  UNION ALL
  -- Parameters have no owner and no default: a row exists where something was granted.
  SELECT 'PARAMETER', 'p', p.parname, NULL, p.paracl, false
  FROM pg_catalog.pg_parameter_acl p
)
SELECT o.kind, o.name,
       CASE WHEN o.kind = 'TABLESPACE' THEN pg_catalog.quote_ident(o.name) ELSE o.name END
         AS printed_name,
       CASE WHEN a.grantee = 0 THEN NULL
            ELSE coalesce(ge.rolname::text, 'oid:' || a.grantee) END AS grantee,
       coalesce(gr.rolname::text, 'oid:' || a.grantor) AS grantor,
       a.privilege_type AS privilege, a.is_grantable,
       CASE WHEN a.grantee = 0 THEN 'public' WHEN a.grantee = o.owner THEN 'owner' ELSE 'direct' END
         AS mechanism,
       o.is_default_acl, ow.rolname::text AS owner
FROM object o
CROSS JOIN LATERAL pg_catalog.aclexplode(
  coalesce(o.acl, pg_catalog.acldefault(o.acl_kind::"char", o.owner))
) AS a
LEFT JOIN pg_catalog.pg_roles ow ON ow.oid = o.owner
LEFT JOIN pg_catalog.pg_roles ge ON ge.oid = a.grantee
LEFT JOIN pg_catalog.pg_roles gr ON gr.oid = a.grantor
ORDER BY o.kind, o.name, 4 NULLS FIRST, privilege
