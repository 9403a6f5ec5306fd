"""Giving an answer of the API to the caller: bytes unchanged, three fields of ours added."""

import socket
import struct
from collections.abc import Sequence

from aiohttp import HttpVersion11, web
from multidict import CIMultiDict

from proxy.clock import Clock
from proxy.forwarding.exchange import Exchange
from proxy.http.client import Client
from proxy.http.connection import Response
from proxy.http.messages import Answer, OutcomeUnknown
from proxy.http.responses import RelayedResponse
from proxy.rules.headers import Field


class Relay:
    """Writes answers to callers."""

    def __init__(self, *, clock: Clock, pseudonym: str) -> None:
        self._clock = clock
        self._pseudonym = pseudonym

    async def pass_on(self, exchange: Exchange, answer: Answer) -> web.StreamResponse:
        """Give an answer that was read whole to the caller."""
        response = self._head(exchange, answer.status, answer.reason, answer.fields)
        response.leaves_whole()
        await response.prepare(exchange.request)
        await response.write_eof(answer.body)
        return response

    async def stream(
        self, exchange: Exchange, answer: Response, upstream: Client
    ) -> web.StreamResponse:
        """Give an answer to the caller as it comes; one that breaks off is visibly cut short."""
        if answer.is_complete:
            head, body = answer.head(), answer.read_nowait()
            return await self.pass_on(exchange, Answer(answer.status, *head, body))
        try:
            response = self._head(exchange, answer.status, *answer.head())
            await response.prepare(exchange.request)
            while chunk := await upstream.next_chunk(answer):
                await response.write(chunk)
        except OutcomeUnknown:
            abort(exchange.request)
        finally:
            answer.release()
        return response

    def _head(
        self, exchange: Exchange, status: int, reason: str, fields: Sequence[Field]
    ) -> RelayedResponse:
        exchange.origin = "upstream"
        headers = CIMultiDict(fields)
        exchange.correlation_id = headers.get("ININ-Correlation-Id")
        headers.add("Via", f"1.1 {self._pseudonym}")
        headers.add("Server-Timing", exchange.server_timing(self._clock.monotonic()))
        headers.setdefault("X-Request-Id", exchange.id)
        return RelayedResponse(status=status, reason=reason, headers=headers)


def abort(request: web.BaseRequest) -> None:
    """Close the caller's connection so that it cannot take the answer for complete."""
    if request.transport is None:
        return
    if request.version < HttpVersion11:  # no chunks: there an orderly close is the end of a body
        connection = request.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.transport.abort()
