"""The issuer's keys: fetched once however many ask, kept while that fails, and only fit ones."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from structlog.testing import capture_logs

from proxy.http.client import Client
from proxy.identity.signing_keys import COOL_DOWN, FRESH_FOR, SigningKeys
from proxy.problems import Problem
from proxy.settings import Upstream as UpstreamSettings
from tests.kit.clock import FakeClock
from tests.kit.upstream import (
    Garbage,
    HalfBody,
    Hang,
    RawUpstream,
    ReadThenReset,
    Reply,
    Script,
    Step,
    free_port,
)

RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
RSA_JWK: dict[str, Any] = RSAAlgorithm.to_jwk(RSA_KEY.public_key(), as_dict=True)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
EC_JWK: dict[str, Any] = ECAlgorithm.to_jwk(EC_KEY.public_key(), as_dict=True)
ED_JWK: dict[str, Any] = OKPAlgorithm.to_jwk(
    ed25519.Ed25519PrivateKey.generate().public_key(), as_dict=True
)


def jwks(*keys: object) -> Reply:
    return Reply(body=json.dumps({"keys": list(keys)}).encode())


def rsa_jwk(kid: object = "k", **members: Any) -> dict[str, Any]:
    named = {} if kid is None else {"kid": kid}
    public = {key: value for key, value in RSA_JWK.items() if key != "key_ops"}
    return {**public, **named, **members}


FAILURE = Reply(500)


class Bench:
    def __init__(self, server: RawUpstream, keys: SigningKeys, clock: FakeClock) -> None:
        self.server = server
        self.keys = keys
        self.clock = clock

    @property
    def fetches(self) -> int:
        return len(self.server.requests)

    async def has(self, key_id: str | None) -> bool:
        return await self.keys.key(key_id) is not None


@asynccontextmanager
async def bench(
    script: Script = (), default: Step = FAILURE, *, path: str = "/keys", seconds: float = 20
) -> AsyncIterator[Bench]:
    async with RawUpstream(script, default=default) as server:
        limits = UpstreamSettings(
            api_url=server.url, login_url=server.url, response_timeout=seconds
        )
        clock = FakeClock(start=100.0)
        upstream = Client(limits, server.url, clock=clock)
        try:
            yield Bench(server, SigningKeys(upstream, server.url + path, clock=clock), clock)
        finally:
            await upstream.close()


async def test_a_key_is_fetched_when_it_is_first_needed() -> None:
    async with bench([jwks(rsa_jwk("k1"), rsa_jwk("k2"))], path="/oauth/keys?v=1") as it:
        assert it.fetches == 0
        key = await it.keys.key("k1")
        assert key is not None
        assert (key.key_id, key.algorithm_name) == ("k1", "RS256")
        assert await it.has("k2")
        (request,) = it.server.requests
        assert (request.method, request.target) == (b"GET", b"/oauth/keys?v=1")
        assert request.values("authorization") == []


async def test_a_key_without_an_id_is_for_tokens_without_one() -> None:
    async with bench([jwks(rsa_jwk(None))]) as it:
        assert await it.has(None)
        assert not await it.has("k")


async def test_keys_that_are_coded_without_being_asked_for_are_read() -> None:
    coded = gzip.compress(jwks(rsa_jwk("k")).body)
    async with bench([Reply(200, [("Content-Encoding", "gzip")], coded)]) as it:
        assert await it.has("k")


async def test_a_thousand_requests_at_once_cause_one_fetch() -> None:
    async with bench(default=Reply(body=jwks(rsa_jwk("k")).body, delay=0.05)) as it:
        found = await asyncio.gather(*(it.has("k") for _ in range(1000)))
        assert found == [True] * 1000
        assert it.fetches == 1


async def test_a_thousand_unknown_ids_cause_one_fetch_per_cool_down() -> None:
    async with bench(default=jwks(rsa_jwk("k"))) as it:
        for attack in range(1, 5):
            found = await asyncio.gather(*(it.has(f"x{attack}-{n}") for n in range(1000)))
            assert not any(found)
            assert it.fetches == attack
            await it.clock.advance(COOL_DOWN - 1)
            assert not await it.has("other")
            assert it.fetches == attack
            await it.clock.advance(1)


async def test_a_new_key_is_found_after_the_cool_down() -> None:
    async with bench([jwks(rsa_jwk("old")), jwks(rsa_jwk("old"), rsa_jwk("new"))]) as it:
        assert await it.has("old")
        assert not await it.has("new")
        await it.clock.advance(COOL_DOWN)
        assert await it.has("new")
        assert it.fetches == 2


async def test_old_keys_are_fetched_again_and_serve_meanwhile() -> None:
    """A withdrawn key is not trusted for ever, and nobody waits for that to be found out."""
    async with bench([jwks(rsa_jwk("leaked")), jwks(rsa_jwk("k"))]) as it:
        assert await it.has("leaked")
        await it.clock.advance(FRESH_FOR - 1)
        assert await it.has("leaked")
        assert it.fetches == 1
        await it.clock.advance(1)
        assert await it.has("leaked"), "stale, while the new ones are on their way"
        await it.server.received(2)
        assert await it.has("k")
        assert not await it.has("leaked")


TROUBLES: list[Step] = [
    Reply(500),
    Reply(404),
    Reply(200, body=b""),
    Reply(200, body=b"<html>"),
    Reply(200, body=b"[]"),
    Reply(200, body=b"{}"),
    Reply(200, body=b'{"keys": {}}'),
    Reply(200, body=b'{"keys": [7, null, "x", []]}'),
    Reply(200, body=b'{"keys": []}'),
    Reply(200, body=b"[" * 100_000),
    Reply(200, body=json.dumps({"keys": [rsa_jwk()], "pad": "x" * 10_000_000}).encode()),
    Hang(),
    ReadThenReset(),
    HalfBody(b'{"keys": [] }'),
    Garbage(b"nonsense\r\n\r\n"),
]


def timeout_for(trouble: Step) -> float:
    """The `response_timeout` where this happens; good answers come in time all the same."""
    return 1.5 if isinstance(trouble, Hang) else 20


@pytest.mark.parametrize("trouble", TROUBLES, ids=range(len(TROUBLES)))
async def test_the_keys_that_are_there_serve_while_a_fetch_fails(trouble: Step) -> None:
    seconds = timeout_for(trouble)
    async with bench([jwks(rsa_jwk("k"))], trouble, seconds=seconds) as it:
        assert await it.has("k")
        for _ in range(3):
            await it.clock.advance(FRESH_FOR)
            assert not await it.has("unknown")
            assert await it.has("k")
        # One that meets the close of a connection that was used before is sent once more.
        assert it.fetches == (5 if isinstance(trouble, ReadThenReset) else 4)


@pytest.mark.parametrize("trouble", TROUBLES, ids=range(len(TROUBLES)))
async def test_no_token_is_judged_before_the_first_key(trouble: Step) -> None:
    seconds = timeout_for(trouble)
    async with bench([trouble], jwks(rsa_jwk("k")), seconds=seconds) as it:
        with pytest.raises(Problem) as caught:
            await it.keys.key("k")
        assert (caught.value.name, caught.value.status) == ("keys-unavailable", 503)
        assert caught.value.retry_after == COOL_DOWN
        await it.clock.advance(20)
        with pytest.raises(Problem) as caught:
            await it.keys.key("k")
        assert caught.value.retry_after == 10
        assert it.fetches == 1
        await it.clock.advance(10)
        assert await it.has("k")


async def test_an_issuer_nobody_can_reach() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    limits = UpstreamSettings(api_url=url, login_url=url)
    upstream = Client(limits, url, clock=FakeClock())
    with capture_logs() as logged, pytest.raises(Problem, match="could not be fetched"):
        await SigningKeys(upstream, f"{url}/keys", clock=FakeClock()).key("k")
    assert [line["reason"] for line in logged] == ["the server refuses connections"]
    await upstream.close()


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_not_followed(status: int) -> None:
    async with RawUpstream(default=jwks(rsa_jwk("k"))) as elsewhere:
        reply = Reply(status, [("Location", f"{elsewhere.url}/keys")])
        async with bench([reply]) as it:
            with pytest.raises(Problem, match="could not be fetched"):
                await it.keys.key("k")
        assert elsewhere.connections == 0


async def test_a_caller_that_leaves_does_not_cancel_the_fetch() -> None:
    """Or anybody could keep the keys away with tokens of unknown ids and a quick farewell."""
    async with bench(default=Reply(body=jwks(rsa_jwk("k")).body, delay=0.1)) as it:
        leaving = asyncio.get_running_loop().create_task(it.has("k"))
        staying = asyncio.get_running_loop().create_task(it.has("k"))
        await it.server.received()
        leaving.cancel()
        assert await staying
        assert leaving.cancelled()
        assert it.fetches == 1


def without(jwk: dict[str, Any], *members: str) -> dict[str, Any]:
    return {key: value for key, value in jwk.items() if key not in members}


SHORT = rsa.generate_private_key(
    public_exponent=65537,
    key_size=1024,  # noqa: S505 -- too short, on purpose
).public_key()
COIN = ec.generate_private_key(ec.SECP256K1()).public_key()
PRIVATE: dict[str, Any] = RSAAlgorithm.to_jwk(RSA_KEY, as_dict=True)
PRIVATE_EC: dict[str, Any] = ECAlgorithm.to_jwk(EC_KEY, as_dict=True)
# A modulus of 512 bits, which no library generates any more.
RSA_512 = {"kty": "RSA", "e": "AQAB", "n": "wJ" + "q" * 84}
UNFIT: dict[str, dict[str, Any]] = {
    "for encryption": rsa_jwk(use="enc"),
    "use of another type": rsa_jwk(use=["sig"]),
    "operations without verify": rsa_jwk(key_ops=["encrypt"]),
    "no operations": rsa_jwk(key_ops=[]),
    "operations of another type": rsa_jwk(key_ops="verify"),
    "512 bits": {**RSA_512, "kid": "k"},
    "1024 bits": {**RSAAlgorithm.to_jwk(SHORT, as_dict=True), "kid": "k"},
    "symmetric": {"kty": "oct", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0", "kid": "k"},
    "symmetric algorithm": rsa_jwk(alg="HS256"),
    "no algorithm": rsa_jwk(alg="none"),
    "encryption algorithm": rsa_jwk(alg="RSA-OAEP"),
    "algorithm of another key type": rsa_jwk(alg="ES256"),
    "algorithm of another type": rsa_jwk(alg=["RS256"]),
    "private": {**without(PRIVATE, "key_ops"), "kid": "k"},
    "private elliptic": {**without(PRIVATE_EC, "key_ops"), "kid": "k"},
    "no modulus": without(rsa_jwk(), "n"),
    "modulus of another type": rsa_jwk(n=7),
    "modulus that is no base64": rsa_jwk(n="!"),
    "unknown curve": {**EC_JWK, "crv": "P-999", "kid": "k"},
    "curve that is not accepted": {**ECAlgorithm.to_jwk(COIN, as_dict=True), "kid": "k"},
    "point off the curve": {**EC_JWK, "x": EC_JWK["y"], "kid": "k"},
    "unknown type": {"kty": "XYZ", "kid": "k"},
    "no type": {"kid": "k"},
    "id of another type": rsa_jwk(kid=["k"]),
    "numeric id": rsa_jwk(kid=7),
}


@pytest.mark.parametrize("jwk", UNFIT.values(), ids=UNFIT.keys())
async def test_a_key_that_is_not_fit_is_not_used(jwk: dict[str, Any]) -> None:
    """And does not take the others with it."""
    async with bench([jwks(jwk, rsa_jwk("good"))]) as it:
        assert not await it.has("k")
        assert await it.has("good")
        assert it.fetches == 1


@pytest.mark.parametrize(
    ("jwk", "algorithm"),
    [
        (rsa_jwk(), "RS256"),
        (rsa_jwk(use="sig", key_ops=["verify"], alg="RS512"), "RS512"),
        (rsa_jwk(alg="PS256"), "PS256"),
        ({**EC_JWK, "kid": "k"}, "ES256"),
        ({**ED_JWK, "kid": "k"}, "EdDSA"),
    ],
)
async def test_fit_keys_have_one_algorithm(jwk: dict[str, Any], algorithm: str) -> None:
    async with bench([jwks(jwk)]) as it:
        key = await it.keys.key("k")
        assert key is not None
        assert key.algorithm_name == algorithm


MEMBERS = st.sampled_from(
    ["kty", "alg", "use", "key_ops", "kid", "n", "e", "x", "y", "crv", "d", "k", "x5c"]
)
VALUES = st.one_of(
    st.sampled_from(["RSA", "EC", "OKP", "oct", "RS256", "ES256", "EdDSA", "P-256", "Ed25519"]),
    st.sampled_from(["AQAB", "sig", "verify", "", EC_JWK["x"], RSA_JWK["n"], ED_JWK["x"]]),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2),
        max_leaves=4,
    ),
)
JWKS = st.lists(
    st.builds(
        lambda base, changes: {**base, **changes},
        st.sampled_from([RSA_JWK, EC_JWK, ED_JWK, {}]),
        st.dictionaries(MEMBERS, VALUES, max_size=4),
    ),
    min_size=1,
    max_size=5,
)


@given(keys=JWKS)
@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
def test_no_set_of_keys_raises(keys: list[dict[str, Any]]) -> None:
    async def read() -> None:
        async with bench([jwks(*keys, rsa_jwk("good"))]) as it:
            assert await it.has("good")

    asyncio.run(read())
