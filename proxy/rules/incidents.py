"""Incidents: which trouble of an account is reported to a service desk, and in which words.

An account has one incident per kind of trouble at most:

| kind | it is there while |
| --- | --- |
| scope_missing | new tokens lack a scope that callers need, after the propagation window |
| credentials_rejected | the login server refuses the account's credentials |
| hold | the API has refused the account's requests for `open_after` seconds or longer |
| unreachable | a request could not be sent, and the API has not answered since |
| in_doubt | the answer of an unsafe request was lost within the last `DOUBT_SECONDS` |

A `Sighting` says of one kind: it is there (`Trouble`), it is not (`CLEAR`), or it is not known yet
(`UNKNOWN`), as after a restart. Text from a request is bounded, and is only a value: it is inserted
into a template once, and never read as a template or as JSON.
"""

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Final, Literal, get_args

from proxy.rules.digests import digest
from proxy.rules.hold import HoldState
from proxy.rules.needs import Document, Members

TroubleKind = Literal["scope_missing", "credentials_rejected", "hold", "unreachable", "in_doubt"]
KINDS: Final[tuple[TroubleKind, ...]] = get_args(TroubleKind)

ID_PREFIX: Final = "export-proxy:"
DOUBT_SECONDS: Final = 900.0  # time for a person to look whether the export is there
_PROBE_SECONDS: Final = 5.0  # after a hold, in which a waiting request goes as the probe
_LONGEST_VALUE: Final = 64  # characters of a value out of a request
_LONGEST_TEXT: Final = 4_000  # characters of a column: ServiceNow's own limit for a description
_PLACEHOLDER: Final = re.compile(r"\{\{|\}\}|\{([A-Za-z_]*)\}")
PLACEHOLDERS: Final = (
    "account",
    "kind",
    "title",
    "detail",
    "route",
    "since",
    "legal_hold",
    "channel",
)

OWN_COLUMNS: Final[Mapping[str, frozenset[str]]] = {
    "servicenow": frozenset(
        {"number", "sys_id", "active", "correlation_id", "correlation_display", "close_notes"}
    ),
    "flat": frozenset({"event", "correlation_id", "at"}),
}
"""Columns that a configuration cannot set: those of the receiver, and those the proxy sets."""

Value = str | bool
"""What a column holds: text, or true or false."""


class Unseen(Enum):
    """A kind of trouble is not there, or it is not known."""

    CLEAR = "clear"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Subject:
    """What an incident tells about the latest affected request."""

    route: str = ""
    legal_hold: Value = ""
    channel: Value = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """A present trouble; `since` is wall time, in seconds since the epoch.

    `mark` changes when there is news. `scopes` are those that are missing.
    """

    account: str
    kind: TroubleKind
    since: float
    detail: str
    subject: Subject = Subject()
    mark: Hashable = None
    scopes: frozenset[str] = field(default_factory=frozenset)

    @property
    def title(self) -> str:
        """The trouble in one line."""
        return f"{self.account}: {_TITLES[self.kind]}"


Sighting = Trouble | Unseen

_TITLES: Final[Mapping[TroubleKind, str]] = {
    "scope_missing": "new tokens lack a scope",
    "credentials_rejected": "the login server refuses the credentials",
    "hold": "on hold, the API refuses requests",
    "unreachable": "the API cannot be reached",
    "in_doubt": "requests may have been carried out",
}
_OVER: Final[Mapping[TroubleKind, str]] = {
    "scope_missing": "The account's token has the scopes that were missing.",
    "credentials_rejected": "The login server accepts the credentials again.",
    "hold": "The hold is over.",
    "unreachable": "The API answers again.",
    "in_doubt": "No further answer was lost for 15 minutes.",
}


def incident_id(account_id: str, kind: TroubleKind) -> str:
    """Return the name of an incident: the same for every replica, and after every restart."""
    return f"{ID_PREFIX}{kind}:{digest(account_id)[:16]}"


def end_of(kind: TroubleKind) -> str:
    """Return the sentence with which an incident is closed."""
    return _OVER[kind]


# What of a request an incident tells.


def subject_of(document: Document, route: str, channel_fields: Iterable[str]) -> Subject:
    """Return what an incident tells about a request: two scalars at the top level of its body."""
    if not isinstance(document, Members):
        return Subject(route)
    members = {key.strip().lower(): value for key, value in document}
    names = [name.lower() for name in channel_fields]
    channel = next((members[name] for name in names if name in members), None)
    return Subject(route, scalar(members.get("legal_hold")), scalar(channel))


def scalar(value: Any) -> Value:
    """Return a JSON scalar as a column's value; empty for any other value, or a long one."""
    match value:
        case bool():
            return value
        case float() if value.is_integer():
            text = f"{value:.0f}"
        case int() | float() | str():
            text = str(value)
        case _:
            return ""
    return text if len(text) <= _LONGEST_VALUE else ""


# What there is to tell.


def lasts(state: HoldState, now: float, *, open_after: float) -> bool | None:
    """True if a hold has lasted `open_after` seconds, False if there is none, None if it still may.

    A hold without a probe is over at the end of the time that the API named.
    """
    hold = state.hold
    if hold is None:
        return False
    ends = max(hold.until, hold.named_until)
    if not state.probes and now > ends + _PROBE_SECONDS:
        return False
    return True if min(now, ends) - hold.since >= open_after else None


def hold_detail(route: str | None, limit: str | None, ends: float) -> str:
    """Say what is held, and until when (wall time)."""
    what = "The proxy sends nothing" if route is None else f"The proxy sends nothing on {route}"
    name = f" (limit {limit})" if limit else ""
    return (
        f"The API refused requests, or says that its quota is used up{name}. {what} before"
        f" {utc(ends)}; then one request goes first, as a probe."
    )


def scope_detail(scopes: Iterable[str]) -> str:
    """Say which scopes are missing."""
    names = ", ".join(sorted(scopes))
    return (
        f"New tokens still lack {names} after tokens.propagation_window. The proxy refuses"
        " requests that need it with 403. Grant it to the account's role, or stop such requests."
    )


REJECTED_DETAIL: Final = (
    "The login server refuses the account's client id or secret. Requests are refused with 502"
    " until the proxy has a valid secret."
)


def unreachable_detail(server: str) -> str:
    """Say what cannot be reached."""
    return f"The proxy cannot connect to {server}. It sent nothing, and refuses requests."


def doubt_detail(count: int, request_id: str) -> str:
    """Say how many answers were lost, and which one last."""
    lost = "The answer of one request was lost" if count == 1 else f"{count} answers were lost"
    return (
        f"{lost}; the API may have carried the request out. The last one has the request id"
        f" {request_id}. Look for its result before you send it again."
    )


def utc(at: float) -> str:
    """Write a wall time as RFC 3339 has it, in whole seconds."""
    return datetime.fromtimestamp(int(at), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# The columns.


def unknown_placeholders(template: Value) -> Sequence[str]:
    """Return the placeholders of a template that do not exist."""
    if isinstance(template, bool):
        return ()
    names = [found[1] for found in _PLACEHOLDER.finditer(template) if found[1] is not None]
    return [name for name in names if name not in PLACEHOLDERS]


def columns(fields: Mapping[str, Value], trouble: Trouble) -> dict[str, Value]:
    """Return each column's value: its template with the placeholders replaced, once.

    A template that is only one placeholder gives its value unchanged, true and false included.
    """
    values: dict[str, Value] = {
        "account": trouble.account,
        "kind": trouble.kind,
        "title": trouble.title,
        "detail": trouble.detail,
        "route": trouble.subject.route,
        "since": utc(trouble.since),
        "legal_hold": trouble.subject.legal_hold,
        "channel": trouble.subject.channel,
    }
    return {column: _filled(template, values) for column, template in fields.items()}


def _filled(template: Value, values: Mapping[str, Value]) -> Value:
    if isinstance(template, bool):
        return template
    alone = _PLACEHOLDER.fullmatch(template)
    if alone is not None and alone[1] is not None:
        value = values[alone[1]]
        return value if isinstance(value, bool) else value[:_LONGEST_TEXT]

    def replaced(found: re.Match[str]) -> str:
        return found[0][0] if found[1] is None else _text(values[found[1]])

    return _PLACEHOLDER.sub(replaced, template)[:_LONGEST_TEXT]


def _text(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else value
