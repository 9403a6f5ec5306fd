"""The table of issued tokens: which account each token was issued to.

It holds tokens as hashes and accounts as ids. It is bounded, and an entry ends with its token.
With a shared store all replicas know what one replica has noted.
"""

from collections.abc import Callable, Iterator
from math import inf
from typing import Final

from proxy.clock import Clock
from proxy.rules.digests import hash_token
from proxy.store.issued_tokens import Entry, IssuedToken, SharedTokens

_ASK_AGAIN: Final = 30.0  # seconds; a token is noted when it is issued, before it is ever used
_ASK_SOON: Final = 1.0  # where the store lost what it knew, and may yet be told
_TELLING: Final = 10.0  # seconds the replicas take to tell it


class IssuedTokens:
    """Account ids by token hash.

    `secret_of` gives the secret of a managed account's id: entries of the store that name such an
    account count only if they are sealed with it.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        limit: int,
        shared: SharedTokens | None,
        secret_of: Callable[[str], str | None],
    ) -> None:
        self.limit = limit
        self._clock = clock
        self._shared = shared
        self._secret_of = secret_of
        self._known: dict[bytes, tuple[str, float]] = {}
        self._unknown: dict[bytes, float] = {}
        self._told_by = -inf
        if shared is not None:
            shared.restore_from(self._entries_again)

    async def add(self, token: str, account_id: str, lifetime: float) -> None:
        """Remember for `lifetime` seconds to whom a token was issued."""
        token_hash = hash_token(token)
        self._keep(token_hash, account_id, lifetime)
        if self._shared is not None:
            secret = self._secret_of(account_id)
            await self._shared.add(IssuedToken(token_hash, account_id, lifetime, secret))

    async def account_of(self, token_hash: bytes) -> str | None:
        """Return the id of the account the token was issued to, None if nobody knows.

        Raises StoreDown if another replica may know, and cannot be asked.
        """
        account_id, expires = self._known.get(token_hash, (None, 0.0))
        now = self._clock.monotonic()
        if account_id is not None and expires > now:
            return account_id
        self._known.pop(token_hash, None)
        if self._shared is None or self._unknown.get(token_hash, 0.0) > now:
            return None
        return await self._ask(token_hash, self._shared)

    def forget(self, account_id: str) -> None:
        """Forget the tokens of an account that is gone, or has a new secret."""
        self._known = {
            token_hash: known for token_hash, known in self._known.items() if known[0] != account_id
        }

    def _entries_again(self) -> Iterator[IssuedToken]:
        """Return what the store has to be told again, and ask anew for the rest: it lost both."""
        self._unknown.clear()
        self._told_by = self._clock.monotonic() + _TELLING
        return self._entries()

    def _entries(self) -> Iterator[IssuedToken]:
        now = self._clock.monotonic()
        for token_hash, (account_id, expires) in self._known.items():
            if expires > now:
                yield IssuedToken(
                    token_hash, account_id, expires - now, self._secret_of(account_id)
                )

    async def _ask(self, token_hash: bytes, shared: SharedTokens) -> str | None:
        entry = await shared.find(token_hash)
        if entry is None or not self._is_genuine(token_hash, entry):
            if len(self._unknown) >= self.limit:
                self._unknown.clear()
            now = self._clock.monotonic()
            self._unknown[token_hash] = now + (_ASK_SOON if now < self._told_by else _ASK_AGAIN)
            return None
        self._keep(token_hash, entry.account_id, entry.expires - self._clock.wall())
        return entry.account_id

    def _is_genuine(self, token_hash: bytes, entry: Entry) -> bool:
        secret = self._secret_of(entry.account_id)
        if secret is None:  # sealed: by a replica with settings of another time
            return not entry.seal
        return entry.is_sealed_by(token_hash, secret)

    def _keep(self, token_hash: bytes, account_id: str, lifetime: float) -> None:
        now = self._clock.monotonic()
        if len(self._known) >= self.limit:
            self._known = {key: value for key, value in self._known.items() if value[1] > now}
        if len(self._known) >= self.limit:
            del self._known[next(iter(self._known))]  # the oldest entry
        self._known[token_hash] = (account_id, now + lifetime)
