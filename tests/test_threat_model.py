"""The threat model names tests; each of them exists."""

import re
from pathlib import Path

HERE = Path(__file__).parent
DOCUMENT = HERE.parent / "docs" / "threat-model.md"


def test_every_test_that_the_threat_model_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", DOCUMENT.read_text(encoding="utf-8")))
    sources = (path.read_text(encoding="utf-8") for path in HERE.rglob("test_*.py"))
    existing = {name for text in sources for name in re.findall(r"def (test_\w+)", text)}
    assert len(named) > 40
    assert named <= existing, sorted(named - existing)
