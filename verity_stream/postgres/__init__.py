"""Verity's own Postgres: pools, migrations, and one owner a table."""
