"""The tokens of all managed accounts, each with the task that keeps it fresh.

A token belongs to a client id, whatever the account's name: it survives a reload that renames the
account, and serves until a token minted with a changed secret has come.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from proxy.clock import Clock
from proxy.settings import Account, Settings
from proxy.telemetry.metrics import Metrics
from proxy.tokens.account_token import TokenKeeper
from proxy.tokens.credentials import Credentials
from proxy.tokens.login_server import LoginServer


@dataclass(frozen=True, slots=True)
class _Running:
    keeper: TokenKeeper
    task: asyncio.Task[None]


class ManagedTokens:
    """Keeps a token for each managed account of the settings."""

    def __init__(
        self,
        login_server: LoginServer,
        *,
        clock: Clock,
        metrics: Metrics,
        random: Callable[[], float],
        tasks: asyncio.TaskGroup,
    ) -> None:
        self.by_name: Mapping[str, TokenKeeper] = {}
        self._login_server = login_server
        self._clock = clock
        self._metrics = metrics
        self._random = random
        self._task_group = tasks
        self._by_id: dict[str, _Running] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def apply(self, settings: Settings, fingerprints: Mapping[str, bytes | None] = {}) -> list[str]:
        """Obey new settings from now on.

        `fingerprints` are those of the secrets by client id, None for one that cannot be read.
        Return the client ids whose account was removed or whose secret changed.
        """
        self._login_server.apply(settings)
        wanted = {one.client_id: one for one in settings.accounts if one.is_managed}
        gone = [client_id for client_id in self._by_id if client_id not in wanted]
        for client_id in gone:
            self._end(self._by_id.pop(client_id), settings.pacing.max_wait)
        changed = []
        for client_id, running in self._by_id.items():
            account = wanted[client_id]
            fingerprint = fingerprints.get(client_id)
            if running.keeper.apply(account.name, Credentials.of(account), settings, fingerprint):
                changed.append(client_id)
        for client_id in wanted.keys() - self._by_id.keys():
            self._by_id[client_id] = self._begin(wanted[client_id], settings)
        self.by_name = {account.name: self._by_id[one].keeper for one, account in wanted.items()}
        return gone + changed

    def close(self) -> None:
        """End all tasks; requests that wait for a token get `token-unavailable`."""
        for task in self._tasks:
            task.cancel()

    def _begin(self, account: Account, settings: Settings) -> _Running:
        keeper = TokenKeeper(
            account.name,
            Credentials.of(account),
            settings,
            login_server=self._login_server,
            clock=self._clock,
            metrics=self._metrics,
            random=self._random,
        )
        task = self._task_group.create_task(keeper.run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return _Running(keeper, task)

    def _end(self, running: _Running, longest_wait: float) -> None:
        """End a keeper that is no longer needed, once the requests that wait for it are served."""
        self._clock.call_at(self._clock.monotonic() + longest_wait, running.task.cancel)
