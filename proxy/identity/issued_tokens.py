"""The table of tokens whose client is known: issued through this proxy, or named by the API.

It holds tokens as hashes and accounts as ids, and it is bounded. With a shared store all replicas
know the entries of each.

The entry of a token that was issued here ends with the token. An entry from the API's answer is
*due* at its end: it still counts, but the API must be asked again (`identity/whoami.py`).

A full table makes room in this order: entries past their end; the oldest entry of the same account,
so that a client that renews its token evicts no other; the oldest entry of all.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from math import inf
from typing import Final

from proxy.clock import Clock
from proxy.rules.digests import hash_token
from proxy.store.issued_tokens import BY_API, Entry, IssuedToken, SharedTokens

_ASK_AGAIN: Final = 30.0  # seconds; a token is noted when it is issued, before it is ever used
_ASK_SOON: Final = 1.0  # while a store that lost its state may still get it again
_TELLING: Final = 10.0  # seconds the replicas take for that


@dataclass(frozen=True, slots=True)
class Owner:
    """The owner of a token.

    `by_api` is True if the API named the owner; then `organization` is a digest of the
    organization, empty unless the token belongs to the client's own service.
    """

    account_id: str
    by_api: bool = False
    organization: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """An entry of the table; `is_due` if the API must be asked again."""

    owner: Owner
    is_due: bool = False


class IssuedTokens:
    """Owners by token hash.

    `secret_of` gives the secret of a managed account's id: entries of the store that name such an
    account count only if they are sealed with it.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        limit: int,
        shared: SharedTokens | None,
        secret_of: Callable[[str], Awaitable[str | None]],
    ) -> None:
        self._limit = limit
        self._clock = clock
        self._shared = shared
        self._secret_of = secret_of
        self._known: dict[bytes, tuple[Owner, float]] = {}
        self._unknown: dict[bytes, float] = {}
        self._told_by = -inf
        if shared is not None:
            shared.restore_from(self._entries_again)

    def apply(self, limit: int) -> None:
        """Hold that many entries from now on."""
        self._limit = limit

    async def add(self, token: str, account_id: str, lifetime: float) -> None:
        """Remember for `lifetime` seconds to whom a token was issued."""
        await self.add_owner(hash_token(token), Owner(account_id), lifetime)

    async def add_owner(self, token_hash: bytes, owner: Owner, lifetime: float) -> None:
        """Remember the owner of a token for `lifetime` seconds."""
        self._keep(token_hash, owner, lifetime)
        if self._shared is not None:
            secret = await self._secret_of(owner.account_id)
            await self._shared.add(_to_share(token_hash, owner, lifetime, secret))

    def known(self, token_hash: bytes) -> Found | None:
        """Return the owner of the token, as far as this replica knows."""
        entry = self._known.get(token_hash)
        if entry is None:
            return None
        owner, expires = entry
        now = self._clock.monotonic()
        if expires > now or owner.by_api:
            return Found(owner, is_due=expires <= now)
        del self._known[token_hash]
        return None

    def is_nobodys(self, token_hash: bytes) -> bool:
        """True if no replica knows a token that this one does not know."""
        return self._shared is None or self._unknown.get(token_hash, 0.0) > self._clock.monotonic()

    async def find(self, token_hash: bytes) -> Found | None:
        """Return the owner of the token, None if unknown.

        Raises StoreDown if another replica may know, and the store is down.
        """
        found = self.known(token_hash)
        if found is not None or self.is_nobodys(token_hash):
            return found
        owner = await self.look_up(token_hash)
        if owner is not None:
            return Found(owner)
        if len(self._unknown) >= self._limit:
            self._unknown.clear()
        now = self._clock.monotonic()
        self._unknown[token_hash] = now + (_ASK_SOON if now < self._told_by else _ASK_AGAIN)
        return None

    async def look_up(self, token_hash: bytes) -> Owner | None:
        """Return the owner of the token by the store, None if the store does not know.

        Raises StoreDown if it cannot be asked.
        """
        entry = None if self._shared is None else await self._shared.find(token_hash)
        if entry is None or not await self._is_genuine(token_hash, entry):
            return None
        by_api = entry.origin.startswith(BY_API)
        owner = Owner(entry.account_id, by_api, entry.origin.removeprefix(BY_API))
        self._keep(token_hash, owner, entry.expires - self._clock.wall())
        return owner

    def postpone(self, token_hash: bytes, seconds: float) -> None:
        """Let an entry that is due count for some more seconds."""
        if token_hash in self._known:
            owner, _ = self._known[token_hash]
            self._known[token_hash] = (owner, self._clock.monotonic() + seconds)

    def drop(self, token_hash: bytes) -> None:
        """Forget a token."""
        self._known.pop(token_hash, None)

    def forget(self, account_id: str) -> None:
        """Forget the tokens of an account that is gone, or has a new secret."""
        self._known = {
            token_hash: known
            for token_hash, known in self._known.items()
            if known[0].account_id != account_id
        }

    def _entries_again(self) -> AsyncIterator[IssuedToken]:
        """Return the entries to store again after the store lost them; ask again about others."""
        self._unknown.clear()
        self._told_by = self._clock.monotonic() + _TELLING
        return self._entries()

    async def _entries(self) -> AsyncIterator[IssuedToken]:
        secrets: dict[str, str | None] = {}
        for token_hash, known in tuple(self._known.items()):
            owner, expires = known
            if owner.account_id not in secrets:
                secrets[owner.account_id] = await self._secret_of(owner.account_id)
            left = expires - self._clock.monotonic()
            if left > 0 and self._known.get(token_hash) is known:  # not forgotten meanwhile
                yield _to_share(token_hash, owner, left, secrets[owner.account_id])

    async def _is_genuine(self, token_hash: bytes, entry: Entry) -> bool:
        secret = await self._secret_of(entry.account_id)
        if secret is None:  # sealed: by a replica with settings of another time
            return not entry.seal
        return entry.is_sealed_by(token_hash, secret)

    def _keep(self, token_hash: bytes, owner: Owner, lifetime: float) -> None:
        now = self._clock.monotonic()
        self._known.pop(token_hash, None)
        if len(self._known) >= self._limit:
            self._make_room(owner.account_id, now)
        self._known[token_hash] = (owner, now + lifetime)

    def _make_room(self, account_id: str, now: float) -> None:
        self._known = {key: value for key, value in self._known.items() if value[1] > now}
        if len(self._known) < self._limit:
            return
        own = (key for key, (owner, _) in self._known.items() if owner.account_id == account_id)
        del self._known[next(own, None) or next(iter(self._known))]


def _to_share(token_hash: bytes, owner: Owner, lifetime: float, secret: str | None) -> IssuedToken:
    origin = f"{BY_API}{owner.organization}" if owner.by_api else ""
    return IssuedToken(token_hash, owner.account_id, lifetime, secret, origin)
