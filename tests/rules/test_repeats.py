"""Which request is the same as another, and what is kept of one."""

from itertools import combinations

import pytest

from proxy.rules.repeats import (
    Digests,
    Ended,
    InDoubt,
    KeptAnswer,
    Record,
    State,
    digests_of,
    is_reused,
    kept_of,
    scope_of,
)

KEY, SAME = b"key", b"same"
ACCEPTED = KeptAnswer(202, "Accepted", (), b"{}")
NOTHING: list[tuple[bytes, State, float]] = []


@pytest.mark.parametrize(
    ("one", "other"),
    list(
        combinations(
            [
                ("london", "Bearer a", "10.0.0.1"),
                ("london", "Bearer a", "10.0.0.2"),
                ("london", "Bearer a", ""),
                ("london", "Bearer b", "10.0.0.1"),
                ("paris", "Bearer a", "10.0.0.1"),
                ("londonBearer a", "", "10.0.0.1"),
            ],
            2,
        )
    ),
)
def test_no_two_callers_have_a_name_in_common(
    one: tuple[str, str, str], other: tuple[str, str, str]
) -> None:
    names = [digests_of(scope_of(*each), "k", "POST", "/a", b"{}") for each in (one, other)]
    assert names[0].key != names[1].key
    assert names[0].sameness != names[1].sameness


@pytest.mark.parametrize(
    "other",
    [("PUT", "/a", b"{}"), ("POST", "/a?", b"{}"), ("POST", "/A", b"{}"), ("POST", "/a", b"{ }")],
)
def test_another_method_target_or_body_is_another_request(other: tuple[str, str, bytes]) -> None:
    one = digests_of(b"scope", "k", "POST", "/a", b"{}")
    two = digests_of(b"scope", "k", *other)
    assert (one.key == two.key, one.sameness == two.sameness) == (True, False)


def test_another_key_is_another_name() -> None:
    one, two = (digests_of(b"scope", key, "POST", "/a", b"{}") for key in ("k", "l"))
    assert one.key != two.key
    assert one.sameness == two.sameness


def test_the_names_of_a_request_are_the_same_in_every_version() -> None:
    """While an update is under way, replicas of two versions find each other's records."""
    digests = digests_of(scope_of("london", "Bearer a", ""), "k", "POST", "/a", b"{}")
    assert digests.key is not None
    assert digests.key.hex() == "490635874f966dd60e1bf0c20248d38e48df6691b0f8c61055b98127c88eb3c9"
    assert digests.sameness.hex() == (
        "88a5fc7a2929b7b076410b7b63fa2547260f301038ee55958f0f4a599908c687"
    )


def test_a_request_without_a_key_is_found_by_its_sameness() -> None:
    digests = digests_of(b"scope", "", "POST", "/a", b"{}")
    assert (digests.key, digests.name) == (None, digests.sameness)


def test_bytes_that_are_no_text_have_a_digest() -> None:
    assert digests_of(b"scope", "\udcff", "POST", "/\udcff", b"\xff").key is not None


@pytest.mark.parametrize(
    ("digests", "is_another"),
    [
        (Digests(KEY, SAME), False),
        (Digests(KEY, b"other"), True),
        (Digests(None, SAME), False),
    ],
)
def test_a_key_is_reused_if_it_was_that_of_another_request(
    digests: Digests,
    is_another: bool,  # noqa: FBT001 -- a column of the table
) -> None:
    record = Record(sameness=SAME, request_id="1", sent_at=1.0, until=2.0, state=InDoubt())
    assert is_reused(record, digests) is is_another


@pytest.mark.parametrize("status", [400, 401, 404, 409, 422, 429, 499])
@pytest.mark.parametrize("key", [None, KEY])
@pytest.mark.parametrize("is_delivered", [True, False])
def test_a_refusal_leaves_nothing(
    status: int,
    key: bytes | None,
    is_delivered: bool,  # noqa: FBT001 -- a column of the table
) -> None:
    answer = KeptAnswer(status, "", (), b"")
    ended = Ended(status=status, answer=answer, is_delivered=is_delivered)
    assert list(kept_of(ended, Digests(key, SAME), window=120, keep=600)) == NOTHING


@pytest.mark.parametrize("status", [None, 502, 504])
@pytest.mark.parametrize("is_delivered", [True, False])
def test_what_has_no_usable_answer_is_in_doubt_with_a_key_and_without(
    status: int | None,
    is_delivered: bool,  # noqa: FBT001 -- a column of the table
) -> None:
    ended = Ended(status=status, answer=ACCEPTED, is_delivered=is_delivered)
    assert list(kept_of(ended, Digests(None, SAME), window=120, keep=600)) == [
        (SAME, InDoubt(), 120)
    ]
    assert list(kept_of(ended, Digests(KEY, SAME), window=120, keep=600)) == [
        (KEY, InDoubt(), 120),
        (SAME, InDoubt(), 120),
    ]


@pytest.mark.parametrize("status", [200, 202, 302, 500, 503])
def test_an_answer_that_was_not_delivered_is_kept_for_the_window(status: int) -> None:
    answer = KeptAnswer(status, "", (), b"{}")
    kept = kept_of(
        Ended(status=status, answer=answer, is_delivered=False),
        Digests(KEY, SAME),
        window=120,
        keep=600,
    )
    assert list(kept) == [(KEY, answer, 120), (SAME, answer, 120)]


def test_an_answer_that_was_not_delivered_and_is_too_large_is_in_doubt() -> None:
    kept = kept_of(
        Ended(status=202, answer=None, is_delivered=False),
        Digests(None, SAME),
        window=120,
        keep=600,
    )
    assert list(kept) == [(SAME, InDoubt(), 120)]


def test_a_delivered_answer_is_kept_for_its_key_only() -> None:
    ended = Ended(status=202, answer=ACCEPTED, is_delivered=True)
    assert list(kept_of(ended, Digests(None, SAME), window=120, keep=600)) == NOTHING
    kept = list(kept_of(ended, Digests(KEY, SAME), window=120, keep=600))
    assert kept == [(KEY, ACCEPTED, 600)]


def test_a_delivered_answer_that_is_too_large_leaves_its_key_in_doubt() -> None:
    kept = kept_of(
        Ended(status=202, answer=None, is_delivered=True), Digests(KEY, SAME), window=120, keep=600
    )
    assert list(kept) == [(KEY, InDoubt(), 120)]


def test_cookies_are_never_kept() -> None:
    fields = [("Set-Cookie", "a=b"), ("set-cookie", "c=d"), ("Location", "/x")]
    assert KeptAnswer.of(202, "", fields, b"").fields == (("Location", "/x"),)


def test_the_rest_of_an_answer_is_kept_as_it_is() -> None:
    fields = [("Location", "/x"), ("X-A", "1")]
    assert KeptAnswer.of(202, "Accepted", fields, b"{}") == KeptAnswer(
        202, "Accepted", (("Location", "/x"), ("X-A", "1")), b"{}"
    )
