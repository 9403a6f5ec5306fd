"""JWTs of the issuer: one that anything is wrong with proves nothing, and costs next to nothing."""

import hashlib
import hmac
import json
import secrets
import time  # noqa: TID251 -- CPU time is measured, no clock is read
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import RSAAlgorithm

from proxy.http.client import Client
from proxy.identity.signing_keys import SigningKeys
from proxy.identity.verifier import Verifier
from proxy.problems import Problem
from proxy.settings import Identity
from proxy.settings import Upstream as UpstreamSettings
from tests.kit.clock import FakeClock
from tests.kit.tokens import (
    EC_KEY,
    KEYS,
    RSA_KEY,
    SigningKey,
    segment,
    signed_token,
    unsigned,
)
from tests.kit.upstream import RawUpstream, Reply

NOW = 1_700_000_000.0
ISSUER = "https://login.example/"
AUDIENCE = "https://api.example"
PUBLIC_PEM = RSA_KEY.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)
OTHER_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
GOOD: dict[str, Any] = {
    "iss": ISSUER,
    "aud": AUDIENCE,
    "sub": "client-1",
    "client_id": "client-1",
    "iat": NOW - 10,
    "exp": NOW + 600,
}


def claims(**changes: Any) -> dict[str, Any]:
    """Return good claims with some changed; None takes one out."""
    return {key: value for key, value in {**GOOD, **changes}.items() if value is not None}


def signed(payload: object = GOOD, key: SigningKey = RSA_KEY, **header: Any) -> str:
    return signed_token(payload, key, **header)


class Bench:
    def __init__(self, server: RawUpstream, verifier: Verifier, clock: FakeClock) -> None:
        self.server = server
        self.clock = clock
        self.verifier = verifier

    async def client_of(self, token: str) -> str | None:
        """Return whose the token is; None if it is not the issuer's."""
        found = self.verifier.claims_of(token)
        return None if found is None else await self.verifier.client_of(token, found)

    async def refusal(self, token: str) -> Problem:
        with pytest.raises(Problem) as caught:
            await self.client_of(token)
        assert caught.value.name in ("unauthenticated", "keys-unavailable")
        return caught.value


@asynccontextmanager
async def bench(reply: Reply | None = None, **identity: Any) -> AsyncIterator[Bench]:
    async with RawUpstream(default=reply or Reply(body=KEYS)) as server:
        clock = FakeClock(start=100.0, wall=NOW)
        limits = UpstreamSettings(api_url=server.url, login_url=server.url)
        upstream = Client(limits, server.url, clock=clock)
        rules = Identity(
            issuer=ISSUER, jwks_url=f"{server.url}/keys", audience=AUDIENCE, **identity
        )
        try:
            keys = SigningKeys(upstream, f"{server.url}/keys", clock=clock)
            yield Bench(server, Verifier(rules, keys, clock=clock), clock)
        finally:
            await upstream.close()


# Who is let in


@pytest.mark.parametrize(
    "token",
    [
        signed(),
        signed(key=EC_KEY),
        signed(typ="JWT"),
        signed(typ="jwt"),
        signed(typ="at+jwt"),
        signed(typ="application/at+JWT"),
        signed(claims(aud=["other", AUDIENCE])),
        signed(claims(iat=None)),
        signed(claims(nbf=NOW)),
        signed(claims(exp=NOW + 600.5)),
        signed(claims(exp=NOW - 10 + 172_800)),
        signed(claims(extra="x" * 2000)),
    ],
    ids=range(12),
)
async def test_a_token_of_the_issuer_proves_its_client(token: str) -> None:
    async with bench() as it:
        assert await it.client_of(token) == "client-1"


async def test_the_claim_that_names_the_client_can_be_chosen() -> None:
    async with bench(claim="azp") as it:
        assert await it.client_of(signed(claims(azp="client-1", client_id=None))) == "client-1"
        assert (await it.refusal(signed())).status == 401


async def test_a_token_of_another_issuer_claims_nothing() -> None:
    """A prefix, a list and anything else are other issuers."""
    async with bench() as it:
        issuers: list[Any] = [
            "https://other.example/",
            ISSUER + "x",
            [ISSUER],
            {"iss": ISSUER},
            7,
            True,
            None,
        ]
        for issuer in issuers:
            assert await it.client_of(signed(claims(iss=issuer))) is None
        for token in ("opaque", "a.b.c", "", unsigned([ISSUER]).replace(".", "")):
            assert await it.client_of(token) is None
        assert it.server.connections == 0


@pytest.mark.parametrize(
    "issuer", [ISSUER.rstrip("/"), ISSUER.upper(), ISSUER.replace("https", "http")]
)
async def test_issuer_written_otherwise_is_refused_with_the_difference(issuer: str) -> None:
    """It is a slip in the configuration: forwarded, the token would seem to be a stranger's."""
    async with bench() as it:
        refusal = await it.refusal(signed(claims(iss=issuer)))
        assert refusal.status == 401
        assert "identity.issuer" in refusal.detail
        assert it.server.connections == 0


PROVIDERS: dict[str, dict[str, Any]] = {
    "entra": claims(client_id=None, azp="client-1", sub="o", oid="o", idtyp="app"),
    "keycloak": claims(
        client_id=None, azp="client-1", sub="uuid", preferred_username="service-account-client-1"
    ),
    "auth0": claims(client_id=None, azp="client-1", sub="client-1@clients"),
    "okta": claims(client_id=None, cid="client-1"),
    "cognito": claims(aud=None, token_use="access", scope=f"{AUDIENCE}/exports"),
}


@pytest.mark.parametrize(("preset", "payload"), PROVIDERS.items(), ids=PROVIDERS.keys())
async def test_service_token_of_a_provider_proves_its_client(
    preset: str, payload: dict[str, Any]
) -> None:
    async with bench(service_test=preset) as it:
        assert await it.client_of(signed(payload)) == "client-1"
        person = {**payload, "sub": "ann", "preferred_username": "ann", "idtyp": "user"}
        assert (await it.refusal(signed(person))).status == 401


@pytest.mark.parametrize("scope", [None, "exports", "other/exports", f"{AUDIENCE}2/exports"])
async def test_cognito_token_for_another_resource_server_is_refused(scope: str | None) -> None:
    """It has no audience: the resource server stands in its scopes."""
    async with bench(service_test="cognito") as it:
        payload = claims(aud=None, token_use="access", scope=scope)
        assert (await it.refusal(signed(payload))).status == 401


async def test_conditions_of_our_own() -> None:
    test = [{"claim": "sub", "equals_claim": "azp", "suffix": "@clients"}]
    async with bench(service_test=test, claim="azp") as it:
        good = claims(client_id=None, azp="client-1", sub="client-1@clients")
        assert await it.client_of(signed(good)) == "client-1"
        assert (await it.refusal(signed({**good, "sub": "client-1"}))).status == 401


# Who is not

DAY = 86_400
BAD_CLAIMS: dict[str, dict[str, Any]] = {
    "wrong audience": claims(aud="https://other.example"),
    "audience prefix": claims(aud=AUDIENCE[:-1]),
    "no audience": claims(aud=None),
    "empty audience": claims(aud=[]),
    "audience of another type": claims(aud=7),
    "no expiry": claims(exp=None),
    "expired": claims(exp=NOW - 61, iat=NOW - 600),
    "expired exactly": claims(exp=NOW - 60, iat=NOW - 600),
    "expiry as digits": claims(exp=str(int(NOW + 600))),
    "expiry true": claims(exp=True),
    "expiry list": claims(exp=[NOW + 600]),
    "expiry null": {**GOOD, "exp": None},
    "expiry of 401 digits": claims(exp=10**400),
    "expiry infinite": claims(exp=float("inf")),
    "expiry not a number": claims(exp=float("nan")),
    "expiry in the far future": claims(exp=NOW + 100 * 365 * DAY),
    "expiry in the far future, no issue date": claims(exp=NOW + 3 * DAY, iat=None),
    "expiry before issue": claims(exp=NOW + 10, iat=NOW + 20),
    "expiry at issue": claims(exp=NOW + 10, iat=NOW + 10),
    "lives too long": claims(exp=NOW + DAY, iat=NOW - 2 * DAY),
    "issued in an hour": claims(iat=NOW + 3600, exp=NOW + 7200),
    "issue date as text": claims(iat="yesterday"),
    "issue date absurd": claims(iat=10**400),
    "not before an hour from now": claims(nbf=NOW + 3600),
    "not before as text": claims(nbf="now"),
    "no subject": claims(sub=None),
    "a user's token": claims(sub="user-7"),
    "subject of another type": claims(sub=["client-1"]),
    "no client": claims(client_id=None),
    "empty client": claims(client_id="", sub=""),
    "client of another type": claims(client_id=["client-1"], sub="client-1"),
}


@pytest.mark.parametrize("payload", BAD_CLAIMS.values(), ids=BAD_CLAIMS.keys())
async def test_claims_that_prove_nothing_however_well_signed(payload: dict[str, Any]) -> None:
    async with bench() as it:
        refusal = await it.refusal(signed(payload))
        assert (refusal.name, refusal.status, refusal.retry_after) == ("unauthenticated", 401, None)
        assert "WWW-Authenticate" in refusal.headers


@pytest.mark.parametrize("name", ["iat", "nbf", "exp"])
async def test_clocks_may_differ_by_a_minute(name: str) -> None:
    changes = {"iat": NOW + 30, "nbf": NOW + 30, "exp": NOW - 30}
    async with bench() as it:
        token = signed(claims(**{"iat": NOW - 100, name: changes[name]}))
        assert await it.client_of(token) == "client-1"


async def test_the_wall_clock_decides() -> None:
    async with bench() as it:
        token = signed()
        assert await it.client_of(token) == "client-1"
        it.clock.jump_wall(700)
        assert (await it.refusal(token)).status == 401
        it.clock.jump_wall(-700)
        assert await it.client_of(token) == "client-1"


def symmetric(key: bytes, algorithm: str = "HS256", payload: object = GOOD) -> str:
    """Sign with an HMAC, as if a public key were its secret."""
    text = f"{segment({'alg': algorithm, 'kid': 'rsa'})}.{segment(payload)}"
    return f"{text}.{segment(hmac.digest(key, text.encode(), hashlib.sha256))}"


def with_signature(token: str, signature: str) -> str:
    return f"{token.rpartition('.')[0]}.{signature}"


def tampered(token: str, payload: object) -> str:
    header, _, signature = token.split(".")
    return f"{header}.{segment(payload)}.{signature}"


URN: dict[str, Any] = {"urn:x": 1}
FORGED: dict[str, str] = {
    **{
        f"alg {alg}": unsigned(GOOD, {"alg": alg}, signature="") for alg in ("none", "None", "nOnE")
    },
    "alg none, our key": unsigned(GOOD, {"alg": "none", "kid": "rsa"}, signature=""),
    "alg none, a signature": with_signature(signed(alg="none"), "c2ln"),
    "no alg": signed(alg=...),
    "alg empty": signed(alg=""),
    "alg a list": signed(alg=["RS256"]),
    "alg an object": signed(alg={"RS256": 1}),
    "alg a number": signed(alg=256),
    "alg null": signed(alg=None),
    "alg of another case": signed(alg="rs256"),
    "alg longer than the key's": signed(alg="RS512"),
    "alg of the other key": signed(alg="ES256"),
    "public key as secret": symmetric(PUBLIC_PEM),
    "key set as secret": symmetric(KEYS),
    "HS512": symmetric(PUBLIC_PEM, "HS512"),
    "empty secret": symmetric(b""),
    "zero signature": with_signature(signed(key=EC_KEY), segment(bytes(64))),
    "short zero signature": with_signature(signed(key=EC_KEY), segment(bytes(2))),
    "zero RSA signature": with_signature(signed(), segment(bytes(256))),
    "padded signature": signed() + "=",
    "no signature": with_signature(signed(), ""),
    "signature that is no base64": with_signature(signed(), "!!!"),
    "signature of another token": with_signature(signed(), signed(claims(x=1)).rpartition(".")[2]),
    "claims changed": tampered(signed(), claims(sub="victim", client_id="victim")),
    "signed by somebody": signed(key=OTHER_KEY),
    "signed by the other key": signed(key=RSA_KEY, kid="ec"),
    "no key id": signed(kid=...),
    "unknown key id": signed(kid="nobody"),
    "key id a number": signed(kid=7),
    "key id a list": signed(kid=["rsa"]),
    "key id a path": signed(kid="../../etc/passwd"),
    "key id SQL": signed(kid="' OR 1 --"),
    "key id lines": signed(kid="rsa\r\nSet-Cookie: x"),
    "key id surrogate": signed(kid="\ud800"),
    "key id huge": signed(kid="x" * 5000),
    "crit": signed(crit=["exp"]),
    "crit unknown": signed(crit=["urn:x"], **URN),
    "crit empty": signed(crit=[]),
    "b64 false": signed(b64=False),
    "b64 false, crit": signed(b64=False, crit=["b64"]),
    "b64 another type": signed(b64="true"),
    "typ of an ID token": signed(typ="id_token+jwt"),
    "typ logout": signed(typ="logout+jwt"),
    "typ a number": signed(typ=7),
    "compressed": signed(zip="DEF", alg="none"),
}


@pytest.mark.parametrize("token", FORGED.values(), ids=FORGED.keys())
async def test_tokens_that_are_not_what_they_say(token: str) -> None:
    async with bench() as it:
        refusal = await it.refusal(token)
        assert (refusal.name, refusal.status, refusal.retry_after) == ("unauthenticated", 401, None)
        assert len(it.server.requests) <= 1


MALFORMED: dict[str, str] = {
    "subject twice": unsigned(
        json.dumps(GOOD).encode().replace(b'"sub"', b'"sub": "victim", "sub"', 1)
    ),
    "issuer twice": unsigned(json.dumps(GOOD).encode().replace(b'"iss"', b'"iss": "x", "iss"', 1)),
    "alg twice": unsigned(GOOD, b'{"alg": "none", "alg": "RS256"}'),
    "expiry of 5000 digits": unsigned(
        json.dumps(GOOD).encode().replace(b'"exp"', b'"exp": ' + b"9" * 5000 + b', "x"', 1)
    ),
    "nested deeply": unsigned(
        json.dumps(GOOD).encode()[:-1] + b', "x": ' + b"[" * 20_000 + b"]" * 20_000 + b"}"
    ),
    "a megabyte": unsigned(claims(x="y" * 1_000_000)),
    "a megabyte of dots": unsigned(GOOD) + "." * 1_000_000,
    "five parts": unsigned(GOOD) + ".iv.tag",
    "two parts": unsigned(GOOD).rpartition(".")[0],
    "padded": unsigned(claims(x="1")).replace(".", "=.", 2),
    "cut short": unsigned(json.dumps(GOOD).encode()[:-1]),
}


@pytest.mark.parametrize("token", MALFORMED.values(), ids=MALFORMED.keys())
async def test_a_token_that_mentions_the_issuer_and_cannot_be_read_is_refused(token: str) -> None:
    """A claimed credential that fails is never passed on; and no key is looked for."""
    async with bench() as it:
        assert (await it.refusal(token)).status == 401
        assert it.server.connections == 0


async def test_keys_are_never_taken_from_the_token_nor_from_where_it_points() -> None:
    public = RSAAlgorithm.to_jwk(OTHER_KEY.public_key(), as_dict=True)
    async with bench() as it, RawUpstream() as elsewhere:
        url = f"{elsewhere.url}/keys"
        headers: list[dict[str, Any]] = [
            {"jku": url},
            {"x5u": url},
            {"jwk": {**public, "kid": "rsa"}},
            {"x5c": ["MIIB"], "x5t": "x"},
            {"jku": url, "x5u": url, "jwk": public, "kid": url},
            {"kid": url},
        ]
        for header in headers:
            assert (await it.refusal(signed(key=OTHER_KEY, **header))).status == 401
            foreign = claims(iss=elsewhere.url)
            assert await it.client_of(signed(foreign, key=OTHER_KEY, **header)) is None
        assert elsewhere.connections == 0
        assert len(it.server.requests) == 1


async def test_a_thousand_unknown_key_ids_are_one_fetch() -> None:
    async with bench() as it:
        for number in range(1000):
            assert (await it.refusal(signed_by_nobody(kid=f"x{number}"))).status == 401
        assert len(it.server.requests) == 1


def signed_by_nobody(**header: Any) -> str:
    return unsigned(GOOD, {"alg": "RS256", **header})


async def test_hopeless_tokens_do_not_even_cause_a_fetch() -> None:
    async with bench() as it:
        for token in (signed(claims(exp=NOW - 3600)), signed(alg="none"), signed(kid=7)):
            assert (await it.refusal(token)).status == 401
        assert it.server.connections == 0


async def test_no_token_is_called_wrong_without_keys() -> None:
    async with bench(Reply(500)) as it:
        refusal = await it.refusal(signed())
        assert (refusal.name, refusal.status, refusal.retry_after) == ("keys-unavailable", 503, 30)


async def test_no_token_is_quoted_in_its_refusal() -> None:
    async with bench() as it:
        for token in (*FORGED.values(), *(signed(payload) for payload in BAD_CLAIMS.values())):
            refusal = await it.refusal(token)
            assert not any(part in f"{refusal!r}" for part in token.split(".") if len(part) > 8)
            assert refusal.__cause__ is None


async def test_judging_a_token_takes_next_to_no_time() -> None:
    """Each one, hostile or not, well within the 50 ms that one callback may use."""
    async with bench() as it:
        assert await it.client_of(signed()) == "client-1"
        hostile = [*FORGED.values(), *MALFORMED.values(), "." * 1_000_000, "e" * 1_000_000]
        for token in hostile:
            assert await cpu_seconds(it, token) < 0.05
        fresh = [signed(claims(jti=secrets.token_hex(8))) for _ in range(20)]
        assert sum([await cpu_seconds(it, token) for token in fresh]) / 20 < 0.01


async def cpu_seconds(it: Bench, token: str) -> float:
    """Return the least of three: what the machine did besides is not the token's."""
    seconds = []
    for _ in range(3):
        begun = time.process_time()
        with suppress(Problem):
            await it.client_of(token)
        seconds.append(time.process_time() - begun)
    return min(seconds)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
HEADERS = st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit", "b64", "jwk"]), JSON)
PAYLOADS = st.dictionaries(st.sampled_from([*GOOD, "nbf", "scope"]), JSON)


@given(
    header=HEADERS, payload=PAYLOADS, sign=st.sampled_from([signed, lambda p, **h: unsigned(p, h)])
)
async def test_whatever_a_token_holds_is_judged(
    header: dict[str, Any], payload: dict[str, Any], sign: Callable[..., str]
) -> None:
    """With anything at all in place of good values: a client, a refusal, or somebody else's."""
    async with bench() as it:
        for changed in (payload, {**GOOD, **payload}):
            try:
                client = await it.client_of(sign(changed, **header))
            except Problem as problem:
                client = problem.name
            assert client in (None, "client-1", "unauthenticated")
