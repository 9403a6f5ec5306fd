"""JWTs as text, right or wrong; an issuer's keys; and a login server without a wire."""

import asyncio
import base64
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from proxy.clock import Clock
from proxy.tokens.credentials import Credentials
from proxy.tokens.login_server import LoginServer, Rejected, Throttled, TokenAnswer, Troubled

HEADER = {"alg": "RS256", "typ": "JWT"}

SigningKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
KEYS = json.dumps(
    {
        "keys": [
            {**RSAAlgorithm.to_jwk(RSA_KEY.public_key(), as_dict=True), "kid": "rsa"},
            {**ECAlgorithm.to_jwk(EC_KEY.public_key(), as_dict=True), "kid": "ec"},
        ]
    }
).encode()
"""The JWKS of both."""


def segment(value: object) -> str:
    """Write one part of a JWT: an object as JSON, bytes as they are."""
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(text).decode().rstrip("=")


def unsigned(payload: object, header: object = HEADER, *, signature: str = "c2ln") -> str:
    """Return a JWT whose signature nobody made."""
    return f"{segment(header)}.{segment(payload)}.{signature}"


def signed_token(payload: object, key: SigningKey = RSA_KEY, **header: Any) -> str:
    """Sign anything, by RS256 or ES256 as the key is; a header that is `...` is left out."""
    is_rsa = isinstance(key, rsa.RSAPrivateKey)
    fields = {"alg": "RS256" if is_rsa else "ES256", "kid": "rsa" if is_rsa else "ec", **header}
    head = segment({name: value for name, value in fields.items() if value is not ...})
    text = f"{head}.{segment(payload)}"
    if isinstance(key, rsa.RSAPrivateKey):
        signature = RSAAlgorithm(RSAAlgorithm.SHA256).sign(text.encode(), key)
    else:
        signature = ECAlgorithm(ECAlgorithm.SHA256).sign(text.encode(), key)
    return f"{text}.{segment(signature)}"


Step = TokenAnswer | Rejected | Throttled | Troubled


class ScriptedLoginServer(LoginServer):
    """Gives what it was told to give, in order, and the last of it for ever."""

    def __init__(self, clock: Clock, steps: Sequence[Step] | Callable[[int], Step]) -> None:
        self.calls: list[float] = []
        """When it was asked, in seconds since it was made."""
        self.delay = 0.0
        self.gate = asyncio.Event()
        self.gate.set()
        self.steps = steps
        self._clock = clock
        self._start = clock.monotonic()

    async def fetch(self, credentials: Credentials) -> TokenAnswer:  # noqa: ARG002 -- a signature
        self.calls.append(self._clock.monotonic() - self._start)
        step = self._step(len(self.calls) - 1)
        if self.delay:
            await self._clock.sleep_until(self._clock.monotonic() + self.delay)
        await self.gate.wait()
        if isinstance(step, Exception):
            raise step
        assert isinstance(step, TokenAnswer)
        return step

    def _step(self, index: int) -> Step:
        if callable(self.steps):
            return self.steps(index)
        return self.steps[min(index, len(self.steps) - 1)]


def issued(
    value: str = "opaque",
    *,
    lifetime: float = 3600.0,
    scope: str | None = None,
    server_time: float | None = None,
) -> TokenAnswer:
    return TokenAnswer(value=value, lifetime=lifetime, scope=scope, server_time=server_time)


def scoped(scopes: str, *, lifetime: float = 3600.0, **claims: Any) -> TokenAnswer:
    """Return a JWT with these scopes, as it is issued."""
    payload: Mapping[str, Any] = {"scope": scopes, **claims}
    return issued(unsigned(payload), lifetime=lifetime)
