"""The callers of the demo: they log in, send exports in two bursts, and keep the answers.

They know their credentials and the proxy's URL, and not what reached the API.
"""

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

import aiohttp

from proxy.clock import Clock
from proxy.rules.targets import LOGIN_PATH

EXPORTS_PATH: Final = "/api/v2/recordings/exports"
QUITTER_PATH: Final = "/api/v2/recording/jobs"
"""On the same route as `EXPORTS_PATH`; only the caller that hangs up asks for it, so that its path
would show its request."""

BETWEEN_BURSTS: Final = 0.1
"""Seconds. Connections opened together arrive in any order; a later request stands behind them."""
HANG_UP_AFTER: Final = 1.2
"""Seconds, in which fewer requests leave the queue than the first burst put into it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceAccount:
    """A service account of the demo, and the kind of recordings it exports."""

    name: str
    client_id: str
    secret: str = field(repr=False)
    channel: str


class Callers:
    """The callers of one service account: some stay for their answer, one may hang up."""

    def __init__(self, account: ServiceAccount, *, staying: int, one_hangs_up: bool) -> None:
        self.account = account
        self.staying = staying
        self.one_hangs_up = one_hangs_up
        self.waiting = 0
        self.hung_up = 0
        self.answers: Counter[int | None] = Counter()
        """Statuses that the staying callers saw; None is a connection that broke."""
        self.quitter_answers: Counter[int | None] = Counter()

    async def act(self, http: aiohttp.ClientSession, clock: Clock) -> None:
        """Log in, send everything, and return once no caller waits.

        The caller that hangs up comes with the second burst, so it waits in the middle of the
        queue.
        """
        token = await self._log_in(http)
        half = self.staying // 2
        async with asyncio.TaskGroup() as group:
            for number in range(half):
                group.create_task(self._ask_and_stay(http, token, number))
            await clock.sleep_until(clock.monotonic() + BETWEEN_BURSTS)
            if self.one_hangs_up:
                group.create_task(self._ask_and_hang_up(http, token, clock))
            for number in range(half, self.staying):
                group.create_task(self._ask_and_stay(http, token, number))

    async def _log_in(self, http: aiohttp.ClientSession) -> str:
        form = {
            "grant_type": "client_credentials",
            "client_id": self.account.client_id,
            "client_secret": self.account.secret,
        }
        async with http.post(LOGIN_PATH, data=form, raise_for_status=True) as answer:
            return str((await answer.json())["access_token"])

    async def _ask_and_stay(self, http: aiohttp.ClientSession, token: str, number: int) -> None:
        self.answers[await self._ask(http, token, EXPORTS_PATH, f"export-{number}")] += 1

    async def _ask_and_hang_up(self, http: aiohttp.ClientSession, token: str, clock: Clock) -> None:
        async def ask() -> None:
            self.quitter_answers[await self._ask(http, token, QUITTER_PATH, "unwanted")] += 1

        async with asyncio.TaskGroup() as group:
            asking = group.create_task(ask())
            await clock.sleep_until(clock.monotonic() + HANG_UP_AFTER)
            self.hung_up += asking.cancel()  # which closes the connection

    async def _ask(
        self, http: aiohttp.ClientSession, token: str, path: str, key: str
    ) -> int | None:
        """Ask for an export; by `key` the API would notice that it created one twice."""
        body = {"channel": self.account.channel, "externalId": key}
        headers = {"Authorization": f"Bearer {token}"}
        self.waiting += 1
        try:
            async with http.post(path, json=body, headers=headers) as answer:
                await answer.read()
                return answer.status
        except aiohttp.ClientError:
            return None
        finally:
            self.waiting -= 1
