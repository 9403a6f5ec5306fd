"""Who waits and who is refused, by account."""

import pytest

from proxy.rules.tally import CallerCount
from proxy.telemetry.callers import Callers, TopCallers, anonymous
from tests.kit.proxy import settings_for


def test_callers_are_counted_while_they_wait() -> None:
    callers = Callers()
    with callers.waiting("london", "a"), callers.waiting("london", "b"):
        with callers.waiting("london", "a"), callers.waiting("paris", "c"):
            assert callers.all(0.0) == {
                "london": TopCallers((CallerCount("a", 2), CallerCount("b", 1))),
                "paris": TopCallers((CallerCount("c", 1),)),
            }
        assert callers.all(0.0)["london"].waiting == (CallerCount("a", 1), CallerCount("b", 1))
    assert callers.all(0.0) == {}


def test_five_are_shown() -> None:
    callers = Callers()
    for number in range(20):
        for _ in range(number + 1):
            callers.refused("london", f"caller-{number}", 0.0)
    shown = callers.all(1.0)["london"].refused
    assert shown == tuple(CallerCount(f"caller-{n}", n + 1) for n in (19, 18, 17, 16, 15))


def test_accounts_that_are_removed_are_forgotten() -> None:
    callers = Callers()
    for account in ("london", "paris", "other"):
        callers.refused(account, "a", 0.0)
    callers.apply(settings_for("http://api", accounts=[{"name": "paris", "client_id": "id"}]))
    assert set(callers.all(1.0)) == {"paris", "other"}


@pytest.mark.parametrize(
    ("agent", "shown"),
    [
        ("curl/8.5", "10.0.0.7 curl/8.5"),
        ("", "10.0.0.7"),
        ("a\x1b[2Jb\u202e\udcff", r"10.0.0.7 a\x1b[2Jb\u202e\udcff"),
        ("x" * 1000, "10.0.0.7 " + "x" * 64),
    ],
    ids=["plain", "none", "hostile", "long"],
)
def test_a_caller_without_a_named_key_is_its_address_and_agent(agent: str, shown: str) -> None:
    assert anonymous("10.0.0.7", agent) == shown
