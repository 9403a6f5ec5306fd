"""The episodes of trouble there are, by plain calls."""

from typing import Final

import pytest

from proxy.incidents.episodes import Episodes
from proxy.rules.episodes import KEPT_SECONDS
from proxy.rules.incidents import Trouble, Unseen

HOLD: Final = "export-proxy:hold"
TROUBLE = Trouble(account="london", kind="hold", since=0.0, detail="")


@pytest.fixture
def episodes() -> Episodes:
    """One episode, of trouble that is over before the desk was told of it."""
    made = Episodes(lambda _: True)
    made.take({HOLD: TROUBLE}, now=0.0, wall=0.0)
    made.take({HOLD: Unseen.CLEAR}, now=1.0, wall=1.0)
    return made


def test_trouble_that_is_long_over_and_was_not_told_is_given_up(episodes: Episodes) -> None:
    assert not episodes.take({}, now=KEPT_SECONDS, wall=0.0)
    (given_up,) = episodes.take({}, now=KEPT_SECONDS + 2.0, wall=0.0)
    assert given_up.id == HOLD
    assert not len(episodes)


def test_an_episode_is_not_given_up_while_the_desk_is_told_of_it(episodes: Episodes) -> None:
    number, _ = episodes.next_step()
    episodes.under_way = number
    assert not episodes.take({}, now=KEPT_SECONDS + 2.0, wall=0.0)
    episodes.under_way = None
    assert len(episodes.take({}, now=KEPT_SECONDS + 2.0, wall=0.0)) == 1


def test_the_next_episode_of_an_incident_waits_for_the_one_before(episodes: Episodes) -> None:
    first, _ = episodes.next_step()
    assert first is not None
    episodes.take({HOLD: TROUBLE}, now=2.0, wall=2.0)
    episodes.put(first, episodes[first].later(10.0, now=2.0))
    assert episodes.next_step() == (first, 12.0)
    episodes.drop(first)
    second, due = episodes.next_step()
    assert second != first
    assert due < 2.0


def test_trouble_of_an_account_that_is_no_longer_configured_is_over() -> None:
    configured = {HOLD}
    made = Episodes(configured.__contains__)
    made.take({HOLD: TROUBLE}, now=0.0, wall=0.0)
    assert made.confirmed() == {HOLD}
    configured.clear()
    made.take({}, now=1.0, wall=1.0)
    assert not made.present
