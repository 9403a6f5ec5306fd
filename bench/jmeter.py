"""The JMeter plan against the simulator, through the proxy, at several numbers of threads.

    python -m bench.jmeter path/to/jmeter --threads 4 20 120 --seconds 30

Two accounts share the threads. Each must get 2.0 exports a second at any number of threads, and no
request may fail. Throughput is counted between the first export's answer and the last one's.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_ROOT: Final = Path(__file__).parent.parent
_PLAN: Final = _ROOT / "config" / "jmeter" / "exports.jmx"
_ACCOUNTS: Final = 2
_RATE: Final = 2.0
_STARTED_WITHIN: Final = 20.0
_LONGEST_WAIT: Final = 120
"""Seconds a caller may wait in the queue; the default of 15 is full with 30 threads an account."""


@dataclass(frozen=True, slots=True)
class Account:
    """What JMeter measured for one account; seconds."""

    exports: int
    errors: int
    rate: float
    mean: float


@contextmanager
def started(*command: str, url: str, environ: Mapping[str, str]) -> Iterator[None]:
    """Run one command of the program until the block ends; ready when the URL answers."""
    program = (sys.executable, "-m", "proxy", *command)
    with subprocess.Popen(
        program, env={**os.environ, **environ}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            deadline = time.monotonic() + _STARTED_WITHIN
            while not answers(url):
                assert process.poll() is None, f"{command[0]} did not start"
                assert time.monotonic() < deadline, f"{command[0]} does not answer"
                time.sleep(0.05)
            yield
        finally:
            process.terminate()


def answers(url: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(url):  # noqa: S310 -- loopback
        return True
    return False


def run(jmeter: str, threads: int, seconds: int, folder: Path) -> dict[str, Account]:
    """Run the plan once; return what it measured, by account."""
    results = folder / f"{threads}.jtl"
    properties = {"threads": threads, "accounts": _ACCOUNTS, "seconds": seconds}
    subprocess.run(
        [
            *(jmeter, "-n", "-t", str(_PLAN), "-l", str(results), "-j", str(folder / "jmeter.log")),
            *(f"-J{name}={value}" for name, value in properties.items()),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    rows: defaultdict[str, list[dict[str, str]]] = defaultdict(list)
    with results.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            rows[row["label"]].append(row)
    assert all(row["success"] == "true" for row in rows.pop("login")), "a login failed"
    return {label: measured(rows[label]) for label in sorted(rows)}


def measured(rows: list[dict[str, str]]) -> Account:
    ends = sorted((int(row["timeStamp"]) + int(row["elapsed"])) / 1000 for row in rows)
    return Account(
        exports=len(rows),
        errors=sum(row["success"] != "true" for row in rows),
        rate=(len(ends) - 1) / (ends[-1] - ends[0]),
        mean=sum(int(row["elapsed"]) for row in rows) / 1000 / len(rows),
    )


def report() -> dict[str, Any]:
    with urllib.request.urlopen("http://127.0.0.1:8081/simulator/report") as answer:
        accounts: dict[str, Any] = json.load(answer)["accounts"]
    return accounts


def main() -> None:
    """Measure, print, and fail where the plateau is not there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("jmeter")
    parser.add_argument("--threads", type=int, nargs="+", default=[4, 20, 120])
    parser.add_argument("--seconds", type=int, default=30)
    arguments = parser.parse_args()
    environ = {"EXPORT_PROXY__PACING__MAX_WAIT": str(_LONGEST_WAIT)}
    simulator = started(
        *("simulate", "--port", "8081"), url="http://127.0.0.1:8081/simulator/report", environ={}
    )
    proxy = started(
        *("serve", "--config", str(_ROOT / "config" / "demo.yaml")),
        url="http://127.0.0.1:9180/readyz",
        environ=environ,
    )
    with simulator, proxy, tempfile.TemporaryDirectory() as folder:
        for threads in arguments.threads:
            for label, account in run(
                arguments.jmeter, threads, arguments.seconds, Path(folder)
            ).items():
                print(
                    f"{threads:4} threads, {label}: {account.exports} exports, "
                    f"{account.errors} errors, {account.rate:.3f}/s, mean {account.mean:.2f} s"
                )
                assert account.errors == 0
                assert abs(account.rate - _RATE) <= 0.05 * _RATE
        for name, account in report().items():
            print(
                f"the API saw of {name}: {account['accepted']} accepted, {account['refused']}×429"
            )
            assert account["duplicates"] == {}


if __name__ == "__main__":
    main()
