"""The log: one JSON object a line (or plain text). Log lines are written off the event loop.

The code that logs puts an event into a queue and goes on. A thread renders and writes the events, a
few times a second: waking it for each line would cost more than the line. A full pipe blocks only
that thread; events that do not fit are dropped and counted. The lines of a second are limited
(`max_lines_per_second`), so that one account's flood does not push out another's lines
(`rules/line_budget.py`). Each message of a library is limited, too, since it may repeat in a loop.

No line may contain a secret: paths are logged without their query; no header that could hold one is
logged, nor the `repr` of an HTTP client's error. Libraries log warnings and errors only.
"""

import json
import logging
import os
import queue
import select
import threading
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final, Literal

import structlog

from proxy.clock import Clock
from proxy.rules.line_budget import PROXY, LineBudget, Owner
from proxy.rules.short_names import is_configured
from proxy.rules.state import OTHER
from proxy.settings import Log

_WAITING_LINES: Final = 10_000
_REPEATS_PER_SECOND: Final = 3
_FLUSH_SECONDS: Final = 1.0
_PAUSE: Final = 0.05  # seconds in which lines gather
_WHOLE: Final = select.PIPE_BUF  # bytes that a pipe takes in one piece, even if others write to it
_INFORMATIVE: Final = frozenset({"debug", "info"})

Event = MutableMapping[str, Any]
_Line = tuple[Event, Literal["json", "console"]]  # and the format by the settings of its time


class Sink:
    """Takes events from any thread, without blocking; writes them from a thread of its own.

    It writes to a descriptor and not to a stream: a thread that hangs in a stream holds a lock that
    the interpreter needs at exit.
    """

    def __init__(self, settings: Log, *, clock: Clock, descriptor: int) -> None:
        self.settings = settings
        self.clock = clock
        self.dropped = 0
        self._descriptor = descriptor
        self._events: queue.SimpleQueue[_Line | None] = queue.SimpleQueue()
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._write_all, name="log", daemon=True)
        self._lock = threading.Lock()
        self._budget = LineBudget()
        self._untold = 0
        self._repeats: dict[str, int] = {}

    def start(self) -> None:
        """Start to write."""
        self._thread.start()

    def close(self, *, within: float = _FLUSH_SECONDS) -> None:
        """Write the waiting lines, for that many seconds at most."""
        self._is_closing.set()
        self._events.put(None)
        self._thread.join(within)

    def take_room(self, owner: Owner) -> bool:
        """Count an info line of that owner; False if it is one too many, which counts as dropped.

        A caller asks this before it builds a line, and then gives it to `info`.
        """
        if self.settings.level not in _INFORMATIVE:
            return False
        with self._lock:
            self._begin_second()
            if self._budget.take(owner, self.settings.max_lines_per_second):
                return True
            self._drop()
            return False

    def info(self, event: str, facts: Mapping[str, object]) -> None:
        """Take an event for which there is room; most of all lines come this way."""
        now = timestamp(self.clock.wall())
        with self._lock:
            self._queue({"time": now, "level": "info", "event": event, **facts})

    def put(self, event: Event) -> None:
        """Take an event, or count it as dropped.

        One that names a configured account is a line of that account, any other of the proxy.
        """
        account = event.get("account", OTHER)
        known = is_configured(f"{account}")
        owner = Owner(f"{account}", is_configured=True) if known else PROXY
        with self._lock:
            self._begin_second()
            self._take(event, owner)

    def put_repeated(self, event: Event, message: str) -> None:
        """Take an event of a library, which may repeat itself."""
        with self._lock:
            self._begin_second()
            seen = self._repeats[message] = self._repeats.get(message, 0) + 1
            if seen > _REPEATS_PER_SECOND:
                self._drop()
            else:
                self._take(event)

    def _begin_second(self) -> None:
        second = int(self.clock.monotonic())
        if not self._budget.begin(second):
            return
        self._repeats.clear()
        if self._untold:
            untold, self._untold = self._untold, 0
            notice = {"event": "log lines dropped", "count": untold}
            self._take({"time": timestamp(self.clock.wall()), "level": "warning", **notice})

    def _take(self, event: Event, owner: Owner = PROXY) -> None:
        if self._budget.take(owner, self.settings.max_lines_per_second):
            self._queue(event)
        else:
            self._drop()

    def _queue(self, event: Event) -> None:
        if self._events.qsize() < _WAITING_LINES:
            self._events.put((event, self.settings.format))
        else:
            self._drop()

    def _drop(self) -> None:
        self.dropped += 1
        self._untold += 1

    def _write_all(self) -> None:
        block = b""
        while (waiting := self._events.get()) is not None:
            line = self._rendered(*waiting)
            if len(block) + len(line) > _WHOLE:
                self._write(block)
                block = b""
            block += line
            if self._events.empty():
                self._write(block)
                block = b""
                self._is_closing.wait(_PAUSE)
        self._write(block)

    def _rendered(self, event: Event, form: str) -> bytes:
        try:
            render = _as_json if form == "json" else _as_text
            return render(event).encode("ascii") + b"\n"
        except Exception:  # noqa: BLE001 -- an odd value: the log itself goes on
            with self._lock:
                self._drop()
            return b""

    def _write(self, block: bytes) -> None:
        """Write lines whole, however slowly they are read; a full disk drops them."""
        rest = memoryview(block)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:  # another process that shares the pipe made it non-blocking
                writable = select.poll()
                writable.register(self._descriptor, select.POLLOUT)
                writable.poll()
            except OSError:
                with self._lock:
                    for _ in range(block.count(b"\n")):
                        self._drop()
                return


def _as_json(event: Event) -> str:
    """Return ASCII only, so that nothing in it can be taken for the end of the line."""
    line = _JSON.encode(event)
    return json.dumps(_with_characters_only(event)) if "\\ud" in line else line


def _as_text(event: Event) -> str:
    """Return a line for people; a traceback follows on lines of its own."""
    rest = _with_characters_only(event)
    time, level, what = (rest.pop(key, "") for key in ("time", "level", "event"))
    traceback = rest.pop("exception", None)
    line = f"{time} {level:7} {json.dumps(what)[1:-1]}"
    line += "".join(f" {key}={json.dumps(value)}" for key, value in rest.items())
    if traceback is not None:
        lines = str(traceback).splitlines()
        line += "".join(f"\n  {json.dumps(part)[1:-1]}" for part in lines)
    return line


def _with_characters_only(value: Any) -> Any:
    """Return what JSON can hold: without lone surrogates, which stand for bytes not in UTF-8."""
    match value:
        case None | bool() | int() | float():
            return value
        case Mapping():
            return {str(key): _with_characters_only(item) for key, item in value.items()}
        case list() | tuple():
            return [_with_characters_only(item) for item in value]
        case _:
            return str(value).encode("utf-8", "backslashreplace").decode()


# An event that holds itself fails either way, by recursion; to look for circles costs a fifth.
_JSON: Final = json.JSONEncoder(default=_with_characters_only, check_circular=False)


class _LibraryHandler(logging.Handler):
    """Takes what libraries log."""

    def __init__(self, sink: Sink) -> None:
        super().__init__()
        self._sink = sink

    def emit(self, record: logging.LogRecord) -> None:
        event: Event = {
            "time": timestamp(self._sink.clock.wall()),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        if record.exc_info and record.exc_info[0] is not None:
            event["exception"] = logging.Formatter().formatException(record.exc_info)
        self._sink.put_repeated(event, f"{record.name}: {record.msg}")


class _Forward:
    """The logger at the end of structlog's processors."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def __getattr__(self, level: str) -> Callable[..., None]:
        return self._take

    def _take(self, **event: Any) -> None:
        self._sink.put(event)


@contextmanager
def logging_to(sink: Sink) -> Iterator[None]:
    """Send every log of the process to the sink while the context lasts."""
    handler = _LibraryHandler(sink)
    root = logging.getLogger()
    root.addHandler(handler)
    logging.captureWarnings(capture=True)
    obey(sink.settings, sink)
    sink.start()
    try:
        yield
    finally:
        root.removeHandler(handler)
        logging.captureWarnings(capture=False)
        structlog.reset_defaults()
        sink.close()


def obey(settings: Log, sink: Sink) -> None:
    """Apply these settings to the log from now on."""

    def stamp(_: Any, level: str, event: Event) -> Event:
        head = {"time": timestamp(sink.clock.wall()), "level": level, "event": event.pop("event")}
        return {**head, **event}

    sink.settings = settings
    structlog.configure(
        processors=[structlog.processors.format_exc_info, stamp],
        logger_factory=lambda *_: _Forward(sink),
        wrapper_class=structlog.make_filtering_bound_logger(settings.level),
        cache_logger_on_first_use=False,
    )


def timestamp(wall: float) -> str:
    """Return a wall time in seconds as RFC 3339 in UTC, to the millisecond."""
    second, micros = divmod(round(wall * 1e6), 1_000_000)
    return f"{_second(second)}.{micros // 1000:03}+00:00"


@lru_cache(maxsize=2)  # all lines of a second begin alike
def _second(wall: int) -> str:
    return datetime.fromtimestamp(wall, UTC).strftime("%Y-%m-%dT%H:%M:%S")
