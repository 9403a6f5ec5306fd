"""The demo, as the command that a reader of the README runs first."""

import os
import subprocess
import sys

import pytest


@pytest.mark.timed
def test_the_command_shows_its_progress_and_that_every_promise_held() -> None:
    """Also that it takes less than 20 s."""
    not_a_terminal = {"FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"}
    environment = {name: value for name, value in os.environ.items() if name not in not_a_terminal}
    demo = subprocess.run(
        [sys.executable, "-m", "proxy", "demo"],
        env=environment | {"COLUMNS": "80"},
        capture_output=True,
        encoding="utf-8",
        timeout=20,
        check=False,
    )
    lines = demo.stdout.splitlines()
    rows = [line.split() for line in lines]
    assert (demo.returncode, demo.stderr) == (0, ""), demo.stdout
    assert ["voice-exports", "12", "0"] in [row[:3] for row in rows]
    assert ["chat-exports", "12", "0"] in [row[:3] for row in rows]
    assert [row[-2:] for row in rows if row[:1] == ["chat-exports"]] == [["5.50", "s"]]
    assert any("waiting, 1 hung up; chat-exports: " in line for line in lines)
    assert lines[-1].startswith("Held: ")
