"""The soak: the program under steady load with random faults, for as long as is wanted.

Callers of 50 accounts come at 80 % of the pace, through the program itself, to the API of
unreliable_api.py. At the end every caller's answer is held against what the API saw, and what the
program used against what it used before.

With several replicas there is a Redis between them, which is killed now and then and comes back
empty a moment later; callers come to each replica at random.

    python -m bench.soak --seconds 600 --replicas 2
"""

import argparse
import asyncio
import json
import multiprocessing
import random
import re
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, fields
from hashlib import sha256
from math import inf
from pathlib import Path
from typing import Any

from bench.unreliable_api import serve_api
from tests.kit.answers import CUT_SHORT, LEFT, told, unexplained
from tests.kit.client import RawConnection, parse_response
from tests.kit.listener import HOST
from tests.kit.process import SERVE, Process, document_for, launch, until
from tests.kit.redis import RedisServer
from tests.kit.upstream import free_port

ACCOUNTS = 50
MANAGED = 25
INTERVAL = 0.5
LOAD = 0.8  # of the pace, for one replica
SHARED_LOAD = 0.6  # for several: outages cost part of the pace, and no queue may grow by that
TOLERANCE = 0.020
WARM_UP = 0.2  # of the whole time
SAMPLE_SECONDS = 2.0
REST_SECONDS = 12.0  # longer than any connection stays open unused
GROWTH = 0.05
LEAVERS = 0.02
LONGEST_WAIT = 300.0  # seconds in which every caller must have an answer
OUTAGES_EVERY = (8, 25)  # seconds, at random
OUTAGE_SECONDS = (0.5, 4)
SHARED_AGAIN_SECONDS = 3.0  # after the store is back: two, and one for a busy machine
MOST_EARLY = 2  # sends of an account ahead of the pace in an outage: at its begin and at its end
FORBIDDEN = ("never retrieved", "never awaited", "Traceback", "was destroyed")

# The program, which also tells how many tasks it has.
PROGRAM = """
import asyncio, os, signal, sys
from proxy.cli.commands import main
signal.signal(
    signal.SIGUSR1,
    lambda *_: open(os.environ["TASKS_FILE"], "w").write(f"{len(asyncio.all_tasks())}\\n"),
)
sys.argv[0] = "export-proxy"
main()
"""

Answers = dict[str, str]  # what each caller was told, by the key of its request


# The callers


async def call(port: int, token: str, key: str, answers: Answers) -> None:
    """Ask for one export on a connection of its own; a few do not wait for the answer.

    No two bodies are equal, or the proxy would take one for a repeat of another.
    """
    body = json.dumps({"mediaType": "voice", "name": key}).encode()
    head = (
        "POST /api/v2/recordings/exports HTTP/1.1\r\nHost: h\r\n"
        f"Authorization: Bearer {token}\r\nX-Export-Key: {key}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    async with await RawConnection.open(HOST, port) as connection:
        await connection.send(head.encode() + body)
        if random.random() < LEAVERS:
            await asyncio.sleep(random.uniform(0, 1))
            answers[key] = LEFT
        else:
            raw = await connection.read_raw("POST", timeout=LONGEST_WAIT)
            answers[key] = told(parse_response(raw, "POST")) if raw else CUT_SHORT


async def keep_calling(ports: Sequence[int], token: str, end: float, answers: Answers) -> None:
    """Come at random, at the chosen share of the pace on average."""
    number = 0
    async with asyncio.TaskGroup() as calls:
        while time.monotonic() < end:
            load = LOAD if len(ports) == 1 else SHARED_LOAD
            await asyncio.sleep(random.expovariate(load / INTERVAL))
            number += 1
            port = random.choice(ports)
            calls.create_task(call(port, token, f"{token}/{number}", answers))


# What the program uses


@dataclass(frozen=True, slots=True)
class Usage:
    memory: float
    """Resident, in KiB."""
    descriptors: float
    threads: float
    tasks: float

    def __str__(self) -> str:
        return (
            f"{self.memory / 1024:.1f} MiB, {self.descriptors:.0f} descriptors,"
            f" {self.threads:.0f} threads, {self.tasks:.0f} tasks"
        )


class Gauge:
    """Measures the program from outside; for its tasks it is asked by a signal."""

    def __init__(self, process: Process, tasks_file: Path) -> None:
        self._process = process
        self._tasks_file = tasks_file
        self._folder = Path(f"/proc/{process.pid}")
        self.samples: list[Usage] = []

    async def read(self) -> Usage:
        self._tasks_file.write_text("")
        self._process.signal(signal.SIGUSR1)
        await until(self._is_told)
        status = (self._folder / "status").read_text()
        return Usage(
            memory=int(re.findall(r"VmRSS:\s+(\d+)", status)[0]),
            descriptors=len(list((self._folder / "fd").iterdir())),
            threads=int(re.findall(r"Threads:\s+(\d+)", status)[0]),
            tasks=int(self._tasks_file.read_text()),
        )

    async def read_at_rest(self) -> Usage:
        """Measure when idle connections have closed."""
        await asyncio.sleep(REST_SECONDS)
        return await self.read()

    async def keep_reading(self) -> None:
        while True:
            self.samples.append(await self.read())
            await asyncio.sleep(SAMPLE_SECONDS)

    async def _is_told(self) -> bool:
        return self._tasks_file.read_text().endswith("\n")


def median(samples: Sequence[Usage]) -> Usage:
    names = [each.name for each in fields(Usage)]
    return Usage(*(statistics.median(getattr(one, name) for one in samples) for name in names))


# The result


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """All that is known in the end."""

    answers: Answers
    arrivals: dict[str, list[tuple[float, float]]]
    fates: dict[str, list[str]]
    logins: int
    programs: Sequence["Program"]
    outages: Sequence[tuple[float, float]]

    @property
    def ahead(self) -> dict[str, list[tuple[float, float]]]:
        """By account: when an arrival was surely ahead of the pace, and by how much."""
        return {name: list(all_ahead(stamps)) for name, stamps in self.arrivals.items()}

    def report(self) -> Iterator[str]:
        yield f"{len(self.answers)} requests of {ACCOUNTS} accounts; callers were told"
        yield from counted(self.answers.values())
        yield f"{sum(map(len, self.arrivals.values()))} arrivals, which the API meant to"
        yield from counted(fate for fates in self.fates.values() for fate in fates)
        yield f"tokens asked for: {self.logins}"
        if self.outages:
            yield f"outages of the store: {len(self.outages)}"
        worst = max((by for early in self.ahead.values() for _, by in early), default=0.0)
        early = sum(len(early) for early in self.ahead.values())
        yield f"worst arrival: {1000 * worst:.1f} ms ahead of the pace, {early} ahead at all"
        for program in self.programs:
            yield from program.report()

    def wrong(self) -> Iterator[str]:
        """Yield a line for everything that is not as promised."""
        applied = {
            key: sum(fate != "refuse" for fate in fates) for key, fates in self.fates.items()
        }
        yield from unexplained(self.answers, applied)
        if len(self.arrivals) != ACCOUNTS:
            yield f"only {len(self.arrivals)} accounts were heard of"
        for name, early in self.ahead.items():
            late = [(at, by) for at, by in early if by > TOLERANCE]
            in_outages = Counter(self._outage_at(at) for at, _ in late)
            yield from (
                f"{name}: {by:.3f} s ahead of the pace"
                for at, by in late
                if self._outage_at(at) is None
            )
            del in_outages[None]
            if any(count > MOST_EARLY for count in in_outages.values()):
                yield f"{name}: {max(in_outages.values())} ahead of the pace in one outage"
        for program in self.programs:
            yield from program.wrong()

    def _outage_at(self, at: float) -> int | None:
        """Return which outage of the store that moment belongs to."""
        for index, (begun, ended) in enumerate(self.outages):
            if begun - TOLERANCE <= at <= ended + SHARED_AGAIN_SECONDS:
                return index
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What one replica used, and how it ended."""

    before: Usage
    samples: list[Usage]
    after: Usage
    early_sends: float
    exit_code: int
    stderr: str

    @property
    def steady(self) -> tuple[Usage, Usage]:
        """What was used at the beginning and at the end of the time after the warm-up."""
        samples = self.samples[int(WARM_UP * len(self.samples)) :]
        third = max(1, len(samples) // 3)
        return median(samples[:third]), median(samples[-third:])

    @property
    def growth(self) -> float:
        first, last = self.steady
        return last.memory / first.memory - 1

    def report(self) -> Iterator[str]:
        first, last = self.steady
        yield f"at rest before:    {self.before}"
        yield f"after the warm-up: {first}"
        yield f"at the end:        {last}"
        yield f"at rest after:     {self.after}"
        yield f"memory: {100 * self.growth:+.1f} % from warm-up to end"

    def wrong(self) -> Iterator[str]:
        if self.early_sends:
            yield f"it counts {self.early_sends} early sends itself"
        if self.exit_code:
            yield f"exit code {self.exit_code}"
        yield from (f"the log says {word!r}" for word in FORBIDDEN if word in self.stderr)
        yield from self._leaks()

    def _leaks(self) -> Iterator[str]:
        first, last = self.steady
        if abs(self.growth) > GROWTH:
            yield "the memory is not flat"
        for name in ("descriptors", "threads", "tasks"):
            if getattr(last, name) > 1.25 * getattr(first, name):
                yield f"{name} grow"
            if getattr(self.after, name) > getattr(self.before, name) + 2:
                yield f"{name} are left over"


def all_ahead(stamps: Iterable[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """Yield each arrival that came before it was due by all earlier ones, and by how much.

    An earlier one counts from when it may have been there already.
    """
    due = -inf
    for at, late in stamps:
        if at < due:
            yield at, due - at
        due = max(due, at - late) + INTERVAL


def counted(words: Iterable[str]) -> Iterator[str]:
    return (f"  {count:7} {word}" for word, count in Counter(words).most_common())


# The run


def configuration(
    port: int, store: RedisServer | None, replicas: int
) -> tuple[dict[str, Any], list[str]]:
    """The configuration, and a credential of each account."""
    keys = [f"key-of-{number}-k" for number in range(MANAGED)]
    accounts = [
        {
            "name": f"account-{number}",
            "client_id": f"client-{number}",
            "client_secret": "any",
            "keys": [f"sha256:{sha256(key.encode()).hexdigest()}"],
        }
        for number, key in enumerate(keys)
    ]
    document = document_for(
        f"http://{HOST}:{port}",
        accounts=accounts,
        pacing={"interval": INTERVAL},
        upstream={"response_timeout": 3, "connect_timeout": 2},
        log={"max_lines_per_second": 200},
        store={"replicas": replicas, **({} if store is None else {"url": store.url})},
    )
    return document, keys + [f"token-{number}-t" for number in range(ACCOUNTS - MANAGED)]


async def soak(seconds: float, replicas: int, folder: Path) -> Outcome:
    spawn = multiprocessing.get_context("spawn")
    announced: multiprocessing.Queue[int] = spawn.Queue()
    api_port = free_port()
    api = spawn.Process(target=serve_api, args=(api_port, announced.put), daemon=True)
    api.start()
    try:
        async with AsyncExitStack() as stack:
            port = await asyncio.to_thread(announced.get, timeout=30)
            store = None
            if replicas > 1:
                store = RedisServer(folder)
                await store.start()
                stack.push_async_callback(store.stop)
            document, tokens = configuration(port, store, replicas)
            running = [await start(stack, folder, document, number) for number in range(replicas)]
            return await drive(running, tokens, store, seconds=seconds, api_port=api_port)
    finally:
        api.kill()
        api.join()


async def start(
    stack: AsyncExitStack, folder: Path, document: Mapping[str, Any], number: int
) -> tuple[Process, Gauge]:
    tasks_file = folder / f"tasks-{number}"
    process = await launch(
        folder / f"proxy-{number}.yaml",
        document,
        environ={"TASKS_FILE": str(tasks_file)},
        command=(sys.executable, "-c", PROGRAM, *SERVE[3:]),
    )
    stack.push_async_callback(process.kill)
    await process.has_started()
    return process, Gauge(process, tasks_file)


async def keep_breaking(store: RedisServer, outages: list[tuple[float, float]]) -> None:
    """Kill the store now and then; it comes back, empty."""
    while True:
        await asyncio.sleep(random.uniform(*OUTAGES_EVERY))
        begun = time.monotonic()
        outages.append((begun, inf))
        await store.kill()
        await asyncio.sleep(random.uniform(*OUTAGE_SECONDS))
        await store.start()
        outages[-1] = (begun, time.monotonic())


async def drive(
    running: Sequence[tuple[Process, Gauge]],
    tokens: Sequence[str],
    store: RedisServer | None,
    *,
    seconds: float,
    api_port: int,
) -> Outcome:
    gauges = [gauge for _, gauge in running]
    ports = [process.port for process, _ in running]
    before = await asyncio.gather(*(gauge.read_at_rest() for gauge in gauges))
    answers: Answers = {}
    outages: list[tuple[float, float]] = []
    end = time.monotonic() + seconds
    loop = asyncio.get_running_loop()
    beside = [loop.create_task(gauge.keep_reading()) for gauge in gauges]
    if store is not None:
        beside.append(loop.create_task(keep_breaking(store, outages)))
    async with asyncio.TaskGroup() as callers:
        for token in tokens:
            callers.create_task(keep_calling(ports, token, end, answers))
    for task in beside:
        task.cancel()
    after = await asyncio.gather(*(gauge.read_at_rest() for gauge in gauges))
    programs = [
        await end_of(process, gauge, begun, ended)
        for (process, gauge), begun, ended in zip(running, before, after, strict=True)
    ]
    async with await RawConnection.open(HOST, api_port) as connection:
        await connection.send(b"GET /report HTTP/1.1\r\nHost: h\r\n\r\n")
        seen = json.loads((await connection.read_response(timeout=60)).body)
    return Outcome(answers=answers, **seen, programs=programs, outages=outages)


async def end_of(process: Process, gauge: Gauge, before: Usage, after: Usage) -> Program:
    early_sends = await process.early_sends()
    process.signal(signal.SIGTERM)
    return Program(
        before=before,
        samples=gauge.samples,
        after=after,
        early_sends=early_sends,
        exit_code=await process.ended(within=30),
        stderr=process.stderr,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the program under load and random faults.")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--replicas", type=int, default=1)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcome = asyncio.run(soak(chosen.seconds, chosen.replicas, Path(folder)))
    for line in outcome.report():
        print(line)
    wrong = list(outcome.wrong())
    for line in wrong[:50]:
        print("WRONG:", line)
    print(f"{len(wrong)} things are wrong" if wrong else "all as promised")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
