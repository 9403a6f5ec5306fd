"""Holds, and the phases of an account: open, held, probing."""

from dataclasses import replace
from math import inf

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.rules.hold import Hold, HoldState, hold_after

MOMENTS = st.floats(0, 1e6)
HOLD = Hold(5.0, 15.0, 2, 15.0)
OPEN = HoldState()
HELD = HoldState(HOLD)
PROBING = HoldState(HOLD, probes=1, probing_since=20.0)
PROBING_TWICE = HoldState(HOLD, probes=2, probing_since=20.0)


@pytest.mark.parametrize(("now", "left"), [(9.0, 6.0), (14.5, 0.5), (15.0, 0.0), (99.0, 0.0)])
def test_what_remains_of_a_hold_is_never_negative(now: float, left: float) -> None:
    assert Hold(since=5.0, until=15.0).remaining(now) == left


@pytest.mark.parametrize(("now", "kept"), [(5.0, 0.0), (9.0, 4.0), (15.0, 10.0), (9999.0, 10.0)])
def test_time_on_hold_ends_with_the_hold(now: float, kept: float) -> None:
    """However late the probe comes: an account nobody uses is not on hold all night."""
    assert Hold(since=5.0, until=15.0).kept(now) == kept


def test_first_refusal_begins_a_hold() -> None:
    assert hold_after(None, now=5.0, until=15.0, refusals=1) == Hold(5.0, 15.0, 1, 15.0)


def test_hold_that_would_end_before_it_begins_is_over_at_once() -> None:
    """Retry-After 0 asks for the normal pace, which may already be past."""
    assert hold_after(None, now=5.0, until=4.0, refusals=0) == Hold(5.0, 5.0, 0, 5.0)


@pytest.mark.parametrize(
    ("until", "refusals", "held"),
    [
        (12.0, 0, HOLD),
        (15.0, 2, HOLD),
        (20.0, 0, Hold(5.0, 20.0, 2, 20.0)),
        (12.0, 3, Hold(5.0, 15.0, 3, 15.0)),
    ],
)
def test_longer_hold_is_never_shortened(until: float, refusals: int, held: Hold) -> None:
    assert hold_after(HOLD, now=6.0, until=until, refusals=refusals) == held


def test_time_between_two_holds_counts_for_neither() -> None:
    """Ten seconds on hold, an hour without any traffic, ten seconds more: twenty."""
    renewed = hold_after(Hold(0.0, 10.0), now=3610.0, until=3620.0, refusals=0)
    assert renewed.kept(3620.0) == 20.0
    assert renewed.remaining(3610.0) == 10.0


@given(st.lists(st.tuples(MOMENTS, MOMENTS, st.integers(0, 9)), min_size=1, max_size=20))
@example([(1.123634244024288, 0.0, 0), (524289.666116034, 0.0, 0)])
def test_any_refusals_only_ever_prolong_a_hold(refusals: list[tuple[float, float, int]]) -> None:
    hold: Hold | None = None
    for now, until, count in sorted(refusals):
        before = hold
        hold = hold_after(before, now=now, until=until, refusals=count)
        assert hold.until >= max(now, until)
        assert 0.0 <= hold.kept(now) <= now
        if before is not None:
            assert hold.until >= before.until
            assert hold.refusals >= before.refusals


def test_named_wait_is_kept_beside_the_clamped_end() -> None:
    """It is told to callers for as long as it lasts, over probes that are refused."""
    hold = hold_after(None, now=5.0, until=305.0, refusals=0, named_until=41005.0)
    assert (hold.remaining(6.0), hold.named_remaining(6.0)) == (299.0, 40999.0)
    again = hold_after(hold, now=306.0, until=606.0, refusals=0, named_until=41004.0)
    assert (again.until, again.named_until) == (606.0, 41005.0)
    assert again.named_remaining(50_000.0) == 0.0


def test_name_of_the_limit_is_that_of_the_last_refusal_that_told_it() -> None:
    hold = hold_after(None, now=5.0, until=15.0, refusals=0, limit="a.key")
    assert hold_after(hold, now=6.0, until=15.0, refusals=0).limit == "a.key"
    assert hold_after(hold, now=6.0, until=15.0, refusals=0, limit="b.key").limit == "b.key"


@pytest.mark.parametrize(
    ("state", "now", "opens"),
    [
        (OPEN, 9.0, 9.0),
        (HELD, 9.0, 15.0),
        (HELD, 20.0, 15.0),
        (PROBING, 20.5, 22.0),
        (replace(PROBING, hold=Hold(5.0, 30.0)), 20.5, 30.0),
        (PROBING_TWICE, 99.0, inf),
    ],
)
def test_slot_is_granted_if_open_or_after_the_hold_or_beside_a_slow_probe(
    state: HoldState, now: float, opens: float
) -> None:
    """Two seconds after the first probe a second one goes, and no third."""
    assert state.opens_at(now) == opens


@pytest.mark.parametrize(
    ("state", "now", "is_probe", "may"),
    [
        (OPEN, 9.0, False, True),
        (HELD, 20.0, False, False),
        (PROBING, 14.9, True, False),
        (PROBING, 15.0, True, True),
        (PROBING, 20.0, False, False),
    ],
)
def test_only_a_probe_may_leave_before_an_answer(
    state: HoldState,
    now: float,
    is_probe: bool,  # noqa: FBT001 -- a row of the table
    may: bool,  # noqa: FBT001 -- likewise
) -> None:
    assert state.may_leave(now, is_probe=is_probe) is may


@pytest.mark.parametrize(
    ("state", "granted"), [(OPEN, OPEN), (HELD, PROBING), (PROBING, PROBING_TWICE)]
)
def test_slot_granted_on_hold_is_a_probe(state: HoldState, granted: HoldState) -> None:
    """The two seconds count from the first of them."""
    assert state.granted(20.0) == granted
    assert PROBING.granted(22.0) == PROBING_TWICE


@pytest.mark.parametrize("state", [HELD, PROBING])
def test_refusal_prolongs_the_hold_and_leaves_the_phase(state: HoldState) -> None:
    assert state.held(now=6.0, until=30.0) == replace(state, hold=Hold(5.0, 30.0, 2, 30.0))


def test_refusal_begins_a_hold() -> None:
    assert OPEN.held(now=6.0, until=30.0, refusals=1) == HoldState(Hold(6.0, 30.0, 1, 30.0))


@pytest.mark.parametrize(
    ("state", "is_probe", "refusals"), [(OPEN, False, 1), (HELD, False, 2), (PROBING, True, 3)]
)
def test_refusals_count_in_a_row_by_the_probe(
    state: HoldState,
    is_probe: bool,  # noqa: FBT001 -- a row of the table
    refusals: int,
) -> None:
    assert state.refusals_after(is_probe=is_probe) == refusals


def test_refused_probe_makes_those_beside_it_none() -> None:
    """They prove nothing any more, and do not count as under way."""
    assert PROBING_TWICE.probes_ended().opens_at(20.0) == 15.0


@pytest.mark.parametrize(
    ("now", "accepted", "opens"), [(20.0, True, 20.0), (14.0, True, 15.0), (20.0, False, 15.0)]
)
def test_accepted_probe_opens_if_the_hold_is_over(
    now: float,
    accepted: bool,  # noqa: FBT001 -- a row of the table
    opens: float,
) -> None:
    assert PROBING.probe_ended(now, accepted=accepted).opens_at(now) == opens


def test_seconds_on_hold_are_kept_when_it_ends() -> None:
    opened = PROBING.probe_ended(20.0, accepted=True)
    assert (opened.held_seconds(99.0), opened.remaining(20.0)) == (10.0, 0.0)
    again = opened.held(now=100.0, until=104.0)
    assert (again.held_seconds(102.0), again.remaining(102.0)) == (12.0, 2.0)


def test_a_hold_longer_than_the_named_wait_is_the_one_that_is_left() -> None:
    hold = hold_after(None, now=5.0, until=15.0, refusals=0, named_until=10.0)
    assert hold.named_remaining(6.0) == 9.0


def test_a_hold_that_is_only_told_counts_as_no_refusal() -> None:
    hold = HoldState().held(now=0.0, until=5.0).hold
    assert hold is not None
    assert hold.refusals == 0
