"""How each spelling of a token call is read, and what is not certain."""

import base64
import json

import pytest

from proxy.rules.logins import MAX_FIELDS, Call, LoginError, Secret, read_call

GRANT = "grant_type=client_credentials"
FORM = f"{GRANT}&client_id=the-id&client_secret=s3cr3t"


def basic(text: str, scheme: str = "Basic") -> str:
    return f"{scheme} {base64.b64encode(text.encode('latin-1')).decode()}"


def read(query: str = "", body: str = "", *authorization: str) -> Call:
    return read_call(query, body.encode(), authorization)


def client_of(call: Call) -> str | None:
    return None if call.login is None else call.login.client_id


# Who logs in


@pytest.mark.parametrize(
    ("query", "body", "authorization"),
    [
        ("", FORM, []),
        (FORM, "", []),
        (GRANT, "client_id=the-id&client_secret=s3cr3t", []),
        ("client_id=the-id&client_secret=s3cr3t", GRANT, []),
        ("client_id=the-id", f"{GRANT}&client_secret=s3cr3t", []),
        ("", GRANT, [basic("the-id:s3cr3t")]),
        (GRANT, "", [basic("the-id:s3cr3t", "bASIC")]),
        ("", GRANT, [basic("the-id:s3cr3t", "BAsic  ")]),
        ("", f"{GRANT}&client_id=the-id", [basic("the-id:s3cr3t")]),
        ("", f"{GRANT}&client_id=the-id", [basic(":s3cr3t")]),
        ("", FORM, [basic("the-id:")]),
        ("", f"{FORM}&scope=a&client_id=the-id&client_secret=s3cr3t", []),
        ("", f"{FORM}&client_id=&client_secret=", []),
        ("", f"{FORM}&x", []),
        ("", "%67rant_type=client%5Fcredentials&client%5Fid=the%2Did&client_secret=s3cr%33t", []),
        (
            "",
            '{"grant_type":"client_credentials","client_id":"the-id","client_secret":"s3cr3t"}',
            [],
        ),
        ("client_id=the-id", ' {"grant_type":"client_credentials","client_secret":"s3cr3t"}', []),
        ("", FORM, ["Bearer abc"]),
        ("", FORM, [basic("other:x"), basic("another:y")]),  # two: which one counts is unknown
    ],
)
def test_the_client_is_found_in_every_spelling(
    query: str, body: str, authorization: list[str]
) -> None:
    call = read(query, body, *authorization)
    assert call.login is not None
    assert call.login.client_ids == ("the-id", *(["the%2Did"] * ("%2D" in body)))
    assert call.login.secret.decoded == "s3cr3t"
    assert not call.is_harmless


@pytest.mark.parametrize(
    ("body", "authorization"),
    [
        ("", []),
        (GRANT, []),
        (f"{GRANT}&client_id=the-id", []),
        (f"{GRANT}&client_secret=s3cr3t", []),
        (f"{FORM}&client_id=another", []),
        (f"{FORM}&client_secret=another", []),
        (f"{FORM}&grant_type=password", []),
        (FORM.replace("client_credentials", "Client_Credentials"), []),
        (FORM.replace("the-id", ""), []),
        (FORM.replace("s3cr3t", ""), []),
        (f"{GRANT}&client_id=another", [basic("the-id:s3cr3t")]),
        (GRANT, [basic("the-id")]),
        (GRANT, [basic(":s3cr3t")]),
        (GRANT, ["Basic !!!!"]),
        (GRANT, [basic("the-id:s3cr3t").rstrip("=") + "\n="]),
        (GRANT, [basic("the-id:s3cr3t")[:-1]]),
        (GRANT, [basic("the-id:\xff")]),
        (GRANT, [basic("the-id:s3cr3t").replace("Basic ", "Basic")]),
        (GRANT, [basic("the-id:s3cr3t"), basic("the-id:s3cr3t")]),
        ('{"grant_type": "client_credentials", "client_id": "the-id"', []),
        ('{"grant_type": "client_credentials", "client_id": 1, "client_secret": "s"}', []),
        ("[" + FORM, []),
        ('{"a":' * 5000, []),
    ],
)
def test_what_is_not_certain_names_no_client(body: str, authorization: list[str]) -> None:
    assert read("", body, *authorization).login is None


def test_basic_is_form_encoded_and_each_reading_is_kept() -> None:
    """RFC 6749 section 2.3.1; who does not encode is understood as well."""
    call = read("", GRANT, basic("a+b%2Fc:p%20q+r:s"))
    assert call.login is not None
    assert call.login.client_ids == ("a b/c", "a+b%2Fc")
    assert call.login.secret == Secret("p%20q+r:s", "p q r:s")


def test_a_form_that_stands_twice_keeps_the_last_spelling() -> None:
    call = read("", f"{GRANT}&client_id=a%62&client_id=ab&client_secret=%73&client_secret=s")
    assert call.login is not None
    assert call.login.client_ids == ("ab",)
    assert call.login.secret.raw == "s"


def test_nothing_secret_is_shown() -> None:
    call = read(FORM, FORM, basic("the-id:"))
    shown = repr((call, Secret("raw", "decoded")))
    assert "s3cr3t" not in shown
    assert "raw" not in shown.replace("_", "")
    assert "decoded" not in shown


# What is refused


def test_credentials_in_two_places_are_refused() -> None:
    with pytest.raises(
        LoginError, match=r"^Credentials are given both in the header and in the form\.$"
    ):
        read("", FORM, basic("the-id:s3cr3t"))


@pytest.mark.parametrize("in_query", [False, True])
def test_a_form_has_a_bounded_number_of_fields(*, in_query: bool) -> None:
    fits = FORM + "&x=1" * (MAX_FIELDS - 3)
    for form, error in ((fits, None), (f"{fits}&x=1", LoginError)):
        query, body = (form, "") if in_query else ("", form)
        if error is None:
            assert client_of(read(query, body)) == "the-id"
        else:
            with pytest.raises(error, match=r"^The form has too many fields\.$"):
                read(query, body)


def test_a_json_document_has_a_bounded_number_of_fields() -> None:
    fields = {f"x{n}": "" for n in range(MAX_FIELDS - 3)}
    login = {"grant_type": "client_credentials", "client_id": "the-id", "client_secret": "s"}
    assert client_of(read("", json.dumps({**fields, **login}))) == "the-id"
    with pytest.raises(LoginError, match=r"^The document has too many fields\.$"):
        read("", json.dumps({**fields, "one more": "", **login}))


# Other grants, and calls that may name a client after all


@pytest.mark.parametrize(
    ("form", "is_harmless"),
    [
        ("grant_type=authorization_code&client_id=the-id", True),
        ("grant_type=refresh_token", True),
        (GRANT, True),  # without any secret
        (f"{GRANT}&client_secret=s", False),
        ("grant_type=%20Client_Credentials+", False),
        ("client_id=the-id", False),
        ("grant_type=", False),
        (f"{GRANT}&grant_type=password", False),
        ("grant_type=password&grant_type=password", True),
    ],
)
def test_another_grant_is_told_from_an_uncertain_one(form: str, *, is_harmless: bool) -> None:
    assert read("", form).is_harmless is is_harmless


@pytest.mark.parametrize(
    ("query", "body", "authorization"),
    [
        ("", f"{FORM}&client_id=another", []),
        ("client_id=THE-ID", "", []),
        ("x=(the-id)", "", []),
        ("", "client_id=+the-id+", []),
        ("", "client_id=the%2Did", []),
        ("", "client_id=the%252Did", []),
        ("", "c\x00lient_id=t\x00he-id", []),
        ("", '{"client_id": ["the-id"]}', []),
        ("", "<client>the-id</client>", []),
        ("", GRANT, [basic("the-id:\xff")]),
        ("", GRANT, [basic("the-id:s").rstrip("=")]),
        ("", GRANT, [basic("the-id:\xfb\xff").replace("+", "-").replace("/", "_")]),
        ("", GRANT, [basic("x:the-id")]),
    ],
)
def test_a_call_that_may_name_a_client_mentions_it(
    query: str, body: str, authorization: list[str]
) -> None:
    call = read(query, body, *authorization)
    assert call.mentions(["nobody", " The-ID "])
    assert not call.mentions(["nobody"])
    assert not call.mentions([])


@pytest.mark.parametrize(
    ("body", "authorization"),
    [
        ("client_id=the-idx", []),
        ("client_id=xthe-id", []),
        ("client_id=the-id-2", []),
        ("client_id=not.the-id", []),
        ("client_id=thexid", []),
        ("grant_type=password&client_id=the-id", []),
        (GRANT, ["Bearer the-id"]),
        (GRANT, [basic("the-id:s"), basic("the-id:s")]),
        (GRANT, [basic("the-id")]),
    ],
)
def test_a_call_that_names_another_does_not_mention_it(body: str, authorization: list[str]) -> None:
    assert not read("", body, *authorization).mentions(["the-id"])


def test_bytes_that_are_not_utf_8_hide_no_client() -> None:
    assert client_of(read_call("", b"x=\xff&" + FORM.encode(), [])) == "the-id"


def test_a_query_with_raw_bytes_may_name_a_client() -> None:
    """The server gives bytes that are not UTF-8 as lone surrogates."""
    assert read("x=\udcff&client_id=the-id").mentions(["the-id"])


def test_a_plus_in_an_id_may_stand_for_a_blank() -> None:
    assert read("", "client_id=the+id").mentions(["the id"])


def test_an_id_is_found_in_base64_with_the_other_alphabet() -> None:
    client_id = "a~>?b?>~~c>?~d"
    coded = basic(f"{client_id}:s").replace("+", "-").replace("/", "_")
    assert "-" in coded
    assert "_" in coded
    assert read("", GRANT, coded.rstrip("=")).mentions([client_id])


def test_basic_with_characters_that_are_no_base64_logs_nobody_in() -> None:
    coded = basic("the-id:s3cr3t")
    assert client_of(read("", GRANT, coded)) == "the-id"
    assert client_of(read("", GRANT, coded[:10] + "!!!!" + coded[10:])) is None
