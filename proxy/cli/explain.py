"""Why a request gets 403: the scopes a token holds, those the routes need, and what to do.

A `Subject` is what is known of a token: from the admin port of a running proxy, or from the token
itself. `ask` and `show` do I/O, the rest is pure. Nothing here mints, verifies or prints a token.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from proxy.cli import admin_client
from proxy.cli.admin_client import printable
from proxy.rules.claims import held_scopes, read_claims
from proxy.settings import Route

NAMES: Final = {"iss": "issuer", "sub": "subject", "client_id": "client id"}
_SKEW_THAT_MATTERS: Final = 60.0  # seconds; the leeway most servers give
_UNITS: Final = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
_FAR: Final = 253_402_300_800.0  # the year 10000, which has no date
_TOKEN: Final = re.compile(r"\s*(?:[Bb]earer +)?([!-~]+)\s*")


class CannotExplain(Exception):
    """There is no token to explain; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is known of a token. Times are seconds since the epoch, `skew` is theirs minus ours.

    `held` is None if the scopes are unknown (opaque tokens). `awaited` are the scopes a managed
    account's token is renewed for, None for other tokens. `trouble`: why there is no token.
    """

    title: str
    held: frozenset[str] | None = frozenset()
    claims: Mapping[str, str] = field(default_factory=dict)
    issued_at: float | None = None
    expires_at: float | None = None
    next_refresh_in: float | None = None
    awaited: frozenset[str] | None = None
    skew: Mapping[str, float] = field(default_factory=dict)
    trouble: Literal["rejected", "absent", "unmanaged"] | None = None

    @classmethod
    def of_token(cls, text: str, now: float) -> "Subject":
        """Read a token as it may be saved or copied. Raises `CannotExplain`."""
        match = _TOKEN.fullmatch(text)
        if match is None:
            raise CannotExplain("that is not one token")
        claims = read_claims(match[1])
        if claims is None:
            return cls(title="opaque token", held=None)
        issued_at = claims.number("iat")
        return cls(
            title="JWT, its signature not verified",
            held=held_scopes(claims, None),
            claims={key: str(claims.payload[key]) for key in NAMES if key in claims.payload},
            issued_at=issued_at,
            expires_at=claims.number("exp"),
            skew={"issuer": issued_at - now} if issued_at is not None and issued_at > now else {},
        )

    @classmethod
    def of_account(cls, answer: Mapping[str, Any], now: float) -> "Subject":
        """Read the admin port's answer about an account."""
        title, token = f"account {answer['name']}", answer["token"]
        skew = {server: float(seconds) for server, seconds in answer["clock_skew"].items()}
        if token is None:
            return cls(title=title, held=None, skew=skew, trouble="unmanaged")
        expires_in, scopes, claims = token["expires_in"], token["scopes"], answer["claims"]
        is_valid = expires_in is not None
        return cls(
            title=title if is_valid else f"none: {title} has no valid one",
            held=None if scopes is None and is_valid else frozenset(scopes or ()),
            claims={key: str(claims[key]) for key in NAMES if key in claims},
            issued_at=token["issued_at"],
            expires_at=now + expires_in if is_valid else None,
            next_refresh_in=token["next_refresh_in"],
            awaited=frozenset(token["missing"]),
            skew=skew,
            trouble=None if is_valid else "rejected" if token["rejected"] else "absent",
        )


@dataclass(frozen=True, slots=True)
class Row:
    """A scope that one kind of request needs, and whether the token holds it (None: unknown)."""

    route: str
    request: str
    scope: str
    is_held: bool | None


def rows_of(routes: Sequence[Route], held: frozenset[str] | None) -> list[Row]:
    """Return the needs of all routes, by method and by channel, each with whether it is held."""
    return [
        Row(route.name, request, scope, None if held is None else scope in held)
        for route in routes
        for request, scopes in _needs(route)
        for scope in scopes
    ]


def _needs(route: Route) -> Iterator[tuple[str, Sequence[str]]]:
    yield from route.require_scopes.items()
    for one in route.channels:
        yield f"{' or '.join(one.fields)}: {', '.join(one.values)}", one.require_scopes


def is_lacking(subject: Subject, rows: Sequence[Row], now: float) -> bool:
    """True if a scope, or a valid token at all, is known to be missing."""
    has_none = subject.trouble in {"rejected", "absent"}
    is_expired = subject.expires_at is not None and subject.expires_at <= now
    return has_none or is_expired or any(row.is_held is False for row in rows)


def advice(subject: Subject, rows: Sequence[Row], now: float) -> str:  # noqa: PLR0911 -- one each
    """Return the one sentence that fits best."""
    wait = None if subject.next_refresh_in is None else _span(subject.next_refresh_in)
    if subject.trouble == "rejected":
        return "The login server rejects the credentials: correct the client id or secret."
    if subject.trouble == "absent":
        return f"The login server issues no token; the proxy asks again in {wait or 'a while'}."
    if subject.trouble == "unmanaged":
        return "No secret is configured, so callers' own tokens are sent: explain one of those."
    if subject.expires_at is not None and subject.expires_at <= now:
        return f"The token expired {_span(now - subject.expires_at)} ago: get a new one."
    lacked = {row.scope for row in rows if row.is_held is False}
    missing, awaited = ", ".join(sorted(lacked)), subject.awaited
    if lacked and awaited is not None and wait is None:
        return f"Fresh tokens still lack {missing}: grant it, then refresh the account's token."
    if lacked:
        age = "before" if subject.issued_at is None else _ago(subject.issued_at, now)
        refresh = f"in {wait}" if lacked <= (awaited or set()) else "when a request needs it"
        step = "get a new one" if awaited is None else f"next refresh {refresh}"
        return f"Was {missing} granted a moment ago? The token was minted {age}; {step}."
    for server, seconds in subject.skew.items():
        if abs(seconds) > _SKEW_THAT_MATTERS:
            return f"The {server} clock is {round(seconds):+d} s against ours: correct the clocks."
    if subject.held is None:
        return "Opaque token: its scopes cannot be read; GET /api/v2/tokens/me shows them."
    return "No scope is missing: a 403 has another reason, such as a role or a division."


async def ask(url: str, account: str, now: float) -> tuple[Subject, Sequence[Route]]:
    """Ask the admin port of a running proxy. Raises `CannotExplain`."""
    try:
        answer = await admin_client.get(url, "accounts", account)
        return Subject.of_account(answer, now), [Route.model_validate(r) for r in answer["routes"]]
    except admin_client.NoAnswer as error:
        raise CannotExplain(f"{error}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CannotExplain(f"{url} does not answer like a proxy of this version") from None


def show(subject: Subject, rows: Sequence[Row], now: float, console: Console) -> None:
    """Print what is known, the table, and the advice."""
    facts = {"token": subject.title, **{NAMES[key]: subject.claims[key] for key in subject.claims}}
    for label, at in (("minted", subject.issued_at), ("expires", subject.expires_at)):
        if at is not None:
            date = f"{datetime.fromtimestamp(at, UTC):%F %T} UTC" if 0 <= at < _FAR else "nonsense"
            facts[label] = f"{date}, {_ago(at, now)}"
    facts |= {
        f"{server} clock": f"{round(by):+d} s against ours" for server, by in subject.skew.items()
    }
    for label, value in facts.items():
        console.print(Text.assemble((f"{label:<12}", "bold"), printable(value)), soft_wrap=True)
    table = Table("route", "request", "needs", "held")
    for row in rows:
        held = {True: "yes", False: "MISSING", None: "unknown"}[row.is_held]
        cells = (Text(printable(cell)) for cell in (row.route, row.request, row.scope, held))
        table.add_row(*cells, style="red" if row.is_held is False else "")
    console.print(table)
    console.print(Text(advice(subject, rows, now)), soft_wrap=True)


def _ago(at: float, now: float) -> str:
    return f"{_span(now - at)} ago" if at <= now else f"in {_span(at - now)}"


def _span(seconds: float) -> str:
    seconds = max(0.0, seconds)  # never "-0 s"
    size, unit = next((pair for pair in _UNITS if seconds >= pair[0]), _UNITS[-1])
    return f"{seconds / size:.0f} {unit}"
