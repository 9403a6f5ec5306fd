"""Which account a token was issued to, known to all replicas.

An entry is keyed by the hash of the token and names the account by the hash of its client id. One
for a managed account carries an HMAC under the account's secret, over all it says: who can write to
the store still cannot make a token of theirs stand for somebody else's account.
"""

import asyncio
import hashlib
import hmac
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from proxy.clock import Clock
from proxy.store.connection import PREFIX, Connection, StoreDown

_TOKEN: Final = PREFIX + "token:"
_MAX_DIGITS: Final = 12  # of a date


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """What a replica learned; `lifetime` in seconds, `secret` that of a managed account."""

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
        """Tell whether the entry was written by somebody who knows the account's secret."""
        seal = _seal(token_hash, self.account_id, self.expires, secret)
        return hmac.compare_digest(self.seal.encode(), seal.encode())


class SharedTokens:
    """The table of learned tokens in the store."""

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
        self._is_forgotten = False
        self._is_repeating = False
        self._asking: dict[bytes, asyncio.Future[Entry | None]] = {}

    def repeat(self, lessons: Callable[[], Iterable[IssuedToken]]) -> None:
        """Have these told again whenever the store may have lost them."""

        def remind() -> None:
            self._is_forgotten = True
            if not self._is_repeating:
                self._is_repeating = True
                self._spawn(self._repeat(lessons))

        self._connection.reminders.append(remind)

    async def remember(self, lesson: IssuedToken) -> None:
        """Tell the other replicas; while the store is down they will not know."""
        try:
            await self._write(lesson)
        except StoreDown:
            return

    async def recall(self, token_hash: bytes) -> Entry | None:
        """Return what a replica learned of a token, if it has not expired.

        However many ask at once, the store is asked once. Raises StoreDown if nobody can say.
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
            asking.exception()  # whoever asked may be gone
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

    async def _write(self, lesson: IssuedToken) -> None:
        token_hash, account_id, secret = lesson.token_hash, lesson.account_id, lesson.secret
        expires = int(self._clock.wall() + lesson.lifetime)
        seal = "" if secret is None else _seal(token_hash, account_id, expires, secret)
        await self._connection.call(
            lambda: self._connection.redis.set(
                _TOKEN + token_hash.hex(),
                f"{account_id} {expires} {seal}",
                ex=max(1, int(lesson.lifetime)),
            )
        )

    async def _repeat(self, lessons: Callable[[], Iterable[IssuedToken]]) -> None:
        try:
            while self._is_forgotten:
                self._is_forgotten = False
                with suppress(StoreDown):  # there will be another reminder
                    for lesson in tuple(lessons()):
                        await self._write(lesson)
        finally:
            self._is_repeating = False


def _seal(token_hash: bytes, account_id: str, expires: int, secret: str) -> str:
    message = f"{token_hash.hex()} {account_id} {expires}".encode()
    return hmac.new(secret.encode(), message, hashlib.sha256).hexdigest()
