"""What crosses the proxy: requests on their way out, answers on their way back, bytes unchanged.

A request gets one field of ours (Via), an answer three.
"""

import socket
import struct
from collections.abc import Sequence

from aiohttp import HttpVersion11, web
from multidict import CIMultiDict

from proxy.forwarding.exchange import Exchange
from proxy.http.client import Client
from proxy.http.connection import Response
from proxy.http.messages import Answer, OutcomeUnknown, Outgoing
from proxy.http.responses import RelayedResponse
from proxy.rules.headers import Field, request_fields, via, wire_fields
from proxy.rules.targets import Target


class Relay:
    """Makes requests to the API of those of callers, and writes its answers to callers.

    `pseudonym` is the proxy's own name in Via (RFC 9110 section 7.6.3).
    """

    def __init__(self, api: Client, *, pseudonym: str) -> None:
        self._api = api
        self._pseudonym = pseudonym

    def outgoing(self, request: web.BaseRequest, target: Target, body: bytes) -> Outgoing:
        """Return what goes upstream for a request."""
        headers = request.headers
        fields = request_fields(wire_fields(request.raw_headers), headers.getall("Connection", ()))
        fields.append(("Via", via(request.version, self._pseudonym, headers.getall("Via", ()))))
        return Outgoing(
            method=request.method,
            path=target.path,
            query=target.query or "",
            fields=fields,
            body=body,
        )

    async def pass_on(self, exchange: Exchange, answer: Answer) -> web.StreamResponse:
        """Give an answer that was read whole to the caller."""
        response = self._head(exchange, answer.status, answer.reason, answer.fields)
        response.leaves_whole()
        await response.prepare(exchange.request)
        await response.write_eof(answer.body)
        return response

    async def stream(self, exchange: Exchange, answer: Response) -> web.StreamResponse:
        """Give an answer to the caller as it comes; one that breaks off is visibly cut short."""
        if answer.is_complete:
            head, body = answer.head(), answer.read_nowait()
            return await self.pass_on(exchange, Answer(answer.status, *head, body))
        try:
            response = self._head(exchange, answer.status, *answer.head())
            await response.prepare(exchange.request)
            while chunk := await self._api.next_chunk(answer):
                await response.write(chunk)
        except OutcomeUnknown:
            exchange.is_cut = True
            abort(exchange.request)
        finally:
            answer.release()
        return response

    def _head(
        self, exchange: Exchange, status: int, reason: str, fields: Sequence[Field]
    ) -> RelayedResponse:
        headers = CIMultiDict(fields)
        exchange.answered_by_api(headers.get("ININ-Correlation-Id"))
        headers.add("Via", f"1.1 {self._pseudonym}")
        headers.add("Server-Timing", exchange.server_timing())
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
