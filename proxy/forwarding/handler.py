"""The life of one request, from its head to the last byte of its answer.

`Handler._serve` lists the steps, one per line; each raises a Problem to end the request there. How
a request waits and is sent is in sending.py, how its answer reaches the caller in relay.py.
"""

from dataclasses import dataclass
from typing import Final

from proxy.forwarding.attempts import PendingRequest
from proxy.forwarding.exchange import Exchange
from proxy.forwarding.intake import Intake
from proxy.forwarding.journal import Journal
from proxy.forwarding.relay import Relay
from proxy.forwarding.repeats import Repeats
from proxy.forwarding.routes import Routes
from proxy.forwarding.sending import Sender
from proxy.forwarding.token_calls import MAX_FORM, TokenCalls
from proxy.http.messages import Answer
from proxy.http.received import Response
from proxy.http.request import Request
from proxy.http.responses import OwnAnswer, problem_answer, token_error_answer
from proxy.identity.findings import Denied
from proxy.problems import Problem
from proxy.rules.targets import Target

_CALLER_WENT: Final = 499


@dataclass(frozen=True, slots=True, kw_only=True)
class Handler:
    """Answers the requests of the listen port."""

    intake: Intake
    routes: Routes
    sender: Sender
    repeats: Repeats
    relay: Relay
    login: TokenCalls
    journal: Journal

    async def __call__(self, request: Request) -> None:
        """Answer a request, whatever happens, and record it."""
        exchange = self.journal.open(request)
        code = _CALLER_WENT
        try:
            try:
                code = await self._serve(exchange)
            except Problem as problem:
                code = self._refuse(exchange, problem)
            except ConnectionError:
                raise  # the caller's connection: nobody is left to answer
            except Exception:  # noqa: BLE001 -- the last guard: a bug is logged and answered
                self.journal.failed(exchange)
                bug = Problem("internal", "The proxy failed.")
                if request.is_begun:  # half an answer is out; no other may follow it
                    request.abort()
                    self.journal.refused(exchange, bug)
                    code = bug.status
                else:
                    code = self._refuse(exchange, bug)
        finally:
            if code == _CALLER_WENT:
                exchange.ended_here()
            self.journal.over(exchange, code)

    async def _serve(self, exchange: Exchange) -> int:
        request = exchange.request
        target = self.intake.target(request)
        exchange.path = target.path
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
        exchange.key_name = found.key_name
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
                may_merge=paced and route.settings.merge,
                is_present=request.is_present,
            )
            self.journal.accepted(exchange)
            if self.repeats.concern(request.method, paced=paced):
                digests = self.intake.digests(exchange, pending.outgoing)
                async with self.repeats.answering(pending, self.sender, digests) as answer:
                    return await self._relayed(exchange, answer)
            answer = await self.sender.send(pending)
        finally:
            self.intake.release(request)
        return await self._relayed(exchange, answer)

    async def _relayed(self, exchange: Exchange, answer: Answer | Response) -> int:
        if isinstance(answer, Response) and not answer.is_complete:
            return await self.relay.stream(exchange, answer)
        return self.relay.pass_on(exchange, answer)

    async def _log_in(self, exchange: Exchange, target: Target) -> int:
        exchange.route = "login"
        request = exchange.request
        if request.method != "POST":
            raise Problem(
                "method-not-allowed", "Request a token with POST.", headers={"Allow": "POST"}
            )
        body = await self.intake.body(request, MAX_FORM)
        try:
            with exchange.spending("upstream"):
                outgoing = self.relay.outgoing(request, target, body)
                answer = await self.login.answer(outgoing, request.peer, limit=exchange.limit)
        finally:
            self.intake.release(request)
        if not isinstance(answer, OwnAnswer):
            return self.relay.pass_on(exchange, answer)
        answer.fields.append(("X-Request-Id", exchange.id))
        request.answer(answer)
        return answer.status

    async def _deny(self, exchange: Exchange, answer: Answer) -> int:
        """Give a caller the API's own 401 to its token, once its request has come whole."""
        await self.intake.body(exchange.request)
        self.intake.release(exchange.request)
        return self.relay.pass_on(exchange, answer)

    def _refuse(self, exchange: Exchange, problem: Problem) -> int:
        """Give one of our refusals to the caller; return its status."""
        self.journal.refused(exchange, problem)
        render = token_error_answer if exchange.route == "login" else problem_answer
        answer = render(problem, exchange.id)
        exchange.request.answer(answer)
        return answer.status
