"""What a 403 of the API says is missing."""

import json

import pytest

from proxy.rules.denials import MissingHere, read_denial

UNABLE = "Unable to perform the requested action."
DIVISION = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"


def body(message: str, code: str = "missing.permissions", **others: object) -> str:
    return json.dumps({"message": message, "code": code, "status": 403, **others})


def read(text: str) -> MissingHere:
    found = read_denial(text)
    assert found is not None
    return found


def test_all_permissions_are_read_from_the_message() -> None:
    found = read(
        body(
            f"{UNABLE} You are missing the following permission(s): recording:recording:view,"
            " recordings:export"
        )
    )
    assert found == MissingHere(
        status=403,
        code="missing.permissions",
        permissions=("recording:recording:view", "recordings:export"),
    )


@pytest.mark.parametrize(
    "text",
    [
        body(
            f"{UNABLE} You must have at least one of the following permissions assigned:"
            " [recording:recording:view, recording:recording:*]",
            "missing.any.permissions",
        ),
        body(
            "You need at least one of the permissions recording:recording:view and"
            " recording:recording:*.",
            "not.authorized",
        ),
    ],
    ids=["code", "message"],
)
def test_one_of_several_permissions_may_be_enough(text: str) -> None:
    found = read(text)
    assert found.permissions == ("recording:recording:view", "recording:recording:*")
    assert found.any_is_enough


@pytest.mark.parametrize(
    ("message", "divisions"),
    [
        (f"permission(s) a:b:view in the following division(s): {DIVISION}", (DIVISION,)),
        (f"a:b:view is missing in division {DIVISION}. Ask x:y:view.", (DIVISION,)),
        ("missing a:b:view in divisions [Home, London Sales]", ("Home", "London Sales")),
        ('missing a:b:view in division "Home"', ("Home",)),
        ("missing a:b:view in division 'Home'", ("Home",)),
        ("missing a:b:view in [division] of nobody", ()),
        ("missing [a:b:view] in a division", ()),
    ],
    ids=str,
)
def test_divisions_follow_the_word(message: str, divisions: tuple[str, ...]) -> None:
    found = read(body(message, "missing.division.permission"))
    assert "a:b:view" in found.permissions
    assert found.divisions == divisions


def test_the_parameters_of_the_message_are_read_too() -> None:
    params = {"permissions": "a:b:view", "divisions": "Home, Sales", "number": 1}
    found = read(body("You are missing a permission.", messageParams=params))
    assert found.permissions == ("a:b:view",)
    assert found.divisions == ("Home", "Sales")


@pytest.mark.parametrize("head", ["HTTP/1.1 403 Forbidden", "HTTP/2 403"])
@pytest.mark.parametrize("end", ["\r\n", "\n"], ids=["crlf", "lf"])
def test_a_whole_answer_may_be_given(head: str, end: str) -> None:
    text = end.join([head, "ININ-Correlation-Id: 1", "", body("missing a:b:view")])
    found = read(text)
    assert (found.status, found.permissions) == (403, ("a:b:view",))


def test_a_text_that_is_no_json_is_read_as_it_is() -> None:
    found = read("403: You are missing the following permission(s): a:b:view, c:d:edit")
    assert (found.code, found.permissions) == (None, ("a:b:view", "c:d:edit"))
    assert read("HTTP/1.1 401 Unauthorized\n\nNo.").status == 401


@pytest.mark.parametrize("text", ["", " \n"], ids=["empty", "blank"])
def test_nothing_says_nothing(text: str) -> None:
    assert read_denial(text) is None


def test_what_is_no_permission_is_not_taken_for_one() -> None:
    message = "See https://developer.genesys.cloud:443/x at 12:30:00, a.b:c, user@x:y and t::u"
    assert read(body(message)).permissions == ()


@pytest.mark.parametrize(
    "document",
    ["[1]", '"text"', "{", '{"message": 1, "code": 2, "status": "403"}', "[" * 100_000],
    ids=["list", "string", "cut", "types", "deep"],
)
def test_odd_documents_say_nothing(document: str) -> None:
    found = read(document)
    assert (found.status, found.code, found.permissions) == (None, None, ())


def test_what_is_read_is_bounded() -> None:
    many = ", ".join(f"a:b:c{number}" for number in range(1000))
    found = read(body(f"missing {many}, {'x' * 200}:b:c", "c" * 1000))
    assert len(found.permissions) == 20
    assert found.code is not None
    assert len(found.code) == 100


@pytest.mark.parametrize(
    "key", ["message", "messageWithParams", "error_description", "description"]
)
def test_each_text_of_the_answer_is_read(key: str) -> None:
    assert read(json.dumps({key: "missing a:b:view"})).permissions == ("a:b:view",)


def test_the_name_of_a_parameter_is_no_permission() -> None:
    assert read(body("No.", messageParams={"a:b:view": "x"})).permissions == ()


def test_an_object_is_found_behind_one_that_cannot_be_read() -> None:
    assert read("{broken}\n" + body("missing a:b:view")).code == "missing.permissions"


def test_the_code_alone_says_that_one_permission_is_enough() -> None:
    assert read(body("missing a:b:view", "missing.any.permissions")).any_is_enough
    assert not read(body("missing a:b:view")).any_is_enough


def test_a_permission_has_a_hundred_characters_at_most() -> None:
    fits = "x" * 96 + ":b:c"
    assert read(body(f"missing {fits} and x{fits}")).permissions == (fits,)


def test_a_scheme_is_no_permission() -> None:
    assert read(body("missing http:a:b and HTTPS:a:b and https:c")).permissions == ()


@pytest.mark.parametrize(
    ("message", "divisions"),
    [
        ('missing a:b:view in division "Home". Ask "Bob"', ("Home",)),
        ("missing a:b:view in divisions [Home,, Sales]", ("Home", "Sales")),
        (f"missing a:b:view in divisions [{'x' * 100}, {'y' * 101}]", ("x" * 100,)),
        ("missing a:b:view in divisions [\"Home\", 'Sales']", ("Home", "Sales")),
        ("missing a:b:view in division [X-RAY]", ("X-RAY",)),
    ],
    ids=["sentence", "empty", "long", "quoted", "X"],
)
def test_divisions_are_names_without_what_surrounds_them(
    message: str, divisions: tuple[str, ...]
) -> None:
    assert read(body(message)).divisions == divisions
