"""Reading the small files that the configuration names: secrets, tokens, certificates, keys.

A FIFO or a device would make the process wait for a writer, for ever; so only regular files are
read, and no more of them than fits a secret or a certificate chain.
"""

import errno
import os
import stat
from pathlib import Path
from typing import Final

MAX_BYTES: Final = 1_048_576  # a bundle of every public authority has 250 kB


def read_small_file(path: Path) -> str:
    """Return the text of a regular file.

    Raises OSError, whose `strerror` is a phrase for people, or UnicodeDecodeError.
    """
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
    """Raise OSError if a library that is given this path would have to wait for its bytes."""
    _check(path.stat().st_mode)


def _check(mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise OSError(errno.EISDIR, "it is a directory")
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is not a regular file")
