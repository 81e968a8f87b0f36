"""Azure Synapse Analytics: audit events from Log Analytics, grants from three planes."""

from connectors.synapse.connector import SynapseConnector
from connectors.synapse.settings import PLATFORM, Settings

__all__ = ["PLATFORM", "Settings", "SynapseConnector"]
