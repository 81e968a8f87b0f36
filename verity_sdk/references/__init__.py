"""How principals and assets are named, the same on every platform, so that they can be joined.

`docs/mapping.md` has the table. A reference is `kind:value`; whatever follows the first colon is
the platform's own id, byte for byte.
"""

from __future__ import annotations

UNKNOWN = "unknown"
"""Nobody is named by the source."""


def user(name: str) -> str:
    """A person's account: the directory's object id, or the e-mail or login the source gives."""
    return f"user:{name}"


def service_principal(name: str) -> str:
    """An application's identity in a tenant or workspace."""
    return f"sp:{name}"


def application(name: str) -> str:
    """An application registration, by its client id."""
    return f"app:{name}"


def group(name: str) -> str:
    """A group, by the id or the unique name that the platform uses."""
    return f"group:{name}"


def employee(employee_id: str) -> str:
    """A person in the HR system."""
    return f"hr:employee:{employee_id}"


def department(name: str) -> str:
    """A department in the HR system, by id where it has one."""
    return f"hr:department:{name}"


ALIAS = "alias"
"""Privilege and mechanism of a snapshot record that says: this principal is also known as that
asset (`user:` with an e-mail or login, in lower case). It grants nothing; joins follow it."""


def account(login: str) -> str:
    """The asset of an alias: an e-mail or login as `user:`, in lower case."""
    return user(login.lower())
