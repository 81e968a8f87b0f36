"""What is asked of the four endpoints, and how their listings are read to the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Any

from connectors._azure.log_analytics import workspace_of
from connectors._azure.sign_in import SignIn
from connectors.synapse.settings import CATEGORIES, PLATFORM, Settings
from verity_sdk.context import Context
from verity_sdk.errors import Denied, Misconfigured, Unavailable
from verity_sdk.http import Answer, follow
from verity_sdk.times import format_utc

SYNAPSE_VERSION = "2020-12-01"
AUTHORIZATION_VERSION = "2022-04-01"
ACTIVITY_VERSION = "2015-04-01"

PAGES_MAX = 10_000
RESTARTS_MAX = 3
"""A listing whose page token ends is read from its beginning, so many times."""

SYNAPSE_ROLE = (
    "the identity needs a Synapse role on the workspace, such as Synapse User "
    "(Synapse Studio, Manage, Access control)"
)
AZURE_ROLE = "the identity needs Azure's role Reader on the workspace"


class Api:
    """The endpoints of one workspace, each with a token of its own.

    Args:
        settings: Endpoints, credential, timeouts.
        context: The connector's.
    """

    def __init__(self, settings: Settings, context: Context) -> None:
        self._settings = settings
        self._context = context
        self._sign_in = sign_in = SignIn(
            settings.identity, settings.http, platform=PLATFORM, context=context
        )
        self.log_analytics = workspace_of(
            sign_in,
            url=settings.log_analytics_url,
            scope=settings.log_analytics_scope,
            workspace_id=settings.workspace_id,
            wait=settings.query_timeout,
            setup=setup_of(settings),
        )
        self._synapse = sign_in.client(settings.workspace_url, settings.synapse_scope)
        self._management = sign_in.client(settings.management_url, settings.management_scope)

    async def sign_in(self) -> None:
        """See that the credential is good for every endpoint that a snapshot needs.

        Raises:
            Denied: It is refused.
            Unavailable: The issuer does not answer.
        """
        settings = self._settings
        if settings.synapse_rbac:
            await self._sign_in.authorizer(settings.synapse_scope).authorization()
        if settings.azure_rbac:
            await self._sign_in.authorizer(settings.management_scope).authorization()

    async def synapse_roles(self) -> list[Any]:
        """The role definitions of the workspace; one answer holds them all."""
        answer = await self._synapse.get(
            f"{self._settings.workspace_url}/roleDefinitions",
            params={"api-version": SYNAPSE_VERSION},
        )
        return _list(answer.json(), "Synapse roleDefinitions")

    async def synapse_scopes(self) -> list[str]:
        """The scopes at which roles of the workspace can be assigned."""
        answer = await self._synapse.get(
            f"{self._settings.workspace_url}/rbacScopes", params={"api-version": SYNAPSE_VERSION}
        )
        found = _list(answer.json(), "Synapse rbacScopes")
        return [scope for scope in found if isinstance(scope, str) and scope]

    async def synapse_assignments(self, scope: str | None = None) -> list[Any]:
        """All role assignments of the workspace, or those at one scope.

        The next page is asked for by the answer's header `x-ms-continuation`, sent back as a
        header of the request.

        Raises:
            Unavailable: A page failed or a token came twice; there is no listing.
            Denied: The identity may not read them.
        """
        url = f"{self._settings.workspace_url}/roleAssignments"
        params = {"api-version": SYNAPSE_VERSION} | ({"scope": scope} if scope else {})

        async def listing() -> list[Any]:
            found: list[Any] = []
            headers: dict[str, str] = {}
            seen: set[str] = set()
            for _ in range(PAGES_MAX):
                answer = await self._synapse.get(
                    url, params=params, headers=headers, expect=(400,) if headers else ()
                )
                if answer.status == 400:
                    raise _TokenEnded(_shown(answer))
                found += _values(answer.json(), "Synapse roleAssignments")
                token = answer.headers.get("x-ms-continuation")
                if not token:
                    return found
                if token in seen:
                    raise Unavailable(f"{url}: a continuation came twice; the listing has no end")
                seen.add(token)
                headers = {"x-ms-continuation": token}
            raise Unavailable(f"{url}: more than {PAGES_MAX} pages")

        return await _restarted(listing)

    async def azure_roles(self) -> list[Any]:
        """The definitions of Azure's roles that can be assigned at the workspace."""
        return await self._authorization("roleDefinitions", {})

    async def azure_assignments(self) -> list[Any]:
        """Azure's role assignments at, above and below the workspace, each once.

        `atScope()` gives those at or above the scope; what the answer without a filter holds
        ("apply to a scope") is said to include those below, and is not said to include those
        above. So both are asked for (2022-04-01 swagger; MS Learn "List Azure role assignments
        using the REST API"; read 2026-11-24).
        """
        both = await asyncio.gather(
            self._authorization("roleAssignments", {"$filter": "atScope()"}),
            self._authorization("roleAssignments", {}),
        )
        return _unique(both)

    async def azure_denials(self) -> list[Any]:
        """Azure's deny assignments at, above and below the workspace, each once."""
        both = await asyncio.gather(
            self._authorization("denyAssignments", {"$filter": "atScope()"}),
            self._authorization("denyAssignments", {}),
        )
        return _unique(both)

    async def activities(self, from_at: datetime, to_at: datetime) -> list[Any]:
        """The activity log's records of a closed window, complete.

        The filter knows only a few patterns, and "no other syntax is allowed" (2015-04-01
        swagger): times, then one of resource group, resource, provider, correlation.
        """
        settings = self._settings
        about = (
            f"resourceUri eq '{settings.resource_id}'"
            if settings.activity_log_by == "resource"
            else f"resourceGroupName eq '{settings.resource_group}'"
        )
        return await self._azure(
            f"{settings.management_url}/subscriptions/{settings.subscription}"
            "/providers/Microsoft.Insights/eventtypes/management/values",
            {
                "api-version": ACTIVITY_VERSION,
                "$filter": f"eventTimestamp ge '{format_utc(from_at)}'"
                f" and eventTimestamp le '{format_utc(to_at)}' and {about}",
            },
            "activity log",
        )

    async def check_synapse(self) -> None:
        """See that the workspace's role assignments can be read.

        Raises:
            Denied: They can't, for want of a Synapse role.
            Misconfigured: There is no such workspace.
        """
        settings = self._settings
        answer = await self._synapse.get(
            f"{settings.workspace_url}/roleAssignments",
            params={"api-version": SYNAPSE_VERSION},
            expect=(403, 404),
        )
        if answer.status == 403:
            raise Denied(f"Synapse workspace {settings.workspace}: {_shown(answer)}{SYNAPSE_ROLE}")
        if answer.status == 404:
            raise Misconfigured(
                f"Synapse workspace {settings.workspace}: {_shown(answer)}there is no such "
                "workspace at this endpoint; see resource_id and synapse_url"
            )

    async def check_azure(self) -> None:
        """See that Azure's role assignments, and the activity log if it is on, can be read.

        Raises:
            Denied: They can't, for want of a role.
            Misconfigured: There is no such resource.
        """
        settings = self._settings
        if settings.azure_rbac:
            url, params = self._authorization_request("roleAssignments", {"$filter": "atScope()"})
            answer = await self._management.get(url, params=params, expect=(403, 404))
            self._refuse(answer, AZURE_ROLE)
        if settings.activity_log:
            at = self._context.clock()
            try:
                await self.activities(at, at)
            except Denied as error:
                where = "the resource group" if settings.activity_log_by != "resource" else "it"
                raise Denied(
                    f"{error}: the activity log needs Azure's role Reader or Monitoring Reader "
                    f"on {where} (Microsoft.Insights/eventtypes/values/read)"
                ) from error

    async def close(self) -> None:
        """Close all connections."""
        await self._sign_in.close()

    def sql_credential(self) -> dict[str, str]:
        """What a SQL connection string says of the identity; holds the secret, never to be shown.

        Raises:
            Misconfigured: The secret can't stand in a connection string.
        """
        settings = self._settings
        if settings.credential == "azure":
            return {"Authentication": "ActiveDirectoryDefault"}
        secret = settings.client_secret.get_secret_value() if settings.client_secret else ""
        return {
            "Authentication": "ActiveDirectoryServicePrincipal",
            "UID": settings.client_id,
            "PWD": "{" + secret.replace("}", "}}") + "}",
        }

    def _refuse(self, answer: Answer, role: str) -> None:
        if answer.status == 403:
            raise Denied(f"Azure: {_shown(answer)}{role}")
        if answer.status == 404:
            raise Misconfigured(
                f"Azure: {_shown(answer)}there is no such resource; see resource_id"
            )

    def _authorization_request(
        self, kind: str, params: dict[str, str]
    ) -> tuple[str, dict[str, str]]:
        settings = self._settings
        url = (
            f"{settings.management_url}{settings.resource_id}"
            f"/providers/Microsoft.Authorization/{kind}"
        )
        return url, {"api-version": AUTHORIZATION_VERSION, **params}

    async def _authorization(self, kind: str, params: dict[str, str]) -> list[Any]:
        url, params = self._authorization_request(kind, params)
        return await self._azure(url, params, kind)

    async def _azure(self, url: str, params: dict[str, str], what: str) -> list[Any]:
        def next_url(answer: Answer) -> str | None:
            if answer.status != 200:
                return None
            body = answer.json()
            link = body.get("nextLink") if isinstance(body, dict) else None
            return link if isinstance(link, str) and link else None

        async def listing() -> list[Any]:
            found: list[Any] = []
            is_first = True
            pages = follow(
                self._management, url, next_url, params=params, expect=(400,), pages_max=PAGES_MAX
            )
            async for answer in pages:
                if answer.status == 400 and is_first:
                    raise Denied(f"{url}: {_shown(answer)}the request was refused")
                if answer.status == 400:
                    raise _TokenEnded(_shown(answer))
                found += _values(answer.json(), what)
                is_first = False
            return found

        return await _restarted(listing)


def setup_of(settings: Settings) -> str:
    """What an operator must do for the tables to exist."""
    categories = ", ".join(CATEGORIES[table] for table in settings.tables)
    return (
        f"Add a diagnostic setting to Synapse workspace {settings.workspace} that sends the "
        f"categories {categories} to this Log Analytics workspace"
    )


class _TokenEnded(Exception):
    """A page token is no longer taken; what was read of the listing is no listing."""


async def _restarted(listing: Callable[[], Any]) -> list[Any]:
    reason = ""
    for _ in range(RESTARTS_MAX):
        try:
            found: list[Any] = await listing()
            return found
        except _TokenEnded as error:
            reason = str(error)
    raise Unavailable(f"{reason}a page token ended in each of {RESTARTS_MAX} readings")


def _unique(listings: list[list[Any]] | tuple[list[Any], ...]) -> list[Any]:
    """The assignments of several listings, each id once; what has no id stays."""
    found: list[Any] = []
    seen: set[str] = set()
    for one in (one for listing in listings for one in listing):
        id_ = one.get("id") if isinstance(one, dict) else None
        if not isinstance(id_, str) or id_.lower() not in seen:
            found.append(one)
            if isinstance(id_, str):
                seen.add(id_.lower())
    return found


def _values(body: Any, what: str) -> list[Any]:
    return _list(body.get("value") if isinstance(body, dict) else None, what)


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise Unavailable(f"{what}: the answer is not understood: no list")
    return value


def _shown(answer: Answer) -> str:
    return f"{answer.status} {answer.error_code or ''}".strip() + ": "
