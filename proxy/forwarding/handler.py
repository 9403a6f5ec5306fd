"""The life of one request, from its head to the last byte of its answer.

`Handler._serve` is the list of the steps, one a line; each raises a Problem to end the request
there. How a request waits and is sent is in sending.py, how its answer is given in relay.py.
"""

from dataclasses import dataclass, replace
from typing import Final

from aiohttp import web

from proxy.forwarding.attempts import PendingRequest
from proxy.forwarding.exchange import Exchange
from proxy.forwarding.intake import Intake
from proxy.forwarding.journal import Journal
from proxy.forwarding.relay import Relay, abort
from proxy.forwarding.repeats import Repeats
from proxy.forwarding.routes import Routes
from proxy.forwarding.sending import Sender
from proxy.forwarding.token_calls import TokenCalls
from proxy.http.connection import Response, is_closed_by_peer
from proxy.http.messages import Answer
from proxy.http.responses import problem_response, token_error_response
from proxy.identity.verdicts import Denied
from proxy.problems import Problem
from proxy.rules.targets import Target

_CALLER_WENT: Final = 499


@dataclass(frozen=True, slots=True, kw_only=True)
class Handler:
    """Serves the listen port with the parts that the wiring made."""

    intake: Intake
    routes: Routes
    sender: Sender
    repeats: Repeats
    relay: Relay
    login: TokenCalls
    journal: Journal

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request, whatever happens, and account for it."""
        exchange = self.journal.open(request)
        response: web.StreamResponse | None = None
        try:
            try:
                response = await self._serve(exchange)
            except Problem as problem:
                response = self._refusal(exchange, problem)
            except ConnectionError:
                raise  # the caller's connection: nobody is left to answer
            except Exception:  # noqa: BLE001 -- the last guard: a bug is logged and answered
                self.journal.failed(exchange)
                if request.writer.output_size:  # half an answer is out; no other may follow it
                    abort(request)
                response = self._refusal(exchange, Problem("internal", "The proxy failed."))
            return response
        finally:
            if response is None:
                exchange.ended_here()
            self.journal.over(exchange, _CALLER_WENT if response is None else response.status)

    async def _serve(self, exchange: Exchange) -> web.StreamResponse:
        request = exchange.request
        target = self.intake.target(request)
        exchange.limit = self.intake.limit(request)
        token_call = self.routes.token_call(target)
        if token_call is not None:
            return await self._log_in(exchange, token_call)
        self.intake.refuse_when_draining()
        target, route = self.routes.find(exchange, target)
        found = await self.intake.identify(request)
        if isinstance(found, Denied):
            return await self._deny(exchange, found.answer)
        account = exchange.account = found.account
        body = await self.intake.body(request)
        paced = route.settings.paced
        try:
            pending = PendingRequest(
                exchange,
                caller=found.caller,
                account=account,
                queue=account.queue(exchange.route, paced=paced),
                outgoing=self.relay.outgoing(request, target, body),
                needs=self.routes.needs(exchange, route, body),
                managed=found.managed,
                is_present=lambda: not is_closed_by_peer(request.transport),
            )
            if self.repeats.concern(request.method, paced=paced):
                digests = self.intake.digests(exchange, pending.outgoing)
                async with self.repeats.answering(pending, self.sender, digests) as answer:
                    return await self._relayed(exchange, answer)
            answer = await self.sender.send(pending)
        finally:
            self.intake.release(body)
        return await self._relayed(exchange, answer)

    async def _relayed(self, exchange: Exchange, answer: Answer | Response) -> web.StreamResponse:
        if isinstance(answer, Response):
            return await self.relay.stream(exchange, answer)
        return await self.relay.pass_on(exchange, answer)

    async def _log_in(self, exchange: Exchange, target: Target) -> web.StreamResponse:
        exchange.route = "login"
        request = exchange.request
        if request.method != "POST":
            raise Problem(
                "method-not-allowed", "Tokens are asked for with POST.", headers={"Allow": "POST"}
            )
        body = await self.intake.body(request)
        try:
            with exchange.spending("upstream"):
                answer = await self.login.answer(
                    self.relay.outgoing(request, target, body), request.remote or ""
                )
        finally:
            self.intake.release(body)
        if isinstance(answer, Answer):
            return await self.relay.pass_on(exchange, answer)
        answer.headers["X-Request-Id"] = exchange.id
        return answer

    async def _deny(self, exchange: Exchange, answer: Answer) -> web.StreamResponse:
        """Give a caller the API's own 401 to its token, once the whole request has come."""
        self.intake.release(await self.intake.body(exchange.request))
        if exchange.request.method == "HEAD":
            answer = replace(answer, body=b"")
        return await self.relay.pass_on(exchange, answer)

    def _refusal(self, exchange: Exchange, problem: Problem) -> web.Response:
        self.journal.refused(exchange, problem)
        if exchange.route == "login":
            return token_error_response(problem, exchange.id)
        return problem_response(problem, exchange.id)
