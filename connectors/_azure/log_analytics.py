"""Rows of Azure Monitor Log Analytics by the time they were ingested: complete, and exactly once.

Resource logs arrive late, but the workspace knows when each row came in. Read by `ingestion_time()`
nothing is late. The query is fixed text: a table's name, the resource's id and the workspace's id
go into it only after they matched a pattern, times and counts are formatted here.

Sources: MS Learn "Log data ingestion time in Azure Monitor" (2026-02), "Timeouts",
"Response format", `ingestion_time()`, `union`, `pack_all()`, `row_number()`; Log Analytics swagger
v1 (azure-rest-api-specs, operationalinsights/data-plane); all read 2026-11-24.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from pydantic import AfterValidator

from connectors._azure.sign_in import SignIn
from verity_sdk.errors import Denied, Malformed, Misconfigured, Unavailable
from verity_sdk.http import Answer, Budget, HttpClient, HttpSettings, shared_budget
from verity_sdk.pages import Page, RejectedRecord
from verity_sdk.times import parse_utc
from verity_sdk.values import NumberText, dumps, loads
from verity_sdk.windows import Slice, TooLarge

API_URL = "https://api.loganalytics.azure.com"
"""The public cloud's endpoint (MS Learn, Log Analytics API, read 2026-11-24)."""
SCOPE = "https://api.loganalytics.io/.default"
"""The token's audience; azure-monitor-query 2.0.0 uses it too."""

WAIT_MAX = timedelta(minutes=10)
"""The longest `Prefer: wait`; without the header a query ends after 3 minutes."""
LAG_MAX = timedelta(days=2)
"""`TimeGenerated` lies at most so far before the ingestion, or else it is overwritten."""
RANGE_BEFORE, RANGE_AFTER = timedelta(days=3), timedelta(days=1)
"""How much wider than the slice `TimeGenerated` is searched: it only prunes, and the vendor asks
for a larger range beside a filter on `ingestion_time()`."""
ROWS_MAX = 500_000
"""The API's limit of rows in a result (MS Learn, service limits; UNCONFIRMED in stored copies)."""
ANSWER_BYTES_MAX = 256 * 1024 * 1024
"""The service cuts at about 100 MB of data (UNCONFIRMED), which JSON within JSON makes more."""

QUERIES, QUERIES_PER, QUERIES_AT_ONCE = 200, timedelta(seconds=30), 5
"""An identity's budget (MS Learn, "Query API throttling", read 2026-11-24)."""

ROLE = "Log Analytics Reader"

_INTEGER = re.compile(r"-?[0-9]+", re.ASCII)
_GUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_RESOURCE = re.compile(
    r"/subscriptions/[0-9a-fA-F-]{36}/resourceGroups/[\w.()-]{1,90}"
    r"/providers/[A-Za-z0-9.]{1,80}(?:/[A-Za-z0-9]{1,80}/[A-Za-z0-9_.-]{1,200})+",
    re.IGNORECASE,
)
_TABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")

# What a query that asks for too much is ended with (Kusto "Errors in native code", and
# E_QUERY_RESULT_SET_TOO_LARGE as signed decimal, as `innererror.code` spells it).
_TOO_LARGE = ("E_QUERY_RESULT_SET_TOO_LARGE", "0x80DA0003", "-2133196797", "E_RUNAWAY_QUERY")
_CODES_SHOWN = 4


def checked_guid(text: str) -> str:
    """The text, if it is a GUID such as a workspace's id.

    Raises:
        ValueError: It is none; pydantic turns it into a settings error.
    """
    if _GUID.fullmatch(text) is None:
        raise ValueError("not a GUID such as 00000000-0000-0000-0000-000000000000")
    return text


def checked_resource_id(text: str) -> str:
    """The text without a slash at its end, if it is the id of an Azure resource.

    Raises:
        ValueError: It is none.
    """
    if _RESOURCE.fullmatch(text.rstrip("/")) is None:
        raise ValueError(
            "not a resource id such as /subscriptions/<guid>/resourceGroups/<name>"
            "/providers/Microsoft.Synapse/workspaces/<name>"
        )
    return text.rstrip("/")


WorkspaceId = Annotated[str, AfterValidator(checked_guid)]
"""The id of a Log Analytics workspace, as its overview page shows it."""
ResourceId = Annotated[str, AfterValidator(checked_resource_id)]
"""The full id of an Azure resource."""


@dataclass(frozen=True, slots=True)
class IngestedRows:
    """A query for all rows of some tables about one resource, by the time of their ingestion.

    A row belongs to the resource if `_ResourceId` is its id or lies below it (a pool of a
    workspace). Each table is filtered and packed by itself: in a union of their columns those of
    one name and different types would be renamed.

    Attributes:
        tables: The tables; those that the workspace lacks are left out by the service.
        resource_id: The resource.
        rows_max: So many rows a query.

    Raises:
        ValueError: A table's name or the resource's id is not of the form.
    """

    tables: Sequence[str]
    resource_id: str
    rows_max: int = 20_000

    def __post_init__(self) -> None:
        checked_resource_id(self.resource_id)
        if not self.tables or any(_TABLE.fullmatch(table) is None for table in self.tables):
            raise ValueError("not a list of table names")

    def text(
        self, from_at: datetime, to_at: datetime, *, rows_max: int, skip: int | None = None
    ) -> str:
        """The KQL for `from_at <= ingestion_time() < to_at`, both on whole seconds.

        Args:
            skip: None asks for the first `rows_max` rows; a number leaves out so many rows of a
                total order, in which only rows of equal content may change places.
        """
        legs = [self._leg(table) for table in self.tables]
        # A union of one would only hide that the table is missing.
        source = legs[0]
        if len(legs) > 1:
            source = "union isfuzzy=true\n" + ",\n".join(f"({leg})" for leg in legs)
        order = "order by IngestedAt asc, TimeGenerated asc"
        if skip is not None:
            order = (
                "extend RowText = tostring(Row)\n"
                "| order by IngestedAt asc, TimeGenerated asc, SourceTable asc, RowText asc\n"
                "| extend Number = row_number()\n"
                f"| where Number > {int(skip)}\n"
                "| project-away RowText, Number"
            )
        return (
            "// verity-stream: ingested rows, 1\n"
            f"let from_at = datetime({_literal(from_at)});\n"
            f"let to_at = datetime({_literal(to_at)});\n"
            f"{source}\n"
            f"| {order}\n"
            f"| take {int(rows_max)}"
        )

    def _leg(self, table: str) -> str:
        resource = self.resource_id
        return (
            f"{table}\n"
            f"| where TimeGenerated between ((from_at - {RANGE_BEFORE.days}d)"
            f" .. (to_at + {RANGE_AFTER.days}d))\n"
            "| where ingestion_time() >= from_at and ingestion_time() < to_at\n"
            f'| where _ResourceId =~ "{resource}" or _ResourceId startswith "{resource}/"\n'
            f'| project SourceTable = "{table}", TimeGenerated,'
            " IngestedAt = ingestion_time(), Row = pack_all()"
        )


@dataclass(frozen=True, slots=True)
class IngestedRow:
    """One row.

    Attributes:
        table: The table it stands in.
        generated_at: `TimeGenerated` as the service wrote it.
        ingested_at: When the workspace took it in, aware UTC.
        record: All its columns by name; cells as the service gave them.
    """

    table: str
    generated_at: str
    ingested_at: datetime
    record: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Rows:
    """All rows of a slice, and what of them was not understood."""

    rows: list[IngestedRow] = field(default_factory=list)
    rejected: list[RejectedRecord] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows) + len(self.rejected)


def patient(http: HttpSettings, wait: timedelta) -> HttpSettings:
    """The settings for a client whose answers may take as long, and be as long, as a query's."""
    longest = wait + min(wait, timedelta(seconds=15))
    return http.model_copy(
        update={
            "read_timeout": max(http.read_timeout, longest),
            "retry_budget": max(http.retry_budget, longest),
            "answer_bytes_max": max(http.answer_bytes_max, ANSWER_BYTES_MAX),
        }
    )


def query_budget(identity: str, share: float) -> Budget:
    """The budget for queries that all clients of this identity in this process share."""
    return shared_budget(
        ("log_analytics", identity),
        requests=QUERIES,
        per=QUERIES_PER,
        concurrent=QUERIES_AT_ONCE,
        share=share,
    )


class LogAnalytics:
    """Queries to one workspace.

    Args:
        client: Authorised for `SCOPE`, its host allowed, with `query_budget` and settings made
            `patient`.
        url: The endpoint.
        workspace_id: The workspace's id.
        wait: How long a query may run.
        setup: What an operator must do for the tables to exist; ends an error's message.
    """

    def __init__(
        self,
        client: HttpClient,
        *,
        workspace_id: str,
        url: str = API_URL,
        wait: timedelta = WAIT_MAX,
        setup: str = "",
    ) -> None:
        self._client = client
        self._url = f"{url.rstrip('/')}/v1/workspaces/{checked_guid(workspace_id)}/query"
        self._workspace_id = workspace_id
        self._prefer = f"wait={max(1, int(min(wait, WAIT_MAX).total_seconds()))}"
        self._setup = setup

    async def query(self, text: str) -> list[dict[str, Any]]:
        """The rows of the first table of the answer, each as typed cells by column name.

        Raises:
            TooLarge: The result or the work is beyond a limit; nothing of it is returned.
            Unavailable: No answer, an answer with an `error` beside its rows, or one that is not
                understood.
            Denied: The identity lacks the role, or the query is refused.
            Misconfigured: The workspace does not exist, or has none of the tables.
        """
        answer = await self._client.request(
            "POST",
            self._url,
            json={"query": text},
            headers={"Prefer": self._prefer},
            expect=(400, 403, 404),
            is_idempotent=True,
        )
        if answer.status != 200:
            raise self._refusal(answer)
        return rows_of(answer.json())

    async def slice(self, query: IngestedRows, one: Slice, *, is_divisible: bool) -> Rows:
        """All rows that were ingested in the slice.

        Exactly as many rows as asked for are taken for a cut result. Where the slice can't be
        divided any more (a batch is ingested at one moment), it is read in portions of a total
        order instead.

        Args:
            is_divisible: Whether the caller can halve the slice.

        Raises:
            TooLarge: Halve the slice; nothing of it was returned.
            Unavailable: As `query`; nor is anything returned if the rows change between portions.
            Denied, Misconfigured: As `query`.
        """
        rows_max = min(query.rows_max, ROWS_MAX)
        if is_divisible:
            found = await self.query(query.text(one.from_at, one.to_at, rows_max=rows_max))
            if len(found) >= rows_max:
                raise TooLarge
            return _understood(found)
        everything: list[dict[str, Any]] = []
        while True:
            text = query.text(one.from_at, one.to_at, rows_max=rows_max, skip=len(everything))
            try:
                found = await self.query(text)
            except TooLarge as error:
                if rows_max == 1:
                    raise Unavailable("Log Analytics: a single row is beyond a limit") from error
                rows_max //= 2
                continue
            everything += found
            if len(found) < rows_max:
                return _understood(everything)

    async def probe(self, query: IngestedRows, now: datetime) -> None:
        """Ask for one row of the last minute: the cheapest query that needs all that the others do.

        Raises:
            Unavailable, Denied, Misconfigured: As `query`.
        """
        second = now.astimezone(UTC).replace(microsecond=0)
        try:
            await self.query(query.text(second - timedelta(minutes=1), second, rows_max=1))
        except TooLarge as error:
            raise Unavailable("Log Analytics: one row is beyond a limit") from error

    def _refusal(self, answer: Answer) -> Exception:
        codes = _codes(_error_of(answer.body))
        shown = f"{answer.status} {'/'.join(codes[:_CODES_SHOWN])}".strip()
        where = f"Log Analytics workspace {self._workspace_id}"
        if answer.status == 403:
            return Denied(
                f"{where}: {shown}: the identity needs the role {ROLE} on the workspace "
                "(Microsoft.OperationalInsights/workspaces/query/*/read)"
            )
        if answer.status == 404:
            return Misconfigured(f"{where}: {shown}: there is no such workspace; see workspace_id")
        # The query is fixed, so that a name in it can't be resolved means that tables are missing.
        if "SemanticError" in codes or any(code.startswith("SEM") for code in codes):
            return Misconfigured(f"{where}: {shown}: it has none of the tables. {self._setup}")
        return Denied(f"{where}: {shown}: the query was refused")


def workspace_of(
    sign_in: SignIn, *, url: str, scope: str, workspace_id: str, wait: timedelta, setup: str
) -> LogAnalytics:
    """A workspace, asked by one identity within the budget that all its queries share.

    Raises:
        Misconfigured: As `SignIn.client`.
    """
    client = sign_in.client(
        url,
        scope,
        http=patient(sign_in.http, wait),
        budget=query_budget(sign_in.identity.name, sign_in.http.budget_share),
    )
    return LogAnalytics(client, url=url, workspace_id=workspace_id, wait=wait, setup=setup)


def in_time_of_events(page: Page, lateness: timedelta) -> Page:
    """A page of a stream by time of ingestion, complete up to where no event can still come.

    What was read is complete up to a time of ingestion; an event's own time lies at most
    `lateness` before that. It is not the window kit's `lateness`, which is for streams by the
    events' time and waits for a lookback; here there is none.
    """
    if page.complete_through is None:
        return page
    first = datetime.min.replace(tzinfo=UTC)
    is_after = page.complete_through - first > lateness
    return replace(page, complete_through=page.complete_through - lateness if is_after else first)


def rows_of(body: Any) -> list[dict[str, Any]]:
    """The rows of an answer's first table, each as typed cells by column name.

    Raises:
        TooLarge: Its `error` says that a limit was passed.
        Unavailable: It has another `error` beside its rows, or is no such answer.
    """
    if not isinstance(body, dict):
        raise Unavailable("Log Analytics: the answer is no object")
    # "Response format": a status of 200 with `error` is a part of the result, no more.
    if error := body.get("error"):
        if any(mark in text for text in _texts(error) for mark in _TOO_LARGE):
            raise TooLarge
        codes = "/".join(_codes(error)[:_CODES_SHOWN])
        raise Unavailable(f"Log Analytics: the result is partial: {codes or 'no code'}")
    try:
        table = body["tables"][0]
        names = [column["name"] for column in table["columns"]]
        types = [column["type"] for column in table["columns"]]
        raw = table["rows"]
        typed = [_READERS.get(type_, _as_is) for type_ in types]
        return [_cells(names, typed, row) for row in raw]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        reason = type(error).__name__
        raise Unavailable(f"Log Analytics: the answer is not understood: {reason}") from error


def _cells(names: list[str], readers: list[Callable[[Any], Any]], row: Any) -> dict[str, Any]:
    """A row by column; one of another shape is no row, and says so where it is understood."""
    if not isinstance(row, list) or len(row) != len(names):
        return {"row": row}
    return {name: read(cell) for name, read, cell in zip(names, readers, row, strict=True)}


def ingested_row(cells: dict[str, Any]) -> IngestedRow:
    """One row of `IngestedRows.text`.

    Raises:
        Malformed: A cell is missing or not of its type.
    """
    table, generated_at = cells.get("SourceTable"), cells.get("TimeGenerated")
    ingested_at, record = cells.get("IngestedAt"), cells.get("Row")
    if not isinstance(table, str) or not isinstance(generated_at, str):
        raise Malformed("no text under `SourceTable` or `TimeGenerated`")
    if not isinstance(ingested_at, str):
        raise Malformed("no time under `IngestedAt`")
    if not isinstance(record, dict):
        raise Malformed("no object under `Row`")
    return IngestedRow(table, generated_at, parse_utc(ingested_at), record)


def numbered(keys: Iterable[tuple[str, datetime]]) -> list[str]:
    """Ids for rows that have none of their own: the content's hash, and a number where needed.

    Rows of one hash and one time of ingestion are different rows: the second becomes `{hash}:1`,
    the next `{hash}:2`. They are equal, so it does not matter which gets which; and they come
    together, whatever the slices, because a slice never parts one moment. Rows of one hash that
    were ingested at different times are one row that was delivered twice: they get the same id.
    """
    seen: Counter[tuple[str, datetime]] = Counter()
    ids = []
    for key in keys:
        number = seen[key]
        seen[key] += 1
        ids.append(key[0] if number == 0 else f"{key[0]}:{number}")
    return ids


def canonical_time(text: str) -> str:
    """A time without the zeros at its end, so that both spellings of one time are one."""
    text = text.removesuffix("Z")
    return text.rstrip("0").rstrip(".") if "." in text else text


def parsed(value: Any) -> Any:
    """A `dynamic` value: a text that holds a JSON object or array becomes it."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return loads(value)
        except ValueError:
            return value
    return value


def _understood(found: Iterable[dict[str, Any]]) -> Rows:
    rows = Rows()
    for cells in found:
        try:
            rows.rows.append(ingested_row(cells))
        except Malformed as error:
            rows.rejected.append(RejectedRecord(dumps(cells), str(error)))
    return rows


def _literal(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _as_is(cell: Any) -> Any:
    return cell


def _integer(cell: Any) -> Any:
    if not isinstance(cell, str) or _INTEGER.fullmatch(cell) is None:
        return cell
    try:
        return int(cell)
    except ValueError:  # Python converts no more than some thousand digits.
        return NumberText(cell)


def _real(cell: Any) -> Any:
    if isinstance(cell, str):
        try:
            number = float(cell)
        except ValueError:
            return cell
        return number if math.isfinite(number) else NumberText(cell)
    return cell


def _boolean(cell: Any) -> Any:
    if isinstance(cell, str):
        return {"true": True, "1": True, "false": False, "0": False}.get(cell.lower(), cell)
    return bool(cell) if isinstance(cell, int) else cell


# The specification types every cell as text, the service writes numbers, booleans and null as
# JSON's own; both are read. A `dynamic` cell is a text with JSON in it, or the JSON itself.
_READERS = {
    "int": _integer,
    "long": _integer,
    "real": _real,
    "decimal": _as_is,
    "bool": _boolean,
    "dynamic": parsed,
}


def _error_of(body: bytes) -> Any:
    try:
        parsed_body = loads(body)
    except ValueError:
        return None
    return parsed_body.get("error") if isinstance(parsed_body, dict) else None


def _codes(error: Any) -> list[str]:
    """The codes of an error, the outermost first; messages may quote what they refuse."""
    if not isinstance(error, dict):
        return []
    codes = [str(error["code"])] if "code" in error else []
    details = error.get("details")
    inner = [error.get("innererror"), *(details if isinstance(details, list) else [])]
    return codes + [code for one in inner for code in _codes(one)]


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _texts(one)
