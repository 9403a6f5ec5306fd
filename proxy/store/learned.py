"""Which account a token was issued to, known to all replicas.

An entry is keyed by the hash of the token and names the account by the hash of its client id. One
for a managed account carries an HMAC under the account's secret, over all it says: who can write to
the store still cannot make a token of theirs stand for somebody else's account.
"""

import hashlib
import hmac
from dataclasses import dataclass
from typing import Final

from proxy.clock import Clock
from proxy.store.connection import PREFIX, Connection, StoreDown

_TOKEN: Final = PREFIX + "token:"


@dataclass(frozen=True, slots=True)
class Entry:
    """A token's account; `expires` is wall time in whole seconds."""

    account_id: str
    expires: int
    seal: str

    def is_sealed_by(self, token_hash: bytes, secret: str) -> bool:
        """Tell whether the entry was written by somebody who knows the account's secret."""
        seal = _seal(token_hash, self.account_id, self.expires, secret)
        return hmac.compare_digest(self.seal.encode(), seal.encode())


class SharedTokens:
    """The table of learned tokens in the store."""

    def __init__(self, connection: Connection, *, clock: Clock) -> None:
        self._connection = connection
        self._clock = clock

    async def remember(
        self, token_hash: bytes, account_id: str, lifetime: float, secret: str | None
    ) -> None:
        """Tell the other replicas; while the store is down they will not know."""
        expires = int(self._clock.wall() + lifetime)
        seal = "" if secret is None else _seal(token_hash, account_id, expires, secret)
        try:
            await self._connection.call(
                lambda: self._connection.redis.set(
                    _TOKEN + token_hash.hex(),
                    f"{account_id} {expires} {seal}",
                    ex=max(1, int(lifetime)),
                )
            )
        except StoreDown:
            return

    async def recall(self, token_hash: bytes) -> Entry | None:
        """Return what a replica learned of a token, if it has not expired.

        Raises StoreDown if nobody can say.
        """
        value = await self._connection.call(
            lambda: self._connection.redis.get(_TOKEN + token_hash.hex())
        )
        if value is None:
            return None
        text = value if isinstance(value, str) else value.decode("ascii", "replace")
        account_id, _, rest = text.partition(" ")
        expires, _, seal = rest.partition(" ")
        if not expires.isdecimal() or int(expires) <= self._clock.wall():
            return None
        return Entry(account_id, int(expires), seal)


def _seal(token_hash: bytes, account_id: str, expires: int, secret: str) -> str:
    message = f"{token_hash.hex()} {account_id} {expires}".encode()
    return hmac.new(secret.encode(), message, hashlib.sha256).hexdigest()
