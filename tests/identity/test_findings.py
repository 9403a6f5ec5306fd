"""A token that the API did not name is not asked about in a loop, and the table does not grow."""

from proxy.http.messages import Answer
from proxy.identity.findings import Denied, Findings
from tests.kit.clock import FakeClock

DENIED = Denied(Answer(401, "Unauthorized", [], b"no"))


async def test_stranger_counts_for_a_minute() -> None:
    clock = FakeClock()
    findings = Findings(clock=clock)
    assert not findings.has(b"t")
    findings.add(b"t", None)
    await clock.advance(59)
    assert findings.has(b"t")
    assert findings.get(b"t") is None
    await clock.advance(1)
    assert not findings.has(b"t")


async def test_denial_counts_for_ten_seconds() -> None:
    clock = FakeClock()
    findings = Findings(clock=clock)
    findings.add(b"t", DENIED)
    await clock.advance(9)
    assert findings.get(b"t") == DENIED
    await clock.advance(1)
    assert not findings.has(b"t")


async def test_full_table_forgets_what_is_over_and_then_the_oldest() -> None:
    clock = FakeClock()
    findings = Findings(clock=clock, max_entries=2)
    findings.add(b"a", None)
    findings.add(b"b", DENIED)
    await clock.advance(10)
    findings.add(b"c", None)
    assert [findings.has(one) for one in (b"a", b"b", b"c")] == [True, False, True]
    findings.add(b"d", None)
    assert [findings.has(one) for one in (b"a", b"c", b"d")] == [False, True, True]
