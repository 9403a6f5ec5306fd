"""The command line's own words."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from proxy.cli.commands import _cli  # the application itself

UPSTREAM = "upstream: {api_url: 'https://api.example', login_url: 'https://login.example'}\n"


@pytest.mark.parametrize(("url", "is_said"), [("redis://store:6379/0", True), ("memory://", False)])
def test_check_says_what_the_timeout_of_a_shared_store_must_be_for(
    url: str, tmp_path: Path, *, is_said: bool
) -> None:
    config = tmp_path / "proxy.yaml"
    config.write_text(f"{UPSTREAM}store: {{url: '{url}', timeout: 0.3}}\n")
    result = CliRunner().invoke(_cli, ["check", "--config", str(config)])
    assert result.exit_code == 0
    assert ("store.timeout: 0.3 s is the time for one answer" in result.output) is is_said
