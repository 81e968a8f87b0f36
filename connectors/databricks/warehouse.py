"""Runs statements on a SQL warehouse and fetches what they find."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from datetime import timedelta
from typing import Any

from connectors.databricks.settings import Settings
from connectors.databricks.statements import (
    Assembly,
    Chunk,
    Disposition,
    Manifest,
    Statement,
    Status,
    audit_manifest,
    chunk_of,
    failure,
    manifest_of,
    refusal,
    status_of,
    submission,
)
from verity_sdk.context import Context
from verity_sdk.errors import Misconfigured, Unavailable, VerityError
from verity_sdk.http import Answer, HttpClient
from verity_sdk.windows import TooLarge

logger = logging.getLogger(__name__)

STATEMENTS_PATH = "/api/2.0/sql/statements"
RESTARTS_MAX = 2
"""A result whose chunks are gone (after one hour) is asked for anew so often."""
LINK_TRIES_MAX = 3
LINK_MARGIN = timedelta(seconds=30)
CANCEL_SECONDS_MAX = 5.0
# Larger answers are decoded in a thread: the loop has heartbeats to keep.
BODY_BYTES_INLINE_MAX = 256 * 1024
GONE = (404, 410)
# What storages answer to a link that has expired is theirs: 403 on Azure and S3, 400 on GCS.
LINK_REFUSED = (400, 401, 403, 404, 410)


class ResultGone(Exception):
    """The statement or its result is no longer there; what was read of it is to be dropped."""


class Warehouse:
    """One SQL warehouse of a workspace.

    Args:
        api: Authorised, for the workspace.
        storage: Without an authorizer, for the hosts of the settings: links carry their own
            credential, and must not get the workspace's.
        context: The connector's.
    """

    def __init__(
        self,
        settings: Settings,
        api: HttpClient,
        storage: HttpClient,
        context: Context,
    ) -> None:
        self._settings = settings
        self._api = api
        self._storage = storage
        self._context = context

    async def audit_rows(self, statement: Statement) -> AsyncGenerator[list[Any], None]:
        """The rows of an audit statement, a chunk at a time.

        When the iterator ends, the result was complete.

        Raises:
            TooLarge: The result is over a limit of the vendor's or of ours.
            ResultGone: It expired before it was read.
            Denied, Misconfigured, Unavailable: As `rows`.
        """
        settings = self._settings
        running = self._chunks(
            statement,
            settings.disposition,
            lambda answer: audit_manifest(answer, settings.rows_max),
        )
        async with aclosing(running) as chunks:
            async for _, rows in chunks:
                yield rows

    async def rows(
        self, statement: Statement, *, columns: tuple[str, ...] = ()
    ) -> AsyncGenerator[tuple[tuple[str, ...], list[Any]], None]:
        """The rows of any other statement, a chunk at a time, with the names of the columns.

        A result too large to come inline comes through links. When the iterator ends, the result
        was complete.

        Raises:
            Denied: The warehouse or the table may not be used; the message has the SQL that helps.
            Misconfigured: There is no such warehouse.
            Unavailable: No answer in time, or not all of it; what came is no complete result.
        """

        def manifest(answer: Any) -> Manifest:
            return manifest_of(answer, columns)

        disposition = self._settings.disposition
        try:
            try:
                async with aclosing(self._chunks(statement, disposition, manifest)) as chunks:
                    async for found, rows in chunks:
                        yield found.columns, rows
            except TooLarge:
                # The statement failed as a whole, so nothing came out yet.
                if disposition == "external_links":
                    raise
                again = self._chunks(statement, "external_links", manifest)
                async with aclosing(again) as chunks:
                    async for found, rows in chunks:
                        yield found.columns, rows
        except TooLarge as error:
            raise Unavailable(f"the result on {statement.table} is too large") from error
        except ResultGone as error:
            raise Unavailable(f"the result on {statement.table} was gone, half read") from error

    async def _chunks(
        self,
        statement: Statement,
        disposition: Disposition,
        manifest_of_answer: Callable[[Any], Manifest],
    ) -> AsyncGenerator[tuple[Manifest, list[Any]], None]:
        answer, status = await self._finished(statement, disposition)
        manifest = manifest_of_answer(answer)
        assembly = Assembly(manifest)
        part = answer.get("result") if manifest.chunk_count else None
        while (index := assembly.next_index) is not None:
            if part is None:
                part = await self._part(status.statement_id, index)
            chunk = chunk_of(part, index)
            rows = chunk.rows
            if chunk.link is not None:
                chunk, rows = await self._linked(status.statement_id, chunk)
            part = None
            yield manifest, assembly.add(chunk, rows)
        assembly.finish()

    async def _finished(
        self, statement: Statement, disposition: Disposition
    ) -> tuple[dict[str, Any], Status]:
        """Submit, and wait until the statement has succeeded."""
        answer, status = await self._submit(statement, disposition)
        deadline = self._context.clock() + self._settings.statement_timeout
        pause = 1.0
        try:
            while status.is_under_way:
                if self._context.clock() >= deadline:
                    raise Unavailable(
                        f"the statement on {statement.table} was {status.state} for "
                        f"{self._settings.statement_timeout}: the warehouse "
                        f"{self._settings.warehouse_id} does not start or is too busy"
                    )
                await self._context.sleep(pause)
                pause = min(2 * pause, self._settings.poll_interval_max.total_seconds())
                answer = await self._get_json(f"{STATEMENTS_PATH}/{status.statement_id}")
                status = status_of(answer)
        except BaseException:
            # Whatever ends the wait, a cancelled pass too: a statement nobody waits for costs.
            await self._cancel(status.statement_id)
            raise
        if status.state != "SUCCEEDED":
            raise failure(status, statement, self._settings.principal)
        return answer, status

    async def _submit(
        self, statement: Statement, disposition: Disposition
    ) -> tuple[dict[str, Any], Status]:
        settings = self._settings
        answer = await self._api.request(
            "POST",
            settings.host + STATEMENTS_PATH,
            json=submission(statement, settings.warehouse_id, disposition, settings.wait_timeout),
            expect=(400, 403, 404),
            # It only reads. A first one whose answer was lost runs to its end unseen.
            is_idempotent=True,
        )
        if answer.status >= 400:
            message = _message(answer)
            raise refusal(answer.status, answer.error_code or "", message, settings.warehouse_id)
        body = await _decoded(answer)
        return body, status_of(body)

    async def _part(self, statement_id: str, index: int) -> dict[str, Any]:
        return await self._get_json(f"{STATEMENTS_PATH}/{statement_id}/result/chunks/{index}")

    async def _linked(self, statement_id: str, chunk: Chunk) -> tuple[Chunk, Any]:
        """The rows behind a chunk's link; a link that has expired is asked for anew."""
        for attempt in range(LINK_TRIES_MAX):
            if attempt:
                chunk = chunk_of(await self._part(statement_id, chunk.index), chunk.index)
            link = chunk.link
            if link is None:
                return chunk, chunk.rows
            if link.expires_at is None or link.expires_at > self._context.clock() + LINK_MARGIN:
                try:
                    answer = await self._storage.get(
                        link.url, headers=link.headers, expect=LINK_REFUSED, is_authorised=False
                    )
                except Misconfigured as error:
                    raise Misconfigured(f"storage_hosts: {error}") from error
                if answer.status < 400:
                    return chunk, await _decoded(answer, is_list=True)
        raise Unavailable(f"the storage refused {LINK_TRIES_MAX} links to chunk {chunk.index}")

    async def _get_json(self, path: str) -> dict[str, Any]:
        answer = await self._api.get(self._settings.host + path, expect=GONE)
        if answer.status in GONE:
            raise ResultGone
        body: dict[str, Any] = await _decoded(answer)
        return body

    async def _cancel(self, statement_id: str) -> None:
        try:
            async with asyncio.timeout(CANCEL_SECONDS_MAX):
                await self._api.request(
                    "POST",
                    f"{self._settings.host}{STATEMENTS_PATH}/{statement_id}/cancel",
                    json={},
                    expect=(400, *GONE),
                )
        except (VerityError, TimeoutError) as error:
            logger.warning("statement %s could not be cancelled: %s", statement_id, error)


async def _decoded(answer: Answer, *, is_list: bool = False) -> Any:
    """The body of an answer; an object, or a list of rows.

    Raises:
        Unavailable: It is something else (a proxy's page, a body cut short).
    """
    if len(answer.body) > BODY_BYTES_INLINE_MAX:
        body = await asyncio.to_thread(answer.json)
    else:
        body = answer.json()
    if not isinstance(body, list if is_list else dict):
        raise Unavailable(f"{answer.method} {answer.url}: not the JSON that was expected")
    return body


def _message(answer: Answer) -> str:
    try:
        body = answer.json()
    except Unavailable:
        return ""
    message = body.get("message") if isinstance(body, dict) else None
    return message if isinstance(message, str) else ""
