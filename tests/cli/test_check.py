"""`check` refuses what would only show when the proxy runs."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from proxy.cli.commands import _cli

CONFIG = """
upstream: {{api_url: "https://api.example", login_url: "https://login.example"}}
accounts:
  - {{name: london, client_id: id, client_secret_file: {file}}}
"""


@pytest.mark.parametrize(
    ("secret", "code"), [("s+%c r\n", 0), ("s\r\n", 0), ("a\tb\n", 2), ("a\nb", 2), ("a\x00", 2)]
)
def test_secret_file_may_end_in_a_newline_and_hold_no_other_control_character(
    tmp_path: Path, secret: str, code: int
) -> None:
    file, config = tmp_path / "secret", tmp_path / "proxy.yaml"
    file.write_text(secret, encoding="utf-8", newline="")
    config.write_text(CONFIG.format(file=file), encoding="utf-8")
    result = CliRunner().invoke(_cli, ["check", "--config", str(config)])
    assert result.exit_code == code
    if code:
        assert "accounts[0].client_secret_file: " in result.output
        assert "control character" in result.output.replace("\n", " ")


def test_secret_of_the_environment_is_judged_alike(tmp_path: Path) -> None:
    config = tmp_path / "proxy.yaml"
    text = CONFIG.replace("client_secret_file: {file}", 'client_secret: "a\\tb"')
    config.write_text(text.format(), encoding="utf-8")
    result = CliRunner().invoke(_cli, ["check", "--config", str(config)])
    assert result.exit_code == 2
    assert "accounts[0].client_secret: must not hold a control character" in result.output
