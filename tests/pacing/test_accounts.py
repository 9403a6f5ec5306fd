"""Which accounts there are, and what is known of them."""

import gc

import pytest

from proxy.pacing.account_queue import AccountQueue
from proxy.pacing.slot import Answered, Refused, Unused
from proxy.problems import Problem
from proxy.rules.digests import account_id
from proxy.rules.state import AccountState, QueueState
from proxy.settings import Account as AccountSettings
from proxy.settings import Identity, Pacing, Settings
from tests.kit.pacing import UPSTREAM, bench

# Accounts nobody configured


async def test_same_caller_has_the_same_account() -> None:
    async with bench() as b:
        token, client = b.accounts.unidentified(b"t"), b.accounts.unconfigured("c")
        assert b.accounts.unidentified(b"t") is token
        assert b.accounts.unconfigured("c") is client
        assert {token, client, *b.accounts.accounts()} == {
            token,
            client,
            b.account(),
            b.account("paris"),
        }


@pytest.mark.parametrize("table", ["unidentified", "unconfigured"])
async def test_two_thousand_strangers_are_forgotten_when_they_are_idle(table: str) -> None:
    """The table stays within its bound, and nobody is refused."""
    identity = Identity(max_unidentified=100, max_learned=100)
    async with bench(identity=identity) as b:
        for number in range(2_000):
            if table == "unconfigured":
                account = b.accounts.unconfigured(f"client {number}")
            else:
                account = b.accounts.unidentified(b"token %d" % number)
            slot = await b.get(account.queue("exports", paced=True))
            b.send(slot).report(Answered())
            await b.clock.advance(0.0625)
        del account, slot
        gc.collect()
        assert len(list(b.accounts.accounts())) <= 2 + 100


async def test_live_account_is_not_forgotten() -> None:
    """Alive: somebody waits, something is in flight, the pace or the hold is not past."""
    async with bench(Pacing(interval=64.0), identity=Identity(max_unidentified=5)) as b:
        await b.until(64)
        accounts = b.accounts

        def queue(token: bytes, route: str = "exports") -> AccountQueue:
            return accounts.unidentified(token).queue(route, paced=route == "exports")

        waiting = b.join(queue(b"waiting"))
        in_flight = await b.get(queue(b"in flight", "api"))
        b.send(await b.get(queue(b"paced"))).report(Answered())
        b.send(await b.get(queue(b"on hold", "api"))).report(Refused(32.0))
        (await b.get(queue(b"idle", "api"))).report(Answered())
        await b.clock.advance(0)
        b.send(waiting.take())
        also_waiting = b.join(queue(b"waiting"))
        names = [b"waiting", b"in flight", b"paced", b"on hold"]
        alive = [id(accounts.unidentified(name)) for name in names]
        await b.clock.advance(16)
        gc.collect()
        newcomer = await b.get(queue(b"newcomer", "api"))
        with pytest.raises(Problem):
            queue(b"one too many", "api")
        assert [id(accounts.unidentified(name)) for name in names] == alive
        waiting.take().report(Answered())
        in_flight.report(Answered())
        newcomer.report(Answered())
        await b.until(200)
        b.use(also_waiting)


async def test_strangers_beyond_the_bound_are_refused_while_all_are_alive() -> None:
    async with bench(identity=Identity(max_unidentified=3)) as b:
        slots = [
            await b.get(b.accounts.unidentified(token).queue("api", paced=False))
            for token in (b"1", b"2", b"3")
        ]
        with pytest.raises(Problem) as refused:
            b.accounts.unidentified(b"4")
        assert (refused.value.name, refused.value.status) == ("queue-full", 429)
        assert refused.value.detail == "Too many different callers at once."
        assert refused.value.retry_after in (1, 2)
        b.accounts.unidentified(b"2")
        b.accounts.unconfigured("4")
        slots.pop().report(Answered())
        with pytest.raises(Problem):  # it was just looked who is idle
            b.accounts.unidentified(b"4")
        await b.clock.advance(0.1)
        b.accounts.unidentified(b"4")
        for slot in slots:
            slot.report(Answered())


async def test_account_that_is_configured_makes_room_for_a_stranger() -> None:
    async with bench(identity=Identity(max_learned=1)) as b:
        known = b.accounts.unconfigured(account_id("id-3"))
        slot = await b.get(known.queue("exports", paced=True))
        with pytest.raises(Problem):
            b.accounts.unconfigured("another")
        settings = Settings(
            upstream=UPSTREAM,
            identity=Identity(max_learned=1),
            accounts=tuple(
                AccountSettings(name=name, client_id=client_id)
                for name, client_id in (("london", "id-1"), ("paris", "id-2"), ("rome", "id-3"))
            ),
        )
        b.accounts.apply(settings)
        b.accounts.unconfigured("another")
        slot.report(Unused())


async def test_each_account_has_a_key_of_its_own_that_shows_no_token() -> None:
    """Under it a store keeps what replicas share of the account."""
    async with bench() as b:
        keys = {b.accounts.unidentified(token).key for token in (b"t" * 32, b"u" * 32)}
        keys |= {b.accounts.unconfigured(name).key for name in ("1" * 64, "2" * 64)}
        keys |= {account.key for account in b.accounts.accounts()}
        assert len(keys) == 6
        assert not any("t" * 32 in key or (b"t" * 32).hex() in key for key in keys)


async def test_stranger_is_told_when_a_full_table_has_room_again() -> None:
    """An account is idle an interval after its last send, that of its waiters included."""
    async with bench(Pacing(interval=8.0), identity=Identity(max_unidentified=2)) as b:
        await b.clock.advance(8)
        begun = b.now
        for token, requests in ((b"1", 3), (b"2", 2)):
            queue = b.accounts.unidentified(token).queue("exports", paced=True)
            b.send(await b.get(queue)).report(Answered())
            for _ in range(requests - 1):
                b.join(queue).is_prompt = True
        await b.clock.advance(0)
        told: list[float] = []
        while b.now < begun + 64:
            try:
                b.accounts.unidentified(b"3")
            except Problem as problem:
                told.append(b.now + (problem.retry_after or 0))
                await b.clock.advance(1)
            else:
                break
        assert b.now == begun + 16
        assert set(told) == {b.now}


async def test_account_a_request_still_holds_is_found_again() -> None:
    """One caller never has two queues on one route, for these would have two paces.

    The account is idle, and dropped, while the body is still coming or between two tries.
    """
    async with bench(identity=Identity(max_unidentified=2)) as b:
        held = b.accounts.unidentified(b"t")
        for number in range(10):
            b.accounts.unidentified(b"%d" % number)
            await b.clock.advance(1)
        b.send(await b.get(held.queue("exports", paced=True))).report(Answered())
        second = b.join(b.accounts.unidentified(b"t").queue("exports", paced=True))
        await b.clock.advance(0)
        assert second.slot is None
        assert await b.all_served([second]) == [20.5]


async def test_account_keeps_its_pace_when_it_is_configured_and_when_it_is_no_longer() -> None:
    async with bench() as b:
        before = b.accounts.unconfigured(account_id("id-3")).queue("exports", paced=True)
        b.send(await b.get(before)).report(Answered())
        del before  # no request is under way
        settings = Settings(
            upstream=UPSTREAM,
            accounts=(
                AccountSettings(name="london", client_id="id-1"),
                AccountSettings(name="rome", client_id="id-3"),
            ),
        )
        b.accounts.apply(settings)
        second = b.join(b.queue(account="rome"))
        assert await b.all_served([second]) == [10.5]
        b.accounts.apply(settings.model_copy(update={"accounts": settings.accounts[:1]}))
        after = b.accounts.unconfigured(account_id("id-3")).queue("exports", paced=True)
        third, begun = b.join(after), b.now
        assert await b.all_served([third]) == [max(begun, 11.0)]


async def test_dropped_account_that_a_request_still_holds_is_drained_too() -> None:
    async with bench(identity=Identity(max_unidentified=1)) as b:
        held = b.accounts.unidentified(b"t")
        b.accounts.unidentified(b"other")
        slot = await b.get(held.queue("exports", paced=True))
        waiting = b.join(held.queue("exports", paced=True))
        await b.clock.advance(0)
        b.drain()
        slot.report(Unused())
        await b.clock.advance(0)
        assert waiting.problem is not None
        assert waiting.problem.name == "draining"


# What can be seen


async def test_state_shows_how_many_wait_how_long_and_why() -> None:
    """Strangers are shown as one."""
    async with bench() as b:
        slot = b.send(await b.get(b.queue()))
        first, second = b.join(b.queue()), b.join(b.queue())
        tokens = [
            b.join(b.accounts.unidentified(token).queue("exports", paced=True))
            for token in (b"1", b"1", b"2", b"2")
        ]
        await b.until(10.25)
        slot.report(Refused(4.0))
        await b.until(11)
        assert b.accounts.states() == (
            AccountState(
                name="london",
                routes=(
                    QueueState(
                        name="exports",
                        queue_depth=2,
                        oldest_seconds=1.0,
                        interval=0.5,
                        predicted_seconds=4.25,
                        sent=1,
                    ),
                ),
                in_flight=0,
                hold_remaining_seconds=3.25,
                hold_named_seconds=3.25,
            ),
            AccountState(name="paris", routes=(), in_flight=0, hold_remaining_seconds=0.0),
            AccountState(
                name="other",
                routes=(
                    QueueState(
                        name="exports",
                        queue_depth=2,
                        oldest_seconds=1.0,
                        interval=0.5,
                        predicted_seconds=1.0,
                    ),
                ),
                in_flight=2,
                hold_remaining_seconds=0.0,
            ),
        )
        assert repr(b.account()) == "<Account london: 2 waiting, 0 in flight>"
        assert repr(b.queue()) == "<AccountQueue london/exports: 2 waiting>"
        await b.all_served([first, second, *tokens])
        assert b.accounts.states()[0].routes[0].oldest_seconds == 0.0


async def test_request_that_is_sent_at_once_has_waited_no_time() -> None:
    """And counts: without those, all that were sent would seem to have waited longer."""
    async with bench() as b:
        b.send(await b.get(b.queue())).report(Answered())
        labels = {"account": "london", "route": "exports", "outcome": "sent"}
        assert b.counted("queue_wait_seconds_count", **labels) == 1
        assert b.counted("queue_wait_seconds_sum", **labels) == 0


async def test_time_in_the_queue_is_measured_by_how_it_ended() -> None:
    async with bench() as b:
        b.send(await b.get(b.queue())).report(Answered())
        callers = [b.join(b.queue()), b.join(b.queue())]
        await b.all_served(callers)
        labels = {"account": "london", "route": "exports", "outcome": "sent"}
        assert b.counted("queue_wait_seconds_sum", **labels) == 1.5


async def test_a_slot_that_is_long_due_and_not_offered_is_a_stall() -> None:
    """The loop runs late: the wait for the pace was over more than two seconds ago."""
    async with bench() as b:
        b.send(await b.get(b.queue())).report(Answered())
        waiting = b.join(b.queue())
        await b.clock.advance(0)
        b.clock.stall(2.5)  # due at 10.5, so two seconds late
        assert not b.accounts.is_stalled()
        b.clock.stall(0.1)
        assert b.accounts.is_stalled()
        await b.all_served([waiting])
        assert not b.accounts.is_stalled()


async def test_each_part_says_in_a_log_what_it_is() -> None:
    async with bench() as b:
        slot = await b.get(b.queue())
        waiting = b.join(b.queue(), caller="a")
        await b.clock.advance(0)
        account, queue = b.account(), b.queue()
        assert [
            repr(part)
            for part in (
                account.scheduler,
                account.scheduler.queues,
                account.scheduler.holds,
                account.allowance,
                queue.queue,
                queue.waiters,
                queue.holds,
                waiting.ticket,
                slot,
            )
        ] == [
            "<AccountScheduler london: 1 waiting>",
            "<Queues of london: exports>",
            "<Holds of london>",
            f"<Allowance london: 1 in flight, {account.allowance.holding}>",
            "<Queue exports: 1 waiting>",
            "<Waiters: 1 of 1 callers>",
            f"<QueueHolds {(account.allowance.holding, queue.holding)}>",
            f"<Ticket {waiting.ticket.number}: waiting>",
            "<Slot of request : open>",
        ]
        slot.report(Unused())
        await b.all_served([waiting])
        assert repr(slot) == "<Slot of request : closed>"
        assert repr(waiting.ticket) == f"<Ticket {waiting.ticket.number}: not waiting>"
