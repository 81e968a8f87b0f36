"""HR systems: who joined, moved and left, from BambooHR or any SCIM 2.0 source."""

from connectors.hr.connector import HrConnector
from connectors.hr.settings import PLATFORM, Settings

__all__ = ["PLATFORM", "HrConnector", "Settings"]
