"""What stands of a person in a permission snapshot: pure functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from connectors.hr import references as names
from connectors.hr.settings import PLATFORM
from verity_sdk import references
from verity_sdk.connector_base import PermissionSnapshot


@dataclass(frozen=True, slots=True)
class Holder:
    """A person as a snapshot needs it.

    Attributes:
        is_active: Only an active person belongs to a department, has a title, reports to somebody;
            the accounts of one who left are named all the same, so that they can be found.
        accounts: E-mails and logins.
        others: Further (asset, privilege, mechanism, via), as roles are.
    """

    person_id: str
    is_active: bool
    department: str | None = None
    job_title: str | None = None
    manager_id: str | None = None
    accounts: Sequence[str] = ()
    others: Sequence[tuple[str, str, str, str | None]] = ()
    payload: Mapping[str, Any] = field(default_factory=dict)


def grants_of(holder: Holder, snapshot_at: datetime) -> Iterator[PermissionSnapshot]:
    """The records of one person."""
    who = references.employee(holder.person_id)
    held: list[tuple[str, str, str, str | None]] = []
    if holder.is_active:
        if holder.department is not None:
            department = references.department(holder.department)
            held.append((department, names.MEMBER_OF, names.ROLE, None))
        if holder.job_title is not None:
            held.append((names.job_title(holder.job_title), names.JOB_TITLE, names.ROLE, None))
        if holder.manager_id is not None:
            manager = references.employee(holder.manager_id)
            held.append((manager, names.REPORTS_TO, names.ROLE, None))
        held.extend(holder.others)
    accounts = dict.fromkeys(references.account(one) for one in holder.accounts)
    held.extend((one, references.ALIAS, references.ALIAS, None) for one in accounts)
    for asset, privilege, mechanism, via in held:
        yield PermissionSnapshot(
            platform=PLATFORM,
            principal_ref=who,
            asset_ref=asset,
            privilege=privilege,
            grant_mechanism=mechanism,
            granted_via=via,
            snapshot_at=snapshot_at,
            raw_payload=dict(holder.payload),
        )
