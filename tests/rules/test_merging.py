"""Which reads are equal, and which answers may be shared."""

import pytest

from proxy.rules.headers import Field
from proxy.rules.merging import MAX_SHARED, Read, is_for_both, may_be_shared, read_of

FIELDS = [("Authorization", "Bearer aaaa"), ("Accept", "application/json"), ("Cookie", "a=1")]


def read(
    *more: Field,
    method: str = "GET",
    target: str = "/jobs/1",
    body: bytes = b"",
    has_own_token: bool = True,
    fields: list[Field] = FIELDS,
) -> Read | None:
    return read_of(method, target, [*fields, *more], body, has_own_token=has_own_token)


def test_requests_that_differ_in_nothing_are_equal() -> None:
    assert read() == read()
    assert read() is not None


@pytest.mark.parametrize(
    "name", ["User-Agent", "X-Request-Id", "traceparent", "tracestate", "purecloud-sdk"]
)
def test_fields_that_name_a_request_or_its_program_do_not_count(name: str) -> None:
    assert read((name, "a")) == read((name.upper(), "b")) == read()


def test_case_and_order_of_names_do_not_count() -> None:
    lower = [(name.lower(), value) for name, value in reversed(FIELDS)]
    assert read(fields=lower) == read()


def test_order_of_two_fields_of_one_name_counts() -> None:
    assert read(("X-A", "1"), ("X-A", "2")) != read(("X-A", "2"), ("X-A", "1"))


@pytest.mark.parametrize(
    "other",
    [
        read(method="HEAD"),
        read(target="/jobs/1?a"),
        read(target="/jobs/2"),
        read(("Accept-Language", "de")),
        read(("Prefer", "wait=1")),
        read(("X-User-Agent", "a")),
        read(fields=[("Authorization", "Bearer aaac"), *FIELDS[1:]]),  # one bit
        read(fields=[*FIELDS[:2], ("Cookie", "a=0")]),
        read(fields=FIELDS[1:]),
    ],
    ids=["method", "query", "path", "language", "prefer", "more", "token", "cookie", "no token"],
)
def test_any_other_difference_counts(other: Read | None) -> None:
    assert other is not None
    assert other != read()


def test_caller_s_token_does_not_count_where_it_is_not_sent() -> None:
    one = read(has_own_token=False)
    assert one == read(fields=[("authorization", "Bearer b"), *FIELDS[1:]], has_own_token=False)
    assert one != read(fields=[*FIELDS[:2], ("Cookie", "a=2")], has_own_token=False)


@pytest.mark.parametrize(
    "field",
    [
        ("Range", "bytes=0-1"),
        ("If-None-Match", '"a"'),
        ("if-modified-since", "x"),
        ("If-Range", "x"),
        ("Cache-Control", "no-store"),
        ("Cache-Control", "max-age=0, No-Store"),
        ("Cache-Control", "no-store,max-age=0"),
    ],
    ids=["range", "none-match", "modified", "if-range", "no-store", "list", "list without blanks"],
)
def test_reads_that_ask_for_an_answer_of_their_own_are_never_merged(field: Field) -> None:
    assert read(field) is None


def test_other_directives_of_cache_control_are_compared() -> None:
    assert read(("Cache-Control", "no-cache")) == read(("cache-control", "no-cache"))
    assert read(("Cache-Control", "no-cache")) != read()
    assert read(("Cache-Control", "no-cache")) is not None


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "get"])
def test_other_methods_are_never_merged(method: str) -> None:
    assert read(method=method) is None


def test_another_method_or_target_is_another_read() -> None:
    assert read(method="HEAD") != read()
    assert read(target="/jobs/2") != read()


def test_read_with_a_body_is_never_merged() -> None:
    assert read(body=b"{}") is None


@pytest.mark.parametrize(
    ("field", "may"),
    [
        (("Content-Type", "text/plain"), True),
        (("Set-Cookie", "a=b"), False),
        (("set-cookie", "a=b"), False),
        (("Vary", "Accept-Encoding"), True),
        (("Vary", "User-Agent"), True),
        (("Vary", "*"), False),
        (("vary", "Accept, *"), False),
        (("Content-Length", str(MAX_SHARED)), True),
        (("Content-Length", str(MAX_SHARED + 1)), False),
        (("Content-Length", "1".zfill(5000)), True),
        (("Content-Length", "1" * 5000), False),
        (("Content-Length", "1, 1"), False),
        (("Content-Length", "²"), False),
        (("Cache-Control", "no-store"), True),
    ],
    ids=lambda value: "-".join(value)[:40] if isinstance(value, tuple) else None,
)
def test_an_answer_is_shared_unless_it_is_for_one_caller(field: Field, *, may: bool) -> None:
    assert may_be_shared("GET", [("Date", "x"), field]) is may


def test_length_that_an_answer_to_head_announces_is_not_sent() -> None:
    assert may_be_shared("HEAD", [("Content-Length", str(10 * MAX_SHARED))])


def test_an_answer_that_varies_by_a_field_is_for_requests_with_the_same_field() -> None:
    mine, same, other = [("User-Agent", "a")], [("user-agent", "a")], [("User-Agent", "b")]
    varying = [("Vary", "Accept, user-agent")]
    assert is_for_both(varying, mine, same)
    assert not is_for_both(varying, mine, other)
    assert not is_for_both(varying, mine, [])
    assert is_for_both([("Vary", "Accept")], mine, other)
    assert is_for_both([], mine, other)
