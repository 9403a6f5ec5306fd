"""What a release is made of: one version, a changelog that knows it, an audit that is judged."""

import re
import tomllib
from importlib.metadata import version as installed_version
from typing import Any

import pytest

from proxy import __version__
from tools import audit as audit_module
from tools.audit import Audit, main
from tools.release import ROOT, version

CLEAN = {"name": "aiohttp", "version": "3.14.5", "vulns": []}
BAD = {"name": "idna", "version": "1.0", "vulns": [{"id": "PYSEC-2024-60"}]}
UNKNOWN = {"name": "yarl", "skip_reason": "not found"}


def test_the_version_stands_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["dynamic"] == ["version"]
    assert version() == __version__ == installed_version("export-proxy")


def test_the_changelog_names_what_is_released_newest_first() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## \[(.+?)\]", text, re.MULTILINE)
    assert headings[0] in {"Unreleased", __version__}


@pytest.mark.parametrize(
    ("packages", "code", "said"),
    [
        ([CLEAN], 0, "1 packages without a known vulnerability"),
        ([CLEAN, UNKNOWN], 0, "nothing is known of yarl"),
        ([CLEAN, BAD], 1, "idna 1.0: PYSEC-2024-60"),
        ([BAD], 1, "idna 1.0: PYSEC-2024-60"),
        ([UNKNOWN], 0, "not done, the advisory service cannot be reached"),
        (None, 0, "not done, the advisory service cannot be reached"),
    ],
)
def test_only_a_known_vulnerability_fails_an_audit(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    packages: list[dict[str, Any]] | None,
    code: int,
    said: str,
) -> None:
    report = None if packages is None else Audit.of_report({"dependencies": packages})
    monkeypatch.setattr(audit_module, "audit", lambda _: report)
    assert main("pip-audit") == code
    assert f"audit: {said}" in capsys.readouterr().out
