"""The tokens of all managed accounts, each with the task that keeps it fresh.

A token belongs to a client id, whatever that is called in the configuration: it outlives a reload
that renames the account, and serves while one minted with a changed secret is on its way.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from proxy.clock import Clock
from proxy.retries import RetryRules
from proxy.settings import Account, Settings
from proxy.telemetry.metrics import Metrics
from proxy.tokens.account_token import TokenKeeper
from proxy.tokens.credentials import Credentials
from proxy.tokens.login_server import TokenEndpoint


@dataclass(frozen=True, slots=True)
class _Kept:
    token: TokenKeeper
    task: asyncio.Task[None]


class ManagedTokens:
    """Keeps a token for each managed account of the settings."""

    def __init__(
        self,
        endpoint: TokenEndpoint,
        *,
        clock: Clock,
        metrics: Metrics,
        random: Callable[[], float],
        tasks: asyncio.TaskGroup,
    ) -> None:
        self.by_name: Mapping[str, TokenKeeper] = {}
        self._endpoint = endpoint
        self._clock = clock
        self._metrics = metrics
        self._random = random
        self._tasks = tasks
        self._kept: dict[str, _Kept] = {}
        self._running: set[asyncio.Task[None]] = set()

    def apply(self, settings: Settings) -> list[str]:
        """Obey new settings from now on.

        Return the client ids that no longer prove themselves as before: their account is gone, or
        its secret is another.
        """
        self._endpoint.max_retry_after = settings.retry.max_retry_after
        wanted = {one.client_id: one for one in settings.accounts if one.is_managed}
        gone = [client_id for client_id in self._kept if client_id not in wanted]
        for client_id in gone:
            self._let_go(self._kept.pop(client_id), settings.pacing.max_wait)
        changed = [
            client_id
            for client_id, kept in self._kept.items()
            if _goes_on(kept.token, wanted[client_id], settings)
        ]
        for client_id in wanted.keys() - self._kept.keys():
            self._kept[client_id] = self._begin(wanted[client_id], settings)
        self.by_name = {account.name: self._kept[one].token for one, account in wanted.items()}
        return gone + changed

    def close(self) -> None:
        """End all tasks; whoever waits for a token is told that there is none."""
        for task in self._running:
            task.cancel()

    def _begin(self, account: Account, settings: Settings) -> _Kept:
        token = TokenKeeper(
            account.name,
            Credentials.of(account),
            rules=settings.tokens,
            patience=RetryRules(settings.retry),
            endpoint=self._endpoint,
            clock=self._clock,
            metrics=self._metrics,
            random=self._random,
        )
        task = self._tasks.create_task(token.run())
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return _Kept(token, task)

    def _let_go(self, kept: _Kept, longest_wait: float) -> None:
        """Let a token that is no longer wanted serve those who wait for it by now."""
        self._clock.call_at(self._clock.monotonic() + longest_wait, kept.task.cancel)


def _goes_on(token: TokenKeeper, account: Account, settings: Settings) -> bool:
    """Apply what has changed of an account; tell whether its secret has."""
    token.name = account.name
    token.apply(settings)
    return token.use(Credentials.of(account))
