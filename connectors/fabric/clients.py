"""The HTTP clients of one tenant: one for each operation that has a limit of its own."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from connectors._azure.sign_in import SignIn
from connectors.fabric.settings import PLATFORM, Settings
from verity_sdk.context import Context
from verity_sdk.errors import Denied
from verity_sdk.http import HttpClient, shared_budget

HOUR = timedelta(hours=1)
TOKEN_PATH = "/oauth2/v2.0/token"  # noqa: S105 - a path

# MS Learn "Admin API tenant settings" and the Power BI swagger, read 2026-11-24. The setting was
# called "Allow service principals to use read-only admin APIs" before, and still is in places.
POWER_BI_HINT = (
    'In the Fabric admin portal, tenant settings, Admin API settings: allow "Service principals '
    'can access read-only admin APIs" (also called "Allow service principals to use read-only '
    "admin APIs\") for a security group that the application's service principal is in; a change "
    "takes up to 15 minutes or more. In the Azure portal the application must have no Power BI "
    "permission that needs admin consent (Tenant.Read.All and the like): with one, it is refused."
)
FABRIC_HINT = (
    f"{POWER_BI_HINT} For the Fabric admin API also, under Developer settings, the tenant setting "
    "that lets service principals use Fabric APIs."
)
GRAPH_HINT = (
    "expand_groups needs Microsoft Graph's application permission GroupMember.Read.All with admin "
    "consent (and Member.Read.Hidden for groups with hidden membership)."
)

Api = Literal["power_bi", "fabric", "graph"]
_HINTS: dict[Api, str] = {
    "power_bi": POWER_BI_HINT,
    "fabric": FABRIC_HINT,
    "graph": GRAPH_HINT,
}


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation of an API, and its limit.

    Attributes:
        requests_per_hour: None where none is documented.
        concurrent: At most so many at once; None where none is documented.
    """

    name: str
    api: Api
    requests_per_hour: int | None = None
    concurrent: int | None = None


# Limits: Power BI swagger, read 2026-11-24.
MODIFIED_WORKSPACES = Operation("workspaces/modified", "power_bi", 30)
START_SCAN = Operation("workspaces/getInfo", "power_bi", 500, concurrent=16)
SCAN_STATUS = Operation("workspaces/scanStatus", "power_bi", 10_000)
SCAN_RESULT = Operation("workspaces/scanResult", "power_bi", 500)
GRAPH = Operation("groups/transitiveMembers", "graph")


def activity_events(settings: Settings) -> Operation:
    """200 requests an hour (Power BI swagger)."""
    return Operation("activityevents", "power_bi", settings.activity_requests_per_hour)


def admin(name: str, settings: Settings) -> Operation:
    """An operation of the Fabric admin API: each says 200 requests an hour of itself.

    UNCONFIRMED: whether they share one limit. If they do, 429 and its Retry-After tell.
    """
    return Operation(name, "fabric", settings.admin_requests_per_hour)


def refusal(error: Denied, api: Api) -> Denied:
    """The same refusal, and what to grant where the API itself refused the identity."""
    text = str(error)
    is_of_identity = ": 401" in text or ": 403" in text
    if not is_of_identity or TOKEN_PATH in text:
        return error
    return Denied(f"{text}. {_HINTS[api]}")


class Clients:
    """The clients, made when they are first asked for.

    Args:
        context: The connector's; those who ask through the clients go by it, too.
    """

    def __init__(self, settings: Settings, context: Context) -> None:
        self.context = context
        self._settings = settings
        self._sign_in = SignIn(settings.identity, settings.http, platform=PLATFORM, context=context)
        self._clients: dict[str, HttpClient] = {}

    def of(self, operation: Operation) -> HttpClient:
        """The client whose budget is that of the operation.

        Raises:
            Misconfigured: azure-identity is asked for and not installed.
        """
        if operation.name not in self._clients:
            self._clients[operation.name] = self._make(operation)
        return self._clients[operation.name]

    async def close(self) -> None:
        """Close all connections; a client that is asked for afterwards is a new one."""
        self._clients = {}
        await self._sign_in.close()

    def _make(self, operation: Operation) -> HttpClient:
        settings = self._settings
        budget = None
        if operation.requests_per_hour is not None:
            budget = shared_budget(
                (PLATFORM, settings.tenant_id, operation.name),
                requests=operation.requests_per_hour,
                per=HOUR,
                concurrent=operation.concurrent,
                share=settings.http.budget_share,
            )
        url, scope, hosts = {
            "power_bi": (
                settings.power_bi_url,
                settings.power_bi_scope,
                settings.continuation_hosts,
            ),
            "fabric": (settings.fabric_url, settings.fabric_scope, settings.continuation_hosts),
            "graph": (settings.graph_url, settings.graph_scope, []),
        }[operation.api]
        return self._sign_in.client(url, scope, hosts=hosts, budget=budget)
