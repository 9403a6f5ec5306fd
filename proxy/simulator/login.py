"""The client credentials grant: the client of a token request, and the check of its secret.

RFC 6749 sections 2.3.1, 3.2 and 4.4, as plain functions over the request's fields. No I/O;
minting is in `tokens`.
"""

import base64
import binascii
import hmac
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote_plus

from proxy.simulator.errors import LoginError, invalid_client, invalid_login
from proxy.simulator.settings import ClientSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """A client's id and secret, and whether they came in the Authorization field."""

    client_id: str
    secret: str = field(repr=False)
    by_header: bool


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """A client whose credentials were right."""

    client_id: str
    spec: ClientSpec


def log_in(
    authorization: str | None,
    body: str,
    find_client: Callable[[str], ClientSpec | None],
    *,
    query: str = "",
) -> LoggedIn | LoginError:
    """Judge a token request by its Authorization field and its form, in the body or the query."""
    form = read_form("&".join(part for part in (query, body) if part))
    if form is None:
        return invalid_login("malformed or repeated parameter")
    if "grant_type" not in form:
        return invalid_login("missing grant_type")
    if form["grant_type"] != "client_credentials":
        return invalid_login("grant type not supported", error="unsupported_grant_type")
    credentials = read_credentials(authorization, form)
    if isinstance(credentials, LoginError):
        return credentials
    return check(credentials, find_client(credentials.client_id))


def read_form(body: str) -> dict[str, str] | None:
    """Read a form; None if it is malformed or names a parameter twice (section 3.2)."""
    try:
        pairs = parse_qsl(body, keep_blank_values=True, strict_parsing=bool(body))
    except ValueError:
        return None
    form = dict(pairs)
    return form if len(form) == len(pairs) else None


def read_credentials(authorization: str | None, form: dict[str, str]) -> Credentials | LoginError:
    """Take the credentials from one place; two ways at once are refused (section 2.3)."""
    if authorization is None:
        if "client_id" not in form or "client_secret" not in form:
            return invalid_client("no client credentials", by_header=False)
        return Credentials(
            client_id=form["client_id"], secret=form["client_secret"], by_header=False
        )
    basic = read_basic(authorization)
    if basic is None:
        return invalid_client("malformed credentials", by_header=True)
    if "client_secret" not in form:
        return basic
    if basic.secret:
        return invalid_login("more than one way of client authentication")
    return Credentials(client_id=basic.client_id, secret=form["client_secret"], by_header=True)


def read_basic(authorization: str) -> Credentials | None:
    """Read a Basic field, whose id and secret are form-encoded first (section 2.3.1)."""
    scheme, _, encoded = authorization.partition(" ")
    if scheme.casefold() != "basic":
        return None
    try:
        pair = base64.b64decode(encoded.strip(), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None
    client_id, colon, secret = pair.partition(":")
    if not colon:
        return None
    return Credentials(
        client_id=unquote_plus(client_id), secret=unquote_plus(secret), by_header=True
    )


def check(credentials: Credentials, spec: ClientSpec | None) -> LoggedIn | LoginError:
    if spec is None:
        return invalid_client("client not found", by_header=credentials.by_header)
    if spec.secret is not None and not _is_same(credentials.secret, spec.secret):
        return invalid_client("authentication failed", by_header=credentials.by_header)
    return LoggedIn(credentials.client_id, spec)


def _is_same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(), expected.encode())
