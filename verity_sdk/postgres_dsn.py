"""Addresses of PostgreSQL as people are given them: libpq's two forms, made into asyncpg's.

asyncpg sends every parameter that it does not know to the server, which refuses it. So each one
is taken, translated, left out or refused here, by name. Nothing here knows asyncpg.
"""

from __future__ import annotations

import configparser
import enum
import os
import re
import ssl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from verity_sdk.errors import Misconfigured

DEFAULT_PORT = 5432
SHORTEST_CONNECT_SECONDS = 2.0
"""libpq's own: fewer seconds are read as so many."""


class Use(enum.Enum):
    """What becomes of a parameter."""

    TAKEN = "taken"
    TRANSLATED = "translated"
    SESSION = "sent to the server when a session begins"
    LEFT_OUT = "left out"
    REFUSED = "not usable"


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of libpq's, or one that a vendor adds.

    Attributes:
        use: What becomes of it.
        note: Why, or how; for people.
        only: The values that are possible; None for any.
    """

    use: Use
    note: str = ""
    only: frozenset[str] | None = None


def _only(*values: str) -> frozenset[str]:
    return frozenset(values)


_VERIFYING = ("verify-ca", "verify-full")
_FILES = ("sslrootcert", "sslcert", "sslkey", "sslcrl")
_OWN_WAITS = "every wait has a limit in Verity's own settings"
_NO_KERBEROS = "connections are not encrypted by GSSAPI; use TLS"

PARAMETERS: Mapping[str, Parameter] = {
    "host": Parameter(Use.TAKEN, "several with commas; a folder of a socket begins with `/`"),
    "hostaddr": Parameter(Use.TRANSLATED, "where there is no `host`; else it is left out"),
    "port": Parameter(Use.TAKEN, "one for all hosts, or one each"),
    "dbname": Parameter(Use.TAKEN),
    "user": Parameter(Use.TAKEN),
    "password": Parameter(Use.TAKEN),
    "passfile": Parameter(Use.TAKEN),
    "service": Parameter(Use.TRANSLATED, "read from `PGSERVICEFILE` or `~/.pg_service.conf`"),
    "servicefile": Parameter(Use.TRANSLATED, "the file of `service`"),
    "connect_timeout": Parameter(
        Use.TRANSLATED, "seconds for one host, instead of the setting; 0 leaves it to the setting"
    ),
    "target_session_attrs": Parameter(
        Use.TAKEN,
        "`read-write` for several hosts of Verity's own database if not given",
        _only("any", "read-write", "read-only", "primary", "standby", "prefer-standby"),
    ),
    "load_balance_hosts": Parameter(
        Use.LEFT_OUT, "hosts are tried in turn", _only("disable", "random")
    ),
    "sslmode": Parameter(
        Use.TAKEN, "", _only("disable", "allow", "prefer", "require", *_VERIFYING)
    ),
    "ssl": Parameter(Use.TRANSLATED, "`true` is `sslmode=require`", _only("true", "false")),
    "requiressl": Parameter(Use.TRANSLATED, "`1` is `sslmode=require`", _only("0", "1")),
    "sslrootcert": Parameter(
        Use.TAKEN, "a file, or `system`: the machine's roots, with `sslmode=verify-full`"
    ),
    "sslcert": Parameter(Use.TAKEN),
    "sslkey": Parameter(Use.TAKEN),
    "sslpassword": Parameter(Use.TAKEN),
    "sslcrl": Parameter(Use.TAKEN),
    "sslcrldir": Parameter(Use.REFUSED, "give one file, `sslcrl`"),
    "ssl_min_protocol_version": Parameter(Use.TAKEN, "", _only("TLSv1.2", "TLSv1.3")),
    "ssl_max_protocol_version": Parameter(Use.TAKEN, "", _only("TLSv1.2", "TLSv1.3")),
    "sslnegotiation": Parameter(Use.TAKEN, "", _only("postgres", "direct")),
    "sslcompression": Parameter(Use.LEFT_OUT, "there is none"),
    "sslsni": Parameter(Use.LEFT_OUT, "the host's name is always sent", _only("1")),
    "sslcertmode": Parameter(Use.LEFT_OUT, "", _only("allow", "disable")),
    "sslkeylogfile": Parameter(Use.REFUSED, "set SSLKEYLOGFILE"),
    "channel_binding": Parameter(
        Use.LEFT_OUT,
        "asyncpg has none: after `require` a warning says so, and `sslmode=verify-full` with "
        "`sslrootcert=system` protects as well where the vendor's certificate is a public one",
        _only("disable", "prefer", "require"),
    ),
    "require_auth": Parameter(Use.REFUSED, "the way of logging in is the server's choice"),
    "requirepeer": Parameter(Use.REFUSED, "the other side of a socket is not asked who it is"),
    "gssencmode": Parameter(Use.LEFT_OUT, _NO_KERBEROS, _only("disable", "prefer")),
    "gssdelegation": Parameter(Use.LEFT_OUT, "", _only("0")),
    "krbsrvname": Parameter(Use.TAKEN),
    "gsslib": Parameter(Use.TAKEN, "", _only("gssapi", "sspi")),
    "keepalives": Parameter(Use.LEFT_OUT, _OWN_WAITS),
    "keepalives_idle": Parameter(Use.LEFT_OUT, _OWN_WAITS),
    "keepalives_interval": Parameter(Use.LEFT_OUT, _OWN_WAITS),
    "keepalives_count": Parameter(Use.LEFT_OUT, _OWN_WAITS),
    "tcp_user_timeout": Parameter(Use.LEFT_OUT, _OWN_WAITS),
    "application_name": Parameter(Use.SESSION, "instead of Verity's own name"),
    "fallback_application_name": Parameter(Use.LEFT_OUT, "Verity has a name"),
    "options": Parameter(Use.SESSION, "for example `-c search_path=verity`, `endpoint=…` of Neon"),
    "client_encoding": Parameter(
        Use.LEFT_OUT, "it is always UTF-8", _only("utf8", "UTF8", "utf-8", "UTF-8", "auto")
    ),
    "replication": Parameter(Use.REFUSED, "such a connection takes no statements"),
    "min_protocol_version": Parameter(Use.LEFT_OUT, "", _only("3.0")),
    "max_protocol_version": Parameter(Use.LEFT_OUT, "version 3.0 is spoken"),
    "scram_client_key": Parameter(Use.REFUSED, "give the password"),
    "scram_server_key": Parameter(Use.REFUSED, "give the password"),
    "oauth_issuer": Parameter(Use.REFUSED, "give a password"),
    "oauth_client_id": Parameter(Use.REFUSED, "give a password"),
    "oauth_client_secret": Parameter(Use.REFUSED, "give a password"),
    "oauth_scope": Parameter(Use.REFUSED, "give a password"),
    "pgbouncer": Parameter(
        Use.TRANSLATED, "`true`: no prepared statements", _only("true", "false")
    ),
    "supa": Parameter(Use.LEFT_OUT, "Supabase's own mark"),
    "uselibpqcompat": Parameter(Use.LEFT_OUT, "of node-postgres"),
    "connection_limit": Parameter(Use.REFUSED, "Prisma's; the pool's size is a setting"),
    "pool_timeout": Parameter(Use.REFUSED, "Prisma's; the wait for the pool is a setting"),
    "schema": Parameter(Use.REFUSED, "Prisma's; `options=-c%20search_path%3D…` does it"),
}
"""Every parameter that is known. Another name is sent to the server as a setting of the session
(`statement_timeout`, `search_path`), which refuses what it does not know."""

_ALIASES = {"database": "dbname"}
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
_PLACEHOLDER = re.compile(r"\[your-password\]|\{your[_-]password\}|<password>", re.IGNORECASE)
_PAIR = re.compile(
    r"\s*(?P<name>[^\s=]+)\s*=\s*(?:'(?P<quoted>(?:[^'\\]|\\.)*)'(?=\s|$)|"
    r"(?P<plain>(?:[^\s'\\]|\\.)(?:[^\s\\]|\\.)*)?(?=\s|$))",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a PostgreSQL is, and how to log in.

    Attributes:
        hosts: Names or folders, each with its port; empty leaves it to the environment.
        parameters: Of asyncpg's own DSN, without hosts; secret.
        session: What the server is told when a session begins.
        system_roots: Where the machine's roots are to be trusted: this side's certificate.
        connect_seconds: How long connecting to one host may take; None if it was not said.
        is_pooled: Whether it says that a pooler stands between.
        warnings: What was asked for and can't be kept; no values.
    """

    hosts: Sequence[tuple[str, int]]
    parameters: Mapping[str, str] = field(repr=False)
    session: Mapping[str, str]
    system_roots: Mapping[str, str] | None = field(default=None, repr=False)
    connect_seconds: float | None = None
    is_pooled: bool = False
    warnings: Sequence[str] = ()

    def each_host(self) -> list[Address]:
        """The address of every host for itself."""
        if len(self.hosts) < 2:
            return [self]
        return [replace(self, hosts=[host]) for host in self.hosts]

    def or_else(self, **parameters: str) -> Address:
        """With these parameters where it has none of its own."""
        return replace(self, parameters={**parameters, **self.parameters})

    def arguments(self) -> dict[str, Any]:
        """What `asyncpg.connect` needs besides the DSN; reads certificates.

        Raises:
            Misconfigured: This side's own can't be used.
        """
        return {} if self.system_roots is None else {"ssl": _context(**self.system_roots)}

    @property
    def dsn(self) -> str:
        """As asyncpg takes it; a secret."""
        parameters = dict(self.parameters)
        if self.hosts:
            parameters["host"] = ",".join(_bracketed(host) for host, _ in self.hosts)
            parameters["port"] = ",".join(str(port) for _, port in self.hosts)
        query = "&".join(f"{name}={quote(value, safe='')}" for name, value in parameters.items())
        return f"postgresql://?{query}" if query else "postgresql://"


def read_address(text: str, setting: str) -> Address:
    """Read an address in either of libpq's forms, `postgresql://…` or `host=… user=…`.

    Args:
        text: The address; a secret.
        setting: Where it comes from, as the errors call it.

    Raises:
        Misconfigured: It is none, or names what can't be used; one line, without any value.
    """
    try:
        return _address(_with_service(parse(text)))
    except _Unusable as error:
        raise Misconfigured(f"{setting}: {error}") from None


def parse(text: str) -> dict[str, str]:
    """The parameters of an address, by libpq's names.

    Raises:
        ValueError: It is none; the message holds no part of it.
    """
    text = text.strip()
    scheme, separator, rest = text.partition("://")
    if separator and scheme in {"postgresql", "postgres"}:
        if _PLACEHOLDER.search(text):
            raise _Unusable("the place of the password still holds the vendor's placeholder")
        return _parse_uri(rest)
    if separator and re.fullmatch(r"[A-Za-z0-9+.:-]+", scheme):
        raise _Unusable(
            "it must begin with postgresql:// (the form for psql, not JDBC's or others)"
        )
    if text.startswith("psql "):
        raise _Unusable("it is a command: give what stands in quotes after psql")
    if "=" not in text or ";" in text.partition("=")[2].partition(" ")[0]:
        raise _Unusable(
            "it is no PostgreSQL address, neither postgresql://user:password@host:port/database "
            "nor host=… port=… dbname=… user=… password=…"
        )
    return _parse_pairs(text)


def secrets_in(text: str) -> Iterator[str]:
    """The passwords in an address, as written and as meant; nothing where it is none."""
    try:
        parameters = parse(text)
    except ValueError:
        return
    for name in ("password", "sslpassword"):
        if value := parameters.get(name):
            yield value
            yield quote(value, safe="")


class _Unusable(ValueError):
    """Why an address can't be used; holds no part of a value."""


def _parse_uri(rest: str) -> dict[str, str]:
    found: dict[str, str] = {}
    head, slash, tail = rest.partition("/")
    login, at, places = head.rpartition("@")  # A host has none, so the last one ends the login.
    if not slash:
        places, _, query = places.partition("?")
        name = ""
    elif "?" in places and not at:  # A slash of the query, as in a path to a certificate.
        places, _, query = rest.partition("?")
        name = ""
    else:
        name, _, query = tail.partition("?")
    if at:
        user, colon, password = login.partition(":")
        found |= {"user": unquote(user)} if user else {}
        found |= {"password": unquote(password)} if colon else {}
    hosts, ports = [], []
    for place in places.split(",") if places else []:
        match = re.fullmatch(r"(?:\[([^\]]*)\]|([^:\[\]]*))(?::([0-9]*))?", place)
        if match is None:
            raise _Unusable(
                "host and port are not understood; special characters of user and password must "
                "be percent-encoded (/ is %2F, : is %3A, # is %23)"
            )
        hosts.append(unquote(match[1] or match[2] or ""))
        ports.append(match[3] or "")
    if any(hosts):
        found["host"] = ",".join(hosts)
    if any(ports):
        found["port"] = ",".join(ports)
    if name:
        found["dbname"] = unquote(name)
    for pair in query.split("&") if query else []:
        key, equals, value = pair.partition("=")
        if not equals:
            raise _Unusable("a parameter after the ? has no value (& must be %26 in a value)")
        found[unquote(key)] = unquote(value)
    return found


def _parse_pairs(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    place = 0
    while place < len(text):
        match = _PAIR.match(text, place)
        if match is None:
            raise _Unusable(
                "it is not understood as name=value …: a value with spaces or quotes stands in "
                "single quotes, with \\ before ' and \\"
            )
        raw = match["quoted"] if match["quoted"] is not None else match["plain"] or ""
        found[match["name"]] = re.sub(r"\\(.)", r"\1", raw, flags=re.DOTALL)
        place = match.end()
    if any(_PLACEHOLDER.search(value) for value in found.values()):
        raise _Unusable("the place of the password still holds the vendor's placeholder")
    return found


def _with_service(parameters: Mapping[str, str]) -> dict[str, str]:
    found = dict(parameters)
    service, named = found.pop("service", ""), found.pop("servicefile", "")
    if not service:
        return found
    path = Path(named or os.environ.get("PGSERVICEFILE") or "~/.pg_service.conf").expanduser()
    services = configparser.ConfigParser(interpolation=None, delimiters=("=",))
    services.optionxform = str  # type: ignore[assignment, method-assign]  # Names stay as written.
    try:
        services.read_string(path.read_text("utf-8"))
    except (OSError, ValueError, configparser.Error):
        raise _Unusable("service: the file of services can't be read") from None
    if service not in services:
        raise _Unusable("service: the file of services has none of this name")
    return {**services[service], **found}


def _address(given: Mapping[str, str]) -> Address:
    parameters: dict[str, str] = {}
    session: dict[str, str] = {}
    for name, value in given.items():
        known = _ALIASES.get(name, name)
        if not _NAME.fullmatch(known):
            raise _Unusable("the name of a parameter is not understood (& must be %26 in a value)")
        parameter = PARAMETERS.get(known, Parameter(Use.SESSION))
        if parameter.use is Use.REFUSED:
            raise _Unusable(f"{known} is not usable: {parameter.note}")
        if value and parameter.only is not None and value not in parameter.only:
            note = f" ({parameter.note})" if parameter.note else ""
            raise _Unusable(f"{known} can only be {', '.join(sorted(parameter.only))}{note}")
        if value and parameter.use is Use.SESSION:
            session[known] = value
        elif value:
            parameters[known] = value
    is_tls_asked = parameters.pop("ssl", "") == "true", parameters.pop("requiressl", "") == "1"
    if any(is_tls_asked):
        parameters.setdefault("sslmode", "require")
    warnings = []
    if parameters.get("channel_binding") == "require":
        warnings.append(f"channel_binding=require can't be kept: {_note('channel_binding')}")
    hosts = _hosts(parameters)
    connect_seconds = _seconds(parameters.pop("connect_timeout", "0"))
    is_pooled = parameters.pop("pgbouncer", "") == "true"
    system_roots = _tls(parameters)
    taken = {n: v for n, v in parameters.items() if PARAMETERS[n].use is Use.TAKEN}
    return Address(hosts, taken, session, system_roots, connect_seconds, is_pooled, warnings)


def _note(name: str) -> str:
    return PARAMETERS[name].note.replace("`", "")


def _hosts(parameters: dict[str, str]) -> list[tuple[str, int]]:
    host, hostaddr, port = (parameters.pop(name, "") for name in ("host", "hostaddr", "port"))
    hosts = [name.strip() for name in (host or hostaddr).split(",")]
    ports = [number.strip() for number in port.split(",")]
    if not all(number.isdecimal() and 0 < int(number) < 65536 for number in ports if number):
        raise _Unusable("port is no number from 1 to 65535")
    if len(ports) == 1:
        ports *= len(hosts)
    if len(ports) != len(hosts):
        raise _Unusable("port: give one for all hosts, or one for each")
    if hosts == [""]:
        # asyncpg looks at PGHOST, and for a socket.
        parameters |= {"port": port} if port else {}
        return []
    return [
        (name or "localhost", int(number or DEFAULT_PORT))
        for name, number in zip(hosts, ports, strict=True)
    ]


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("/") else host


def _seconds(text: str) -> float | None:
    try:
        seconds = int(text)
    except ValueError:
        raise _Unusable("connect_timeout is no whole number of seconds") from None
    return max(SHORTEST_CONNECT_SECONDS, float(seconds)) if seconds > 0 else None


def _tls(parameters: dict[str, str]) -> dict[str, str] | None:
    mode = parameters.get("sslmode")
    is_system = parameters.get("sslrootcert") == "system"
    if mode == "disable":
        for name in (*_FILES, "sslpassword"):
            parameters.pop(name, None)
        return None
    for name in _FILES:
        if name in parameters and not (name == "sslrootcert" and is_system):
            path = Path(parameters[name]).expanduser()
            if not path.is_file() or not os.access(path, os.R_OK):
                raise _Unusable(f"{name}: there is no such file, or it can't be read")
            parameters[name] = str(path)
    if is_system:
        if mode not in (None, "verify-full"):
            raise _Unusable("sslrootcert=system needs sslmode=verify-full")
        for name in ("sslmode", "sslrootcert"):
            parameters.pop(name, None)
        own = {name: parameters.pop(name, "") for name in ("sslcert", "sslkey", "sslpassword")}
        return {name: value for name, value in own.items() if value}
    own_roots = Path("~/.postgresql/root.crt").expanduser()
    roots = parameters.get("sslrootcert") or os.environ.get("PGSSLROOTCERT")
    if mode in _VERIFYING and not roots and not own_roots.exists():
        raise _Unusable(
            f"sslmode={mode} needs sslrootcert: the file with the vendor's roots, or system for "
            "the machine's (with verify-full)"
        )
    return None


def _context(sslcert: str = "", sslkey: str = "", sslpassword: str = "") -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ssl.HAS_ALPN:
        context.set_alpn_protocols(["postgresql"])
    if sslcert:
        try:
            context.load_cert_chain(sslcert, sslkey or None, lambda: sslpassword)
        except OSError:  # An SSLError is one.
            raise Misconfigured(
                "sslcert and sslkey of the address don't fit together, or need sslpassword"
            ) from None
    return context


def refused_parameter(message: str) -> str:
    """The parameter that a server's refusal names, without the value that it may quote."""
    found = re.search(r'parameter "([A-Za-z_][A-Za-z0-9_.]*)"', message)
    return f"the parameter {found[1]}" if found else "a parameter of the session"
