"""The pace of a queue."""

from proxy.pacing.slot import Answered, NotSent, Refused, Sent, Unused
from proxy.settings import Pacing
from tests.kit.pacing import bench


async def test_first_send_comes_no_earlier_than_one_interval_after_the_start() -> None:
    """What was sent before a restart is forgotten, so the first send keeps clear of it."""
    async with bench(warm=False) as b:
        callers = [b.join(b.queue()), b.join(b.queue(account="paris"))]
        callers.append(b.join(b.accounts.unidentified(b"t").queue("exports", paced=True)))
        assert await b.all_served(callers) == [0.5, 2.0, 0.5]


async def test_queue_that_opens_later_is_free_at_once() -> None:
    async with bench() as b:
        b.send(await b.get(b.queue())).report(Answered())


async def test_burst_leaves_one_an_interval_in_order_of_arrival() -> None:
    async with bench(warm=False) as b:
        callers = [b.join(b.queue()) for _ in range(50)]
        assert await b.all_served(callers) == [0.5 * place for place in range(1, 51)]


async def test_costly_request_keeps_the_next_one_back_for_longer() -> None:
    async with bench(warm=False) as b:
        callers = [b.join(b.queue(), cost=cost) for cost in (3.0, 1.0, 1.5, 1.0)]
        assert await b.all_served(callers) == [0.5, 2.0, 2.5, 3.25]


async def test_pace_counts_from_the_send_and_not_from_the_slot() -> None:
    """Connecting may take long; until it is over nobody else gets a slot of that queue."""
    async with bench() as b:
        connecting = await b.get(b.queue())
        second = b.join(b.queue())
        await b.until(13)
        assert second.slot is None
        b.send(connecting)
        await b.until(13.25)
        assert second.slot is None
        await b.until(15)
        assert second.got_at == 13.5
        b.use(second)
        connecting.report(Answered())


async def test_slot_given_back_unused_goes_to_the_next_at_once() -> None:
    async with bench() as b:
        unused = await b.get(b.queue())
        second, third = b.join(b.queue()), b.join(b.queue())
        await b.until(10.125)
        unused.report(Unused())
        await b.until(12)
        assert (second.got_at, third.slot) == (10.125, None)
        b.use(second)
        await b.until(14)
        assert third.got_at == 12.5
        b.use(third)


async def test_try_that_never_left_keeps_its_distance_all_the_same() -> None:
    """A server that refuses connections is not hammered."""
    async with bench() as b:
        slot = await b.get(b.queue())
        second = b.join(b.queue())
        await b.until(10.25)
        slot.report(NotSent())
        await b.until(12)
        assert second.got_at == 10.75
        b.use(second)


async def test_try_that_never_left_frees_its_room_on_an_unpaced_route() -> None:
    async with bench(Pacing(max_in_flight=1)) as b:
        api = b.queue("api", paced=False)
        slot = await b.get(api)
        second = b.join(api)
        await b.until(10.25)
        slot.report(NotSent())
        await b.until(11)
        assert second.got_at == 10.25
        b.use(second)


async def test_stall_of_the_event_loop_is_not_made_up_for() -> None:
    """Ten seconds late, the next ones still go one an interval."""
    async with bench() as b:
        callers = [b.join(b.queue()) for _ in range(4)]
        await b.clock.advance(0)
        b.use(callers[0])
        b.clock.stall(10.0)
        assert await b.all_served(callers) == [10.0, 20.0, 20.5, 21.0]


async def test_longer_interval_governs_present_waiters() -> None:
    async with bench() as b:
        b.send(await b.get(b.queue())).report(Answered())
        callers = [b.join(b.queue()) for _ in range(2)]
        await b.until(10.25)
        b.accounts.context.pacing = Pacing(interval=4.0)
        assert await b.all_served(callers) == [14.0, 18.0]


async def test_shorter_interval_governs_from_the_next_send_at_the_latest() -> None:
    async with bench() as b:
        b.send(await b.get(b.queue())).report(Answered())
        callers = [b.join(b.queue()) for _ in range(3)]
        await b.until(10.25)
        b.accounts.context.pacing = Pacing(interval=0.25)
        assert await b.all_served(callers) == [10.5, 10.75, 11.0]


async def test_interval_of_an_account_outranks_the_common_one() -> None:
    async with bench() as b:
        paris = b.queue(account="paris")
        assert await b.all_served([b.join(paris) for _ in range(3)]) == [10.0, 12.0, 14.0]


async def test_routes_of_an_account_have_their_own_pace() -> None:
    async with bench() as b:
        callers = [b.join(b.queue(route)) for route in ("exports", "jobs", "exports", "jobs")]
        assert await b.all_served(callers) == [10.0, 10.0, 10.5, 10.5]


async def test_unpaced_route_waits_for_nothing() -> None:
    async with bench(warm=False) as b:
        api = b.queue("api", paced=False)
        assert await b.all_served([b.join(api) for _ in range(5)]) == [0.0] * 5


async def test_idle_account_is_not_delayed_by_two_thousand_waiters_of_another() -> None:
    async with bench() as b:
        queues = [
            b.accounts.unidentified(b"%d" % caller).queue("exports", paced=True)
            for caller in range(100)
        ]
        crowd = [b.join(queue) for queue in queues for _ in range(20)]
        await b.clock.advance(0)
        for caller in crowd[::20]:
            b.use(caller)
        await b.until(10.125)
        alone = b.join(b.queue())
        await b.clock.advance(0)
        assert alone.got_at == 10.125
        b.use(alone)
        served = await b.all_served(crowd)
        assert served == [10 + 0.5 * place for _ in range(100) for place in range(20)]


async def test_send_before_its_time_is_counted() -> None:
    """The proxy checks itself; by its own doing the count stays 0."""
    async with bench() as b:
        series = {"account": "london", "route": "exports"}
        for _ in range(2):
            b.send(await b.get(b.queue())).report(Answered())
            await b.clock.advance(0.5)
        assert b.registry.get_sample_value("export_proxy_early_sends_total", series) == 0.0
        slot = await b.get(b.queue())
        slot.report(Sent(b.clock.monotonic() - 0.25))
        slot.report(Answered())
        assert b.counted("early_sends_total", **series) == 1.0


async def test_lateness_is_the_time_from_the_due_slot_to_the_send() -> None:
    """A caller who came later than the slot was due is late from then on only."""
    async with bench() as b:
        slot = await b.get(b.queue())
        second = b.join(b.queue())
        await b.until(10.25)
        b.send(slot).report(Answered())
        await b.until(10.75)
        b.clock.stall(0.125)
        b.use(second)
        assert b.counted("send_lateness_seconds_sum", route="exports") == 0.375
        assert b.counted("send_lateness_seconds_count", route="exports") == 2.0


async def test_send_is_noted_once_however_often_it_is_reported() -> None:
    async with bench() as b:
        slot = b.send(await b.get(b.queue()))
        second = b.join(b.queue())
        await b.until(10.25)
        b.send(slot).report(Answered())
        await b.until(12)
        assert second.got_at == 10.5
        b.use(second)
        assert b.counted("send_lateness_seconds_count", route="exports") == 2.0


async def test_only_answers_tell_how_long_answers_take() -> None:
    async with bench() as b:
        queue = b.queue()
        refused = b.send(await b.get(queue))
        await b.until(12)
        refused.report(Refused(1.0))
        assert queue.queue.average_answer_seconds == 0.0
        await b.until(20)
        (await b.get(queue)).report(Answered())
        assert queue.queue.average_answer_seconds == 0.0
        answered = b.send(await b.get(queue))
        await b.until(23)
        answered.report(Answered())
        assert queue.queue.average_answer_seconds == 3.0
