"""The number of this replica among all, by which it knows its phase while the store is down.

While the store is up each replica claims the lowest free number, and renews the claim every few
seconds. It keeps its number when the store goes down. A replica that never claimed a number takes a
random one. If the API refuses a request, another replica may have the same number, so it takes
another.

Invariant: two replicas that claimed their numbers have different ones, if there are at most as many
replicas as configured.
"""

from collections.abc import Callable
from math import inf
from typing import Final

from proxy.clock import Clock
from proxy.rules.phase import next_in_phase
from proxy.store.client import PREFIX
from proxy.store.connection import Connection
from proxy.store.wire import Reply, StoreDown

_KEY: Final = PREFIX + "replicas"
_CLAIM_MS: Final = 10_000  # a replica that does not renew its claim for so long has ended
_RENEW_SECONDS: Final = 3.0
_MOVE_SECONDS: Final = 1.0  # between two moves: refusals come in groups
# KEYS: numbers. ARGV: replica, how many numbers, the one it has or -1, milliseconds a claim lasts.
_CLAIM: Final = """
if redis.call('TYPE', KEYS[1]).ok ~= 'hash' then redis.call('DEL', KEYS[1]) end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function is_free(number)
  local claim = redis.call('HGET', KEYS[1], number) or ''
  local who, ends = string.match(claim, '^(%w+) (%d+)$')
  return not who or who == ARGV[1] or tonumber(ends) < now or tonumber(ends) > now + ARGV[4]
end
local taken = tonumber(ARGV[3])
if taken < 0 or taken >= tonumber(ARGV[2]) or not is_free(taken) then
  taken = -1
  for number = 0, ARGV[2] - 1 do
    if taken < 0 and is_free(number) then taken = number end
  end
end
if taken >= 0 then
  redis.call('HSET', KEYS[1], taken, ARGV[1] .. ' ' .. string.format('%.0f', now + ARGV[4]))
  redis.call('PEXPIRE', KEYS[1], ARGV[4])
end
return taken
"""


class ReplicaNumber:
    """The number of this replica, claimed in the store or taken at random."""

    def __init__(
        self, connection: Connection, me: str, *, clock: Clock, random: Callable[[], float]
    ) -> None:
        self._connection = connection
        self._me = me
        self._clock = clock
        self._random = random
        self._claimed = -1
        self._renew_at = -inf
        self._taken = int(random() * self._replicas)
        self._moved_at = clock.monotonic()
        connection.heartbeats.append(self._claim)

    def __repr__(self) -> str:
        return f"<ReplicaNumber {self.number} of {self._replicas}>"

    @property
    def number(self) -> int:
        """The number, from 0."""
        return self._taken if self._claimed < 0 else self._claimed

    @property
    def _replicas(self) -> int:
        return self._connection.settings.replicas

    def next_in_phase(self, at: float, interval: float) -> float:
        """Return the first moment from then on at which this replica may send without a lease."""
        if self._replicas == 1:
            return at
        now = self._clock.monotonic()
        return next_in_phase(
            at,
            now=now,
            wall_offset=self._clock.wall() - now,
            interval=interval,
            replicas=self._replicas,
            number=self.number,
        )

    def refused(self) -> None:
        """After a refusal, take another number if this one was not claimed."""
        now = self._clock.monotonic()
        if self._claimed < 0 and now - self._moved_at >= _MOVE_SECONDS:
            self._moved_at = now
            step = 1 + int(self._random() * (self._replicas - 1))
            self._taken = (self._taken + step) % self._replicas

    def _claim(self) -> None:
        now = self._clock.monotonic()
        if now < self._renew_at:
            return
        self._renew_at = now + _RENEW_SECONDS
        words = ("EVAL", _CLAIM, 1, _KEY, self._me, self._replicas, self._claimed, _CLAIM_MS)
        self._connection.send(words, self._claimed_now)

    def _claimed_now(self, reply: Reply | StoreDown) -> None:
        if isinstance(reply, int):
            self._claimed = reply
