"""What every test may use.

A test says which programs it needs. Where one is missing the test is skipped; in CI it fails.
"""

import json
import os
import resource
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.kit.stalls import allow_stalls

# What the terminal and its user ask for changes no test, and no program that a test starts.
for _name in ("CLICOLOR", "CLICOLOR_FORCE", "COLUMNS", "FORCE_COLOR", "LINES", "NO_COLOR"):
    os.environ.pop(_name, None)
os.environ["TERM"] = "xterm"

# A thousand callers need more descriptors than the 1,024 that users have by default.
_soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
_enough = 20_000 if _hard == resource.RLIM_INFINITY else min(20_000, _hard)
if _soft != resource.RLIM_INFINITY:
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(_soft, _enough), _hard))

# A machine that stands still for a moment is no failure of an example.
settings.register_profile(
    "patient", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("mutation", settings.get_profile("patient"), max_examples=20)
settings.load_profile("patient")


# Files whose tests last long. A worker that came to one of them last would end after the others.
# Of the timed ones, one that only waits runs beside the crowds.
LONGEST_FIRST = (
    "test_vanished.py",
    "test_pace.py",
    "test_snippets.py",
    "test_waiting.py",
    "test_image.py",
    "test_properties.py",
    "test_lifecycle.py",
    "test_incidents.py",
    "test_openapi.py",
    "test_managed.py",
    "test_crowds.py",
    "test_sdk.py",
)


# `make mutation` runs the tests for each change anew, beside what it knows of them.
DURATIONS = Path("mutmut-stats.json")
LONGEST = 1.0  # seconds; a change that only longer tests notice counts as unnoticed


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if DURATIONS.exists():  # then a run ends with the first test that fails: the fastest go first
        known = json.loads(DURATIONS.read_bytes())["duration_by_test"]
        seconds = {item.nodeid: known.get(item.nodeid, 0.0) for item in items}
        items[:] = [item for item in items if seconds[item.nodeid] <= LONGEST]
        items.sort(key=lambda item: seconds[item.nodeid])
        return
    ranks = {name: rank for rank, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: ranks.get(item.path.name, len(ranks)))


def pytest_runtest_setup(item: pytest.Item) -> None:
    allow_stalls(allow=item.get_closest_marker("timed") is not None)
    for marker in item.iter_markers("needs"):
        needs(*marker.args)


def needs(*names: str) -> None:
    """Go on only where these programs (see `program`) or Python packages are installed.

    For fixtures; a test uses the marker: `@pytest.mark.needs("redis-server")`.
    """
    missing = [name for name in names if not program(name) and not find_spec(name)]
    if missing:
        stop = pytest.fail if os.environ.get("CI") else pytest.skip
        stop(f"needs {', '.join(missing)}")


def program(name: str) -> str | None:
    """Find a program on PATH, or beside the interpreter, where packages put theirs."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
