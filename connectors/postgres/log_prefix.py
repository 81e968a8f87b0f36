"""From a row of PGSQLServerLogs to a line as jsonlog writes it: pure functions, no I/O.

Azure ships each entry of the server's log as a row: `Message` is the text as `stderr` has it, with
`log_line_prefix` before it; who did it and where stands only in that prefix (MS Learn, table
PGSQLServerLogs, read 2026-11-24; that `Message` begins with the prefix, from public alert rules).
"""

from __future__ import annotations

import re
from typing import Any

from connectors._azure.log_analytics import IngestedRow
from verity_sdk.errors import Malformed
from verity_sdk.times import format_utc
from verity_sdk.values import dumps

TABLE = "PGSQLServerLogs"
DEFAULT_PREFIX = "%m|%c|%l|%u|%d|"

_TIME = r"(?P<{}>\d{{4,5}}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)? \S+)"
# What each escape prints (documentation of PostgreSQL 18, "What to Log", read 2026-11-24).
_ESCAPES = {
    "m": _TIME.format("timestamp"),
    "t": _TIME.format("seconds"),
    "c": r"(?P<session_id>[0-9a-f]+\.[0-9a-f]+)",
    "l": r"(?P<line_num>\d+)",
    "u": r"(?P<user>.*?)",
    "d": r"(?P<dbname>.*?)",
    "a": r"(?P<application_name>.*?)",
    "h": r"(?P<remote_host>.*?)",
    "p": r"\d+",
    **dict.fromkeys("bPinersLvxQ", ".*?"),
    "%": "%",
}
_NEEDED = "clud"
# What stands in for severity in the lines that only add to the one before (DETAIL, STATEMENT, …)
# is no severity, and so no event.
_ENTRY = (
    r"(?P<level>DEBUG\d?|INFO|NOTICE|WARNING|ERROR|LOG|FATAL|PANIC"
    r"|DETAIL|HINT|CONTEXT|STATEMENT|QUERY|LOCATION|BACKTRACE):\s+(?P<message>.*)"
)
# The keys of jsonlog, and the columns that hold them.
_COLUMNS = {
    "detail": ("Detail", "DetailLog"),
    "statement": ("Statement",),
    "internal_query": ("Query",),
    "context": ("Context",),
    "state_code": ("SqlErrorCode",),
}
_UNKNOWN = "[unknown]"
_OK_STATE = "00000"


def compiled(log_line_prefix: str) -> re.Pattern[str]:
    """The pattern of a whole `Message` under this log_line_prefix.

    Raises:
        ValueError: It has an escape that is not known, or lacks one that is needed: a session
            (%c), a line in it (%l), a role (%u), a database (%d) and a time (%m or %t).
    """
    escapes = re.findall(r"%(.)", log_line_prefix.replace("%%", ""))
    missing = [f"%{escape}" for escape in _NEEDED if escape not in escapes]
    if "m" not in escapes and "t" not in escapes:
        missing.append("%m")
    twice = sorted({escape for escape in escapes if escapes.count(escape) > 1})
    unknown = [escape for escape in escapes if escape != "q" and escape not in _ESCAPES]
    if missing or twice or unknown or log_line_prefix.replace("%%", "").endswith("%"):
        raise ValueError(
            f"log_line_prefix lacks {', '.join(missing) or 'nothing'}, "
            f"has {', '.join(twice + unknown) or 'nothing'} that is not understood or stands twice"
        )
    head, has_q, tail = log_line_prefix.partition("%q")
    pattern = _pattern(head) + (f"(?:{_pattern(tail)})?" if has_q else "")
    return re.compile(pattern + _ENTRY, re.DOTALL)


def jsonlog_line(row: IngestedRow, pattern: re.Pattern[str]) -> bytes | None:
    """The row as a line of jsonlog; None for one of a process that serves no session.

    All other columns of the row stand under `log_analytics`.

    Raises:
        Malformed: `Message` does not begin as log_line_prefix says.
    """
    message = row.record.get("Message")
    if not isinstance(message, str):
        raise Malformed("no text under `Message`")
    match = pattern.fullmatch(message)
    if match is None:
        raise Malformed("`Message` does not begin as log_line_prefix says: see both settings")
    found = match.groupdict()
    if found["session_id"] is None:
        return None  # its prefix ended at %q
    line: dict[str, Any] = {
        "timestamp": found.get("timestamp") or found.get("seconds"),
        "session_id": found["session_id"],
        "line_num": int(found["line_num"]),
        "error_severity": found["level"],
        "message": found["message"].rstrip("\n"),
    }
    for key in ("user", "dbname", "application_name", "remote_host"):
        if found.get(key) and found[key] != _UNKNOWN:
            line[key] = found[key]
    for key, columns in _COLUMNS.items():
        texts = [row.record.get(column) for column in columns]
        # Once each, in order: two columns may hold the same text.
        known = dict.fromkeys(text for text in texts if isinstance(text, str) and text)
        if known and not (key == "state_code" and _OK_STATE in known):
            line[key] = "\n".join(known)
    backend = row.record.get("BackendType")
    if isinstance(backend, str) and backend:
        line["backend_type"] = backend
    elif "user" in line:
        line["backend_type"] = "client backend"
    # Not twice: what is redacted above must not stand below.
    moved = {"Message", *(column for columns in _COLUMNS.values() for column in columns)}
    line["log_analytics"] = {
        "ingested_at": format_utc(row.ingested_at),
        **{key: value for key, value in row.record.items() if key not in moved},
    }
    return dumps(line)


def row_bytes(row: IngestedRow) -> bytes:
    """The row as it came, for the dead letters."""
    return dumps(row.record)


def _pattern(text: str) -> str:
    parts = re.split(r"%(.)", text)
    return "".join(
        _ESCAPES[part] if index % 2 else re.escape(part) for index, part in enumerate(parts)
    )
