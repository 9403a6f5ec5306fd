"""What the API's 403 says is missing: permissions, and the divisions in which they are.

The vendor's error has a code and a message; which permissions are missing stands in the message
only (https://developer.genesys.cloud/platform/api/errors). A permission is `domain:entity:action`;
a scope such as `recordings:export` looks alike and is read alike. A division is named by its id or
in brackets or quotes.

The text is a saved body, or a whole answer with its head. It is not trusted: names have a bounded
length, and nothing else of the text is shown but the code.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

_LISTED: Final = 20  # permissions, or divisions
_LONGEST: Final = 100  # characters of one of them
_STATUS: Final = re.compile(r"\AHTTP/[0-9.]+ ([0-9]{3})\b")
_PERMISSION: Final = re.compile(r"(?<![\w:/.@-])[A-Za-z][\w-]*(?::(?:[\w-]+|\*)){1,3}(?![\w:/])")
_ANY: Final = re.compile(r"at least one of|\bany of\b|\bone of the\b", re.IGNORECASE)
_DIVISIONS: Final = re.compile(r"\bdivisions?(?:\(s\))?\b", re.IGNORECASE)
_UUID: Final = r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}"
_DIVISION: Final = re.compile(rf"({_UUID})|\[([^\[\]]+)\]|\"([^\"]+)\"|'([^']+)'")
_SEPARATOR: Final = re.compile(r"\s*[,;]\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class MissingHere:
    """What a 403 says is missing; `any_is_enough` if one of the permissions would do."""

    status: int | None
    code: str | None
    permissions: tuple[str, ...] = ()
    divisions: tuple[str, ...] = ()
    any_is_enough: bool = False


def read_denial(text: str) -> MissingHere | None:
    """Read a saved answer of the API; None if it is none."""
    found = _STATUS.match(text)
    status = None if found is None else int(found[1])
    document = _document(text)
    if document is None:
        return _read(status, None, [text]) if text.strip() else None
    number, code = document.get("status"), document.get("code")
    if isinstance(number, int) and not isinstance(number, bool):
        status = number
    texts = [*_texts(document)]
    return _read(status, code[:_LONGEST] if isinstance(code, str) else None, texts)


def _document(text: str) -> dict[str, Any] | None:
    """Return the JSON object in the text, behind a head if there is one."""
    for start in (match.start() for match in re.finditer(r"(?:\A|\n)\s*\{", text)):
        try:
            document = json.loads(text[start:])
        except (ValueError, RecursionError):
            continue
        if isinstance(document, dict):
            return document
    return None


def _texts(document: dict[str, Any]) -> Iterator[str]:
    """Yield the messages, and those of the parameters that hold names."""
    for key in ("message", "messageWithParams", "error_description", "description"):
        if isinstance(document.get(key), str):
            yield document[key]
    params = document.get("messageParams")
    if isinstance(params, dict):
        for key, value in params.items():
            if isinstance(value, str):
                yield f"{key} [{value}]" if _DIVISIONS.match(key) else value


def _read(status: int | None, code: str | None, texts: Iterable[str]) -> MissingHere:
    permissions: dict[str, None] = {}
    divisions: dict[str, None] = {}
    any_is_enough = code is not None and ".any." in code
    for text in texts:
        names = [*_permissions(text)]
        permissions.update(dict.fromkeys(names))
        any_is_enough = any_is_enough or (bool(names) and _ANY.search(text) is not None)
        divisions.update(dict.fromkeys(_divisions(text)))
    return MissingHere(
        status=status,
        code=code,
        permissions=tuple(permissions)[:_LISTED],
        divisions=tuple(one for one in divisions if one not in permissions)[:_LISTED],
        any_is_enough=any_is_enough,
    )


def _permissions(text: str) -> Iterator[str]:
    for match in _PERMISSION.finditer(text):
        if len(match[0]) <= _LONGEST and not match[0].lower().startswith(("http:", "https:")):
            yield match[0]


def _divisions(text: str) -> Iterator[str]:
    """Yield the ids and the names that follow the word, up to the next sentence."""
    for word in _DIVISIONS.finditer(text):
        rest = text[word.end() :].partition(". ")[0]
        for match in _DIVISION.finditer(rest):
            names = next(group for group in match.groups() if group is not None)
            for name in _SEPARATOR.split(names):
                if name and len(name) <= _LONGEST and _PERMISSION.fullmatch(name) is None:
                    yield name.strip("\"' ")
