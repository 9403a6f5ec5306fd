"""Which trouble there is to tell, and in which words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.rules.hold import Hold, HoldState
from proxy.rules.incidents import (
    KINDS,
    PLACEHOLDERS,
    Subject,
    Trouble,
    Value,
    columns,
    doubt_detail,
    end_of,
    hold_detail,
    incident_id,
    lasts,
    scalar,
    scope_detail,
    subject_of,
    unknown_placeholders,
    utc,
)
from proxy.rules.needs import Document, Members, Unreadable, read_document

TROUBLE = Trouble(
    account="london",
    kind="hold",
    since=0.0,
    detail="the detail",
    subject=Subject(route="exports", legal_hold=True, channel="sms"),
)


def test_an_incident_has_one_name_for_each_account_and_kind() -> None:
    names = {incident_id(account, kind) for account in ("a", "b") for kind in KINDS}
    assert len(names) == 10
    assert incident_id("a", "hold") in names
    assert all(name.startswith("export-proxy:") and len(name) <= 100 for name in names)


def test_each_kind_has_a_title_and_an_end() -> None:
    for kind in KINDS:
        trouble = Trouble(account="london", kind=kind, since=0, detail="")
        assert trouble.title.startswith("london: ")
        assert len(trouble.title) <= 160
        assert end_of(kind).endswith(".")


# A hold


@pytest.mark.parametrize(
    ("now", "probes", "expected"),
    [
        (159.9, 0, None),
        (160.0, 0, True),
        (200.0, 0, True),
        (205.0, 0, True),
        (205.1, 0, False),
        (205.1, 1, True),
    ],
)
def test_a_hold_lasts_from_open_after_until_nobody_asks_for_it(
    now: float, probes: int, *, expected: bool | None
) -> None:
    state = HoldState(hold=Hold(since=100.0, until=200.0), probes=probes)
    assert lasts(state, now, open_after=60.0) is expected


def test_a_named_wait_beyond_the_clamp_lasts_as_long_as_it_was_named() -> None:
    state = HoldState(hold=Hold(since=100.0, until=200.0, named_until=3700.0))
    assert lasts(state, 3000.0, open_after=60.0) is True
    assert lasts(state, 3705.1, open_after=60.0) is False


def test_an_open_account_has_no_hold() -> None:
    assert lasts(HoldState(), 0.0, open_after=0.0) is False


# What of a request is told


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, True),
        (False, False),
        ("yes", "yes"),
        ("x" * 64, "x" * 64),
        ("x" * 65, ""),
        (5.0, "5"),
        (5, "5"),
        (0.5, "0.5"),
        (1e300, ""),
        (float("inf"), "inf"),
        (None, ""),
        ([1], ""),
        (Members((("a", 1),)), ""),
    ],
    ids=repr,
)
def test_a_scalar_of_a_body_is_told_and_nothing_else(value: object, expected: Value) -> None:
    assert scalar(value) == expected
    assert type(scalar(value)) is type(expected)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", Subject("r")),
        (b"nonsense", Subject("r")),
        (b"[1]", Subject("r")),
        (b'{"legal_hold": "a", "channel": "sms"}', Subject("r", "a", "sms")),
        (b'{"Legal_Hold ": "a", "MEDIATYPE": "x"}', Subject("r", "a", "x")),
        (b'{"legal_hold": {"a": 1}, "channel": ["sms"]}', Subject("r")),
        (b'{"mediaType": "x", "channel": "y"}', Subject("r", "", "y")),
    ],
    ids=repr,
)
def test_what_an_incident_tells_of_a_request(body: bytes, expected: Subject) -> None:
    document: Document = read_document(body, max_size=1000)
    assert subject_of(document, "r", ("channel", "mediaType")) == expected


def test_an_unreadable_body_tells_nothing() -> None:
    assert subject_of(Unreadable(), "r", ("channel",)) == Subject("r")


# The columns


def test_a_template_is_filled_once() -> None:
    fields: dict[str, Value] = {
        "a": "{account}/{kind}: {title} {{account}}",
        "b": "{legal_hold}",
        "c": "held: {legal_hold}",
        "d": False,
        "e": "{since} {route} {channel}",
    }
    assert columns(fields, TROUBLE) == {
        "a": "london/hold: london: on hold, the API refuses requests {account}",
        "b": True,
        "c": "held: true",
        "d": False,
        "e": "1970-01-01T00:00:00Z exports sms",
    }


@given(value=st.text(max_size=64))
def test_a_value_is_never_read_as_a_template(value: str) -> None:
    subject = Subject(channel=value)
    trouble = Trouble(account="a", kind="hold", since=0, detail="", subject=subject)
    told = columns({"a": "{channel}", "b": "<{channel}>"}, trouble)
    assert told == {"a": value, "b": f"<{value}>"}


def test_a_column_is_bounded() -> None:
    trouble = Trouble(account="a", kind="hold", since=0, detail="x" * 5000)
    told = columns({"a": "{detail}", "b": "{detail}{detail}"}, trouble)
    assert [len(str(value)) for value in told.values()] == [4000, 4000]


@pytest.mark.parametrize(
    ("template", "unknown"),
    [
        (True, []),
        ("", []),
        ("".join(f"{{{name}}}" for name in PLACEHOLDERS), []),
        ("{titles}", ["titles"]),
        ("{} {Account}", ["", "Account"]),
        ("{{titles}} {a b} { }", []),
        ("${HOME}", ["HOME"]),
    ],
)
def test_placeholders_that_stand_for_nothing_are_found(template: Value, unknown: list[str]) -> None:
    assert list(unknown_placeholders(template)) == unknown


def test_details_name_what_they_are_about() -> None:
    assert "b:c, x:y" in scope_detail({"x:y", "b:c"})
    assert "on exports before 1970-01-01T00:01:00Z" in hold_detail("exports", None, 60.5)
    assert "(limit client.rate)" in hold_detail(None, "client.rate", 0)
    assert doubt_detail(1, "id-1").startswith("The answer of one request was lost;")
    assert doubt_detail(3, "id-3").startswith("3 answers were lost;")
    assert utc(0.9) == "1970-01-01T00:00:00Z"


def test_the_name_of_an_incident_is_the_same_in_every_version() -> None:
    """A desk finds the incidents of an earlier version by it."""
    assert incident_id("a", "hold") == "export-proxy:hold:ca978112ca1bbdca"


def test_a_hold_of_the_account_without_a_known_limit_is_told_so() -> None:
    assert hold_detail(None, None, 60.5) == (
        "The API refused requests, or says that its quota is used up. The proxy sends nothing"
        " before 1970-01-01T00:01:00Z; then one request goes first, as a probe."
    )


def test_a_missing_scope_is_told_with_what_to_do() -> None:
    assert scope_detail({"a"}) == (
        "New tokens still lack a after tokens.propagation_window. The proxy refuses requests that"
        " need it with 403. Grant it to the account's role, or stop such requests."
    )
