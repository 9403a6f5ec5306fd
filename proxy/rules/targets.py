"""Request targets, and the routes they match.

A target is kept twice: raw, exactly as it will be forwarded, and as a copy for matching alone.
Two spellings that a lenient server could take for one resource share one copy, or one of them is
refused, so that a paced route is not escaped by writing its path another way.

What a route means is decided elsewhere. This module drops any authority that a caller wrote.

Obeys RFC 9112 section 3.2 (forms of a target) and RFC 3986 sections 2 and 3.3 (escapes, segments).
"""

import re
import string
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Self
from urllib.parse import unquote_to_bytes

LOGIN_PATH: Final = "/oauth/token"  # the login server's token endpoint, and ours


class BadTarget(ValueError):
    """A target that is refused; the message is a sentence for the caller and never quotes it."""


class Target(NamedTuple):
    """Where a request goes, authority aside.

    `path` is raw and starts with exactly one slash. `query` is raw, and None where there is none;
    a bare trailing `?` counts as none, because the HTTP client cannot write one. `match` is the
    copy of the path for `find_route`, in lower case; it is never forwarded.
    """

    path: str
    query: str | None
    match: str


@dataclass(frozen=True, slots=True)
class PathPattern:
    """A path with open places: `*` is one segment, a final `**` is one or more."""

    text: str
    regex: re.Pattern[str] = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a pattern as an operator writes it, in any case.

        Raises ValueError if it could never match: it is relative, or has a trailing slash, a
        parameter, a query or a needless escape, or an asterisk out of place.
        """
        if parse_target(text).match != text.lower():
            raise ValueError(
                "a pattern is a plain path: no trailing slash, no ';', no '?', no escapes"
            )
        parts = text.lower().split("/")[1:]
        stray = any("*" in part and part not in _OPEN_PARTS for part in parts)
        if stray or "**" in parts[:-1]:
            raise ValueError("'*' stands for a whole segment, and '**' only at the end")
        expressions = (_OPEN_PARTS.get(part, re.escape(part)) for part in parts)
        return cls(text, re.compile("/" + "/".join(expressions)))

    def matches(self, match_path: str) -> bool:
        """True if the pattern matches the `match` of a target."""
        return self.regex.fullmatch(match_path) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteRule:
    """Which requests a route takes: any of `patterns`, and `methods`, where None is every one."""

    name: str
    patterns: tuple[PathPattern, ...]
    methods: frozenset[str] | None
    regex: re.Pattern[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        expressions = (pattern.regex.pattern for pattern in self.patterns)
        object.__setattr__(self, "regex", re.compile("|".join(expressions)))


@dataclass(frozen=True, slots=True)
class MethodNotAllowed:
    """Routes take this path, none of them with this method; `allow` is sorted."""

    allow: tuple[str, ...]


def parse_target(raw: str) -> Target:
    """Read a target in origin-form, or in absolute-form and drop its scheme and authority.

    A server must take absolute-form (RFC 9112 section 3.2.2). Asterisk-form and authority-form
    are refused: they name nothing to forward.

    Raises BadTarget.
    """
    if _VISIBLE.fullmatch(raw) is None:
        _refuse(raw, _FAULTS_ANYWHERE)
    path, _, query = _origin_form(raw).partition("?")
    return Target(path=path, query=query or None, match=_matching_copy(path))


def strip_prefix(target: Target, prefix: str) -> Target | None:
    """Take a required prefix off; None when it is not there.

    `prefix` is empty or like `/gc`: whole segments, to be spelled exactly so. A path that is
    nothing but the prefix becomes `/`.
    """
    if not prefix:
        return target
    if not f"{target.path}/".startswith(f"{prefix}/"):
        return None
    path = target.path.removeprefix(prefix) or "/"
    return Target(path=path, query=target.query, match=_matching_copy(path))


def find_route(
    rules: Sequence[RouteRule], method: str, match_path: str
) -> int | MethodNotAllowed | None:
    """Give the index of the first rule that takes both method and path; None if no path fits."""
    allow: set[str] = set()
    for index, rule in enumerate(rules):
        if rule.regex.fullmatch(match_path) is None:
            continue
        if rule.methods is None or method in rule.methods:
            return index
        allow |= rule.methods
    return MethodNotAllowed(tuple(sorted(allow))) if allow else None


_FAULTS_ANYWHERE = {
    # RFC 3986 knows no byte beyond ASCII, and the HTTP client does not keep one as it came;
    # so a raw one is refused in the query too, although the query is not matched.
    re.compile(r"[^!-~]"): "The target has a space, a control character or a non-ASCII byte.",
    re.compile(r"#"): "The target has a fragment.",
}
# One search finds out that a target has none of these faults, as nearly always.
_VISIBLE = re.compile(r'[!"$-~]*')
_FAULTS_IN_PATH = {
    re.compile(r"\\"): "The path has a backslash.",
    re.compile(r"%(?![0-9A-Fa-f]{2})"): "The path has an invalid percent-escape.",
    re.compile(r"%(?:2[EFef]|5[Cc])"): "The path has an encoded dot, slash or backslash.",
    re.compile(r"%(?:[01][0-9A-Fa-f]|7[Ff])"): "The path has an encoded control character.",
    re.compile(r"%(?:3[BFbf]|23)"): "The path has an encoded semicolon, question mark or hash.",
    re.compile(r"%25[0-9A-Fa-f]{2}"): "The path has an escape that is encoded twice.",
    re.compile(r"%20(?:/|\Z)"): "The path has a segment that ends with a blank.",
}
# Sought after the parameters are gone: `/..;x/` is a dot segment, and `/;x/` an empty one.
_FAULTS_IN_SEGMENTS = {
    re.compile(r"//"): "The path has an empty segment; does the base URL end in a slash?",
    re.compile(r"/\.\.?(?:/|\Z)"): "The path has a dot segment.",
    re.compile(r"/%20|%20(?:/|\Z)"): "The path has a segment that starts or ends with a blank.",
}

# A path that has none of the faults above, and nothing to decode or to remove.
_PLAIN_PATH = re.compile(r"(?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+")

# User information or an empty host is an error (RFC 9110 sections 4.2.1 and 4.2.4).
_ABSOLUTE_FORM = re.compile(r"https?://[^/?@\\:][^/?@\\]*(?P<rest>(?:[/?].*)?)", re.IGNORECASE)

_ESCAPE = re.compile(r"%[0-9a-f]{2}")
_PARAMETERS = re.compile(r";[^/]*")
# Escape to character, both in lower case (RFC 3986 section 2.3). The dot is not among them: an
# encoded one is refused before.
_UNRESERVED = {
    f"%{ord(char):02x}": char.lower() for char in f"{string.ascii_letters}{string.digits}-_~"
}
_OPEN_PARTS = {"*": "[^/]+", "**": ".+"}


def _origin_form(raw: str) -> str:
    if raw.startswith("/"):
        return raw
    absolute = _ABSOLUTE_FORM.fullmatch(raw)
    if absolute is None:
        raise BadTarget("The target is neither a path nor an absolute http URL.")
    # An empty path is the root (RFC 9110 section 4.2.3).
    rest = absolute["rest"]
    return rest if rest.startswith("/") else f"/{rest}"


def _matching_copy(path: str) -> str:
    if _PLAIN_PATH.fullmatch(path) is not None:
        return path.lower()
    _refuse(path, _FAULTS_IN_PATH)
    _check_text(path)
    decoded = _ESCAPE.sub(_unreserved, path.lower())
    bare = _PARAMETERS.sub("", decoded)
    _refuse(bare, _FAULTS_IN_SEGMENTS)
    return bare.removesuffix("/") or "/"


# Controls, format characters (a zero-width space) and separators, which servers may strip.
_INVISIBLE: Final = frozenset({"Cc", "Cf", "Zl", "Zp"})


def _check_text(path: str) -> None:
    """Refuse escapes that are no text, and characters that a server may fold into ASCII ones.

    An overlong `%C0%AF` is no UTF-8 (RFC 3629 section 3). Compatibility forms (Unicode Standard
    Annex 15) and case folding turn a full-width solidus into `/`, and a long s into `s`.
    """
    try:
        text = unquote_to_bytes(path).decode()
    except UnicodeDecodeError:
        raise BadTarget("The path has escapes that are not UTF-8.") from None
    for char in text:
        if not char.isascii() and (
            unicodedata.category(char) in _INVISIBLE
            or unicodedata.normalize("NFKC", char).casefold().isascii()
        ):
            raise BadTarget("The path has a character that servers read in different ways.")


def _unreserved(escape: re.Match[str]) -> str:
    return _UNRESERVED.get(escape[0], escape[0])


def _refuse(text: str, faults: Mapping[re.Pattern[str], str]) -> None:
    for fault, sentence in faults.items():
        if fault.search(text):
            raise BadTarget(sentence)
