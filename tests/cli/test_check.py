"""`check` refuses what would only show when the proxy runs."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from proxy.cli.commands import _cli

CONFIG = """
upstream: {{api_url: "https://api.example", login_url: "https://login.example"}}
accounts:
  - {{name: london, client_id: id, client_secret_file: {file}}}
"""


@pytest.mark.parametrize(
    ("secret", "code"), [("s+%c r\n", 0), ("s\r\n", 0), ("a\tb\n", 2), ("a\nb", 2), ("a\x00", 2)]
)
def test_secret_file_may_end_in_a_newline_and_hold_no_other_control_character(
    tmp_path: Path, secret: str, code: int
) -> None:
    file, config = tmp_path / "secret", tmp_path / "proxy.yaml"
    file.write_text(secret, encoding="utf-8", newline="")
    config.write_text(CONFIG.format(file=file), encoding="utf-8")
    result = CliRunner().invoke(_cli, ["check", "--config", str(config)])
    assert result.exit_code == code
    if code:
        assert "accounts[0].client_secret_file: " in result.output
        assert "control character" in result.output.replace("\n", " ")


def test_secret_of_the_environment_is_judged_alike(tmp_path: Path) -> None:
    config = tmp_path / "proxy.yaml"
    text = CONFIG.replace("client_secret_file: {file}", 'client_secret: "a\\tb"')
    config.write_text(text.format(), encoding="utf-8")
    result = CliRunner().invoke(_cli, ["check", "--config", str(config)])
    assert result.exit_code == 2
    assert "accounts[0].client_secret: must not hold a control character" in result.output


INCIDENTS = """
upstream: {{api_url: "https://api.example", login_url: "https://login.example"}}
incidents: {{{keys}, credentials_file: "{file}"}}
"""
DESK = "url: https://desk.example"
USER = '{"username": "u", "password": "p"}'


def checked(folder: Path, keys: str, credentials: str | None) -> tuple[int, str]:
    file, config = folder / "desk.json", folder / "proxy.yaml"
    if credentials is not None:
        file.write_text(credentials, encoding="utf-8")
    config.write_text(INCIDENTS.format(keys=keys, file=file), encoding="utf-8")
    result = CliRunner().invoke(_cli, ["check", "--config", str(config)])
    return result.exit_code, result.output.replace("\n", " ")


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ("url: http://desk.example", "incidents.url: must be https, unless"),
        ("url: http://127.0.0.1.example", "incidents.url: must be https, unless"),
        ("url: 'https://d.example/table?a=1'", "incidents.url: must have no query"),
        ("url: 'https://user:secret@d.example'", "incidents.url: must be an http(s) URL"),
        (f"{DESK}, format: jira", "incidents.format: "),
        (f"{DESK}, fields: {{number: '1'}}", "incidents.fields.number: must not be given"),
        (f"{DESK}, fields: {{u_a: '{{titles}}'}}", "incidents.fields.u_a: {titles} is no"),
        (f"{DESK}, fields: {{u_a: 5}}", "incidents.fields.u_a: must be text"),
        (f"{DESK}, fields: {{u_a: {{b: c}}}}", "incidents.fields.u_a: must be text"),
        (f"{DESK}, fields: {{'U a': x}}", "incidents.fields.U a: must be a column"),
        (f"{DESK}, close: {{state: ''}}", "incidents.close.state: must not be empty"),
        (f"{DESK}, open_after: -1", "incidents.open_after: "),
    ],
    ids=range(12),
)
def test_incidents_that_could_not_be_told_are_refused(
    keys: str, complaint: str, tmp_path: Path
) -> None:
    code, output = checked(tmp_path, keys, USER)
    assert code == 2
    assert complaint in output
    assert "secret" not in output


@pytest.mark.parametrize(
    ("keys", "credentials", "code"),
    [
        (DESK, USER, 0),
        (DESK, '{"bearer": "b"}', 0),
        (DESK, None, 0),
        (DESK, '{"hmac_key": "planted"}', 2),
        (DESK, '{"username": "planted"}', 2),
        (DESK, '{"bearer": "planted\\n"}', 2),
        (DESK, '{"bearer": ""}', 2),
        (DESK, '{"username": "a:planted", "password": "p"}', 2),
        (DESK, "planted", 2),
        (DESK, '["planted"]', 2),
        (f"{DESK}, format: flat", '{"hmac_key": "k"}', 0),
        (f"{DESK}, format: flat", '{"bearer": "planted"}', 2),
        ("url: 'http://127.0.0.1:1/a?b=c', format: flat", '{"hmac_key": "k"}', 0),
        ("url: 'http://[::1]:1'", USER, 0),
        ("url: http://localhost", USER, 0),
    ],
    ids=range(15),
)
def test_credentials_of_the_service_desk_have_the_shape_of_its_format(
    keys: str, credentials: str | None, code: int, tmp_path: Path
) -> None:
    """A file that is not there yet may still come; what is wrong is not shown."""
    found, output = checked(tmp_path, keys, credentials)
    assert found == code, output
    assert ("incidents.credentials_file: " in output) is (code == 2 or credentials is None)
    assert "planted" not in output


PLAIN = """
upstream: {api_url: "https://api.example", login_url: "https://login.example"}
"""


def check_of(tmp_path: Path, text: str, **environ: str) -> tuple[int, str]:
    config = tmp_path / "proxy.yaml"
    config.write_text(text, encoding="utf-8")
    result = CliRunner(env=environ).invoke(_cli, ["check", "--config", str(config)])
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("section", "start", "expected"),
    [
        (
            'accounts: [{name: a, client_id: b, client_secret_file: "{}"}]',
            "warning: accounts[0].client_secret_file: ",
            0,
        ),
        ('admin: {token_file: "{}"}', "warning: admin.token_file: ", 0),
        ('listen: {tls: {cert_file: "{}", key_file: "{}"}}', "listen.tls: ", 2),
    ],
    ids=["secret", "token", "certificate"],
)
def test_a_file_that_is_missing_is_named(
    tmp_path: Path, section: str, start: str, expected: int
) -> None:
    """A secret may still come; without a certificate the proxy cannot start."""
    missing = tmp_path / "missing"
    code, said = check_of(tmp_path, PLAIN + section.replace("{}", str(missing)))
    assert (code, said.startswith(start)) == (expected, True)
    assert "No such file or directory" in said.splitlines()[0]


def test_a_certificate_that_is_none_is_named(tmp_path: Path) -> None:
    pem = tmp_path / "pem"
    pem.write_text("no certificate", encoding="utf-8")
    code, said = check_of(
        tmp_path, f"{PLAIN}listen: {{tls: {{cert_file: {pem}, key_file: {pem}}}}}"
    )
    assert (code, said.partition(": ")[0]) == (2, "listen.tls")


def test_an_authority_that_is_none_is_named(tmp_path: Path) -> None:
    pem = tmp_path / "pem"
    pem.write_text("no certificate", encoding="utf-8")
    text = PLAIN.replace("upstream: {", f"upstream: {{ca_file: {pem}, ")
    code, said = check_of(tmp_path, text)
    assert (code, said.partition(": ")[0]) == (2, "upstream.ca_file")


def test_an_upstream_that_is_the_proxy_itself_is_refused(tmp_path: Path) -> None:
    code, said = check_of(tmp_path, PLAIN.replace("https://api.example", "http://127.0.0.1:8080"))
    assert (code, said.partition(": ")[0]) == (2, "upstream.api_url")


@pytest.mark.parametrize(
    ("section", "key"),
    [
        (
            'accounts: [{name: a, client_id: b, client_secret: "SECRET"}]',
            "accounts[0].client_secret",
        ),
        ('store: {url: "redis://:SECRET@h:1/0"}', "store.url"),
    ],
)
def test_a_secret_in_the_file_itself_is_a_warning(tmp_path: Path, section: str, key: str) -> None:
    code, said = check_of(tmp_path, PLAIN + section)
    assert code == 0
    (line,) = [line for line in said.splitlines() if line.startswith("warning: ")]
    assert line.startswith(f"warning: {key}: the secret itself is in this file")
    assert "SECRET" not in said
    code, said = check_of(tmp_path, PLAIN + section.replace("SECRET", "${PASS}"), PASS="x")
    assert (code, "warning" in said) == (0, False)


def test_keys_that_undo_each_other_are_a_warning(tmp_path: Path) -> None:
    code, said = check_of(tmp_path, PLAIN + "pacing: {max_queue: 10}")
    assert (code, said.startswith("warning: pacing.max_queue: ")) == (0, True)


@pytest.mark.parametrize(
    "option",
    [
        *(["--port", port] for port in ("99999", "-1", "65536")),
        *(["--port", "0", "--interval", seconds] for seconds in ("0", "-1", "nan", "inf")),
        *(["--port", "0", name, "nan"] for name in ("--slow", "--hold")),
    ],
    ids=" ".join,
)
def test_simulate_refuses_numbers_that_make_no_sense_at_once(option: list[str]) -> None:
    result = CliRunner().invoke(_cli, ["simulate", *option])
    assert (result.exit_code, option[-2] in result.output) == (2, True)
