"""What release 0.1 accepted starts unchanged: its files are kept in release_0_1/."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import SecretStr
from typer.testing import CliRunner

from proxy.cli.commands import _cli
from proxy.clock import SystemClock
from proxy.service.lifecycle import running
from proxy.settings import CallerKey, load
from tests.kit.certificates import Authority
from tests.kit.client import exchange, parse_response, port_of
from tests.kit.listener import HOST

FILES = sorted((Path(__file__).parent / "release_0_1").glob("*.yaml"))
FREE_PORTS = {"EXPORT_PROXY__LISTEN__PORT": "0", "EXPORT_PROXY__ADMIN__PORT": "0"}


def leaves(
    value: Any, path: tuple[str | int, ...] = ()
) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Every scalar of a document, with the keys and places that lead to it."""
    if isinstance(value, Mapping) and value:
        for key, each in value.items():
            yield from leaves(each, (*path, key))
    elif isinstance(value, list) and value:
        for place, each in enumerate(value):
            yield from leaves(each, (*path, place))
    else:
        yield path, value


def found(settings: Any, path: tuple[str | int, ...]) -> Any:
    """What stands there in the settings, as the file would write it."""
    for step in path:
        settings = (
            settings[step] if hasattr(settings, "__getitem__") else getattr(settings, str(step))
        )
    match settings:
        case CallerKey():
            return settings.sha256
        case SecretStr():
            return settings.get_secret_value()
        case Path():
            return str(settings)
        case tuple():
            return list(settings)
        case _:
            return settings


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_what_a_file_of_0_1_says_is_still_obeyed(file: Path) -> None:
    settings = load(file, {})
    document = yaml.safe_load(file.read_text(encoding="utf-8"))
    for path, value in leaves(document):
        assert found(settings, path) == value, path


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_check_accepts_a_file_of_0_1(file: Path, tmp_path: Path) -> None:
    """The secrets and certificates that it names are there."""
    text = file.read_text(encoding="utf-8")
    document = yaml.safe_load(text)
    for account in document.get("accounts") or ():
        if "client_secret_file" in account:
            account["client_secret_file"] = str(tmp_path / "secret")
    if document.get("admin", {}).get("token_file"):
        document["admin"]["token_file"] = str(tmp_path / "secret")
    if document.get("listen", {}).get("tls"):
        pair = Authority(tmp_path).issue("proxy")
        document["listen"]["tls"] = {
            "cert_file": f"{pair.cert_file}",
            "key_file": f"{pair.key_file}",
        }
    (tmp_path / "secret").write_text("secret", encoding="utf-8")
    here = tmp_path / file.name
    here.write_text(yaml.safe_dump(document), encoding="utf-8")
    result = CliRunner().invoke(_cli, ["check", "--config", str(here)])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("name", ["proxy", "demo"])
async def test_the_program_starts_with_a_file_of_0_1(name: str) -> None:
    (file,) = (file for file in FILES if file.stem == name)
    async with running(load(file, FREE_PORTS), SystemClock()) as proxy:
        head = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n"
        answer = parse_response(await exchange(HOST, port_of(proxy.admin_url), head))
    assert answer.status == 200
