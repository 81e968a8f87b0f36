"""A small company at work on a real PostgreSQL: the script whose trail the demo follows."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

import asyncpg

from connectors.postgres.setup import setup_sql

DATABASE = "shop"
COLLECTOR = "verity_collector"
DBA = "olga"
PEOPLE = ("ada", "bob", "carl", "grace")

CONNECT_SECONDS = 10
STATEMENT_SECONDS = 20

TABLES = """
CREATE SCHEMA sales
CREATE SCHEMA hr
CREATE TABLE sales.customers (id int PRIMARY KEY, name text NOT NULL, city text NOT NULL)
CREATE TABLE sales.orders (id int PRIMARY KEY, customer_id int NOT NULL, amount numeric NOT NULL)
CREATE TABLE hr.salaries (person text PRIMARY KEY, amount numeric NOT NULL)
INSERT INTO sales.customers SELECT n, 'No. ' || n, 'City ' || n % 7 FROM generate_series(1, 50) n
INSERT INTO hr.salaries VALUES ('ada', 7100), ('bob', 6400), ('carl', 5200), ('grace', 6900)
"""
GRANTS = """
GRANT USAGE ON SCHEMA sales TO analysts, clerks
GRANT SELECT ON sales.customers, sales.orders TO analysts
GRANT SELECT ON sales.customers TO clerks
GRANT SELECT, INSERT, UPDATE ON sales.orders TO clerks
GRANT USAGE ON SCHEMA hr TO grace
GRANT SELECT ON hr.salaries TO grace
ALTER DEFAULT PRIVILEGES IN SCHEMA sales GRANT SELECT ON TABLES TO analysts
GRANT analysts TO ada, bob
GRANT clerks TO carl
"""


@dataclass
class Workload:
    """Runs the script and remembers how much of it there was.

    Attributes:
        superuser_dsn: The server, as a superuser, in any database but the audited one.
        statement_count: Statements sent to the audited database, each one line of its log.
        password: Everybody's; it is written in the log, and must not be in the topic.
    """

    superuser_dsn: str
    statement_count: int = 0
    password: str = field(default_factory=lambda: f"demo-{secrets.token_hex(8)}")
    _sessions: dict[str, Any] = field(default_factory=dict)
    _closing: AsyncExitStack = field(default_factory=AsyncExitStack)
    _round: int = 0
    _has_bob: bool = True

    def dsn(self, role: str, password: str | None = None) -> str:
        """The audited database, as this role."""
        parts = urlsplit(self.superuser_dsn)
        login = f"{quote(role)}:{quote(password or self.password)}"
        return f"postgresql://{login}@{parts.hostname}:{parts.port}/{DATABASE}"

    async def prepare(self) -> str:
        """Create the database, the roles, the tables and the grants; returns the cluster's id."""
        server = await asyncpg.connect(self.superuser_dsn, timeout=CONNECT_SECONDS)
        try:
            # Verity keeps its own books on this server too. Nobody audits them here: a connector
            # that finds its own checkpoints in the log always has one more page to read.
            own = urlsplit(self.superuser_dsn).path.lstrip("/")
            await server.execute(f'ALTER DATABASE "{own}" SET log_statement = none')
            await server.execute(f"CREATE ROLE {DBA} SUPERUSER LOGIN PASSWORD '{self.password}'")
            await server.execute(f"CREATE DATABASE {DATABASE} OWNER {DBA}")
            identifier = await server.fetchval("SELECT system_identifier FROM pg_control_system()")
        finally:
            await server.close(timeout=CONNECT_SECONDS)
        await self._log_in(DBA)
        await self._run(DBA, setup_sql(COLLECTOR))
        await self._run(DBA, f"ALTER ROLE {COLLECTOR} PASSWORD '{self.password}'")
        await self._run(DBA, "CREATE ROLE analysts")
        await self._run(DBA, "CREATE ROLE clerks")
        for person in PEOPLE:
            await self._run(DBA, f"CREATE ROLE {person} LOGIN PASSWORD '{self.password}'")
        for statement in [*TABLES.strip().splitlines(), *GRANTS.strip().splitlines()]:
            await self._run(DBA, statement)
        for person in PEOPLE:
            await self._log_in(person)
        return str(identifier)

    async def rounds(self, count: int, pause_seconds: float = 0) -> None:
        """What everybody does every day, `count` times."""
        for _ in range(count):
            await self._one_round()
            await asyncio.sleep(pause_seconds)

    async def incidents(self) -> None:
        """A wrong password, and two who reach for what is not theirs."""
        try:
            stranger = await asyncpg.connect(
                self.dsn("ada", "a-wrong-guess"), timeout=CONNECT_SECONDS
            )
        except asyncpg.InvalidPasswordError:
            pass  # That was the point: it is in the log now.
        else:
            await stranger.close(timeout=CONNECT_SECONDS)
            raise RuntimeError("the demo's server let somebody in with a wrong password")
        await self._run_denied("bob", "SELECT amount FROM hr.salaries WHERE person = 'carl'")
        await self._run_denied("carl", "DELETE FROM sales.orders WHERE amount > 100")

    async def revoke(self) -> None:
        """Bob leaves the analysts; he tries once more."""
        await self._run(DBA, "REVOKE analysts FROM bob")
        self._has_bob = False
        await self._run_denied("bob", "SELECT sum(amount) FROM sales.orders")

    async def close(self) -> None:
        """Log everybody out."""
        await self._closing.aclose()

    async def _one_round(self) -> None:
        self._round += 1
        number = self._round
        customer = number % 50 + 1
        await self._run(
            "carl",
            f"INSERT INTO sales.orders VALUES ({number}, {customer}, {number * 7 % 400})",  # noqa: S608 - numbers
        )
        await self._run(
            "ada",
            "SELECT c.city, sum(o.amount) FROM sales.orders o "
            "JOIN sales.customers c ON c.id = o.customer_id GROUP BY c.city",
        )
        if self._has_bob:
            await self._run("bob", "SELECT sum(amount) FROM sales.orders")
        if number % 2:
            await self._run(
                "carl",
                f"UPDATE sales.orders SET amount = 1 WHERE id = {number}",  # noqa: S608 - a number
            )
        if number % 5 == 0:
            await self._run("grace", "SELECT person, amount FROM hr.salaries")
        if number % 20 == 0:
            await self._run(DBA, "SELECT count(*) FROM sales.customers")

    async def _log_in(self, role: str) -> None:
        session = await asyncpg.connect(self.dsn(role), timeout=CONNECT_SECONDS)
        self._closing.push_async_callback(session.close, timeout=CONNECT_SECONDS)
        self._sessions[role] = session

    async def _run(self, role: str, statement: str) -> None:
        self.statement_count += 1
        # `execute` without arguments is one message of the simple protocol: one line in the log.
        await self._sessions[role].execute(statement, timeout=STATEMENT_SECONDS)

    async def _run_denied(self, role: str, statement: str) -> None:
        try:
            await self._run(role, statement)
        except asyncpg.InsufficientPrivilegeError:
            return
        raise RuntimeError(f"the demo's server let {role} do what was not granted: {statement}")
