"""What a 429 says of the limit that was hit, and what a hold because of it covers."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.rules.limits import HoldRule, Limit, Reach, limit_of, reach_of

ACCOUNT = Reach(is_route=False, is_organization=False)
ROUTE = Reach(is_route=True, is_organization=False)


@pytest.mark.parametrize(
    ("document", "limit"),
    [
        (
            {"limit": {"key": "token.rate.per.minute", "namespace": "platform.api", "value": 300}},
            Limit("token.rate.per.minute", "platform.api"),
        ),
        ({"limit": {"namespace": "flows"}}, Limit(None, "flows")),
        ({"limit": {"key": "org.flows"}}, Limit("org.flows")),
        ({"limit": {"key": 7, "namespace": ["flows"]}}, Limit()),
        ({"limit": {"key": "", "namespace": "a\x00b"}}, Limit()),
        ({"limit": {"key": "k", "namespace": "n" * 100}}, Limit("k", "n" * 100)),
        ({"limit": {"key": "k" * 101}}, Limit()),
        ({"limit": "flows"}, Limit()),
        ({}, Limit()),
        ([], Limit()),
        (None, Limit()),
    ],
)
def test_limit_is_what_the_body_names(document: object, limit: Limit) -> None:
    assert limit_of(document) == limit


@pytest.mark.parametrize(
    ("limit", "rule", "named", "reach"),
    [
        (Limit(namespace="platform.api"), "auto", 1.0, ACCOUNT),
        (Limit(namespace="auth.api"), "auto", 41000.0, ACCOUNT),
        (Limit(namespace="flows"), "auto", 1.0, ROUTE),
        (Limit(namespace="recording"), "auto", None, ROUTE),
        (Limit(), "auto", 41000.0, ROUTE),
        (Limit(), "auto", 300.0, ACCOUNT),
        (Limit(), "auto", None, ACCOUNT),
        (Limit(namespace="flows"), "account", 41000.0, ACCOUNT),
        (Limit(namespace="platform.api"), "route", 1.0, ROUTE),
        (Limit("org.a"), "auto", 1.0, Reach(is_route=False, is_organization=True)),
        (Limit("org.a", "flows"), "auto", 1.0, Reach(is_route=True, is_organization=True)),
        (Limit("org.a", "flows"), "account", 1.0, Reach(is_route=False, is_organization=True)),
        (Limit("organization.a"), "auto", 1.0, ACCOUNT),
    ],
)
def test_hold_covers_what_the_limit_is_about(
    limit: Limit, rule: HoldRule, named: float | None, reach: Reach
) -> None:
    """The key chooses the accounts; the namespace, or the rule, one route or all."""
    assert reach_of(limit, rule, named=named, maximum=300.0) == reach


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["limit", "key", "x"]), inner),
)


@given(JSON)
def test_any_document_names_a_short_limit_or_none(document: object) -> None:
    name = limit_of(json.loads(json.dumps(document))).name
    assert name is None or 0 < len(name) <= 100
