"""The API of the measurements: answers at once, and stamps what arrives if it is asked to.

A bare protocol, so that it is never what is measured. It answers every request alike, except while
another client uses up the quota: then with 429 and the whole seconds that are left of it.

    /control/count                            how many requests came so far
    /control/stamp                            note from now on when whose requests come
    /control/report                           the stamps, by caller
    /control/eaten?after=SECONDS&for=SECONDS  somebody else uses the quota up for a while
"""

import asyncio
import json
import math
import sys
import time
from collections import defaultdict
from email.utils import formatdate
from typing import ClassVar, cast
from urllib.parse import parse_qs, urlsplit

import uvloop

_BODY = json.dumps(
    {
        "id": "5f1b6ac0-5c3e-4b1a-9d0f-3f6f0c8a2f10",
        "name": "export",
        "status": "QUEUED",
        "createdDate": "2026-01-01T00:00:00.000Z",
        "modifiedDate": "2026-01-01T00:00:00.000Z",
        "selfUri": "/api/v2/recordings/exports/5f1b6ac0-5c3e-4b1a-9d0f-3f6f0c8a2f10",
    }
).encode()
_FIELDS = (
    "Content-Type: application/json\r\n"
    "Cache-Control: no-cache, no-store, must-revalidate\r\n"
    "Strict-Transport-Security: max-age=600; includeSubDomains\r\n"
    "ININ-Correlation-Id: 0f3c7c39-5e23-4d7c-8f0c-3f6c2a1e9b77\r\n"
)


class Api(asyncio.Protocol):
    """One connection; what is known of all of them is the class's."""

    count = 0
    is_stamping = False
    stamps: ClassVar[defaultdict[str, list[float]]] = defaultdict(list)
    eaten = (0.0, 0.0)
    accepted = b""

    @classmethod
    def set_date(cls) -> None:
        """Prepare the answer of this second, and of the next one when it comes."""
        head = f"HTTP/1.1 200 OK\r\nDate: {formatdate(usegmt=True)}\r\n{_FIELDS}"
        cls.accepted = f"{head}Content-Length: {len(_BODY)}\r\n\r\n".encode() + _BODY
        asyncio.get_running_loop().call_later(1 - time.time() % 1, cls.set_date)

    def __init__(self) -> None:
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        received = self._received + data
        while (end := received.find(b"\r\n\r\n")) >= 0:
            head, end = received[:end], end + 4
            at = head.lower().find(b"\r\ncontent-length:")
            if at >= 0:
                end += int(head[at + 17 :].split(b"\r\n", 1)[0])
                if len(received) < end:
                    break
            received = received[end:]
            self._transport.write(self._answer(head, now))
        self._received = received

    def _answer(self, head: bytes, now: float) -> bytes:
        if b" /control/" in head:
            return _as_json(self._obey(head.split(b" ", 2)[1].decode()))
        cls = type(self)
        cls.count += 1
        begin, end = cls.eaten
        if begin <= now < end:
            wait = math.ceil(end - now)
            return f"HTTP/1.1 429 No\r\nRetry-After: {wait}\r\nContent-Length: 0\r\n\r\n".encode()
        if cls.is_stamping:
            caller = head[head.lower().find(b"\r\nauthorization: bearer ") + 24 :]
            cls.stamps[caller.split(b"\r\n", 1)[0].decode()].append(now)
        return cls.accepted

    @classmethod
    def _obey(cls, target: str) -> object:
        url = urlsplit(target)
        match url.path.removeprefix("/control/"):
            case "stamp":
                cls.is_stamping = True
                cls.stamps.clear()
            case "report":
                return cls.stamps
            case "eaten":
                after, lasts = (float(parse_qs(url.query)[name][0]) for name in ("after", "for"))
                begin = time.monotonic() + after
                cls.eaten = begin, begin + lasts
            case _:
                pass
        return cls.count


def _as_json(value: object) -> bytes:
    body = json.dumps(value).encode()
    return f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Api, "127.0.0.1", 0, backlog=4096)
    Api.set_date()
    print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.exit(runner.run(_serve()))
