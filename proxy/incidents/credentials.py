"""The credentials of a desk: a small file of JSON, read again for each call.

Its content is never shown: not in `repr`, not in an error.
"""

import base64
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from proxy.rules.logins import has_control
from proxy.settings.files import aside, read_small_file

Format = Literal["servicenow", "flat"]

_SHAPES: Final = {
    "servicenow": (frozenset({"username", "password"}), frozenset({"bearer"})),
    "flat": (frozenset({"hmac_key"}),),
}
_WANTED: Final = {
    "servicenow": 'must be a JSON object with "username" and "password", or with "bearer"',
    "flat": 'must be a JSON object with "hmac_key"',
}


class CredentialsUnreadable(Exception):
    """The file cannot be read; the message says why."""


class BadCredentials(CredentialsUnreadable):
    """The file does not hold valid credentials."""


@dataclass(frozen=True, slots=True)
class DeskCredentials:
    """The credentials for a desk: the value of `Authorization`, or the key of a signature."""

    authorization: str = field(default="", repr=False)
    hmac_key: bytes = field(default=b"", repr=False)


async def read_credentials(file: Path, kind: Format) -> DeskCredentials:
    """Read the file. Raises `CredentialsUnreadable`."""
    return await aside(lambda: read_now(file, kind))


def read_now(file: Path, kind: Format) -> DeskCredentials:
    """Read the file, and block meanwhile. Raises `CredentialsUnreadable`."""
    try:
        document = json.loads(read_small_file(file))
    except OSError as error:
        raise CredentialsUnreadable(f"cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict) or document.keys() not in _SHAPES[kind]:
        raise BadCredentials(_WANTED[kind])
    for name, value in document.items():
        if not isinstance(value, str) or not value or has_control(value):
            raise BadCredentials(f"{name} must be text without control characters")
    if "hmac_key" in document:
        return DeskCredentials(hmac_key=document["hmac_key"].encode())
    if "bearer" in document:
        return DeskCredentials(f"Bearer {document['bearer']}")
    if ":" in document["username"]:  # RFC 7617 section 2
        raise BadCredentials("username must have no colon")
    pair = f"{document['username']}:{document['password']}".encode()
    return DeskCredentials(f"Basic {base64.b64encode(pair).decode('ascii')}")
