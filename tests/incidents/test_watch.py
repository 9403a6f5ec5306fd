"""What is known of an account's trouble, from what requests tell; time is a fake clock's."""

from types import SimpleNamespace
from typing import cast

from prometheus_client import CollectorRegistry

from proxy.incidents.watch import Watch
from proxy.pacing.accounts import Accounts
from proxy.rules.digests import account_id
from proxy.rules.incidents import (
    KINDS,
    Sighting,
    Subject,
    Trouble,
    TroubleKind,
    Unseen,
    incident_id,
)
from proxy.settings import Settings
from proxy.telemetry.metrics import Metrics
from proxy.tokens.managed import ManagedTokens
from tests.kit.clock import FakeClock

SUBJECT = Subject("exports", "yes", "sms")
IDS = {kind: incident_id(account_id("id-of-london"), kind) for kind in KINDS}
DOCUMENT = {
    "upstream": {"api_url": "https://api.example", "login_url": "https://login.example"},
    "accounts": [{"name": "london", "client_id": "id-of-london"}],
    "incidents": {"url": "https://desk.example", "credentials_file": "desk.json"},
}


def settings_of(**sections: object) -> Settings:
    return Settings.model_validate({**DOCUMENT, **sections})


class Sight:
    """A watch, and what it sees of the one account."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.clock = FakeClock()
        wanted = settings or settings_of()
        accounts = Accounts(
            wanted,
            clock=self.clock,
            metrics=Metrics(CollectorRegistry()),
            random=lambda: 0.0,
        )
        self.accounts = accounts
        tokens = cast("ManagedTokens", SimpleNamespace(by_name={}))
        self.watch = Watch(wanted, accounts=accounts, tokens=tokens, clock=self.clock)

    async def sighting(self, kind: TroubleKind) -> Sighting:
        return (await self.watch.look(frozenset(IDS.values())))[IDS[kind]]

    def troubled(self, kind: TroubleKind, request_id: str = "r", account: str = "london") -> None:
        self.watch.troubled(account, kind, SUBJECT, request_id)


async def test_doubt_lasts_for_fifteen_minutes_after_the_last_lost_answer() -> None:
    sight = Sight()
    assert await sight.sighting("in_doubt") is Unseen.UNKNOWN
    sight.troubled("in_doubt", "first")
    await sight.clock.advance(800)
    sight.troubled("in_doubt", "second")
    await sight.clock.advance(899)
    found = await sight.sighting("in_doubt")
    assert isinstance(found, Trouble)
    assert found.detail.startswith("2 answers were lost;")
    assert "second" in found.detail
    assert (found.subject, found.since) == (SUBJECT, sight.clock.wall() - 1699)
    await sight.clock.advance(1)
    assert await sight.sighting("in_doubt") is Unseen.CLEAR


async def test_doubt_that_comes_again_is_counted_anew() -> None:
    sight = Sight()
    sight.troubled("in_doubt")
    await sight.clock.advance(901)
    sight.troubled("in_doubt")
    found = await sight.sighting("in_doubt")
    assert isinstance(found, Trouble)
    assert found.detail.startswith("The answer of one request was lost;")


async def test_an_api_is_unreachable_until_it_answers_a_later_try_of_anybody() -> None:
    sight = Sight()
    assert await sight.sighting("unreachable") is Unseen.UNKNOWN
    await sight.clock.advance(10)
    sight.troubled("unreachable")
    sight.watch.answered("other", begun=9.0)
    assert isinstance(await sight.sighting("unreachable"), Trouble)
    sight.watch.answered("other", begun=11.0)
    assert await sight.sighting("unreachable") is Unseen.CLEAR


async def test_what_began_again_began_again() -> None:
    sight = Sight()
    sight.troubled("unreachable")
    await sight.clock.advance(5)
    sight.watch.answered("london", begun=5.0)
    await sight.clock.advance(5)
    sight.troubled("unreachable")
    found = await sight.sighting("unreachable")
    assert isinstance(found, Trouble)
    assert found.since == sight.clock.wall()


async def test_strangers_leave_nothing() -> None:
    sight = Sight()
    sight.watch.arrived("other", SUBJECT)
    for kind in KINDS:
        sight.troubled(kind, account="other")
    found = await sight.watch.look(frozenset())
    assert found == {}


async def test_a_reload_keeps_what_is_known_also_under_another_name() -> None:
    sight = Sight()
    sight.troubled("in_doubt")
    renamed = settings_of(accounts=[{"name": "paris", "client_id": "id-of-london"}])
    sight.watch.apply(renamed)
    assert sight.watch.owner(IDS["in_doubt"]) == ("paris", "in_doubt")
    sight.watch.apply(settings_of())
    assert isinstance(await sight.sighting("in_doubt"), Trouble)


async def test_without_incidents_nothing_is_noted() -> None:
    sight = Sight(settings_of(incidents=None))
    assert not sight.watch.is_on
    sight.troubled("in_doubt")
    assert await sight.watch.look(sight.watch.ids) == {}


async def test_many_accounts_are_looked_at_less_often() -> None:
    many = [{"name": f"a{n}", "client_id": f"c{n}"} for n in range(2_500)]
    sight = Sight(settings_of(accounts=many))
    assert Sight().watch.pause == 1.0
    assert sight.watch.pause == 2.5
