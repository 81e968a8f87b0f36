"""The snapshot through Power BI's scanner: list workspaces, scan them in batches, read results."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from connectors.fabric import grants
from connectors.fabric import references as names
from connectors.fabric.clients import (
    MODIFIED_WORKSPACES,
    SCAN_RESULT,
    SCAN_STATUS,
    START_SCAN,
    Clients,
    refusal,
)
from connectors.fabric.settings import Settings
from verity_sdk.concurrently import in_order
from verity_sdk.connector_base import PermissionSnapshot
from verity_sdk.errors import Denied, Malformed, Unavailable
from verity_sdk.http import Answer
from verity_sdk.pages import SnapshotGap, SnapshotScope
from verity_sdk.times import parse_utc

logger = logging.getLogger(__name__)

ADMIN_PATH = "/v1.0/myorg/admin/workspaces"
POLL_SECONDS_MIN = 2.0
POLL_SECONDS_MAX = 30.0
# A result that is gone (kept for 24 hours) or a scan that failed is asked for once more.
SCANS_MAX = 2
_GONE = (404, 410)

Row = PermissionSnapshot | SnapshotGap | SnapshotScope


class _ScanLost(Exception):
    """The scan gave no result; the message says why."""


@dataclass(frozen=True, slots=True)
class Scan:
    """A scan that was accepted.

    Attributes:
        id: As the scanner gave it.
        created_at: The scanner's `createdDateTime`, aware UTC: what the result is correlated
            with, by Microsoft's planning guide.
        said: For the rows' payload.
    """

    id: str
    created_at: datetime
    said: dict[str, Any]


class Scanner:
    """Reads the permissions of all workspaces, and of the items in them, in bulk.

    Args:
        clients: For the requests.
        settings: Batch size, concurrency, time limit.
    """

    def __init__(self, clients: Clients, settings: Settings) -> None:
        self._clients = clients
        self._settings = settings
        self._base = f"{settings.power_bi_url}{ADMIN_PATH}"

    async def rows(self) -> AsyncGenerator[Row, None]:
        """Every grant, each workspace followed by its scope or gap.

        `snapshot_at` is the first scan's `createdDateTime`: no scan of the snapshot is older.

        Raises:
            Denied: The workspaces may not be listed; the message says what to grant.
            Unavailable: They could not be listed.
        """
        workspace_ids = await self._workspace_ids()
        batches = list(_batches(workspace_ids, self._settings.workspaces_per_scan))
        if not batches:
            return
        # The first scan is started alone: its time is that of the whole snapshot.
        first = await self._started(batches[0])
        snapshot_at = first.created_at if isinstance(first, Scan) else self._clients.context.clock()

        def read(batch: Sequence[str]) -> Awaitable[list[Row]]:
            return self._read_batch(batch, snapshot_at, first if batch is batches[0] else None)

        async with aclosing(in_order(batches, read, self._settings.scans_concurrent)) as results:
            async for rows in results:
                for row in rows:
                    yield row

    async def _workspace_ids(self) -> list[str]:
        params = {} if self._settings.personal_workspaces else {"excludePersonalWorkspaces": "True"}
        try:
            answer = await self._clients.of(MODIFIED_WORKSPACES).get(
                f"{self._base}/modified", params=params or None
            )
        except Denied as error:
            raise refusal(error, "power_bi") from error
        body = answer.json()
        if not isinstance(body, list):
            raise Unavailable(f"GET {answer.url} answered with no list of workspaces")
        ids = [one.get("id") if isinstance(one, dict) else None for one in body]
        if not all(isinstance(one, str) and one for one in ids):
            raise Unavailable(f"GET {answer.url} answered with a workspace that has no id")
        return list(dict.fromkeys(map(str, ids)))

    async def _started(self, workspace_ids: Sequence[str]) -> Scan | str:
        """The scan, or why there is none."""
        try:
            return await self._start(workspace_ids)
        except Denied as error:
            return str(refusal(error, "power_bi"))
        except Unavailable as error:
            return str(error)

    async def _read_batch(
        self, workspace_ids: Sequence[str], snapshot_at: datetime, scan: Scan | str | None
    ) -> list[Row]:
        reason = ""
        for _ in range(SCANS_MAX):
            if scan is None:
                scan = await self._started(workspace_ids)
            if isinstance(scan, str):
                reason = scan
                break
            try:
                await self._wait(scan)
                result = await self._result(scan)
            except _ScanLost as error:
                reason, scan = str(error), None
            except Denied as error:
                reason = str(refusal(error, "power_bi"))
                break
            except Unavailable as error:
                reason = str(error)
                break
            else:
                return list(_result_rows(workspace_ids, result, snapshot_at, scan))
        return [SnapshotGap(names.workspace(one), reason) for one in workspace_ids]

    async def _start(self, workspace_ids: Sequence[str]) -> Scan:
        answer = await self._clients.of(START_SCAN).request(
            "POST",
            f"{self._base}/getInfo",
            params={
                "getArtifactUsers": "True",
                "lineage": "False",
                "datasourceDetails": "False",
                "datasetSchema": "False",
                "datasetExpressions": "False",
            },
            json={"workspaces": list(workspace_ids)},
            # A scan that was started twice costs one request, and changes nothing.
            is_idempotent=True,
        )
        body = _object(answer)
        scan_id = body.get("id")
        if not isinstance(scan_id, str) or not scan_id:
            raise Unavailable(f"POST {answer.url} answered without the id of a scan")
        try:
            created_at = parse_utc(str(body.get("createdDateTime")))
        except Malformed:
            created_at = self._clients.context.clock()
        said = {"id": scan_id, "createdDateTime": body.get("createdDateTime")}
        return Scan(scan_id, created_at, said)

    async def _wait(self, scan: Scan) -> None:
        """Until the scan succeeded; a status that is not known is one of waiting.

        Raises:
            _ScanLost: It failed, or is not known any more.
            Unavailable: It took longer than `scan_timeout`.
        """
        waited, pause = 0.0, POLL_SECONDS_MIN
        while True:
            answer = await self._clients.of(SCAN_STATUS).get(
                f"{self._base}/scanStatus/{scan.id}", expect=_GONE
            )
            if answer.status in _GONE:
                raise _ScanLost(f"the scan is not known any more ({answer.status})")
            body = _object(answer)
            status = body.get("status")
            if status == "Succeeded":
                return
            if status == "Failed":
                error = body.get("error")
                code = error.get("code") if isinstance(error, dict) else None
                raise _ScanLost(f"the scan failed ({code})")
            if waited >= self._settings.scan_timeout.total_seconds():
                raise Unavailable(f"the scan took longer than scan_timeout, its status is {status}")
            await self._clients.context.sleep(pause)
            waited += pause
            pause = min(2 * pause, POLL_SECONDS_MAX)

    async def _result(self, scan: Scan) -> dict[str, Any]:
        answer = await self._clients.of(SCAN_RESULT).get(
            f"{self._base}/scanResult/{scan.id}", expect=_GONE
        )
        if answer.status in _GONE:
            raise _ScanLost(f"the scan's result is gone ({answer.status})")
        body = _object(answer)
        if not isinstance(body.get("workspaces"), list):
            raise Unavailable(f"GET {answer.url} answered without workspaces")
        return body


def _batches(ids: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), size):
        yield ids[start : start + size]


def _result_rows(
    workspace_ids: Sequence[str], result: dict[str, Any], snapshot_at: datetime, scan: Scan
) -> Iterator[Row]:
    """The grants of the workspaces that were asked for; one that is missing is a gap."""
    by_id: dict[str, dict[str, Any]] = {}
    for workspace in result["workspaces"]:
        if isinstance(workspace, dict) and isinstance(workspace.get("id"), str):
            by_id[workspace["id"].lower()] = workspace
    for workspace_id in workspace_ids:
        scope = names.workspace(workspace_id)
        found_workspace = by_id.get(workspace_id.lower())
        if found_workspace is None:
            yield SnapshotGap(scope, "the scan's result does not have the workspace")
            continue
        found = grants.scanned({**found_workspace, "id": workspace_id}, snapshot_at, scan.said)
        yield from found.rows
        yield end_of(scope, found.problems)


def end_of(scope: str, problems: Sequence[str]) -> SnapshotGap | SnapshotScope:
    """How a part ends: read completely, or with what was not understood of it."""
    if not problems:
        return SnapshotScope(scope)
    more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
    return SnapshotGap(scope, f"{problems[0]}{more}")


def _object(answer: Answer) -> dict[str, Any]:
    body = answer.json()
    if not isinstance(body, dict):
        raise Unavailable(f"{answer.method} {answer.url} answered with no object")
    return body
