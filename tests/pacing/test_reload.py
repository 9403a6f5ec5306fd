"""A reload that renames or divides a paced route makes no second pace for its paths."""

from collections.abc import Mapping
from itertools import pairwise

import pytest

from proxy.pacing.leases import HoldLeft
from proxy.pacing.slot import Answered, Refused
from proxy.rules.limits import Limit
from proxy.settings import Account, Pacing, Route, Settings
from tests.kit.pacing import UPSTREAM, Bench, Caller, bench

INTERVAL = 0.5
WHOLE = {"exports": ("/exports/**", "/jobs/**")}
RENAMED = {"batch": ("/exports/**", "/jobs/**")}
DIVIDED = {"exports": ("/exports/**",), "jobs": ("/jobs/**",)}
DIVIDED_AND_RENAMED = {"files": ("/exports/**",), "jobs": ("/jobs/**",)}


def reload(b: Bench, routes: Mapping[str, tuple[str, ...]]) -> None:
    """Obey a configuration with these paced routes."""
    b.accounts.apply(
        Settings(
            upstream=UPSTREAM,
            pacing=Pacing(interval=INTERVAL),
            accounts=(Account(name="london", client_id="id-1"),),
            routes=tuple(
                Route(name=name, paths=paths, paced=True) for name, paths in routes.items()
            ),
        )
    )


def shortest(times: list[float]) -> float:
    return min(later - earlier for earlier, later in pairwise(sorted(times)))


@pytest.mark.parametrize("routes", [RENAMED, DIVIDED, DIVIDED_AND_RENAMED])
async def test_waiters_and_newcomers_keep_one_pace(routes: Mapping[str, tuple[str, ...]]) -> None:
    async with bench() as b:
        reload(b, WHOLE)
        callers = [b.join(b.queue("exports")) for _ in range(8)]
        for caller in callers:
            caller.is_prompt = True
        await b.clock.advance(1.6 * INTERVAL)
        reload(b, routes)
        callers += [b.join(b.queue(name)) for _ in range(4) for name in routes]
        sends = await b.all_served(callers)
        assert shortest(sends) >= INTERVAL
        assert max(sends) - min(sends) <= INTERVAL * len(callers)  # one interval for the reload


async def test_divided_route_keeps_its_distance_from_the_last_send_of_the_whole() -> None:
    async with bench() as b:
        reload(b, WHOLE)
        first = b.send(await b.get(b.queue("exports")))
        first.report(Answered())
        await b.clock.advance(0.1)
        reload(b, DIVIDED)
        callers = [b.join(b.queue(name)) for name in DIVIDED]
        sends = await b.all_served(callers)
        assert min(sends) >= first.sent_at + INTERVAL


async def test_divided_routes_have_a_pace_each_once_the_whole_is_empty() -> None:
    async with bench() as b:
        reload(b, WHOLE)
        b.send(await b.get(b.queue("exports"))).report(Answered())
        reload(b, DIVIDED)
        await b.clock.advance(2 * INTERVAL)
        sends = await b.all_served([b.join(b.queue(name)) for name in DIVIDED])
        assert sends[0] == sends[1]


async def test_slot_that_is_out_during_a_reload_is_settled_after_it() -> None:
    async with bench() as b:
        reload(b, WHOLE)
        slot = await b.get(b.queue("exports"))
        reload(b, RENAMED)
        waiting = b.join(b.queue("batch"))
        await b.clock.advance(2 * INTERVAL)
        assert waiting.slot is None
        b.send(slot).report(Answered())
        (sent,) = await b.all_served([waiting])
        assert sent == slot.sent_at + INTERVAL
        (queue,) = b.accounts.states()[0].routes
        assert (queue.name, queue.sent, queue.last_gap_seconds) == ("batch", 2, INTERVAL)


async def test_routes_that_become_one_keep_the_distance_of_both() -> None:
    async with bench() as b:
        reload(b, DIVIDED)
        await b.clock.advance(INTERVAL)
        b.send(await b.get(b.queue("exports"))).report(Answered())
        await b.clock.advance(0.3)
        last = b.send(await b.get(b.queue("jobs")))
        last.report(Answered())
        reload(b, WHOLE)
        (sent,) = await b.all_served([b.join(b.queue("exports"))])
        assert sent >= last.sent_at + INTERVAL


async def test_waiters_of_routes_that_become_one_keep_one_pace() -> None:
    async with bench() as b:
        reload(b, DIVIDED)
        callers = [b.join(b.queue(name)) for _ in range(3) for name in DIVIDED]
        for caller in callers:
            caller.is_prompt = True
        await b.clock.advance(1.2 * INTERVAL)
        before = [caller.slot.sent_at for caller in callers if caller.slot is not None]
        reload(b, WHOLE)
        callers += [b.join(b.queue("exports")) for _ in range(3)]
        sends = await b.all_served(callers)
        assert shortest([at for at in sends if at not in before]) >= INTERVAL


async def test_slot_of_a_route_renamed_twice_is_counted_where_it_was_granted() -> None:
    async with bench() as b:
        reload(b, WHOLE)
        slot = await b.get(b.queue("exports"))
        reload(b, RENAMED)
        reload(b, RENAMED | {"exports": ("/other/**",)})
        other = b.join(b.queue("exports"))
        renamed = b.join(b.queue("batch"))
        b.send(slot).report(Answered())
        sends = await b.all_served([other, renamed])
        assert sends[0] < slot.sent_at + INTERVAL <= sends[1]


async def test_hold_of_a_divided_route_holds_each_part() -> None:
    async with bench() as b:
        reload(b, WHOLE)
        whole = b.queue("exports")
        b.send(await b.get(whole)).report(Answered())
        now = b.clock.monotonic()
        until = now + 5 * INTERVAL
        whole.scheduler.obey_hold(HoldLeft(until - now, until - now), whole.leased)
        reload(b, DIVIDED)
        sends = await b.all_served([b.join(b.queue(name)) for name in DIVIDED])
        assert min(sends) >= until


async def test_divided_route_keeps_all_that_is_known_of_the_hold() -> None:
    """What the API named, which limit was hit, and how often it was refused in a row."""
    async with bench() as b:
        reload(b, WHOLE)
        whole = b.queue("exports")
        for _ in range(2):
            b.send(await b.get(whole)).report(Refused(None, Limit("flow.rate", "flows")))
            await b.clock.advance(10)
        b.send(await b.get(whole)).report(Refused(1000.0, Limit("flow.rate", "flows")))
        reload(b, DIVIDED)
        jobs = b.queue("jobs")
        assert (jobs.route, jobs.holds.named_left()) == ("jobs", 1000.0)
        known, before = jobs.holding.hold, whole.holding.hold
        assert known == before
        assert known is not None
        assert (known.limit, known.refusals) == ("flow.rate", 2)


SWAPPED = {"jobs": ("/exports/**",), "exports": ("/jobs/**",)}
SEQUENCES = {
    "renamed after it was divided": (WHOLE, DIVIDED, DIVIDED_AND_RENAMED),
    "renamed to a name it stands in for": (
        WHOLE,
        DIVIDED,
        {"jobs": ("/exports/**",), "files": ("/jobs/**",)},
    ),
    "divided and whole again": (WHOLE, DIVIDED, WHOLE),
    "divided, whole again, renamed": (WHOLE, DIVIDED, WHOLE, RENAMED),
    "two become one of another name": (DIVIDED, RENAMED),
    "two become one, and are divided again": (DIVIDED, RENAMED, DIVIDED),
    "two swap their names": (DIVIDED, SWAPPED),
    "two swap their names twice": (DIVIDED, SWAPPED, DIVIDED),
    "renamed twice, then back": (WHOLE, RENAMED, DIVIDED, WHOLE),
    "its name goes to another": (WHOLE, RENAMED | {"exports": ("/other/**",)}, DIVIDED),
}


@pytest.mark.parametrize("joins_all", [True, False], ids=["all used", "some used"])
@pytest.mark.parametrize("steps", SEQUENCES.values(), ids=SEQUENCES)
async def test_no_path_has_two_paces_whatever_reloads_follow_each_other(
    steps: tuple[Mapping[str, tuple[str, ...]], ...], *, joins_all: bool
) -> None:
    """Each step comes while requests wait, and the queues empty in the end."""
    async with bench() as b:
        callers: list[tuple[set[str], Caller]] = []
        for step in steps:
            reload(b, step)
            used = list(step.items())[: None if joins_all else 1]
            for name, paths in used * 2:
                caller = b.join(b.queue(name))
                caller.is_prompt = True
                callers.append((set(paths), caller))
            await b.clock.advance(0.6 * INTERVAL)
        for name, paths in list(steps[-1].items()) * 2:
            callers.append((set(paths), b.join(b.queue(name))))
        sends = await b.all_served([caller for _, caller in callers])
        for path in {path for paths, _ in callers for path in paths}:
            of_path = [at for at, (paths, _) in zip(sends, callers, strict=True) if path in paths]
            assert shortest(of_path) >= INTERVAL - 1e-9
        assert max(sends) - 10 <= INTERVAL * (len(callers) + len(steps))


WITH_OTHER = WHOLE | {"third": ("/third/**", "/more/**")}
DIVIDED_WITH_OTHER = DIVIDED | {"third": ("/third/**", "/more/**")}
ONE_TAKES_OTHER = DIVIDED | {"jobs": ("/jobs/**", "/third/**", "/more/**")}
ONE_TAKES_A_PART = DIVIDED | {"jobs": ("/jobs/**", "/more/**"), "third": ("/third/**",)}


@pytest.mark.parametrize(
    "routes", [ONE_TAKES_OTHER, ONE_TAKES_A_PART], ids=["all of it", "a part of it"]
)
async def test_a_part_that_takes_the_paths_of_another_route_keeps_one_pace_with_both(
    routes: Mapping[str, tuple[str, ...]],
) -> None:
    """The queue that is not divided yet still sends for the part."""
    async with bench() as b:
        reload(b, WITH_OTHER)
        callers = [b.join(b.queue(name)) for name in WITH_OTHER for _ in range(6)]
        for caller in callers:
            caller.is_prompt = True
        await b.clock.advance(INTERVAL / 4)
        reload(b, DIVIDED_WITH_OTHER)
        reload(b, routes)
        at = b.now
        callers += [b.join(b.queue("jobs")) for _ in range(3)]
        sends = await b.all_served(callers)
        assert shortest([sent for sent in sends if sent > at]) >= INTERVAL


async def test_routes_that_became_one_keep_one_pace_until_the_old_queue_is_empty() -> None:
    async with bench() as b:
        reload(b, DIVIDED)
        assert b.queue("exports").depth == 0
        callers = [b.join(b.queue("jobs")) for _ in range(6)]
        for caller in callers:
            caller.is_prompt = True
        await b.clock.advance(INTERVAL / 4)
        reload(b, WHOLE)
        await b.clock.advance(2 * INTERVAL)
        callers += [b.join(b.queue("exports")) for _ in range(3)]
        assert shortest(await b.all_served(callers)) >= INTERVAL
