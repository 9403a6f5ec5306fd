"""What is known of all accounts at one moment, gathered without holding up the event loop.

There may be ten thousand accounts. They live on the loop, so they are read there, some at a time;
what is made of them is made in a thread of its own, one thing after the other.
"""

import asyncio
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Final, TypeVar

from proxy.clock import Clock
from proxy.identity.callers import Identity
from proxy.pacing.account import Account
from proxy.pacing.accounts import Accounts
from proxy.rules.state import OTHER, AccountState, merged
from proxy.telemetry.refusals import Refusals

_AT_A_TIME: Final = 100  # accounts: about a millisecond
_TURN: Final = 0.0005  # seconds a thread may keep the interpreter while another wants it

_T = TypeVar("_T")


class Snapshots:
    """Takes stock of the accounts, one question at a time."""

    def __init__(
        self, accounts: Accounts, identity: Identity, refusals: Refusals, *, clock: Clock
    ) -> None:
        self._accounts = accounts
        self._identity = identity
        self._refusals = refusals
        self._clock = clock
        self._lock = asyncio.Lock()
        # Who asked may go away; then what runs goes on, and the next is not begun beside it.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="census")

    async def make(self, text: Callable[[Sequence[AccountState]], _T]) -> _T:
        """Return what `text` makes of the accounts; it is called in another thread.

        Everyone nobody configured is shown as one, and is there if there is anything to show.
        """
        async with self._lock:
            states = await self._read()
            refusals = self._refusals.all()

            def in_thread() -> _T:
                known = merged(states)
                if OTHER in refusals and all(state.name != OTHER for state in known):
                    nobody = AccountState(
                        name=OTHER, routes=(), in_flight=0, hold_remaining_seconds=0.0
                    )
                    known = (*known, nobody)
                with _short_turns():
                    return text(
                        [replace(state, refusals=refusals.get(state.name, ())) for state in known]
                    )

            return await asyncio.get_running_loop().run_in_executor(self._thread, in_thread)

    def close(self) -> None:
        """Begin nothing more."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _read(self) -> list[AccountState]:
        accounts = list(self._accounts.accounts())
        states: list[AccountState] = []
        for start in range(0, len(accounts), _AT_A_TIME):
            now = self._clock.monotonic()
            states += [self._state(one, now) for one in accounts[start : start + _AT_A_TIME]]
            await self._clock.sleep_until(now)  # whoever is due goes first
        return states

    def _state(self, account: Account, now: float) -> AccountState:
        account.allowance.count_hold()
        state = account.state(now)
        token = self._identity.tokens.get(state.name)
        return state if token is None else replace(state, token=token.state())


@contextmanager
def _short_turns() -> Iterator[None]:
    """Let the event loop have the interpreter soon, every time it asks for it."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(_TURN)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
