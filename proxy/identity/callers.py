"""Who sends a request: from the Authorization field to a value, or a refusal.

An unverified claim is never an identity. The first rule that applies to a credential decides; if
its check fails, the request is refused and never forwarded. The rules, in this order:

1. a token issued through this proxy: its hash is in the table of issued tokens;
2. a JWT of the configured issuer, once it is verified;
3. a caller key of an account;
4. a token whose client the API names when it is asked (`identity/whoami.py`).

The API's answer decides the queue. The caller gets the managed token only if the answer proves the
service: it names no person, and the organization is the account's. Any other token is a stranger's:
it identifies only itself.

The result is a value; this module knows no queues. logins.py handles log-ins through the proxy.
"""

import asyncio
import re
import secrets
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, assert_never

from proxy.clock import Clock
from proxy.http.client import Client as HttpClient
from proxy.identity.findings import Denied
from proxy.identity.issued_tokens import Found, IssuedTokens, Owner
from proxy.identity.issuer import Issuer
from proxy.identity.logins import Logins
from proxy.identity.organizations import Organizations
from proxy.identity.whoami import Whoami
from proxy.problems import store_unavailable, unauthenticated
from proxy.rules.digests import account_id, hash_token
from proxy.rules.token_answers import remaining_life
from proxy.settings import Settings
from proxy.store.issued_tokens import SharedTokens
from proxy.store.wire import StoreDown
from proxy.tokens.account_token import TokenKeeper
from proxy.tokens.credentials import SecretUnreadableError
from proxy.tokens.managed import ManagedTokens

# RFC 6750 section 2.1, RFC 9110 section 11.1: the scheme's case does not matter.
_BEARER: Final = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] +([A-Za-z0-9._~+/-]+=*)")


@dataclass(frozen=True, slots=True)
class Key:
    """A caller key of an account: its hash, and the name and weight it was given."""

    sha256: bytes = field(repr=False)
    name: str | None
    weight: int


@dataclass(frozen=True, slots=True)
class Configured:
    """A configured account, by its name.

    `is_service` is False for a token that belongs in the account's queue and proves no more: the
    request is sent with that token. `key` is the key that the caller presented, if any.
    """

    name: str
    is_service: bool = True
    key: Key | None = None


class Client(NamedTuple):
    """An unconfigured client, by its account id (`rules/digests.py`)."""

    account_id: str


class Stranger(NamedTuple):
    """A token that identifies only itself.

    `sure` is False while the store is down: another replica may know the token's client.
    """

    token_hash: bytes
    sure: bool


Caller = Configured | Client | Stranger | Denied


class Identity:
    """Finds the caller that a credential identifies."""

    def __init__(  # noqa: PLR0913 -- the parts it asks, each by name
        self,
        settings: Settings,
        *,
        clock: Clock,
        tokens: ManagedTokens,
        issuer: Issuer,
        api: HttpClient,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        shared: SharedTokens | None = None,
    ) -> None:
        self._tokens = tokens
        self._issuer = issuer
        self._clock = clock
        self._issued = IssuedTokens(
            clock=clock,
            limit=settings.identity.max_learned,
            shared=shared,
            secret_of=self._secret_of,
        )
        self._whoami = Whoami(settings, api, self._issued, clock=clock, spawn=spawn, shared=shared)
        self._organizations = Organizations(settings, self._whoami, clock=clock)
        self.logins = Logins(settings, tokens, clock=clock)
        self.apply(settings)

    def apply(self, settings: Settings) -> None:
        """Obey new settings from now on; the table of issued tokens is kept."""
        self._rules = settings.identity
        self._issued.apply(settings.identity.max_learned)
        self._whoami.apply(settings)
        self._organizations.apply(settings)
        self.logins.apply(settings)
        self._names = {account_id(one.client_id): one.name for one in settings.accounts}
        self._keys = {
            key.digest: Configured(account.name, key=Key(key.digest, key.name, key.weight))
            for account in settings.accounts
            for key in account.keys
        }

    @property
    def tokens(self) -> Mapping[str, TokenKeeper]:
        """The tokens of the managed accounts, by the account's name."""
        return self._tokens.by_name

    def forget(self, client_id: str) -> None:
        """Forget which tokens were issued to that client."""
        self._issued.forget(account_id(client_id))

    def close(self) -> None:
        """Stop asking the API."""
        self._whoami.close()

    async def caller(self, authorization: Sequence[str], *, peer: str) -> Caller:
        """Return the caller that these Authorization values, sent from `peer`, identify.

        Raises the Problem `unauthenticated`, `keys-unavailable` or `store-unavailable`.
        """
        token = _bearer_token(authorization)
        token_hash = hash_token(token)
        return self._at_once(token_hash) or await self._asked(token, token_hash, peer)

    def at_once(self, authorization: Sequence[str]) -> Caller | None:
        """Return the same if that needs no query and no verification of a signature; else None.

        Raises the Problem `unauthenticated`.
        """
        return self._at_once(hash_token(_bearer_token(authorization)))

    def _at_once(self, token_hash: bytes) -> Caller | None:
        found = self._issued.known(token_hash)
        if found is not None:
            return None if found.is_due else self._named_at_once(found.owner)
        if self._issuer.verifier is not None or not self._issued.is_nobodys(token_hash):
            return None
        holder = self._keys.get(token_hash)
        if holder is not None:
            return holder
        if not self._whoami.is_settled(token_hash):
            return None
        return self._whoami.finding(token_hash) or self._stranger(token_hash, sure=True)

    async def _asked(self, token: str, token_hash: bytes, peer: str) -> Caller:
        sure = True
        try:
            found = await self._issued.find(token_hash)
        except StoreDown:
            found, sure = None, False
        if found is not None:
            if found.is_due:
                self._whoami.ask_again(token, token_hash, peer=peer)
            return await self._named(found, token)
        account = await self._account_by_jwt(token)
        if account is not None:
            return await self._named(Found(Owner(account)), token)
        holder = self._keys.get(token_hash)
        if holder is not None:
            return holder
        answer = await self._whoami.ask(token, token_hash, peer=peer)
        match answer:
            case Owner():
                return await self._named(Found(answer), token)
            case Denied():
                return answer
            case None:
                return self._stranger(token_hash, sure=sure)
            case _:
                assert_never(answer)

    def is_key(self, authorization: Sequence[str]) -> bool:
        """True if these Authorization values are a caller key of a configured account."""
        return bool(self._keys) and hash_token(_bearer_token(authorization)) in self._keys

    async def note_issued(self, token: str, client_id: str, lifetime: float) -> None:
        """Remember for `lifetime` seconds to whom a token was issued, here and in the store."""
        await self._issued.add(token, account_id(client_id), lifetime)

    async def _named(self, found: Found, token: str) -> Caller:
        """Return the caller that a token with a known owner identifies."""
        while True:
            named = self._named_at_once(found.owner)
            if named is not None:
                return named
            name = self._names[found.owner.account_id]
            is_service = await self._is_service(found, token, self.tokens[name])
            if self._names.get(found.owner.account_id) == name:
                return Configured(name, is_service)  # else a reload renamed it meanwhile

    def _named_at_once(self, owner: Owner) -> Caller | None:
        """Return the same; None if that needs the owner's organization."""
        name = self._names.get(owner.account_id)
        if name is None:
            if owner.by_api and self._rules.unidentified == "reject":
                raise unauthenticated("The token's client is not configured here.")
            return Client(owner.account_id)
        if owner.by_api and name in self.tokens:
            return None
        return Configured(name)

    async def _is_service(self, found: Found, token: str, keeper: TokenKeeper) -> bool:
        """True if the API's answer proves the managed account's service.

        An expired token proves nothing until the API was asked again: else a leaked one would serve
        for as long as the API does not answer.
        """
        owner = found.owner
        if not owner.organization:
            return False
        if found.is_due:
            remaining = remaining_life(token, self._clock.wall())
            if remaining is not None and remaining <= 0:
                return False
        return await self._organizations.of(owner.account_id, keeper) == owner.organization

    def _stranger(self, token_hash: bytes, *, sure: bool) -> Stranger:
        if self._rules.unidentified == "pace":
            return Stranger(token_hash, sure)
        if not sure:
            raise store_unavailable()
        raise unauthenticated("The proxy does not know whose token this is.")

    async def _account_by_jwt(self, token: str) -> str | None:
        """Return the account id a JWT of the issuer proves; None if it is not the issuer's."""
        verifier = self._issuer.verifier
        claims = None if verifier is None else verifier.claims_of(token)
        if verifier is None or claims is None:
            return None
        return account_id(await verifier.client_of(token, claims))

    async def _secret_of(self, account: str) -> str | None:
        """Return the secret of a managed account; a random one, fitting no seal, if unreadable."""
        token = self.tokens.get(self._names.get(account, ""))
        if token is None:
            return None
        try:
            return await token.credentials.read_secret()
        except SecretUnreadableError:
            return secrets.token_hex()


def _bearer_token(authorization: Sequence[str]) -> str:
    if not authorization:
        raise unauthenticated("A bearer token is required.")
    bearer = _BEARER.fullmatch(authorization[0])
    if bearer is None:
        raise unauthenticated("The Authorization field holds no bearer token.")
    return bearer[1]
