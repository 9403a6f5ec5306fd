"""What a request needs: scopes and slots, from its route and the JSON of its body.

The body is only looked at. One that is absent, not JSON, or of another shape than expected needs
what the route needs; it is the API's business to refuse it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

_MOST_STEPS: Final = 50_000  # of the search for nested fields in one body


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelRule:
    """A body whose first present field of `fields` has one of `values` (lower case) needs this."""

    fields: tuple[str, ...]
    values: frozenset[str]
    scopes: frozenset[str]
    cost: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NeedRules:
    """The needs of a route."""

    scopes_by_method: Mapping[str, frozenset[str]]
    channels: tuple[ChannelRule, ...] = ()
    flat_fields: tuple[str, ...] = ()

    @property
    def look_at_body(self) -> bool:
        """Tell whether the body matters at all."""
        return bool(self.channels or self.flat_fields)


@dataclass(frozen=True, slots=True)
class Needs:
    """Scopes a token must carry, and the cost of the send in intervals."""

    scopes: frozenset[str]
    cost: float = 1.0


@dataclass(frozen=True, slots=True)
class Nested:
    """A field that should be flat; `pointer` is where it is (RFC 6901)."""

    field: str
    pointer: str


def read_document(body: bytes) -> dict[str, Any] | None:
    """Return the JSON object in a body; None if there is none."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def needs_of(rules: NeedRules, method: str, document: Mapping[str, Any] | None) -> Needs:
    """Return the needs of a request; a channel's scopes stand in for those of the route.

    Where several channel entries match, all their scopes are needed and the largest cost counts.
    """
    matching = [
        rule for rule in rules.channels if document is not None and _matches(rule, document)
    ]
    if not matching:
        return Needs(rules.scopes_by_method.get(method, frozenset()))
    return Needs(
        frozenset().union(*(rule.scopes for rule in matching)),
        max(rule.cost for rule in matching),
    )


def first_nested(fields: Sequence[str], document: Mapping[str, Any]) -> Nested | None:
    """Return the first of `fields` that is below the top level, or an object or array there.

    The search gives up after `_MOST_STEPS`.
    """
    path: list[str | int] = []
    levels = [_entries(document)]
    for _ in range(_MOST_STEPS):
        entry = next(levels[-1], None)
        if entry is None:
            levels.pop()
            if not levels:
                return None
            path.pop()
            continue
        key, value = entry
        is_branch = isinstance(value, dict | list)
        if key in fields and (path or is_branch):
            return Nested(str(key), _pointer([*path, key]))
        if is_branch:
            path.append(key)
            levels.append(_entries(value))
    return None


def _matches(rule: ChannelRule, document: Mapping[str, Any]) -> bool:
    for field in rule.fields:
        if field in document:
            value = document[field]
            return isinstance(value, str) and value.lower() in rule.values
    return False


def _entries(branch: Mapping[str, Any] | Sequence[Any]) -> Iterator[tuple[str | int, Any]]:
    return iter(branch.items() if isinstance(branch, Mapping) else enumerate(branch))


def _pointer(path: Sequence[str | int]) -> str:
    return "".join(f"/{str(key).replace('~', '~0').replace('/', '~1')}" for key in path)
