"""The streams of the audit logs: what each is called, and how one slice of it is asked for.

Decisions only; the connector asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from connectors.azure_ad.graph import Listing
from connectors.azure_ad.records import audit_event, reference_of, sign_in_event
from connectors.azure_ad.settings import SignIns
from verity_sdk.connector_base import RawEvent
from verity_sdk.errors import Malformed
from verity_sdk.pages import RejectedRecord
from verity_sdk.values import dumps
from verity_sdk.windows import Fetched, Slice

# MS Learn directoryaudit-list and signin-list, read 2026-11-24: both permissions are needed.
_NEEDS = "AuditLog.Read.All (and Directory.Read.All)"

FREE_RETENTION = timedelta(days=7)
"""Entra ID Free and B2C keep their logs so long (MS Learn reference-reports-data-retention)."""


@dataclass(frozen=True, slots=True)
class Stream:
    """One of Graph's audit logs.

    Attributes:
        name: In the cursor, and as the scope of gaps.
        path: Below Graph's root.
        time_field: What its windows filter by.
        page_records: Its largest page.
        condition: A filter besides the time.
        is_ordered: Whether its `$orderby` is documented.
        is_licensed: Whether it needs P1 or P2.
        is_workload: Whether it is about applications that sign in.
    """

    name: str
    path: str
    time_field: str
    page_records: int
    condition: str = ""
    is_ordered: bool = False
    is_licensed: bool = False
    is_workload: bool = False

    def listing(self, from_at: datetime, to_at: datetime, *, is_ordered: bool = False) -> Listing:
        """The question for a stretch of time, closed at both ends, on whole seconds.

        Only `ge` and `le` are documented; `gt` and `lt` were seen to filter wrongly
        (security-api-solutions#23).
        """
        field = self.time_field
        condition = f"{field} ge {_literal(from_at)} and {field} le {_literal(to_at)}"
        if self.condition:
            condition += f" and {self.condition}"
        params = {"$filter": condition, "$top": str(self.page_records)}
        if is_ordered and self.is_ordered:
            params["$orderby"] = f"{field} asc"
        return Listing(self.path, params, _NEEDS)

    def event(self, record: object) -> RawEvent:
        """The event of a record.

        Raises:
            Malformed: It is not understood.
        """
        if self is AUDITS:
            return audit_event(record)
        return sign_in_event(record, is_workload=self.is_workload)


# The largest page of directoryAudits is not documented; 999 is what Microsoft's own PowerShell
# asks for. That of signIns is documented as 1,000.
AUDITS = Stream(
    "directoryAudits",
    "/v1.0/auditLogs/directoryAudits",
    "activityDateTime",
    999,
    is_ordered=True,
)
_V1 = "/v1.0/auditLogs/signIns"
_BETA = "/beta/auditLogs/signIns"


def _beta(name: str, event_type: str, *, is_workload: bool) -> Stream:
    # Without this filter beta, too, serves interactive sign-ins only (MS Learn signin, beta).
    return Stream(
        name,
        _BETA,
        "createdDateTime",
        1000,
        condition=f"signInEventTypes/any(t: t eq '{event_type}')",
        is_licensed=True,
        is_workload=is_workload,
    )


SIGN_INS: dict[SignIns, Stream] = {
    "interactive": Stream("signIns", _V1, "createdDateTime", 1000, is_licensed=True),
    "non_interactive": _beta("signIns.non_interactive", "nonInteractiveUser", is_workload=False),
    "service_principal": _beta("signIns.service_principal", "servicePrincipal", is_workload=True),
    "managed_identity": _beta("signIns.managed_identity", "managedIdentity", is_workload=True),
}


def is_past_retention(vendor_message: str, one: Slice, now: datetime) -> bool:
    """Whether a refused query means that the service no longer answers for this time.

    It says `Invalid filter clause` to a time before its minimum (microsoft-graph-docs#5676), as
    it does to a filter that is wrong: a time within the shortest retention can't be the reason.
    """
    return "filter clause" in vendor_message.lower() and one.from_at < now - FREE_RETENTION


def fetched(stream: Stream, records: Sequence[object]) -> Fetched:
    """The events of a slice's records, and what of them was not understood."""
    events: list[RawEvent] = []
    rejected: list[RejectedRecord] = []
    for record in records:
        try:
            events.append(stream.event(record))
        except Malformed as error:
            rejected.append(RejectedRecord(dumps(record), str(error), reference_of(record)))
    return Fetched(events, rejected)


def _literal(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")
