"""The log: one line a request, in one piece whatever is in it, and never in anybody's way."""

import asyncio
import fcntl
import json
import logging
import os
import re
import signal
import threading
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
import structlog

from proxy.settings import Log
from proxy.telemetry.logs import Sink, logging_to, obey, timestamp
from tests.kit.client import RawConnection, exchange
from tests.kit.clock import FakeClock
from tests.kit.listener import HOST
from tests.kit.process import Process, document_for, launch, serving, until
from tests.kit.upstream import RawUpstream, Reply, free_port

NOW = 1_700_000_000.0
HEAD = {"time": "2023-11-14T22:13:20.000+00:00"}
PIPE_SIZE = 4096


class Pipe:
    """A pipe as standard error is one: what is not read fills it."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        self._closed = False

    def read_to_end(self) -> str:
        """Close the writing end, then read whatever was written."""
        self.close_writing()
        parts = bytearray()
        while part := os.read(self.reading, 2**16):
            parts += part
        return parts.decode()

    def fill(self) -> None:
        """Leave no room at all in it."""
        fcntl.fcntl(self.writing, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        os.set_blocking(self.writing, False)
        try:
            while True:
                os.write(self.writing, b"." * 512)
        except BlockingIOError:
            pass

    def close_writing(self) -> None:
        if not self._closed:
            self._closed = True
            os.close(self.writing)

    def close(self) -> None:
        self.close_writing()
        os.close(self.reading)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    made.close()


def sink_on(
    pipe: Pipe,
    *,
    level: Literal["debug", "info", "warning", "error"] = "info",
    style: Literal["json", "console"] = "json",
    lines: int = 1000,
    clock: FakeClock | None = None,
) -> Sink:
    settings = Log(level=level, format=style, max_lines_per_second=lines)
    return Sink(settings, clock=clock or FakeClock(wall=NOW), descriptor=pipe.writing)


def lines_of(text: str) -> list[dict[str, Any]]:
    """The objects of a log; nothing but a newline ends a line, and that only at its end."""
    assert text == "" or text.endswith("\n")
    parts = text.removesuffix("\n").split("\n") if text else []
    assert parts == text.splitlines()
    assert all(" " <= char <= "~" for part in parts for char in part)
    return [json.loads(part) for part in parts]


# What is in a line


ODD = {
    "an escape sequence": ("\x1b[31mred", "\x1b[31mred"),
    "a line separator": ("a\u2028b\u2029c\x85d", "a\u2028b\u2029c\x85d"),
    "a line feed": ('a\n{"forged": 1}\r', 'a\n{"forged": 1}\r'),
    "bytes that are not UTF-8": ("a\udcff\udc80", "a\\udcff\\udc80"),
    "quotes": ('"\\', '"\\'),
    "no text": (Path("/x"), "/x"),
    "more of it": (["\udcff", {"k": "\udcff"}], ["\\udcff", {"k": "\\udcff"}]),
}


@pytest.mark.parametrize(("value", "shown"), ODD.values(), ids=ODD)
def test_whatever_is_in_it_a_line_is_one_valid_object(
    pipe: Pipe, value: object, shown: object
) -> None:
    sink = sink_on(pipe)
    with logging_to(sink):
        structlog.get_logger().info("seen", value=value, number=1, nothing=None, yes=True)
    (line,) = lines_of(pipe.read_to_end())
    assert line == {
        **HEAD,
        "level": "info",
        "event": "seen",
        "value": shown,
        "number": 1,
        "nothing": None,
        "yes": True,
    }
    assert list(line)[:3] == ["time", "level", "event"]


def test_console_lines_are_for_people_and_cannot_be_forged(pipe: Pipe) -> None:
    sink = sink_on(pipe, style="console")
    with logging_to(sink):
        log = structlog.get_logger()
        log.warning("reload refused", problems=["a", "b"])
        log.info("request", path="/x\x1b[2J\n2023", code=202)
        try:
            int("odd \x1b[31m")
        except ValueError:
            log.exception("failed")
    first, second, third, *trace = pipe.read_to_end().splitlines()
    assert first == f'{HEAD["time"]} warning reload refused problems=["a", "b"]'
    assert second == f'{HEAD["time"]} info    request path="/x\\u001b[2J\\n2023" code=202'
    assert third == f"{HEAD['time']} error   failed"
    assert trace[0] == "  Traceback (most recent call last):"
    assert trace[-1].startswith("  ValueError: ")
    assert trace[-1].endswith("'odd \\\\x1b[31m'")


def test_a_traceback_stays_in_its_line(pipe: Pipe) -> None:
    sink = sink_on(pipe)
    with logging_to(sink):
        try:
            int("odd")
        except ValueError:
            structlog.get_logger().exception("failed", request_id="x")
    (line,) = lines_of(pipe.read_to_end())
    assert (line["event"], line["request_id"]) == ("failed", "x")
    assert line["exception"].endswith("'odd'")


def test_libraries_log_here_too_warnings_included(pipe: Pipe) -> None:
    """Warnings and errors of theirs; what they say at lower levels is not for the log."""
    sink = sink_on(pipe, level="debug")
    with logging_to(sink), warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old-fashioned", UserWarning, stacklevel=1)
        log = logging.getLogger("aiohttp.server")
        log.info("chatter")
        log.error("broken: %s", "pipe")
        try:
            int("odd")
        except ValueError:
            log.exception("odd")
    warned, broken, odd = lines_of(pipe.read_to_end())
    assert warned["logger"] == "py.warnings"
    assert "old-fashioned" in warned["event"]
    assert broken == {
        **HEAD,
        "level": "error",
        "logger": "aiohttp.server",
        "event": "broken: pipe",
    }
    assert odd["exception"].endswith("'odd'")


def test_the_level_and_the_format_can_change(pipe: Pipe) -> None:
    sink = sink_on(pipe)
    with logging_to(sink):
        log = structlog.get_logger()
        log.debug("one")
        log.info("two")
        obey(Log(level="debug"), sink)
        log.debug("three")
        obey(Log(level="error"), sink)
        log.warning("four")
        log.error("five")
    assert [line["event"] for line in lines_of(pipe.read_to_end())] == ["two", "three", "five"]


@pytest.mark.parametrize(
    ("wall", "text"),
    [
        (0.0015, "1970-01-01T00:00:00.001+00:00"),
        (1_800_000_000.0, "2027-01-15T08:00:00.000+00:00"),
        (1_800_000_000.9999, "2027-01-15T08:00:00.999+00:00"),
        (1_800_000_000.9999999, "2027-01-15T08:00:01.000+00:00"),
        (-0.001, "1969-12-31T23:59:59.999+00:00"),
    ],
)
def test_a_time_is_utc_to_the_millisecond(wall: float, text: str) -> None:
    assert timestamp(wall) == text


# How many there are


async def test_lines_a_second_are_bounded_and_the_rest_is_counted(pipe: Pipe) -> None:
    clock = FakeClock(wall=NOW)
    sink = sink_on(pipe, lines=3, clock=clock)
    with logging_to(sink):
        log = structlog.get_logger()
        for number in range(10):
            log.info("first second", number=number)
        assert sink.dropped == 7
        await clock.advance(1)
        log.info("second second")
        await clock.advance(1)
        log.info("third second")
    lines = lines_of(pipe.read_to_end())
    assert [line.get("number", line["event"]) for line in lines] == [
        *(0, 1, 2),
        *("log lines dropped", "second second", "third second"),
    ]
    assert {**HEAD, "time": lines[3]["time"]} == {"time": "2023-11-14T22:13:21.000+00:00"}
    assert (lines[3]["level"], lines[3]["count"]) == ("warning", 7)


async def test_a_library_that_repeats_itself_leaves_room_for_others(pipe: Pipe) -> None:
    clock = FakeClock(wall=NOW)
    sink = sink_on(pipe, lines=100, clock=clock)
    with logging_to(sink):
        for number in range(200):
            logging.getLogger("asyncio").error("out of descriptors: %d", number)
        logging.getLogger("asyncio").error("something else")
        structlog.get_logger().info("request")
        await clock.advance(1)
        logging.getLogger("asyncio").error("out of descriptors: %d", 200)
    events = [line["event"] for line in lines_of(pipe.read_to_end())]
    assert events == [
        *(f"out of descriptors: {number}" for number in range(3)),
        *("something else", "request", "log lines dropped", "out of descriptors: 200"),
    ]
    assert sink.dropped == 197


# A pipe nobody reads


@contextmanager
def drained_later(pipe: Pipe) -> Iterator[list[bytes]]:
    """Read the pipe from another thread, once the block ends, until nothing more comes."""
    parts: list[bytes] = []

    def read() -> None:
        while part := os.read(pipe.reading, 2**16):
            parts.append(part)

    thread = threading.Thread(target=read)
    yield parts
    thread.start()
    seen = -1
    while seen < len(parts):  # for as long as something still comes
        seen = len(parts)
        thread.join(1.0)
    pipe.close_writing()
    thread.join()


@pytest.mark.parametrize("is_blocking", [True, False])
def test_a_full_pipe_holds_nobody_up_and_loses_no_line_that_was_taken(
    pipe: Pipe, *, is_blocking: bool
) -> None:
    """What exceeds the bound is dropped; logging never waits."""
    pipe.fill()
    os.set_blocking(pipe.writing, is_blocking)
    sink = sink_on(pipe, lines=1_000_000)
    with drained_later(pipe) as parts:
        sink.start()
        for number in range(12_000):
            sink.put({"event": "x" * 100, "number": number})
        dropped = sink.dropped
        sink.close(within=0.05)  # it cannot write, and does not wait for ever
    assert 1_000 < dropped <= 2_000
    written = b"".join(parts).decode().lstrip(".")
    numbers = [line["number"] for line in lines_of(written)]
    assert numbers == list(range(12_000 - dropped))


def test_what_cannot_be_written_is_counted(pipe: Pipe) -> None:
    """A disk that is full, a pipe whose reader is gone; the log itself goes on."""
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        sink = Sink(Log(), clock=FakeClock(wall=NOW), descriptor=full)
        with logging_to(sink):
            structlog.get_logger().info("lost")
            structlog.get_logger().info("lost as well")
    finally:
        os.close(full)
    assert sink.dropped == 2

    class Unspeakable:
        def __str__(self) -> str:
            raise RuntimeError

    sink = sink_on(pipe)
    with logging_to(sink):
        structlog.get_logger().info("odd", value=Unspeakable())
        structlog.get_logger().info("fine")
    assert [line["event"] for line in lines_of(pipe.read_to_end())] == ["fine"]
    assert sink.dropped == 1


# The program's own log


async def ask(process: Process, *fields: bytes, path: bytes = b"/api/v2/users/me") -> None:
    request = [b"GET " + path + b" HTTP/1.1", b"Host: h", b"Authorization: Bearer t", *fields]
    await exchange(HOST, process.port, b"\r\n".join([*request, b"", b""]), timeout=20)


@asynccontextmanager
async def program(folder: Path, **sections: dict[str, Any]) -> AsyncIterator[Process]:
    answer = Reply(200, [("ININ-Correlation-Id", "their-id")])
    async with (
        RawUpstream(default=answer) as upstream,
        serving(folder, document_for(upstream.url, **sections)) as process,
    ):
        yield process


async def test_each_request_has_one_line_that_says_what_became_of_it(tmp_path: Path) -> None:
    trace = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    secret = b"planted-secret"
    async with program(tmp_path, pacing={"interval": 1.5}) as process:
        export = b"/api/v2/recordings/exports"
        await ask(process, b"X-Request-Id: mine", b"traceparent: " + trace, path=export)
        await ask(process, path=export + b"?access_token=" + secret)
        await ask(process, b'User-Agent: "\xe2\x80\xa8\x1b\xff', path=b"/none/\xff\xe2\x80\xa8")
        await ask(process, path=b"http://caller:" + secret + b"@api.example/api#" + secret)
        await ask(process, b'User-Agent: \xe2\x80\xa8\xff"quoted"', path=b"/api/v2/x")
    assert secret.decode() not in process.stderr
    lines_of(process.stderr)
    requests = process.logged("request")
    assert len(requests) in {4, 5}  # an escape character in a field may end at the parser
    first, second = requests[:2]
    assert first.pop("seconds") >= first.pop("upstream") > 0
    assert 0 <= first.pop("waited") < 10
    assert first.pop("time").startswith("20")
    assert first == {
        "level": "info",
        "event": "request",
        "request_id": "mine",
        "account": "other",
        "route": "exports",
        "method": "GET",
        "path": "/api/v2/recordings/exports",
        "code": 200,
        "origin": "upstream",
        "held": 0.0,
        "token": 0.0,
        "attempts": 1,
        "merged": False,
        "peer": "127.0.0.1",
        "correlation_id": "their-id",
        "traceparent": trace.decode(),
    }
    assert re.fullmatch(r"[0-9a-f]{32}", second["request_id"])
    assert 0.1 < second["waited"] < 10
    assert requests[-1]["user_agent"] == '\u2028\\udcff"quoted"'


async def test_a_log_nobody_reads_holds_no_request_up(tmp_path: Path) -> None:
    """Nor the end of the program; what was dropped is counted."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
    port, admin_port = free_port(), free_port()
    async with RawUpstream() as upstream:
        document = document_for(
            upstream.url,
            listen={"port": port},
            admin={"port": admin_port},
            log={"max_lines_per_second": 20},
        )
        process = await launch(tmp_path / "proxy.yaml", document, stderr=writing)
        os.close(writing)
        process.port, process.admin_port = port, admin_port
        try:
            await until(process.is_ready, within=60)
            async with asyncio.timeout(60):
                for _ in range(10):
                    await asyncio.gather(*(ask(process) for _ in range(10)))
            assert len(upstream.requests) == 100
            text = (await process.ask("/metrics")).body.decode()
            (dropped,) = re.findall(
                r"^export_proxy_log_lines_dropped_total (\S+)$", text, re.MULTILINE
            )
            assert float(dropped) >= 10
            process.signal(signal.SIGTERM)
            assert await process.ended(within=60) == 0
        finally:
            await process.kill()
            os.close(reading)


async def test_the_log_level_is_reloaded(tmp_path: Path) -> None:
    async with RawUpstream() as upstream:
        document = document_for(upstream.url)
        async with serving(tmp_path, document) as process:
            await ask(process)
            document["log"] = {"level": "warning"}
            process.configure(document)
            assert (await process.reload()).status == 200
            await ask(process)
            document["log"] = {"level": "info", "format": "console"}
            process.configure(document)
            assert (await process.reload()).status == 200
            await ask(process)
    lines = process.stderr.splitlines()
    assert sum('"event": "request"' in line for line in lines) == 1
    assert sum(" info    request request_id=" in line for line in lines) == 1
    assert lines[-1].endswith(" info    stopped")


@pytest.mark.no_cover
async def test_a_crowd_that_is_refused_costs_no_other_account_a_line(tmp_path: Path) -> None:
    """2,000 refused requests of one account, and a quiet one; neither is configured."""
    export = b"POST /api/v2/recordings/exports HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n"
    crowd = export + b"Authorization: Bearer crowd\r\nPrefer: wait=0\r\n\r\n"
    quiet = export + b"Authorization: Bearer quiet\r\nX-Request-Id: quiet-%d\r\n\r\n"
    async with RawUpstream(default=Reply()) as upstream:
        document = document_for(
            upstream.url,
            pacing={"interval": 0.5},
            identity={"whoami": None},
            log={"max_lines_per_second": 20},
        )
        async with serving(tmp_path, document) as process:

            async def press() -> None:
                async with await RawConnection.open(HOST, process.port) as caller:
                    for _ in range(40):
                        await caller.send(crowd)
                        await caller.read_response("POST")

            async def come_quietly() -> None:
                async with await RawConnection.open(HOST, process.port) as caller:
                    for number in range(5):
                        await caller.send(quiet % number)
                        assert (await caller.read_response("POST")).status == 200

            async with asyncio.TaskGroup() as callers:
                callers.create_task(come_quietly())
                for _ in range(50):
                    callers.create_task(press())

            async def is_written() -> bool:
                return "quiet-4" in process.stderr

            await until(is_written)
            text = (await process.ask("/metrics")).body.decode()
            dropped = re.findall(
                r"^export_proxy_log_lines_dropped_total (\S+)$", text, re.MULTILINE
            )
            assert float(dropped[0]) > 1000
    told = [line["request_id"] for line in process.logged("request")]
    assert [one for one in told if one.startswith("quiet-")] == [f"quiet-{n}" for n in range(5)]
