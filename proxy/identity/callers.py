"""Who is calling: from the Authorization field to an account, or a refusal.

An unverified claim is never an identity. A rule claims a credential, in this order, and one that is
claimed and fails is refused, never passed on:

1. a token issued through this proxy, by its hash in the table of what was learned;
2. a JWT of the configured issuer, once verified;
3. a caller key of an account.

Any other token stands for nobody but itself: it has a line of its own and goes upstream as it came.
"""

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from proxy.clock import Clock
from proxy.identity.issued_tokens import IssuedTokens
from proxy.identity.verifier import Verifier
from proxy.pacing.account import Account
from proxy.pacing.accounts import Accounts
from proxy.problems import Problem, store_unavailable, unauthenticated
from proxy.rules.digests import account_id, hash_token
from proxy.settings import Settings
from proxy.store.connection import StoreDown
from proxy.store.issued_tokens import SharedTokens
from proxy.tokens.account_token import TokenKeeper
from proxy.tokens.credentials import SecretUnreadableError

# RFC 6750 section 2.1, RFC 9110 section 11.1: the scheme's case does not matter.
_BEARER: Final = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] +([A-Za-z0-9._~+/-]+=*)")
_FAILURES_PER_MINUTE: Final = 10
_MINUTE: Final = 60.0


@dataclass(frozen=True, slots=True)
class Caller:
    """The account a caller belongs to; `token` is set where the account is managed."""

    account: Account
    token: TokenKeeper | None = None


class Identity:
    """Knows which account a credential belongs to."""

    def __init__(
        self,
        settings: Settings,
        accounts: Accounts,
        *,
        clock: Clock,
        shared: SharedTokens | None = None,
    ) -> None:
        self.tokens: Mapping[str, TokenKeeper] = {}
        self.verifier: Verifier | None = None
        self._accounts = accounts
        self._clock = clock
        self._learned = IssuedTokens(
            clock=clock,
            limit=settings.identity.max_learned,
            shared=shared,
            secret_of=self._secret_of,
        )
        self._failures: dict[str, list[float]] = {}
        self.apply(settings)

    def apply(self, settings: Settings) -> None:
        """Obey new settings from now on; what was learned is kept."""
        self._rules = settings.identity
        self._learned.limit = settings.identity.max_learned
        self._names = {account_id(one.client_id): one.name for one in settings.accounts}
        self._keys = {
            bytes.fromhex(key.removeprefix("sha256:")): account.name
            for account in settings.accounts
            for key in account.keys
        }

    def forget(self, client_id: str) -> None:
        """Forget which tokens were issued to that client."""
        self._learned.forget(account_id(client_id))

    async def caller(self, authorization: Sequence[str]) -> Caller:
        """Return who sent these Authorization values.

        Raises the Problem `unauthenticated`, `keys-unavailable`, `store-unavailable`, or
        `queue-full` when there are too many strangers.
        """
        if not authorization:
            raise unauthenticated("A bearer token is required.")
        bearer = _BEARER.fullmatch(authorization[0])
        if bearer is None:
            raise unauthenticated("The Authorization field holds no bearer token.")
        token = bearer[1]
        token_hash = hash_token(token)
        is_sure = True
        try:
            account = await self._learned.account_of(token_hash)
        except StoreDown:
            account, is_sure = None, False
        if account is None and self.verifier is not None:
            claims = self.verifier.claims_of(token)
            if claims is not None:
                account = account_id(await self.verifier.client_of(token, claims))
        if account is not None:
            return self._caller_of(account)
        name = self._keys.get(token_hash)
        if name is not None:
            return Caller(self._accounts.configured(name), self.tokens.get(name))
        if self._rules.unidentified == "reject":
            if not is_sure:
                raise store_unavailable()
            raise unauthenticated("Nobody vouches for this token.")
        stranger = self._accounts.unidentified(token_hash)
        stranger.may_be_another = not is_sure
        return Caller(stranger)

    def managed(self, client_id: str) -> TokenKeeper | None:
        """Return the token of the managed account of that client id."""
        return self.tokens.get(self._names.get(account_id(client_id), ""))

    def check_secret(self, account: TokenKeeper, secret: str, peer: str) -> bool:
        """Tell whether the secret is the account's.

        A peer that fails too often in a minute is refused unheard, with the Problem
        `wait-expired`; so is everybody, with `token-unavailable`, while the secret is unreadable.
        """
        now = self._clock.monotonic()
        recent = [at for at in self._failures.get(peer, ()) if at > now - _MINUTE]
        if len(recent) >= _FAILURES_PER_MINUTE:
            raise Problem(
                "wait-expired", "Too many failed logins.", retry_after=recent[0] + _MINUTE - now
            )
        try:
            proved = account.credentials.match(secret)
        except SecretUnreadableError:
            raise Problem(
                "token-unavailable", "The account's secret cannot be read.", retry_after=_MINUTE
            ) from None
        if not proved:
            self._note_failure(peer, [*recent, now])
        return proved

    async def learn(self, token: str, client_id: str, lifetime: float) -> None:
        """Remember for `lifetime` seconds to whom a token was issued, here and in the store."""
        await self._learned.learn(token, account_id(client_id), lifetime)

    def _caller_of(self, account: str) -> Caller:
        name = self._names.get(account)
        if name is None:
            return Caller(self._accounts.learned(account))
        return Caller(self._accounts.configured(name), self.tokens.get(name))

    def _secret_of(self, account: str) -> str | None:
        """Return the secret of a managed account; an unreadable one fits no seal."""
        token = self.tokens.get(self._names.get(account, ""))
        if token is None:
            return None
        try:
            return token.credentials.read_secret()
        except SecretUnreadableError:
            return secrets.token_hex()

    def _note_failure(self, peer: str, times: list[float]) -> None:
        self._failures.pop(peer, None)
        if len(self._failures) >= self._rules.max_unidentified:
            del self._failures[next(iter(self._failures))]  # the one that failed longest ago
        self._failures[peer] = times
