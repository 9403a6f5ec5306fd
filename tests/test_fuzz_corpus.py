"""Every input that fuzzing found interesting, and those written by hand, once more."""

from pathlib import Path

import pytest

from fuzz.parsers import PARSERS

CORPUS = Path(__file__).parent.parent / "fuzz" / "corpus"
INPUTS = sorted(path for path in CORPUS.glob("*/*") if path.is_file())


def test_every_parser_has_a_corpus() -> None:
    assert {path.parent.name for path in INPUTS} == set(PARSERS)


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: f"{path.parent.name}: {path.name}")
def test_what_was_found_once_stays_harmless(path: Path) -> None:
    PARSERS[path.parent.name](path.read_bytes())
