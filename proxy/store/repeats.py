"""Where the records of sent requests are kept: in memory, and with a shared store also there.

Theory of operation. `put` keeps a record for some seconds; it never waits, so no send waits for it.
`find` returns the record that counts. Both are bounded in entries and bytes. A full table gives up
the oldest record of the account that holds most, so that a flood costs the account that makes it.
A kept answer that was not delivered is given up in two steps: its answer goes first, and that it is
in doubt stays until its time is over.

With a shared store every record is written there, too, pipelined and not awaited. What this replica
knows itself comes first, so it goes on to recognise its own while the store is down, full or
flushed. A look-up of a key also claims it, in one round trip: of two replicas that look it up, one
finds the claim of the other.

Invariants: a name has one record. Every record ends. Nothing here decides what a record means; that
is in rules/repeats.py.
"""

import base64
import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from secrets import token_hex
from typing import Any, Final, Protocol

from proxy.clock import Clock
from proxy.rules.repeats import InDoubt, KeptAnswer, Record, State, UnderWay
from proxy.settings import Repeats
from proxy.store.client import PREFIX
from proxy.store.connection import Connection
from proxy.store.wire import StoreDown

ENTRY_BYTES: Final = 1_000  # what a record takes beside its answer; 790 were measured
_FIELD_BYTES: Final = 150
_KEY: Final = PREFIX + "repeat:"
_SWEEP_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose record it is: the key that tells accounts apart, and the name metrics have for it."""

    key: str
    label: str


class RepeatStore(Protocol):
    """What the proxy needs of the place where records are kept."""

    @property
    def is_shared(self) -> bool:
        """True if other replicas find what is kept here."""
        ...

    def apply(self, settings: Repeats) -> None:
        """Obey new bounds from now on."""
        ...

    async def find(self, name: bytes, claim: Record | None = None) -> Record | None:
        """Return the record of that name; if there is none, keep `claim` for some seconds."""
        ...

    def put(self, owner: Owner, name: bytes, record: Record, seconds: float) -> None:
        """Keep a record for so many seconds, in the place of any other of that name."""
        ...

    def drop(self, name: bytes) -> None:
        """Keep nothing under that name any longer."""
        ...


@dataclass(slots=True)
class _Entry:
    owner: Owner
    record: Record
    ends: float
    size: int


class LocalRepeats:
    """Keeps records in memory; `on_evicted` is told the account of each that is given up early."""

    def __init__(
        self, settings: Repeats, *, clock: Clock, on_evicted: Callable[[str], None]
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._on_evicted = on_evicted
        self._entries: dict[bytes, _Entry] = {}
        self._by_owner: dict[str, OrderedDict[bytes, None]] = {}
        self._answers: dict[str, OrderedDict[bytes, None]] = {}  # those of them with an answer
        self._bytes: dict[str, int] = {}
        self._total = 0
        self._next_sweep = 0.0

    def __repr__(self) -> str:
        return f"<LocalRepeats: {len(self._entries)} records, {self._total} bytes>"

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def is_shared(self) -> bool:
        """False: there are no other replicas."""
        return False

    def apply(self, settings: Repeats) -> None:
        """Obey new bounds from now on."""
        self._settings = settings
        self._make_room()

    async def find(self, name: bytes, claim: Record | None = None) -> Record | None:  # noqa: ARG002
        """Return the record of that name; a claim is for other replicas, and there are none."""
        return self.get(name)

    def get(self, name: bytes) -> Record | None:
        """Return the record of that name."""
        entry = self._entries.get(name)
        if entry is None or entry.ends <= self._clock.monotonic():
            return None
        return entry.record

    def put(self, owner: Owner, name: bytes, record: Record, seconds: float) -> None:
        """Keep a record for so many seconds, in the place of any other of that name."""
        self.drop(name)
        now = self._clock.monotonic()
        if now >= self._next_sweep:
            self._next_sweep = now + _SWEEP_SECONDS
            self._sweep(now)
        entry = _Entry(owner, record, now + seconds, _size(record))
        self._entries[name] = entry
        self._by_owner.setdefault(owner.key, OrderedDict())[name] = None
        if isinstance(record.state, KeptAnswer):
            self._answers.setdefault(owner.key, OrderedDict())[name] = None
        self._count(owner, entry.size)
        self._make_room()

    def drop(self, name: bytes) -> None:
        """Keep nothing under that name any longer."""
        entry = self._entries.pop(name, None)
        if entry is None:
            return
        names = self._by_owner[entry.owner.key]
        del names[name]
        self._count(entry.owner, -entry.size)
        self._drop_answer(entry.owner, name)
        if not names:
            del self._by_owner[entry.owner.key], self._bytes[entry.owner.key]

    def _count(self, owner: Owner, size: int) -> None:
        self._total += size
        self._bytes[owner.key] = self._bytes.get(owner.key, 0) + size

    def _sweep(self, now: float) -> None:
        for name in [name for name, entry in self._entries.items() if entry.ends <= now]:
            self.drop(name)

    def _make_room(self) -> None:
        while len(self._entries) > self._settings.max_entries:
            owner = max(self._by_owner, key=lambda key: len(self._by_owner[key]))
            self._give_up(next(iter(self._by_owner[owner])))
        while self._entries and self._total > self._settings.max_bytes:
            owner = max(self._bytes, key=self._bytes.__getitem__)
            self._shrink(owner)

    def _shrink(self, owner: str) -> None:
        """Give up the owner's oldest answer, and if it has none its oldest record."""
        answers = self._answers.get(owner)
        name = next(iter(answers or self._by_owner[owner]))
        entry = self._entries[name]
        if not answers or entry.record.is_delivered:
            self._give_up(name)
            return
        self._on_evicted(entry.owner.label)
        self._drop_answer(entry.owner, name)
        entry.record = replace(entry.record, state=InDoubt())
        self._count(entry.owner, ENTRY_BYTES - entry.size)
        entry.size = ENTRY_BYTES

    def _drop_answer(self, owner: Owner, name: bytes) -> None:
        answers = self._answers.get(owner.key)
        if answers is not None:
            answers.pop(name, None)
            if not answers:
                del self._answers[owner.key]

    def _give_up(self, name: bytes) -> None:
        self._on_evicted(self._entries[name].owner.label)
        self.drop(name)


def _size(record: Record) -> int:
    answer = record.state
    if not isinstance(answer, KeptAnswer):
        return ENTRY_BYTES
    fields = sum(len(name) + len(value) + _FIELD_BYTES for name, value in answer.fields)
    return ENTRY_BYTES + fields + len(answer.body)


class SharedRepeats:
    """Keeps records in memory, and in the store for the other replicas."""

    def __init__(self, local: LocalRepeats, connection: Connection, *, clock: Clock) -> None:
        self._local = local
        self._connection = connection
        self._clock = clock
        self._replica = token_hex(8)

    def __repr__(self) -> str:
        return f"<SharedRepeats: {self._local}>"

    @property
    def is_shared(self) -> bool:
        """True while the store is up."""
        return self._connection.is_up

    def apply(self, settings: Repeats) -> None:
        """Obey new bounds from now on."""
        self._local.apply(settings)

    async def find(self, name: bytes, claim: Record | None = None) -> Record | None:
        """Return the record of that name; if there is none, keep `claim` for some seconds."""
        record = self._local.get(name)
        if record is not None or not self._connection.is_up:
            return record
        if claim is not None:
            self._write(name, claim, claim.until - self._clock.wall(), "NX")
        try:
            answer = await self._connection.run("MGET", _key(name))
        except StoreDown:
            return self._local.get(name)
        value = answer[0] if isinstance(answer, list) else None
        found, replica = _decoded(value) if isinstance(value, bytes) else (None, "")
        if found is not None and replica == self._replica and isinstance(found.state, UnderWay):
            return None  # our own claim, or the mark of a flight that is known here
        return self._local.get(name) or found

    def put(self, owner: Owner, name: bytes, record: Record, seconds: float) -> None:
        """Keep a record for so many seconds; other replicas know of requests under way, too."""
        if not isinstance(record.state, UnderWay):
            self._local.put(owner, name, record, seconds)
        self._write(name, record, seconds)

    def drop(self, name: bytes) -> None:
        """Keep nothing under that name any longer."""
        self._local.drop(name)
        if self._connection.is_up:
            self._connection.send(("DEL", _key(name)), _ignore)

    def _write(self, name: bytes, record: Record, seconds: float, *options: str) -> None:
        if self._connection.is_up:
            value = _encoded(record, self._replica)
            milliseconds = max(1, int(1000 * seconds))
            self._connection.send(("SET", _key(name), value, "PX", milliseconds, *options), _ignore)


def _key(name: bytes) -> str:
    return _KEY + name.hex()


def _ignore(_: object) -> None:
    """Let a write end as it may: this replica knows what it wrote."""


def _encoded(record: Record, replica: str) -> bytes:
    match record.state:
        case KeptAnswer(status, reason, fields, body):
            text = base64.b64encode(body).decode("ascii")
            state: dict[str, Any] = {"answer": [status, reason, fields, text]}
        case UnderWay(is_sent):
            state = {"is_sent": is_sent}
        case InDoubt():
            state = {}
    document = {
        "sameness": record.sameness.hex(),
        "request_id": record.request_id,
        "sent_at": record.sent_at,
        "until": record.until,
        "is_delivered": record.is_delivered,
        "replica": replica,
        **state,
    }
    return json.dumps(document).encode("ascii")


def _decoded(value: bytes) -> tuple[Record | None, str]:
    """Return a record and its replica; none if it is not what a replica writes."""
    try:
        document = json.loads(value)
        state: State = InDoubt()
        if "answer" in document:
            status, reason, fields, text = document["answer"]
            pairs = tuple((str(name), str(content)) for name, content in fields)
            state = KeptAnswer(int(status), str(reason), pairs, base64.b64decode(text))
        elif "is_sent" in document:
            state = UnderWay(document["is_sent"] is True)
        record = Record(
            sameness=bytes.fromhex(document["sameness"]),
            request_id=str(document["request_id"]),
            sent_at=float(document["sent_at"]),
            until=float(document["until"]),
            state=state,
            is_delivered=document["is_delivered"] is True,
        )
        return record, str(document["replica"])
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
        return None, ""
