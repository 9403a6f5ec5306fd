"""How much of callers' bytes is kept, in all and for one address."""

import pytest

from proxy.http.room import Room
from proxy.settings import Limits


def room(*, max_buffered: int = 1000, max_body: int = 10) -> Room:
    return Room(Limits(max_buffered=max_buffered, max_body=max_body))


def test_one_address_leaves_the_last_tenth_to_others() -> None:
    it = room()
    assert it.take("greedy", 900)
    assert not it.take("greedy", 1)
    assert it.take("honest", 10)
    assert it.take("another", 10)


def test_an_address_that_holds_more_than_little_is_greedy() -> None:
    it = room()
    assert it.take("greedy", 900)
    assert it.take("honest", 10)
    assert not it.take("honest", 1)


@pytest.mark.parametrize("max_body", [500, 1000])
def test_one_body_fits_however_small_the_room(max_body: int) -> None:
    assert room(max_body=max_body).take("alone", max_body)


def test_what_is_given_back_is_free_again() -> None:
    it = room()
    assert it.take("greedy", 900)
    it.give_back("greedy", 900)
    assert it.taken == 0
    assert it.take("greedy", 900)
