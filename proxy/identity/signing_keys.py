"""The public keys of the configured issuer (JWKS, RFC 7517), fetched without blocking the loop.

PyJWT's own client blocks while it fetches. Here there is one fetch at a time, which goes on if a
caller leaves; no redirects, bounded size; the old keys serve while a fetch fails. Keys are fetched
again when they are old, so that a withdrawn key is not trusted for ever, and for an unknown key id:
at most once per cool-down, however many tokens name one.
"""

import asyncio
import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import jwt
import structlog
from yarl import URL

from proxy.clock import Clock
from proxy.deadlines import time_limit
from proxy.http.client import Client
from proxy.http.messages import BadAnswer, OutcomeUnknown, Outgoing, Unsent
from proxy.problems import Problem
from proxy.rules.codings import coded_fields, decoded

COOL_DOWN: Final = 30.0  # seconds between fetches
FRESH_FOR: Final = 600.0  # seconds before keys are fetched again, while the old ones serve
ALGORITHMS: Final = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
)
_MAX_ANSWER: Final = 262_144
FETCH_TIMEOUT: Final = 10.0  # seconds for one fetch, connecting included
_MIN_RSA_BITS: Final = 2048  # RFC 7518 section 3.3

_log = structlog.get_logger(__name__)


class SigningKeys:
    """Keys by key id; each key is used with one algorithm only."""

    def __init__(self, upstream: Client, jwks_url: str, *, clock: Clock) -> None:
        self._upstream = upstream
        self.jwks_url = jwks_url
        self._url = URL(jwks_url, encoded=True)
        self._clock = clock
        self._keys: dict[str | None, jwt.PyJWK] | None = None
        self._next_fetch = self._old_from = clock.monotonic()
        self._fetching: asyncio.Task[None] | None = None

    async def key(self, key_id: str | None) -> jwt.PyJWK | None:
        """Return the key of that id, None if the issuer has none.

        Raises the Problem `keys-unavailable` until a first fetch has succeeded.
        """
        is_known = self._keys is not None and key_id in self._keys
        if not is_known or self._clock.monotonic() >= self._old_from:
            self._start_fetch()
        if not is_known and self._fetching is not None:
            await asyncio.shield(self._fetching)
        if self._keys is None:
            raise Problem(
                "keys-unavailable",
                "The issuer's signing keys could not be fetched yet.",
                retry_after=max(1.0, self._next_fetch - self._clock.monotonic()),
            )
        return self._keys.get(key_id)

    def _start_fetch(self) -> None:
        """Start a fetch, unless one is under way or was a moment ago."""
        now = self._clock.monotonic()
        if self._fetching is None and now >= self._next_fetch:
            self._next_fetch = now + COOL_DOWN
            self._fetching = asyncio.get_running_loop().create_task(self._fetch())

    async def _fetch(self) -> None:
        try:
            async with time_limit(FETCH_TIMEOUT):
                response = await self._upstream.send(self._call())
                answer = await self._upstream.read(response, _MAX_ANSWER)
        except (Unsent, OutcomeUnknown, BadAnswer, TimeoutError) as error:
            reason = "no answer in time" if isinstance(error, TimeoutError) else f"{error}"
            _log.warning("the signing keys could not be fetched", reason=reason)
            return
        finally:
            self._fetching = None
        text = decoded(answer.body, coded_fields(answer.fields), limit=_MAX_ANSWER)
        keys = _usable_keys(text or b"") if answer.status == HTTPStatus.OK else None
        if not keys:
            _log.warning("the answer holds no usable signing keys", status=answer.status)
            return
        self._keys = keys
        self._old_from = self._clock.monotonic() + FRESH_FOR

    def _call(self) -> Outgoing:
        return Outgoing(
            method="GET",
            path=self._url.raw_path,
            query=self._url.raw_query_string,
            fields=[("Accept", "application/json")],
            body=b"",
        )


def _usable_keys(body: bytes) -> dict[str | None, jwt.PyJWK] | None:
    try:
        keys = json.loads(body)["keys"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if not isinstance(keys, list):
        return None
    usable = (_usable_key(entry) for entry in keys if isinstance(entry, dict))
    return {key.key_id: key for key in usable if key is not None}


def _usable_key(entry: Mapping[str, Any]) -> jwt.PyJWK | None:
    """Return the key if it is public, for signatures, and strong enough (RFC 7517 section 4)."""
    if not _is_for_signatures(entry) or "d" in entry:
        return None
    if not isinstance(entry.get("kid"), str | None):
        return None
    try:
        key = jwt.PyJWK(dict(entry))
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        return None
    if key.algorithm_name not in ALGORITHMS:
        return None
    too_short = entry.get("kty") == "RSA" and key.key.key_size < _MIN_RSA_BITS
    return None if too_short else key


def _is_for_signatures(entry: Mapping[str, Any]) -> bool:
    algorithm = entry.get("alg")
    if algorithm is not None and not (isinstance(algorithm, str) and algorithm in ALGORITHMS):
        return False
    operations = entry.get("key_ops", ["verify"])
    is_to_verify = isinstance(operations, list) and "verify" in operations
    return entry.get("kty") != "oct" and entry.get("use", "sig") == "sig" and is_to_verify
