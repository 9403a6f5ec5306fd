"""Tokens that claim to be somebody: one row each, made with real keys.

The issuer's keys are published; the configured account is `CLIENT`, managed. `outcome` is what the
caller's request comes to: `managed` where the token proves the account, so that the account's own
token is sent; `own` where it proves nothing and is sent as it came; otherwise the refusal's status.

RFC 7515, RFC 7519, RFC 8725 (best practices); CWE-345, CWE-347.
"""

import base64
import hmac
import json
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

ISSUER = "https://issuer.example"
AUDIENCE = "https://api.example"
CLIENT = "0a1b-london"
LIFE = 3600


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def claims(**changes: Any) -> dict[str, Any]:
    """Return what a good token of the account says; None takes a claim away."""
    now = int(time.time())
    standard = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "iat": now,
        "exp": now + LIFE,
        "sub": CLIENT,
        "client_id": CLIENT,
    }
    return {name: value for name, value in {**standard, **changes}.items() if value is not None}


def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


@dataclass(frozen=True)
class Keys:
    """The issuer's keys, and some that only look like them."""

    good: rsa.RSAPrivateKey = field(default_factory=rsa_key)
    curve: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )
    foreign: rsa.RSAPrivateKey = field(default_factory=rsa_key)
    weak: rsa.RSAPrivateKey = field(default_factory=lambda: rsa_key(1024))
    shared: bytes = field(default_factory=lambda: secrets.token_bytes(32))

    @cached_property
    def published(self) -> bytes:
        """The JWK Set (RFC 7517), with keys that nobody may use among the others."""
        good = RSAAlgorithm.to_jwk(self.good.public_key(), as_dict=True)
        weak = RSAAlgorithm.to_jwk(self.weak.public_key(), as_dict=True)
        curve = ECAlgorithm.to_jwk(self.curve.public_key(), as_dict=True)
        octets = {"kty": "oct", "k": base64url(self.shared)}
        rs256 = {"alg": "RS256"}
        keys = [
            {**good, **rs256, "kid": "good", "use": "sig"},
            {**curve, "alg": "ES256", "kid": "curve"},
            {**good, **rs256, "kid": "for encryption", "use": "enc"},
            {**good, **rs256, "kid": "to encrypt", "key_ops": ["encrypt"]},
            {**good, "alg": "RSA-OAEP", "kid": "of another algorithm"},
            {**weak, **rs256, "kid": "weak"},
            {**octets, "alg": "HS256", "kid": "shared"},
        ]
        return json.dumps({"keys": keys}).encode()

    @property
    def public_pem(self) -> bytes:
        public = self.good.public_key()
        return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def sign(self, payload: Mapping[str, Any] | bytes | None = None, **header: Any) -> str:
        """Sign with the issuer's good key; bytes are a payload as it stands."""
        content = (
            payload if isinstance(payload, bytes) else json.dumps(payload or claims()).encode()
        )
        return jwt.api_jws.encode(content, self.good, "RS256", headers={"kid": "good", **header})

    def sign_as_it_is(self, header: Mapping[str, Any]) -> str:
        """Sign under a header that PyJWT would not write."""
        whole = {"alg": "RS256", "typ": "JWT", "kid": "good", **header}
        text = ".".join(base64url(json.dumps(part).encode()) for part in (whole, claims()))
        signature = RSAAlgorithm(RSAAlgorithm.SHA256).sign(text.encode(), self.good)
        return f"{text}.{base64url(signature)}"

    def sign_with(self, key: Any, algorithm: str, key_id: str) -> str:
        return jwt.encode(claims(), key, algorithm, headers={"kid": key_id})

    def unsigned(self, algorithm: str, signature: str = "", key_id: str = "good") -> str:
        header = {"alg": algorithm, "typ": "JWT", "kid": key_id}
        text = ".".join(base64url(json.dumps(part).encode()) for part in (header, claims()))
        return f"{text}.{signature}"

    def keyed_with(self, key: bytes) -> str:
        """Return an HS256 token, whose key is a thing that everybody has."""
        text = self.unsigned("HS256").rstrip(".")
        return f"{text}.{base64url(hmac.digest(key, text.encode(), 'sha256'))}"


Outcome = Literal["managed", "own"] | int
Make = Callable[[Keys], str]


@dataclass(frozen=True, slots=True)
class Row:
    """How the token is made, and what comes of it."""

    make: Make
    outcome: Outcome = 401


def with_claims(outcome: Outcome = 401, **changes: Any) -> Row:
    return Row(lambda keys: keys.sign(claims(**changes)), outcome)


def with_header(outcome: Outcome = 401, **header: Any) -> Row:
    return Row(lambda keys: keys.sign(None, **header), outcome)


def with_payload(old: bytes, new: bytes, outcome: Outcome = 401) -> Row:
    """Return the row of a payload with something in it that no JSON writer would write."""
    return Row(lambda keys: keys.sign(json.dumps(claims()).encode().replace(old, new)), outcome)


def later(seconds: int) -> int:
    return int(time.time()) + seconds


SIGNATURES = {
    "the issuer's own": Row(lambda keys: keys.sign(), "managed"),
    "the issuer's other key": Row(
        lambda keys: keys.sign_with(keys.curve, "ES256", "curve"), "managed"
    ),
    "none": Row(lambda keys: keys.unsigned("none")),
    "none in mixed case": Row(lambda keys: keys.unsigned("nOnE")),
    "none, and a signature": Row(lambda keys: keys.unsigned("none", "c2ln")),
    "no algorithm": Row(lambda keys: keys.unsigned("")),
    "signed by somebody": Row(lambda keys: keys.sign_with(keys.foreign, "RS256", "good")),
    "signed by somebody, with an unknown key id": Row(
        lambda keys: keys.sign_with(keys.foreign, "RS256", "theirs")
    ),
    "keyed with the public key": Row(lambda keys: keys.keyed_with(keys.public_pem)),
    "keyed with nothing": Row(lambda keys: keys.keyed_with(b"")),
    "cut off": Row(lambda keys: keys.sign().rpartition(".")[0] + "."),
    "of another token": Row(
        lambda keys: f"{keys.unsigned('RS256')}{keys.sign(claims(jti='a')).rpartition('.')[2]}"
    ),
    "all zeros, elliptic": Row(  # CVE-2022-21449
        lambda keys: keys.unsigned("ES256", base64url(bytes(64)), key_id="curve")
    ),
    "the right key with another algorithm": Row(
        lambda keys: keys.sign_with(keys.good, "PS256", "good")
    ),
    "with padding": Row(lambda keys: f"{keys.sign()}=="),
}

KEYS = {
    # RFC 7517 section 4: what a key is for.
    "for encryption": Row(lambda keys: keys.sign_with(keys.good, "RS256", "for encryption")),
    "to encrypt": Row(lambda keys: keys.sign_with(keys.good, "RS256", "to encrypt")),
    "of another algorithm": Row(
        lambda keys: keys.sign_with(keys.good, "RS256", "of another algorithm")
    ),
    "of 1024 bits": Row(lambda keys: keys.sign_with(keys.weak, "RS256", "weak")),
    "a shared secret": Row(lambda keys: keys.sign_with(keys.shared, "HS256", "shared")),
}

HEADERS = {
    "a key id that is a path": with_header(kid="../../etc/passwd"),
    "a key id that is a query": with_header(kid="' OR 1=1 --"),
    "a key id with a newline": with_header(kid="good\nX-Evil: 1"),
    "a key id that is a number": Row(lambda keys: keys.sign_as_it_is({"kid": 12345})),
    "a long key id": with_header(kid="k" * 5000),
    "a critical extension": with_header(crit=["exp"], exp=1),
    "an unencoded payload": Row(lambda keys: keys.sign_as_it_is({"b64": False, "crit": ["b64"]})),
    "a type for people": with_header(typ="id+jwt"),
    "a type for access tokens": with_header("managed", typ="at+jwt"),
}
"""The rows that name a place to fetch a key from are in the test: they need the place."""

CLAIMS = {
    "another audience": with_claims(aud="https://other.example"),
    "an audience that begins like ours": with_claims(aud=f"{AUDIENCE}.evil.example"),
    "several audiences, ours among them": with_claims("managed", aud=["x", AUDIENCE]),
    "no audience": with_claims(aud=None),
    "an issuer that begins like ours": with_claims("own", iss=f"{ISSUER}.evil.example"),
    "an issuer with a slash more": with_claims(iss=f"{ISSUER}/"),
    "a list of issuers": with_claims("own", iss=[ISSUER]),
    "another issuer": with_claims("own", iss="https://other.example"),
    "no issuer": with_claims("own", iss=None),
    "another client": with_claims("own", sub="c", client_id="c"),
    "a user of the client": with_claims(sub="a-user"),
    "no subject": with_claims(sub=None),
    "no client": with_claims(client_id=None),
    "a client that is a list": with_claims(client_id=[CLIENT], sub=[CLIENT]),
    "a subject given twice": with_payload(b'{"iss"', b'{"sub": "somebody", "iss"'),
    "in UTF-16": Row(lambda keys: keys.sign(json.dumps(claims()).encode("utf-16")), "own"),
}

TIMES = {
    "issued in half a minute": Row(lambda keys: keys.sign(claims(iat=later(30))), "managed"),
    "issued in an hour": Row(lambda keys: keys.sign(claims(iat=later(3600), exp=later(7200)))),
    "valid in half a minute": Row(lambda keys: keys.sign(claims(nbf=later(30))), "managed"),
    "valid in an hour": Row(lambda keys: keys.sign(claims(nbf=later(3600)))),
    "expired half a minute ago": Row(
        lambda keys: keys.sign(claims(iat=later(-600), exp=later(-30))), "managed"
    ),
    "expired an hour ago": Row(lambda keys: keys.sign(claims(iat=later(-7200), exp=later(-3600)))),
    "expiring in ten years": Row(lambda keys: keys.sign(claims(exp=later(315_360_000)))),
    "never expiring": with_claims(exp=None),
    "expiring at a text": with_claims(exp="99999999999"),
    "expiring at a list": with_claims(exp=[99999999999]),
    "expiring when true": with_claims(exp=True),
    "expiring beyond all floats": with_claims(exp=10**400),
    "expiring at infinity": with_claims(exp=float("inf")),
    "expiring at no number": with_claims(exp=float("nan")),
}

COSTLY = {
    # Refused before anything is spent on them (CWE-400).
    "deeply nested": with_payload(b'"sub"', b'"x": ' + b"[" * 3000 + b"]" * 3000 + b', "sub"'),
    "a number of 5000 digits": with_payload(b'"sub"', b'"x": ' + b"9" * 5000 + b', "sub"'),
    "hundreds of names": with_payload(
        b'"sub"', b"".join(b'"%d":0,' % number for number in range(400)) + b'"sub"', "managed"
    ),
    "beyond 8 KiB": with_claims(x="x" * 8192),
    "a megabyte": with_claims(431, x="x" * 1_000_000),
    "five parts": Row(lambda keys: f"{keys.sign()}.AAAA.AAAA"),
    "a thousand dots": Row(lambda _: "a" + "." * 1000, "own"),
}

TABLES = {
    "signature": SIGNATURES,
    "key": KEYS,
    "header": HEADERS,
    "claims": CLAIMS,
    "time": TIMES,
    "cost": COSTLY,
}
