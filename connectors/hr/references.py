"""Names of HR's own things in references; events and snapshots agree."""

from __future__ import annotations

MEMBER_OF = "member_of"
JOB_TITLE = "job_title"
REPORTS_TO = "reports_to"
MEMBER = "member"
ASSIGNED = "assigned"
ROLE = "role"
GROUP = "group"


def job_title(title: str) -> str:
    """A job title, as the HR system writes it."""
    return f"hr:job_title:{title}"


def role(value: str) -> str:
    """A value of SCIM's `roles` (RFC 7643, 4.1.2)."""
    return f"hr:role:{value}"


def entitlement(value: str) -> str:
    """A value of SCIM's `entitlements` (RFC 7643, 4.1.2)."""
    return f"hr:entitlement:{value}"
