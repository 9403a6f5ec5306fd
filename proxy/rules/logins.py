"""Which client a call of the token endpoint logs in, and with which secret.

RFC 6749 wants a form in the body and credentials in Basic or in the form. Real programs write the
form into the query, split it between query and body, send JSON, or encode a secret once too often
or not at all. All these spellings are read here. Whether the secret is right is decided elsewhere.

An ambiguous call names no client. `mentions` then finds out whether it may still name a given one:
such a call must not bypass that account.
"""

import base64
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote_plus, unquote_to_bytes

MAX_FIELDS: Final = 100  # of a form; reading very many would stall the loop
GRANT: Final = "client_credentials"
_NAMES: Final = ("grant_type", "client_id", "client_secret")
_BASIC: Final = re.compile(r"[Bb][Aa][Ss][Ii][Cc] +(.*)", re.DOTALL)


class LoginError(Exception):
    """The call breaks RFC 6749 in a way we refuse; the text is a sentence for the caller."""


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret as it was on the wire, and form-decoded."""

    raw: str = field(repr=False)
    decoded: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Login:
    """A client that logs in with its own credentials; `client_ids` holds its id's readings.

    The first reading is that of RFC 6749.
    """

    client_ids: tuple[str, ...]
    secret: Secret

    @property
    def client_id(self) -> str:
        return self.client_ids[0]


@dataclass(frozen=True, slots=True)
class Call:
    """A token call. `login` is None if it is not certain that a client logs in, and which.

    `is_harmless` is True for another grant, which is a person's, and without any secret.
    """

    login: Login | None
    is_harmless: bool
    query: str = field(repr=False)
    body: bytes = field(repr=False)
    authorization: Sequence[str] = field(repr=False)

    def mentions(self, client_ids: Iterable[str]) -> bool:
        """True if the call may name one of these clients, however it is written."""
        if self.is_harmless:
            return False
        text = _all_text(self.query, self.body, self.authorization)
        return any(_is_in(text, client_id.strip().lower().encode()) for client_id in client_ids)


@dataclass(frozen=True, slots=True)
class _Pair:
    """A value as it stood, and decoded."""

    raw: str
    decoded: str


def read_call(query: str, body: bytes, authorization: Sequence[str]) -> Call:
    """Read a token call in whatever spelling. Raises LoginError.

    `body` is without its content coding, `authorization` holds the Authorization values.
    """
    fields = [*_form(query), *_body(body)]
    grants = {pair.decoded for pair in _values(fields, "grant_type")}
    basic = _basic(authorization, strict=True)
    if basic is not None and basic[1].raw and _secrets(fields):
        raise LoginError("Credentials are given both in the header and in the form.")
    login = _login(fields, basic) if grants == {GRANT} else None
    is_other_grant = len(grants) == 1 and next(iter(grants)).strip().lower() != GRANT
    is_without_secret = grants == {GRANT} and not authorization and not _secrets(fields)
    return Call(
        login=login,
        is_harmless=is_other_grant or is_without_secret,
        query=query,
        body=body,
        authorization=authorization,
    )


def _login(fields: list[tuple[str, _Pair]], basic: tuple[_Pair, _Pair] | None) -> Login | None:
    ids, secrets = _values(fields, "client_id"), _secrets(fields)
    if basic is not None:
        if basic[0].decoded:
            ids.append(basic[0])
        if basic[1].raw:
            secrets = [basic[1]]
    if len({pair.decoded for pair in ids}) != 1 or len({pair.decoded for pair in secrets}) != 1:
        return None
    client, secret = ids[-1], secrets[-1]
    readings = tuple(dict.fromkeys((client.decoded, client.raw, unquote_plus(client.decoded))))
    return Login(readings, Secret(secret.raw, secret.decoded))


def _secrets(fields: Iterable[tuple[str, _Pair]]) -> list[_Pair]:
    return _values(fields, "client_secret")


def _values(fields: Iterable[tuple[str, _Pair]], wanted: str) -> list[_Pair]:
    """Return the values by name; an empty value counts as none (RFC 6749 section 3.2)."""
    return [pair for name, pair in fields if name == wanted and pair.raw]


def _form(text: str) -> list[tuple[str, _Pair]]:
    """Return a form's or a query's values, each also in its original spelling."""
    parts = text.split("&", MAX_FIELDS)
    if len(parts) > MAX_FIELDS:
        raise LoginError("The form has too many fields.")
    found = []
    for part in parts:
        name, _, raw = part.partition("=")
        if (name := unquote_plus(name)) in _NAMES:
            found.append((name, _Pair(raw, unquote_plus(raw))))
    return found


def _body(body: bytes) -> list[tuple[str, _Pair]]:
    text = body.decode("utf-8", "replace")
    if not text.lstrip().startswith("{"):
        return _form(text)
    try:
        document = json.loads(text, object_pairs_hook=list)
    except (ValueError, RecursionError):
        return []
    if len(document) > MAX_FIELDS:
        raise LoginError("The document has too many fields.")
    return [
        (name, _Pair(value, value))
        for name, value in document
        if name in _NAMES and isinstance(value, str)
    ]


def _basic(authorization: Sequence[str], *, strict: bool) -> tuple[_Pair, _Pair] | None:
    """Return the id and the secret of a Basic field, which are form-encoded (RFC 6749 2.3.1).

    Not strictly, missing padding and the other alphabet of base64 are read, too.
    """
    match = _BASIC.fullmatch(authorization[0]) if len(authorization) == 1 else None
    if match is None:
        return None
    coded = match[1].strip()
    if not strict:
        coded = coded.rstrip("=").replace("-", "+").replace("_", "/")
        coded += "=" * (-len(coded) % 4)
    try:
        text = base64.b64decode(coded, validate=strict).decode(
            errors="strict" if strict else "replace"
        )
    except ValueError:
        return None
    client, colon, secret = text.partition(":")
    if not colon:
        return None
    return _Pair(client, unquote_plus(client)), _Pair(secret, unquote_plus(secret))


def _all_text(query: str, body: bytes, authorization: Sequence[str]) -> bytes:
    """Return all text of the call in lower case, decoded as far as any server might."""
    parts = [query.encode("utf-8", "replace"), body]
    basic = _basic(authorization, strict=False)
    if basic is not None:
        parts += [pair.raw.encode() for pair in basic]
    said = b"\n".join(parts)
    once = unquote_to_bytes(said.replace(b"+", b" "))
    return b"\n".join((said, once, unquote_to_bytes(once), said.replace(b"\x00", b""))).lower()


def _is_in(text: bytes, client_id: bytes) -> bool:
    return re.search(rb"(?<![\w.-])" + re.escape(client_id) + rb"(?![\w.-])", text) is not None


def has_control(text: str) -> bool:
    """True if a secret holds a control character, which can only be a mistake."""
    return any(char < " " or "\x7f" <= char <= "\x9f" for char in text)
