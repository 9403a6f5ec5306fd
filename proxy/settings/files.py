"""Reading the small files that the configuration names: secrets, tokens, certificates, keys.

A FIFO or a device could make the process wait for ever; so only regular files are read, up to the
size of a secret or a certificate chain. A network file system that does not answer makes a read
wait, too; so each read has its own thread and two seconds. While a read hangs, further reads of
that file fail at once, so the process waits only once.
"""

import errno
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

_T = TypeVar("_T")
_SECONDS: Final = 2.0  # for one read; a file on a disk takes a thousandth of one
_hanging: dict[Path, threading.Thread] = {}  # of the process: so are its file systems

MAX_BYTES: Final = 1_048_576  # a bundle of every public authority has 250 kB


def read_small_file(path: Path) -> str:
    """Return the text of a regular file.

    Raises OSError, whose `strerror` is a phrase for people, or UnicodeDecodeError.
    """
    return in_time(path, lambda: _read(path))


def in_time(path: Path, read: Callable[[], _T], *, seconds: float = _SECONDS) -> _T:
    """Return what `read` returns or raise what it raises; OSError if it takes too long."""
    hanging = _hanging.get(path)
    if hanging is not None and hanging.is_alive():
        raise OSError(errno.ETIMEDOUT, "its file system does not answer")
    _hanging.pop(path, None)
    results: list[_T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(read())
        except (OSError, UnicodeDecodeError) as error:
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


def _read(path: Path) -> str:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _check(os.fstat(descriptor).st_mode)
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(MAX_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(data) > MAX_BYTES:
        raise OSError(errno.EFBIG, f"it has more than {MAX_BYTES} bytes")
    return data.decode()


def check_regular_file(path: Path) -> None:
    """Raise OSError unless the path is a regular file, which a library can read without waiting."""

    def read() -> None:
        _check(path.stat().st_mode)
        path.read_bytes()

    in_time(path, read)


def _check(mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise OSError(errno.EISDIR, "it is a directory")
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is not a regular file")
