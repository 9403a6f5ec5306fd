"""The program itself, as ops run it: `python -m proxy serve` in a process of its own.

Its ports are free ones that it chose; they are read from its log. The log is read all the time,
unless a test takes standard error for itself.
"""

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from proxy.clock import SystemClock
from tests.kit.client import Response, exchange, parse_response
from tests.kit.listener import HOST

SERVE = (sys.executable, "-m", "proxy", "serve", "--config")
STARTED_WITHIN = 60.0
POLL_SECONDS = 0.01

_clock = SystemClock()


def document_for(api_url: str, **sections: Mapping[str, Any] | list[Any]) -> dict[str, Any]:
    """The configuration of a proxy in front of that server; `sections` override keys.

    It asks nobody whose a token is unless `identity` says so.
    """
    document: dict[str, Any] = {
        "listen": {"port": 0},
        "admin": {"port": 0},
        "upstream": {"api_url": api_url, "login_url": api_url},
        "identity": {"whoami": None},  # most tests count what reaches the API
        "log": {"max_lines_per_second": 100_000},
    }
    for name, section in sections.items():
        if isinstance(section, Mapping):
            document[name] = {**document.get(name, {}), **section}
        else:
            document[name] = section
    return document


def unmeasured() -> dict[str, str]:
    """The environment for a program that is not ours: its lines are not counted, which takes long.

    Where the tests run with coverage, each Python that is started counts its lines too.
    """
    inherited = os.environ  # noqa: TID251 - as a shell hands it on
    return {name: text for name, text in inherited.items() if not name.startswith("COVERAGE_")}


class Process:
    """A running program: where it listens, what it logs, how it ends."""

    def __init__(self, child: asyncio.subprocess.Process, config: Path) -> None:
        self.config = config
        self.port = 0
        self.admin_port = 0
        self._child = child
        self._said = b""
        self._reading = asyncio.get_running_loop().create_task(self._read())

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def stderr(self) -> str:
        """All it has written to standard error."""
        return self._said.decode()

    @property
    def log(self) -> list[dict[str, Any]]:
        """Its log; fails where a line is no JSON."""
        whole = self._said[: self._said.rfind(b"\n") + 1]
        try:
            return [json.loads(line) for line in whole.splitlines()]
        except ValueError:
            raise AssertionError(self.stderr) from None

    def logged(self, event: str) -> list[dict[str, Any]]:
        """The lines of its log that tell of such an event."""
        return [line for line in self.log if line["event"] == event]

    def configure(self, document: Mapping[str, Any]) -> None:
        """Write its configuration anew; it is not told."""
        write(self.config, document)

    def signal(self, number: signal.Signals) -> None:
        self._child.send_signal(number)

    async def ended(self, *, within: float = 30) -> int:
        """Wait for the end; give its exit code, which is negative for a signal's number."""
        async with asyncio.timeout(within):
            code = await self._child.wait()
            await self._reading
        return code

    async def ask(self, path: str, method: str = "GET") -> Response:
        """Ask its admin port."""
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
        return parse_response(await exchange(HOST, self.admin_port, head.encode(), timeout=20))

    async def accounts(self) -> dict[str, dict[str, Any]]:
        """What its status says of the accounts, by name."""
        accounts = json.loads((await self.ask("/status.json")).body)["accounts"]
        return {account["name"]: account for account in accounts}

    async def waiting(self) -> int:
        """How many requests wait in all its queues."""
        accounts = (await self.accounts()).values()
        return sum(queue["queue_depth"] for account in accounts for queue in account["routes"])

    async def has_waiting(self, count: int) -> None:
        """Wait until so many requests wait."""

        async def question() -> bool:
            return await self.waiting() == count

        await until(question)

    async def reload(self) -> Response:
        return await self.ask("/-/reload", "POST")

    async def early_sends(self) -> float:
        """Its own count of sends before their time; fails where it counts none at all."""
        text = (await self.ask("/metrics")).body.decode()
        counts = re.findall(r"^export_proxy_early_sends_total\{.*\} (\S+)$", text, re.MULTILINE)
        assert counts
        return sum(map(float, counts))

    async def is_ready(self) -> bool:
        with suppress(ConnectionRefusedError):
            return (await self.ask("/readyz")).status == 200
        return False

    async def has_started(self) -> None:
        """Wait until it serves; fails if it ends instead."""

        async def is_serving() -> bool:
            if self._child.returncode is not None:
                raise AssertionError(f"it ended at once: {self.stderr}")
            return bool(self.logged("serving"))

        await until(is_serving, within=STARTED_WITHIN)
        (line,) = self.logged("serving")
        self.port, self.admin_port = (
            int(line[name].rpartition(":")[2]) for name in ("listen", "admin")
        )
        await until(self.is_ready)

    async def stop(self) -> None:
        """End it if it has not ended, as a service manager does; fails if it takes too long."""
        if self._child.returncode is None:
            self.signal(signal.SIGTERM)
            assert await self.ended(within=30) == 0

    async def kill(self) -> None:
        if self._child.returncode is None:
            self._child.kill()
        await self._child.wait()
        self._reading.cancel()
        await asyncio.wait([self._reading])

    async def _read(self) -> None:
        if self._child.stderr is not None:
            while part := await self._child.stderr.read(2**16):
                self._said += part


async def launch(
    config: Path,
    document: Mapping[str, Any],
    *,
    environ: Mapping[str, str] = {},
    command: Sequence[str] = SERVE,
    stderr: int = asyncio.subprocess.PIPE,
) -> Process:
    """Start it with this configuration, and do not wait."""
    write(config, document)
    inherited = os.environ  # noqa: TID251 - as a shell hands it on
    child = await asyncio.create_subprocess_exec(
        *command, str(config), stderr=stderr, env={**inherited, **environ}
    )
    return Process(child, config)


def write(config: Path, document: Mapping[str, Any]) -> None:
    config.write_text(yaml.safe_dump(dict(document)))


@asynccontextmanager
async def serving(
    folder: Path,
    document: Mapping[str, Any],
    *,
    environ: Mapping[str, str] = {},
    command: Sequence[str] = SERVE,
) -> AsyncIterator[Process]:
    """Run it, ready; at the end it is stopped, if the test has not done so, and must end well."""
    process = await launch(folder / "proxy.yaml", document, environ=environ, command=command)
    try:
        await process.has_started()
        yield process
        await process.stop()
    finally:
        await process.kill()


async def until(question: Callable[[], Awaitable[bool]], *, within: float = 30) -> None:
    """Ask until the answer is yes."""
    async with asyncio.timeout(within):
        while not await question():
            await _clock.sleep_until(_clock.monotonic() + POLL_SECONDS)
