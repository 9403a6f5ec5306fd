"""The sections of the configuration: their keys, their defaults, what must agree between keys.

Field names are the YAML keys. Durations are seconds, sizes are bytes, lists are tuples.
"""

from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Annotated, Literal, NamedTuple, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from proxy.rules.digests import account_id
from proxy.rules.incidents import OWN_COLUMNS, PLACEHOLDERS, unknown_placeholders
from proxy.settings.values import (
    ApiCall,
    BodySize,
    ClientId,
    Column,
    ColumnValue,
    Cost,
    Count,
    FileName,
    Filled,
    Flag,
    ForwardProxyUrl,
    HeaderName,
    HeaderSize,
    Host,
    HostName,
    KeyHash,
    Method,
    Methods,
    Name,
    NotEmpty,
    Origin,
    Pattern,
    Port,
    PositiveSeconds,
    Prefix,
    Reserve,
    Scope,
    Seconds,
    Secret,
    Share,
    StoreUrl,
    TotalSize,
    Url,
    is_loopback,
    key_hash,
    number,
)

Loc = tuple[str | int, ...]


def dotted(loc: Loc) -> str:
    """Write a place in the configuration as an operator would: `accounts[0].name`."""
    path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in loc)
    return path.removeprefix(".")


class _Conflict(NamedTuple):
    """Values that are each valid but contradict each other; `loc` is the key to look at."""

    loc: Loc
    complaint: str


class Section(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,  # a field's docstring is its description in the schema
    )

    def _conflicts(self) -> Iterator[_Conflict]:
        yield from ()

    @model_validator(mode="after")
    def _refuse_conflicts(self) -> Self:
        _refuse(type(self).__name__, self._conflicts())
        return self


def _refuse(title: str, conflicts: Iterable[_Conflict]) -> None:
    errors = [
        InitErrorDetails(
            type=PydanticCustomError("conflict", "{complaint}", {"complaint": conflict.complaint}),
            loc=conflict.loc,
            input=None,
        )
        for conflict in conflicts
    ]
    if errors:
        # A validator may raise this one too: pydantic takes its errors over, one by one.
        raise ValidationError.from_exception_data(title, errors)


def _repeats(values: Iterable[tuple[Loc, Hashable]], within: str) -> Iterator[_Conflict]:
    first: dict[Hashable, Loc] = {}
    for loc, value in values:
        if value in first:
            yield _Conflict(loc, f"is the same as {dotted((within, *first[value]))}")
        else:
            first[value] = loc


class Tls(Section):
    """PEM files; both are read again on a reload."""

    cert_file: FileName
    """PEM file of the certificate chain."""
    key_file: FileName
    """PEM file of the private key."""


class Listen(Section):
    """Where callers connect; port 0 takes any free one.

    If a prefix is set, each path must begin with it; the proxy removes it.
    """

    host: Host = "127.0.0.1"
    """Address callers connect to."""
    port: Port = 8080
    """Port callers connect to; 0 takes any free one."""
    api_prefix: Prefix = ""
    """Path in front of API calls, as SDK gateway settings add it; if set, required, and removed."""
    login_prefix: Prefix = ""
    """Path in front of `/oauth/token`; if set, required, and removed."""
    tls: Tls | None = None
    """Certificate and key for HTTPS; null is plain HTTP."""


class Admin(Section):
    """Metrics, health and status; the port answers to IP addresses, localhost, `allowed_hosts`."""

    host: Host = "127.0.0.1"
    """Address of the admin port."""
    port: Port = 9180
    """Port for metrics, health and status; 0 takes any free one."""
    allowed_hosts: tuple[HostName, ...] = ()
    """Host names the admin port answers to, besides IP addresses and localhost."""
    token_file: FileName | None = None
    """File with the bearer token that POSTs need off loopback; null: they get 404 there."""


class Upstream(Section):
    """The API and its login server, each as `scheme://host[:port]` in lower case."""

    api_url: Origin
    """The API, as `scheme://host[:port]`."""
    login_url: Origin
    """The login server; the token endpoint is `/oauth/token` there."""
    connect_timeout: PositiveSeconds = 5.0
    """Seconds to get a connection, the wait for a pooled one included."""
    response_timeout: PositiveSeconds = 60.0
    """Seconds to the head of the final answer, then between two reads."""
    max_connections: Count = 1000
    """Connections to the API; the same number to the login server, and to the issuer's keys."""
    idle_timeout: Seconds = 4.0
    """Seconds an idle connection may be reused for an unsafe request; 0: a new one for each."""
    ca_file: FileName | None = None
    """PEM file of further trusted certificates; verification cannot be switched off."""
    proxy_url: ForwardProxyUrl | None = None
    """Forward proxy on the way out: `http://[user:password@]host:port`."""


class Pacing(Section):
    """Lengths of queues and seconds between sends."""

    interval: PositiveSeconds = 0.5
    """Seconds between two sends of one account on one paced route."""
    max_wait: Seconds = 3600.0
    """Longest time in the queue in seconds, holds and re-queues included; a longer predicted wait
    is refused."""
    max_queue: Count = 10_000
    """Requests in the queue, per account and route."""
    max_in_flight: Count = 8
    """Requests sent and not yet answered whole, per account, unpaced ones included."""
    mode: Literal["enforce", "observe"] = "enforce"
    """Whether the pace is kept, or only observed: then nothing waits and nothing is held, and
    metrics show what would have happened."""
    fairness: Literal["caller", "none"] = "caller"
    """Whether the callers of an account take turns in its queues, or all requests go by arrival."""


class Retry(Section):
    """Bounds on sending again; `budget` is a share of an account's sends, 0 to 1."""

    max_attempts: Count = 4
    """Sends of one request, the first included."""
    max_elapsed: PositiveSeconds = 60.0
    """Seconds from the first send to the last one, the API's own time included."""
    max_retry_after: PositiveSeconds = 300.0
    """Seconds of hold after which one request tests if the API still refuses, even if the API named
    a longer wait."""
    initial_backoff: PositiveSeconds = 0.5
    """Seconds of hold if a 429 names no usable time, and between attempts to send."""
    max_backoff: PositiveSeconds = 30.0
    """Seconds to which backoff grows."""
    budget: Share = 0.1
    """Retries as a share of an account's sends in 60 s; at least 3 are allowed."""

    def _conflicts(self) -> Iterator[_Conflict]:
        if self.initial_backoff > self.max_backoff:
            yield _Conflict(("initial_backoff",), "must not be above max_backoff")


class Quota(Section):
    """Response headers in which the API says how much of a rate limit is used.

    When no more than `reserve` requests are left, the account is held until the window ends.
    """

    count: HeaderName = "inin-ratelimit-count"
    """Header with the requests used in the window."""
    allowed: HeaderName = "inin-ratelimit-allowed"
    """Header with the requests allowed in it."""
    reset: HeaderName = "inin-ratelimit-reset"
    """Header with the seconds until it ends."""
    reserve: Reserve = 0
    """Requests of the window to leave unused."""


class Tokens(Section):
    """When managed tokens are renewed, and what happens to a request whose scope they lack."""

    refresh_margin: Seconds = 60.0
    """Seconds before expiry at which a token is renewed, or at 80 % of its life, whichever is
    later."""
    propagation_window: Seconds = 900.0
    """Seconds a newly granted scope may take to appear in new tokens."""
    min_refresh_interval: PositiveSeconds = 15.0
    """Seconds between two tokens of one account; doubles up to 120 while a scope is missing."""
    on_missing_scope: Literal["reject", "wait", "forward"] = "reject"
    """What the proxy does with a request whose scope is missing: refuse it, let it wait until the
    scope appears (needs `pacing.max_wait` above `min_refresh_interval`), or send it anyway."""


class ClaimTest(Section):
    """What one claim of a verified JWT must be: exactly one of four conditions."""

    claim: Filled
    """The claim."""
    equals: str | bool | int | None = None
    """It is this value."""
    ends_with: Filled | None = None
    """It is a text that ends with this one."""
    equals_claim: Filled | None = None
    """It is a text equal to that claim, with `suffix` behind it."""
    suffix: str = ""
    """What follows the other claim's text; only with equals_claim."""
    absent: Flag = False
    """It is not there."""

    def _conflicts(self) -> Iterator[_Conflict]:
        given = [self.equals, self.ends_with, self.equals_claim, self.absent or None]
        if sum(value is not None for value in given) != 1:
            yield _Conflict(("claim",), "needs one of equals, ends_with, equals_claim and absent")
        if self.suffix and self.equals_claim is None:
            yield _Conflict(("suffix",), "needs equals_claim")


class Identity(Section):
    """Who callers are; without `issuer` no JWT identifies a caller."""

    unidentified: Literal["pace", "reject"] = "pace"
    """Unknown callers are paced, with a queue per token, and the proxy forwards their own token; or
    they are rejected."""
    max_unidentified: Count = 1000
    """Unknown callers remembered at once; further ones get 429."""
    max_learned: Count = 10000
    """Tokens remembered with their client; beyond it the proxy forgets the oldest."""
    issuer: Filled | None = None
    """Issuer whose JWTs identify their account; only together with jwks_url and audience."""
    jwks_url: Url | None = None
    """Where the issuer publishes its signing keys."""
    audience: Filled | None = None
    """Audience a JWT must name."""
    claim: Filled = "client_id"
    """Claim that holds the client id; a preset of service_test names its own."""
    service_test: (
        Literal["entra", "keycloak", "auth0", "okta", "cognito"]
        | Annotated[tuple[ClaimTest, ...], NotEmpty]
        | None
    ) = None
    """Which verified JWTs belong to a service and not to a person. Null: those whose `sub` equals
    the claim; else a provider's name, or a list of conditions, which must all hold."""
    whoami: ApiCall | None = "/api/v2/tokens/me"
    """Path of the API call that names the client of an unknown token; null: never ask."""
    whoami_field: Filled = "OAuthClient.id"
    """Where that answer holds the client id: names of JSON fields, with dots between."""

    def _conflicts(self) -> Iterator[_Conflict]:
        trio = {"issuer": self.issuer, "jwks_url": self.jwks_url, "audience": self.audience}
        missing = [key for key, value in trio.items() if value is None]
        if len(missing) < len(trio):
            for key in missing:
                yield _Conflict((key,), "is required: issuer, jwks_url and audience go together")
        if self.service_test is not None and self.issuer is None:
            yield _Conflict(("service_test",), "needs issuer, jwks_url and audience")


class CallerKey(Section):
    """A key that a caller may present instead of a token."""

    name: Name | None = None
    """Label of its requests in metrics and on the status page."""
    sha256: KeyHash
    """`sha256:` and 64 hex digits: the hash of the key."""
    weight: Annotated[int, Field(ge=1, le=100), BeforeValidator(number)] = 1
    """Requests of this caller that are sent in one round of its account's callers."""

    @property
    def digest(self) -> bytes:
        """The hash itself."""
        return bytes.fromhex(self.sha256.removeprefix("sha256:"))


def _whole_key(value: object) -> object:
    return {"sha256": key_hash(value)} if isinstance(value, str) else value


class Account(Section):
    """A service account.

    With a secret it is managed: the proxy sends its callers' requests with its own token. `keys`
    are hashes of keys that callers may present instead of a token. `interval` overrides that of
    `pacing`.
    """

    name: Name
    """Label in metrics and logs; not other, login or none."""
    client_id: ClientId
    """Client id of the service account."""
    client_secret: Secret | None = None
    """Its secret, as `${NAME}` from the environment."""
    client_secret_file: FileName | None = None
    """File that holds its secret; read again when it changes."""
    keys: tuple[Annotated[CallerKey, BeforeValidator(_whole_key)], ...] = ()
    """Keys callers may present instead of a token: `sha256:` and 64 hex digits each, or a mapping
    with a name and a weight."""
    interval: PositiveSeconds | None = None
    """Seconds between two sends, instead of `pacing.interval`."""
    mode: Literal["enforce", "observe"] | None = None
    """Whether its pace is kept or only observed, instead of `pacing.mode`."""
    organization_id: Filled | None = None
    """Id of its organization at the API; null: ask the API once, with the account's token."""
    organization: Filled | None = None
    """Name that the accounts of its organization share: a 429 whose `limit.key` begins with
    `org.` holds them all."""

    @property
    def is_managed(self) -> bool:
        return self.client_secret is not None or self.client_secret_file is not None

    def _conflicts(self) -> Iterator[_Conflict]:
        if self.client_secret is not None and self.client_secret_file is not None:
            yield _Conflict(
                ("client_secret",), "must not be given together with client_secret_file"
            )
        if self.keys and not self.is_managed:
            # Such a key is no token, and there would be none to send in its place.
            yield _Conflict(("keys",), "need client_secret or client_secret_file")


class Channel(Section):
    """The needs of a body in which one of `fields` has one of `values`.

    A body that cannot be read needs what all channels of the route need.
    `require_scopes` stand in for those of the route. `cost` is in intervals.
    """

    fields: Annotated[tuple[Filled, ...], NotEmpty]
    """Body fields at the top level, compared without case; each of them counts."""
    values: Annotated[tuple[Filled, ...], NotEmpty]
    """Values that match, compared without case and without blanks around them."""
    require_scopes: tuple[Scope, ...] = ()
    """Scopes needed instead of the route's."""
    cost: Cost = 1.0
    """Intervals the request takes, at least 1; if several match, the largest counts."""


class Route(Section):
    """Requests that are treated alike; `require_scopes` maps a method to its scopes."""

    name: Name
    """Label in metrics and logs; not other, login or none."""
    paths: Annotated[tuple[Pattern, ...], NotEmpty]
    """Patterns: `*` is one segment, a final `**` one or more."""
    methods: Methods = ("*",)
    """Methods, or `*` alone for all."""
    deny: Flag = False
    """Refuse such requests."""
    paced: Flag = False
    """Send one per interval and account."""
    interval: PositiveSeconds | None = None
    """Seconds between two sends of one account on this route, instead of `pacing.interval`; an
    account's own interval counts if it is longer."""
    merge: Flag = True
    """On a paced route, send equal GET or HEAD requests of one account that wait together once."""
    hold: Literal["auto", "account", "route"] = "auto"
    """What a 429 on this route holds: all routes of the account, or this one. `auto` goes by the
    `limit.namespace` of the 429 (`platform.api` and `auth.api` hold the account, others the
    route); where it is missing, a wait above `retry.max_retry_after` holds the route."""
    require_scopes: Mapping[Method, tuple[Scope, ...]] = Field(default_factory=dict)
    """Scopes needed, by method."""
    channels: tuple[Channel, ...] = ()
    """Other needs by a field of the JSON body."""
    flat_fields: tuple[Filled, ...] = ()
    """Body fields expected at the top level, as scalars."""
    on_nested: Literal["off", "warn", "reject"] = "warn"
    """What happens to a body where such a field is nested: nothing, a count and a log line, or 422.
    """

    def _conflicts(self) -> Iterator[_Conflict]:
        if self.deny and self.paced:
            yield _Conflict(("paced",), "must not be true where deny is")
        if self.interval is not None and not self.paced:
            yield _Conflict(("interval",), "needs paced: true")
        for method in self.require_scopes:
            if "*" not in self.methods and method not in self.methods:
                yield _Conflict(("require_scopes", method), "is not among the route's methods")


class Store(Section):
    """Where the state of pacing is kept; the URL is a secret because it may hold a password."""

    url: StoreUrl = SecretStr("memory://")
    """`memory://`, `redis://host:port/db`, `rediss://…` or
    `redis+sentinel://h1:port,h2:port/service/db`."""
    timeout: PositiveSeconds = 0.2
    """Seconds for one answer of the store: above the round trip to it; connecting has 2 s."""
    replicas: Count = 1
    """Number of replicas; while the store is down each paces at interval × replicas."""
    on_failure: Literal["local", "reject"] = "local"
    """While the store is down: pace locally, or reject with 503."""

    @property
    def is_shared(self) -> bool:
        """True if replicas may share it."""
        return self.url.get_secret_value() != "memory://"


class Repeats(Section):
    """Requests that come again after their answer was lost, on paced routes."""

    window: Seconds = 120.0
    """Seconds for which a request whose answer was lost is recognised; 0: off."""
    keep: Seconds = 600.0
    """Seconds for which a delivered answer is kept for its Idempotency-Key."""
    max_entries: Count = 10_000
    """Requests remembered; beyond it the account with the most loses its oldest."""
    max_bytes: TotalSize = 67_108_864
    """Bytes of all remembered requests."""


class IncidentClose(Section):
    """Columns with which an incident in ServiceNow is closed; `close_notes` are the proxy's own."""

    state: Filled = "7"
    """Value of `state`: 7 is closed, 6 is resolved."""
    close_code: Filled = "Resolved by caller"
    """Value of `close_code`; one of the choices of your instance."""


class Incidents(Section):
    """One incident per account and kind of lasting trouble, at your service desk."""

    url: Url
    """The ServiceNow instance, as `https://NAME.service-now.com`, or the receiver of the flat
    format; https off loopback."""
    format: Literal["servicenow", "flat"] = "servicenow"
    """How an incident is sent: as a row of the incident table, or as one flat JSON object signed
    with a key."""
    credentials_file: FileName
    """File with a JSON object: `username` and `password`, `bearer`, or `hmac_key` (flat); read
    again for each call."""
    open_after: Seconds = 60.0
    """Seconds a hold lasts before an incident is opened."""
    fields: Mapping[Column, ColumnValue] = Field(default_factory=dict)
    """Columns: text with `{account}`, `{kind}`, `{title}`, `{detail}`, `{route}`, `{since}`,
    `{legal_hold}` and `{channel}`, or true or false; empty: see docs/incidents.md."""
    close: IncidentClose = IncidentClose()
    """How an incident in ServiceNow is closed."""

    def _conflicts(self) -> Iterator[_Conflict]:
        parts = urlsplit(self.url)
        if parts.scheme.lower() != "https" and not is_loopback(parts.hostname or ""):
            yield _Conflict(("url",), "must be https, unless it leads to loopback")
        if self.format == "servicenow" and parts.query:
            yield _Conflict(("url",), "must have no query where the format is servicenow")
        for column, template in self.fields.items():
            if column in OWN_COLUMNS[self.format]:
                yield _Conflict(("fields", column), "must not be given: it is set without you")
            for name in unknown_placeholders(template):
                known = ", ".join(PLACEHOLDERS)
                yield _Conflict(
                    ("fields", column), f"{{{name}}} is no placeholder; there are {known}"
                )


class Limits(Section):
    """Sizes in bytes, counts of connections, deadlines in seconds."""

    max_body: BodySize = 512_000
    """Bytes of one request body; the API's own limit."""
    max_buffered: TotalSize = 268_435_456
    """Bytes of all waiting bodies together."""
    max_header: HeaderSize = 16_384
    """Bytes of a request head."""
    max_connections: Count = 12_000
    """Connections of callers; shrunk to fit the descriptor limit."""
    max_connections_per_peer: Count | None = None
    """Connections from one address, which may be a load balancer's; null: no bound per address,
    but the last tenth of `max_connections` is kept for addresses with fewer than 100."""
    header_timeout: PositiveSeconds = 10.0
    """Seconds for a request head, and for an idle connection."""
    body_timeout: PositiveSeconds = 10.0
    """Seconds for a request body."""
    drain_delay: Seconds = 0.0
    """Seconds for which `/readyz` fails before the listen port closes."""
    drain_timeout: PositiveSeconds = 25.0
    """Seconds a shutdown may take; must be more than 2 above drain_delay."""

    def _conflicts(self) -> Iterator[_Conflict]:
        if self.max_buffered < self.max_body:
            yield _Conflict(("max_buffered",), "must not be below max_body")
        # What is unanswered 2 s before the end is given up, so that the end can be in order.
        if self.drain_timeout <= self.drain_delay + 2:
            yield _Conflict(("drain_timeout",), "must be more than 2 s above drain_delay")


class Metrics(Section):
    max_learned_labels: Reserve = 50
    """How many unconfigured clients metrics and the status show one by one, by a short id, until a
    restart; they show the others together as `other`."""


class Log(Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least level that is logged."""
    format: Literal["json", "console"] = "json"
    """One JSON object a line, or lines for people."""
    max_lines_per_second: Count = 200
    """Lines per second. The proxy drops and counts further ones; but each account, and each
    address whose account is not known, always has half as many."""


def _distinct_accounts(accounts: tuple[Account, ...]) -> tuple[Account, ...]:
    listed = list(enumerate(accounts))
    names = [((i, "name"), account.name) for i, account in listed]
    # A UUID is the same in either case, and what shares an id shares a pace.
    ids = [((i, "client_id"), account_id(account.client_id)) for i, account in listed]
    keys = [
        ((i, "keys", k), key.sha256) for i, account in listed for k, key in enumerate(account.keys)
    ]
    _refuse("accounts", (c for values in (names, ids, keys) for c in _repeats(values, "accounts")))
    return accounts


def _distinct_routes(routes: tuple[Route, ...]) -> tuple[Route, ...]:
    names = [((i, "name"), route.name) for i, route in enumerate(routes)]
    _refuse("routes", _repeats(names, "routes"))
    return routes


DEFAULT_ROUTES = (
    Route(
        name="client-secrets",
        paths=("/api/v2/oauth/clients", "/api/v2/oauth/clients/**"),
        deny=True,
    ),
    Route(
        name="blocked",
        paths=("/api/v2/tokens/**", "/api/v2/oauth/**"),
        methods=("POST", "PUT", "PATCH", "DELETE"),
        deny=True,
    ),
    Route(
        name="exports",
        paths=(
            "/api/v2/recordings/exports",
            "/api/v2/recordings/exports/**",
            "/api/v2/recording/jobs",
            "/api/v2/recording/jobs/**",
            "/api/v2/recording/batchrequests",
            "/api/v2/recording/batchrequests/**",
        ),
        paced=True,
        require_scopes={"POST": ("recordings:export",)},
        channels=(
            Channel(
                fields=("channel", "mediaType"),
                values=("whatsapp", "sms", "webchat", "webmessaging", "email", "facebook"),
                require_scopes=("agent_scripting:export",),
            ),
        ),
        flat_fields=("legal_hold",),
    ),
    Route(name="api", paths=("/api/**",)),
)


class Settings(Section):
    """The whole configuration; of `routes` the first match wins."""

    listen: Listen = Listen()
    """Where callers connect."""
    admin: Admin = Admin()
    """Metrics, health and status; never on the listen port."""
    upstream: Upstream
    """The API and its login server."""
    pacing: Pacing = Pacing()
    """The pace, and the queues."""
    retry: Retry = Retry()
    """Bounds on sending again."""
    quota: Quota | None = Quota()
    """The quota the API announces; null ignores it."""
    tokens: Tokens = Tokens()
    """Tokens of managed accounts."""
    identity: Identity = Identity()
    """Who callers are."""
    accounts: Annotated[tuple[Account, ...], AfterValidator(_distinct_accounts)] = ()
    """Service accounts by name."""
    routes: Annotated[tuple[Route, ...], NotEmpty, AfterValidator(_distinct_routes)] = (
        DEFAULT_ROUTES
    )
    """What the proxy does with a request; the first match wins. A list replaces the default one."""
    repeats: Repeats = Repeats()
    """Requests that the proxy recognises when a caller sends them again."""
    store: Store = Store()
    """Where the state of the pace is kept."""
    incidents: Incidents | None = None
    """Where the proxy reports lasting trouble; null: nowhere."""
    limits: Limits = Limits()
    """Bounds on what callers may take."""
    metrics: Metrics = Metrics()
    """How finely metrics distinguish."""
    log: Log = Log()
    """The log, on standard error."""

    def _conflicts(self) -> Iterator[_Conflict]:
        here, there = self.listen, self.admin
        if here.port and (here.host, here.port) == (there.host, there.port):
            yield _Conflict(("admin", "port"), "must not be the same as listen.port")
        waits = self.tokens.on_missing_scope == "wait"
        if waits and self.pacing.max_wait <= self.tokens.min_refresh_interval:
            yield _Conflict(
                ("tokens", "on_missing_scope"),
                "wait needs a pacing.max_wait above tokens.min_refresh_interval",
            )
