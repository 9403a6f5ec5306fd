"""Whatever callers and the API do: the API sees a request at most once within the window.

Real are the look-up, the flights and the table; the API and the callers are the test's.
"""

import asyncio
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from proxy.forwarding.attempts import PendingRequest
from proxy.forwarding.exchange import Exchange
from proxy.forwarding.repeats import Repeats
from proxy.http.messages import Answer, Outgoing
from proxy.problems import Problem
from proxy.rules.repeats import Digests
from proxy.store.repeats import LocalRepeats
from proxy.telemetry.metrics import Metrics
from tests.forwarding.test_sending import connection
from tests.kit.clock import FakeClock
from tests.kit.proxy import settings_for

WINDOW = 120.0
LOST = Problem("outcome-unknown", "Lost.")


class Send:
    """One send at the API, and what became of it."""

    def __init__(self, pending: PendingRequest, digests: Digests) -> None:
        self.pending = pending
        self.digests = digests
        self.go = asyncio.Event()
        self.ending: asyncio.Future[Answer | Problem] = asyncio.get_running_loop().create_future()
        self.is_sent = False
        self.lost_at: float | None = None
        self.is_refused = False


class World:
    """An API, callers, and the proxy's table between them."""

    def __init__(self, tasks: asyncio.TaskGroup, transport: asyncio.Transport) -> None:
        self.clock = FakeClock()
        chosen = settings_for("http://api.example")
        metrics = Metrics(CollectorRegistry())
        self.repeats = Repeats(
            chosen,
            api=cast("Any", None),
            store=LocalRepeats(chosen.repeats, clock=self.clock, on_evicted=lambda _: None),
            clock=self.clock,
            metrics=metrics,
            spawn=tasks.create_task,
        )
        self.sends: list[Send] = []
        self.callers: list[asyncio.Task[None]] = []
        self._digests: dict[str, Digests] = {}
        self._tasks = tasks
        self._request = SimpleNamespace(transport=transport)

    def request(self, body: bytes, key: bytes | None) -> None:
        exchange = Exchange(cast("Any", self._request), f"{len(self.callers)}", self.clock, limit=9)
        self._digests[exchange.id] = digests = Digests(key and key + b"-key", body)
        allowance = SimpleNamespace(key="a")
        pending = PendingRequest(
            exchange,
            caller=cast("Any", None),
            account=cast("Any", SimpleNamespace(label="other", allowance=allowance)),
            queue=cast("Any", None),
            outgoing=Outgoing("POST", "/", "", [], body),
            needs=cast("Any", None),
            managed=None,
            is_present=lambda: True,
        )
        self.callers.append(self._tasks.create_task(self._call(pending, digests)))

    async def _call(self, pending: PendingRequest, digests: Digests) -> None:
        try:
            async with self.repeats.answering(pending, cast("Any", self), digests):
                pass
        except Problem:
            pass

    async def send(self, pending: PendingRequest) -> Answer:
        """Stand in for the sender: wait for the slot, send, wait for the answer."""
        send = Send(pending, self._digests[pending.exchange.id])
        self.sends.append(send)
        await send.go.wait()
        self.check(send)
        send.is_sent = True
        pending.sent(self.clock.wall())
        ending = await send.ending
        if isinstance(ending, Problem):
            raise ending
        if send.is_refused:
            pending.exchange.sent_at = None
        return ending

    def end(self, send: Send, kind: str) -> None:
        if not send.is_sent or send.ending.done():
            return
        if kind == "lost":
            send.lost_at = self.clock.monotonic()
            send.ending.set_result(LOST)
        elif kind == "refused":
            send.is_refused = True
            send.ending.set_result(Answer(429, "", [], b""))
        else:
            send.ending.set_result(Answer(202, "", [], b"{}"))

    def note_losses(self) -> None:
        for send in self.sends:
            is_over = send.ending.done()
            if send.is_sent and not is_over and not send.pending.is_present():
                send.lost_at = send.lost_at or self.clock.monotonic()

    def check(self, new: Send) -> None:
        now = self.clock.monotonic()
        for old in self.sends:
            if old is new or not old.is_sent or old.is_refused:
                continue
            if new.digests.key is not None and new.digests.key == old.digests.key:
                assert old.lost_at is not None, "a key was sent twice"
                assert now >= old.lost_at + WINDOW, "a key was sent twice within the window"
            if new.digests.key is None and new.digests.sameness == old.digests.sameness:
                began = float(new.pending.exchange.arrived)
                lost = old.lost_at
                assert lost is None or lost >= began or now >= lost + WINDOW, "sent twice"


ACTIONS = st.lists(
    st.one_of(
        st.tuples(
            st.just("request"), st.sampled_from([b"1", b"2"]), st.sampled_from([None, b"k", b"l"])
        ),
        st.tuples(st.just("leave"), st.integers(0, 2)),
        st.tuples(st.just("send"), st.integers(0, 2)),
        st.tuples(
            st.just("end"), st.integers(0, 2), st.sampled_from(["answered", "lost", "refused"])
        ),
        st.tuples(st.just("wait"), st.sampled_from([0.5, 61.0, 121.0])),
    ),
    max_size=25,
)


@settings(max_examples=200, deadline=None)
@given(ACTIONS)
def test_the_api_sees_a_request_once_within_the_window(actions: list[tuple[Any, ...]]) -> None:
    asyncio.run(play(actions))


async def play(actions: list[tuple[Any, ...]]) -> None:
    async with AsyncExitStack() as stack:
        transport = await stack.enter_async_context(connection())
        async with asyncio.TaskGroup() as tasks:
            world = World(tasks, transport)
            for action in actions:
                await act(world, action)
                await world.clock.advance(0.001)
                world.note_losses()
            for send in world.sends:
                send.go.set()
            await world.clock.advance(0)
            for send in world.sends:
                world.end(send, "lost")
            await world.clock.advance(100)


async def act(world: World, action: tuple[Any, ...]) -> None:
    match action:
        case ("request", body, key):
            world.request(body, None if key is None else key + body)
        case ("leave", number) if world.callers:
            _latest(world.callers, number).cancel()
        case ("send", number) if world.sends:
            _latest(world.sends, number).go.set()
        case ("end", number, kind) if world.sends:
            world.end(_latest(world.sends, number), kind)
        case ("wait", seconds):
            await world.clock.advance(seconds)
        case _:
            pass


def _latest(all_of_them: list[Any], number: int) -> Any:
    """Return the newest, the one before it, or the one before that."""
    return all_of_them[-1 - number % len(all_of_them)]
