"""Run the tests of the wire with the oldest and the newest aiohttp that pyproject.toml allows.

Each version is installed, with what it needs, into a folder of its own under build/, which goes
before the environment's. It comes from the package index and not from a lock file: a lock file
knows one version.
"""

import os
import re
import subprocess
import sys
import tomllib
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


def folder_with(versions: str) -> Path:
    """Install that version, unless it was installed before; give its folder."""
    folder = BUILD / re.sub(r"[^\w.]+", "-", versions).strip("-")
    if not (folder / "aiohttp").exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--target", str(folder), f"aiohttp{versions}"], check=True)
    return folder


def version_in(folder: Path) -> str:
    (information,) = folder.glob("aiohttp-*.dist-info")
    return information.name.removeprefix("aiohttp-").removesuffix(".dist-info")


def run_tests(folder: Path) -> int:
    pytest = [sys.executable, "-m", "pytest", "-q", "--numprocesses", "4", "--dist", "loadfile"]
    environ = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run([*pytest, "-m", "not timed", *WIRE], env=environ, cwd=ROOT, check=False)
    return done.returncode


def main() -> int:
    bounds = allowed((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folders = [folder_with(oldest(bounds)), folder_with(bounds)]
    by_version = {version_in(folder): folder for folder in folders}
    failures = 0
    for version, folder in by_version.items():
        print(f"aiohttp {version}", flush=True)
        failures += run_tests(folder) != 0
    return failures


if __name__ == "__main__":
    sys.exit(main())
