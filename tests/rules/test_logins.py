"""A log-in is read in every spelling, and none of them gets past a managed account."""

import base64
import json

import pytest

from proxy.rules.logins import LoginError, has_control, read_call

GRANT = "grant_type=client_credentials"


def basic(pair: str, *, scheme: str = "Basic") -> list[str]:
    return [f"{scheme} {base64.b64encode(pair.encode()).decode()}"]


SPELLINGS = {
    "form": ("", f"{GRANT}&client_id=c&client_secret=s", []),
    "query": (f"{GRANT}&client_id=c&client_secret=s", "", []),
    "basic, form": ("", GRANT, basic("c:s")),
    "basic, query": (GRANT, "", basic("c:s")),
    "basic in small letters": (GRANT, "", basic("c:s", scheme="basic")),
    "grant in the query": (GRANT, "client_id=c&client_secret=s", []),
    "id in the query": ("client_id=c", f"{GRANT}&client_secret=s", []),
    "all of it twice": (f"{GRANT}&client_id=c&client_secret=s",) * 2 + ([],),
    "id in the form, too": ("", f"{GRANT}&client_id=c", basic("c:s")),
    "id in basic, secret in the form": ("", f"{GRANT}&client_secret=s", basic("c:")),
    "encoded": ("", "grant%5Ftype=client%5Fcredentials&client_id=%63&client_secret=%73", []),
    "JSON": (
        "",
        json.dumps(
            {"grant_type": "client_credentials", "client_id": "c", "client_secret": "s", "x": 1}
        ),
        [],
    ),
    "empty fields": (f"{GRANT}&client_id=&client_secret=", "", basic("c:s")),
}


@pytest.mark.parametrize(
    ("query", "body", "authorization"), SPELLINGS.values(), ids=SPELLINGS.keys()
)
def test_log_in_in_every_spelling(query: str, body: str, authorization: list[str]) -> None:
    call = read_call(query, body.encode(), authorization)
    assert call.login is not None
    assert call.login.client_id == "c"
    assert call.login.secret.decoded == "s"


UNCERTAIN = {
    "no grant": ("", "client_id=managed&client_secret=s", []),
    "two grants": (GRANT, "grant_type=password&client_id=managed&client_secret=s", []),
    "a grant in capitals": ("", "grant_type=CLIENT_CREDENTIALS&client_id=managed", []),
    "two ids": ("client_id=other", f"{GRANT}&client_id=managed&client_secret=s", []),
    "another id in basic": ("", f"{GRANT}&client_id=managed", basic("other:s")),
    "two secrets": ("client_secret=x", f"{GRANT}&client_id=managed&client_secret=s", []),
    "an empty secret": ("", GRANT, basic("managed:")),
    "encoded twice": ("", f"{GRANT}&client_id=%256Danaged&client_secret=s", []),
    "several parts": ("", '--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nmanaged\r\n', []),
    "XML": ("", "<client>managed</client>", []),
    "sixteen bits": ("", "managed".encode("utf-16-le").decode("latin-1"), []),
    "JSON that is broken": ("", '{"client_id": "managed"', []),
    "JSON in a list": ("", '[{"client_id": "managed"}]', []),
    "basic without padding": (GRANT, "", [basic("managed:s1")[0].rstrip("=")]),
    "basic in the other alphabet": (GRANT, "", [basic("managed:ÿÿ?>")[0].replace("/", "_")]),
    "basic with an underscore": (GRANT, "", [basic("?>?>managed:s1")[0].replace("/", "_")]),
    "basic with a hyphen": (GRANT, "", [basic("~?~>managed:s1")[0].replace("+", "-")]),
    "another case": ("", "client_id=MANAGED&client_secret=s", []),
}


@pytest.mark.parametrize(
    ("query", "body", "authorization"), UNCERTAIN.values(), ids=UNCERTAIN.keys()
)
def test_what_is_not_certain_names_no_client_and_mentions_it(
    query: str, body: str, authorization: list[str]
) -> None:
    call = read_call(query, body.encode("latin-1"), authorization)
    assert call.login is None or "managed" in call.login.client_ids
    assert call.mentions(["managed"])
    assert not call.mentions(["manage", "anaged", "nobody"])
    assert not call.mentions([])


def test_call_without_any_secret_gets_past_nobody() -> None:
    assert not read_call("", f"{GRANT}&client_id=c&client_secret=".encode(), []).mentions(["c"])


@pytest.mark.parametrize("grant", ["password", "refresh_token", "authorization_code", "urn:x"])
def test_other_grant_is_no_log_in_of_the_client(grant: str) -> None:
    """It is a person's: it goes to the login server for any client."""
    call = read_call("", f"grant_type={grant}&client_id=c&client_secret=s".encode(), [])
    assert call.login is None
    assert not call.mentions(["c"])


def test_secret_in_two_places_is_refused() -> None:
    with pytest.raises(LoginError):
        read_call("", f"{GRANT}&client_secret=s".encode(), basic("c:s"))
    with pytest.raises(LoginError):
        read_call(f"{GRANT}&client_secret=s", b"", basic("c:s"))


@pytest.mark.parametrize("form", ["a&" * 200_000, "&".join(["grant_type=x"] * 101)])
def test_form_of_very_many_fields_is_refused(form: str) -> None:
    with pytest.raises(LoginError):
        read_call("", form.encode(), [])


def test_document_of_very_many_fields_is_refused() -> None:
    """A login server may read the last of them."""
    fields = ", ".join(f'"{n}": 0' for n in range(98))
    first = f'{{"grant_type": "client_credentials", "client_id": "a", {fields}'
    assert read_call("", f"{first}}}".encode(), []).login is None
    with pytest.raises(LoginError):
        read_call("", f'{first}, "client_id": "b"}}'.encode(), [])


def test_form_of_a_hundred_fields_is_read() -> None:
    form = "&".join([GRANT, "client_id=c", "client_secret=s", *["a=b"] * 97])
    assert read_call("", form.encode(), []).login is not None


def test_value_may_hold_an_equals_sign() -> None:
    call = read_call("", f"{GRANT}&client_id=c&client_secret=a=b==".encode(), [])
    assert call.login is not None
    assert call.login.secret.decoded == "a=b=="


@pytest.mark.parametrize("text", ["a\n", "\x00", "\x1f", "a\x7fb", "\x80", "\x9f"])
def test_control_character_is_noticed(text: str) -> None:
    assert has_control(text)


@pytest.mark.parametrize("text", ["", " ", "a b", "~", "\xa0", "é€"])
def test_any_other_character_may_be_meant(text: str) -> None:
    assert not has_control(text)


def test_id_is_read_as_it_stood_and_decoded() -> None:
    call = read_call("", GRANT.encode(), basic("a+b:s"))
    assert call.login is not None
    assert call.login.client_ids == ("a b", "a+b")


@pytest.mark.parametrize("secret", ["a+b", "a%2Bb", "a b", "100%", "%41", "é", "plain"])
@pytest.mark.parametrize("place", ["form", "basic"])
def test_secret_is_right_raw_and_encoded(secret: str, place: str) -> None:
    encoded = "".join(f"%{byte:02X}" for byte in secret.encode())
    for written in (secret, encoded):
        if place == "form":
            call = read_call("", f"{GRANT}&client_id=c&client_secret={written}".encode(), [])
        else:
            call = read_call("", GRANT.encode(), basic(f"c:{written}"))
        assert call.login is not None
        assert secret in (call.login.secret.raw, call.login.secret.decoded)


def test_neither_a_secret_nor_a_call_shows_itself() -> None:
    call = read_call("", f"{GRANT}&client_id=c&client_secret=s3cr3t".encode(), [])
    assert "s3cr3t" not in repr(call)
