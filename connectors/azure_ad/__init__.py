"""Microsoft Entra ID: audit records, sign-ins and who may do what, through Microsoft Graph."""

from connectors.azure_ad.connector import AzureAdConnector
from connectors.azure_ad.settings import PLATFORM, Settings

__all__ = ["PLATFORM", "AzureAdConnector", "Settings"]
