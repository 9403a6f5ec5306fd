"""Accounts nobody configured are shown as one."""

from dataclasses import replace

from proxy.rules.state import OTHER, AccountState, QueueState, merged


def queue(name: str, *, depth: int = 0, oldest: float = 0.0, interval: float = 0.5) -> QueueState:
    return QueueState(name=name, queue_depth=depth, oldest_seconds=oldest, interval=interval)


def account(
    name: str, *routes: QueueState, in_flight: int = 0, hold_remaining: float = 0.0
) -> AccountState:
    return AccountState(
        name=name, routes=routes, in_flight=in_flight, hold_remaining_seconds=hold_remaining
    )


def test_no_accounts_merge_to_nothing() -> None:
    assert merged([]) == ()


def test_accounts_of_different_names_stay_as_they_are_and_in_order() -> None:
    london = account("london", queue("exports", depth=3, oldest=1.5), in_flight=2)
    paris = account("paris", hold_remaining=9.0)
    assert merged([london, paris]) == (london, paris)


def test_accounts_of_one_name_sum_their_counts_and_show_their_longest_times() -> None:
    """A route only one of them uses is there too."""
    states = merged(
        [
            account(OTHER, queue("exports", depth=3, oldest=1.5), in_flight=2, hold_remaining=4.0),
            account("london", in_flight=7),
            account(
                OTHER,
                queue("exports", depth=4, oldest=0.5, interval=2.0),
                queue("api", depth=1, oldest=8.0, interval=0.0),
                in_flight=1,
                hold_remaining=9.0,
            ),
            account(OTHER),
        ]
    )
    assert states == (
        account(
            OTHER,
            queue("exports", depth=7, oldest=1.5, interval=2.0),
            queue("api", depth=1, oldest=8.0, interval=0.0),
            in_flight=3,
            hold_remaining=9.0,
        ),
        account("london", in_flight=7),
    )


def test_a_queue_shown_as_one_sums_its_sends_and_shows_its_longest_hold() -> None:
    """Two gaps say nothing of one pace, so there is none then."""
    first = replace(
        queue("exports"),
        sent=3,
        last_gap_seconds=0.5,
        hold_remaining_seconds=4.0,
        hold_named_seconds=4.0,
    )
    second = replace(
        queue("exports"),
        sent=4,
        last_gap_seconds=0.6,
        hold_remaining_seconds=2.0,
        hold_named_seconds=90.0,
        hold_limit="exports.per.day",
    )
    alone = replace(queue("polls"), sent=9, last_gap_seconds=0.7)
    (one,) = merged([account(OTHER, first, alone), account(OTHER, second)])
    assert one.routes == (
        replace(second, sent=7, last_gap_seconds=None, hold_remaining_seconds=4.0),
        alone,
    )


def test_accounts_shown_as_one_show_the_hold_the_api_named_and_its_limit() -> None:
    first = replace(account(OTHER), hold_named_seconds=7.0)
    second = replace(account(OTHER), hold_named_seconds=90.0, hold_limit="per.minute")
    (one,) = merged([first, second])
    assert (one.hold_named_seconds, one.hold_limit) == (90.0, "per.minute")


def test_accounts_shown_as_one_are_observed_if_one_of_them_is() -> None:
    (one,) = merged([account(OTHER), replace(account(OTHER), observed=True)])
    assert one.observed
    (one,) = merged([account(OTHER), account(OTHER)])
    assert not one.observed
