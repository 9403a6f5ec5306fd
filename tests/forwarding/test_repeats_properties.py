"""Whatever callers, the API, the store and operators do: no doubles, and no answer for another.

Real are the look-up, the flights and the tables of two replicas; the API, the callers and the
store are the test's. While nothing happens to the store, the API sees a request at most once within
the window; else at most once from each replica.
"""

import asyncio
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from proxy.forwarding.attempts import PendingRequest
from proxy.forwarding.drain import Drain
from proxy.forwarding.exchange import Exchange
from proxy.forwarding.repeats import Repeats
from proxy.http.messages import Answer, Outgoing
from proxy.problems import Problem
from proxy.rules.repeats import Digests, digests_of, scope_of
from proxy.store.repeats import LocalRepeats
from proxy.store.shared_repeats import SharedRepeats
from proxy.store.wire import Answered, ErrorReply, Reply, StoreDown, Word
from proxy.telemetry.metrics import Metrics
from tests.forwarding.test_sending import connection
from tests.kit.clock import FakeClock
from tests.kit.proxy import settings_for
from tests.kit.requests import request_of

WINDOW = 120.0
KEEP = 300.0  # the shorter one of those that a reload chooses
LOST = Problem("outcome-unknown", "Lost.")


class FakeStore:
    """What Redis does with the few commands of the table, and what can happen to it."""

    def __init__(self, clock: FakeClock) -> None:
        self.is_up = True
        self.had_trouble = False
        self._is_full = False
        self._clock = clock
        self._held: dict[Word, tuple[Word, float]] = {}

    def suffer(self, trouble: str) -> None:
        self.had_trouble = True
        self.is_up = trouble != "away"
        self._is_full = trouble == "full"
        if trouble == "flushed":
            self._held.clear()

    def send(self, words: tuple[Word, ...], answered: Answered) -> None:
        answered(self._carry_out(*words) if self.is_up else StoreDown("down"))

    async def run(self, *words: Word) -> Reply:
        if not self.is_up:
            raise StoreDown("down")
        return self._carry_out(*words)

    def _carry_out(self, command: Word, key: Word, *words: Word) -> Reply:
        now = self._clock.monotonic()
        if key in self._held and self._held[key][1] <= now:
            del self._held[key]
        if command == "MGET":
            value = self._held.get(key, (None, 0))[0]
            return [cast("bytes | None", value)]
        if command == "DEL":
            self._held.pop(key, None)
            return 1
        assert command == "SET"
        if self._is_full:
            return ErrorReply("OOM")
        value, _, milliseconds, *options = words
        if not (options == ["NX"] and key in self._held):
            self._held[key] = (value, now + int(milliseconds) / 1000)
        return b"OK"


class Asked:
    """What one caller asks one replica for."""

    def __init__(self, replica: int, caller: str, body: bytes, key: str) -> None:
        self.replica = replica
        self.caller = caller
        self.digests: Digests = digests_of(scope_of("a", caller, ""), key, "POST", "/", body)


class Send:
    """One send at the API, and what became of it."""

    def __init__(self, pending: PendingRequest, asked: "Asked") -> None:
        self.pending = pending
        self.asked = asked
        self.go = asyncio.Event()
        self.ending: asyncio.Future[Answer | Problem] = asyncio.get_running_loop().create_future()
        self.is_sent = False
        self.lost_at: float | None = None
        self.delivered_at: float | None = None
        self.is_refused = False


class World:
    """An API, callers, and the proxy's table between them."""

    def __init__(self, tasks: asyncio.TaskGroup, transport: asyncio.Transport) -> None:
        self.clock = FakeClock()
        self.store = FakeStore(self.clock)
        self.drain = Drain()
        self.replicas = [self._replica(tasks) for _ in range(2)]
        self.sends: list[Send] = []
        self.callers: list[asyncio.Task[None]] = []
        self.problems: list[str] = []  # of callers that were refused
        self._asked: dict[str, Asked] = {}
        self._tasks = tasks
        present = request_of("POST", transport=transport).is_present
        self._request = SimpleNamespace(is_present=present, flushed=_flushed)

    def _replica(self, tasks: asyncio.TaskGroup) -> Repeats:
        chosen = settings_for("http://api.example")
        local = LocalRepeats(chosen.repeats, clock=self.clock, on_evicted=lambda _: None)
        return Repeats(
            chosen,
            api=cast("Any", None),
            store=SharedRepeats(local, cast("Any", self.store), clock=self.clock),
            clock=self.clock,
            drain=self.drain,
            metrics=Metrics(CollectorRegistry()),
            spawn=tasks.create_task,
        )

    def reload(self, keep: float) -> None:
        chosen = settings_for(
            "http://api.example", repeats={"keep": keep}, upstream={"response_timeout": keep / 10}
        )
        for replica in self.replicas:
            replica.apply(chosen)

    def request(self, asked: Asked, body: bytes) -> None:
        exchange = Exchange(cast("Any", self._request), f"{len(self.callers)}", self.clock, limit=9)
        self._asked[exchange.id] = asked
        allowance = SimpleNamespace(key="a")
        pending = PendingRequest(
            exchange,
            caller=cast("Any", None),
            account=cast("Any", SimpleNamespace(label="other", allowance=allowance)),
            queue=cast("Any", SimpleNamespace(holds=SimpleNamespace(named_left=lambda: 0.0))),
            outgoing=Outgoing("POST", "/", "", [], body),
            needs=cast("Any", None),
            managed=None,
            is_present=lambda: True,
        )
        self.callers.append(self._tasks.create_task(self._call(pending, asked)))

    async def _call(self, pending: PendingRequest, asked: Asked) -> None:
        try:
            repeats = self.replicas[asked.replica]
            async with repeats.answering(pending, cast("Any", self), asked.digests) as answer:
                assert isinstance(answer, Answer)
                send = self.sends[int(answer.body)]
                assert send.asked.caller == asked.caller, "another caller's answer"
            send.delivered_at = send.delivered_at or self.clock.monotonic()
        except Problem as problem:
            self.problems.append(problem.name)

    async def send(self, pending: PendingRequest) -> Answer:
        """Stand in for the sender: wait for the slot, send, wait for the answer."""
        send = Send(pending, self._asked[pending.exchange.id])
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
            send.ending.set_result(Answer(429, "", [], b"%d" % self.sends.index(send)))
        else:
            send.ending.set_result(Answer(202, "", [], b"%d" % self.sends.index(send)))

    async def finish(self) -> None:
        """Lose all answers that did not come, until no caller and no flight is left."""
        for _ in range(100):
            for send in self.sends:
                send.go.set()
            await self.clock.advance(0.001)
            self.note_losses()
            for send in self.sends:
                self.end(send, "lost")
            await self.clock.advance(1)
        assert all(caller.done() for caller in self.callers)

    def note_losses(self) -> None:
        for send in self.sends:
            is_over = send.ending.done()
            if send.is_sent and not is_over and not send.pending.is_present():
                send.lost_at = send.lost_at or self.clock.monotonic()

    def check(self, new: Send) -> None:
        now, key = self.clock.monotonic(), new.asked.digests.key
        for old in self.sends:
            if old is new or not old.is_sent or old.is_refused:
                continue
            if self.store.had_trouble and old.asked.replica != new.asked.replica:
                continue
            lost = old.lost_at
            if key is not None and key == old.asked.digests.key:
                delivered = old.delivered_at
                assert (delivered is not None and now >= delivered + KEEP) or (
                    lost is not None and now >= lost + WINDOW
                ), "a key was sent twice"
            if key is None and new.asked.digests.sameness == old.asked.digests.sameness:
                began = float(new.pending.exchange.arrived)
                assert lost is None or lost >= began or now >= lost + WINDOW, "sent twice"


async def _flushed() -> None:
    """Stand in for a caller that takes its answer at once."""


ACTIONS = st.lists(
    st.one_of(
        st.tuples(
            st.just("request"),
            st.integers(0, 1),
            st.sampled_from(["anna", "ben"]),
            st.sampled_from([b"1", b"2"]),
            st.sampled_from(["", "k", "l"]),
        ),
        st.tuples(st.just("leave"), st.integers(0, 2)),
        st.tuples(st.just("send"), st.integers(0, 2)),
        st.tuples(
            st.just("end"), st.integers(0, 2), st.sampled_from(["answered", "lost", "refused"])
        ),
        st.tuples(st.just("wait"), st.sampled_from([0.5, 61.0, 121.0])),
        st.tuples(st.just("reload"), st.sampled_from([KEEP, 2 * KEEP])),
        st.tuples(st.just("store"), st.sampled_from(["away", "back", "flushed", "full"])),
    ),
    max_size=25,
)


@pytest.mark.no_cover
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
            await world.finish()


async def act(world: World, action: tuple[Any, ...]) -> None:
    match action:
        case ("request", replica, caller, body, key):
            world.request(Asked(replica, caller, body, key), body)
        case ("leave", number) if world.callers:
            _latest(world.callers, number).cancel()
        case ("send", number) if world.sends:
            _latest(world.sends, number).go.set()
        case ("end", number, kind) if world.sends:
            world.end(_latest(world.sends, number), kind)
        case ("reload", keep):
            world.reload(keep)
        case ("store", trouble):
            world.store.suffer(trouble)
        case ("wait", seconds):
            await world.clock.advance(seconds)
        case _:
            pass


def _latest(all_of_them: list[Any], number: int) -> Any:
    """Return the newest, the one before it, or the one before that."""
    return all_of_them[-1 - number % len(all_of_them)]
