"""The last ten minutes of an account: no send and no gap is missed, and the memory is bounded."""

import pytest

from proxy.problems import Problem
from proxy.telemetry.history import SPAN, WINDOW, Held, History, Sends
from proxy.telemetry.refusals import Refusals

AT = 100_000.0


def test_the_smallest_gap_of_a_span_is_kept_however_many_sends_there_are() -> None:
    history = History()
    for at, gap in ((0.0, None), (0.5, 0.5), (0.9, 0.4), (1.5, 0.6)):
        history.sent("london", "exports", at=AT + at, gap=gap)
    history.sent("london", "exports", at=AT + SPAN, gap=3.5)
    assert history.sends("london", AT + 7.0) == {
        "exports": [Sends(7.0, 4, 0.4), Sends(7.0 - SPAN, 1, 3.5)]
    }


def test_a_first_send_has_no_gap_and_is_a_send() -> None:
    history = History()
    history.sent("london", "exports", at=AT, gap=None)
    assert history.sends("london", AT) == {"exports": [Sends(0.0, 1, None)]}


def test_what_is_older_than_the_window_is_forgotten() -> None:
    history = History()
    history.sent("london", "exports", at=AT, gap=1.0)
    assert history.sends("london", AT + WINDOW - SPAN)["exports"]
    assert history.sends("london", AT + WINDOW) == {"exports": []}
    history.sent("london", "exports", at=AT + WINDOW, gap=2.0)  # the same place of the ring
    assert history.sends("london", AT + WINDOW) == {"exports": [Sends(0.0, 1, 2.0)]}


def test_a_day_of_sends_takes_no_more_than_the_window() -> None:
    history = History()
    for second in range(86_400):
        history.sent("london", "exports", at=AT + second, gap=1.0)
    (spans,) = history.sends("london", AT + 86_399).values()
    assert len(spans) == WINDOW / SPAN
    assert sum(one.count for one in spans) == WINDOW


def test_a_hold_that_is_prolonged_is_one_hold() -> None:
    history = History()
    history.held("london", None, begun=AT, until=AT + 2)
    history.held("london", "exports", begun=AT + 1, until=AT + 9)
    history.held("london", None, begun=AT + 2, until=AT + 30)
    assert history.holds("london", AT + 10) == [
        Held(None, 10.0, 0.0),
        Held("exports", 9.0, 1.0),
    ]


def test_holds_are_bounded_and_leave_the_window() -> None:
    history = History()
    for number in range(1000):
        history.held("london", None, begun=AT + 10 * number, until=AT + 10 * number + 1)
    now = AT + 10_000
    assert len(history.holds("london", now)) <= 60
    assert history.holds("london", now + WINDOW) == []


def test_accounts_that_are_configured_no_more_are_forgotten() -> None:
    history = History()
    for name in ("london", "paris", "other"):
        history.sent(name, "exports", at=AT, gap=None)
        history.held(name, None, begun=AT, until=AT + 1)
    history.keep(["paris"])
    assert sorted(history.accounts()) == ["other", "paris"]
    assert history.sends("london", AT) == {}
    assert history.holds("london", AT) == []


@pytest.mark.parametrize(("pause", "counts"), [(600.0, [3]), (600.1, [2])], ids=["one", "anew"])
def test_refusals_of_one_type_are_one_group(pause: float, counts: list[int]) -> None:
    refusals = Refusals()
    full = Problem("route-denied", "Full.")
    refusals.note("london", full, at=AT)
    refusals.note("london", full, at=AT + pause)
    refusals.note("london", Problem("route-denied", "Still full."), at=AT + pause + 1)
    (group,) = refusals.all()["london"]
    assert [group.count] == counts
    assert (group.detail, group.at) == ("Still full.", AT + pause + 1)
    assert group.since == (AT if counts == [3] else AT + pause)


def test_the_group_with_the_newest_refusal_is_first() -> None:
    refusals = Refusals()
    for at, name in enumerate(("route-denied", "loop", "route-denied")):
        refusals.note("london", Problem(name, "One."), at=float(at))  # type: ignore[arg-type]  # a name each
    assert [(one.type, one.count) for one in refusals.all()["london"]] == [
        ("urn:export-proxy:route-denied", 2),
        ("urn:export-proxy:loop", 1),
    ]
