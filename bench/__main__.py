"""Measure the proxy: `python -m bench [SCENARIO ...]`, all of them by default.

Prints a table and writes the same, with what it was made from, as JSON.
"""

import argparse
import asyncio
import os
import platform
import shutil
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final

from bench.cost import growth, paced, unpaced
from bench.findings import Finding, as_json, table
from bench.processes import CORES
from bench.replicas import redis
from bench.rival import nginx
from bench.scrape import scrapes
from bench.waiting import crowd, exactness, memory, refused

SCENARIOS: Final[Mapping[str, Callable[[], Awaitable[Sequence[Finding]]]]] = {
    "unpaced": unpaced,
    "paced": paced,
    "exactness": exactness,
    "growth": growth,
    "memory": memory,
    "crowd": crowd,
    "refused": refused,
    "scrape": scrapes,
    "nginx": nginx,
    "redis": redis,
}
_NEEDED: Final = ("taskset", "wrk", "nginx", "redis-server")
_LONGEST: Final = 240.0  # seconds of one scenario


async def _run(names: Sequence[str]) -> list[Finding]:
    findings: list[Finding] = []
    for name in names:
        begun = time.monotonic()
        print(f"{name} ...", end=" ", flush=True, file=sys.stderr)
        async with asyncio.timeout(_LONGEST):
            findings += await SCENARIOS[name]()
        print(f"{time.monotonic() - begun:.0f} s", file=sys.stderr)
    return findings


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the proxy.")
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=", ".join(SCENARIOS))
    parser.add_argument("--json", type=Path, default=Path("build/bench.json"))
    options = parser.parse_args()
    unknown = set(options.scenarios) - SCENARIOS.keys()
    if unknown:
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}")
    missing = [program for program in _NEEDED if shutil.which(program) is None]
    if missing:
        parser.error(f"not installed: {', '.join(missing)}")
    if len(CORES) < 2:
        parser.error("two cores are needed: one is measured, the other one loads it")
    about = {
        "python": platform.python_version(),
        "aiohttp": version("aiohttp"),
        "uvloop": version("uvloop"),
        "cores": len(CORES),
        "load average before": os.getloadavg()[0],
    }
    with asyncio.Runner() as runner:
        findings = runner.run(_run(options.scenarios or list(SCENARIOS)))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(as_json(findings, about) + "\n")
    print(table(findings))
    print(f"\nMeasured with {about}; details in {options.json}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
