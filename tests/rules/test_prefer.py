"""Prefer: the first wait counts, and whatever else stands there is ignored."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.rules.prefer import LONGEST_WAIT_SECONDS, prefer_wait


@pytest.mark.parametrize(
    ("values", "seconds"),
    [
        (["wait=10"], 10.0),
        (["wait=0"], 0.0),
        (["wait=007"], 7.0),
        (["WAIT=10"], 10.0),
        (["  wait \t=\t 10 "], 10.0),
        (['wait="10"'], 10.0),
        (["wait=10;x"], 10.0),
        (["wait=10 ; x=y; z"], 10.0),
        (["wait=10;"], 10.0),
        (["respond-async, wait=10; foo=bar"], 10.0),
        (["respond-async,wait=10,handling=lenient"], 10.0),
        ([",, ,wait=10"], 10.0),
        (["respond-async", "wait=10"], 10.0),
        (["wait=10, wait=20"], 10.0),
        (["wait=20", "wait=10"], 20.0),
        (["@@@, wait=10"], 10.0),
        (['foo="a, wait=5", wait=10'], 10.0),
        (['foo="a\\", wait=5", wait=10'], 10.0),
        (["foo; wait=5, wait=10"], 10.0),
        (["waiting=5, await=6, wait-x=7, wait=10"], 10.0),
        (["wait=1000000000"], LONGEST_WAIT_SECONDS),
        (["wait=" + "9" * 5000], LONGEST_WAIT_SECONDS),
    ],
)
def test_wait(values: list[str], seconds: float) -> None:
    """Found in any field, in any spelling the grammar has."""
    assert prefer_wait(values) == seconds


@pytest.mark.parametrize(
    "values",
    [
        [],
        [""],
        ["respond-async"],
        ["wait"],
        ["wait="],
        ['wait=""'],
        ['wait="10'],
        ['wait=10"'],
        ["wait=-1"],
        ["wait=+1"],
        ["wait=1.5"],
        ["wait=1e3"],
        ["wait=nan"],
        ["wait=٣"],
        ["wait=10 x"],
        ["wait 10"],
        ["wait;wait=10"],
        ["wa\u0131t=10"],
        ["foo; wait=5"],
        ['foo="wait=5'],
        ['foo="a, wait=5'],
        ['foo="a\\", wait=5'],
        ['foo="a, wait=5, b\\'],
        ["wait=abc, wait=10"],
        ["wait", "wait=10"],
    ],
)
def test_no_valid_wait(values: list[str]) -> None:
    """An invalid one is ignored and does not give way to a second (RFC 7240 section 2)."""
    assert prefer_wait(values) is None


PREFER_LIKE = st.text(st.sampled_from('wait=,;"\\ \t0129x')) | st.text()


@given(st.lists(PREFER_LIKE | PREFER_LIKE.map(lambda text: f"wait={text}"), max_size=3))
def test_any_text_is_a_bounded_wait_or_none(values: list[str]) -> None:
    """It never raises, and what it returns is a time."""
    seconds = prefer_wait(values)
    assert seconds is None or 0.0 <= seconds <= LONGEST_WAIT_SECONDS


@given(
    before=st.lists(st.sampled_from(["a", "b=c", 'd="e,\\"f"', "g;h=i", ""])),
    seconds=st.integers(min_value=0, max_value=10**6),
)
def test_preferences_before_it_do_not_hide_it(before: list[str], seconds: int) -> None:
    """A list is read to its end."""
    assert prefer_wait([", ".join([*before, f"wait={seconds}"])]) == float(seconds)
