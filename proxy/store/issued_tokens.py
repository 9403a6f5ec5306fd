"""Which account a token was issued to, known to all replicas.

An entry is keyed by the hash of the token and names the account by the hash of its client id. An
entry for a managed account carries an HMAC of its content under the account's secret, so write
access to the store is not enough to make a token stand for another account.
"""

import asyncio
import hashlib
import hmac
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from proxy.clock import Clock
from proxy.store.client import PREFIX
from proxy.store.connection import Connection, StoreDown

_TOKEN: Final = PREFIX + "token:"
_MAX_DIGITS: Final = 12  # of a date


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """A token and its account; `lifetime` in seconds, `secret` that of a managed account."""

    token_hash: bytes
    account_id: str
    lifetime: float
    secret: str | None


@dataclass(frozen=True, slots=True)
class Entry:
    """A token's account, as the store has it; `expires` is wall time in whole seconds."""

    account_id: str
    expires: int
    seal: str

    def is_sealed_by(self, token_hash: bytes, secret: str) -> bool:
        """True if the writer of the entry knew the account's secret."""
        seal = _seal(token_hash, self.account_id, self.expires, secret)
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

    def restore_from(self, tokens: Callable[[], Iterable[IssuedToken]]) -> None:
        """Write these tokens again whenever the store may have lost them."""

        def restore() -> None:
            self._is_lost = True
            if not self._is_restoring:
                self._is_restoring = True
                self._spawn(self._restore(tokens))

        self._connection.restorers.append(restore)

    async def add(self, issued: IssuedToken) -> None:
        """Tell the other replicas; they do not learn it while the store is down."""
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
        (value,) = await self._connection.call(
            lambda: self._connection.redis.mget([_TOKEN + token_hash.hex()])
        )
        if value is None:
            return None
        text = value if isinstance(value, str) else value.decode("ascii", "replace")
        account_id, _, rest = text.partition(" ")
        expires, _, seal = rest.partition(" ")
        if not expires.isdecimal() or len(expires) > _MAX_DIGITS:
            return None
        entry = Entry(account_id, int(expires), seal)
        return entry if entry.expires > self._clock.wall() else None

    async def _write(self, issued: IssuedToken) -> None:
        token_hash, account_id, secret = issued.token_hash, issued.account_id, issued.secret
        expires = int(self._clock.wall() + issued.lifetime)
        seal = "" if secret is None else _seal(token_hash, account_id, expires, secret)
        await self._connection.call(
            lambda: self._connection.redis.set(
                _TOKEN + token_hash.hex(),
                f"{account_id} {expires} {seal}",
                ex=max(1, int(issued.lifetime)),
            )
        )

    async def _restore(self, tokens: Callable[[], Iterable[IssuedToken]]) -> None:
        try:
            while self._is_lost:
                self._is_lost = False
                with suppress(StoreDown):  # it asks again when it is back
                    for issued in tuple(tokens()):
                        await self._write(issued)
        finally:
            self._is_restoring = False


def _seal(token_hash: bytes, account_id: str, expires: int, secret: str) -> str:
    message = f"{token_hash.hex()} {account_id} {expires}".encode()
    return hmac.new(secret.encode(), message, hashlib.sha256).hexdigest()
