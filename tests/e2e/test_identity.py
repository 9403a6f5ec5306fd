"""The identity of callers from both sides: what is refused, and whose account a token is.

The whole proxy runs in the test's loop, on a clock that the test turns; its API and login server
are one scripted upstream that grants the client named N a token named N.
"""

import base64
import hashlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs

import pytest

from proxy.rules.digests import account_id
from proxy.service.lifecycle import Running, running
from tests.kit.client import Response, exchange, parse_response, port_of
from tests.kit.clock import FakeClock
from tests.kit.listener import HOST
from tests.kit.logins import log_in
from tests.kit.proxy import settings_for
from tests.kit.tokens import KEYS, signed_token
from tests.kit.upstream import RawUpstream, RecordedRequest, Reply, Step

USERS = "/api/v2/users/me"  # forwarded at once
EXPORTS = "/api/v2/recordings/exports"  # paced
REJECT = {"unidentified": "reject"}
LIFETIME = 600


def granting(request: RecordedRequest) -> Step:
    """Grant what the secret names: `token:lifetime`."""
    if request.target != b"/oauth/token":
        return Reply()
    form = parse_qs(request.body.decode())
    token, _, lifetime = form["client_secret"][0].partition(":")
    grant = {"access_token": token, "expires_in": int(lifetime or LIFETIME)}
    return Reply(200, (), json.dumps(grant).encode())


class Bench:
    """A proxy with its upstream and its clock."""

    def __init__(self, proxy: Running, upstream: RawUpstream, clock: FakeClock) -> None:
        self.proxy = proxy
        self.upstream = upstream
        self.clock = clock

    async def log_in(self, client_id: str, token: str, lifetime: int = LIFETIME) -> None:
        """Grant the client that token."""
        answer = await log_in(port_of(self.proxy.url), client_id, f"{token}:{lifetime}")
        assert answer.status == 200

    async def call(self, *authorization: str, target: str = USERS) -> Response:
        fields = "".join(f"Authorization: {value}\r\n" for value in authorization)
        return await self._exchange(f"GET {target} HTTP/1.1\r\nHost: h\r\n{fields}\r\n")

    async def status_of(self, token: str) -> int:
        return (await self.call(f"Bearer {token}")).status

    def accounts(self) -> list[str]:
        """The labels of the accounts that were ever called for."""
        return [account.label for account in self.proxy.accounts.accounts() if account.queues]

    async def _exchange(self, data: str) -> Response:
        port = port_of(self.proxy.url)
        return parse_response(await exchange(HOST, port, data.encode()))


@asynccontextmanager
async def bench(**sections: Mapping[str, Any] | list[Any]) -> AsyncIterator[Bench]:
    clock = FakeClock()
    async with (
        RawUpstream(granting) as upstream,
        running(settings_for(upstream.url, **sections), clock) as proxy,
    ):
        yield Bench(proxy, upstream, clock)


# What a credential must look like


@pytest.mark.parametrize(
    "value",
    [
        "Basic dXNlcjpzZWNyZXQ=",
        "Bearer",
        "Bearer ",
        "Bearer a b",
        "Bearer a,b",
        "Bearer =a",
        'Bearer "a"',
        "Bearera",
        "Digest a",
        "a",
        "",
    ],
)
async def test_what_is_no_bearer_token_is_unauthenticated(value: str) -> None:
    async with bench() as proxy:
        answer = await proxy.call(value)
        assert proxy.upstream.connections == 0
    assert answer.status == 401
    assert answer.values("WWW-Authenticate") == [b'Bearer realm="export-proxy"']
    assert json.loads(answer.body)["type"] == "urn:export-proxy:unauthenticated"
    assert value not in answer.body.decode() or value in ("", "a")


@pytest.mark.parametrize("unidentified", ["pace", "reject"])
async def test_a_caller_without_a_credential_is_unauthenticated(unidentified: str) -> None:
    async with bench(identity={"unidentified": unidentified}) as proxy:
        assert (await proxy.call()).status == 401
        assert proxy.upstream.connections == 0


async def test_two_credentials_are_one_too_many() -> None:
    async with bench() as proxy:
        assert (await proxy.call("Bearer a", "Bearer a")).status == 400
        assert (proxy.upstream.connections, proxy.accounts()) == (0, [])


@pytest.mark.parametrize(
    "value", ["bearer t0-._~+/k==", "BEARER t0-._~+/k==", "Bearer   t0-._~+/k=="]
)
async def test_a_bearer_token_in_any_spelling_is_one_caller(value: str) -> None:
    """RFC 9110 section 11.1: the scheme's case does not matter. It is forwarded as it came."""
    async with bench() as proxy:
        await proxy.call("Bearer t0-._~+/k==")
        assert (await proxy.call(value)).status == 200
        assert len(proxy.accounts()) == 1
        sent = proxy.upstream.requests[1]
    assert sent.values("Authorization") == [value.encode()]


# Strangers


async def test_a_stranger_is_known_by_its_token_alone() -> None:
    async with bench() as proxy:
        for token in ("one", "two", "one"):
            assert await proxy.status_of(token) == 200
        assert proxy.accounts() == ["other", "other"]


async def test_strangers_are_refused_where_everybody_must_be_known() -> None:
    async with bench(identity=REJECT) as proxy:
        answer = await proxy.call("Bearer stranger")
        assert proxy.upstream.connections == 0
    assert answer.status == 401
    assert b"stranger" not in answer.body


async def test_too_many_strangers_are_asked_to_come_back() -> None:
    """An account that may still have to wait is remembered, so that no caller escapes the pace."""
    async with bench(identity={"max_unidentified": 2}) as proxy:
        await proxy.clock.advance(1)
        for token in ("one", "two"):
            assert (await proxy.call(f"Bearer {token}", target=EXPORTS)).status == 200
        refused = await proxy.call("Bearer three", target=EXPORTS)
        assert (refused.status, len(proxy.upstream.requests)) == (429, 2)
        assert int(refused.values("Retry-After")[0]) >= 1
        assert json.loads(refused.body)["type"] == "urn:export-proxy:queue-full"
        await proxy.clock.advance(1)
        assert (await proxy.call("Bearer three", target=EXPORTS)).status == 200


def unsigned(**claims: str) -> str:
    """A token anybody can write."""
    parts = ({"alg": "none", "typ": "JWT"}, claims)
    encoded = (base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in parts)
    return ".".join([*(part.decode() for part in encoded), ""])


async def test_a_claim_that_nobody_verified_is_no_identity() -> None:
    """Neither the account's queue, nor another token than the caller's own."""
    token = unsigned(sub="london-id", client_id="london-id", iss="anybody")
    async with bench(accounts=[{"name": "london", "client_id": "london-id"}]) as proxy:
        assert await proxy.status_of(token) == 200
        assert proxy.accounts() == ["other"]
        assert proxy.upstream.requests[0].values("Authorization") == [f"Bearer {token}".encode()]


# Tokens issued through the proxy


async def test_all_tokens_of_a_client_are_one_account() -> None:
    async with bench() as proxy:
        for client_id, token in (("a", "a1"), ("a", "a2"), ("b", "b1")):
            await proxy.log_in(client_id, token)
            assert await proxy.status_of(token) == 200
        assert len(proxy.accounts()) == 2


async def test_a_configured_client_has_its_name_and_keeps_its_callers_tokens() -> None:
    async with bench(accounts=[{"name": "london", "client_id": "london-id"}]) as proxy:
        await proxy.log_in("london-id", "l1")
        assert await proxy.status_of("l1") == 200
        assert proxy.accounts() == ["london"]
        assert proxy.upstream.requests[-1].values("Authorization") == [b"Bearer l1"]


async def test_an_issued_token_is_known_for_as_long_as_it_lives() -> None:
    async with bench(identity=REJECT) as proxy:
        assert await proxy.status_of("t") == 401
        await proxy.log_in("a", "t", lifetime=600)
        await proxy.clock.advance(599)
        assert await proxy.status_of("t") == 200
        await proxy.clock.advance(1)
        assert await proxy.status_of("t") == 401
        await proxy.log_in("a", "t", lifetime=600)
        assert await proxy.status_of("t") == 200


async def test_no_token_is_remembered_for_more_than_two_days() -> None:
    """The vendor's longest life of a token; a login server in error must not fill the table."""
    async with bench(identity=REJECT) as proxy:
        await proxy.log_in("a", "t", lifetime=10**400)
        await proxy.clock.advance(2 * 86400 - 1)
        assert await proxy.status_of("t") == 200
        await proxy.clock.advance(1)
        assert await proxy.status_of("t") == 401


async def statuses(proxy: Bench, tokens: Sequence[str]) -> list[int]:
    return [await proxy.status_of(token) for token in tokens]


async def test_beyond_the_bound_the_oldest_issued_token_goes() -> None:
    async with bench(identity={**REJECT, "max_learned": 2}) as proxy:
        for token in ("one", "two", "three"):
            await proxy.log_in("a", token)
        assert await statuses(proxy, ["one", "two", "three"]) == [401, 200, 200]


async def test_what_has_expired_goes_before_what_has_not() -> None:
    async with bench(identity={**REJECT, "max_learned": 2}) as proxy:
        await proxy.log_in("a", "lasting")
        await proxy.log_in("a", "short", lifetime=5)
        await proxy.clock.advance(5)
        await proxy.log_in("a", "new")
        assert await statuses(proxy, ["lasting", "short", "new"]) == [200, 401, 200]


async def test_no_token_can_be_read_from_the_outside() -> None:
    async with bench() as proxy:
        await proxy.log_in("a", "s3cr3t-issued")
        for token in ("s3cr3t-issued", "s3cr3t-stranger"):
            await proxy.status_of(token)
        port = port_of(proxy.proxy.admin_url)
        for path in ("/metrics", "/status.json"):
            head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"
            page = parse_response(await exchange(HOST, port, head.encode()))
            assert page.status == 200
            assert b"s3cr3t" not in page.body


# Managed accounts: who is sent on with the account's own token

KEY = "caller-key-1"
ISSUER = "https://login.example/"
AUDIENCE = "https://api.example"
NOW = 1_700_000_000
MANAGED = {
    "name": "london",
    "client_id": "london-id",
    "client_secret": f"london-secret:{LIFETIME}",
    "keys": [f"sha256:{hashlib.sha256(KEY.encode()).hexdigest()}"],
}
NAMED = {"name": "paris", "client_id": "paris-id"}


def issuing(request: RecordedRequest) -> Step:
    """Serve the issuer's keys, the managed token, and issued tokens as `granting` does."""
    if request.target == b"/keys":
        return Reply(200, (), KEYS)
    if request.target == b"/oauth/token" and request.values("Authorization"):
        grant = {"access_token": "managed-token", "token_type": "bearer", "expires_in": LIFETIME}
        return Reply(200, (), json.dumps(grant).encode())
    return granting(request)


@asynccontextmanager
async def managing(*, verifies: bool = True, unidentified: str = "pace") -> AsyncIterator[Bench]:
    clock = FakeClock(wall=NOW)
    async with RawUpstream(issuing) as upstream:
        identity: dict[str, Any] = {"unidentified": unidentified}
        if verifies:
            url = f"{upstream.url}/keys"
            identity |= {"issuer": ISSUER, "jwks_url": url, "audience": AUDIENCE}
        settings = settings_for(upstream.url, identity=identity, accounts=[MANAGED, NAMED])
        async with running(settings, clock) as proxy:
            await upstream.received()  # the managed token is on its way before anybody calls
            yield Bench(proxy, upstream, clock)


def of_issuer(client_id: str = "london-id", **changes: Any) -> str:
    claims = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": client_id,
        "client_id": client_id,
        "exp": NOW + 600,
    }
    return signed_token({**claims, **changes})


def sent_with(bench: Bench) -> list[bytes]:
    """With which credentials requests reached the API."""
    return [
        request.values("Authorization")[0].removeprefix(b"Bearer ")
        for request in bench.upstream.requests
        if request.target not in (b"/oauth/token", b"/keys")
    ]


async def test_every_proof_of_a_managed_account_leads_to_its_token_and_its_queue() -> None:
    async with managing(unidentified="reject") as proxy:
        await proxy.log_in("london-id", "london-secret")
        for token in (KEY, of_issuer(), "managed-token"):
            assert await proxy.status_of(token) == 200
        assert sent_with(proxy) == [b"managed-token"] * 3
        assert proxy.accounts() == ["london"]


async def test_a_named_account_and_an_unknown_client_keep_their_own_tokens() -> None:
    async with managing(unidentified="reject") as proxy:
        paris, berlin = of_issuer("paris-id"), of_issuer("berlin-id")
        assert await proxy.status_of(paris) == 200
        assert await proxy.status_of(berlin) == 200
        assert sent_with(proxy) == [paris.encode(), berlin.encode()]
        assert proxy.accounts() == ["paris", f"client:{account_id('berlin-id')[:8]}"]


@pytest.mark.parametrize("unidentified", ["pace", "reject"])
async def test_a_claimed_credential_that_fails_is_refused_and_never_passed_on(
    unidentified: str,
) -> None:
    """Nor does it take a slot, or have a token fetched, for the account it names."""
    bad = [
        of_issuer(exp=NOW - 3600),
        of_issuer(aud="other"),
        of_issuer(sub="a-user"),
        of_issuer()[:-4] + "AAAA",
        unsigned(iss=ISSUER, sub="london-id", client_id="london-id"),
        with_repeated_subject(),
    ]
    async with managing(unidentified=unidentified) as proxy:
        for token in bad:
            assert await proxy.status_of(token) == 401
        assert sent_with(proxy) == []
        assert proxy.accounts() == []
        assert len(proxy.upstream.requests) == 2, "the managed token, and the keys"


def with_repeated_subject() -> str:
    header, payload, signature = of_issuer().split(".")
    text = base64.urlsafe_b64decode(payload + "===").replace(b'"sub"', b'"sub": "paris-id", "sub"')
    return f"{header}.{base64.urlsafe_b64encode(text).decode().rstrip('=')}.{signature}"


async def test_without_an_issuer_a_signed_token_is_a_stranger() -> None:
    async with managing(verifies=False) as proxy:
        token = of_issuer()
        assert await proxy.status_of(token) == 200
        assert sent_with(proxy) == [token.encode()]
        assert proxy.accounts() == ["other"]


async def test_an_issued_token_is_not_verified_again() -> None:
    """The first rule that claims a credential decides; its expiry lets the next one."""
    async with managing() as proxy:
        foreign = of_issuer(exp=NOW - 3600)
        await proxy.log_in("berlin-id", foreign, lifetime=60)
        assert await proxy.status_of(foreign) == 200
        await proxy.clock.advance(60)
        assert await proxy.status_of(foreign) == 401


async def test_a_key_is_a_key_only_as_it_was_given() -> None:
    async with managing(unidentified="reject") as proxy:
        for almost in (
            KEY.upper(),
            KEY + "1",
            KEY[:-1],
            MANAGED["keys"][0].removeprefix("sha256:"),
        ):
            assert await proxy.status_of(almost) == 401
        assert sent_with(proxy) == []


async def test_no_keys_yet_is_not_the_callers_fault() -> None:
    async with RawUpstream(
        lambda request: Reply(500) if request.target == b"/keys" else Reply()
    ) as it:
        identity = {"issuer": ISSUER, "jwks_url": f"{it.url}/keys", "audience": AUDIENCE}
        async with running(settings_for(it.url, identity=identity), FakeClock(wall=NOW)) as proxy:
            here = Bench(proxy, it, FakeClock())
            answer = await here.call(f"Bearer {of_issuer()}")
            assert (answer.status, answer.values("Retry-After")) == (503, [b"30"])
            assert await here.status_of("somebody-else") == 200


async def test_forgeries_do_not_delay_the_account_they_name() -> None:
    async with managing() as proxy:
        forged = [unsigned(iss="x", sub="london-id", jti=f"{number}") for number in range(200)]
        for token in forged:
            await proxy.status_of(token)
        await proxy.clock.advance(1)  # the first slot of any queue is one interval from the start
        assert (await proxy.call(f"Bearer {KEY}", target=EXPORTS)).status == 200
        assert sent_with(proxy)[-1] == b"managed-token"
