"""JWTs of the configured issuer: whose they are, once everything about them is verified.

RFC 8725: one algorithm a key, keys never from the token, audience and issuer always, explicit
types. What PyJWT would let pass is refused here first: oversized tokens, repeated names, an `exp`
that is no number, foreign `typ`. Times are judged by the injected wall clock.
"""

from typing import Any, Final

import jwt

from proxy.clock import Clock
from proxy.identity.signing_keys import ALGORITHMS, SigningKeys
from proxy.problems import unauthenticated
from proxy.rules.claims import LONGEST_LIFE, Claims, mentions, read_claims
from proxy.settings import Identity as IdentitySettings

LEEWAY: Final = 60.0  # seconds, for clocks that differ
_TYPES: Final = frozenset({"jwt", "at+jwt", "application/at+jwt"})  # RFC 9068 section 2.1
_MAX_KEY_ID: Final = 256


class Verifier:
    """Verifies tokens of one issuer."""

    def __init__(self, settings: IdentitySettings, keys: SigningKeys, *, clock: Clock) -> None:
        self._settings = settings
        self._keys = keys
        self._clock = clock

    def claims_of(self, token: str) -> Claims | None:
        """Return the unverified claims if the token says it is of our issuer.

        Raises the Problem `unauthenticated` if it says so in a way nobody should read.
        """
        claims = read_claims(token)
        if claims is None and mentions(token, self._settings.issuer or ""):
            raise unauthenticated("The token is malformed.")
        return claims if claims and claims.payload.get("iss") == self._settings.issuer else None

    async def client_of(self, token: str, claims: Claims) -> str:
        """Return the client id the token proves.

        Raises the Problem `unauthenticated`, or `keys-unavailable` before any key was fetched.
        """
        if token.endswith("="):  # RFC 7515 section 2: no padding; a token has one spelling
            raise unauthenticated("The token is malformed.")
        self._check_times(claims)
        key = await self._key(claims)
        try:
            jwt.decode(
                token,
                key=key.key,
                algorithms=[key.algorithm_name],
                audience=self._settings.audience,
                issuer=self._settings.issuer,
                options={
                    "require": ["exp", "iss", "aud", "sub"],
                    "verify_exp": False,  # checked above, by our clock
                    "verify_iat": False,
                    "verify_nbf": False,
                },
            )
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            raise unauthenticated("The token does not verify.") from None
        return self._client_id(claims)

    def _check_times(self, claims: Claims) -> None:
        now = self._clock.wall()
        expires = claims.number("exp")
        if expires is None or expires + LEEWAY <= now:
            raise unauthenticated("The token has expired, or does not say when it will.")
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
            raise unauthenticated("The token's lifetime makes no sense.")

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
            raise unauthenticated("The token's key id makes no sense.")
        key = await self._keys.key(key_id)
        if key is None or key.algorithm_name != algorithm:
            raise unauthenticated("The token is signed with a key the issuer does not have.")
        return key

    def _client_id(self, claims: Claims) -> str:
        client_id: Any = claims.payload.get(self._settings.claim)
        subject: Any = claims.payload.get("sub")
        if not isinstance(client_id, str) or not isinstance(subject, str) or not client_id:
            raise unauthenticated("The token does not name a client.")
        if client_id != subject:
            raise unauthenticated("The token is a user's, not the service account's.")
        return client_id
