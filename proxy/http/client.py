"""The HTTP client towards the API: sends a request at most once, and knows when it left.

Of the HTTP library it uses the pool of connections and the parser of answers. The request is
written here: in one piece, so that nothing comes between looking whether the connection still
stands, writing, and stamping the send; and so that bytes pass unchanged: no path is quoted, no
redirect followed, no cookie kept, no body decoded, no field invented, nothing taken from the
environment.

Whatever goes wrong is one of three: `Unsent` (provably nothing left), `OutcomeUnknown` (it may have
been applied) or `BadAnswer` (answered, but not in HTTP). `Withheld` says that it was not to leave
any more when there was a connection. Errors of the library end here; they are never logged with
`repr`, which may show the Authorization header.

A pooled connection is not used if it is idle longer than `idle_timeout`, closed by the peer, or has
something to be read, which would be taken for the answer. Nothing is sent twice here.
"""

import asyncio
from collections.abc import Callable
from typing import Final

import aiohttp
from aiohttp import HttpVersion11
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.http import HttpProcessingError, RawResponseMessage, StreamWriter
from aiohttp.streams import StreamReader
from multidict import CIMultiDict
from yarl import URL

from proxy.clock import Clock
from proxy.http.connection import Response, UpstreamProtocol
from proxy.http.messages import Answer, BadAnswer, OutcomeUnknown, Outgoing, Unsent, Withheld
from proxy.http.pool import Destination
from proxy.settings import Upstream as UpstreamSettings

_MAX_FIELD: Final = 8190  # bytes of a line of an answer's head, of which there may be 128
_PROXY_WANTS_CREDENTIALS: Final = 407
_FOREIGN: Final = (aiohttp.ClientError, TimeoutError, OSError)  # what the library raises
_FOREIGN_IN_BODY: Final = (*_FOREIGN, HttpProcessingError)
_WITHOUT_LENGTH: Final = frozenset({"GET", "HEAD", "OPTIONS"})  # where no body is the rule


class Client:
    """One pool of connections to one server, that of the URL `base`."""

    def __init__(self, settings: UpstreamSettings, base: str, *, clock: Clock) -> None:
        self._clock = clock
        self._is_given_up = False
        self._retired: list[Destination] = []
        self._server = Destination.of(settings, URL(base).origin())

    def apply(self, settings: UpstreamSettings, base: str) -> None:
        """Use new settings from now on; what is under way goes on as it began.

        The retired pool's idle connections close by themselves.
        """
        server, origin = self._server, URL(base).origin()
        if (settings, origin) != (server.settings, server.base):
            self._retired = [
                retired
                for retired in (*self._retired, server)
                if retired.active() or retired.idle()
            ]
            self._server = Destination.of(settings, origin)

    async def give_up(self) -> None:
        """Break off whatever is still unanswered; whoever waits for it learns it timed out."""
        self._is_given_up = True
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        for server in (self._server, *self._retired):
            await server.close()

    def connections(self) -> tuple[int, int]:
        """Return how many connections are active and how many idle."""
        return len(self._server.active()), len(self._server.idle())

    async def send(
        self,
        request: Outgoing,
        *,
        may_leave: Callable[[], bool] = lambda: True,
        on_sent: Callable[[float], None] = lambda _: None,
    ) -> Response:
        """Send once and return the answer with its body still to be read.

        `may_leave` is asked when there is a connection, immediately before the request is written:
        to connect takes time. If it says no, `Withheld` is raised. `on_sent` is called exactly when
        something may have left, with the monotonic time at which all of it was written.

        Raises `Unsent`, `Withheld`, `OutcomeUnknown` or `BadAnswer`.
        """
        server = self._server  # a reload while it connects is for those who come later
        connection, protocol = await self._connect(server)
        if not may_leave():
            connection.release()
            raise Withheld
        try:
            await _write(request, protocol, server)
        except BaseException as error:
            connection.close()
            if isinstance(error, _FOREIGN):
                raise Unsent(_reason(error)) from None
            raise
        deadline = asyncio.get_running_loop().call_later(
            server.settings.response_timeout, protocol.time_out
        )
        try:
            on_sent(self._clock.monotonic())
            message, content = await _final_answer(protocol)
            _check(message, server)
        except BaseException as error:
            connection.close()
            if isinstance(error, HttpProcessingError):
                raise BadAnswer("the answer is not HTTP") from None
            if isinstance(error, _FOREIGN):
                raise self._lost(error) from None
            raise
        finally:
            deadline.cancel()
        return Response(connection, message, content)

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
        """Read an answer whole; None for one longer than `limit` bytes, still all to be read.

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
        """Return what comes next of the body, nothing at its end.

        Raises `OutcomeUnknown` if it breaks off. Whoever stops before the end releases the answer.
        """
        try:
            return await answer.read_any()
        except BaseException as error:
            answer.release()
            if isinstance(error, _FOREIGN_IN_BODY):
                raise self._lost(error) from None
            raise

    def _lost(self, error: BaseException) -> OutcomeUnknown:
        return OutcomeUnknown(timed_out=self._is_given_up or isinstance(error, TimeoutError))

    async def _connect(self, server: Destination) -> tuple[Connection, UpstreamProtocol]:
        """Return a connection that can be written to; raises `Unsent`.

        Each pooled one that is of no use is closed; after the last of them comes a fresh one.
        """
        while not server.pool.closed:
            try:
                connection = await server.pool.connect(server.destination, [], server.timeout)
            except _FOREIGN as error:
                server.wake_another()
                raise Unsent(_reason(error)) from None
            except asyncio.CancelledError:
                server.wake_another()
                task = asyncio.current_task()
                if server.pool.closed and task is not None and not task.cancelling():
                    break  # not we are cancelled but our wait, which the pool's end has ended
                raise
            protocol = connection.protocol
            assert isinstance(protocol, UpstreamProtocol)  # noqa: S101 -- for the type checker
            if protocol.is_usable():
                protocol.is_fresh = False
                return connection, protocol
            connection.close()
            if protocol.is_fresh:
                raise Unsent("closed as soon as it was open")
        raise Unsent("given up")


async def _write(request: Outgoing, protocol: ResponseHandler, server: Destination) -> None:
    """Hand the whole request to the transport; nothing in here waits."""
    protocol.set_response_params(
        skip_payload=request.method == "HEAD",
        read_until_eof=True,
        auto_decompress=False,
        read_timeout=server.settings.response_timeout,
        max_line_size=_MAX_FIELD,
        max_field_size=_MAX_FIELD,
    )
    headers = CIMultiDict([("Host", server.host)])
    if request.body or request.method not in _WITHOUT_LENGTH:
        headers["Content-Length"] = str(len(request.body))
    if not server.settings.idle_timeout:
        headers["Connection"] = "close"
    headers.extend(request.fields)
    target = request.target
    if server.asks_forward_proxy:
        target = f"{server.base}{target}"
        headers.extend(server.proxy_headers)
    writer = StreamWriter(protocol, asyncio.get_running_loop())
    await writer.write_headers(f"{request.method} {target} HTTP/1.1", headers)
    if request.body:
        await writer.write(request.body, drain=False)
    else:
        writer.send_headers()


def _check(message: RawResponseMessage, server: Destination) -> None:
    """Refuse an answer that must not be passed on."""
    if server.asks_forward_proxy and message.code == _PROXY_WANTS_CREDENTIALS:
        raise Unsent("the forward proxy wants other credentials")
    if not 200 <= message.code <= 599:  # noqa: PLR2004 -- RFC 9110 section 15
        raise BadAnswer("a status nobody asked for")
    if message.version != HttpVersion11 and "Transfer-Encoding" in message.headers:
        raise BadAnswer("chunks before HTTP/1.1")  # RFC 9112 section 6.1


def _reason(error: BaseException) -> str:
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return f"the forward proxy answered {error.status}"
    return type(error).__name__


async def _final_answer(protocol: ResponseHandler) -> tuple[RawResponseMessage, StreamReader]:
    """Return head and body of the answer; interim ones (RFC 9110 section 15.2) are for nobody."""
    while True:
        message, content = await protocol.read()
        if not 100 <= message.code <= 199 or message.code == 101:  # noqa: PLR2004 -- as named
            return message, content
