"""What the service desk is told next, and what is given up."""

from dataclasses import replace
from math import inf

import pytest

from proxy.rules.episodes import MOST_KEPT, Episode, surplus
from proxy.rules.incidents import (
    Trouble,
    Unseen,
)

TROUBLE = Trouble(account="london", kind="hold", since=5.0, detail="d", mark=1)
NEW = Episode(id="i", trouble=TROUBLE, begun=0.0)
OPEN = NEW.told(TROUBLE, handle="h", now=10.0)
OVER = OPEN.over("notes", now=20.0, wall=1020.0)


@pytest.mark.parametrize(
    ("episode", "step", "due"),
    [
        (NEW, "open", -inf),
        (OPEN, None, inf),
        (replace(OPEN, trouble=replace(TROUBLE, mark=2)), "update", 70.0),
        (replace(OPEN, trouble=replace(TROUBLE, mark=2), confirmed=False), None, inf),
        (OVER, "close", -inf),
        (NEW.over("notes", now=1.0, wall=1.0), "open", -inf),
        (NEW.later(2.0, now=10.0), "open", 12.0),
    ],
    ids=["new", "open", "news", "news of before a restart", "over", "over unopened", "later"],
)
def test_the_next_step_and_when_it_is_due(episode: Episode, step: str | None, due: float) -> None:
    assert (episode.step(), episode.due()) == (step, due)


def test_what_is_new_keeps_when_it_began() -> None:
    seen = replace(TROUBLE, since=99.0, mark=2)
    judged = OPEN.after_look(seen, now=30.0, wall=0.0)
    assert judged.trouble == replace(TROUBLE, mark=2)
    assert not judged.is_over


def test_it_is_over_when_that_is_clear() -> None:
    judged = OPEN.after_look(Unseen.CLEAR, now=30.0, wall=1030.0)
    assert (judged.ended, judged.over_at) == (30.0, 1030.0)
    assert judged.notes == "The hold is over."


def test_what_nobody_can_tell_changes_nothing() -> None:
    assert OPEN.after_look(Unseen.UNKNOWN, now=1e9, wall=0.0) is OPEN


def test_one_of_before_a_restart_is_over_if_it_is_not_seen_again() -> None:
    earlier = replace(OPEN, confirmed=False)
    assert earlier.after_look(Unseen.UNKNOWN, now=899.9, wall=0.0) is earlier
    gone = earlier.after_look(Unseen.UNKNOWN, now=900.0, wall=1900.0)
    assert (gone.ended, gone.over_at) == (900.0, 1900.0)
    assert gone.notes == "Not seen again since the proxy started."
    seen = earlier.after_look(TROUBLE, now=10.0, wall=0.0)
    assert not seen.after_look(Unseen.UNKNOWN, now=1e9, wall=0.0).is_over


def test_refusals_are_met_with_growing_pauses_and_an_end() -> None:
    episode: Episode | None = NEW
    pauses = []
    while episode is not None:
        episode = episode.refused(now=0.0)
        if episode is not None:
            pauses.append(episode.not_before)
    assert pauses == [30, 60, 120, 240, 480, 960, 1920, 3600, 3600]


def test_what_the_desk_took_ends_the_pauses() -> None:
    refused = NEW.refused(now=0.0)
    assert refused is not None
    assert refused.told(TROUBLE, handle="h", now=1.0).refusals == 0


@pytest.mark.parametrize(("now", "is_given_up"), [(3620.0, False), (3620.1, True)])
def test_what_came_and_went_untold_is_kept_for_an_hour(now: float, *, is_given_up: bool) -> None:
    gone = NEW.over("notes", now=20.0, wall=0.0)
    assert list(surplus([NEW, OPEN, OVER, gone], now)) == ([gone] if is_given_up else [])


def test_of_too_many_the_oldest_are_given_up() -> None:
    gone = [replace(NEW, id=str(n), ended=1.0, over_at=0.0, notes="") for n in range(MOST_KEPT + 2)]
    assert list(surplus([OVER, *gone], 10.0)) == gone[:2]


def test_what_the_desk_took_is_what_it_knows_from_then_on() -> None:
    told = NEW.told(TROUBLE, handle="h", now=10.0)
    assert told == replace(NEW, reported=TROUBLE, reported_at=10.0, handle="h")


def test_a_step_that_is_postponed_is_due_so_many_seconds_later() -> None:
    assert NEW.later(2.0, now=10.0) == replace(NEW, not_before=12.0)
