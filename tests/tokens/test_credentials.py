"""A secret is read when it is needed, compared in constant time, and shown nowhere."""

from pathlib import Path

import pytest

from proxy.settings import Account
from proxy.tokens.credentials import BadSecretError, Credentials, SecretUnreadableError

SECRET = "s3cret-planted"


def in_settings() -> Credentials:
    return Credentials.of(
        Account.model_validate({"name": "a", "client_id": "id", "client_secret": SECRET})
    )


def in_file(file: Path) -> Credentials:
    return Credentials.of(
        Account.model_validate({"name": "a", "client_id": "id", "client_secret_file": str(file)})
    )


async def test_a_secret_in_the_settings() -> None:
    credentials = in_settings()
    assert credentials.client_id == "id"
    assert await credentials.read_secret() == SECRET


@pytest.mark.parametrize("text", [SECRET, f"{SECRET}\n", f"  {SECRET} \r\n\n"])
async def test_a_secret_in_a_file_without_the_space_around_it(tmp_path: Path, text: str) -> None:
    file = tmp_path / "secret"
    file.write_text(text, encoding="utf-8")
    assert await in_file(file).read_secret() == SECRET


async def test_a_file_is_read_again_each_time(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("old", encoding="utf-8")
    credentials = in_file(file)
    before = await credentials.fingerprint()
    assert await credentials.match("old")
    file.write_text("new", encoding="utf-8")
    assert await credentials.read_secret() == "new"
    assert await credentials.match("new")
    assert not await credentials.match("old")
    assert await credentials.fingerprint() not in (before, None)
    file.write_text("old\n", encoding="utf-8")
    assert await credentials.fingerprint() == before


@pytest.mark.parametrize("wrong", ["", SECRET[:-1], SECRET + "x", SECRET.upper(), "é", "\x00"])
async def test_another_secret_does_not_match(wrong: str) -> None:
    assert await in_settings().match(SECRET)
    assert not await in_settings().match(wrong)


@pytest.mark.parametrize("control", ["\t", "\x00", "\x1b", "\x7f", "\x85"])
async def test_a_file_with_a_control_character_holds_no_secret(
    tmp_path: Path, control: str
) -> None:
    file = tmp_path / "secret"
    for text in (f"a{control}b", f"a{control}", f"{control}a", f"a{control}\n"):
        file.write_text(text, encoding="utf-8", newline="")
        with pytest.raises(BadSecretError, match="control character"):
            await in_file(file).read_secret()


@pytest.mark.parametrize("content", [None, b"", b" \n", b"\xff\xfe" + SECRET.encode()])
async def test_no_secret_to_read(tmp_path: Path, content: bytes | None) -> None:
    """A missing file, an empty one, and one that is no text."""
    file = tmp_path / "secret"
    if content is not None:
        file.write_bytes(content)
    credentials = in_file(file)
    with pytest.raises(SecretUnreadableError) as caught:
        await credentials.read_secret()
    assert SECRET not in f"{caught.value} {caught.value!r}"
    assert caught.value.__cause__ is None
    with pytest.raises(SecretUnreadableError):
        await credentials.match("")
    assert await credentials.fingerprint() is None


async def test_a_directory_is_no_secret(tmp_path: Path) -> None:
    with pytest.raises(SecretUnreadableError, match="cannot be read: it is a directory"):
        await in_file(tmp_path).read_secret()


def test_nothing_shows_the_secret(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(SECRET, encoding="utf-8")
    for credentials in (in_settings(), in_file(file)):
        assert SECRET not in f"{credentials} {credentials!r}"
