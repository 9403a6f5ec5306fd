"""What operators order, and what an account obeys: boundaries, ends, and what is refused."""

from math import inf, nan
from typing import Any

import pytest

from proxy.rules.orders import (
    FREE_HAND,
    NO_ORDERS,
    BadOrder,
    Orders,
    Pause,
    Resume,
    Slowdown,
    check_no_fields,
    kind_of,
    read_pause,
    read_slowdown,
    return_after_pause,
)
from proxy.rules.state import PauseState, SlowdownState

FOREVER = Pause(since=1000.0)
TEN = Pause(since=1000.0, until=110.0)  # from 100 on
SLOW = Slowdown(since=1000.0, until=130.0, interval=5.0)


def test_nothing_ordered_changes_nothing() -> None:
    assert not FREE_HAND.is_paused(0.0)
    assert not FREE_HAND.is_open_ended(0.0)
    assert FREE_HAND.opens_at(7.0) == 7.0
    assert FREE_HAND.opens_at(-inf) == -inf
    assert FREE_HAND.interval(0.0, 0.5) == 0.5
    assert FREE_HAND.pace_left(0.0, 0.3, 0.2) == 0.3
    assert (FREE_HAND.pause_left(0.0), FREE_HAND.held_seconds(0.0)) == (0.0, 0.0)
    assert FREE_HAND.ends_at() == inf
    assert FREE_HAND.at(5.0) is FREE_HAND


def test_a_pause_without_an_end_lasts_until_the_account_is_resumed() -> None:
    paused = FREE_HAND.obeying(Orders(FOREVER), 100.0)
    assert paused.is_paused(1e9)
    assert paused.is_open_ended(1e9)
    assert paused.opens_at(100.0) == inf
    assert paused.pause_left(100.0) == 0.0
    assert paused.ends_at() == inf
    resumed = paused.obeying(paused.orders.after(Resume()), 160.0)
    assert not resumed.is_paused(160.0)
    assert resumed.opens_at(-inf) == 160.0  # nobody is late before that
    assert resumed.held_seconds(500.0) == 60.0


def test_a_pause_with_an_end_is_over_at_that_moment() -> None:
    paused = FREE_HAND.obeying(Orders(TEN), 100.0)
    assert paused.is_paused(109.9)
    assert not paused.is_open_ended(109.9)
    assert not paused.is_paused(110.0)
    assert paused.opens_at(100.0) == 110.0
    assert paused.pause_left(104.0) == 6.0
    assert paused.ends_at() == 110.0
    assert paused.at(109.9) is paused
    over = paused.at(115.0)
    assert over.orders == NO_ORDERS
    assert over.opens_at(-inf) == 110.0
    assert paused.held_seconds(104.0) == 4.0
    assert paused.held_seconds(200.0) == over.held_seconds(200.0) == 10.0


def test_a_later_pause_replaces_the_one_before_and_its_time_counts_once() -> None:
    paused = FREE_HAND.obeying(Orders(TEN), 100.0).obeying(Orders(FOREVER), 105.0)
    assert paused.is_open_ended(120.0)
    assert paused.held_seconds(120.0) == 20.0
    shorter = paused.obeying(Orders(Pause(since=1.0, until=121.0)), 120.0)
    assert shorter.at(200.0).held_seconds(200.0) == 21.0


def test_pauses_one_after_the_other_add_up() -> None:
    control = FREE_HAND.obeying(Orders(TEN), 100.0)
    control = control.obeying(Orders(Pause(since=0.0, until=210.0)), 200.0)
    assert control.held_seconds(205.0) == 15.0


def test_an_order_that_is_over_when_it_comes_is_none() -> None:
    assert FREE_HAND.obeying(Orders(TEN, SLOW), 500.0).orders == NO_ORDERS


def test_the_larger_interval_is_in_force_and_only_while_the_order_lasts() -> None:
    control = FREE_HAND.obeying(Orders(None, SLOW), 100.0)
    assert control.interval(100.0, 0.5) == 5.0
    assert control.interval(100.0, 8.0) == 8.0  # a reload has raised it
    assert control.interval(129.9, 0.5) == 5.0
    assert control.interval(130.0, 0.5) == 0.5
    assert control.at(131.0).opens_at(-inf) == 130.0


def test_a_send_keeps_the_next_one_back_as_long_as_the_intervals_to_come_do() -> None:
    control = FREE_HAND.obeying(Orders(None, SLOW), 100.0)
    assert control.pace_left(110.0, 5.0, 0.5) == 5.0
    assert control.pace_left(128.0, 5.0, 0.5) == 2.0  # the order ends before
    assert control.pace_left(129.9, 5.0, 0.5) == 0.5
    assert control.pace_left(130.0, 0.7, 0.5) == 0.7  # it is over


def test_a_shorter_interval_makes_nobody_late() -> None:
    control = FREE_HAND.obeying(Orders(None, SLOW), 100.0)
    shorter = Slowdown(since=1000.0, until=130.0, interval=1.0)
    assert control.obeying(Orders(None, shorter), 120.0).opens_at(-inf) == 120.0
    longer = Slowdown(since=1000.0, until=130.0, interval=9.0)
    assert control.obeying(Orders(None, longer), 120.0).opens_at(-inf) == -inf


def test_the_same_orders_told_again_change_nothing() -> None:
    control = FREE_HAND.obeying(Orders(FOREVER, SLOW), 100.0)
    assert control.obeying(control.orders, 120.0) == control


def test_a_pause_and_an_interval_do_not_replace_each_other() -> None:
    orders = NO_ORDERS.after(FOREVER).after(SLOW)
    assert orders == Orders(FOREVER, SLOW)
    assert orders.after(Resume()) == Orders(None, SLOW)
    assert orders.after(TEN) == Orders(TEN, SLOW)
    assert [kind_of(one) for one in (FOREVER, Resume(), SLOW)] == ["pause", "pause", "slowdown"]


def test_an_interval_lasts_through_a_pause_that_ends() -> None:
    control = FREE_HAND.obeying(Orders(TEN, SLOW), 100.0).at(111.0)
    assert control.orders == Orders(None, SLOW)
    control = FREE_HAND.obeying(Orders(FOREVER, SLOW), 100.0).at(131.0)
    assert control.orders == Orders(FOREVER)
    assert control.held_seconds(140.0) == 40.0


def test_refused_callers_come_back_in_half_a_minute_to_a_minute() -> None:
    assert (return_after_pause(0.0), return_after_pause(0.999)) == (30, 60)


# What operators send


@pytest.mark.parametrize(
    ("document", "seconds"),
    [({}, inf), ({"for": None}, inf), ({"for": 1}, 1.0), ({"for": 86_400}, 86_400.0)],
    ids=str,
)
def test_a_pause_has_an_end_or_none(document: dict[str, Any], seconds: float) -> None:
    assert read_pause(document) == seconds


BAD_SECONDS = [0, -1, 86_400.1, "60", True, nan, inf, [60], {}]


@pytest.mark.parametrize("value", BAD_SECONDS, ids=str)
def test_a_pause_that_cannot_be_kept_names_the_field(value: Any) -> None:
    with pytest.raises(BadOrder, match=r"^for: must be "):
        read_pause({"for": value})


def test_an_unknown_field_is_named_with_the_known_ones() -> None:
    with pytest.raises(BadOrder, match=r"^'seconds': unknown field; known: for$"):
        read_pause({"seconds": 1})
    with pytest.raises(BadOrder, match=r"^'until': unknown field; known: for, seconds$"):
        read_slowdown({"seconds": 1, "for": 1, "until": 1}, configured=0.5)
    with pytest.raises(BadOrder, match=r"^'for': unknown field; none is known$"):
        check_no_fields({"for": 1})
    check_no_fields({})


def test_an_interval_is_at_least_the_configured_one_and_has_an_end() -> None:
    assert read_slowdown({"seconds": 0.5, "for": 60}, configured=0.5) == (0.5, 60.0)
    assert read_slowdown({"seconds": 3600, "for": 86_400}, configured=0.5) == (3600.0, 86_400.0)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"for": 60}, "seconds: is required"),
        ({"seconds": 1}, "for: is required"),
        ({"seconds": 1, "for": None}, "for: is required"),
        ({"seconds": 0.49, "for": 60}, "seconds: must not be below the configured interval of 0.5"),
        ({"seconds": 3601, "for": 60}, "seconds: must be above 0 and at most 3600"),
        ({"seconds": 1, "for": 86_401}, "for: must be above 0 and at most 86400"),
        ({"seconds": "1", "for": 60}, "seconds: must be a number of seconds"),
    ],
    ids=str,
)
def test_a_bad_interval_names_the_field(document: dict[str, Any], message: str) -> None:
    with pytest.raises(BadOrder) as refused:
        read_slowdown(document, configured=0.5)
    assert str(refused.value) == message


def test_only_the_beginning_of_a_long_field_name_is_shown() -> None:
    with pytest.raises(BadOrder, match=rf"^'{'x' * 40}': unknown field; none is known$"):
        check_no_fields({"x" * 50: 1})


def test_a_pause_is_shown_while_it_lasts() -> None:
    assert FREE_HAND.pause_state(100.0) is None
    paused = FREE_HAND.obeying(Orders(TEN), 100.0)
    assert paused.pause_state(104.0) == PauseState(since=1000.0, remaining_seconds=6.0)
    assert paused.pause_state(110.0) is None
    forever = FREE_HAND.obeying(Orders(FOREVER), 100.0)
    assert forever.pause_state(104.0) == PauseState(since=1000.0, remaining_seconds=None)


def test_an_ordered_interval_is_shown_while_it_lasts() -> None:
    assert FREE_HAND.slowdown_state(100.0) is None
    slowed = FREE_HAND.obeying(Orders(None, SLOW), 100.0)
    assert slowed.slowdown_state(129.0) == SlowdownState(
        since=1000.0, remaining_seconds=1.0, interval=5.0
    )
    assert slowed.slowdown_state(130.0) is None


def test_a_pause_counts_from_its_first_moment_on() -> None:
    paused = FREE_HAND.obeying(Orders(TEN), 100.0)
    assert [paused.held_seconds(now) for now in (100.0, 100.5)] == [0.0, 0.5]
    assert paused.pause_left(109.5) == 0.5


def test_any_ordered_interval_is_longer_than_none() -> None:
    short = Slowdown(since=1000.0, until=130.0, interval=0.6)
    assert FREE_HAND.obeying(Orders(None, short), 100.0).opens_at(-inf) == -inf
