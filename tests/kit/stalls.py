"""How long the machine kept the test waiting, so that a test of times can allow for just that.

A process of its own measures it (`tests/kit/stall_watch.py`). What the program or the test does
with its own time is no stall: a `sleep` in the wrong place makes a timed test fail.

A stamp taken in the test's loop is late by the longest stall at most, and a whole run by all stalls
together. Both are capped: a test that would need more shows nothing, so it fails.
"""

import asyncio
import mmap
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from proxy.clock import SystemClock

LONGEST = 0.1
TOTAL = 0.5

_WATCH = Path(__file__).with_name("stall_watch.py")
_SECONDS = struct.Struct("dd")
_LAST_SECONDS = 0.02  # in which a stall that still lasts is noted
_clock = SystemClock()
_allowed = False


def allow_stalls(*, allow: bool) -> None:
    """Say that the test that runs next may allow for stalls; conftest asks for the mark."""
    global _allowed  # noqa: PLW0603 - a process runs one test at a time
    _allowed = allow


class Stalls:
    """Seconds: the longest of them, and all together."""

    def __init__(self, seconds: mmap.mmap) -> None:
        self._seconds = seconds

    @property
    def longest(self) -> float:
        return min(self._read()[0], LONGEST)

    @property
    def total(self) -> float:
        return min(self._read()[1], TOTAL)

    def _read(self) -> tuple[float, float]:
        longest, total = _SECONDS.unpack_from(self._seconds)
        return longest, total


@asynccontextmanager
async def noting_stalls() -> AsyncIterator[Stalls]:
    assert _allowed, "only a test marked `timed` may allow for stalls"
    with tempfile.TemporaryFile() as file:
        file.write(bytes(_SECONDS.size))
        file.flush()
        seconds = mmap.mmap(file.fileno(), _SECONDS.size)
        watch = subprocess.Popen(  # noqa: ASYNC220, S603 - this takes a moment; a fixed command
            [sys.executable, "-I", "-S", _WATCH, str(file.fileno()), str(os.getpid())],
            stdout=subprocess.PIPE,
            pass_fds=[file.fileno()],
        )
    with watch:
        try:
            assert watch.stdout is not None
            assert await asyncio.to_thread(watch.stdout.readline), "the watch has not begun"
            yield Stalls(seconds)
            await _clock.sleep_until(_clock.monotonic() + _LAST_SECONDS)
        finally:
            watch.kill()
