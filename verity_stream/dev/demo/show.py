"""The demo's tables: who did what, who may do what, and the proof."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from verity_stream.dev.demo.proof import Proof

NEWS = {"LOGIN_FAILED", "DENIED", "ERROR", "REVOKE"}
"""Operations that stand out in the table."""
WIDTH_WITHOUT_TERMINAL = 110


class Progress:
    """Lines with the time since the start."""

    def __init__(self) -> None:
        self._began_at = time.monotonic()
        console = Console(highlight=False)
        self.console = (
            console
            if console.is_terminal
            else Console(highlight=False, width=WIDTH_WITHOUT_TERMINAL)
        )

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._began_at

    def say(self, text: str, style: str = "") -> None:
        """One line."""
        line = Text(f"{self.seconds:6.1f} s  ", style="dim")
        line.append(text, style=style or "not dim")
        self.console.print(line)


def who_did_what(events: Sequence[Mapping[str, Any]], server: str, rows_max: int = 18) -> Table:
    """The events by principal, operation and object; what stands out comes first.

    Args:
        events: Bodies of raw events.
        server: The prefix of references, which every row shares.
        rows_max: The rest is one line that says how many.
    """
    counts: Counter[tuple[str, str, str]] = Counter()
    last: dict[tuple[str, str, str], str] = {}
    for event in events:
        key = (
            short(event["principal_ref"], server),
            event["operation"],
            short(event["asset_ref"], server),
        )
        counts[key] += 1
        last[key] = max(last.get(key, ""), event["occurred_at"])

    def is_news(operation: str) -> bool:
        return not NEWS.isdisjoint(operation.replace(".", " ").split())

    ordered = sorted(counts, key=lambda key: (not is_news(key[1]), -counts[key], key))
    table = Table(title="Who did what", title_justify="left", title_style="bold")
    for column in ("who", "did", "on what"):
        table.add_column(column)
    table.add_column("times", justify="right")
    table.add_column("last, UTC")
    for key in ordered[:rows_max]:
        style = "bold red" if is_news(key[1]) else ""
        cells = [*key, str(counts[key]), last[key][11:19]]
        table.add_row(*(Text(cell, style=style) for cell in cells))
    rest = ordered[rows_max:]
    if rest:
        table.add_row(
            Text(f"… {len(rest)} more kinds", style="dim"),
            *("", ""),
            Text(str(sum(counts[key] for key in rest)), style="dim"),
            "",
        )
    return table


def who_may_do_what(grants: Sequence[Mapping[str, Any]], server: str, database: str) -> Table:
    """What people and groups hold, one row for everybody and every object.

    Left out for the reader: what belongs to the server itself and what owners have anyway.
    """
    held: dict[tuple[str, str, str], list[str]] = {}
    for grant in grants:
        asset = short(grant["asset_ref"], server)
        principal = short(grant["principal_ref"], server)
        if grant["grant_mechanism"] == "owner" or principal.startswith("pg_"):
            continue
        is_membership = grant["asset_ref"].startswith(f"pg:{server}/role:")
        if is_membership and grant["privilege"] != "USAGE":
            continue  # SET goes with USAGE here.
        if not is_membership and not asset.startswith(f"{database}/"):
            continue
        if not is_membership and (":sales" not in asset and ":hr" not in asset):
            continue
        via = grant["granted_via"] or ""
        how = f"{grant['grant_mechanism']}, by {via}" if via else grant["grant_mechanism"]
        privilege = "member" if is_membership else grant["privilege"]
        held.setdefault((principal, asset, how), []).append(privilege)
    table = Table(title="Who may do what", title_justify="left", title_style="bold")
    for column in ("who", "may", "on what", "how"):
        table.add_column(column)
    for (principal, asset, how), privileges in sorted(held.items()):
        table.add_row(*map(Text, (principal, ", ".join(sorted(set(privileges))), asset, how)))
    return table


def proof_lines(proof: Proof) -> Text:
    """The proof in a few lines, and whether it held."""
    text = Text()
    version = "-" if proof.views.topic is None else proof.views.topic.version
    views = "equal" if proof.views.are_equal else "NOT equal"
    source, topic = len(proof.source_ids), len(proof.topic_ids)
    sign = "=" if source == topic else "≠"
    text.append(
        f"events in source {source} {sign} events in topic {topic}, repeats "
        f"{len(proof.repeated)}, lost {len(proof.lost)}, three views {views} (version {version})\n",
        style="bold",
    )
    text.append(
        f"statements sent {proof.statements_sent}, found in the topic {proof.statements_found}; "
        f"passwords in the topic {proof.leak_count}\n"
    )
    if proof.differences:
        text.append("It did not hold:", style="bold red")
        for difference in proof.differences:
            text.append(f"\n  {difference}", style="red")
    else:
        text.append("It held: exactly once, across a kill -9.", style="bold green")
    return text


def short(reference: str, server: str) -> str:
    """A reference without the server that all of them share, safe to print."""
    text = reference.removeprefix(f"pg:{server}/").removeprefix("role:")
    return "".join(c if c.isprintable() else "?" for c in text)
