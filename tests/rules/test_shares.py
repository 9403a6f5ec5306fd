"""One peer may take most of a whole, and not the last tenth of it."""

import pytest

from proxy.rules.shares import has_room, why_refused


@pytest.mark.parametrize(
    ("used", "held", "has"),
    [
        (0, 0, True),
        (899, 899, True),
        (900, 900, False),
        (900, 100, False),
        (900, 99, True),
        (999, 0, True),
        (1000, 0, False),
    ],
)
def test_the_last_tenth_is_kept_for_peers_that_hold_little(
    used: int, held: int, *, has: bool
) -> None:
    assert has_room(used=used, whole=1000, held=held, little=100) is has


@pytest.mark.parametrize(("wanted", "has"), [(10, True), (11, False)])
def test_a_large_piece_counts_as_a_whole(wanted: int, *, has: bool) -> None:
    assert has_room(used=950, whole=1000, held=0, little=10, wanted=wanted) is has


@pytest.mark.parametrize(
    ("used", "held", "bound", "reason"),
    [
        (0, 0, None, None),
        (5, 5, 5, "peer"),
        (5, 4, 5, None),
        (900, 100, None, "peer"),
        (900, 99, None, None),
        (1000, 0, None, "limit"),
        (1000, 500, None, "limit"),
        (1000, 5, 5, "peer"),
    ],
)
def test_a_refused_connection_is_one_too_many_in_all_or_of_its_peer(
    used: int, held: int, bound: int | None, reason: str | None
) -> None:
    assert why_refused(used=used, whole=1000, held=held, bound=bound, little=100) == reason
