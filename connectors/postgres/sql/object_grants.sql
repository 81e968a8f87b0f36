-- Grants on the objects of one database. Kinds are spelled as pgaudit spells them.
-- What PostgreSQL itself brought along is listed only where its ACL is not the initial one
-- (pg_init_privs): thousands of rows that never change would hide the one that somebody granted.
WITH object (kind, acl_kind, class_id, oid, sub_id, schema, name, printed_name, owner, acl,
             row_security, force_row_security) AS (
  SELECT 'SCHEMA', 'n', 'pg_catalog.pg_namespace'::regclass::oid, n.oid, 0,
         n.nspname::text, n.nspname::text, pg_catalog.quote_ident(n.nspname), n.nspowner, n.nspacl,
         NULL::bool, NULL::bool
  FROM pg_catalog.pg_namespace n
  UNION ALL
  SELECT CASE c.relkind WHEN 'r' THEN 'TABLE' WHEN 'p' THEN 'TABLE' WHEN 'v' THEN 'VIEW'
              WHEN 'm' THEN 'MATERIALIZED VIEW' WHEN 'f' THEN 'FOREIGN TABLE'
              WHEN 'S' THEN 'SEQUENCE' END,
         CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END,
         'pg_catalog.pg_class'::regclass::oid, c.oid, 0, n.nspname::text, c.relname::text,
         pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname),
         c.relowner, c.relacl, c.relrowsecurity, c.relforcerowsecurity
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
  UNION ALL
  -- Columns have no default ACL: no entry, no grant of their own.
  SELECT 'COLUMN', 'c', 'pg_catalog.pg_class'::regclass::oid, c.oid, a.attnum,
         n.nspname::text, c.relname::text,
         pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname)
           || '.' || pg_catalog.quote_ident(a.attname),
         c.relowner, a.attacl, NULL, NULL
  FROM pg_catalog.pg_attribute a
  JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  WHERE a.attacl IS NOT NULL AND NOT a.attisdropped
  UNION ALL
  SELECT CASE p.prokind WHEN 'p' THEN 'PROCEDURE' ELSE 'FUNCTION' END, 'f',
         'pg_catalog.pg_proc'::regclass::oid, p.oid, 0, n.nspname::text, p.proname::text,
         pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(p.proname) || '('
           || coalesce((
                SELECT string_agg(pg_catalog.format_type(u.type_oid, NULL), ',' ORDER BY u.place)
                FROM unnest(p.proargtypes) WITH ORDINALITY AS u (type_oid, place)
              ), '') || ')',
         p.proowner, p.proacl, NULL, NULL
  FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
  UNION ALL
  SELECT 'LANGUAGE', 'l', 'pg_catalog.pg_language'::regclass::oid, l.oid, 0,
         NULL, l.lanname::text, pg_catalog.quote_ident(l.lanname), l.lanowner, l.lanacl, NULL, NULL
  FROM pg_catalog.pg_language l
  UNION ALL
  -- Not the row types of tables and not array types: their use follows from the table or element.
  SELECT CASE t.typtype WHEN 'd' THEN 'DOMAIN' ELSE 'TYPE' END, 'T',
         'pg_catalog.pg_type'::regclass::oid, t.oid, 0, n.nspname::text, t.typname::text,
         pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(t.typname),
         t.typowner, t.typacl, NULL, NULL
  FROM pg_catalog.pg_type t
  JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
  LEFT JOIN pg_catalog.pg_class c ON c.oid = t.typrelid
  WHERE (t.typrelid = 0 OR c.relkind = 'c') AND t.typelem = 0
  UNION ALL
  SELECT 'FOREIGN DATA WRAPPER', 'F', 'pg_catalog.pg_foreign_data_wrapper'::regclass::oid, f.oid, 0,
         NULL, f.fdwname::text, pg_catalog.quote_ident(f.fdwname), f.fdwowner, f.fdwacl, NULL, NULL
  FROM pg_catalog.pg_foreign_data_wrapper f
  UNION ALL
  SELECT 'FOREIGN SERVER', 'S', 'pg_catalog.pg_foreign_server'::regclass::oid, s.oid, 0,
         NULL, s.srvname::text, pg_catalog.quote_ident(s.srvname), s.srvowner, s.srvacl, NULL, NULL
  FROM pg_catalog.pg_foreign_server s
  UNION ALL
  SELECT 'LARGE OBJECT', 'L', 'pg_catalog.pg_largeobject'::regclass::oid, l.oid, 0,
         NULL, l.oid::text, l.oid::text, l.lomowner, l.lomacl, NULL, NULL
  FROM pg_catalog.pg_largeobject_metadata l
)
SELECT o.kind, o.schema, o.name, o.printed_name,
       CASE WHEN a.grantee = 0 THEN NULL
            ELSE coalesce(ge.rolname::text, 'oid:' || a.grantee) END AS grantee,
       coalesce(gr.rolname::text, 'oid:' || a.grantor) AS grantor,
       a.privilege_type AS privilege, a.is_grantable,
       CASE WHEN a.grantee = 0 THEN 'public' WHEN a.grantee = o.owner THEN 'owner' ELSE 'direct' END
         AS mechanism,
       o.acl IS NULL AS is_default_acl, ow.rolname::text AS owner,
       o.row_security, o.force_row_security
FROM object o
LEFT JOIN pg_catalog.pg_init_privs i
  ON i.classoid = o.class_id AND i.objoid = o.oid AND i.objsubid = o.sub_id
CROSS JOIN LATERAL pg_catalog.aclexplode(
  coalesce(o.acl, CASE WHEN o.acl_kind <> 'c'
                       THEN pg_catalog.acldefault(o.acl_kind::"char", o.owner) END)
) AS a
LEFT JOIN pg_catalog.pg_roles ow ON ow.oid = o.owner
LEFT JOIN pg_catalog.pg_roles ge ON ge.oid = a.grantee
LEFT JOIN pg_catalog.pg_roles gr ON gr.oid = a.grantor
WHERE (coalesce(o.schema, '') !~ '^pg_(toast|temp)')
  AND (
    o.oid >= 16384
    OR (coalesce(o.schema, '') NOT IN ('pg_catalog', 'information_schema'))
    OR (
      o.acl IS NOT NULL
      AND o.acl IS DISTINCT FROM coalesce(
        i.initprivs,
        -- initdb fills pg_init_privs before it creates information_schema (16.14 and 18.4).
        CASE o.acl_kind
          WHEN 'r' THEN pg_catalog.acldefault('r', o.owner)
                        || pg_catalog.makeaclitem(0, o.owner, 'SELECT', false)
          WHEN 'n' THEN pg_catalog.acldefault('n', o.owner)
                        || pg_catalog.makeaclitem(0, o.owner, 'USAGE', false)
        END
      )
    )
  )
ORDER BY o.kind, o.schema NULLS FIRST, o.name, o.printed_name, grantee NULLS FIRST, privilege
