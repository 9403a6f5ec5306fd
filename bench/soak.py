"""The soak: the program under steady load with random faults, for as long as is wanted.

Callers of 50 accounts come at 80 % of the pace, through the program itself, to the API of
unreliable_api.py. At the end every caller's answer is held against what the API saw, and what the
program used against what it used before.

    python -m bench.soak --seconds 600
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
from collections.abc import Iterable, Iterator, Sequence
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
from tests.kit.upstream import free_port

ACCOUNTS = 50
MANAGED = 25
INTERVAL = 0.5
LOAD = 0.8
TOLERANCE = 0.020
WARM_UP = 0.2  # of the whole time
SAMPLE_SECONDS = 2.0
REST_SECONDS = 12.0  # longer than any connection stays open unused
GROWTH = 0.05
LEAVERS = 0.02
BODY = b'{"mediaType": "voice"}'
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
    """Ask for one export on a connection of its own; a few do not wait for the answer."""
    head = (
        "POST /api/v2/recordings/exports HTTP/1.1\r\nHost: h\r\n"
        f"Authorization: Bearer {token}\r\nX-Export-Key: {key}\r\n"
        f"Content-Length: {len(BODY)}\r\n\r\n"
    )
    async with await RawConnection.open(HOST, port) as connection:
        await connection.send(head.encode() + BODY)
        if random.random() < LEAVERS:
            await asyncio.sleep(random.uniform(0, 1))
            answers[key] = LEFT
        else:
            raw = await connection.read_raw("POST", timeout=60)
            answers[key] = told(parse_response(raw, "POST")) if raw else CUT_SHORT


async def keep_calling(port: int, token: str, end: float, answers: Answers) -> None:
    """Come at random, at the chosen share of the pace on average."""
    number = 0
    async with asyncio.TaskGroup() as calls:
        while time.monotonic() < end:
            await asyncio.sleep(random.expovariate(LOAD / INTERVAL))
            number += 1
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


# The verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """All that is known in the end."""

    answers: Answers
    arrivals: dict[str, list[tuple[float, float]]]
    fates: dict[str, list[str]]
    logins: int
    before: Usage
    samples: list[Usage]
    after: Usage
    early_sends: float
    exit_code: int
    stderr: str

    @property
    def ahead(self) -> dict[str, float]:
        """By account: how far its worst arrival was surely ahead of the pace."""
        return {name: furthest_ahead(stamps) for name, stamps in self.arrivals.items()}

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
        yield f"{len(self.answers)} requests of {ACCOUNTS} accounts; callers were told"
        yield from counted(self.answers.values())
        yield f"{sum(map(len, self.arrivals.values()))} arrivals, which the API meant to"
        yield from counted(fate for fates in self.fates.values() for fate in fates)
        yield f"tokens asked for: {self.logins}"
        yield f"worst arrival: {1000 * max(self.ahead.values()):.1f} ms ahead of the pace"
        yield f"at rest before:    {self.before}"
        yield f"after the warm-up: {first}"
        yield f"at the end:        {last}"
        yield f"at rest after:     {self.after}"
        yield f"memory: {100 * self.growth:+.1f} % from warm-up to end"

    def wrong(self) -> Iterator[str]:
        """Yield a line for everything that is not as promised."""
        applied = {
            key: sum(fate != "refuse" for fate in fates) for key, fates in self.fates.items()
        }
        yield from unexplained(self.answers, applied)
        if len(self.arrivals) != ACCOUNTS:
            yield f"only {len(self.arrivals)} accounts were heard of"
        for name, seconds in self.ahead.items():
            if seconds > TOLERANCE:
                yield f"{name}: {seconds:.3f} s ahead of the pace"
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


def furthest_ahead(stamps: Iterable[tuple[float, float]]) -> float:
    """Compare each arrival with all earlier ones at once, by the time it would be due.

    The earlier one counts from when it may have been there already.
    """
    due = ahead = -inf
    for at, late in stamps:
        ahead = max(ahead, due - at)
        due = max(due, at - late) + INTERVAL
    return ahead


def counted(words: Iterable[str]) -> Iterator[str]:
    return (f"  {count:7} {word}" for word, count in Counter(words).most_common())


# The run


def configuration(port: int) -> tuple[dict[str, Any], list[str]]:
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
    )
    return document, keys + [f"token-{number}-t" for number in range(ACCOUNTS - MANAGED)]


async def soak(seconds: float, folder: Path) -> Outcome:
    spawn = multiprocessing.get_context("spawn")
    announced: multiprocessing.Queue[int] = spawn.Queue()
    api_port = free_port()
    api = spawn.Process(target=serve_api, args=(api_port, announced.put), daemon=True)
    api.start()
    try:
        port = await asyncio.to_thread(announced.get, timeout=30)
        document, tokens = configuration(port)
        process = await launch(
            folder / "proxy.yaml",
            document,
            environ={"TASKS_FILE": str(folder / "tasks")},
            command=(sys.executable, "-c", PROGRAM, *SERVE[3:]),
        )
        try:
            await process.has_started()
            gauge = Gauge(process, folder / "tasks")
            return await drive(process, gauge, tokens, seconds=seconds, api_port=api_port)
        finally:
            await process.kill()
    finally:
        api.kill()
        api.join()


async def drive(
    process: Process, gauge: Gauge, tokens: Sequence[str], *, seconds: float, api_port: int
) -> Outcome:
    before = await gauge.read_at_rest()
    answers: Answers = {}
    end = time.monotonic() + seconds
    reading = asyncio.get_running_loop().create_task(gauge.keep_reading())
    async with asyncio.TaskGroup() as callers:
        for token in tokens:
            callers.create_task(keep_calling(process.port, token, end, answers))
    reading.cancel()
    after = await gauge.read_at_rest()
    early_sends = await process.early_sends()
    process.signal(signal.SIGTERM)
    exit_code = await process.ended(within=30)
    async with await RawConnection.open(HOST, api_port) as connection:
        await connection.send(b"GET /report HTTP/1.1\r\nHost: h\r\n\r\n")
        seen = json.loads((await connection.read_response(timeout=60)).body)
    return Outcome(
        answers=answers,
        **seen,
        before=before,
        samples=gauge.samples,
        after=after,
        early_sends=early_sends,
        exit_code=exit_code,
        stderr=process.stderr,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the program under load and random faults.")
    parser.add_argument("--seconds", type=float, default=600)
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as folder:
        outcome = asyncio.run(soak(seconds, Path(folder)))
    for line in outcome.report():
        print(line)
    wrong = list(outcome.wrong())
    for line in wrong[:50]:
        print("WRONG:", line)
    print(f"{len(wrong)} things are wrong" if wrong else "all as promised")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
