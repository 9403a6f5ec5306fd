"""The token endpoint's front: `POST {login_prefix}/oauth/token` (RFC 6749 section 4.4).

A log-in of a managed account, in any spelling (`rules/logins.py`), is answered here: the proxy
compares the secret, and gives the managed token for the right one. It refuses an ambiguous call
that may be such a log-in, so that no spelling bypasses the account. Any other call goes to the
login server unchanged, and the proxy notes the returned token as that client's.

Log-ins of one client do not affect another's: each client has a few calls of its own. For some
seconds the proxy itself refuses a secret that the login server refused. Of a secret it keeps only a
hash of the call. Our own errors have the form of RFC 6749 section 5.2 (`http/responses.py`).
"""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from math import inf
from typing import Final

import structlog

from proxy.clock import Clock
from proxy.forwarding.drain import Drain
from proxy.http.client import Client
from proxy.http.messages import Answer, BadAnswer, OutcomeUnknown, Outgoing, Unsent
from proxy.http.responses import OwnAnswer
from proxy.identity.callers import Identity
from proxy.problems import Problem
from proxy.rules.codings import coded_fields, decoded
from proxy.rules.logins import Call, Login, LoginError, read_call
from proxy.rules.token_answers import life_of, read_document, read_grant
from proxy.telemetry.metrics import Metrics
from proxy.tokens.account_token import TokenKeeper

_log = structlog.get_logger(__name__)
MAX_FORM: Final = 16_384  # bytes; a form is read on the loop, and none needs a tenth of it
_CALLS_OF_A_CLIENT: Final = 4  # at once; a client needs one token for all its work
_MAX_ANSWER: Final = 65536
_REFUSED_FOR: Final = 5.0  # seconds for which a refused secret is refused here
_MAX_REFUSED: Final = 1000  # refused calls remembered; each answer is short
_LONGEST_REFUSAL: Final = 4096  # bytes of an answer that is remembered
_LOG_EVERY: Final = 60.0  # seconds
_WRONG: Final = frozenset({"invalid_client", "invalid_grant", "unauthorized_client"})


@dataclass(slots=True)
class _Gate:
    """The calls of one client: the permits for them, and how many callers hold or await one."""

    room: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_CALLS_OF_A_CLIENT))
    users: int = 0


class TokenCalls:
    """Answers token calls: from the managed accounts, or from the login server."""

    def __init__(
        self,
        login_server: Client,
        identity: Identity,
        *,
        clock: Clock,
        metrics: Metrics,
        drain: Drain,
    ) -> None:
        self._login_server = login_server
        self._identity = identity
        self._clock = clock
        self._metrics = metrics
        self._drain = drain
        self._gates: dict[str, _Gate] = {}
        self._refused: dict[bytes, tuple[Answer, float]] = {}
        self._log_at = -inf

    async def answer(self, outgoing: Outgoing, peer: str, *, limit: float) -> Answer:
        """Return the login server's answer, read whole, or one of our own.

        The caller waits `limit` seconds at most for a place, or for the managed token. Raises a
        Problem when there is no answer.
        """
        call = _read(outgoing)
        login = call.login
        if login is not None:
            managed = self._identity.logins.managed(login.client_ids)
            if managed is not None:
                return await self._issue(managed, login, peer, limit=limit)
        elif call.mentions(self._identity.logins.managed_ids):
            raise Problem(
                "bad-request",
                "A log-in of a managed account names grant_type, client_id and client_secret,"
                " each of them once.",
            )
        key = _fingerprint(outgoing)
        refused, until = self._refused.get(key, (None, 0.0))
        if refused is not None and until > self._clock.monotonic():
            return refused
        client = f"peer {peer}" if login is None else f"id {login.client_id}"
        async with self._place(client, limit):
            answer = await self._forward(outgoing)
        await self._take_note(answer, login, key)
        return answer

    async def _issue(
        self, managed: TokenKeeper, login: Login, peer: str, *, limit: float
    ) -> OwnAnswer:
        """Give the managed token to a caller that proves the account's secret."""
        if not await self._identity.logins.check_secret(managed, login.secret, peer):
            raise Problem(
                "unauthenticated",
                "The client id or secret is wrong.",
                headers={"WWW-Authenticate": 'Basic realm="export-proxy"'},
            )
        with self._drain.interrupts():
            token = await managed.usable(frozenset(), limit=limit)
        lifetime = token.expires_at - self._clock.monotonic()
        await self._identity.note_issued(token.value, managed.credentials.client_id, lifetime)
        return OwnAnswer(
            status=HTTPStatus.OK,
            reason="",
            fields=[("Content-Type", "application/json"), ("Cache-Control", "no-store")],
            body=json.dumps(
                {
                    "access_token": token.value,
                    "token_type": "bearer",
                    "expires_in": max(1, int(lifetime)),
                }
            ).encode(),
        )

    @asynccontextmanager
    async def _place(self, client: str, limit: float) -> AsyncIterator[None]:
        """Hold one of the client's places for calls under way, for the block.

        Raises the Problem `token-unavailable` after `limit` seconds, and `draining`.
        """
        gate = self._gates.setdefault(client, _Gate())
        gate.users += 1
        try:
            try:
                with self._drain.interrupts():
                    async with asyncio.timeout(limit):
                        await gate.room.acquire()
            except TimeoutError:
                raise Problem(
                    "token-unavailable", "Too many token calls at once.", retry_after=1
                ) from None
            try:
                yield
            finally:
                gate.room.release()
        finally:
            gate.users -= 1
            if not gate.users:
                del self._gates[client]

    async def _forward(self, call: Outgoing) -> Answer:
        try:
            response = await self._login_server.send(call)
            return await self._login_server.read(response, _MAX_ANSWER)
        except (Unsent, OutcomeUnknown):
            raise Problem(
                "token-unavailable", "The login server cannot be reached.", retry_after=1
            ) from None
        except BadAnswer:
            raise Problem("bad-upstream", "The login server's answer is not usable.") from None

    async def _take_note(self, answer: Answer, login: Login | None, key: bytes) -> None:
        """Note whose token an answer holds, or that the answer refuses the secret."""
        text = decoded(answer.body, coded_fields(answer.fields), limit=_MAX_ANSWER)
        document = read_document(text or b"")
        if answer.status == HTTPStatus.OK:
            grant = read_grant(document)
            if grant is not None and login is not None:
                life = life_of(grant, self._clock.wall())
                await self._identity.note_issued(grant.token, login.client_id, life)
            elif grant is not None or (text is None and answer.body):
                self._count_unattributed()
        elif login is not None and _refuses(answer.status, document.get("error")):
            self._remember(key, answer)

    def _count_unattributed(self) -> None:
        self._metrics.unattributed_login()
        now = self._clock.monotonic()
        if now >= self._log_at:
            self._log_at = now + _LOG_EVERY
            _log.warning("a token was issued through the proxy, and its client is not known")

    def _remember(self, key: bytes, answer: Answer) -> None:
        if len(answer.body) > _LONGEST_REFUSAL:
            return
        self._refused.pop(key, None)
        if len(self._refused) >= _MAX_REFUSED:
            del self._refused[next(iter(self._refused))]
        self._refused[key] = (answer, self._clock.monotonic() + _REFUSED_FOR)


def _read(outgoing: Outgoing) -> Call:
    body = decoded(outgoing.body, coded_fields(outgoing.fields), limit=2 * len(outgoing.body))
    try:
        return read_call(
            outgoing.query,
            outgoing.body if body is None else body,
            [value for name, value in outgoing.fields if name.lower() == "authorization"],
        )
    except LoginError as error:
        raise Problem("bad-request", str(error)) from None


def _refuses(status: int, error: object) -> bool:
    is_wrong = isinstance(error, str) and error in _WRONG
    return status == HTTPStatus.UNAUTHORIZED or (status == HTTPStatus.BAD_REQUEST and is_wrong)


def _fingerprint(call: Outgoing) -> bytes:
    """Return a hash of everything by which the login server can distinguish calls."""
    said = [call.query.encode("utf-8", "surrogatepass"), call.body]
    for name, value in call.fields:
        if name.lower() in {"authorization", "content-type", "content-encoding"}:
            said += [name.lower().encode(), value.encode("utf-8", "surrogatepass")]
    return hashlib.sha256(b"\x00".join(hashlib.sha256(one).digest() for one in said)).digest()
