"""What a request needs: scopes and slots, from its route and the JSON of its body.

The body is only looked at, never changed. It is read as leniently as any server behind the API
might read it, so that no spelling hides a channel:

- keys match without case, values without case and without blanks around them;
- every listed field counts, and of a key that comes twice both values;
- gzip and deflate are undone, up to the size a body may have.

Without a body, or with a readable one that names no listed channel, a request needs what its route
needs. A body that cannot be read may name any channel: it needs the scopes of all of them, and the
largest cost. The API decides whether to refuse it.
"""

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

_MOST_STEPS: Final = 50_000  # of the search for nested fields in one body
_GZIP_OR_ZLIB: Final = 32 + zlib.MAX_WBITS  # zlib's value for "detect which of the two it is"
_READABLE_CODINGS: Final = frozenset({"gzip", "x-gzip", "deflate"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelRule:
    """A body in which one of `fields` has one of `values` (lower case) needs this."""

    fields: tuple[str, ...]
    values: frozenset[str]
    scopes: frozenset[str]
    cost: float
    names: frozenset[str] = field(init=False, repr=False)  # the fields, in lower case

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", frozenset(name.lower() for name in self.fields))


@dataclass(frozen=True, slots=True, kw_only=True)
class NeedRules:
    """The needs of a route."""

    scopes_by_method: Mapping[str, frozenset[str]]
    channels: tuple[ChannelRule, ...] = ()
    flat_fields: tuple[str, ...] = ()

    @property
    def look_at_body(self) -> bool:
        """True if the needs depend on the body."""
        return bool(self.channels or self.flat_fields)


class Needs(NamedTuple):
    """Scopes a token must carry, and the cost of the send in intervals."""

    scopes: frozenset[str]
    cost: float = 1.0


@dataclass(frozen=True, slots=True)
class Nested:
    """A field that should be flat; `pointer` is where it is (RFC 6901)."""

    field: str
    pointer: str


class Members(tuple[tuple[str, Any], ...]):
    """The members of a JSON object in their order; a key may come more than once."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A body that is not JSON this proxy can read."""


Document = Members | Unreadable | None

# A number of thousands of digits is JSON, but no Python int; its value does not matter.
_READER: Final = json.JSONDecoder(object_pairs_hook=Members, parse_int=float)


def read_document(body: bytes, codings: Sequence[str] = (), *, max_size: int) -> Document:
    """Return the members of the JSON object in a body.

    `codings` holds the values of the Content-Encoding fields, `max_size` the bytes to inflate at
    most. None if there is no body, no members if it is JSON of another type than an object.
    """
    if not body:
        return None
    try:
        plain = _inflated(body, codings, max_size)
        document = _READER.decode(plain.decode(json.detect_encoding(plain), "surrogatepass"))
    except (ValueError, RecursionError, zlib.error):
        return Unreadable()
    return document if isinstance(document, Members) else Members()


def needs_of(rules: NeedRules, method: str, document: Document) -> Needs:
    """Return the needs of a request; the scopes of a channel stand in for those of the route.

    Where several channel entries match, all their scopes are needed and the largest cost counts.
    """
    matching = [rule for rule in rules.channels if _matches(rule, document)]
    if not matching:
        return Needs(rules.scopes_by_method.get(method, frozenset()))
    return Needs(
        frozenset().union(*(rule.scopes for rule in matching)),
        max(rule.cost for rule in matching),
    )


def first_nested(fields: Sequence[str], document: Document) -> Nested | None:
    """Return the first of `fields` that is below the top level, or an object or array there.

    The search gives up after `_MOST_STEPS`.
    """
    if not isinstance(document, Members):
        return None
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
        is_branch = isinstance(value, Members | list)
        if key in fields and (path or is_branch):
            return Nested(str(key), _pointer([*path, key]))
        if is_branch:
            path.append(key)
            levels.append(_entries(value))
    return None


def _inflated(body: bytes, codings: Sequence[str], max_size: int) -> bytes:
    """Undo the codings, the last one first (RFC 9110 section 8.4).

    Raises ValueError or zlib.error for an unknown coding, broken data, or too much of it.
    """
    names = [name.strip().lower() for value in codings for name in value.split(",")]
    for name in reversed([name for name in names if name not in {"", "identity"}]):
        if name not in _READABLE_CODINGS:
            raise ValueError("unknown coding")
        body = _inflated_once(body, name, max_size)
    return body


def _inflated_once(body: bytes, name: str, max_size: int) -> bytes:
    # Some send "deflate" without the zlib wrapper that it should have (RFC 9110 section 8.4.1.2).
    is_bare = name == "deflate" and not _has_zlib_header(body)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS if is_bare else _GZIP_OR_ZLIB)
    plain = inflater.decompress(body, max_size)
    if not inflater.eof or inflater.unused_data:
        raise ValueError("cut short, too large, or followed by something else")
    return plain


def _has_zlib_header(body: bytes) -> bool:
    """True if it starts as RFC 1950 section 2.2 says: method 8, and a multiple of 31."""
    return len(body) > 1 and body[0] & 0x0F == zlib.DEFLATED and int.from_bytes(body[:2]) % 31 == 0


def _matches(rule: ChannelRule, document: Document) -> bool:
    match document:
        case None:
            return False
        case Unreadable():
            return True
        case Members() as members:
            return any(
                key.strip().lower() in rule.names and _is_among(value, rule.values)
                for key, value in members
            )


def _is_among(value: object, values: frozenset[str]) -> bool:
    """True if it is one of the values, or a list that holds one."""
    texts = value if isinstance(value, list) else [value]
    return any(isinstance(text, str) and text.strip().lower() in values for text in texts)


def _entries(branch: Members | Sequence[Any]) -> Iterator[tuple[str | int, Any]]:
    return iter(branch) if isinstance(branch, Members) else enumerate(branch)


def _pointer(path: Sequence[str | int]) -> str:
    return "".join(f"/{str(key).replace('~', '~0').replace('/', '~1')}" for key in path)
