"""Access tokens: minting them as signed JWTs or opaque strings, and finding them again.

No I/O, no clock and no randomness after the key is made: times and ids are arguments. The API
looks tokens up in the book, as a vendor would; the signature is for those who verify it
(RFC 7519, RFC 7517).
"""

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any, Self

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import RSAAlgorithm

_ALGORITHM = "RS256"


@dataclass(frozen=True, slots=True)
class SigningKey:
    """The login server's RSA key."""

    private: RSAPrivateKey = field(repr=False)
    key_id: str

    @classmethod
    def generate(cls) -> Self:
        private = generate_private_key(public_exponent=65537, key_size=2048)
        public = private.public_key()
        encoded = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return cls(private, hashlib.sha256(encoded).hexdigest()[:16])

    def sign(self, claims: dict[str, Any]) -> str:
        return jwt.encode(claims, self.private, _ALGORITHM, headers={"kid": self.key_id})

    def key_set(self) -> dict[str, Any]:
        """Return the JWK Set document others verify with."""
        public = RSAAlgorithm.to_jwk(self.private.public_key(), as_dict=True)
        described = {"kid": self.key_id, "use": "sig", "alg": _ALGORITHM, "key_ops": ["verify"]}
        return {"keys": [public | described]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """An issued token in the book. `expires_at` is wall time."""

    client_id: str
    scopes: frozenset[str]
    expires_at: float
    organization: str
    user: str | None = None
    revoked: bool = False

    def is_live(self, now: float) -> bool:
        return not self.revoked and now < self.expires_at


@dataclass(frozen=True, slots=True, kw_only=True)
class Mint:
    """The values of one token to mint. `now` is wall time, in seconds."""

    client_id: str
    scopes: frozenset[str]
    now: float
    lifetime: float
    token_id: str
    opaque: bool
    organization: str = "simulated-organization"
    user: str | None = None
    """The person it is for; None where it is the client's own."""

    def claims(self, *, issuer: str, audience: str) -> dict[str, Any]:
        return {
            "iss": issuer,
            "sub": self.user or self.client_id,
            "client_id": self.client_id,
            "aud": audience,
            "iat": int(self.now),
            "exp": int(self.now + self.lifetime),
            "jti": self.token_id,
            "scope": " ".join(sorted(self.scopes)),
        }


class TokenBook:
    """Every token issued, for as long as the simulator lives."""

    def __init__(self, key: SigningKey, *, issuer: str, audience: str) -> None:
        self.key = key
        self._issuer = issuer
        self._audience = audience
        self._tokens: dict[str, Token] = {}

    def mint(self, order: Mint) -> str:
        text = order.token_id if order.opaque else self._sign(order)
        self._tokens[text] = Token(
            client_id=order.client_id,
            scopes=order.scopes,
            expires_at=order.now + order.lifetime,
            organization=order.organization,
            user=order.user,
        )
        return text

    def find(self, text: str) -> Token | None:
        """Find a token by its text; it may have expired or been revoked since."""
        return self._tokens.get(text)

    def revoke(self, text: str) -> None:
        """Revoke an issued token; KeyError if there is no such token."""
        self._tokens[text] = replace(self._tokens[text], revoked=True)

    def _sign(self, order: Mint) -> str:
        return self.key.sign(order.claims(issuer=self._issuer, audience=self._audience))
