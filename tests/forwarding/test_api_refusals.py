"""What the API's refusals mean."""

import json

import pytest

from proxy.forwarding.api_refusals import denial
from proxy.http.messages import Answer


@pytest.mark.parametrize(
    ("code", "reason", "lacks"),
    [
        ("missing.permissions", "stale_scope", "permission"),
        ("missing.any.permissions", "stale_scope", "permission"),
        ("Missing.Permission", "stale_scope", "permission"),
        ("missing.division.permission", "stale_scope", "division"),
        ("missing.any.division.permissions", "stale_scope", "division"),
        ("not.authorized", None, None),
        ("missing.permissionset", None, None),
        ("no.missing.permissions", None, None),
        ("missing.permissions.", None, None),
        (None, None, None),
    ],
)
def test_what_a_403_lacks_is_told_by_its_code(
    code: str | None, reason: str | None, lacks: str | None
) -> None:
    found = denial(Answer(403, "", [], json.dumps({"code": code}).encode()))
    assert (found.reason, found.lacks) == (reason, lacks)
