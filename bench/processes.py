"""The processes of a measurement: started on a core, watched through what the kernel accounts.

What is measured has the first core to itself; load and API are on the last one.
"""

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.kit.client import exchange, parse_response
from tests.kit.process import SERVE, Process, launch

CORES: Final = sorted(os.sched_getaffinity(0))
MEASURED_CORE: Final = CORES[0]
LOAD_CORE: Final = CORES[-1]
HOST: Final = "127.0.0.1"
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_CONNECTIONS: Final = 16_000
_LONGEST_LINE: Final = 2**24


@dataclass(frozen=True, slots=True)
class Server:
    """Something that is measured: where it listens, which process it is."""

    port: int
    pid: int

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def cpu_seconds(self) -> float:
        """Return the CPU time it has used so far, all threads, user and system."""
        stat = Path(f"/proc/{self.pid}/stat").read_text()
        fields = stat.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def memory(self) -> int:
        """Return the bytes that are its own."""
        rollup = Path(f"/proc/{self.pid}/smaps_rollup").read_text()
        sizes = re.findall(r"^Private_\w+: +(\d+)", rollup, re.MULTILINE)
        return 1024 * sum(map(int, sizes))


@dataclass(frozen=True, slots=True)
class Proxy(Server):
    """The program itself, with its admin port."""

    process: Process

    async def metrics(self) -> str:
        return (await self.process.ask("/metrics")).body.decode()


@asynccontextmanager
async def api(core: int | None = LOAD_CORE) -> AsyncIterator[Server]:
    """Run the API of the measurements."""
    async with _module("bench.upstream", core=core) as server:
        yield server


@asynccontextmanager
async def bare(upstream: Server | None, *, core: int = MEASURED_CORE) -> AsyncIterator[Server]:
    """Run what the proxy is held against; without an upstream its callers only wait."""
    arguments = () if upstream is None else ("--upstream", upstream.url)
    async with _module("bench.bare", *arguments, core=core) as server:
        yield server


@asynccontextmanager
async def proxy(
    folder: Path,
    upstream: Server,
    /,
    *,
    core: int = MEASURED_CORE,
    **sections: Mapping[str, Any] | list[Any],
) -> AsyncIterator[Proxy]:
    """Run the proxy as it comes, with limits that let the load in; `sections` override keys."""
    document: dict[str, Any] = {
        "listen": {"port": 0},
        "admin": {"port": 0},
        "upstream": {"api_url": upstream.url, "login_url": upstream.url},
        "identity": {"max_unidentified": 20_000, "whoami": None},  # the tokens are made up
        "limits": {"max_connections": _CONNECTIONS, "max_connections_per_peer": _CONNECTIONS},
    }
    for name, section in sections.items():
        if isinstance(section, Mapping):
            document[name] = {**document.get(name, {}), **section}
        else:
            document[name] = section
    process = await launch(
        folder / f"proxy-{id(document)}.yaml", document, command=_pinned(core, *SERVE)
    )
    try:
        await process.has_started()
        yield Proxy(process.port, process.pid, process)
        await process.stop()
    finally:
        await process.kill()


async def ask(server: Server, path: str) -> Any:
    """Ask a server for JSON."""
    request = f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n"
    return json.loads(parse_response(await exchange(HOST, server.port, request.encode())).body)


async def run(*command: str, core: int | None = LOAD_CORE) -> str:
    """Run a command to its end and return what it printed; fails if it fails."""
    child = await asyncio.create_subprocess_exec(
        *_pinned(core, *command), stdout=asyncio.subprocess.PIPE
    )
    try:
        output, _ = await child.communicate()
    finally:
        await _end(child)
    if child.returncode:
        raise RuntimeError(f"{command[0]} failed: {output.decode()}")
    return output.decode()


@asynccontextmanager
async def running(*command: str, core: int | None) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a command for as long as the context lasts."""
    child = await asyncio.create_subprocess_exec(
        *_pinned(core, *command), stdout=asyncio.subprocess.PIPE, limit=_LONGEST_LINE
    )
    try:
        yield child
    finally:
        await _end(child)


@dataclass(frozen=True, slots=True)
class Calling:
    """Callers at work."""

    child: asyncio.subprocess.Process

    async def result(self) -> dict[str, Any]:
        """Wait until they are done; return what they got."""
        assert self.child.stdout is not None
        result: dict[str, Any] = json.loads(await self.child.stdout.read())
        return result


@asynccontextmanager
async def calling(server: Server, mode: str, **options: float | str) -> AsyncIterator[Calling]:
    """Run callers (bench.callers); what is in the context begins when they are all there."""
    arguments = [f"--{name}={value}" for name, value in options.items()]
    command = (sys.executable, "-m", "bench.callers", f"--port={server.port}", f"--mode={mode}")
    async with running(*command, *arguments, core=LOAD_CORE) as child:
        assert child.stdout is not None
        await child.stdout.readline()
        yield Calling(child)


async def called(server: Server, mode: str, **options: float | str) -> dict[str, Any]:
    """Let them call, and return what they got."""
    async with calling(server, mode, **options) as callers:
        return await callers.result()


@asynccontextmanager
async def _module(name: str, *arguments: str, core: int | None) -> AsyncIterator[Server]:
    """Run one of our servers, which prints where it listens."""
    async with running(sys.executable, "-m", name, *arguments, core=core) as child:
        assert child.stdout is not None
        yield Server(json.loads(await child.stdout.readline())["port"], child.pid)


async def _end(child: asyncio.subprocess.Process) -> None:
    if child.returncode is None:
        with suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGTERM)  # terminate() would reap it before the loop does
    await child.wait()


def _pinned(core: int | None, *command: str) -> Sequence[str]:
    """Return the command as it runs on that core, or on any."""
    return command if core is None else ("taskset", "--cpu-list", str(core), *command)
