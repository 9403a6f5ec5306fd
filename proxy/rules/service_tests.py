"""Which verified JWTs belong to a service and not to a person, and which client they name.

A test is a list of alternatives; the conditions of one of them must all hold. The presets say how
identity providers mark the tokens of their client-credentials grant.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """What a claim must be: exactly one of the four is set.

    `equals_claim` names another claim, or `ID` for the client id that was found; `prefix` and
    `suffix` are put around its value. `ignore_case` compares without case.
    """

    claim: str
    equals: str | bool | int | None = None
    ends_with: str | None = None
    equals_claim: str | None = None
    absent: bool = False
    prefix: str = ""
    suffix: str = ""
    ignore_case: bool = False

    def holds(self, claims: Mapping[str, Any], client_id: str) -> bool:
        """True if the claims of a token meet it."""
        value = claims.get(self.claim)
        if self.absent:
            return value is None
        if self.equals is not None:
            return type(value) is type(self.equals) and value == self.equals
        if not isinstance(value, str):
            return False
        if self.ends_with is not None:
            return value.endswith(self.ends_with) and value != self.ends_with
        other = client_id if self.equals_claim == ID else claims.get(self.equals_claim or "")
        if not isinstance(other, str) or not other:
            return False
        wanted = f"{self.prefix}{other}{self.suffix}"
        return value.lower() == wanted.lower() if self.ignore_case else value == wanted


ID: Final = ""  # in place of a claim's name: the client id


@dataclass(frozen=True, slots=True)
class ServiceTest:
    """`id_claims` are the claims that may hold the client id; the first one there does.

    `has_audience` is False where the provider writes no `aud`.
    """

    id_claims: tuple[str, ...]
    alternatives: tuple[tuple[Condition, ...], ...]
    has_audience: bool = True

    def client_id(self, claims: Mapping[str, Any]) -> str | None:
        """Return the client id the claims name; None if there is none."""
        present = [claims[name] for name in self.id_claims if claims.get(name) is not None]
        return present[0] if present and isinstance(present[0], str) and present[0] else None

    def is_service(self, claims: Mapping[str, Any], client_id: str) -> bool:
        """True if the token belongs to the client itself and not to a person."""
        return any(
            all(condition.holds(claims, client_id) for condition in conditions)
            for conditions in self.alternatives
        )


def plain(claim: str) -> ServiceTest:
    """Return the test where none is configured: `sub` is the client."""
    return ServiceTest((claim,), ((Condition(claim="sub", equals_claim=ID),),))


PRESETS: Final[Mapping[str, ServiceTest]] = {
    "entra": ServiceTest(
        ("azp", "appid"),
        (
            (Condition(claim="idtyp", equals="app"),),
            (
                Condition(claim="idtyp", absent=True),
                Condition(claim="scp", absent=True),
                Condition(claim="sub", equals_claim="oid"),
            ),
        ),
    ),
    "keycloak": ServiceTest(
        ("azp",),
        (
            (
                Condition(
                    claim="preferred_username",
                    equals_claim=ID,
                    prefix="service-account-",
                    ignore_case=True,  # it keeps user names in lower case
                ),
            ),
        ),
    ),
    "auth0": ServiceTest(
        ("azp",), ((Condition(claim="sub", equals_claim=ID, suffix="@clients"),),)
    ),
    "okta": ServiceTest(("cid",), ((Condition(claim="sub", equals_claim=ID),),)),
    "cognito": ServiceTest(
        ("client_id",),
        (
            (
                Condition(claim="sub", equals_claim=ID),
                Condition(claim="token_use", equals="access"),
                Condition(claim="username", absent=True),
            ),
        ),
        has_audience=False,
    ),
}


def differs_only_in_form(issuer: str, configured: str) -> bool:
    """True if two issuers differ only by case, a trailing slash or the scheme."""
    return issuer != configured and _bare(issuer) == _bare(configured)


def _bare(issuer: str) -> str:
    text = issuer.strip().lower()
    for scheme in ("https://", "http://"):
        text = text.removeprefix(scheme)
    return text.rstrip("/")
