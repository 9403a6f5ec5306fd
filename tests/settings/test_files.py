"""Small files: only regular ones are read, whole and within a bound; nothing is waited for."""

import asyncio
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy.settings.files import (
    MAX_BYTES,
    aside,
    check_regular_file,
    in_time,
    read_configuration,
    read_small_file,
)
from tests.kit.clock import FakeClock


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


def test_many_files_that_hang_are_not_waited_for_one_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start with a hundred of them does not take a hundred times as long."""
    answers, waits = threading.Event(), list[float]()
    join = threading.Thread.join

    def noted(thread: threading.Thread, timeout: float | None = None) -> None:
        waits.append(timeout or 0.0)
        join(thread, 0.0)

    monkeypatch.setattr(threading.Thread, "join", noted)
    for number in range(100):
        with pytest.raises(OSError, match="does not answer"):
            in_time(tmp_path / f"{number}", answers.wait, seconds=2.0)
    answers.set()
    assert waits[0] == 2.0
    assert 100 * 0.1 < sum(waits) < 20


async def test_the_loop_goes_on_while_something_is_read_aside() -> None:
    answers = threading.Event()

    def read() -> str:
        answers.wait(20)
        return "read"

    reading = asyncio.get_running_loop().create_task(aside(read))
    await FakeClock().advance(0)
    assert not reading.done()
    answers.set()
    assert await reading == "read"


def test_what_fails_in_any_way_fails_where_it_is_waited_for(tmp_path: Path) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        in_time(tmp_path, fail)


async def test_what_fails_aside_fails_where_it_is_awaited() -> None:
    with pytest.raises(FileNotFoundError):
        await aside(lambda: read_small_file(Path("/nowhere")))


async def test_a_reader_aside_can_be_cancelled_before_it_ends() -> None:
    answers, has_ended = threading.Event(), threading.Event()

    def read() -> None:
        answers.wait(20)
        has_ended.set()

    reading = asyncio.get_running_loop().create_task(aside(read))
    await FakeClock().advance(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    answers.set()
    assert has_ended.wait(20)


def test_a_configuration_may_be_larger_than_a_secret(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x" * (MAX_BYTES + 1))
    assert len(read_configuration(tmp_path / "file")) == MAX_BYTES + 1
    with pytest.raises(OSError, match="it is not a regular file"):
        read_configuration(fifo(tmp_path))
