"""The accounts as a page for people, /status, and what it reads: /status.json and /history.json.

The page is one file. Its policy allows exactly the script and the style in it, by hash
(https://www.w3.org/TR/CSP3/), and requests to this port only.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files
from typing import Any, Final, Literal

from proxy import __version__
from proxy.admin.answers import UNCACHED, content
from proxy.admin.snapshot import Past
from proxy.http.responses import OwnAnswer
from proxy.rules.advice import Note, level_of, notes_on
from proxy.rules.state import AccountState
from proxy.telemetry.history import SPAN, WINDOW

_INLINE: Final = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyStatus:
    """The proxy as a whole; `at` is wall time, skews are their clock minus ours, in seconds.

    `observed` names the accounts whose pace and holds are not kept. `connections` counts those of
    callers; `notes` concern the proxy and not an account.
    """

    at: float
    state: Literal["serving", "stalled", "not serving"]
    store_up: bool
    clock_skew: dict[str, float]
    connections: int
    notes: tuple[Note, ...] = ()
    observed: Sequence[str] = ()


def document(status: ProxyStatus, states: Sequence[AccountState]) -> bytes:
    """Return /status.json."""
    return json.dumps(
        {
            "version": __version__,
            **_named(status),
            "accounts": [_account(state, status.at) for state in states],
        },
        default=_named,
    ).encode()


def past_document(past: Mapping[str, Past]) -> bytes:
    """Return /history.json: the sends and holds of the last ten minutes, as short lists.

    A send is [seconds ago, number, smallest gap]; a hold is [route or null, began, ended ago].
    """
    accounts = {
        name: {
            "routes": {
                route: [[round(one.ago, 1), one.count, _rounded(one.smallest_gap)] for one in sends]
                for route, sends in account.sends.items()
            },
            "holds": [
                [one.route, round(one.began_ago, 1), round(one.ended_ago, 1)]
                for one in account.holds
            ],
        }
        for name, account in past.items()
    }
    return json.dumps({"seconds": WINDOW, "span": SPAN, "accounts": accounts}).encode()


def page() -> OwnAnswer:
    """Return /status."""
    text, policy = _read()
    return content(
        text.encode(),
        "text/html; charset=utf-8",
        ("Content-Security-Policy", policy),
        ("X-Content-Type-Options", "nosniff"),
        ("Referrer-Policy", "no-referrer"),
        UNCACHED,
    )


def _account(state: AccountState, now: float) -> dict[str, object]:
    notes = notes_on(state, now)
    return {**_named(state), "level": level_of(notes), "notes": notes}


def _rounded(gap: float | None) -> float | None:
    return None if gap is None else round(gap, 4)


def _named(value: Any) -> dict[str, object]:
    """Return a dataclass's fields by name, without the copies that `asdict` makes."""
    return {field.name: getattr(value, field.name) for field in fields(value)}


@cache
def _read() -> tuple[str, str]:
    """Read the page, and make the policy that fits it."""
    text = files("proxy.admin").joinpath("status.html").read_text(encoding="utf-8")
    policy = [
        "default-src 'none'",
        *_sources(text),
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
    return text, "; ".join(policy)


def _sources(text: str) -> Iterator[str]:
    for kind, code in _INLINE.findall(text):
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        yield f"{kind}-src 'sha256-{digest}'"
