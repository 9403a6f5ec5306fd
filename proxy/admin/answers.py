"""The answers of the admin port, except the refusals of `http/responses.py`."""

import json
from collections.abc import Sequence
from http import HTTPStatus
from typing import Final

from proxy.http.responses import OwnAnswer
from proxy.rules.headers import Field

JSON: Final = "application/json"
UNCACHED: Final[Field] = ("Cache-Control", "no-store")

_TEXT: Final = "text/plain; charset=utf-8"


def content(body: bytes, kind: str, *fields: Field) -> OwnAnswer:
    """Answer with content of that kind."""
    return OwnAnswer(HTTPStatus.OK, "", [("Content-Type", kind), *fields], body)


def json_of(value: object) -> OwnAnswer:
    """Answer with a value as JSON."""
    return content(json.dumps(value).encode(), JSON)


def text(said: str, status: int = HTTPStatus.OK, fields: Sequence[Field] = ()) -> OwnAnswer:
    """Answer with lines for a person."""
    return OwnAnswer(status, "", [("Content-Type", _TEXT), *fields], said.encode())
