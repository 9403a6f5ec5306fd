"""The records of sent requests: kept in memory, and with a shared store there, too.

This is the memory of one replica; what the store has of it is in shared_repeats.py.

Theory of operation. `put` keeps a record for some seconds; it never waits, so no send waits for it.
`find` returns the record that counts. Both are bounded in entries and bytes. A full table drops the
oldest record of the account that has most, so that a flood costs only the account that causes it.
An undelivered answer is dropped in two steps: first the answer; the note that it is in doubt stays
until its time is over.

Invariants: a name has one record. Every record ends. Nothing here decides what a record means; that
is in rules/repeats.py.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Protocol

from proxy.clock import Clock
from proxy.rules.repeats import InDoubt, KeptAnswer, Record
from proxy.settings import Repeats

ENTRY_BYTES: Final = 1_000  # what a record takes beside its answer; 790 were measured
_FIELD_BYTES: Final = 150
_SWEEP_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Owner:
    """The owner of a record: the account's key, and its name in metrics."""

    key: str
    label: str


class RepeatStore(Protocol):
    """What the proxy needs of a store of records."""

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
        """Keep a record for that many seconds, instead of any other of that name."""
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
    """Keeps records in memory; `on_evicted` gets the account of each one dropped early."""

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
        """Keep a record for that many seconds, instead of any other of that name."""
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
