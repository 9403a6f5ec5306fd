"""What accounts obey of a configuration, and what becomes of them when it changes."""

import gc

import pytest

from proxy.pacing.slot import Answered, Refused
from proxy.rules.digests import account_id
from proxy.rules.limits import Limit
from proxy.rules.quota import Quota
from proxy.settings import Account, Pacing, Route, Settings
from proxy.settings import Quota as QuotaSettings
from tests.kit.pacing import UPSTREAM, bench

INTERVAL = 0.5
LONDON = Account(name="london", client_id="id-1")
ROME = Account(name="rome", client_id="id-3")
WHOLE = Route(name="exports", paths=("/exports/**", "/jobs/**"), paced=True)
EXPORTS = Route(name="exports", paths=("/exports/**",), paced=True)
JOBS = Route(name="jobs", paths=("/jobs/**",), paced=True)


def settings(*accounts: Account, **sections: object) -> Settings:
    return Settings.model_validate({"upstream": UPSTREAM, "accounts": accounts, **sections})


def of_organization(name: str, organization: str | None) -> Account:
    return Account(name=name, client_id=f"id-{name}", organization=organization)


async def test_accounts_are_known_by_their_configured_names() -> None:
    async with bench() as b:
        assert list(b.accounts.names()) == ["london", "paris"]
        assert b.accounts.is_configured("london")
        assert not b.accounts.is_configured("rome")
        b.accounts.apply(settings(ROME))
        assert list(b.accounts.names()) == ["rome"]


async def test_an_account_that_is_removed_goes_on_as_one_that_was_never_configured() -> None:
    async with bench() as b:
        stranger = b.accounts.unconfigured(account_id(ROME.client_id))
        label = stranger.label
        b.accounts.apply(settings(ROME))
        assert (b.account("rome"), stranger.label) == (stranger, "rome")
        b.accounts.apply(settings(LONDON))
        assert b.accounts.unconfigured(account_id(ROME.client_id)) is stranger
        assert stranger.label == label


async def test_an_account_that_is_removed_keeps_its_pace_though_no_request_is_under_way() -> None:
    async with bench(Pacing(interval=8.0)) as b:
        b.accounts.apply(settings(ROME, pacing=Pacing(interval=8.0)))
        b.send(await b.get(b.queue(account="rome"))).report(Answered())
        b.accounts.apply(settings(LONDON, pacing=Pacing(interval=8.0)))
        gc.collect()
        queue = b.accounts.unconfigured(account_id(ROME.client_id)).queue("exports", paced=True)
        assert await b.all_served([b.join(queue)]) == [18.0]


async def test_an_interval_of_a_route_is_kept_on_that_route_alone() -> None:
    slow = Route(name="jobs", paths=("/jobs/**",), paced=True, interval=2.0)
    async with bench() as b:
        b.accounts.apply(settings(LONDON, routes=(EXPORTS, slow)))
        await b.until(20)
        for route, interval in (("exports", INTERVAL), ("jobs", 2.0)):
            begun = b.now
            callers = [b.join(b.queue(route)) for _ in range(3)]
            assert await b.all_served(callers) == [begun + n * interval for n in range(3)]
            await b.clock.advance(10)
        b.send(await b.get(b.queue("jobs"))).report(Refused(0.0))  # asks for the normal pace
        assert b.hold_left() == 2.0


async def test_the_reserve_of_a_quota_is_left_to_others() -> None:
    async with bench() as b:
        b.send(await b.get(b.queue())).report(Answered(Quota(1, 60.0)))
        assert b.hold_left() == 0  # no reserve is configured: one more may go
        b.accounts.apply(settings(LONDON, quota=QuotaSettings(reserve=5)))
        await b.until(20)
        b.send(await b.get(b.queue())).report(Answered(Quota(6, 50.0)))
        assert b.hold_left() == 0
        await b.until(21)
        b.send(await b.get(b.queue())).report(Answered(Quota(5, 49.0)))
        assert b.hold_left() == 49.0


# Limits of an organization


async def test_a_limit_of_an_organization_may_hold_all_routes_of_its_accounts() -> None:
    names = ("london", "paris", "rome")
    async with bench() as b:
        b.accounts.apply(
            settings(
                of_organization("london", "ours"),
                of_organization("paris", "ours"),
                of_organization("rome", None),
            )
        )
        await b.until(20)
        refused = b.send(await b.get(b.queue()))
        refused.report(Refused(8.0, Limit("org.token.rate", "platform.api")))
        held = [b.account(name).allowance.holding.state.remaining(b.now) for name in names]
        assert held == [8.0, 8.0, 0.0]
        begun = [b.counted("holds_total", account=name, reason="refused") for name in names]
        assert begun == [1, 1, 0]


async def test_a_limit_of_one_account_holds_no_other_of_its_organization() -> None:
    async with bench() as b:
        b.accounts.apply(
            settings(of_organization("london", "ours"), of_organization("paris", "ours"))
        )
        await b.until(20)
        b.send(await b.get(b.queue())).report(Refused(8.0, Limit("token.rate", "platform.api")))
        assert b.hold_left() == 8.0
        assert b.account("paris").allowance.holding.hold is None


async def test_a_route_that_is_not_paced_is_not_paced_where_its_organization_is_held() -> None:
    async with bench() as b:
        b.accounts.apply(
            settings(of_organization("london", "ours"), of_organization("paris", "ours"))
        )
        await b.until(20)
        refused = b.send(await b.get(b.queue("api", paced=False)))
        refused.report(Refused(8.0, Limit("org.flow.rate", "flows")))
        first, *rest = [b.join(b.queue("api", paced=False, account="paris")) for _ in range(3)]
        first.is_prompt = True
        assert await b.all_served([first, *rest]) == [28.0] * 3


# Routes that take paths of others


@pytest.mark.parametrize("again", [False, True], ids=["once", "twice"])
async def test_a_queue_that_opens_after_a_reload_leaves_time_for_what_others_just_sent(
    *, again: bool
) -> None:
    """Another replica may have sent for its paths just before; a second reload forgets nothing."""
    async with bench() as b:
        b.accounts.apply(settings(LONDON, routes=(WHOLE,)))
        await b.until(20)
        b.accounts.apply(settings(LONDON, routes=(EXPORTS, JOBS)))
        await b.until(20.2)
        if again:
            b.accounts.apply(settings(LONDON, routes=(EXPORTS, JOBS)))
        callers = [b.join(b.queue(name)) for name in ("exports", "jobs")]
        exports, jobs = await b.all_served(callers)
        assert (exports, jobs) == (20.2, 20.0 + INTERVAL)
