"""Who sends a request: from the Authorization field to a value, or a refusal.

An unverified claim is never an identity. A rule claims a credential; one that is claimed and fails
is refused, and never passed on. The rules, in this order:

1. a token issued through this proxy: its hash is in the table of issued tokens;
2. a JWT of the configured issuer, once it is verified;
3. a caller key of an account.

Any other token is a stranger's: it identifies only itself.

The answer is a value. Which account has which queue is none of this module's business.
"""

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from proxy.clock import Clock
from proxy.identity.failed_logins import FailedLogins
from proxy.identity.issued_tokens import IssuedTokens
from proxy.identity.issuer import Issuer
from proxy.problems import Problem, store_unavailable, unauthenticated
from proxy.rules.digests import account_id, hash_token
from proxy.settings import Settings
from proxy.store.connection import StoreDown
from proxy.store.issued_tokens import SharedTokens
from proxy.tokens.account_token import TokenKeeper
from proxy.tokens.credentials import SecretUnreadableError
from proxy.tokens.managed import ManagedTokens

# RFC 6750 section 2.1, RFC 9110 section 11.1: the scheme's case does not matter.
_BEARER: Final = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] +([A-Za-z0-9._~+/-]+=*)")
_UNREADABLE_PAUSE: Final = 60.0  # seconds; a person has to mend the file


@dataclass(frozen=True, slots=True)
class Configured:
    """A configured account, by its name."""

    name: str


@dataclass(frozen=True, slots=True)
class Client:
    """A client that nobody configured, by its account id (`rules/digests.py`)."""

    account_id: str


@dataclass(frozen=True, slots=True)
class Stranger:
    """A token that identifies only itself.

    `sure` is False while the store cannot be asked: another replica may know the token's client.
    """

    token_hash: bytes
    sure: bool


Caller = Configured | Client | Stranger


class Identity:
    """Knows whom a credential identifies."""

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Clock,
        tokens: ManagedTokens,
        issuer: Issuer,
        shared: SharedTokens | None = None,
    ) -> None:
        self._tokens = tokens
        self._issuer = issuer
        self._issued = IssuedTokens(
            clock=clock,
            limit=settings.identity.max_learned,
            shared=shared,
            secret_of=self._secret_of,
        )
        self._failed = FailedLogins(clock=clock)
        self.apply(settings)

    def apply(self, settings: Settings) -> None:
        """Obey new settings from now on; the table of issued tokens is kept."""
        self._rules = settings.identity
        self._issued.limit = settings.identity.max_learned
        self._names = {account_id(one.client_id): one.name for one in settings.accounts}
        self._keys = {
            bytes.fromhex(key.removeprefix("sha256:")): account.name
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

    async def caller(self, authorization: Sequence[str]) -> Caller:
        """Return whom these Authorization values identify.

        Raises the Problem `unauthenticated`, `keys-unavailable` or `store-unavailable`.
        """
        token = _bearer_token(authorization)
        token_hash = hash_token(token)
        sure = True
        try:
            account = await self._issued.account_of(token_hash)
        except StoreDown:
            account, sure = None, False
        if account is None:
            account = await self._account_by_jwt(token)
        if account is not None:
            name = self._names.get(account)
            return Client(account) if name is None else Configured(name)
        name = self._keys.get(token_hash)
        return self._stranger(token_hash, sure=sure) if name is None else Configured(name)

    def managed(self, client_id: str) -> TokenKeeper | None:
        """Return the token of the managed account of that client id."""
        return self.tokens.get(self._names.get(account_id(client_id), ""))

    def check_secret(self, account: TokenKeeper, secret: str, peer: str) -> bool:
        """Compare a secret with the account's, and count a wrong one against the address `peer`.

        Raises the Problem `wait-expired` if the address has failed too often, and
        `token-unavailable` while the account's secret is unreadable.
        """
        self._failed.check(peer)
        try:
            is_right = account.credentials.match(secret)
        except SecretUnreadableError:
            raise Problem(
                "token-unavailable",
                "The account's secret cannot be read.",
                retry_after=_UNREADABLE_PAUSE,
            ) from None
        if not is_right:
            self._failed.note(peer)
        return is_right

    async def note_issued(self, token: str, client_id: str, lifetime: float) -> None:
        """Remember for `lifetime` seconds to whom a token was issued, here and in the store."""
        await self._issued.add(token, account_id(client_id), lifetime)

    def _stranger(self, token_hash: bytes, *, sure: bool) -> Stranger:
        if self._rules.unidentified == "pace":
            return Stranger(token_hash, sure)
        if not sure:
            raise store_unavailable()
        raise unauthenticated("Nobody vouches for this token.")

    async def _account_by_jwt(self, token: str) -> str | None:
        """Return the account id a JWT of the issuer proves; None if it is not the issuer's."""
        verifier = self._issuer.verifier
        claims = None if verifier is None else verifier.claims_of(token)
        if verifier is None or claims is None:
            return None
        return account_id(await verifier.client_of(token, claims))

    def _secret_of(self, account: str) -> str | None:
        """Return the secret of a managed account; an unreadable one fits no seal."""
        token = self.tokens.get(self._names.get(account, ""))
        if token is None:
            return None
        try:
            return token.credentials.read_secret()
        except SecretUnreadableError:
            return secrets.token_hex()


def _bearer_token(authorization: Sequence[str]) -> str:
    if not authorization:
        raise unauthenticated("A bearer token is required.")
    bearer = _BEARER.fullmatch(authorization[0])
    if bearer is None:
        raise unauthenticated("The Authorization field holds no bearer token.")
    return bearer[1]
