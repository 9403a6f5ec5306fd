"""The configured routes, ready for matching: which one takes a request, and what it needs there."""

from dataclasses import dataclass
from typing import Final

import structlog

from proxy.forwarding.exchange import Exchange
from proxy.http.request import Request
from proxy.problems import Problem, unauthenticated
from proxy.rules.incidents import subject_of
from proxy.rules.needs import (
    ChannelRule,
    NeedRules,
    Needs,
    first_nested,
    needs_of,
    read_document,
)
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

_CHANNEL_FIELDS: Final = ("channel", "mediaType")
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ForwardingRoute:
    """A configured route, made ready for matching."""

    settings: Route
    rule: RouteRule
    need_rules: NeedRules

    @classmethod
    def of(cls, route: Route) -> "ForwardingRoute":
        """Prepare a configured route."""
        return cls(
            settings=route,
            need_rules=NeedRules(
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


class Routes:
    """The routes of one configuration."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._listen = settings.listen
        self._max_body = settings.limits.max_body
        self._metrics = metrics
        self._tells = settings.incidents is not None
        self._routes = [ForwardingRoute.of(route) for route in settings.routes]
        self._rules = [route.rule for route in self._routes]

    def __repr__(self) -> str:
        return f"<Routes: {', '.join(rule.name for rule in self._rules)}>"

    def token_call(self, target: Target) -> Target | None:
        """Return the target of a call of the token endpoint; None if it is another request."""
        stripped = strip_prefix(target, self._listen.login_prefix)
        return stripped if stripped is not None and stripped.match == LOGIN_PATH else None

    def find(self, exchange: Exchange, target: Target) -> tuple[Target, ForwardingRoute]:
        """Return the target to forward and the route that takes it; raises the Problem if none."""
        stripped = strip_prefix(target, self._listen.api_prefix)
        if stripped is None:
            lacks = "The path lacks the prefix this proxy is set up with."
            raise Problem("not-found", self._login_hint(exchange.request, target) or lacks)
        if stripped.match.startswith("/api/api/") and not self._has_path("/api/api/"):
            raise Problem(
                "not-found", "The path has /api twice: the base URL must not end in /api."
            )
        match find_route(self._rules, exchange.request.method, stripped.match):
            case None:
                detail = "No route takes this path."
                if not stripped.match.startswith("/api/") and self._has_path("/api/"):
                    detail = "No route takes this path: paths of the API begin with /api/."
                raise Problem("not-found", self._login_hint(exchange.request, target) or detail)
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
        hint = self._login_hint(exchange.request, target)
        if hint is not None:
            raise unauthenticated(hint)
        return stripped, route

    def _login_hint(self, request: Request, target: Target) -> str | None:
        """Return what to say of a log-in at another path than ours, as a wrong base URL makes it.

        A request with a bearer token is none, and may go wherever a route takes it.
        """
        if not target.match.endswith(LOGIN_PATH):
            return None
        credentials = request.headers.getall("Authorization", ())
        if any(value.lower().startswith("bearer ") for value in credentials):
            return None
        path = f"{self._listen.login_prefix}{LOGIN_PATH}"
        return f"Tokens are asked for at {path}: does the base URL have a path, such as /api?"

    def _has_path(self, start: str) -> bool:
        """True if a configured path begins so."""
        return any(path.text.lower().startswith(start) for r in self._rules for path in r.patterns)

    def needs(self, exchange: Exchange, route: ForwardingRoute, body: bytes) -> Needs:
        """Return what the request needs; a nested field is logged, or refused if so configured."""
        rules = route.need_rules
        document = None
        if body and (rules.look_at_body or (self._tells and route.settings.paced)):
            codings = exchange.request.headers.getall("Content-Encoding", ())
            document = read_document(body, list(codings), max_size=self._max_body)
            nested = first_nested(rules.flat_fields, document)
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
        if self._tells:
            names = [name for channel in rules.channels for name in channel.fields]
            exchange.subject = subject_of(document, exchange.route, names or _CHANNEL_FIELDS)
        return needs_of(rules, exchange.request.method, document)
