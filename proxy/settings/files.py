"""Reading the small files that the configuration names: secrets, tokens, certificates, keys.

A FIFO or a device could make the process wait for ever; so only regular files are read, up to the
size of a secret or a certificate chain. A network file system that does not answer makes a read
wait, too; so each read has its own thread and two seconds. While a read hangs, further reads of
that file fail at once and reads of other files get less time, so the process waits only once.

All of this blocks its caller. While the proxy serves, `aside` does it in another thread, and the
loop goes on.
"""

import asyncio
import concurrent.futures
import errno
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

_T = TypeVar("_T")
_SECONDS: Final = 2.0  # for one read; a file on a disk takes a thousandth of one
_LEAST_SECONDS: Final = 0.1  # for one read while many others hang
_hanging: dict[Path, threading.Thread] = {}  # of the process: so are its file systems

MAX_BYTES: Final = 1_048_576  # a bundle of every public authority has 250 kB


def read_small_file(path: Path) -> str:
    """Return the text of a regular file.

    Raises OSError, whose `strerror` is a phrase for people, or UnicodeDecodeError.
    """
    return in_time(path, lambda: _read(path, MAX_BYTES)).decode()


def read_configuration(path: Path) -> str:
    """Return the text of a regular file of any size; raises like `read_small_file`."""
    return in_time(path, lambda: _read(path, None)).decode()


async def aside(work: Callable[[], _T]) -> _T:
    """Return what `work` returns, or raise what it raises, without stopping the loop.

    The thread does not keep the process alive. Where the caller is cancelled it goes on alone.
    """
    outcome: concurrent.futures.Future[_T] = concurrent.futures.Future()
    outcome.set_running_or_notify_cancel()
    threading.Thread(target=_run, args=(work, outcome), name="aside", daemon=True).start()
    try:
        return await asyncio.wrap_future(outcome)
    finally:
        del outcome  # an exception in it refers back to here


def _run(work: Callable[[], _T], outcome: "concurrent.futures.Future[_T]") -> None:
    try:
        result = work()
    except BaseException as error:  # noqa: BLE001 -- raised where it is awaited
        outcome.set_exception(error)
    else:
        outcome.set_result(result)


def in_time(path: Path, read: Callable[[], _T], *, seconds: float | None = None) -> _T:
    """Return what `read` returns or raise what it raises; OSError if it takes too long."""
    hanging = _hanging.get(path)
    if hanging is not None and hanging.is_alive():
        raise OSError(errno.ETIMEDOUT, "its file system does not answer")
    for ended in [one for one, thread in _hanging.copy().items() if not thread.is_alive()]:
        _hanging.pop(ended, None)
    seconds = _SECONDS if seconds is None else seconds
    seconds = max(min(seconds, _LEAST_SECONDS), seconds / (1 + len(_hanging)))
    results: list[_T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(read())
        except Exception as error:  # noqa: BLE001 -- raised in the thread that waits
            errors.append(error)

    thread = threading.Thread(target=run, name="file", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        _hanging[path] = thread
        raise OSError(errno.ETIMEDOUT, "its file system does not answer")
    if errors:
        raise errors[0]
    return results[0]


def _read(path: Path, most: int | None) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _check(os.fstat(descriptor).st_mode)
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read() if most is None else file.read(most + 1)
    finally:
        os.close(descriptor)
    if most is not None and len(data) > most:
        raise OSError(errno.EFBIG, f"it has more than {most} bytes")
    return data


def check_regular_file(path: Path) -> None:
    """Raise OSError unless the path is a regular file, which a library can read without waiting."""
    in_time(path, lambda: _read(path, None))


def _check(mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise OSError(errno.EISDIR, "it is a directory")
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is not a regular file")
