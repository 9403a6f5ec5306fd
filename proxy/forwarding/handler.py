"""The life of one request, from its head to the last byte of its answer.

`Handler._serve` is the list of the steps, one a line; each raises a Problem to end the request
there. How a request waits and is sent is in sending.py, how its answer is given in relay.py.
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, assert_never

import structlog
from aiohttp import web

from proxy.clock import Clock
from proxy.forwarding import token_calls
from proxy.forwarding.drain import Drain
from proxy.forwarding.exchange import Exchange
from proxy.forwarding.relay import Relay, abort
from proxy.forwarding.sending import PendingRequest, Sender
from proxy.http.bodies import Bodies
from proxy.http.client import Client
from proxy.http.connection import Response
from proxy.http.head import check_head
from proxy.http.messages import Answer, Outgoing
from proxy.http.responses import problem_response, token_error_response
from proxy.identity import callers
from proxy.identity.callers import Caller, Configured, Identity, Stranger
from proxy.pacing.account import Account
from proxy.pacing.accounts import Accounts
from proxy.problems import Problem, draining
from proxy.rules.headers import Field, request_fields, via, wire_fields
from proxy.rules.needs import (
    ChannelRule,
    NeedRules,
    Needs,
    first_nested,
    needs_of,
    read_document,
)
from proxy.rules.prefer import prefer_wait
from proxy.rules.targets import (
    LOGIN_PATH,
    MethodNotAllowed,
    PathPattern,
    RouteRule,
    Target,
    find_route,
    strip_prefix,
)
from proxy.settings import Route, Settings
from proxy.telemetry.metrics import Metrics
from proxy.telemetry.refusals import Refusals
from proxy.tokens.account_token import TokenKeeper

_log = structlog.get_logger(__name__)
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_CALLER_WENT: Final = 499


@dataclass(frozen=True, slots=True)
class _Route:
    """A configured route, made ready for matching."""

    settings: Route
    needs: NeedRules
    rule: RouteRule

    @classmethod
    def of(cls, route: Route) -> "_Route":
        return cls(
            settings=route,
            needs=NeedRules(
                scopes_by_method={
                    method: frozenset(scopes) for method, scopes in route.require_scopes.items()
                },
                channels=tuple(
                    ChannelRule(
                        fields=channel.fields,
                        values=frozenset(value.lower() for value in channel.values),
                        scopes=frozenset(channel.require_scopes),
                        cost=channel.cost,
                    )
                    for channel in route.channels
                ),
                flat_fields=() if route.on_nested == "off" else route.flat_fields,
            ),
            rule=RouteRule(
                name=route.name,
                patterns=tuple(PathPattern.parse(path) for path in route.paths),
                methods=None if route.methods == ("*",) else frozenset(route.methods),
            ),
        )


class Handler:
    """Serves the listen port."""

    def __init__(  # noqa: PLR0913 -- the parts are made in one place and meet here
        self,
        settings: Settings,
        *,
        clock: Clock,
        metrics: Metrics,
        accounts: Accounts,
        identity: Identity,
        bodies: Bodies,
        drain: Drain,
        api: Client,
        login: token_calls.Login,
        pseudonym: str,
        refusals: Refusals,
        may_log: Callable[[], bool],
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._metrics = metrics
        self._accounts = accounts
        self._identity = identity
        self._api = api
        self._drain = drain
        self._pseudonym = pseudonym
        self._refusals = refusals
        self._may_log = may_log
        self._login = login
        self._sender = Sender(
            settings, clock=clock, metrics=metrics, accounts=accounts, drain=drain, api=api
        )
        self._relay = Relay(clock=clock, pseudonym=pseudonym)
        self._bodies = bodies
        self._routes = [_Route.of(route) for route in settings.routes]
        self._rules = [route.rule for route in self._routes]

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request, whatever happens, and account for it."""
        exchange = Exchange(request, _request_id(request), self._clock.monotonic())
        response: web.StreamResponse | None = None
        try:
            try:
                response = await self._serve(exchange)
            except Problem as problem:
                response = self._refusal(exchange, problem)
            except ConnectionError:
                raise  # the caller's connection: nobody is left to answer
            except Exception:  # noqa: BLE001 -- the last guard: a bug is logged and answered
                _log.exception("request failed", request_id=exchange.id)
                if request.writer.output_size:  # half an answer is out; no other may follow it
                    abort(request)
                response = self._refusal(exchange, Problem("internal", "The proxy failed."))
            return response
        finally:
            if response is None:
                exchange.origin = "proxy"
            self._account_for(exchange, _CALLER_WENT if response is None else response.status)

    async def _serve(self, exchange: Exchange) -> web.StreamResponse:
        target = check_head(
            exchange.request, self._pseudonym, max_header=self._settings.limits.max_header
        )
        exchange.limit = self._limit(exchange.request)
        token_call = self._token_call(target)
        if token_call is not None:
            return await self._log_in(exchange, token_call)
        if self._drain.has_begun:
            raise draining()
        target, route = self._route(exchange, target)
        with self._drain.interrupts():
            authorization = exchange.request.headers.getall("Authorization", ())
            caller = await self._identity.caller(authorization)
            account, managed = self._account_of(caller)
            exchange.account = account
            body = await self._bodies.read(exchange.request)
        try:
            answer = await self._sender.send(
                PendingRequest(
                    exchange,
                    account=account,
                    queue=account.queue(exchange.route, paced=route.settings.paced),
                    outgoing=self._outgoing(exchange, target, body),
                    needs=self._needs(exchange, route, body),
                    managed=managed,
                )
            )
        finally:
            self._bodies.release(len(body))
        if isinstance(answer, Response):
            return await self._relay.stream(exchange, answer, self._api)
        return await self._relay.pass_on(exchange, answer)

    def _account_for(self, exchange: Exchange, code: int) -> None:
        seconds = self._clock.monotonic() - exchange.arrived
        self._metrics.request(
            account=exchange.account_label,
            route=exchange.route,
            method=exchange.request.method,
            code=code,
            origin=exchange.origin,
            seconds=seconds,
            request_id=exchange.id,
        )
        if self._may_log():
            _log.info("request", **exchange.facts(code=code, seconds=seconds))

    def _refusal(self, exchange: Exchange, problem: Problem) -> web.Response:
        exchange.origin, exchange.problem = "proxy", problem.name
        self._refusals.note(exchange.account_label, problem, at=self._clock.wall())
        if exchange.route == "login":
            return token_error_response(problem, exchange.id)
        return problem_response(problem, exchange.id)

    def _token_call(self, target: Target) -> Target | None:
        stripped = strip_prefix(target, self._settings.listen.login_prefix)
        return stripped if stripped is not None and stripped.match == LOGIN_PATH else None

    async def _log_in(self, exchange: Exchange, target: Target) -> web.StreamResponse:
        exchange.route = "login"
        request = exchange.request
        if request.method != "POST":
            raise Problem(
                "method-not-allowed", "Tokens are asked for with POST.", headers={"Allow": "POST"}
            )
        with self._drain.interrupts():
            body = await self._bodies.read(request)
        begun = self._clock.monotonic()
        try:
            answer = await self._login.answer(
                self._outgoing(exchange, target, body), request.remote or ""
            )
        finally:
            exchange.upstream += self._clock.monotonic() - begun
            self._bodies.release(len(body))
        if isinstance(answer, Answer):
            return await self._relay.pass_on(exchange, answer)
        answer.headers["X-Request-Id"] = exchange.id
        return answer

    def _account_of(self, caller: Caller) -> tuple[Account, TokenKeeper | None]:
        """Return the caller's account, and the token it is sent on with if that is not its own.

        Raises the Problem `queue-full` when there are too many strangers.
        """
        match caller:
            case Configured(name):
                return self._accounts.configured(name), self._identity.tokens.get(name)
            case callers.Client(account_id):
                return self._accounts.learned(account_id), None
            case Stranger(token_hash, sure):
                account = self._accounts.unidentified(token_hash)
                account.allowance.may_be_another = not sure
                return account, None
            case _:
                assert_never(caller)

    def _limit(self, request: web.BaseRequest) -> float:
        wish = prefer_wait(request.headers.getall("Prefer", ()))
        longest = self._settings.pacing.max_wait
        return longest if wish is None else min(wish, longest)

    def _route(self, exchange: Exchange, target: Target) -> tuple[Target, _Route]:
        stripped = strip_prefix(target, self._settings.listen.api_prefix)
        if stripped is None:
            raise Problem("not-found", "The path lacks the prefix this proxy is set up with.")
        match find_route(self._rules, exchange.request.method, stripped.match):
            case None:
                raise Problem("not-found", "No route takes this path.")
            case MethodNotAllowed(allow):
                raise Problem(
                    "method-not-allowed",
                    "The path is known, but not with this method.",
                    headers={"Allow": ", ".join(allow)},
                )
            case int(index):
                route = self._routes[index]
        exchange.route = route.settings.name
        if route.settings.deny:
            raise Problem("route-denied", "This path is closed to all callers of the proxy.")
        return stripped, route

    def _needs(self, exchange: Exchange, route: _Route, body: bytes) -> Needs:
        """Return what the request needs; a nested field is noted, or refused if so configured."""
        method = exchange.request.method
        document = None
        if route.needs.look_at_body and body:
            codings = exchange.request.headers.getall("Content-Encoding", ())
            document = read_document(body, list(codings), max_size=self._settings.limits.max_body)
            nested = first_nested(route.needs.flat_fields, document)
            if nested is not None:
                self._metrics.nested_field(exchange.route, nested.field)
                _log.warning(
                    "nested field", request_id=exchange.id, route=exchange.route, field=nested.field
                )
                if route.settings.on_nested == "reject":
                    raise Problem(
                        "nested-field",
                        f"{nested.field} must be a plain value at the top level of the body.",
                        fields={"pointer": nested.pointer},
                    )
        return needs_of(route.needs, method, document)

    def _outgoing(self, exchange: Exchange, target: Target, body: bytes) -> Outgoing:
        request = exchange.request
        return Outgoing(
            method=request.method,
            path=target.path,
            query=target.query or "",
            fields=self._fields(request),
            body=body,
        )

    def _fields(self, request: web.BaseRequest) -> list[Field]:
        headers = request.headers
        fields = request_fields(wire_fields(request.raw_headers), headers.getall("Connection", ()))
        received = headers.getall("Via", ())
        fields.append(("Via", via(request.version, self._pseudonym, received)))
        return fields


def _request_id(request: web.BaseRequest) -> str:
    own = request.headers.get("X-Request-Id", "")
    if own and _REQUEST_ID.fullmatch(own):
        return own
    return f"{random.getrandbits(128):032x}"  # unique, which is all it has to be
