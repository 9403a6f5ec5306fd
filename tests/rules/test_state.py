"""Accounts nobody configured are shown as one."""

from proxy.rules.state import OTHER, AccountState, QueueState, merged


def line(name: str, *, depth: int = 0, oldest: float = 0.0, interval: float = 0.5) -> QueueState:
    return QueueState(name=name, queue_depth=depth, oldest_seconds=oldest, interval=interval)


def account(
    name: str, *routes: QueueState, in_flight: int = 0, hold_remaining: float = 0.0
) -> AccountState:
    return AccountState(
        name=name, routes=routes, in_flight=in_flight, hold_remaining_seconds=hold_remaining
    )


def test_nobody_is_nothing() -> None:
    assert merged([]) == ()


def test_accounts_of_different_names_stay_as_they_are_and_in_order() -> None:
    london = account("london", line("exports", depth=3, oldest=1.5), in_flight=2)
    paris = account("paris", hold_remaining=9.0)
    assert merged([london, paris]) == (london, paris)


def test_accounts_of_one_name_sum_their_counts_and_show_their_longest_times() -> None:
    """A route only one of them uses is there too."""
    states = merged(
        [
            account(OTHER, line("exports", depth=3, oldest=1.5), in_flight=2, hold_remaining=4.0),
            account("london", in_flight=7),
            account(
                OTHER,
                line("exports", depth=4, oldest=0.5, interval=2.0),
                line("api", depth=1, oldest=8.0, interval=0.0),
                in_flight=1,
                hold_remaining=9.0,
            ),
            account(OTHER),
        ]
    )
    assert states == (
        account(
            OTHER,
            line("exports", depth=7, oldest=1.5, interval=2.0),
            line("api", depth=1, oldest=8.0, interval=0.0),
            in_flight=3,
            hold_remaining=9.0,
        ),
        account("london", in_flight=7),
    )
