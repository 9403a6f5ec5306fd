"""The stand-in API: its rules by plain calls with the time given, its answers on a real socket."""

import asyncio
import base64
import json
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import jwt
import pytest
from aiohttp import ClientResponse, ClientSession
from hypothesis import given
from hypothesis import strategies as st

from proxy.simulator import ClientSpec, SigningKey, Simulator, SimulatorSettings, run
from proxy.simulator.errors import LoginError
from proxy.simulator.exports import AccountExports, Export, family_of, key_of, normalise
from proxy.simulator.grants import GrantOrder, Grants, required_scope
from proxy.simulator.ledger import Arrival, Counts, Ledger, Quota, furthest_ahead, summarise
from proxy.simulator.limiter import Accepted, Decision, Limiter, Pace, Reason, Refused
from proxy.simulator.login import LoggedIn, log_in

EXPORTS = "/api/v2/recordings/exports"
VOICE = {"mediaType": "voice"}
WHATSAPP = {"channel": "WhatsApp"}
NOTHING = Counts(tokens_minted=0, exports=0, duplicates={})


# The limiter


def judged(
    *times: float, tolerance: float = 0.02, retry_after: float = 1
) -> list[tuple[float, Decision]]:
    limiter = Limiter(Pace(interval=0.5, tolerance=tolerance, retry_after=retry_after))
    return [(at, limiter.judge("a", at)) for at in times]


def decisions(*times: float, retry_after: float = 1) -> list[Decision]:
    return [decision for _, decision in judged(*times, retry_after=retry_after)]


def test_the_first_arrival_and_every_later_one_on_pace_is_accepted() -> None:
    assert decisions(10, 10.5, 11, 20) == [Accepted()] * 4


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        (10, Refused(Reason.EARLY, 1)),
        (10.479, Refused(Reason.EARLY, 1)),
        (10.48, Accepted()),
        (10.5, Accepted()),
    ],
)
def test_an_arrival_may_be_early_by_the_tolerance(second: float, expected: Decision) -> None:
    assert decisions(10, second)[1] == expected


def test_the_tolerance_cannot_be_used_twice() -> None:
    assert decisions(10, 10.48, 10.96)[2] == Refused(Reason.EARLY, 1)


def test_being_late_saves_up_no_burst() -> None:
    assert decisions(10, 15, 15.1)[2] == Refused(Reason.EARLY, 1)


def test_arrivals_before_retry_after_has_passed_are_a_storm_and_do_not_extend_it() -> None:
    assert decisions(10, 10.1, 10.9, 11.05, 11.1) == [
        Accepted(),
        Refused(Reason.EARLY, 1),
        Refused(Reason.STORM, 1),
        Refused(Reason.STORM, 1),
        Accepted(),
    ]


def test_a_retry_after_setting_is_rounded_up_to_whole_seconds_and_counts_down() -> None:
    assert decisions(10, 10.1, 11.2, 13.0, 13.1, retry_after=2.5) == [
        Accepted(),
        Refused(Reason.EARLY, 3),
        Refused(Reason.STORM, 2),
        Refused(Reason.STORM, 1),
        Accepted(),
    ]


def test_retry_after_is_at_least_one_and_no_less_than_the_true_wait() -> None:
    limiter = Limiter(Pace(interval=2.5, tolerance=0, retry_after=0))
    assert limiter.judge("a", 0) == Accepted()
    assert limiter.judge("a", 0.1) == Refused(Reason.EARLY, 3)


def test_eaten_quota_refuses_with_the_time_left() -> None:
    limiter = Limiter(Pace(interval=0.5, tolerance=0.02, retry_after=1))
    limiter.eat("a", until=103.4)
    assert limiter.judge("a", 100) == Refused(Reason.EATEN, 4)
    assert limiter.judge("a", 102) == Refused(Reason.EATEN, 2)
    assert limiter.judge("a", 103.5) == Refused(Reason.STORM, 1)
    assert limiter.judge("a", 104) == Accepted()


def test_a_hold_to_rehearse_begins_with_an_accounts_first_arrival_and_ends_for_good() -> None:
    limiter = Limiter(Pace(interval=0.5, tolerance=0.02, retry_after=1, hold=30))
    assert limiter.judge("a", 100) == Refused(Reason.EATEN, 30)
    assert limiter.judge("b", 120) == Refused(Reason.EATEN, 30)
    assert limiter.judge("a", 130) == Accepted()
    assert limiter.judge("a", 131) == Accepted()


@pytest.mark.parametrize("interval", [0.01, 0.3, 0.5, 7, 61, 100])
def test_the_most_accepted_in_a_minute_is_what_the_fastest_client_reaches(interval: float) -> None:
    """Its arrivals are ahead of the pace by all of the tolerance, but for the first one."""
    pace = Pace(interval=interval, tolerance=0.02, retry_after=1)
    limiter = Limiter(pace)
    times = [max(0, number * interval - 0.02) for number in range(math.ceil(80 / interval))]
    assert {limiter.judge("a", at) == Accepted() for at in times} == {True}
    accepted = sum(at < 60 for at in times)
    assert pace.most_accepted(60) - accepted in {0, 1}


def test_a_pace_without_an_end_announces_a_number_too() -> None:
    assert Pace(interval=1e-320, tolerance=0, retry_after=1).most_accepted(60) == 10**9 + 1


def test_accounts_do_not_share_a_queue_and_reset_forgets_them() -> None:
    limiter = Limiter(Pace(interval=0.5, tolerance=0.02, retry_after=1))
    assert [limiter.judge(account, 1) for account in "ab"] == [Accepted()] * 2
    limiter.reset()
    assert limiter.judge("a", 1.1) == Accepted()


moments = st.lists(st.floats(0, 1.5), min_size=1, max_size=40).map(
    lambda steps: [math.fsum(steps[: n + 1]) for n in range(len(steps))]
)


@given(moments)
def test_no_two_accepted_arrivals_are_closer_than_their_distance_in_the_queue(
    times: list[float],
) -> None:
    accepted = [at for at, decision in judged(*times) if decision == Accepted()]
    for (j, earlier), (k, later) in combinations(enumerate(accepted), 2):
        assert later - earlier >= (k - j) * 0.5 - 0.02 - 1e-5


@given(moments)
def test_a_caller_that_obeys_every_retry_after_is_accepted_in_the_end(times: list[float]) -> None:
    for at, decision in judged(*times):
        if isinstance(decision, Refused):
            upto = [earlier for earlier in times if earlier <= at]
            assert judged(*upto, at + decision.retry_after)[-1][1] == Accepted()


# The ledger


def arrival(at: float, decision: Decision | None = None, *, paced: bool = True) -> Arrival:
    return Arrival(at=at, method="POST", path=EXPORTS, paced=paced, decision=decision, status=202)


def test_a_report_counts_decisions_and_measures_the_gaps_of_paced_arrivals() -> None:
    seen = [
        arrival(1.0, Accepted()),
        arrival(1.2, paced=False),
        arrival(1.5, Accepted()),
        arrival(1.75, Refused(Reason.EARLY, 1)),
        arrival(2.0, Refused(Reason.STORM, 1)),
        arrival(4.0, Refused(Reason.EATEN, 9)),
    ]
    report = summarise(seen, interval=0.5, counts=NOTHING)
    assert (report.accepted, report.refused) == (2, 3)
    assert (report.early, report.storm, report.eaten) == (1, 1, 1)
    assert (report.smallest_gap, report.median_gap, report.span) == (0.25, 0.375, 3.0)
    assert report.ahead == 0.5
    assert report.statuses == {202: 5}


def test_a_report_of_nothing_has_no_gaps() -> None:
    report = summarise([], interval=0.5, counts=NOTHING)
    assert (report.smallest_gap, report.median_gap, report.ahead, report.span) == (
        None,
        None,
        None,
        0.0,
    )


@given(moments)
def test_ahead_is_the_worst_over_all_pairs(times: list[float]) -> None:
    pairs = combinations(enumerate(times), 2)
    worst = max(((k - j) * 0.5 - (b - a) for (j, a), (k, b) in pairs), default=None)
    assert furthest_ahead(times, 0.5) == (worst if worst is None else pytest.approx(worst))


def test_the_ledger_forgets_the_oldest_arrivals() -> None:
    ledger = Ledger(2)
    for at in (1.0, 2.0, 3.0):
        ledger.note("a", arrival(at))
    assert [seen.at for seen in ledger.arrivals("a")] == [2.0, 3.0]
    assert ledger.arrivals("b") == []


def test_the_quota_counts_a_minute_of_accepted_arrivals() -> None:
    ledger = Ledger(10)
    assert ledger.quota("a", 0) == Quota(0, 60)
    ledger.note("a", arrival(0.0, Accepted()))
    ledger.note("a", arrival(30.0, Accepted()))
    ledger.note("a", arrival(31.0, Refused(Reason.EARLY, 1)))
    assert ledger.quota("a", 60) == Quota(1, 30)


# Scopes, exports, paths


@pytest.mark.parametrize(
    ("body", "scope"),
    [
        (WHATSAPP, "agent_scripting:export"),
        ({"mediaType": "EMAIL"}, "agent_scripting:export"),
        ({"channel": "voice", "mediaType": "email"}, "recordings:export"),
        ({"channel": ["sms"]}, "recordings:export"),
        ({"export": {"channel": "sms"}}, "recordings:export"),
        ([WHATSAPP], "recordings:export"),
        (None, "recordings:export"),
    ],
)
def test_the_first_channel_field_decides_which_scope_an_export_needs(
    body: object, scope: str
) -> None:
    assert required_scope(body) == scope


def test_a_grant_counts_once_it_has_propagated_and_can_only_come_forward() -> None:
    grants = Grants(lambda _: frozenset({"one"}))
    grants.grant("a", "two", effective_at=100)
    grants.grant("a", "two", effective_at=200)
    assert grants.held("a", 99.9) == {"one"}
    assert grants.held("a", 100) == {"one", "two"}
    assert grants.held("b", 100) == {"one"}


@pytest.mark.parametrize(
    "body",
    [
        [],
        {"client_id": "a"},
        {"client_id": 1, "scope": "s"},
        {"client_id": "a", "scope": "s", "propagation": True},
        {"client_id": "a", "scope": "s", "propagation": math.nan},
        {"client_id": "a", "scope": "s", "propagation": "5"},
    ],
)
def test_a_malformed_grant_is_refused(body: object) -> None:
    with pytest.raises(ValueError, match="must be"):
        GrantOrder.from_json(body)


@pytest.mark.parametrize(
    ("path", "family"),
    [
        ("/api/v2/recordings/exports", EXPORTS),
        ("//API/v2/./recordings//Exports;x=1/", EXPORTS),
        ("/api/v2/recordings/x/../exports/1", EXPORTS),
        ("/api/v2/recording/jobs/1/failedrecordings", "/api/v2/recording/jobs"),
        ("/api/v2/recordings/exportsx", None),
        ("/api/v2/users/me", None),
        ("/", None),
    ],
)
def test_every_spelling_of_a_paced_path_is_paced(path: str, family: str | None) -> None:
    assert family_of(normalise(path)) == family


@pytest.mark.parametrize(
    ("header", "body", "key"),
    [
        ("h", {"externalId": "b"}, "h"),
        (None, {"externalId": "b"}, "b"),
        (None, {"externalId": 1}, None),
        (None, [], None),
    ],
)
def test_an_export_is_told_apart_by_header_or_field(
    header: str | None, body: object, key: str | None
) -> None:
    assert key_of(header, body) == key


def test_a_key_that_created_twice_is_a_duplicate_while_remembered() -> None:
    exports = AccountExports(size=3)
    for number, key in enumerate(["k", None, "k"]):
        exports.create(Export(id=str(number), family=EXPORTS), key)
    assert exports.duplicates() == {"k": 2}
    exports.create(Export(id="3", family=EXPORTS), None)
    assert exports.duplicates() == {}
    exports.create(Export(id="4", family=EXPORTS), "other")
    assert len(exports) == 3
    assert exports.find(EXPORTS, "0") is None


# Logging in


def basic(client_id: str, secret: str) -> str:
    return "Basic " + base64.b64encode(f"{client_id}:{secret}".encode()).decode()


GRANT = "grant_type=client_credentials"
SPEC = ClientSpec(secret="p:ä /+")  # form-encoded: p%3A%C3%A4+%2F%2B


@pytest.mark.parametrize(
    ("authorization", "body"),
    [
        (basic("a%3Ab", "p%3A%C3%A4+%2F%2B"), GRANT),
        (basic("a%3Ab", "p%3A%C3%A4+%2F%2B").replace("Basic", "bASIC"), GRANT),
        (None, f"{GRANT}&client_id=a%3Ab&client_secret=p%3A%C3%A4+%2F%2B"),
    ],
)
def test_the_right_secret_logs_in_by_header_or_form(authorization: str | None, body: str) -> None:
    assert log_in(authorization, body, {"a:b": SPEC}.get) == LoggedIn("a:b", SPEC)


@pytest.mark.parametrize(
    ("authorization", "body", "status", "error"),
    [
        (basic("a", "wrong"), GRANT, 401, "invalid_client"),
        (basic("unknown", "s"), GRANT, 401, "invalid_client"),
        ("Basic !", GRANT, 401, "invalid_client"),
        ("Basic " + base64.b64encode(b"no colon").decode(), GRANT, 401, "invalid_client"),
        ("Bearer x", GRANT, 401, "invalid_client"),
        (None, f"{GRANT}&client_id=a&client_secret=wrong", 400, "invalid_client"),
        (None, GRANT, 400, "invalid_client"),
        (basic("a", "s"), f"{GRANT}&client_id=a&client_secret=s", 400, "invalid_request"),
        (basic("a", "s"), "", 400, "invalid_request"),
        (basic("a", "s"), f"{GRANT}&{GRANT}", 400, "invalid_request"),
        (basic("a", "s"), "not a form", 400, "invalid_request"),
        (basic("a", "s"), "grant_type=password", 400, "unsupported_grant_type"),
    ],
)
def test_a_wrong_login_is_refused(
    authorization: str | None, body: str, status: int, error: str
) -> None:
    refusal = log_in(authorization, body, {"a": ClientSpec(secret="s")}.get)
    assert isinstance(refusal, LoginError)
    assert (refusal.status, refusal.error) == (status, error)
    assert ("WWW-Authenticate" in refusal.headers) == (status == 401)


# On a socket


@dataclass
class Hands:
    """Two clocks that stand still until moved."""

    monotonic: float = 1000.0
    wall: float = 1_800_000_000.0

    def move(self, seconds: float) -> None:
        self.monotonic += seconds
        self.wall += seconds


@dataclass
class Bench:
    """A simulator on a socket, and a client that talks to it."""

    simulator: Simulator
    session: ClientSession
    hands: Hands
    url: str
    tokens: dict[str, str] = field(default_factory=dict)

    async def log_in(self, client_id: str = "london", secret: str = "s") -> dict[str, Any]:
        response = await self.session.post(
            "/oauth/token",
            data={"grant_type": "client_credentials"},
            headers={"Authorization": basic(client_id, secret)},
        )
        answer: dict[str, Any] = await response.json()
        self.tokens[client_id] = answer.get("access_token", "")
        return answer

    async def send(
        self,
        method: str,
        path: str,
        *,
        client_id: str = "london",
        headers: dict[str, str] | None = None,
        **options: Any,
    ) -> ClientResponse:
        bearer = {"Authorization": f"Bearer {self.tokens[client_id]}"}
        response = await self.session.request(
            method, path, headers=bearer | (headers or {}), **options
        )
        await response.read()
        return response

    async def export(self, body: object = VOICE, **options: Any) -> ClientResponse:
        return await self.send("POST", EXPORTS, json=body, **options)


KEY = SigningKey.generate()


@asynccontextmanager
async def bench(**settings: Any) -> AsyncIterator[Bench]:
    clients = {
        "london": ClientSpec(secret="s", token_lifetime=300),
        "opaque": ClientSpec(secret="s", opaque=True),
    }
    hands = Hands()
    simulator = Simulator(
        SimulatorSettings(clients=clients, **settings),
        monotonic=lambda: hands.monotonic,
        wall=lambda: hands.wall,
        key=KEY,
    )
    async with simulator.serve("127.0.0.1") as server, ClientSession(server.url) as session:
        yield Bench(simulator, session, hands, server.url)


@pytest.fixture
async def upstream() -> AsyncIterator[Bench]:
    async with bench() as running:
        yield running


async def test_a_token_is_a_jwt_of_the_published_key_with_the_scopes_in_it(
    upstream: Bench,
) -> None:
    answer = await upstream.log_in()
    key_set = await (await upstream.session.get("/.well-known/jwks.json")).json()
    key = jwt.PyJWKSet.from_dict(key_set).keys[0]
    settings = SimulatorSettings()
    claims = jwt.decode(
        answer["access_token"],
        key,
        algorithms=["RS256"],
        audience=settings.audience,
        issuer=settings.issuer,
        options={"verify_exp": False, "verify_iat": False},
    )
    assert set(answer) == {"access_token", "token_type", "expires_in"}
    assert (answer["token_type"], answer["expires_in"]) == ("bearer", 300)
    assert (claims["sub"], claims["client_id"]) == ("london", "london")
    assert (claims["iat"], claims["exp"]) == (1_800_000_000, 1_800_000_300)
    assert claims["scope"] == "recordings:export"
    assert jwt.get_unverified_header(answer["access_token"])["kid"] == key.key_id


async def test_every_token_is_another_and_an_opaque_one_works_as_well(upstream: Bench) -> None:
    first, second = await upstream.log_in(), await upstream.log_in()
    assert first["access_token"] != second["access_token"]
    opaque = await upstream.log_in("opaque")
    assert "." not in opaque["access_token"]
    assert (await upstream.export(client_id="opaque")).status == 202


async def test_any_client_logs_in_when_told_so_but_a_known_one_needs_its_secret() -> None:
    async with bench(any_client=True, answer_scope=True) as upstream:
        answer = await upstream.log_in("whoever", "whatever")
        assert answer["scope"] == "recordings:export"
        assert (await upstream.export(client_id="whoever")).status == 202
        assert (await upstream.log_in("london", "wrong"))["error"] == "invalid_client"


async def test_login_errors_have_the_vendors_shape_and_throttling_is_a_400(
    upstream: Bench,
) -> None:
    refused = await upstream.log_in(secret="wrong")
    assert refused["error_description"] == refused["description"] == "authentication failed"
    upstream.simulator.throttle_logins(1)
    throttled = await upstream.log_in()
    assert throttled["error"] == "invalid_request"
    assert throttled["description"].startswith("rate limit exceeded; ")
    assert (await upstream.log_in())["expires_in"] == 300


@pytest.mark.parametrize(
    ("data", "content_type"),
    [(b"{}", "application/json"), (b"\xff", "application/x-www-form-urlencoded")],
)
async def test_a_token_request_must_be_a_form(
    upstream: Bench, data: bytes, content_type: str
) -> None:
    response = await upstream.session.post(
        "/oauth/token", data=data, headers={"Content-Type": content_type}
    )
    assert response.status == 400
    assert (await response.json())["error"] == "invalid_request"
    assert response.headers["Cache-Control"] == "no-store"


async def test_an_export_is_created_shown_changed_and_cancelled(upstream: Bench) -> None:
    await upstream.log_in()
    created = await upstream.export()
    job = await created.json()
    assert created.status == 202
    assert job == {"id": job["id"], "state": "PENDING", "selfUri": f"{EXPORTS}/{job['id']}"}
    seen = []
    for method in ("GET", "PUT", "DELETE", "GET", "PATCH"):
        upstream.hands.move(0.5)
        response = await upstream.send(method, job["selfUri"])
        body = json.loads(await response.text() or "{}")
        seen.append((response.status, body.get("state")))
    assert seen == [
        (200, "PENDING"),
        (200, "PROCESSING"),
        (204, None),
        (200, "CANCELLED"),
        (405, None),
    ]


async def test_exports_are_listed_per_family_and_account(upstream: Bench) -> None:
    await upstream.log_in()
    await upstream.log_in("opaque")
    job = await (await upstream.export()).json()
    upstream.hands.move(0.5)
    listed = await (await upstream.send("GET", EXPORTS)).json()
    assert (listed["total"], listed["entities"]) == (1, [job])
    others = await upstream.send("GET", job["selfUri"], client_id="opaque")
    assert (others.status, (await others.json())["code"]) == (404, "not.found")
    upstream.hands.move(0.5)
    elsewhere = await upstream.send("GET", f"/api/v2/recording/jobs/{job['id']}")
    assert elsewhere.status == 404
    upstream.hands.move(0.5)
    assert (await upstream.send("DELETE", EXPORTS)).status == 405


@pytest.mark.parametrize(
    ("authorization", "code"),
    [
        (None, "authentication.required"),
        (basic("london", "s"), "authentication.required"),
        ("Bearer nobody-issued-this", "bad.credentials"),
    ],
)
async def test_without_an_issued_token_nothing_is_answered(
    upstream: Bench, authorization: str | None, code: str
) -> None:
    headers = {"Authorization": authorization} if authorization else {}
    response = await upstream.session.post(EXPORTS, json=VOICE, headers=headers)
    body = await response.json()
    assert (response.status, body["status"], body["code"]) == (401, 401, code)
    assert body["contextId"] == response.headers["ININ-Correlation-Id"]


async def test_an_expired_and_a_revoked_token_are_refused_and_take_no_slot(
    upstream: Bench,
) -> None:
    expired = (await upstream.log_in())["access_token"]
    upstream.hands.move(300)
    response = await upstream.export()
    assert (response.status, (await response.json())["code"]) == (401, "credentials.expired")
    revoked = (await upstream.log_in())["access_token"]
    assert revoked != expired
    upstream.simulator.revoke_token(revoked)
    assert (await upstream.export()).status == 401
    await upstream.log_in()
    assert (await upstream.export()).status == 202
    assert [seen.status for seen in upstream.simulator.arrivals("london")] == [401, 401, 202]


async def test_an_unknown_token_cannot_be_revoked(upstream: Bench) -> None:
    with pytest.raises(KeyError):
        upstream.simulator.revoke_token("unknown")


async def test_all_paced_paths_methods_and_tokens_of_an_account_share_one_pace(
    upstream: Bench,
) -> None:
    await upstream.log_in()
    await upstream.log_in("opaque")
    assert (await upstream.export()).status == 202
    await upstream.log_in()
    refused = await upstream.send("GET", "/api/v2/recording/jobs/1")
    assert (refused.status, refused.headers["Retry-After"]) == (429, "1")
    assert "inin-ratelimit-count" not in refused.headers
    assert await refused.json() == {
        "message": "Rate limit exceeded the maximum. Retry the request in [1] seconds",
        "code": "too.many.requests.retry.after",
        "status": 429,
        "contextId": refused.headers["ININ-Correlation-Id"],
        "details": [],
        "errors": [],
    }
    assert (await upstream.send("GET", "/api/v2/tokens/me")).status == 200
    assert (await upstream.export(client_id="opaque")).status == 202
    upstream.hands.move(1)
    assert (await upstream.send("POST", "/api/v2/recording/batchrequests")).status == 202


async def test_eaten_quota_is_told_truly(upstream: Bench) -> None:
    await upstream.log_in()
    upstream.simulator.eat_quota("london", 7.2)
    assert (await upstream.export()).headers["Retry-After"] == "8"
    upstream.hands.move(8)
    assert (await upstream.export()).status == 202


async def test_a_digital_export_needs_its_own_scope_in_a_token_minted_after_propagation(
    upstream: Bench,
) -> None:
    await upstream.log_in()
    missing = await upstream.export(WHATSAPP)
    body = await missing.json()
    assert (missing.status, body["code"]) == (403, "missing.permissions")
    assert body["message"].endswith("missing the following permission(s): agent_scripting:export")
    upstream.simulator.grant("london", "agent_scripting:export", propagation=60)
    statuses = []
    for wait, mints in [(59, True), (1, False), (1, True)]:
        upstream.hands.move(wait)
        if mints:
            await upstream.log_in()
        statuses.append((await upstream.export(WHATSAPP)).status)
    assert statuses == [403, 403, 202]


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"{not json", 400, "bad.request"),
        (b"[" * 100_000, 400, "bad.request"),
        (b'"' + b"x" * 512_000 + b'"', 413, "request.entity.too.large"),
    ],
)
async def test_a_body_that_cannot_be_read_creates_nothing(
    upstream: Bench, data: bytes, status: int, code: str
) -> None:
    await upstream.log_in()
    response = await upstream.send("POST", EXPORTS, data=data)
    assert (response.status, (await response.json())["code"]) == (status, code)
    assert upstream.simulator.report("london").exports == 0


async def test_ordinary_answers_announce_the_quota_in_the_vendors_fields(
    upstream: Bench,
) -> None:
    await upstream.log_in()
    await upstream.export()
    upstream.hands.move(1)
    response = await upstream.export()
    raw = {name.decode(): value.decode() for name, value in response.raw_headers}
    assert raw["inin-ratelimit-count"] == "2"
    assert raw["inin-ratelimit-allowed"] == "122"
    assert raw["inin-ratelimit-reset"] == "59"
    assert {"ININ-Correlation-Id", "Date"} <= set(raw)


@pytest.mark.parametrize(("interval", "allowed"), [(0.1, 602), (2, 32)], ids=["fast", "slow"])
async def test_the_quota_that_is_announced_follows_the_interval(
    interval: float, allowed: int
) -> None:
    async with bench(interval=interval) as upstream:
        await upstream.log_in()
        assert (await upstream.export()).headers["inin-ratelimit-allowed"] == str(allowed)


async def test_other_paths_are_small_and_unpaced(upstream: Bench) -> None:
    await upstream.log_in()
    me = await (await upstream.send("GET", "/api/v2/tokens/me")).json()
    assert (me["OAuthClient"]["id"], me["authorizedScope"]) == ("london", ["recordings:export"])
    user = await (await upstream.send("GET", "/api/v2/users/me")).json()
    assert user == {"id": "london", "selfUri": "/api/v2/users/me"}
    assert (await upstream.send("HEAD", "/api/v2/tokens/me")).status == 200
    assert (await upstream.send("GET", "/elsewhere")).status == 404
    assert upstream.simulator.report("london").accepted == 0
    assert len(upstream.simulator.arrivals("london")) == 4


async def test_a_key_that_creates_twice_is_reported(upstream: Bench) -> None:
    await upstream.log_in()
    for options in ({"headers": {"X-Export-Key": "k"}}, {"body": {"externalId": "k"}}, {}):
        assert (await upstream.export(**options)).status == 202
        upstream.hands.move(0.5)
    report = upstream.simulator.report("london")
    assert (report.exports, report.duplicates, report.tokens_minted) == (3, {"k": 2}, 1)


async def test_the_report_grants_and_reset_are_there_over_http(upstream: Bench) -> None:
    order = {"client_id": "london", "scope": "agent_scripting:export"}
    granted = await upstream.session.post("/simulator/grants", json=order)
    assert (granted.status, await granted.json()) == (201, order | {"propagation": 0})
    await upstream.log_in()
    await upstream.export(WHATSAPP)
    await upstream.export(WHATSAPP)
    report = await (await upstream.session.get("/simulator/report")).json()
    assert report["interval"] == 0.5
    assert report["accounts"]["london"] == {
        "accepted": 1,
        "refused": 1,
        "early": 1,
        "storm": 0,
        "eaten": 0,
        "smallest_gap": 0.0,
        "median_gap": 0.0,
        "span": 0.0,
        "ahead": 0.5,
        "statuses": {"202": 1, "429": 1},
        "exports": 1,
        "duplicates": {},
        "tokens_minted": 1,
    }
    assert (await upstream.session.post("/simulator/reset")).status == 204
    assert upstream.simulator.report("london").tokens_minted == 0
    assert (await upstream.export(WHATSAPP)).status == 202


@pytest.mark.parametrize("data", ["no json", json.dumps({"client_id": "london"})])
async def test_a_grant_over_http_that_cannot_be_read_is_400(upstream: Bench, data: str) -> None:
    response = await upstream.session.post("/simulator/grants", data=data)
    assert response.status == 400
    assert "must be" in (await response.json())["error"]


async def test_latency_holds_answers_back_but_not_the_stamp(upstream: Bench) -> None:
    loop = asyncio.get_running_loop()
    upstream.simulator.login_latency = upstream.simulator.latency = 0.05
    started = loop.time()
    await upstream.log_in()
    logged_in = loop.time()
    await upstream.export()
    assert min(logged_in - started, loop.time() - logged_in) >= 0.05
    assert (upstream.simulator.latency, upstream.simulator.login_latency) == (0.05, 0.05)
    assert [seen.at for seen in upstream.simulator.arrivals("london")] == [1000.0]


async def test_run_serves_on_the_real_clocks_until_cancelled() -> None:
    loop = asyncio.get_running_loop()
    announced: asyncio.Future[str] = loop.create_future()
    settings = SimulatorSettings(any_client=True)
    async with asyncio.TaskGroup() as group:
        serving = group.create_task(
            run(settings, host="127.0.0.1", port=0, announce=announced.set_result)
        )
        async with ClientSession(await announced) as session:
            form = {"grant_type": "client_credentials", "client_id": "a", "client_secret": "b"}
            token = (await (await session.post("/oauth/token", data=form)).json())["access_token"]
            bearer = {"Authorization": f"Bearer {token}"}
            assert (await session.post(EXPORTS, json=VOICE, headers=bearer)).status == 202
            assert (await session.post(EXPORTS, json=VOICE, headers=bearer)).status == 429
        serving.cancel()
