"""Fuzz the parsers, each for as long as is wanted, guided by coverage (atheris, libFuzzer).

    python -m fuzz.run --seconds 60         # all, as many at once as there are processors
    python -m fuzz.run --seconds 60 target  # one, in this process

What reached new code is kept in build/fuzz/<name>; an input that broke a check is kept beside it,
and belongs into fuzz/corpus/<name> once the parser is mended.
"""

import argparse
import asyncio
import importlib
import os
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
FOUND = HERE.parent / "build" / "fuzz"
LONGEST_INPUT = 4096
SLOWEST_INPUT = 2  # seconds


def fuzz(name: str, seconds: int) -> None:
    """Fuzz one parser; ends the process."""
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["proxy.http", "proxy.rules", "fuzz"]):
        parsers = importlib.import_module("fuzz.parsers")
    found = FOUND / name
    found.mkdir(parents=True, exist_ok=True)
    options = {
        "max_total_time": seconds,
        "max_len": LONGEST_INPUT,
        "timeout": SLOWEST_INPUT,
        "verbosity": 0,
        "print_final_stats": 1,
        "artifact_prefix": f"{FOUND}/{name}-",
    }
    arguments = [f"-{option}={value}" for option, value in options.items()]
    atheris.Setup(
        [name, *arguments, str(found), str(HERE / "corpus" / name)], parsers.PARSERS[name]
    )
    atheris.Fuzz()


async def fuzz_all(seconds: int) -> bool:
    """Fuzz every parser in a process of its own; tell what came of each."""
    places = asyncio.Semaphore(os.cpu_count() or 1)
    corpora = sorted(path.name for path in (HERE / "corpus").iterdir())

    async def run(name: str) -> bool:
        async with places:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "fuzz.run", "--seconds", str(seconds), name),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            said = (await process.communicate())[0].decode(errors="replace")
        executed = next(
            (line.split()[-1] for line in said.splitlines() if "number_of_executed" in line), "?"
        )
        is_good = process.returncode == 0
        print(f"{name}: {'ok' if is_good else 'BROKEN'}, {executed} inputs", flush=True)
        if not is_good:
            print(said[-4000:], flush=True)
        return is_good

    return all(await asyncio.gather(*(run(name) for name in corpora)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Fuzz the parsers of foreign bytes.")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("name", nargs="?")
    chosen = parser.parse_args()
    if chosen.name is None:
        sys.exit(not asyncio.run(fuzz_all(chosen.seconds)))
    fuzz(chosen.name, chosen.seconds)
