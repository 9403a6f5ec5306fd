"""The parsers that read what strangers write, each with what must hold whatever they are given.

A check takes any bytes and raises if the parser does, or if its answer breaks a promise. It is what
`make fuzz` calls for a minute, and `make test` for each file of the corpus. No I/O.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import unquote

from fuzz.answers import check_answer
from fuzz.callers import check_caller
from proxy.rules.claims import held_scopes, mentions, read_claims
from proxy.rules.needs import ChannelRule, Members, NeedRules, first_nested, needs_of, read_document
from proxy.rules.prefer import LONGEST_WAIT_SECONDS, prefer_wait
from proxy.rules.retry_after import delay_seconds, http_date, retry_after
from proxy.rules.targets import (
    BadTarget,
    PathPattern,
    RouteRule,
    find_route,
    parse_target,
    strip_prefix,
)
from proxy.settings.sections import DEFAULT_ROUTES
from proxy.simulator.exports import family_of, normalise

NOW: Final = 1_800_000_000.0
MAX_BODY: Final = 65_536
LONGEST: Final = 300.0
PACED: Final = [
    RouteRule(
        name=route.name,
        patterns=tuple(PathPattern.parse(path) for path in route.paths),
        methods=None,
    )
    for route in DEFAULT_ROUTES
    if route.paced
]
CHANNELS: Final = NeedRules(
    scopes_by_method={"POST": frozenset({"voice"})},
    channels=(
        ChannelRule(
            fields=("channel", "mediaType"),
            values=frozenset({"whatsapp", "sms"}),
            scopes=frozenset({"digital"}),
            cost=2.0,
        ),
    ),
    flat_fields=("legal_hold",),
)


def check_target(data: bytes) -> None:
    """A target is refused, or forwarded as it came to where its matching copy says.

    What a lenient server would take for an export is paced or refused.
    """
    raw = data.decode("latin-1")
    try:
        target = parse_target(raw)
    except BadTarget:
        return
    query = "" if target.query is None else f"?{target.query}"
    assert target.path in (raw, "/") or f"{target.path}{query}" in raw
    assert target.query is None or raw.endswith(query)
    assert target.path.startswith("/")
    assert not target.path.startswith("//")
    assert target.match == target.match.lower()
    assert {"", ".", ".."}.isdisjoint(target.match.split("/")[1:]) or target.match == "/"
    assert parse_target(f"{target.path}{query}") == target
    assert strip_prefix(target, "") == target
    meant = unquote(target.path)
    if meant.isascii() and family_of(normalise(meant)) is not None:
        assert find_route(PACED, "POST", target.match) is not None


def check_retry_after(data: bytes) -> None:
    """A wait is finite, not negative, and never beyond the maximum."""
    lines = data.decode("latin-1").split("\n")
    wait = retry_after(lines[1:], date=lines[0] or None, now=NOW, maximum=LONGEST)
    assert wait is None or 0 <= wait <= LONGEST
    date = http_date(lines[0], now=NOW)
    assert date is None or math.isfinite(date)
    if wait is not None:
        assert delay_seconds(wait) >= max(1.0, wait)


def check_claims(data: bytes) -> None:
    """A token is read as one JSON object in each part, or not at all."""
    token = data.decode("latin-1")
    mentions(token, "https://issuer.example")
    claims = read_claims(token)
    scopes = held_scopes(claims, "a b")
    assert scopes is None or all(isinstance(scope, str) for scope in scopes)
    if claims is not None:
        numbers = [claims.number(name) for name in claims.payload]
        assert all(number is None or math.isfinite(number) for number in numbers)


def check_prefer(data: bytes) -> None:
    """A wish is a number of seconds that somebody could mean, or none."""
    wait = prefer_wait(data.decode("latin-1").split("\n"))
    assert wait is None or 0 <= wait <= LONGEST_WAIT_SECONDS


def check_channel_body(data: bytes) -> None:
    """Needs are those of the route or of the channel; a nested field is where it is said to be."""
    for codings in ([], ["gzip"], ["deflate"]):
        document = read_document(data, codings, max_size=MAX_BODY)
        needs = needs_of(CHANNELS, "POST", document)
        assert (needs.scopes, needs.cost) in (
            (frozenset({"voice"}), 1.0),
            (frozenset({"digital"}), 2.0),
        )
        nested = first_nested(CHANNELS.flat_fields, document)
        if nested is not None:
            assert nested.field == "legal_hold"
            assert _leads_somewhere(document, nested.pointer.split("/")[1:])


def _leads_somewhere(branch: Any, parts: Sequence[str]) -> bool:
    """Whether the parts of a JSON pointer (RFC 6901) lead to a member; keys may come twice."""
    if not parts:
        return True
    key = parts[0].replace("~1", "/").replace("~0", "~")
    if isinstance(branch, Members):
        return any(name == key and _leads_somewhere(value, parts[1:]) for name, value in branch)
    return _leads_somewhere(branch[int(key)], parts[1:])


PARSERS: Final[Mapping[str, Callable[[bytes], None]]] = {
    "target": check_target,
    "retry_after": check_retry_after,
    "claims": check_claims,
    "prefer": check_prefer,
    "channel_body": check_channel_body,
    "answer": check_answer,
    "caller": check_caller,
}
