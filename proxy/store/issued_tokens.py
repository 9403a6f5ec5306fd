"""Which account a token was issued to, shared by all replicas.

An entry is keyed by the hash of the token and names the account by the hash of its client id. An
entry for a managed account carries an HMAC of its content under the account's secret, so write
access to the store is not enough to make a token stand for another account.

Replicas ask the API about a token once: the first one to write the token's question asks, the
others wait for its entry, or for its note that the API names no client.
"""

import asyncio
import hashlib
import hmac
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Literal

from proxy.clock import Clock
from proxy.store.client import PREFIX
from proxy.store.connection import Connection
from proxy.store.wire import StoreDown

_TOKEN: Final = PREFIX + "token:"
_QUESTION: Final = PREFIX + "question:"
_STRANGER: Final = "stranger"
_MAX_DIGITS: Final = 12  # of a date
BY_API: Final = "api:"


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """A token and its account; `lifetime` in seconds, `secret` that of a managed account.

    `origin` is empty for a token that was issued here, else `BY_API` and a digest of the
    organization whose service the token is.
    """

    token_hash: bytes
    account_id: str
    lifetime: float
    secret: str | None
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """A token's account, as the store has it; `expires` is wall time in whole seconds."""

    account_id: str
    expires: int
    seal: str
    origin: str = ""

    def is_sealed_by(self, token_hash: bytes, secret: str) -> bool:
        """True if the writer of the entry knew the account's secret."""
        seal = _seal(token_hash, self.account_id, self.expires, self.origin, secret)
        return hmac.compare_digest(self.seal.encode(), seal.encode())


class SharedTokens:
    """The table of issued tokens in the store."""

    def __init__(
        self,
        connection: Connection,
        *,
        clock: Clock,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
    ) -> None:
        self._connection = connection
        self._clock = clock
        self._spawn = spawn
        self._is_lost = False
        self._is_restoring = False
        self._asking: dict[bytes, asyncio.Future[Entry | None]] = {}

    def restore_from(self, tokens: Callable[[], AsyncIterator[IssuedToken]]) -> None:
        """Write the tokens that `tokens` returns again whenever the store may have lost them."""

        def restore() -> None:
            self._is_lost = True
            if not self._is_restoring:
                self._is_restoring = True
                self._spawn(self._restore(tokens))

        self._connection.restorers.append(restore)

    async def add(self, issued: IssuedToken) -> None:
        """Tell the other replicas; they are not told while the store is down."""
        try:
            await self._write(issued)
        except StoreDown:
            return

    async def find(self, token_hash: bytes) -> Entry | None:
        """Return the entry of a token that has not expired.

        Calls for one token at the same time share one question. Raises StoreDown if it fails.
        """
        asking = self._asking.get(token_hash)
        if asking is None:
            asking = self._asking[token_hash] = asyncio.get_running_loop().create_future()
            self._spawn(self._ask(token_hash, asking))
        return await asyncio.shield(asking)

    async def begin_question(
        self, token_hash: bytes, asker: str, seconds: float
    ) -> Literal["ours", "theirs", "stranger"]:
        """Note that `asker` asks the API about a token; return the replica that does.

        `stranger`: another replica has asked, and the API names no client. Raises StoreDown.
        """
        key = _QUESTION + token_hash.hex()
        words = ("SET", key, asker, "NX", "PX", int(1000 * seconds))
        self._connection.send(words, lambda _: None)  # the next command says what came of it
        answer = await self._connection.run("MGET", key)
        value = answer[0] if isinstance(answer, list) else None
        text = value.decode("ascii", "replace") if isinstance(value, bytes) else value
        if text == _STRANGER:
            return "stranger"
        return "ours" if text == asker else "theirs"

    async def end_question(self, token_hash: bytes, *, stranger_for: float | None) -> None:
        """End a question; with `stranger_for` seconds the API named no client."""
        key = _QUESTION + token_hash.hex()
        with suppress(StoreDown):  # the question ends by itself
            if stranger_for is None:
                await self._connection.run("DEL", key)
            else:
                await self._connection.run("SET", key, _STRANGER, "PX", int(1000 * stranger_for))

    async def _ask(self, token_hash: bytes, asking: "asyncio.Future[Entry | None]") -> None:
        try:
            asking.set_result(await self._read(token_hash))
        except StoreDown as down:
            asking.set_exception(down)
            asking.exception()  # the caller may be gone
        finally:
            del self._asking[token_hash]
            asking.cancel()  # where we were cancelled

    async def _read(self, token_hash: bytes) -> Entry | None:
        # MGET, because GET fails on a key of another type.
        answer = await self._connection.run("MGET", _TOKEN + token_hash.hex())
        if not isinstance(answer, list) or not isinstance(answer[0], bytes):
            return None
        text = answer[0].decode("ascii", "replace")
        account_id, expires, seal, origin, *_ = (*text.split(" ", 3), "", "", "")
        if not expires.isdecimal() or len(expires) > _MAX_DIGITS:
            return None
        entry = Entry(account_id, int(expires), seal, origin)
        return entry if entry.expires > self._clock.wall() else None

    async def _write(self, issued: IssuedToken) -> None:
        token_hash, account_id, secret = issued.token_hash, issued.account_id, issued.secret
        origin = issued.origin
        expires = int(self._clock.wall() + issued.lifetime)
        seal = "" if secret is None else _seal(token_hash, account_id, expires, origin, secret)
        value = f"{account_id} {expires} {seal}" + (f" {origin}" if origin else "")
        key = _TOKEN + token_hash.hex()
        await self._connection.run("SET", key, value, "EX", max(1, int(issued.lifetime)))

    async def _restore(self, tokens: Callable[[], AsyncIterator[IssuedToken]]) -> None:
        try:
            while self._is_lost:
                self._is_lost = False
                with suppress(StoreDown):  # it asks again when it is back
                    for issued in [one async for one in tokens()]:
                        await self._write(issued)
        finally:
            self._is_restoring = False


def _seal(token_hash: bytes, account_id: str, expires: int, origin: str, secret: str) -> str:
    said = f"{token_hash.hex()} {account_id} {expires}"
    message = (f"{said} {origin}" if origin else said).encode()
    return hmac.new(secret.encode(), message, hashlib.sha256).hexdigest()
