"""The state of all accounts at one moment, read without delaying the event loop.

There may be ten thousand accounts. Only the event loop may read them, so it does, a hundred at a
time; a thread then makes the answer from the copies, one answer after the other.
"""

import asyncio
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from proxy.clock import Clock
from proxy.pacing.account import Account
from proxy.pacing.accounts import Accounts
from proxy.rules.state import OTHER, AccountState, Refusal, merged
from proxy.telemetry.callers import NOBODY, Callers, TopCallers
from proxy.telemetry.history import Held, History, Sends
from proxy.telemetry.refusals import Refusals
from proxy.tokens.managed import ManagedTokens

_AT_A_TIME: Final = 100  # accounts: about a millisecond
_PASTS_AT_A_TIME: Final = 20  # accounts: about a millisecond
_SWITCH_INTERVAL: Final = 0.0005  # seconds until the thread hands the interpreter to the loop

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Past:
    """What an account sent, by route, and when it was on hold."""

    sends: Mapping[str, Sequence[Sends]]
    holds: Sequence[Held]


class Snapshots:
    """Takes snapshots of the accounts, one at a time."""

    def __init__(
        self,
        accounts: Accounts,
        tokens: ManagedTokens,
        refusals: Refusals,
        callers: Callers,
        *,
        clock: Clock,
    ) -> None:
        self._accounts = accounts
        self._tokens = tokens
        self._refusals = refusals
        self._callers = callers
        self._clock = clock
        self._lock = asyncio.Lock()
        # An operator may leave; then the thread finishes, and the next answer waits for it.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="snapshot")

    async def make(self, text: Callable[[Sequence[AccountState]], _T]) -> _T:
        """Return what `text` makes of the accounts; it runs in another thread.

        All other unconfigured accounts are one, named `other`, present if there is anything to
        show.
        """
        async with self._lock:
            states = await self._read()
            refusals = self._refusals.all()
            callers = self._callers.all(self._clock.monotonic())

            def in_thread() -> _T:
                known = merged(states)
                if OTHER in refusals and all(state.name != OTHER for state in known):
                    others = AccountState(
                        name=OTHER, routes=(), in_flight=0, hold_remaining_seconds=0.0
                    )
                    known = (*known, others)
                with _frequent_switches():
                    return text(
                        [
                            _with(
                                state, refusals.get(state.name, ()), callers.get(state.name, NOBODY)
                            )
                            for state in known
                        ]
                    )

            return await asyncio.get_running_loop().run_in_executor(self._thread, in_thread)

    async def past(self, history: History, text: Callable[[Mapping[str, Past]], _T]) -> _T:
        """Return what `text` makes of the last ten minutes of each account, in another thread."""
        async with self._lock:
            names, past = history.accounts(), {}
            for start in range(0, len(names), _PASTS_AT_A_TIME):
                now = self._clock.monotonic()
                for name in names[start : start + _PASTS_AT_A_TIME]:
                    past[name] = Past(history.sends(name, now), history.holds(name, now))
                await self._clock.sleep_until(now)

            def in_thread() -> _T:
                with _frequent_switches():
                    return text(past)

            return await asyncio.get_running_loop().run_in_executor(self._thread, in_thread)

    def close(self) -> None:
        """Begin no further answer."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _read(self) -> list[AccountState]:
        accounts = list(self._accounts.accounts())
        states: list[AccountState] = []
        for start in range(0, len(accounts), _AT_A_TIME):
            now = self._clock.monotonic()
            states += [self._state(one, now) for one in accounts[start : start + _AT_A_TIME]]
            await self._clock.sleep_until(now)  # timers that are due go first
        return states

    def _state(self, account: Account, now: float) -> AccountState:
        account.scheduler.holds.count()
        state = account.state(now)
        token = self._tokens.by_name.get(state.name)
        return state if token is None else replace(state, token=token.state())


def _with(state: AccountState, refusals: Sequence[Refusal], callers: TopCallers) -> AccountState:
    return replace(
        state,
        refusals=refusals,
        callers_waiting=callers.waiting,
        callers_refused=callers.refused,
    )


@contextmanager
def _frequent_switches() -> Iterator[None]:
    """Let the event loop take the interpreter back within half a millisecond."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_INTERVAL)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
