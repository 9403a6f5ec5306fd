"""Asking the login server for a token (RFC 6749 section 4.4), and what its answers mean.

An answer is a token, or one of three failures, which differ in when to ask again: `Rejected` (the
credentials are wrong: seldom), `Throttled` (when the server says) and `Troubled` (anything else:
after a growing pause). Genesys Cloud throttles with a 400 whose description says so, not with 429.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote_plus

from proxy.clock import Clock
from proxy.deadlines import time_limit
from proxy.http.client import Client
from proxy.http.messages import Answer, BadAnswer, OutcomeUnknown, Outgoing, Unsent
from proxy.rules.codings import coded_fields, decoded
from proxy.rules.retry_after import http_date, retry_after
from proxy.rules.targets import LOGIN_PATH
from proxy.rules.token_answers import life_of, read_document, read_grant
from proxy.settings import Settings
from proxy.tokens.credentials import Credentials, SecretUnreadableError

_MAX_ANSWER: Final = 65536
CALL_SECONDS: Final = 10.0  # for one call, connecting included
_LONGEST_PAUSE: Final = 300.0
_REJECTIONS: Final = frozenset({"invalid_client", "invalid_grant", "unauthorized_client"})
_THROTTLES: Final = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})


class Rejected(Exception):
    """The login server refuses the credentials, or there are none to send."""


class Throttled(Exception):
    """The login server gets too many calls; make none for `wait` seconds."""

    def __init__(self, wait: float | None) -> None:
        super().__init__("the login server throttles")
        self.wait = wait


class Troubled(Exception):
    """The login server did not answer, or not with a token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenAnswer:
    """A token as the login server sent it.

    `lifetime` is in seconds from the receipt, `server_time` is the answer's `Date`.
    """

    value: str = field(repr=False)
    lifetime: float
    scope: str | None
    server_time: float | None


class LoginServer:
    """Fetches tokens with the credentials it is given."""

    def __init__(
        self, upstream: Client, *, clock: Clock, max_retry_after: float = _LONGEST_PAUSE
    ) -> None:
        self._upstream = upstream
        self._clock = clock
        self._max_retry_after = max_retry_after

    def apply(self, settings: Settings) -> None:
        """Obey new settings from the next answer on."""
        self._max_retry_after = settings.retry.max_retry_after

    async def fetch(self, credentials: Credentials) -> TokenAnswer:
        """Ask once. Raises `Rejected`, `Throttled` or `Troubled`."""
        try:
            secret = await credentials.read_secret()
        except SecretUnreadableError as error:
            raise Rejected(str(error)) from None
        try:
            async with time_limit(CALL_SECONDS):
                response = await self._upstream.send(_call(credentials.client_id, secret))
                answer = await self._upstream.read(response, _MAX_ANSWER)
        except Unsent:
            raise Troubled("the login server cannot be reached") from None
        except (OutcomeUnknown, TimeoutError):
            raise Troubled("the login server did not answer") from None
        except BadAnswer:
            raise Troubled("the login server's answer is not usable") from None
        return self._meaning_of(answer)

    def _meaning_of(self, answer: Answer) -> TokenAnswer:
        text = decoded(answer.body, coded_fields(answer.fields), limit=_MAX_ANSWER)
        document = read_document(text or b"")
        if answer.status in _THROTTLES or _is_vendor_throttle(answer.status, document):
            raise Throttled(
                retry_after(
                    _values(answer, "retry-after"),
                    date=_date(answer),
                    now=self._clock.wall(),
                    maximum=self._max_retry_after,
                )
            )
        error = document.get("error")
        if answer.status in {400, 401} and isinstance(error, str) and error in _REJECTIONS:
            raise Rejected(f"the login server says {error}")
        if answer.status == HTTPStatus.UNAUTHORIZED:
            raise Rejected("the login server answers 401")
        if answer.status != HTTPStatus.OK:
            raise Troubled(f"the login server answers {answer.status}")
        grant = read_grant(document)
        if grant is None:
            raise Troubled("the login server's answer has no usable access_token")
        if str(document.get("token_type", "")).lower() != "bearer":
            raise Troubled("the login server's token_type is not bearer")
        now, date = self._clock.wall(), _date(answer)
        lifetime = document.get("expires_in")
        is_odd = isinstance(lifetime, float) and not lifetime.is_integer()
        if lifetime is not None and (grant.lifetime is None or is_odd):
            raise Troubled("the login server's expires_in is not a number of seconds")
        return TokenAnswer(
            value=grant.token,
            lifetime=life_of(grant, now),
            scope=None if grant.scope is None else " ".join(sorted(grant.scope)),
            server_time=None if date is None else http_date(date, now=now),
        )


def _call(client_id: str, secret: str) -> Outgoing:
    """Make the request; id and secret are form-encoded before Basic (RFC 6749 section 2.3.1)."""
    pair = f"{quote_plus(client_id)}:{quote_plus(secret)}".encode()
    return Outgoing(
        method="POST",
        path=LOGIN_PATH,
        query="",
        fields=[
            ("Authorization", f"Basic {base64.b64encode(pair).decode()}"),
            ("Content-Type", "application/x-www-form-urlencoded"),
            ("Accept", "application/json"),
        ],
        body=b"grant_type=client_credentials",
    )


def _is_vendor_throttle(status: int, document: Mapping[str, Any]) -> bool:
    if status != HTTPStatus.BAD_REQUEST or document.get("error") != "invalid_request":
        return False
    said = f"{document.get('description')} {document.get('error_description')}"
    return "rate limit exceeded" in said.lower()


def _values(answer: Answer, name: str) -> Sequence[str]:
    return [value for field_name, value in answer.fields if field_name.lower() == name]


def _date(answer: Answer) -> str | None:
    return next(iter(_values(answer, "date")), None)
