"""Tokens as identity providers issue them: which are a service's, and of which client."""

from typing import Any

import pytest

from proxy.rules.service_tests import PRESETS, Condition, ServiceTest, differs_only_in_form, plain

ID = "0a1b2c3d-0000-0000-0000-000000000000"
SERVICES: dict[str, list[dict[str, Any]]] = {
    "entra": [
        {"azp": ID, "idtyp": "app", "sub": "s", "oid": "o", "roles": ["x"]},
        {"azp": ID, "sub": "o", "oid": "o", "ver": "2.0"},
        {"appid": ID, "sub": "o", "oid": "o", "ver": "1.0"},
        {"appid": ID, "idtyp": "app", "sub": "o", "oid": "o"},
    ],
    "keycloak": [
        {"azp": ID, "preferred_username": f"service-account-{ID}", "sub": "uuid"},
        {"azp": "My-App", "preferred_username": "service-account-my-app", "sub": "uuid"},
    ],
    "auth0": [{"azp": ID, "sub": f"{ID}@clients", "gty": "client-credentials"}],
    "okta": [{"cid": ID, "sub": ID, "scp": ["x"]}],
    "cognito": [{"client_id": ID, "sub": ID, "token_use": "access", "scope": "api/x"}],
}
PEOPLE: dict[str, list[dict[str, Any]]] = {
    "entra": [
        {"azp": ID, "scp": "User.Read", "sub": "o", "oid": "o"},
        {"azp": ID, "sub": "s", "oid": "o"},
        {"azp": ID, "idtyp": "user", "sub": "o", "oid": "o"},
        {"azp": ID, "sub": "s"},
        {"azp": ID},
    ],
    "keycloak": [
        {"azp": ID, "preferred_username": "ann", "sub": "uuid"},
        {"azp": ID, "preferred_username": "service-account-other", "sub": "uuid"},
        {"azp": ID, "sub": ID},
    ],
    "auth0": [
        {"azp": ID, "sub": "auth0|123"},
        {"azp": ID, "sub": "other@clients"},
        {"azp": ID, "sub": ID},
    ],
    "okta": [{"cid": ID, "sub": "ann@example.com"}, {"cid": ID}],
    "cognito": [
        {"client_id": ID, "sub": "uuid", "token_use": "access", "username": "ann"},
        {"client_id": ID, "sub": ID, "token_use": "id"},
        {"client_id": ID, "sub": ID, "token_use": "access", "username": ID},
        {"client_id": ID, "sub": ID},
    ],
}


@pytest.mark.parametrize(
    ("name", "claims"), [(name, one) for name, all_ in SERVICES.items() for one in all_]
)
def test_token_of_a_service_names_its_client(name: str, claims: dict[str, Any]) -> None:
    client_id = PRESETS[name].client_id(claims)
    assert client_id in (ID, "My-App")
    assert PRESETS[name].is_service(claims, client_id)


@pytest.mark.parametrize(
    ("name", "claims"), [(name, one) for name, all_ in PEOPLE.items() for one in all_]
)
def test_token_of_a_person_is_no_services(name: str, claims: dict[str, Any]) -> None:
    assert not PRESETS[name].is_service(claims, ID)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("value", [None, "", 7, [ID], {"id": ID}])
def test_client_that_is_no_text_is_none(name: str, value: object) -> None:
    claims = dict.fromkeys(PRESETS[name].id_claims, value)
    assert PRESETS[name].client_id(claims) is None


def test_without_a_test_the_subject_is_the_client() -> None:
    assert plain("azp").client_id({"azp": ID}) == ID
    assert plain("azp").is_service({"azp": ID, "sub": ID}, ID)
    assert not plain("azp").is_service({"azp": ID, "sub": "ann"}, ID)


@pytest.mark.parametrize(
    ("condition", "claims", "holds"),
    [
        (Condition(claim="a", equals="x"), {"a": "x"}, True),
        (Condition(claim="a", equals="x"), {"a": ["x"]}, False),
        (Condition(claim="a", equals=1), {"a": True}, False),
        (Condition(claim="a", equals=False), {"a": False}, True),
        (Condition(claim="a", ends_with="@c"), {"a": "x@c"}, True),
        (Condition(claim="a", ends_with="@c"), {"a": "@c"}, False),
        (Condition(claim="a", ends_with="@c"), {}, False),
        (Condition(claim="a", equals_claim="b", suffix="@c"), {"a": "x@c", "b": "x"}, True),
        (Condition(claim="a", equals_claim="b"), {"a": "x", "b": "X"}, False),
        (Condition(claim="a", equals_claim="b"), {"a": "", "b": ""}, False),
        (Condition(claim="a", equals_claim="b"), {}, False),
        (Condition(claim="a", absent=True), {}, True),
        (Condition(claim="a", absent=True), {"a": ""}, False),
    ],
)
def test_condition(condition: Condition, claims: dict[str, Any], *, holds: bool) -> None:
    assert condition.holds(claims, ID) is holds


def test_all_conditions_of_one_alternative_must_hold() -> None:
    one, two = Condition(claim="a", equals="1"), Condition(claim="b", equals="2")
    test = ServiceTest(("c",), ((one, two),))
    assert test.is_service({"a": "1", "b": "2"}, ID)
    assert not test.is_service({"a": "1"}, ID)


@pytest.mark.parametrize(
    ("issuer", "differs"),
    [
        ("https://login.example/", False),
        ("https://login.example", True),
        ("http://login.example/", True),
        ("HTTPS://Login.example/", True),
        ("login.example", True),
        ("https://login.example/x", False),
        ("https://other.example/", False),
        ("", False),
    ],
)
def test_issuer_written_otherwise(issuer: str, *, differs: bool) -> None:
    assert differs_only_in_form(issuer, "https://login.example/") is differs
