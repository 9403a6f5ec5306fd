"""`make release-check`: what is about to be released is built, installed elsewhere, and run.

    python -m tools.release path/to/the/release/tools/bin

In dist/ it leaves the sdist, the wheel and a bill of materials (CycloneDX) of what was installed:
the wheel, and exactly what requirements/runtime.lock pins. The demo runs from that installation,
outside the repository.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent
DIST: Final = ROOT / "dist"
_LOCK: Final = ROOT / "requirements" / "runtime.lock"


class NotReady(Exception):
    """Something that is about to be released is not as it should be."""


def version() -> str:
    """Return the version, from the one place where it stands."""
    text = (ROOT / "proxy" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if found is None:
        raise NotReady("proxy/__init__.py states no version")
    return found[1]


def build(tools: Path) -> Path:
    """Build sdist and wheel into an empty dist/, the wheel from the sdist; return the wheel."""
    shutil.rmtree(DIST, ignore_errors=True)
    run(tools / "hatchling", "build", "-t", "sdist", "-d", DIST, within=ROOT)
    (sdist,) = DIST.glob("*.tar.gz")
    with tempfile.TemporaryDirectory() as folder:
        shutil.unpack_archive(sdist, folder, filter="data")
        (source,) = Path(folder).iterdir()
        run(tools / "hatchling", "build", "-t", "wheel", "-d", DIST, within=source)
    (wheel,) = DIST.glob("*.whl")
    if not wheel.name.startswith(f"export_proxy-{version()}-"):
        raise NotReady(f"{wheel.name} is not version {version()}")
    return wheel


def install(wheel: Path, folder: Path) -> Path:
    """Install what the lock pins, by hash, and the wheel; return the environment's programs."""
    venv.create(folder, with_pip=True)
    programs = folder / "bin"
    pip = (programs / "pip", "--quiet", "--disable-pip-version-check", "install", "--no-deps")
    run(*pip, "--require-hashes", "--requirement", _LOCK, within=folder)
    run(*pip, wheel, within=folder)
    run(programs / "pip", "check", within=folder)
    return programs


def describe(tools: Path, programs: Path) -> Path:
    """Write the bill of materials of that environment; return the file."""
    bill = DIST / f"export-proxy-{version()}.cdx.json"
    run(
        *(tools / "cyclonedx-py", "environment", "--output-reproducible", "--output-file", bill),
        *("--pyproject", ROOT / "pyproject.toml", programs / "python"),
        within=ROOT,
    )
    listed = {part["name"] for part in json.loads(bill.read_text(encoding="utf-8"))["components"]}
    if not {"aiohttp", "redis"} <= listed:
        raise NotReady(f"{bill.name} does not list what is installed")
    return bill


def try_out(programs: Path, folder: Path) -> None:
    """Run what was installed, in an empty directory."""
    program = programs / "export-proxy"
    said = run(program, "--version", within=folder)
    if said.split() != ["export-proxy", version()]:
        raise NotReady(f"--version says {said!r}")
    for name in ("demo.yaml", "proxy.yaml"):
        run(program, "check", "--config", ROOT / "config" / name, within=folder)
    if json.loads(run(program, "schema", within=folder))["type"] != "object":
        raise NotReady("schema prints no schema")
    print(run(program, "demo", within=folder))


def run(*command: object, within: Path) -> str:
    """Run a command that sees neither the repository nor the caller's Python settings."""
    environ = {name: text for name, text in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        list(map(str, command)),
        cwd=within,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        check=False,
    )
    if done.returncode:
        raise NotReady(f"{' '.join(map(str, command))}: {done.stdout}")
    return done.stdout


def main(tools: Path) -> int:
    """Do it all; return the exit code."""
    try:
        wheel = build(tools)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            programs = install(wheel, folder / "env")
            (folder / "empty").mkdir()
            try_out(programs, folder / "empty")
            describe(tools, programs)
    except NotReady as problem:
        print(f"not ready: {problem}")
        return 1
    for path in sorted(DIST.iterdir()):
        print(f"{path.relative_to(ROOT)}  {path.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).absolute()))
