"""A managed account's token, and when it ends.

Its life counts on the monotonic clock from its receipt, so setting the wall clock changes nothing.
If the token is a JWT, its `exp` is compared with the `Date` of the server that issued it, never
with our clock. If that `Date` is far from the token's own `iat`, it is wrong, and only `expires_in`
counts.
"""

from dataclasses import dataclass, field
from typing import Final, TypeGuard

from proxy.problems import Problem
from proxy.rules.claims import held_scopes, read_claims
from proxy.tokens.login_server import TokenAnswer

_MOST_APART: Final = 3600.0  # seconds; one server's clock, read twice, is seconds apart


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A token in use; times are monotonic seconds, `issued_at` is the server's wall time."""

    value: str = field(repr=False)
    scopes: frozenset[str] | None
    received_at: float
    expires_at: float
    issued_at: float | None

    @classmethod
    def of(cls, answer: TokenAnswer, now: float) -> "Token":
        """Return the token received `now`."""
        claims = read_claims(answer.value)
        expires = None if claims is None else claims.number("exp")
        issued_at = None if claims is None else claims.number("iat")
        lifetime = answer.lifetime
        if expires is not None and _is_believable(answer.server_time, issued_at):
            lifetime = min(lifetime, expires - answer.server_time)
        return cls(
            value=answer.value,
            scopes=held_scopes(claims, answer.scope),
            received_at=now,
            expires_at=now + lifetime,
            issued_at=answer.server_time if issued_at is None else issued_at,
        )

    def lacks(self, needed: frozenset[str]) -> frozenset[str]:
        """Return the needed scopes that the token is known to lack."""
        return frozenset() if self.scopes is None else needed - self.scopes

    def missing_scope(self, needed: frozenset[str], *, next_refresh_in: float | None) -> Problem:
        """Return the refusal of a request whose scopes it lacks; None: no renewal is planned."""
        missing = self.lacks(needed)
        return Problem(
            "missing-scope",
            f"The account's token lacks {', '.join(sorted(missing))}."
            " If it was just granted, it may take some minutes to appear in new tokens.",
            retry_after=next_refresh_in,
            fields={
                "required": sorted(needed),
                "held": sorted(needed - missing),
                "token_issued_at": self.issued_at,
                "next_refresh_in": None if next_refresh_in is None else round(next_refresh_in, 1),
            },
        )


def _is_believable(server_time: float | None, issued_at: float | None) -> TypeGuard[float]:
    """True if a `Date` can come from the clock that dated the token."""
    if server_time is None:
        return False
    return issued_at is None or abs(server_time - issued_at) <= _MOST_APART
