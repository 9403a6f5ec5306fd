"""Small files: only regular ones are read, whole and within a bound; nothing is waited for."""

import asyncio
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy.settings.files import MAX_BYTES, check_regular_file, in_time, read_small_file


def fifo(folder: Path) -> Path:
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


def large(folder: Path) -> Path:
    (folder / "large").write_bytes(b"x" * (MAX_BYTES + 1))
    return folder / "large"


ODD: list[tuple[Callable[[Path], Path], str]] = [
    (fifo, "it is not a regular file"),
    (lambda _: Path("/dev/zero"), "it is not a regular file"),
    (lambda folder: folder, "it is a directory"),
    (lambda folder: folder / "missing", "No such file or directory"),
    (large, f"it has more than {MAX_BYTES} bytes"),
]


@pytest.mark.parametrize(("make", "reason"), ODD)
async def test_what_is_not_read(make: Callable[[Path], Path], reason: str, tmp_path: Path) -> None:
    path = make(tmp_path)
    reading = asyncio.get_running_loop().run_in_executor(None, read_small_file, path)
    done, _ = await asyncio.wait([reading], timeout=5)
    if not done and path.is_fifo():
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))  # lets the reader end
    assert done, "it waits"
    with pytest.raises(OSError, match=reason) as caught:
        await reading
    assert caught.value.strerror == reason


def test_a_file_is_read_whole_and_as_it_is(tmp_path: Path) -> None:
    text = "é\n" * (MAX_BYTES // 3)
    (tmp_path / "file").write_text(text)
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert read_small_file(tmp_path / "link") == text
    (tmp_path / "file").write_bytes(b"\xff")
    with pytest.raises(UnicodeDecodeError):
        read_small_file(tmp_path / "file")


@pytest.mark.parametrize(("make", "reason"), ODD[:4])
def test_what_no_library_may_read(
    make: Callable[[Path], Path], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(OSError, match=reason):
        check_regular_file(make(tmp_path))


def test_a_file_system_that_does_not_answer_is_waited_for_once(tmp_path: Path) -> None:
    """Network file systems do that; until it answers, further reads of the file fail at once."""
    path, answers = tmp_path / "file", threading.Event()

    def hang() -> str:
        answers.wait()
        return "late"

    with pytest.raises(OSError, match="does not answer"):
        in_time(path, hang, seconds=0.05)
    with pytest.raises(OSError, match="does not answer"):
        in_time(path, lambda: "not asked", seconds=60)
    assert in_time(tmp_path / "another", lambda: "read") == "read"
    answers.set()
    (reading,) = [thread for thread in threading.enumerate() if thread.name == "file"]
    reading.join()
    assert in_time(path, lambda: "read again") == "read again"
