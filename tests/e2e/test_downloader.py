"""The flow of a downloader that knows nothing of a pace: create all, then poll all, all at once."""

import asyncio
import json
from itertools import pairwise

from tests.kit.client import RawConnection
from tests.kit.listener import HOST
from tests.kit.process import until
from tests.kit.scene import Scene, poll, scene
from tests.kit.upstream import RecordedRequest, Reply, Step

BATCHES = "/api/v2/recording/batchrequests"
COUNT = 45
POLLS = 3  # of each batch, until it is done
INTERVAL = 0.5
EVERY = 5.0  # seconds between two polls of one batch
IDEAL = (COUNT + COUNT * POLLS) * INTERVAL


class Api:
    """Creates batches, and allows one arrival an interval."""

    def __init__(self) -> None:
        self.polls: dict[bytes, int] = {}
        self._last = -INTERVAL

    def __call__(self, request: RecordedRequest) -> Step:
        if request.arrived_at < self._last + INTERVAL:
            return Reply(429, [("Retry-After", "1")])
        self._last = request.arrived_at
        if request.method == b"POST":
            number = json.loads(request.body)["number"]
            return Reply(202, body=json.dumps({"id": number}).encode())
        self.polls[request.target] = self.polls.get(request.target, 0) + 1
        is_done = self.polls[request.target] == POLLS
        return Reply(200, body=json.dumps({"done": is_done}).encode())


class Downloader:
    """One thread a batch; all of them poll at the same moments."""

    def __init__(self, it: Scene) -> None:
        self._it = it
        self.sleeping = self.done = 0
        self.statuses: set[int] = set()

    async def fetch(self, number: int) -> None:
        """Create a batch and poll it until it is done."""
        async with await RawConnection.open(HOST, self._it.port) as connection:
            body = json.dumps({"number": number}).encode()
            created = await self._ask(connection, poll(path=BATCHES, method="POST", body=body))
            while True:
                await self._sleep_until_next()
                state = await self._ask(connection, poll(path=f"{BATCHES}/{created['id']}"))
                if state["done"]:
                    break
        self.done += 1

    async def _ask(self, connection: RawConnection, data: bytes) -> dict[str, int]:
        await connection.send(data)
        answer = await connection.read_response(data.split(b" ", 1)[0].decode(), timeout=300)
        self.statuses.add(answer.status)
        document: dict[str, int] = json.loads(answer.body)
        return document

    async def _sleep_until_next(self) -> None:
        clock = self._it.clock
        self.sleeping += 1
        await clock.sleep_until((clock.monotonic() // EVERY + 1) * EVERY)
        self.sleeping -= 1

    async def is_at_rest(self) -> bool:
        """True if each thread waits in the queue or for its next poll, or is done."""
        return self._it.depth + self.sleeping + self.done == COUNT


async def test_45_batches_polled_in_lockstep_take_little_more_than_their_sends() -> None:
    """All are done, none of its requests is refused, and none comes early."""
    api = Api()
    async with scene(api, pacing={"interval": INTERVAL}) as it:
        downloader = Downloader(it)
        async with asyncio.TaskGroup() as tasks:
            for number in range(COUNT):
                tasks.create_task(downloader.fetch(number))
            while downloader.done < COUNT:
                await until(downloader.is_at_rest)
                sent, depth = len(it.upstream.requests), it.depth
                await it.clock.advance(INTERVAL)
                if depth:
                    await it.upstream.received(sent + 1)
        took = it.clock.monotonic()
    assert downloader.statuses == {200, 202}
    assert set(api.polls.values()) == {POLLS}
    assert len(api.polls) == COUNT
    times = [request.arrived_at for request in it.upstream.requests]
    assert len(times) == COUNT + COUNT * POLLS
    assert all(later - earlier >= INTERVAL for earlier, later in pairwise(times))
    assert took <= 1.3 * IDEAL
