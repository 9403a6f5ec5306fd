"""Requests on their way to the API, and answers on their way back, bytes unchanged.

A request gets one field of ours (Via), an answer three.
"""

from collections.abc import Sequence

from proxy.forwarding.exchange import Exchange
from proxy.http.client import Client
from proxy.http.messages import Answer, OutcomeUnknown, Outgoing
from proxy.http.received import Response
from proxy.http.request import Request
from proxy.rules.headers import Field, request_fields, via
from proxy.rules.targets import Target


class Relay:
    """Makes requests to the API from those of callers, and writes the answers to callers.

    `pseudonym` is the proxy's own name in Via (RFC 9110 section 7.6.3).
    """

    def __init__(self, api: Client, *, pseudonym: str) -> None:
        self._api = api
        self._pseudonym = pseudonym

    def outgoing(self, request: Request, target: Target, body: bytes) -> Outgoing:
        """Return the request to send to the API."""
        headers = request.headers
        fields = request_fields(
            request.raw_headers, headers.values(), headers.getall("Connection", ())
        )
        fields.append(("Via", via(request.version, self._pseudonym, headers.getall("Via", ()))))
        return Outgoing(
            method=request.method,
            path=target.path,
            query=target.query or "",
            fields=fields,
            body=body,
        )

    def pass_on(self, exchange: Exchange, answer: Answer | Response) -> int:
        """Give an answer that has come whole to the caller; return its status."""
        if isinstance(answer, Response):
            reason, fields = answer.head()
            body = answer.read_nowait()
        else:
            reason, fields, body = answer.reason, answer.fields, answer.body
        exchange.request.respond(answer.status, reason, self._marked(exchange, fields), body)
        return answer.status

    async def stream(self, exchange: Exchange, answer: Response) -> int:
        """Give an answer to the caller as it comes; one that breaks off is visibly cut short."""
        reason, fields = answer.head()
        request = exchange.request
        try:
            request.begin(answer.status, reason, self._marked(exchange, fields))
            while chunk := await self._api.next_chunk(answer):
                await request.send(chunk)
            request.finish()
        except OutcomeUnknown:
            exchange.is_cut = True
            request.abort()
        finally:
            answer.release()
        return answer.status

    def _marked(self, exchange: Exchange, fields: Sequence[Field]) -> list[Field]:
        """Add our fields, and note those of the API that are logged."""
        correlation_id, has_id = None, False
        for name, value in fields:
            low = name.lower()
            if low == "inin-correlation-id":
                correlation_id = correlation_id or value
            elif low == "x-request-id":
                has_id = True
        exchange.answered_by_api(correlation_id)
        marked = [
            *fields,
            ("Via", f"1.1 {self._pseudonym}"),
            ("Server-Timing", exchange.server_timing()),
        ]
        if not has_id:
            marked.append(("X-Request-Id", exchange.id))
        return marked


async def read_or_keep(api: Client, answer: Response, limit: int) -> Answer | Response:
    """Read an answer whole; one that is too long or breaks off is still to be streamed."""
    if answer.is_complete:  # nothing to wait for
        data = answer.read_nowait()
        if len(data) <= limit:
            return Answer(answer.status, *answer.head(), data)
        answer.keep(data)
        return answer
    body = bytearray()
    try:
        while chunk := await api.next_chunk(answer):
            body += chunk
            if len(body) > limit:
                break
        else:
            return Answer(answer.status, *answer.head(), bytes(body))
    except OutcomeUnknown:
        pass  # what has come goes to the caller, cut short as it is
    answer.keep(bytes(body))
    return answer
