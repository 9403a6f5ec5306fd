"""One call of a desk, and what its answer means; redirects are not followed.

An unsuccessful answer is one of two failures. `DeskDown` concerns the desk: it takes no calls for a
while. `DeskRefuses` concerns this one call, which would fail again unchanged.
"""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlsplit

from proxy.clock import Clock
from proxy.deadlines import time_limit
from proxy.http.client import Client
from proxy.http.messages import Answer, BadAnswer, OutcomeUnknown, Outgoing, Unsent
from proxy.rules.codings import coded_fields, decoded
from proxy.rules.headers import Field
from proxy.rules.retry_after import retry_after
from proxy.settings import Incidents, Upstream

CALL_SECONDS: Final = 10.0  # for one call, connecting included
LONGEST_WAIT: Final = 3_600.0  # the longest that a desk may ask for
_MAX_ANSWER: Final = 1_048_576  # bytes: a thousand incidents that are looked up
_ABOUT_THE_DESK: Final = frozenset(
    {HTTPStatus.UNAUTHORIZED, HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS}
)


class DeskDown(Exception):
    """The desk takes no calls now; `wait` is what it asked for, in seconds."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class DeskRefuses(Exception):
    """The desk refuses this call; `status` is its answer."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the desk answers {status}")
        self.status = status


class DeskClient:
    """Calls one desk."""

    def __init__(self, settings: Incidents, upstream: Upstream, *, clock: Clock) -> None:
        self._clock = clock
        self._client = Client(upstream, settings.url, clock=clock)
        self._url = settings.url

    def apply(self, upstream: Upstream) -> None:
        """Use new settings of connections from the next call on."""
        self._client.apply(upstream, self._url)

    async def close(self) -> None:
        """Break off all connections."""
        await self._client.close()

    async def call(
        self,
        method: str,
        target: str,
        fields: Mapping[str, str],
        body: bytes = b"",
    ) -> bytes:
        """Return the body of a success. Raises `DeskDown` or `DeskRefuses`."""
        parts = urlsplit(target)
        request = Outgoing(method, parts.path or "/", parts.query, _fields(fields, body), body)
        try:
            async with time_limit(CALL_SECONDS):
                response = await self._client.send(request)
                answer = await self._client.read(response, _MAX_ANSWER)
        except Unsent:
            raise DeskDown("the desk cannot be reached") from None
        except (OutcomeUnknown, TimeoutError):
            raise DeskDown("the desk does not answer") from None
        except BadAnswer:
            raise DeskDown("the desk's answer is not usable") from None
        self._check(answer)
        return decoded(answer.body, coded_fields(answer.fields), limit=_MAX_ANSWER) or b""

    def _check(self, answer: Answer) -> None:
        status = answer.status
        if status < HTTPStatus.MULTIPLE_CHOICES:
            return
        is_ours = HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR
        if is_ours and status not in _ABOUT_THE_DESK:
            raise DeskRefuses(status)
        named = [value for name, value in answer.fields if name.lower() == "retry-after"]
        date = next((value for name, value in answer.fields if name.lower() == "date"), None)
        wait = retry_after(named, date=date, now=self._clock.wall(), maximum=LONGEST_WAIT)
        raise DeskDown(f"the desk answers {status}", wait)


def json_of(body: bytes) -> Any:
    """Return the JSON of an answer. Raises `DeskDown` for anything else, such as a log-in page."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise DeskDown("the desk's answer is not JSON") from None


def _fields(fields: Mapping[str, str], body: bytes) -> list[Field]:
    kind = {"Content-Type": "application/json"} if body else {}
    common = {"Accept": "application/json", "Accept-Encoding": "gzip", "User-Agent": "export-proxy"}
    return [*common.items(), *kind.items(), *fields.items()]
