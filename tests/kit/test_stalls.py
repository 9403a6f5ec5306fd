"""The allowance for stalls: what counts as one, and how large it may be."""

import os
import signal
import time  # noqa: TID251 - one test blocks on purpose
from pathlib import Path

import pytest

from proxy.clock import SystemClock
from tests.kit.process import until
from tests.kit.stalls import LONGEST, TOTAL, noting_stalls

CLOCK = SystemClock()


async def pause(seconds: float) -> None:
    await CLOCK.sleep_until(CLOCK.monotonic() + seconds)


def children() -> set[int]:
    pid = os.getpid()
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    return set(map(int, text.split()))


@pytest.mark.timed
async def test_what_a_test_does_with_its_own_time_is_no_stall() -> None:
    async with noting_stalls() as stalls:
        for _ in range(3):
            time.sleep(0.3)  # noqa: ASYNC251 - it blocks the loop on purpose
            await pause(0.01)
    assert stalls.longest < LONGEST


@pytest.mark.timed
async def test_what_holds_the_watch_up_is_a_stall_and_is_capped() -> None:
    before = children()
    async with noting_stalls() as stalls:
        (watch,) = children() - before
        assert stalls.longest < 0.05
        os.kill(watch, signal.SIGSTOP)
        await pause(1)
        os.kill(watch, signal.SIGCONT)

        async def is_noted() -> bool:
            return stalls.longest == LONGEST

        await until(is_noted)
    assert (stalls.longest, stalls.total) == (LONGEST, TOTAL)


async def test_only_a_test_that_is_marked_may_allow_for_stalls() -> None:
    with pytest.raises(AssertionError, match="marked `timed`"):
        async with noting_stalls():
            pass
