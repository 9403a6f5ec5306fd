"""The organization of each managed account: configured, or asked from the API once.

The proxy asks with the account's own token. If the API does not say, the proxy asks again after a
while, and until then no token proves that account's service.
"""

from math import inf
from typing import Final

from proxy.clock import Clock
from proxy.identity.issued_tokens import Owner
from proxy.identity.whoami import Whoami
from proxy.problems import Problem
from proxy.rules.digests import account_id, digest, hash_token
from proxy.rules.whoami import ASK_AGAIN
from proxy.settings import Settings
from proxy.tokens.account_token import TokenKeeper

_TOKEN_WAIT: Final = 1.0  # seconds for the account's own token, which may be on its way


class Organizations:
    """Digests of organizations, by account id."""

    def __init__(self, settings: Settings, whoami: Whoami, *, clock: Clock) -> None:
        self._whoami = whoami
        self._clock = clock
        self._asked: dict[str, str] = {}
        self._ask_at: dict[str, float] = {}
        self.apply(settings)

    def apply(self, settings: Settings) -> None:
        """Obey new settings from now on; forget the organizations of removed accounts."""
        ids = {account_id(one.client_id) for one in settings.accounts}
        self._asked = {key: value for key, value in self._asked.items() if key in ids}
        self._ask_at = {key: value for key, value in self._ask_at.items() if key in ids}
        self._configured = {
            account_id(one.client_id): digest(one.organization_id)
            for one in settings.accounts
            if one.organization_id is not None
        }

    async def of(self, account: str, keeper: TokenKeeper) -> str | None:
        """Return the organization of an account, None if it is not known yet."""
        known = self._configured.get(account) or self._asked.get(account)
        now = self._clock.monotonic()
        if known is not None or now < self._ask_at.get(account, -inf):
            return known
        organization = await self._ask(account, keeper)
        if organization is None:
            self._ask_at[account] = self._clock.monotonic() + ASK_AGAIN
        else:
            self._asked[account] = organization
        return organization

    async def _ask(self, account: str, keeper: TokenKeeper) -> str | None:
        try:
            token = await keeper.usable(frozenset(), limit=_TOKEN_WAIT)
        except Problem:
            return None
        owner = await self._whoami.ask(token.value, hash_token(token.value), peer="", is_own=True)
        if isinstance(owner, Owner) and owner.account_id == account:
            return owner.organization or None
        return None
