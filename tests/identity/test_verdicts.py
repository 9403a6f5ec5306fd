"""A token that the API did not name is not asked about in a loop, and the table does not grow."""

from proxy.http.messages import Answer
from proxy.identity.verdicts import Denied, Verdicts
from tests.kit.clock import FakeClock

DENIED = Denied(Answer(401, "Unauthorized", [], b"no"))


async def test_stranger_counts_for_a_minute() -> None:
    clock = FakeClock()
    verdicts = Verdicts(clock=clock)
    assert not verdicts.has(b"t")
    verdicts.add(b"t", None)
    await clock.advance(59)
    assert verdicts.has(b"t")
    assert verdicts.get(b"t") is None
    await clock.advance(1)
    assert not verdicts.has(b"t")


async def test_denial_counts_for_ten_seconds() -> None:
    clock = FakeClock()
    verdicts = Verdicts(clock=clock)
    verdicts.add(b"t", DENIED)
    await clock.advance(9)
    assert verdicts.get(b"t") == DENIED
    await clock.advance(1)
    assert not verdicts.has(b"t")


async def test_full_table_forgets_what_is_over_and_then_the_oldest() -> None:
    clock = FakeClock()
    verdicts = Verdicts(clock=clock, max_entries=2)
    verdicts.add(b"a", None)
    verdicts.add(b"b", DENIED)
    await clock.advance(10)
    verdicts.add(b"c", None)
    assert [verdicts.has(one) for one in (b"a", b"b", b"c")] == [True, False, True]
    verdicts.add(b"d", None)
    assert [verdicts.has(one) for one in (b"a", b"c", b"d")] == [False, True, True]
