"""The token endpoint's front: `POST {login_prefix}/oauth/token` (RFC 6749 section 4.4).

For a managed account id and secret are compared here, and right ones get the managed token. Any
other call goes to the login server unchanged, and a token that comes back teaches which client it
belongs to, so that its requests share one line. Only client-credentials calls with a secret are
compared or learned; nothing is kept of the secret. Our own errors have the form of RFC 6749
section 5.2 (`http/responses.py`).
"""

import asyncio
import base64
import json
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qs, unquote_plus

from aiohttp import web

from proxy.clock import Clock
from proxy.http.client import Client
from proxy.http.messages import Answer, BadAnswer, OutcomeUnknown, Outgoing, Unsent
from proxy.http.responses import OwnResponse
from proxy.identity.callers import Identity
from proxy.problems import Problem
from proxy.rules.claims import LONGEST_LIFE
from proxy.settings import Settings
from proxy.tokens.account_token import TokenKeeper

_MAX_CALLS: Final = 4
_MAX_FIELDS: Final = 100  # of a form; reading very many would stall the loop
_MAX_ANSWER: Final = 65536


@dataclass(frozen=True, slots=True)
class _Credentials:
    client_id: str
    secret: str = field(repr=False)


class Login:
    """Answers token calls: from the managed accounts, or from the login server, a few at once."""

    def __init__(
        self, settings: Settings, upstream: Client, identity: Identity, *, clock: Clock
    ) -> None:
        self.apply(settings)
        self._upstream = upstream
        self._identity = identity
        self._clock = clock
        self._calls = asyncio.Semaphore(_MAX_CALLS)

    def apply(self, settings: Settings) -> None:
        """Obey new settings from the next call on."""
        self._max_wait = settings.pacing.max_wait

    async def answer(self, call: Outgoing, peer: str) -> Answer | web.Response:
        """Return the login server's answer, read whole, or one of our own.

        Raises a Problem when there is none.
        """
        credentials = _credentials_of(call)
        if credentials is not None:
            managed = self._identity.managed(credentials.client_id)
            if managed is not None:
                return await self._issue(managed, credentials, peer)
        answer = await self._forward(call)
        if credentials is not None and answer.status == 200:  # noqa: PLR2004
            await self._note(answer.body, credentials.client_id)
        return answer

    async def _issue(
        self, managed: TokenKeeper, credentials: _Credentials, peer: str
    ) -> web.Response:
        """Give the managed token to whoever proves the account's secret."""
        if not self._identity.check_secret(managed, credentials.secret, peer):
            raise Problem(
                "unauthenticated",
                "The client id or secret is wrong.",
                headers={"WWW-Authenticate": 'Basic realm="export-proxy"'},
            )
        token = await managed.usable(frozenset(), limit=self._max_wait)
        lifetime = token.expires_at - self._clock.monotonic()
        await self._identity.note_issued(token.value, credentials.client_id, lifetime)
        return OwnResponse(
            body=json.dumps(
                {
                    "access_token": token.value,
                    "token_type": "bearer",
                    "expires_in": max(1, int(lifetime)),
                }
            ).encode(),
            headers={"Content-Type": "application/json", "Cache-Control": "no-store"},
        )

    async def _forward(self, call: Outgoing) -> Answer:
        try:
            async with asyncio.timeout(self._max_wait):
                await self._calls.acquire()
        except TimeoutError:
            raise Problem(
                "token-unavailable", "Too many token calls at once.", retry_after=1
            ) from None
        try:
            response = await self._upstream.send(call)
            return await self._upstream.read(response, _MAX_ANSWER)
        except (Unsent, OutcomeUnknown):
            raise Problem(
                "token-unavailable", "The login server cannot be reached.", retry_after=1
            ) from None
        except BadAnswer:
            raise Problem("bad-upstream", "The login server's answer is not usable.") from None
        finally:
            self._calls.release()

    async def _note(self, body: bytes, client_id: str) -> None:
        try:
            answer = json.loads(body)
            token, lifetime = answer["access_token"], answer["expires_in"]
        except (ValueError, TypeError, KeyError, RecursionError):
            return  # not a token; the caller sees the answer as it is
        # No bearer token is anything but ASCII, and JSON may hold what cannot even be encoded.
        if isinstance(token, str) and token.isascii() and type(lifetime) is int and lifetime > 0:
            await self._identity.note_issued(token, client_id, min(lifetime, LONGEST_LIFE))


def _credentials_of(call: Outgoing) -> _Credentials | None:
    """Return what a client-credentials call proves; None for any other grant, or no secret.

    Raises the Problem `bad-request` when credentials are given twice (RFC 6749 section 2.3).
    """
    form = _form(call.body)
    basic = _basic([value for name, value in call.fields if name.lower() == "authorization"])
    if basic is not None and "client_secret" in form:
        raise Problem("bad-request", "Credentials are given both in the header and in the form.")
    if form.get("grant_type") != ["client_credentials"]:
        return None
    if basic is not None:
        return basic if basic.secret else None
    ids, secrets = form.get("client_id", []), form.get("client_secret", [])
    if len(ids) != 1 or len(secrets) != 1 or not secrets[0]:
        return None
    return _Credentials(ids[0], secrets[0])


def _form(body: bytes) -> dict[str, list[str]]:
    try:
        return parse_qs(
            body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=_MAX_FIELDS
        )
    except ValueError:
        raise Problem("bad-request", "The form has too many fields.") from None


def _basic(authorization: list[str]) -> _Credentials | None:
    """Return the credentials of a Basic field; both parts are form-encoded (RFC 6749 2.3.1)."""
    if len(authorization) != 1 or authorization[0][:6].lower() != "basic ":
        return None
    try:
        text = base64.b64decode(authorization[0][6:].strip(), validate=True).decode()
    except ValueError:
        return None
    client_id, colon, secret = text.partition(":")
    return _Credentials(unquote_plus(client_id), unquote_plus(secret)) if colon else None
