"""Who opened which Lagoon box, and who may."""

from lagoon_connector.connector import LagoonConnector

__all__ = ["LagoonConnector"]
