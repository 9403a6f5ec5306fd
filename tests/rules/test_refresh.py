"""A token is minted for a reason, as seldom as that allows, whatever asks for it."""

from collections.abc import Callable
from itertools import pairwise
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.rules.refresh import Reason, Schedule, Window, renew_at

A = frozenset({"a"})
B = frozenset({"b"})
NONE: frozenset[str] = frozenset()


@pytest.mark.parametrize(
    ("lifetime", "margin", "jitter", "at"),
    [
        (86_400.0, 60.0, 0.0, 86_340.0),
        (3600.0, 60.0, 0.0, 3540.0),
        (3600.0, 60.0, 0.999, 3534.006),
        (300.0, 60.0, 0.0, 240.0),
        (100.0, 60.0, 0.0, 80.0),
        (100.0, 60.0, 0.5, 79.0),
        (30.0, 60.0, 0.0, 24.0),
        (1.0, 60.0, 0.0, 0.8),
        (100.0, 0.0, 0.9, 100.0),
        (100.0, 1000.0, 0.0, 80.0),
    ],
)
def test_renewal_at_the_margin_or_at_four_fifths_of_life_whichever_is_later(
    lifetime: float, margin: float, jitter: float, at: float
) -> None:
    assert renew_at(
        received_at=500.0, expires_at=500.0 + lifetime, margin=margin, jitter=jitter
    ) == pytest.approx(500.0 + at)


@given(
    lifetime=st.floats(0.001, 1e6),
    margin=st.floats(0, 1e6),
    jitter=st.floats(0, 1, exclude_max=True),
)
def test_renewal_is_never_after_expiry_nor_before_most_of_life_is_over(
    lifetime: float, margin: float, jitter: float
) -> None:
    at = renew_at(received_at=0.0, expires_at=lifetime, margin=margin, jitter=jitter)
    assert 0.78 * lifetime - 1e-9 <= at <= lifetime


def test_a_window_renews_in_steps_that_double_and_closes() -> None:
    window = Window(closes_at=400.0, next_at=15.0, step=30.0, longest_step=120.0)
    times = []
    while window.next_at is not None:
        times.append(window.next_at)
        window = window.after_renewal(window.next_at)
    assert times == [15.0, 45.0, 105.0, 225.0, 345.0]
    assert window.after_renewal(350.0).next_at is None, "a window that is over stays so"


class Login:
    """A schedule and its login server, which answers at once."""

    def __init__(self, *, min_interval: float = 15.0, window: float = 900.0) -> None:
        self.schedule = Schedule(min_interval=min_interval, window_length=window)
        self.held: frozenset[str] | None = NONE
        self.lifetime = 86_400.0
        self.fails = False
        self.mints: list[tuple[float, Reason]] = []

    def mint(self, now: float) -> None:
        self.mints.append((now, self.schedule.next_mint()[1]))
        self.schedule.begin(now)
        if self.fails:
            self.schedule.fail(now, pause=5.0)
        else:
            self.schedule.succeed(now, renew_at=now + self.lifetime, held=self.held)

    def live(
        self, until: float, every: float = 1.0, request: Callable[[float], object] = lambda _: None
    ) -> list[float]:
        """Make a request each so often, minting whatever is due; return when that was."""
        before = len(self.mints)
        for tick in range(int(until / every) + 1):
            now = tick * every
            request(now)
            while self.schedule.next_mint()[0] <= now:
                self.mint(now)
        return [at for at, _ in self.mints[before:]]


def test_the_first_token_is_due_at_once() -> None:
    schedule = Login().schedule
    assert schedule.next_mint() == (-inf, "startup")
    assert schedule.is_due(0.0)


def test_the_next_one_when_it_is_to_be_renewed() -> None:
    login = Login()
    login.mint(0.0)
    assert login.schedule.next_mint() == (86_400.0, "expiry")
    assert not login.schedule.is_due(86_399.0)
    assert login.schedule.is_due(86_400.0)


def test_a_token_that_lives_shorter_than_the_least_interval_is_not_minted_more_often() -> None:
    login = Login()
    login.lifetime = 1.0
    assert login.live(60.0) == [0.0, 15.0, 30.0, 45.0, 60.0]


def test_failures_are_repeated_after_their_pause() -> None:
    login = Login()
    login.fails = True
    assert login.live(12.0) == [0.0, 5.0, 10.0]
    assert [reason for _, reason in login.mints] == ["startup", "expiry", "expiry"]


def test_a_pause_ends_early_when_its_reason_is_gone() -> None:
    login = Login()
    login.fails = True
    login.mint(0.0)
    assert not login.schedule.is_due(1.0)
    login.schedule.allow_now()
    assert login.schedule.is_due(1.0)


def test_a_missing_scope_of_a_fresh_token_is_waited_for_in_steps() -> None:
    """Its scope is first missed five seconds after it came."""
    login = Login()
    login.mint(0.0)
    login.schedule.want(A, 5.0)
    assert login.schedule.next_mint() == (15.0, "stale_scope")
    assert not login.schedule.is_due(14.9)
    assert login.live(1500.0) == [15, 45, 105, 225, 345, 465, 585, 705, 825]


def test_a_missing_scope_of_an_old_token_is_one_renewal_at_once_and_then_the_steps() -> None:
    login = Login()
    login.mint(-100.0)
    login.schedule.want(A, 0.0)
    assert login.schedule.is_due(0.0)
    assert login.live(1500.0) == [0, 15, 45, 105, 225, 345, 465, 585, 705, 825]


def test_a_scope_nobody_grants_costs_the_same_at_any_rate() -> None:
    """Ten requests a second for fifteen minutes; then a renewal on demand every two minutes."""
    login = Login()
    times = login.live(1400.0, 0.1, lambda now: login.schedule.want(A, now))
    assert len([at for at in times if at <= 900]) <= 12
    assert [round(at) for at in times] == [
        *(0, 15, 45, 105, 225, 345, 465, 585, 705, 825),
        *(945, 1065, 1185, 1305),
    ]
    assert not login.schedule.is_window_open


def test_no_request_after_the_window_means_no_mint() -> None:
    login = Login()
    login.mint(0.0)
    login.schedule.want(A, 1.0)
    login.live(3000.0)
    assert login.schedule.next_mint()[1] == "expiry"
    login.schedule.want(A, 3000.0)
    assert login.schedule.is_due(3000.0)
    assert login.schedule.next_mint()[1] == "stale_scope"
    assert not login.schedule.is_window_open, "there is no promise of a next renewal"


def test_on_demand_means_no_sooner_than_the_login_server_allows() -> None:
    login = Login(window=0.0)
    login.mint(0.0)
    login.schedule.want(A, 1.0)
    login.schedule.begin(100.0)
    login.schedule.fail(100.0, pause=300.0)
    login.schedule.want(A, 399.0)
    assert not login.schedule.is_due(399.0)
    login.schedule.want(A, 400.0)
    assert login.schedule.is_due(400.0)


def test_a_scope_that_appears_closes_the_window() -> None:
    login = Login()
    login.mint(0.0)
    login.schedule.want(A, 1.0)
    assert (login.schedule.missing, login.schedule.is_window_open) == (A, True)
    login.held = A
    assert login.live(600.0) == [15.0]
    assert (login.schedule.missing, login.schedule.is_window_open) == (NONE, False)


def test_a_token_that_does_not_say_what_it_holds_misses_nothing() -> None:
    login = Login()
    login.mint(0.0)
    login.schedule.want(A, 1.0)
    login.held = None
    assert login.live(600.0) == [15.0]
    assert login.schedule.missing == NONE


def test_another_scope_opens_the_window_anew() -> None:
    """Its first renewal comes at once; the scope missed before is still missed."""
    login = Login()
    login.mint(0.0)
    login.schedule.want(A, 1.0)
    login.live(850.0)
    login.schedule.want(B, 851.0)
    assert login.schedule.is_due(851.0)
    login.mint(851.0)
    assert login.schedule.missing == A | B
    assert login.schedule.next_mint() == (866.0, "stale_scope")
    login.schedule.want(A, 852.0)
    assert login.schedule.next_mint() == (866.0, "stale_scope")


def test_a_short_window_has_no_renewals() -> None:
    login = Login(window=10.0)
    login.mint(0.0)
    login.schedule.want(A, 1.0)
    assert not login.schedule.is_window_open
    assert login.live(100.0, 0.1, lambda now: login.schedule.want(A, now)) == []


def test_a_least_interval_above_the_longest_step_is_kept() -> None:
    login = Login(min_interval=300.0, window=2000.0)
    times = login.live(3000.0, 1.0, lambda now: login.schedule.want(A, now))
    assert times == [0, 300, 600, 900, 1200, 1500, 1800, 2100, 2400, 2700, 3000]


def test_a_failure_keeps_the_window_as_it_is() -> None:
    """A login server that is back is asked when its pause is over, not a step later."""
    login = Login()
    login.mint(0.0)
    login.schedule.want(A, 1.0)
    login.fails = True
    login.live(24.0)
    login.fails = False
    assert login.live(200.0)[:3] == [25.0, 55.0, 115.0]


def test_request_that_comes_while_a_token_is_minted_is_served_by_it() -> None:
    schedule = Login().schedule
    schedule.begin(0.0)
    assert schedule.is_due(0.5)
    assert schedule.order_renewal("unauthorized", 0.5)
    assert schedule.order_renewal("stale_scope", 0.5)
    schedule.want(A, 0.5)
    schedule.succeed(1.0, renew_at=3600.0, held=NONE)
    assert not schedule.is_due(1.0)
    assert schedule.next_mint() == (16.0, "stale_scope")


@pytest.mark.parametrize("reason", ["unauthorized", "stale_scope", "operator"])
def test_no_renewal_within_the_least_interval(reason: Reason) -> None:
    login = Login()
    login.mint(0.0)
    assert not login.schedule.order_renewal(reason, 14.9)
    assert not login.schedule.is_due(14.9)
    assert login.schedule.order_renewal(reason, 15.0)
    assert login.schedule.next_mint()[1] == reason
    assert login.schedule.is_due(15.0)


def test_two_requests_at_once_are_promised_the_one_token_that_comes() -> None:
    login = Login()
    login.mint(0.0)
    assert login.schedule.order_renewal("stale_scope", 20.0)
    assert login.schedule.order_renewal("stale_scope", 20.0)
    assert login.schedule.order_renewal("unauthorized", 20.0)
    assert login.schedule.next_mint()[1] == "stale_scope"
    login.mint(20.0)
    assert not login.schedule.is_due(34.9)


def test_a_token_that_is_asked_for_too_soon_comes_when_it_may() -> None:
    """Until then nobody is promised one."""
    login = Login()
    login.mint(0.0)
    login.schedule.order("operator")
    assert login.schedule.next_mint() == (15.0, "operator")
    assert not login.schedule.order_renewal("unauthorized", 14.9)
    assert login.schedule.order_renewal("unauthorized", 15.0)
    assert login.schedule.next_mint() == (15.0, "operator")


def test_renewals_because_of_403s_double_their_distance() -> None:
    login = Login()
    times = login.live(700.0, 1.0, lambda now: login.schedule.order_renewal("stale_scope", now))
    assert times == [0, 15, 45, 105, 225, 345, 465, 585]


def test_the_distance_decays_when_the_403s_end() -> None:
    login = Login()
    login.live(110.0, 1.0, lambda now: login.schedule.order_renewal("stale_scope", now))
    assert login.mints[-1][0] == 105.0
    assert not login.schedule.order_renewal("stale_scope", 224.0)
    assert login.schedule.order_renewal("stale_scope", 345.0), "twice the distance was quiet"
    login.mint(345.0)
    assert not login.schedule.order_renewal("stale_scope", 374.0)
    assert login.schedule.order_renewal("stale_scope", 375.0)


def test_a_403_leaves_an_open_window_to_its_timer_and_a_closed_one_to_its_step() -> None:
    login = Login(window=100.0)
    login.mint(0.0)
    login.schedule.want(A, 1.0)
    assert not login.schedule.order_renewal("stale_scope", 16.0)
    login.live(100.0)
    assert login.mints[-1][0] == 45.0
    assert not login.schedule.order_renewal("stale_scope", 164.0)
    assert login.schedule.order_renewal("stale_scope", 165.0)


def test_a_401_is_not_slowed_down_by_403s_or_a_window() -> None:
    login = Login()
    login.mint(0.0)
    login.schedule.want(A, 1.0)
    login.live(50.0)
    assert login.schedule.order_renewal("unauthorized", 60.0)


REASONS: list[Reason | None] = ["unauthorized", "stale_scope", "operator", None]
REQUESTS = st.tuples(
    st.floats(0.0, 40.0),
    st.sampled_from([A, B, NONE]),
    st.sampled_from(REASONS),
    st.sampled_from(["ok", "fails", "grants a"]),
)


@given(st.lists(REQUESTS, max_size=60), st.floats(0.5, 200.0), st.floats(0.0, 300.0))
def test_never_two_tokens_within_the_least_interval(
    requests: list[tuple[float, frozenset[str], Reason | None, str]],
    min_interval: float,
    window: float,
) -> None:
    """Whatever is asked for; and it never spins, for a token that came puts off the next."""
    login = Login(min_interval=min_interval, window=window)
    login.lifetime = 50.0
    now = 0.0
    successes: list[float] = []
    for pause, wanted, reason, outcome in requests:
        now += pause
        login.schedule.want(wanted, now)
        if reason is not None:
            login.schedule.order_renewal(reason, now)
        login.fails = outcome == "fails"
        login.held = A if outcome == "grants a" else NONE
        if login.schedule.is_due(now):
            login.mint(now)
            assert not login.schedule.is_due(now)
            if not login.fails:
                successes.append(now)
        assert login.schedule.missing or not login.schedule.is_window_open
    for earlier, later in pairwise(successes):
        assert later - earlier >= min_interval - 1e-6


def test_new_settings_hold_from_the_next_token_on() -> None:
    login = Login(min_interval=15.0, window=900.0)
    login.mint(0.0)
    login.schedule.apply(min_interval=40.0, window_length=100.0)
    assert login.schedule.next_mint() == (86_400.0, "expiry")
    login.schedule.want(A, 20.0)
    assert login.live(1500.0) == [20.0, 60.0]


def test_the_next_token_comes_before_a_deadline_only_if_it_is_due_earlier() -> None:
    login = Login()
    login.mint(0.0)
    assert not login.schedule.comes_before(86_400.0)
    assert login.schedule.comes_before(86_400.1)


def test_the_next_token_is_due_in_the_seconds_that_are_left_or_at_once() -> None:
    login = Login()
    assert login.schedule.next_in(50.0) == 0.0
    login.mint(0.0)
    assert login.schedule.next_in(50.0) == 86_350.0
    assert login.schedule.next_in(86_399.5) == 0.5
    assert login.schedule.next_in(86_400.5) == 0.0


def test_a_schedule_that_mints_is_due_until_the_token_comes() -> None:
    schedule = Login().schedule
    schedule.not_before = 50.0
    assert not schedule.is_due(1.0)
    schedule.begin(1.0)
    assert schedule.is_due(1.0)
    schedule.succeed(1.0, renew_at=100.0, held=None)
    assert not schedule.is_due(1.0)


@pytest.mark.parametrize(("closes_at", "next_at"), [(45.0, 45.0), (44.9, None)])
def test_a_window_renews_at_the_moment_it_closes_and_not_later(
    closes_at: float, next_at: float | None
) -> None:
    window = Window(closes_at=closes_at, next_at=15.0, step=30.0, longest_step=120.0)
    assert window.after_renewal(15.0).next_at == next_at


def test_a_window_without_length_still_renews_once() -> None:
    schedule = Schedule(min_interval=15.0, window_length=0.0)
    schedule.begin(0.0)
    schedule.succeed(0.0, renew_at=86_400.0, held=NONE)
    schedule.want(A, 20.0)
    assert schedule.next_mint() == (20.0, "stale_scope")
