"""What every test may use.

A test says which programs it needs. Where one is missing the test is skipped; in CI it fails.
"""

import os
import shutil
from importlib.util import find_spec

import pytest


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        needs(*marker.args)


def needs(*names: str) -> None:
    """Go on only where these programs (on PATH) or Python packages are installed.

    For fixtures; a test uses the marker: `@pytest.mark.needs("redis-server")`.
    """
    missing = [name for name in names if not shutil.which(name) and not find_spec(name)]
    if missing:
        stop = pytest.fail if os.environ.get("CI") else pytest.skip
        stop(f"needs {', '.join(missing)}")
