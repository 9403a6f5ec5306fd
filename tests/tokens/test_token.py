"""A token's life and scopes, as its answer and its claims tell them."""

from typing import Any

import pytest

from proxy.tokens.token import Token
from tests.kit.tokens import issued, scoped, unsigned


@pytest.mark.parametrize(
    ("claims", "server_time", "expires_in"),
    [
        ({"exp": 2000}, 1000.0, 1000.0),
        ({"exp": 9999}, 1000.0, 3600.0),
        ({"exp": 1001}, None, 3600.0),
        ({"exp": "1001"}, 1000.0, 3600.0),
        ({"exp": 10**400}, 1000.0, 3600.0),
        ({}, 1000.0, 3600.0),
        ({"iat": 7200, "exp": 9000}, 7205.0, 1795.0),
        ({"iat": 7200, "exp": 9000}, 14_400.5, 3600.0),
        ({"iat": 7200, "exp": 9000}, 10.0, 3600.0),
    ],
)
def test_lifetime(claims: dict[str, Any], server_time: float | None, expires_in: float) -> None:
    """The shorter of `expires_in` and what `exp` leaves, where that is a number."""
    token = Token.of(issued(unsigned(claims), server_time=server_time), 5.0)
    assert token.expires_at == 5.0 + expires_in


def test_the_time_of_issue_is_the_tokens_own_and_else_the_servers() -> None:
    assert Token.of(issued(unsigned({"iat": 990}), server_time=1000.0), 0.0).issued_at == 990
    assert Token.of(issued(unsigned({}), server_time=1000.0), 0.0).issued_at == 1000.0
    assert Token.of(issued(), 0.0).issued_at is None


def test_a_token_lacks_only_what_it_is_known_not_to_carry() -> None:
    needed = frozenset({"a", "b"})
    assert Token.of(scoped("a c"), 0.0).lacks(needed) == {"b"}
    assert Token.of(issued(scope="a"), 0.0).lacks(needed) == {"b"}
    assert Token.of(issued(), 0.0).lacks(needed) == frozenset()


@pytest.mark.parametrize(("next_in", "told", "retry_after"), [(7.24, 7.2, 8), (None, None, None)])
def test_the_refusal_for_a_missing_scope(
    next_in: float | None, told: float | None, retry_after: int | None
) -> None:
    problem = Token.of(scoped("a"), 0.0).missing_scope(
        frozenset({"a", "b"}), next_refresh_in=next_in
    )
    assert problem.retry_after == retry_after
    assert problem.fields == {
        "required": ["a", "b"],
        "held": ["a"],
        "token_issued_at": None,
        "next_refresh_in": told,
    }
