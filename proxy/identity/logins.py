"""Log-ins as a managed account: which account a log-in names, and whether its secret is right."""

from collections.abc import Sequence
from typing import Final

from proxy.clock import Clock
from proxy.identity.failed_logins import FailedLogins
from proxy.problems import Problem
from proxy.rules.digests import account_id
from proxy.rules.logins import Secret
from proxy.settings import Settings
from proxy.tokens.account_token import TokenKeeper
from proxy.tokens.credentials import SecretUnreadableError
from proxy.tokens.managed import ManagedTokens

_UNREADABLE_PAUSE: Final = 60.0  # seconds; a person must correct the file


class Logins:
    """Knows the client ids of the managed accounts, and counts failed log-ins."""

    def __init__(self, settings: Settings, tokens: ManagedTokens, *, clock: Clock) -> None:
        self._tokens = tokens
        self._failed = FailedLogins(clock=clock)
        self.apply(settings)

    def apply(self, settings: Settings) -> None:
        """Obey new settings from now on."""
        self._names = {account_id(one.client_id): one.name for one in settings.accounts}
        managed = [one for one in settings.accounts if one.is_managed]
        self._managed_ids = tuple(one.client_id for one in managed)
        self._folded = {_fold(one.client_id): one.name for one in managed}

    @property
    def managed_ids(self) -> Sequence[str]:
        """The client ids of the managed accounts."""
        return self._managed_ids

    def managed(self, client_ids: Sequence[str]) -> TokenKeeper | None:
        """Return the token of the managed account that has one of these client ids.

        Ids match here without case and without blanks around them, as some login servers read them.
        """
        for client_id in client_ids:
            name = self._names.get(account_id(client_id)) or self._folded.get(_fold(client_id))
            if name is not None and name in self._tokens.by_name:
                return self._tokens.by_name[name]
        return None

    async def check_secret(self, account: TokenKeeper, secret: Secret, peer: str) -> bool:
        """Compare a secret with the account's, and count a wrong one against the address `peer`.

        Raises the Problem `wait-expired` if the address has failed too often as that client, and
        `token-unavailable` while the account's secret is unreadable.
        """
        client_id = account.credentials.client_id
        self._failed.check(peer, client_id)
        try:
            is_right = await account.credentials.match(secret.raw, secret.decoded)
        except SecretUnreadableError:
            raise Problem(
                "token-unavailable",
                "The account's secret cannot be read.",
                retry_after=_UNREADABLE_PAUSE,
            ) from None
        self._failed.check(peer, client_id)  # others may have failed while the secret was read
        if not is_right:
            self._failed.note(peer, client_id)
        return is_right


def _fold(client_id: str) -> str:
    return client_id.strip().lower()
