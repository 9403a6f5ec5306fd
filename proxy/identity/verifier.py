"""JWTs of the configured issuer: their client, once everything about them is verified.

RFC 8725: one algorithm per key, keys never from the token, audience and issuer always, explicit
types. This module first refuses what PyJWT would accept: oversized tokens, repeated names, an `exp`
that is not a number, a foreign `typ`. Times are compared with the injected wall clock.
"""

from typing import Final

import jwt

from proxy.clock import Clock
from proxy.identity.signing_keys import ALGORITHMS, SigningKeys
from proxy.problems import unauthenticated
from proxy.rules.claims import LONGEST_LIFE, Claims, mentions, read_claims
from proxy.rules.service_tests import (
    PRESETS,
    Condition,
    ServiceTest,
    differs_only_in_form,
    plain,
)
from proxy.settings import Identity as IdentitySettings

LEEWAY: Final = 60.0  # seconds, for clocks that differ
_TYPES: Final = frozenset({"jwt", "at+jwt", "application/at+jwt"})  # RFC 9068 section 2.1
_MAX_KEY_ID: Final = 256


class Verifier:
    """Verifies tokens of one issuer."""

    def __init__(self, settings: IdentitySettings, keys: SigningKeys, *, clock: Clock) -> None:
        self._settings = settings
        self._test = _service_test(settings)
        self._keys = keys
        self._clock = clock

    def claims_of(self, token: str) -> Claims | None:
        """Return the unverified claims if the token says it is of our issuer.

        Raises the Problem `unauthenticated` if it says so in an ambiguous way.
        """
        claims = read_claims(token)
        if claims is None and mentions(token, self._settings.issuer or ""):
            raise unauthenticated("The token is malformed.")
        if claims is None:
            return None
        issuer, ours = claims.payload.get("iss"), self._settings.issuer or ""
        if isinstance(issuer, str) and differs_only_in_form(issuer, ours):
            raise unauthenticated(
                "The token's issuer differs from the configured one only by case, a trailing slash"
                " or the scheme; identity.issuer must be written as the issuer writes it."
            )
        return claims if issuer == ours else None

    async def client_of(self, token: str, claims: Claims) -> str:
        """Return the client id the token proves.

        Raises the Problem `unauthenticated`, or `keys-unavailable` before any key was fetched.
        """
        if token.endswith("="):  # RFC 7515 section 2: no padding; a token has one spelling
            raise unauthenticated("The token is malformed.")
        self._check_times(claims)
        has_audience = self._test.has_audience or "aud" in claims.payload
        if not has_audience:
            self._check_scopes(claims)
        key = await self._key(claims)
        try:
            jwt.decode(
                token,
                key=key.key,
                algorithms=[key.algorithm_name],
                audience=self._settings.audience if has_audience else None,
                issuer=self._settings.issuer,
                options={
                    "require": ["exp", "iss", "sub", *(["aud"] if has_audience else [])],
                    "verify_exp": False,  # checked above, by our clock
                    "verify_iat": False,
                    "verify_nbf": False,
                },
            )
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            raise unauthenticated("The token's signature or claims are not valid.") from None
        return self._client_id(claims)

    def _check_times(self, claims: Claims) -> None:
        now = self._clock.wall()
        expires = claims.number("exp")
        if expires is None or expires + LEEWAY <= now:
            raise unauthenticated("The token has expired, or has no expiry time.")
        for name in ("iat", "nbf"):
            value = claims.number(name)
            if name in claims.payload and (value is None or value - LEEWAY > now):
                raise unauthenticated("The token is not valid yet.")
        issued = claims.number("iat")
        if issued is None:
            is_sane = expires - now <= LONGEST_LIFE + LEEWAY
        else:
            is_sane = 0 < expires - issued <= LONGEST_LIFE
        if not is_sane:
            raise unauthenticated("The token's lifetime is not valid.")

    def _check_scopes(self, claims: Claims) -> None:
        """Look for the audience among the scopes, where the issuer writes no `aud`.

        A scope of another resource server, or none, does not prove that the token is meant for us.
        """
        audience = self._settings.audience or ""
        named = {scope.rpartition("/")[0] for scope in claims.scopes() or ()}
        if audience not in {*named, claims.payload.get(self._settings.claim)}:
            raise unauthenticated("The token is not meant for this audience.")

    async def _key(self, claims: Claims) -> jwt.PyJWK:
        header = claims.header
        algorithm, key_id = header.get("alg"), header.get("kid")
        kind = header.get("typ", "JWT")
        if (
            not isinstance(algorithm, str)
            or algorithm not in ALGORITHMS
            or "crit" in header
            or header.get("b64", True) is not True
        ):
            raise unauthenticated("The token is signed in a way that is not accepted.")
        if not isinstance(kind, str) or kind.lower() not in _TYPES:
            raise unauthenticated("The token is not an access token.")
        if not isinstance(key_id, str | None) or len(key_id or "") > _MAX_KEY_ID:
            raise unauthenticated("The token's key id is not valid.")
        key = await self._keys.key(key_id)
        if key is None or key.algorithm_name != algorithm:
            raise unauthenticated("The token is signed with a key the issuer does not have.")
        return key

    def _client_id(self, claims: Claims) -> str:
        client_id = self._test.client_id(claims.payload)
        if client_id is None or not isinstance(claims.payload.get("sub"), str):
            raise unauthenticated("The token does not name a client.")
        if not self._test.is_service(claims.payload, client_id):
            raise unauthenticated("The token is a user's, not the service account's.")
        return client_id


def _service_test(settings: IdentitySettings) -> ServiceTest:
    test = settings.service_test
    if test is None:
        return plain(settings.claim)
    if isinstance(test, str):
        return PRESETS[test]
    conditions = tuple(
        Condition(
            claim=one.claim,
            equals=one.equals,
            ends_with=one.ends_with,
            equals_claim=one.equals_claim,
            absent=one.absent,
            suffix=one.suffix,
        )
        for one in test
    )
    return ServiceTest((settings.claim,), (conditions,))
