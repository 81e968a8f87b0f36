"""Who is in which group, nested groups included: pure functions over SCIM resources, no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from connectors.databricks.references import is_application_id
from verity_sdk.references import group, service_principal, user

SYSTEM_USER = "System user"
"""Who owns what Databricks itself made, `information_schema` for example."""


@dataclass(frozen=True, slots=True)
class Membership:
    """A principal that is in a group.

    Attributes:
        member: Reference of a user, a service principal or a group.
        group: The group's name.
        via: The name of the nested group it is in directly; None where that is the group itself.
    """

    member: str
    group: str
    via: str | None


@dataclass(slots=True)
class Directory:
    """The users, service principals and groups of a workspace, as its SCIM API lists them.

    An empty one knows nobody: names are then told apart by their form.
    """

    users: set[str] = field(default_factory=set)
    service_principals: set[str] = field(default_factory=set)
    people: dict[str, set[str]] = field(default_factory=dict)
    """Of each group by name: references of the users and service principals directly in it."""
    nested: dict[str, set[str]] = field(default_factory=dict)
    """Of each group by name: the names of the groups directly in it."""

    @classmethod
    def of(
        cls,
        users: Iterable[Mapping[str, Any]],
        service_principals: Iterable[Mapping[str, Any]],
        groups: Iterable[Mapping[str, Any]],
    ) -> Directory:
        """The directory of these SCIM resources; a member that is not listed keeps its id."""
        found = cls()
        names: dict[str, str] = {}
        for one in users:
            name = one.get("userName")
            if isinstance(name, str) and name:
                found.users.add(name)
                names[one["id"]] = user(name)
        for one in service_principals:
            name = one.get("applicationId")
            if isinstance(name, str) and name:
                found.service_principals.add(name)
                names[one["id"]] = service_principal(name)
        listed = [one for one in groups if isinstance(one.get("displayName"), str)]
        group_names = {one["id"]: one["displayName"] for one in listed}
        for one in listed:
            # Two groups of one name are one here: grants name a group by its name.
            people = found.people.setdefault(one["displayName"], set())
            nested = found.nested.setdefault(one["displayName"], set())
            members = one.get("members")
            for member in members if isinstance(members, list) else ():
                member_id = member.get("value") if isinstance(member, dict) else None
                if member_id in group_names:
                    nested.add(group_names[member_id])
                elif isinstance(member_id, str) and member_id:
                    people.add(names.get(member_id, f"scim:{member_id}"))
        return found

    def ref(self, name: str) -> str:
        """The reference of a principal that Unity Catalog names without saying what it is.

        What is not listed is told by its form: an e-mail is a user, an application id a service
        principal, and anything else a group; account groups such as `account users` are in no
        workspace's list.
        """
        if name in self.people:
            return group(name)
        if name in self.users:
            return user(name)
        if name in self.service_principals or is_application_id(name):
            return service_principal(name)
        return user(name) if "@" in name or name == SYSTEM_USER else group(name)

    def members(self, name: str) -> frozenset[str]:
        """References of all users and service principals in a group; empty if it is not listed."""
        return frozenset().union(
            *(self.people[one] for level in self._levels(name) for one in level)
        )

    def memberships(self) -> Iterator[Membership]:
        """Every principal in every group, once for each; the nearest nested group is named.

        Of several equally near ones it is the first by name. Groups may contain each other.
        """
        for name in sorted(self.people):
            seen: set[str] = {group(name)}
            for level in self._levels(name):
                for inner in sorted(level):
                    via = None if inner == name else inner
                    inside = self.people[inner] | {group(one) for one in self.nested[inner]}
                    for member in sorted(inside - seen):
                        yield Membership(member, name, via)
                    seen |= inside

    def _levels(self, name: str) -> Iterator[set[str]]:
        """The group itself, the groups in it, the groups in those, …, each once."""
        level = {name} & self.people.keys()
        seen: set[str] = set()
        while level:
            yield level
            seen |= level
            level = {inner for one in level for inner in self.nested[one]} - seen
