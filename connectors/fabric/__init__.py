"""Microsoft Fabric and Power BI: activity events of a tenant, and who may do what in it."""

from connectors.fabric.connector import FabricConnector
from connectors.fabric.settings import PLATFORM, Settings

__all__ = ["PLATFORM", "FabricConnector", "Settings"]
