"""PostgreSQL: audit events from its log, grants from its catalogs."""

from connectors.postgres.connector import PostgresConnector
from connectors.postgres.settings import PLATFORM, Settings

__all__ = ["PLATFORM", "PostgresConnector", "Settings"]
