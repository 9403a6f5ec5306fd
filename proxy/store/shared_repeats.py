"""Records of sent requests that replicas share: each keeps its own in memory, and all in the store.

Theory of operation. Every record is written to the store as well, pipelined and not awaited. What
this replica knows itself comes first, so it goes on to recognise its own while the store is down,
full or flushed. A look-up of a key also claims it, in one round trip: of two replicas that look it
up, one finds the claim of the other.
"""

import base64
import json
from secrets import token_hex
from typing import Any, Final

from proxy.clock import Clock
from proxy.rules.repeats import InDoubt, KeptAnswer, Record, State, UnderWay
from proxy.settings import Repeats
from proxy.store.client import PREFIX
from proxy.store.connection import Connection
from proxy.store.repeats import LocalRepeats, Owner
from proxy.store.wire import StoreDown

_KEY: Final = PREFIX + "repeat:"


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
        """Keep a record for that many seconds; other replicas see requests under way, too."""
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
