"""What would become of requests if the pace were enforced."""

import pytest

from proxy.rules.observing import PaperQueue, Would


def arrive(  # noqa: PLR0913 -- as the rule
    queue: PaperQueue,
    now: float,
    *,
    cost: float = 1.0,
    interval: float = 0.5,
    limit: float = 60.0,
    held: float = 0.0,
    max_queue: int = 100,
) -> tuple[PaperQueue, Would]:
    return queue.arrive(
        now, cost=cost, interval=interval, limit=limit, held=held, max_queue=max_queue
    )


def waits(count: int, **others: float) -> list[float]:
    """The waits of so many that arrive at 10.0."""
    queue, found = PaperQueue(), []
    for _ in range(count):
        queue, would = arrive(queue, 10.0, **others)  # type: ignore[arg-type]  # all by name
        found.append(would.seconds)
    return found


def test_the_first_would_leave_at_once_and_the_others_an_interval_apart() -> None:
    assert waits(4) == [0.0, 0.5, 1.0, 1.5]
    assert waits(3, cost=2.0) == [0.0, 1.0, 2.0]


def test_a_request_at_an_empty_queue_would_not_wait() -> None:
    queue, _ = arrive(PaperQueue(), 10.0)
    _, would = arrive(queue, 10.5)
    assert would == Would(0.0, is_refused=False)
    _, would = arrive(queue, 10.4)
    assert would.seconds == pytest.approx(0.1)


def test_a_hold_would_come_first() -> None:
    assert waits(2, held=30.0) == [30.0, 30.5]


def test_a_route_that_is_not_paced_would_wait_for_holds_only() -> None:
    assert waits(3, interval=0.0) == [0.0, 0.0, 0.0]
    assert waits(2, interval=0.0, held=5.0) == [5.0, 5.0]


def test_a_request_that_would_be_refused_delays_no_other() -> None:
    queue, _ = arrive(PaperQueue(), 10.0)
    same, would = arrive(queue, 10.0, limit=0.5)
    assert would == Would(0.5, is_refused=True)  # 0.5 s is no time for a send after 0.5 s
    assert same == queue
    _, would = arrive(same, 10.0, limit=0.6)
    assert would == Would(0.5, is_refused=False)


def test_a_caller_that_takes_only_a_free_slot_would_be_refused_without_one() -> None:
    queue, would = arrive(PaperQueue(), 10.0, limit=0.0)
    assert not would.is_refused
    assert arrive(queue, 10.0, limit=0.0)[1].is_refused


def test_a_full_queue_would_refuse() -> None:
    queue = PaperQueue()
    refused = []
    for _ in range(5):
        queue, would = arrive(queue, 10.0, max_queue=3)
        refused.append(would.is_refused)
    assert refused == [False, False, False, True, True]  # one is sent, and two wait


def test_a_route_that_is_not_paced_is_never_full() -> None:
    _, would = arrive(PaperQueue(), 10.0, interval=0.0, max_queue=0)
    assert not would.is_refused
