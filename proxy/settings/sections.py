"""The sections of the configuration: their keys, their defaults, what must agree between keys.

Field names are the YAML keys. Durations are seconds, sizes are bytes, lists are tuples.
"""

from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from proxy.settings.values import (
    ClientId,
    Cost,
    Count,
    FileName,
    Filled,
    Flag,
    ForwardProxyUrl,
    Host,
    HostName,
    KeyHash,
    Method,
    Methods,
    Name,
    NotEmpty,
    NotNegative,
    Origin,
    Pattern,
    Port,
    Positive,
    Prefix,
    Scope,
    Secret,
    Share,
    StoreUrl,
    Url,
)

Loc = tuple[str | int, ...]


def dotted(loc: Loc) -> str:
    """Write a place in the configuration as an operator would: `accounts[0].name`."""
    path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in loc)
    return path.removeprefix(".")


class _Conflict(NamedTuple):
    """Values that are each fine and do not go together; `loc` is the key to look at."""

    loc: Loc
    complaint: str


class Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True
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
    key_file: FileName


class Listen(Section):
    """Where service accounts point; port 0 takes any free one.

    A prefix that is set is required in front of the path, and stripped.
    """

    host: Host = "127.0.0.1"
    port: Port = 8080
    api_prefix: Prefix = ""
    login_prefix: Prefix = ""
    tls: Tls | None = None


class Admin(Section):
    """Metrics, health and status; the port answers to IP addresses, localhost, `allowed_hosts`."""

    host: Host = "127.0.0.1"
    port: Port = 9180
    allowed_hosts: tuple[HostName, ...] = ()
    token_file: FileName | None = None


class Upstream(Section):
    """The API and its login server, each as `scheme://host[:port]` in lower case."""

    api_url: Origin
    login_url: Origin
    connect_timeout: Positive = 5.0
    response_timeout: Positive = 60.0
    max_connections: Count = 1000
    idle_timeout: NotNegative = 4.0
    ca_file: FileName | None = None
    proxy_url: ForwardProxyUrl | None = None


class Pacing(Section):
    """Lengths of lines and seconds between sends."""

    interval: Positive = 0.5
    max_wait: NotNegative = 15.0
    max_queue: Count = 1000
    max_in_flight: Count = 8


class Retry(Section):
    """Bounds on sending again; `budget` is a share of an account's sends, 0 to 1."""

    max_attempts: Count = 4
    max_elapsed: Positive = 60.0
    max_retry_after: Positive = 300.0
    initial_backoff: Positive = 0.5
    max_backoff: Positive = 30.0
    budget: Share = 0.1

    def _conflicts(self) -> Iterator[_Conflict]:
        if self.initial_backoff > self.max_backoff:
            yield _Conflict(("initial_backoff",), "must not be above max_backoff")


class Tokens(Section):
    """When managed tokens are renewed, and what becomes of a request they cannot serve."""

    refresh_margin: NotNegative = 60.0
    propagation_window: NotNegative = 900.0
    min_refresh_interval: Positive = 15.0
    on_missing_scope: Literal["reject", "wait", "forward"] = "reject"


class Identity(Section):
    """Who callers are; without `issuer` no JWT identifies anybody."""

    unidentified: Literal["pace", "reject"] = "pace"
    max_unidentified: Count = 1000
    max_learned: Count = 10000
    issuer: Filled | None = None
    jwks_url: Url | None = None
    audience: Filled | None = None
    claim: Filled = "client_id"

    def _conflicts(self) -> Iterator[_Conflict]:
        trio = {"issuer": self.issuer, "jwks_url": self.jwks_url, "audience": self.audience}
        missing = [key for key, value in trio.items() if value is None]
        if len(missing) < len(trio):
            for key in missing:
                yield _Conflict((key,), "is required: issuer, jwks_url and audience go together")


class Account(Section):
    """A service account.

    With a secret it is managed: its callers are sent on with its own token. `keys` are hashes of
    what callers may present instead of one. `interval` overrides that of `pacing`.
    """

    name: Name
    client_id: ClientId
    client_secret: Secret | None = None
    client_secret_file: FileName | None = None
    keys: tuple[KeyHash, ...] = ()
    interval: Positive | None = None

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
    """What a body needs whose first present field of `fields` has one of `values`.

    `require_scopes` stand in for those of the route. `cost` is in intervals.
    """

    fields: Annotated[tuple[Filled, ...], NotEmpty]
    values: Annotated[tuple[Filled, ...], NotEmpty]
    require_scopes: tuple[Scope, ...] = ()
    cost: Cost = 1.0


class Route(Section):
    """Requests that are treated alike; `require_scopes` maps a method to what it needs."""

    name: Name
    paths: Annotated[tuple[Pattern, ...], NotEmpty]
    methods: Methods = ("*",)
    deny: Flag = False
    paced: Flag = False
    require_scopes: Mapping[Method, tuple[Scope, ...]] = Field(default_factory=dict)
    channels: tuple[Channel, ...] = ()
    flat_fields: tuple[Filled, ...] = ()
    on_nested: Literal["off", "warn", "reject"] = "warn"

    def _conflicts(self) -> Iterator[_Conflict]:
        if self.deny and self.paced:
            yield _Conflict(("paced",), "must not be true where deny is")
        for method in self.require_scopes:
            if "*" not in self.methods and method not in self.methods:
                yield _Conflict(("require_scopes", method), "is not among the route's methods")


class Store(Section):
    """Where the state of pacing lives; the URL is a secret because it may hold a password."""

    url: StoreUrl = SecretStr("memory://")
    timeout: Positive = 0.2
    replicas: Count = 1
    on_failure: Literal["local", "reject"] = "local"


class Limits(Section):
    """Sizes in bytes, counts of connections, deadlines in seconds."""

    max_body: Count = 512_000
    max_buffered: Count = 268_435_456
    max_header: Count = 16_384
    max_connections: Count = 4000
    max_connections_per_peer: Count = 1000
    header_timeout: Positive = 10.0
    body_timeout: Positive = 10.0
    drain_delay: NotNegative = 0.0
    drain_timeout: Positive = 25.0

    def _conflicts(self) -> Iterator[_Conflict]:
        if self.max_buffered < self.max_body:
            yield _Conflict(("max_buffered",), "must not be below max_body")
        # What is unanswered 2 s before the end is given up, so that the end can be in order.
        if self.drain_timeout <= self.drain_delay + 2:
            yield _Conflict(("drain_timeout",), "must be more than 2 s above drain_delay")


class Log(Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "console"] = "json"
    max_lines_per_second: Count = 200


def _distinct_accounts(accounts: tuple[Account, ...]) -> tuple[Account, ...]:
    listed = list(enumerate(accounts))
    names = [((i, "name"), account.name) for i, account in listed]
    ids = [((i, "client_id"), account.client_id) for i, account in listed]
    keys = [((i, "keys", k), key) for i, account in listed for k, key in enumerate(account.keys)]
    _refuse("accounts", (c for values in (names, ids, keys) for c in _repeats(values, "accounts")))
    return accounts


def _distinct_routes(routes: tuple[Route, ...]) -> tuple[Route, ...]:
    names = [((i, "name"), route.name) for i, route in enumerate(routes)]
    _refuse("routes", _repeats(names, "routes"))
    return routes


DEFAULT_ROUTES = (
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
    admin: Admin = Admin()
    upstream: Upstream
    pacing: Pacing = Pacing()
    retry: Retry = Retry()
    tokens: Tokens = Tokens()
    identity: Identity = Identity()
    accounts: Annotated[tuple[Account, ...], AfterValidator(_distinct_accounts)] = ()
    routes: Annotated[tuple[Route, ...], NotEmpty, AfterValidator(_distinct_routes)] = (
        DEFAULT_ROUTES
    )
    store: Store = Store()
    limits: Limits = Limits()
    log: Log = Log()

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
