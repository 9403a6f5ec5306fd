"""The HTTP client towards the API: sends a request at most once, and knows when it left.

The request is written here, in one piece, so that nothing happens between the check of the
connection, the write, and the timestamp of the send; and so that bytes pass unchanged: no path is
quoted, no redirect followed, no cookie kept, no body decoded, no field added, nothing taken from
the environment.

A request ends with an answer, or with one of four exceptions (see `messages`). Errors of sockets
and of the parser end here; never log them with `repr`, which may show the Authorization header.

A pooled connection is not used if it is idle longer than `idle_timeout`, closed by the peer, or has
bytes to read, which would be taken for the answer. The peer may still close it just then. A safe
request (RFC 9110 section 9.2.1) to which this happens is sent once more, on a new connection; no
other request is ever sent twice here.
"""

from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple

from aiohttp import HttpVersion11
from aiohttp.http import HttpProcessingError, RawResponseMessage
from yarl import URL

from proxy.clock import Clock
from proxy.http.connection import Connection
from proxy.http.messages import Answer, BadAnswer, OutcomeUnknown, Outgoing, Unsent, Withheld
from proxy.http.pool import Pool
from proxy.http.received import Response
from proxy.settings import Upstream as UpstreamSettings

_PROXY_WANTS_CREDENTIALS: Final = 407
_BROKEN_OFF: Final = (OSError, HttpProcessingError)  # what a connection raises; time-outs are both
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})  # of which no body is the rule, too


class Client:
    """Sends requests to the server of the URL `base`, over one pool of connections."""

    def __init__(
        self, settings: UpstreamSettings, base: str, *, clock: Clock, max_header: int = 0
    ) -> None:
        self._clock = clock
        self._is_given_up = False
        self._retired: list[Pool] = []
        self._pool = Pool(settings, URL(base).origin(), max_header=max_header)

    def apply(self, settings: UpstreamSettings, base: str, *, max_header: int = 0) -> None:
        """Use new settings from now on; what is under way goes on as it began."""
        pool, origin = self._pool, URL(base).origin()
        if (settings, origin, max_header) != (pool.settings, pool.origin, pool.max_header):
            pool.retire()
            self._retired = [old for old in (*self._retired, pool) if not old.is_empty]
            self._pool = Pool(settings, origin, max_header=max_header)

    async def give_up(self) -> None:
        """Break off unanswered requests; their senders get a timeout."""
        self._is_given_up = True
        await self.close()

    async def close(self) -> None:
        """Break off all connections."""
        for pool in (self._pool, *self._retired):
            await pool.close()

    def connections(self) -> tuple[int, int]:
        """Return how many connections are active and how many idle, those of old settings too."""
        active, idle = zip(*(pool.counts() for pool in (self._pool, *self._retired)), strict=True)
        return sum(active), sum(idle)

    async def send(
        self,
        request: Outgoing,
        *,
        may_leave: Callable[[], bool] = lambda: True,
        on_sent: Callable[[float], None] = lambda _: None,
    ) -> Response:
        """Send once and return the answer with its body still to be read.

        `may_leave` is called once there is a connection, immediately before the write, since
        connecting takes time. If it returns False, `Withheld` is raised. `on_sent` is called if and
        only if something may have left, with the monotonic time at which all of it was written.

        Raises `Unsent`, `Withheld`, `OutcomeUnknown` or `BadAnswer`.
        """
        pool = self._pool  # a reload while it connects is for later requests
        data = _wire_form(request, pool)
        connection = pool.take_idle() or await pool.take()
        lost: _Loss | None = None
        while True:
            if not may_leave():
                pool.give_back(connection)
                raise Withheld if lost is None else lost.unknown()
            is_used = not connection.is_fresh
            try:
                connection.ask(data, has_body=request.method != "HEAD")
                on_sent(self._clock.monotonic())
                message, content = await connection.answer()
                _check(message, pool)
            except BaseException as error:
                pool.discard(connection)
                if isinstance(error, HttpProcessingError):
                    raise BadAnswer("the answer is not HTTP") from None
                if not isinstance(error, OSError):
                    raise
                is_idle_end = is_used and not connection.has_received
                lost = self._lost(error, may_repeat=is_idle_end and request.method in _SAFE)
                error.__traceback__ = None  # the connection keeps it: it would refer back to here
            else:
                return Response(message, content, partial(pool.give_back, connection))
            connection = await self._take_another(pool, lost, may_leave)

    async def _take_another(
        self, pool: Pool, lost: "_Loss", may_leave: Callable[[], bool]
    ) -> Connection:
        """Return a new connection for a request that may be sent again; else raise the loss."""
        if not lost.may_repeat:
            raise lost.unknown()
        pool.drop_idle()  # the server may be closing them, too
        if not may_leave():
            raise lost.unknown()
        try:
            return await pool.take(is_new=True)
        except Unsent:
            raise lost.unknown() from None

    async def read(self, answer: Response, limit: int) -> Answer:
        """Read an answer whole; one longer than `limit` bytes raises `BadAnswer`.

        Raises `OutcomeUnknown` if it breaks off.
        """
        whole = await self.read_short(answer, limit)
        if whole is None:
            answer.release()
            raise BadAnswer("longer than can be kept")
        return whole

    async def read_short(self, answer: Response, limit: int) -> Answer | None:
        """Read an answer whole; None, without consuming it, if it is longer than `limit` bytes.

        Raises `OutcomeUnknown` if it breaks off.
        """
        body = bytearray()
        while chunk := await self.next_chunk(answer):
            body += chunk
            if len(body) > limit:
                answer.keep(bytes(body))
                return None
        return Answer(answer.status, *answer.head(), bytes(body))

    async def next_chunk(self, answer: Response) -> bytes:
        """Return the next bytes of the body, none at its end.

        Raises `OutcomeUnknown` if it breaks off. Release an answer that is not read to its end.
        """
        try:
            return await answer.read_any()
        except BaseException as error:
            answer.release()
            if isinstance(error, _BROKEN_OFF):
                error.__traceback__ = None  # the answer keeps it, likewise
                raise self._lost(error).unknown() from None
            raise

    def _lost(self, error: BaseException, *, may_repeat: bool = False) -> "_Loss":
        timed_out = self._is_given_up or isinstance(error, TimeoutError)
        return _Loss(timed_out=timed_out, may_repeat=may_repeat and not timed_out)


class _Loss(NamedTuple):
    """How an answer was lost, until it is raised; a kept exception would be a reference cycle."""

    timed_out: bool
    may_repeat: bool

    def unknown(self) -> OutcomeUnknown:
        return OutcomeUnknown(timed_out=self.timed_out, may_repeat=self.may_repeat)


def _wire_form(request: Outgoing, pool: Pool) -> bytes:
    """Return the bytes of a request; field bytes that are not UTF-8 stay unchanged."""
    target = request.target
    if pool.asks_forward_proxy:
        target = f"{pool.origin}{target}"
    lines = [f"{request.method} {target} HTTP/1.1", f"Host: {pool.host}"]
    if request.body or request.method not in _SAFE:
        lines.append(f"Content-Length: {len(request.body)}")
    if not pool.settings.idle_timeout:
        lines.append("Connection: close")
    lines += [f"{name}: {value}" for name, value in request.fields]
    if pool.asks_forward_proxy:
        lines += [f"{name}: {value}" for name, value in pool.forward_fields]
    head = "\r\n".join(lines)
    if not head.count("\r") == head.count("\n") == len(lines) - 1 or "\0" in head:
        raise ValueError("a line of the request has a line break or NUL in it")
    return head.encode("utf-8", "surrogateescape") + b"\r\n\r\n" + request.body


def _check(message: RawResponseMessage, pool: Pool) -> None:
    """Raise `BadAnswer` for an answer that must not be passed on."""
    if pool.asks_forward_proxy and message.code == _PROXY_WANTS_CREDENTIALS:
        raise Unsent("the forward proxy wants other credentials")
    if not 200 <= message.code <= 599:  # noqa: PLR2004 -- RFC 9110 section 15
        raise BadAnswer("a status nobody asked for")
    codings = message.headers.getall("Transfer-Encoding", ())
    if codings and (
        message.version != HttpVersion11 or [value.lower() for value in codings] != ["chunked"]
    ):
        # RFC 9112 section 6.1: none before HTTP/1.1; of the others none was asked for.
        raise BadAnswer("a transfer coding nobody asked for")
