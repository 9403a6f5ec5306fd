"""What replicas share about incidents, in the store.

There are three kinds of keys. A lock, which expires by itself, guards the opening of one incident.
A sorted set holds the replicas that see its trouble, each with the wall time of its last note; a
note counts for `BELIEVED_SECONDS`, so a killed replica does not keep an incident open. A mark
stands for an incident that was announced to a desk that keeps no list.

While the store is down each replica acts alone: it opens, and it closes.
"""

from collections.abc import Collection
from secrets import token_hex
from typing import Final

from proxy.clock import Clock
from proxy.store.client import PREFIX
from proxy.store.connection import Connection
from proxy.store.wire import Reply, StoreDown, Word, answer_of

LOCK_SECONDS: Final = 60  # longer than the calls that are made under it, which have 20 s
BELIEVED_SECONDS: Final = 60
_MARK_SECONDS: Final = 604_800  # a week: then trouble that still lasts is announced again
_AT_ONCE: Final = 500  # keys of one command
_UNLOCK: Final = (
    "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"
)


class SharedLedger:
    """The ledger of replicas that share a store."""

    def __init__(self, connection: Connection, *, clock: Clock) -> None:
        self._connection = connection
        self._clock = clock
        self._replica = token_hex(8)

    def __repr__(self) -> str:
        return f"<SharedLedger of {self._replica}>"

    async def lock(self, incident: str) -> bool:
        """Take the right to open that incident, for a while; False if another replica has it."""
        words = ("SET", _key("lock", incident), self._replica, "NX", "EX", LOCK_SECONDS)
        return await self._run(*words, down=b"OK") is not None

    async def unlock(self, incident: str) -> None:
        """Give that right back, if it is still ours."""
        await self._run("EVAL", _UNLOCK, 1, _key("lock", incident), self._replica)

    async def see(self, incidents: Collection[str]) -> None:
        """Note that this replica sees the trouble of those incidents."""
        now = int(self._clock.wall())
        for incident in incidents:
            key = _key("seen", incident)
            await self._run("ZADD", key, now, self._replica)
            await self._run("EXPIRE", key, 2 * BELIEVED_SECONDS)

    async def leave(self, incident: str) -> bool:
        """Note that it sees that trouble no longer; True if no other replica does."""
        key = _key("seen", incident)
        await self._run("ZREM", key, self._replica)
        believed = int(self._clock.wall()) - BELIEVED_SECONDS
        return not await self._run("ZCOUNT", key, believed, "+inf", down=0)

    async def keep(self, incident: str) -> None:
        """Note that the incident was announced."""
        await self._run("SET", _key("open", incident), 1, "EX", _MARK_SECONDS)

    async def forget(self, incident: str) -> None:
        """Note that its end was announced."""
        await self._run("DEL", _key("open", incident))

    async def kept(self, incidents: Collection[str]) -> Collection[str]:
        """Return those of them that were announced, and not their end."""
        found: list[str] = []
        names = sorted(incidents)
        for start in range(0, len(names), _AT_ONCE):
            some = names[start : start + _AT_ONCE]
            answer = await self._run("MGET", *(_key("open", name) for name in some))
            if isinstance(answer, list):
                found += [name for name, mark in zip(some, answer, strict=True) if mark]
        return found

    async def _run(self, *words: Word, down: Reply = None) -> Reply:
        """Run a command; return `down` if the store is down."""
        if not self._connection.is_up:
            return down
        try:  # not `Connection.run`: a refused command here is no reason to give up the store
            return await answer_of(lambda answered: self._connection.send(words, answered))
        except StoreDown:
            return down


def _key(what: str, incident: str) -> str:
    return f"{PREFIX}incident-{what}:{incident}"
