"""Parts of the documents that are made from the code; `make docs` writes them again.

Such a part is between `<!-- KIND ARGUMENTS -->` and `<!-- end -->`. A test makes each of them
again and compares.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import grimp
import yaml
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from verity_stream.status import METRICS, Kind, Status
from verity_stream.worker.metrics import families

ROOT = Path(__file__).parents[1]

_UNITS = (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1))


def documents() -> list[Path]:
    """Everything that is written for people, decisions of old times left out."""
    return sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("docs/platforms/*.md")})


def made_again(text: str) -> str:
    """A document with each of its made parts as the code has it now.

    Raises:
        KeyError: A part is of a kind that nobody makes.
    """

    def again(found: re.Match[str]) -> str:
        kind, *arguments = shlex.split(found["what"])
        return f"<!-- {found['what']} -->\n{MAKERS[kind](*arguments)}\n<!-- end -->"

    return _PART.sub(again, text)


def parts(text: str) -> Iterator[list[str]]:
    """The kind and the arguments of each made part of a document."""
    for found in _PART.finditer(text):
        yield shlex.split(found["what"])


_PART = re.compile(r"<!-- (?P<what>\w+(?: [^>\n]*)?) -->\n(?s:(?P<body>.*?))<!-- end -->")


# Settings.


def settings(model: str, prefix: str = "") -> str:
    """A model's settings as a table.

    Args:
        model: `module:Class`.
        prefix: What stands before the names; in capitals for variables of the environment.
    """
    rows = ["| setting | default | |", "| --- | --- | --- |"]
    for name, field in model_class(model).model_fields.items():
        if name == "connector_id":
            continue  # It is the name of the table in `verity.toml`.
        shown = f"{prefix}{name.upper() if prefix.isupper() else name}"
        if nested(field):
            shown += "__…" if prefix.isupper() else ".…"
        default = "" if nested(field) and not field.is_required() else default_of(field)
        rows.append(f"| `{shown}` | {_cell(default)} | {_cell(field.description or '')} |")
    return "\n".join(rows)


def model_class(path: str) -> type[BaseModel]:
    """The model that `module:Class` names."""
    module, _, name = path.partition(":")
    found: type[BaseModel] = getattr(import_module(module), name)
    return found


def nested(field: FieldInfo) -> list[type[BaseModel]]:
    """The models that a setting takes: its value is a table of its own."""

    def within(annotation: Any) -> Iterator[type[BaseModel]]:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield annotation
        for argument in get_args(annotation):
            yield from within(argument)

    return list(within(field.annotation))


def reachable(*models: type[BaseModel]) -> set[type[BaseModel]]:
    """The models, and those of the tables within them."""
    found: set[type[BaseModel]] = set()
    ahead = list(models)
    while ahead:
        model = ahead.pop()
        if model not in found:
            found.add(model)
            ahead += [one for field in model.model_fields.values() for one in nested(field)]
    return found


def default_of(field: FieldInfo) -> str:
    """A default as it would be written in a setting."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if field.default_factory is not None and isinstance(value, str):
        return ""  # It depends on the machine; the description says on what.
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if value is None or value in ("", (), []):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, timedelta):
        return f"`{_duration(value)}`"
    if isinstance(value, list | tuple):
        return ", ".join(f"`{one}`" for one in value)
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _duration(value: timedelta) -> str:
    milliseconds = round(value / timedelta(milliseconds=1))
    for unit, size in _UNITS:
        # A day is 24h, as people say; more of them are days.
        if milliseconds % size == 0 and milliseconds >= (2 * size if unit == "d" else size):
            return f"{milliseconds // size}{unit}"
    return "0s"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


# Metrics and alerts.


def metrics() -> str:
    """Every metric that a worker exports, as a table."""
    rows = ["| metric | type | labels | |", "| --- | --- | --- | --- |"]
    for family in families([seen(datetime(2026, 1, 1, tzinfo=UTC))], {}, is_ready=True):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = [label for label in family.samples[0].labels if label != "le"]
        shown = ", ".join(f"`{label}`" for label in labels)
        rows.append(f"| `{name}` | {family.type} | {shown} | {_cell(family.documentation)} |")
    return "\n".join(rows)


def seen(at: datetime) -> Status:
    """The status of a connector of which everything is known."""
    status = Status("c", "test")
    for name, metric in METRICS.items():
        if getattr(status, name) is None:
            setattr(status, name, at if metric.kind is Kind.AGE else 1)
    return status


def alerts() -> str:
    """Every alert of `ops/prometheus/rules.yml`, as a table."""
    rows = [
        "| alert | severity | says | which means, and what to do |",
        "| --- | --- | --- | --- |",
    ]
    for rule in alert_rules():
        said = rule["annotations"]
        summary = said["summary"].replace("{{ $labels.connector_id }}", "A connector")
        summary = re.sub(r"\{\{ \$value[^}]*\}\}", "…", summary)
        cells = (f"`{rule['alert']}`", rule["labels"]["severity"], summary, said["description"])
        rows.append(f"| {' | '.join(_cell(cell) for cell in cells)} |")
    return "\n".join(rows)


def alert_rules() -> list[dict[str, Any]]:
    """The alerts as Prometheus reads them."""
    text = (ROOT / "ops" / "prometheus" / "rules.yml").read_text("utf-8")
    return [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]


# Platforms.


def platforms() -> str:
    """Every platform's page, by what it says of itself below its title."""
    heading = "tested against | who did what | who may do what"
    rows = [f"| platform | type | {heading} |", "| --- | --- | --- | --- | --- |"]
    for path in sorted((ROOT / "docs" / "platforms").glob("*.md")):
        text = path.read_text("utf-8")
        found = re.match(rf"# (.*)\n\n\| {re.escape(heading)} \|\n\|.*\n\| (.*) \|\n", text)
        if found is None:
            raise ValueError(f"{path.name} does not begin with its title and | {heading} |")
        link = f"[{found[1]}]({path.relative_to(ROOT)})"
        rows.append(f"| {link} | `{path.stem}` | {found[2]} |")
    return "\n".join(rows)


# Dependencies.


def dependencies() -> str:
    """The layers of the application as `make check` holds them, and who imports whom."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]
    outer, inner = [one["layers"] for one in tool["contracts"] if one["type"] == "layers"]
    rows = [[name.strip() for name in layer.split("|")] for layer in inner]
    rows += [[layer] for layer in outer if layer != "verity_stream"]
    graph = grimp.build_graph(*tool["root_packages"])
    names = [name for row in rows for name in row]
    lines = ["```mermaid", "flowchart TD"]
    for number, row in enumerate(rows):
        nodes = " ".join(f'{_node(name)}["{_shown(name)}"]' for name in row)
        lines.append(f"  subgraph layer{number}[ ]")
        lines += [f"    {node}" for node in nodes.split(" ")]
        lines.append("  end")
    for name in names:
        used = [other for other in names if other != name and _imports(graph, name, other)]
        if used:
            lines.append(f"  {_node(name)} --> {' & '.join(map(_node, used))}")
    return "\n".join([*lines, "```"])


def _node(name: str) -> str:
    return name.replace(".", "_")


def _shown(name: str) -> str:
    return name.removeprefix("verity_stream.")


def _imports(graph: grimp.ImportGraph, name: str, other: str) -> bool:
    ours = {name} | graph.find_descendants(name)
    theirs = {other} | graph.find_descendants(other)
    return any(graph.find_modules_directly_imported_by(one) & theirs for one in ours)


MAKERS: Mapping[str, Callable[..., str]] = {
    "alerts": alerts,
    "dependencies": dependencies,
    "metrics": metrics,
    "platforms": platforms,
    "settings": settings,
}


if __name__ == "__main__":
    for path in documents():
        before = path.read_text("utf-8")
        if (after := made_again(before)) != before:
            path.write_text(after, "utf-8")
            print(f"{path.relative_to(ROOT)} is written")  # noqa: T201 - it is a command
