"""One made-up company for all fakes: its people, groups and leavers, the same for the same seed."""

from __future__ import annotations

import random
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

DOMAIN = "contoso.example"
DEPARTMENTS = ("Finance", "Sales", "Engineering", "People", "Legal")
_FIRST = ("amy", "bob", "carla", "dev", "eva", "finn", "gita", "hugo", "ines", "jon", "kai", "lea")
_LAST = ("adams", "berg", "costa", "diaz", "evans", "fox", "gupta", "hahn", "ito", "jones")


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody in the company.

    Attributes:
        object_id: The id in the directory (Entra ID).
        email: Also the login everywhere, in lower case.
        left_at: When the employment ended, aware UTC, or None.
    """

    employee_id: str
    object_id: str
    email: str
    name: str
    department: str
    job_title: str
    manager_id: str | None
    left_at: datetime | None


@dataclass(frozen=True, slots=True)
class Group:
    """A group of the directory; groups nest, and one pair is cyclic.

    Attributes:
        people: Object ids of its direct members.
        groups: Ids of the groups that are its direct members.
    """

    id: str
    name: str
    people: tuple[str, ...]
    groups: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Application:
    """An application with an identity (service principal) in the directory."""

    app_id: str
    service_principal_id: str
    name: str


@dataclass(slots=True)
class World:
    """The company.

    Args:
        seed: The same seed makes the same world.
        now: What leavers' dates are reckoned from, aware UTC.
        people_count: How many people.
        leaver_count: How many of them left within the last three days.
    """

    seed: int = 1
    now: datetime = datetime(2026, 11, 24, 12, tzinfo=UTC)
    people_count: int = 40
    leaver_count: int = 3
    people: list[Person] = field(init=False)
    groups: list[Group] = field(init=False)
    applications: list[Application] = field(init=False)

    def __post_init__(self) -> None:
        chance = random.Random(self.seed)
        names = [f"{first}.{last}" for first in _FIRST for last in _LAST]
        chance.shuffle(names)
        while len(names) < self.people_count:
            names.append(f"{names[len(names) % 120]}{len(names)}")
        self.people = []
        for i in range(self.people_count):
            left_at = None
            if i >= self.people_count - self.leaver_count:
                left_at = self.now - timedelta(hours=chance.randint(6, 72))
            self.people.append(
                Person(
                    employee_id=str(100 + i),
                    object_id=self.guid(),
                    email=f"{names[i]}@{DOMAIN}",
                    name=names[i].replace(".", " ").title(),
                    department=DEPARTMENTS[i % len(DEPARTMENTS)],
                    job_title=chance.choice(("Analyst", "Manager", "Engineer", "Assistant")),
                    manager_id=None if i == 0 else str(100 + chance.randrange(i)),
                    left_at=left_at,
                )
            )
            chance = random.Random(f"{self.seed}/{i}")
        ids = [self.guid() for _ in range(len(DEPARTMENTS) + 3)]
        everyone, cycle_a, cycle_b = ids[-3:]
        self.groups = [
            Group(
                ids[i],
                name,
                tuple(one.object_id for one in self.people if one.department == name),
                (),
            )
            for i, name in enumerate(DEPARTMENTS)
        ]
        self.groups += [
            Group(everyone, "All departments", (), tuple(ids[:-3])),
            Group(cycle_a, "Cycle A", (self.people[0].object_id,), (cycle_b,)),
            Group(cycle_b, "Cycle B", (self.people[1].object_id,), (cycle_a,)),
        ]
        self.applications = [
            Application(self.guid(), self.guid(), name) for name in ("Nightly ETL", "Dashboards")
        ]

    _made: int = field(default=0, init=False)

    def guid(self) -> str:
        """The next id of this world."""
        self._made += 1
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"verity/{self.seed}/{self._made}"))

    @property
    def leavers(self) -> list[Person]:
        """Who left."""
        return [one for one in self.people if one.left_at is not None]
