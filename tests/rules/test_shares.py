"""One peer may take most of a whole, and not the last tenth of it."""

import pytest

from proxy.rules.shares import has_room


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
