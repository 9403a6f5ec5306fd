"""The tables and the schema that are made from the code: `make docs` writes them.

* docs/configuration.md from the settings model, docs/metrics.md from the registry, docs/answers.md
  from the table of problems; each table between two markers
* config/proxy.schema.json: what `export-proxy schema` prints

A test fails where a file is not what is made here.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

from prometheus_client import CollectorRegistry
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from proxy.problems import KINDS, Again
from proxy.rules.state import AccountState, QueueState, TokenState
from proxy.settings import DEFAULT_ROUTES, Settings, schema
from proxy.telemetry.live import Snapshot
from proxy.telemetry.metrics import Metrics

ROOT: Final = Path(__file__).parent.parent
DOCS: Final = ROOT / "docs"
SCHEMA: Final = ROOT / "config" / "proxy.schema.json"

_RETRY_AFTER: Final = {
    Again.YES: "yes",
    Again.NO: "no",
    Again.DEPENDS: "while it may still appear",
}


def generated(text: str, name: str, table: str) -> str:
    """Return the text with the table of that name made anew."""
    begin, end = f"<!-- {name}: made by make docs -->\n", f"<!-- end of {name} -->"
    before, marker, rest = text.partition(begin)
    _, end_marker, after = rest.partition(end)
    if not marker or not end_marker:
        raise ValueError(f"there must be a part between {begin.strip()} and {end}")
    return before + begin + table + end + after


def schema_text() -> str:
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


# The configuration.


def configuration() -> str:
    rows = ["| key | default | meaning |", "| --- | --- | --- |"]
    return "".join(f"{row}\n" for row in [*rows, *_keys(Settings, "")])


def _keys(section: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in section.model_fields.items():
        key = f"{prefix}{name}"
        inner, is_list = _section_within(field.annotation)
        if inner is None or is_list or field.default is None:
            yield f"| `{key}` | {_default(field)} | {_meaning(field)} |"
        if inner is not None:
            yield from _keys(inner, f"{key}[]." if is_list else f"{key}.")


def _section_within(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """Return the section a key holds, if it does, and whether it holds a list of them."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind, get_origin(annotation) is tuple
    return None, False


def _default(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    if field.is_required():
        return "required"
    if default == DEFAULT_ROUTES:
        return "as in [proxy.yaml](../config/proxy.yaml)"
    if isinstance(default, SecretStr):
        default = default.get_secret_value()
    return f"`{json.dumps(default)}`"


def _meaning(field: FieldInfo) -> str:
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    one_of = " or ".join(f"`{choice}`" for choice in choices)
    return _cell(field.description) + (f" {one_of}." if choices else "")


# The metrics.


def metrics() -> str:
    """Make the table by letting everything happen once: only then are labels there to be read."""
    registry = CollectorRegistry()
    instruments = Metrics(registry)
    _let_everything_happen(instruments)
    rows = ["| metric | type | labels | meaning |", "| --- | --- | --- | --- |"]
    for family in sorted(registry.collect(), key=lambda family: family.name):
        labels = {tuple(s.labels) for s in family.samples if not s.name.endswith("_bucket")}
        if len(labels) != 1:
            raise ValueError(f"{family.name}: nothing lets it happen")
        name = family.name.removeprefix("export_proxy_")
        name += "_total" if family.type == "counter" else ""
        shown = ", ".join(f"`{label}`" for label in labels.pop()) or "–"
        rows.append(f"| `{name}` | {family.type} | {shown} | {_cell(family.documentation)} |")
    return "".join(f"{row}\n" for row in rows)


def _let_everything_happen(metrics: Metrics) -> None:
    metrics.request(
        account="a", route="r", method="GET", code=200, origin="proxy", seconds=1, request_id=""
    )
    metrics.caller_request("a", "c", 200)
    metrics.waited("a", "r", "sent", 1)
    metrics.would_have("a", "r", 1, is_refused=False)
    metrics.would_have("a", "r", 1, is_refused=True)
    metrics.sent("a", "r", lateness=0, early=False)
    metrics.queue_opened("a", "r")
    metrics.answered("a", "r", 200, 1)
    metrics.retried("a", "unreachable")
    metrics.repeated("a", "joined")
    metrics.repeat_evicted("a")
    metrics.incidents.count("hold", "opened")
    metrics.merged("a", "exports")
    metrics.hold_begun("a", "refused")
    metrics.held("a", 1)
    metrics.token_refreshed("a", "startup", "ok")
    metrics.nested_field("r", "legal_hold")
    metrics.connection_refused("limit")
    metrics.servers.clock_skew("api", 0)
    metrics.servers.store_is(up=True)
    metrics.servers.store_bypassed()
    queue = QueueState(name="r", queue_depth=0, oldest_seconds=0, interval=1)
    token = TokenState(
        expires_in=1, scopes=(), missing=(), next_refresh_in=1, issued_at=1, rejected=False
    )
    state = AccountState(
        name="a",
        routes=(queue,),
        in_flight=0,
        hold_remaining_seconds=0,
        quota_remaining=0,
        token=token,
    )
    metrics.live.snapshot = Snapshot(accounts=(state,))


# The answers of the proxy's own.


def answers() -> str:
    rows = ["| name | status | Retry-After | title |", "| --- | --- | --- | --- |"]
    for name, kind in KINDS.items():
        status = ", ".join(map(str, (kind.status, *kind.variants)))
        rows.append(f"| `{name}` | {status} | {_RETRY_AFTER[kind.again]} | {kind.title} |")
    return "".join(f"{row}\n" for row in rows)


def _cell(text: str | None) -> str:
    if not text:
        raise ValueError("a key or a metric is not described")
    return " ".join(text.split()).replace("|", "\\|")


def documents() -> Mapping[Path, str]:
    """Return each generated file and what it must hold."""
    tables = {"configuration": configuration(), "metrics": metrics(), "answers": answers()}
    pages = {
        path: generated(path.read_text(encoding="utf-8"), name, table)
        for name, table in tables.items()
        for path in [DOCS / f"{name}.md"]
    }
    return {**pages, SCHEMA: schema_text()}


if __name__ == "__main__":
    for path, text in documents().items():
        path.write_text(text, encoding="utf-8")
