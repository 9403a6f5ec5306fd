"""Run the tests of the wire with the oldest and the newest aiohttp that pyproject.toml allows.

A version that is the environment's own is left out: `make test` runs these tests with it.

Any other is installed, with what it needs, into a folder of its own under build/, which goes before
the environment's. It comes from the package index and not from a lock file: a lock file knows one
version.
"""

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build" / "aiohttp"
WIRE = (
    "tests/http",
    "tests/forwarding",
    "tests/e2e/test_admin_rules.py",
    "tests/e2e/test_exhaustion.py",
    "tests/e2e/test_forwarding.py",
    "tests/e2e/test_hostile.py",
    "tests/e2e/test_outcomes.py",
    "tests/e2e/test_tls.py",
)


def allowed(project: str) -> str:
    """The versions of aiohttp that this pyproject.toml allows: `>=3.14.5,<3.15`."""
    dependencies = tomllib.loads(project)["project"]["dependencies"]
    (bounds,) = (
        d.removeprefix("aiohttp") for d in dependencies if re.match(r"aiohttp\s*[<>=!~]", d)
    )
    return str(bounds).replace(" ", "")


def oldest(bounds: str) -> str:
    (version,) = re.findall(r">=([\d.]+)", bounds)
    return f"=={version}"


def found(versions: str) -> str:
    """The version of aiohttp that the package index has for these bounds."""
    options = ["--dry-run", "--ignore-installed", "--no-deps", "--report", "-"]
    said = pip(*options, f"aiohttp{versions}", stdout=subprocess.PIPE)
    return str(json.loads(said)["install"][0]["metadata"]["version"])


def folder_with(version: str) -> Path:
    """Install that version, unless it was installed before; give its folder."""
    folder = BUILD / version
    if not (folder / "aiohttp").exists():
        pip("--target", str(folder), f"aiohttp=={version}")
    return folder


def pip(*arguments: str, stdout: int | None = None) -> str:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*command, *arguments], check=True, stdout=stdout, encoding="utf-8")
    return done.stdout or ""


def run_tests(folder: Path) -> int:
    pytest = [sys.executable, "-m", "pytest", "-q", "--numprocesses", "4", "--dist", "loadfile"]
    environ = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run([*pytest, "-m", "not timed", *WIRE], env=environ, cwd=ROOT, check=False)
    return done.returncode


def main() -> int:
    bounds = allowed((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    own = metadata.version("aiohttp")
    failures = 0
    for version in dict.fromkeys([found(oldest(bounds)), found(bounds)]):
        if version == own:
            print(f"aiohttp {version}: the environment's own, which make test runs them with")
            continue
        print(f"aiohttp {version}", flush=True)
        failures += run_tests(folder_with(version)) != 0
    return failures


if __name__ == "__main__":
    sys.exit(main())
