"""Databricks: audit events from `system.access.audit`, grants from Unity Catalog and ACLs."""

from connectors.databricks.connector import DatabricksConnector
from connectors.databricks.settings import PLATFORM, Settings

__all__ = ["PLATFORM", "DatabricksConnector", "Settings"]
