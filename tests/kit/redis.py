"""A real redis-server on a free port, and what can happen to it.

It keeps nothing on disk: after a restart it is empty, as after a failover to an empty replica.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from tests.conftest import needs
from tests.kit.listener import HOST
from tests.kit.process import until
from tests.kit.upstream import free_port

STARTED_WITHIN = 60.0
SCRIPT_CALLS = ("evalsha", "eval")
# libfaketime and the jemalloc of Debian's redis-server exclude each other; moving the moments it
# holds, and when keys expire, is the same as moving the clock.
JUMP = """
for _, key in ipairs(redis.call('KEYS', '*')) do
  local left = redis.call('PTTL', key)
  if left >= 0 and left <= ARGV[1] * 1000 then
    redis.call('DEL', key)
  else
    if left >= 0 then redis.call('PEXPIRE', key, left - ARGV[1] * 1000) end
    if redis.call('TYPE', key).ok == 'hash' then
      for _, name in ipairs(redis.call('HKEYS', key)) do
        local moment = name == 'hold' or name:find('^due:') or name:find('^until:')
        if moment and not name:find('_span$') then
          local at = tonumber(redis.call('HGET', key, name)) - ARGV[1] * 1000000
          redis.call('HSET', key, name, string.format('%.0f', at))
        end
      end
    end
  end
end
"""


class RedisServer:
    """A server of one test. `client` speaks to it directly, with redis-py's own defaults."""

    def __init__(
        self, folder: Path, *, password: str | None = None, options: Sequence[str] = ()
    ) -> None:
        self.port = free_port()
        self.client = Redis(host=HOST, port=self.port, password=password)
        self._folder = folder
        self._password = password
        self._options = options
        self._child: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        user = f":{self._password}@" if self._password else ""
        return f"redis://{user}{HOST}:{self.port}/0"

    @property
    def pid(self) -> int:
        assert self._child is not None
        return self._child.pid

    async def start(self) -> None:
        """Start it, empty, on the port it always had; ready when this returns."""
        command = [
            *("redis-server", "--port", str(self.port), "--bind", HOST),
            *("--save", "", "--appendonly", "no", "--dir", str(self._folder)),
            *(("--requirepass", self._password) if self._password else ()),
            *self._options,
        ]
        self._child = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.DEVNULL
        )
        await until(self._answers, within=STARTED_WITHIN)

    async def jump_clock(self, seconds: int) -> None:
        """Move all it holds so far into the past, as setting its clock ahead does."""
        await cast("Any", self.client.eval(JUMP, 0, seconds))

    async def kill(self) -> None:
        await self._end(signal.SIGKILL)

    def freeze(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    async def stop(self) -> None:
        """End it, whatever state it is in."""
        await self.client.aclose()
        if self._child is not None:
            await self._end(signal.SIGKILL)

    async def flush(self) -> None:
        await self.client.flushall()

    async def everything(self) -> dict[str, str]:
        """All keys with what they hold, as text."""
        held: dict[str, str] = {}
        async for key in self.client.scan_iter():
            match await self.client.type(key):
                case b"hash":
                    value: object = await cast("Any", self.client.hgetall(key))
                case _:
                    value = await self.client.get(key)
            held[key.decode()] = repr(value)
        return held

    async def has_told(self, key: str, field: str) -> None:
        """Wait until an account's state says something there."""

        async def question() -> bool:
            return bool(await cast("Any", self.client.hget(key, field)))

        await until(question)

    async def script_calls(self) -> int:
        """How often a script was run since the last `forget_calls`."""
        return sum([await self.calls(name) for name in SCRIPT_CALLS])

    async def calls(self, command: str) -> int:
        """How often a command was run since the last `forget_calls`, by clients or by scripts."""
        stats = await self.client.info("commandstats")
        return int(stats.get(f"cmdstat_{command}", {"calls": 0})["calls"])

    async def forget_calls(self) -> None:
        await self.client.config_resetstat()

    async def _answers(self) -> bool:
        assert self._child is not None
        assert self._child.returncode is None, "redis-server ended at once"
        with suppress(RedisError, OSError):
            return bool(await cast("Any", self.client.ping()))
        return False

    async def _end(self, number: signal.Signals) -> None:
        assert self._child is not None
        if self._child.returncode is None:
            self._child.send_signal(number)
            await self._child.wait()
        self._child = None


@asynccontextmanager
async def redis_server(
    folder: Path, *, password: str | None = None, options: Sequence[str] = ()
) -> AsyncIterator[RedisServer]:
    """Run one; skips the test where it is not installed."""
    needs("redis-server")
    server = RedisServer(folder, password=password, options=options)
    try:
        await server.start()
        yield server
    finally:
        await server.stop()
