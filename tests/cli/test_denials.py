"""`explain --response-file`: what a saved 403 says, in words."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from proxy.cli.commands import _cli
from proxy.cli.denials import advice, is_lacking
from proxy.rules.denials import MissingHere

VIEW, EDIT = "recording:recording:view", "recording:recording:edit"
NEEDED = "the permissions that the call needs"
AFTER = "; then refresh the account's token. It may take minutes until a new token carries it."


def found(*permissions: str, divisions: tuple[str, ...] = (), is_any: bool = False) -> MissingHere:
    return MissingHere(
        status=403,
        code="missing.permissions",
        permissions=permissions,
        divisions=divisions,
        any_is_enough=is_any,
    )


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (found(VIEW), f"Give the client a role with {VIEW}{AFTER}"),
        (found(VIEW, EDIT), f"Give the client a role with all of {VIEW}, {EDIT}{AFTER}"),
        (
            found(VIEW, EDIT, is_any=True),
            f"Give the client a role with one of {VIEW}, {EDIT}{AFTER}",
        ),
        (
            found(VIEW, divisions=("Home",)),
            f"Give the client a role with {VIEW}, in the division Home{AFTER}",
        ),
        (
            found(divisions=("Home", "Sales")),
            f"Give the client a role with {NEEDED}, in the divisions Home, Sales{AFTER}",
        ),
        (
            found(),
            "A permission is missing, and the answer does not say which: ask the vendor.",
        ),
    ],
    ids=["one", "all", "any", "division", "divisions", "none"],
)
def test_what_is_missing_and_what_to_do(answer: MissingHere, sentence: str) -> None:
    assert advice(answer) == sentence
    assert is_lacking(answer)


def test_an_answer_that_names_nothing() -> None:
    answer = MissingHere(status=403, code="not.authorized")
    assert not is_lacking(answer)
    assert advice(answer) == (
        "The answer names no permission: look at the client's roles and their divisions."
    )


def test_another_status_is_no_denial() -> None:
    answer = MissingHere(status=429, code="too.many.requests")
    assert advice(answer) == "That is a 429 and not a 403: it says nothing about permissions."


# The command


def run(*arguments: str, stdin: str | None = None) -> tuple[int, str]:
    result = CliRunner().invoke(_cli, ["explain", *arguments], input=stdin)
    return result.exit_code, result.output


DENIED = json.dumps(
    {
        "code": "missing.division.permission",
        "status": 403,
        "message": f"You are missing the permission {VIEW} in division 'Home\x1b'.",
    }
)


def test_the_command_reads_a_file_or_standard_input(tmp_path: Path) -> None:
    file = tmp_path / "response"
    file.write_text(f"HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\n\r\n{DENIED}")
    code, output = run("--response-file", str(file))
    assert code == 1
    assert run("--response-file", "-", stdin=DENIED) == (code, output)
    assert output.splitlines()[0] == "answer      403 missing.division.permission"
    assert output.splitlines()[1] == f"missing     {VIEW}"
    assert output.splitlines()[2] == "divisions   Home?"
    assert "\x1b" not in output


def test_the_command_exits_0_where_nothing_is_named() -> None:
    code, output = run("--response-file", "-", stdin='{"status": 403, "code": "not.authorized"}')
    assert code == 0
    assert "names no permission" in output


def test_a_response_beside_a_token_is_shown_first(tmp_path: Path) -> None:
    config, token = tmp_path / "proxy.yaml", tmp_path / "token"
    config.write_text("upstream: {api_url: https://a.example, login_url: https://l.example}\n")
    token.write_text("an-opaque-token")
    code, output = run(
        *("--config", str(config), "--token-file", str(token), "--response-file", "-"),
        stdin=DENIED,
    )
    assert code == 1
    assert output.index("missing.division.permission") < output.index("opaque token")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "the response cannot be read: No such file or directory"),
        (b"\xff", "the response cannot be read: it is not UTF-8 text"),
        (b"\n", "the response is empty"),
    ],
    ids=["no file", "bytes", "empty"],
)
def test_a_response_of_no_use_is_told(content: bytes | None, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "response"
    if content is not None:
        file.write_bytes(content)
    assert run("--response-file", str(file)) == (2, f"{reason}\n")


def test_only_one_can_be_standard_input(tmp_path: Path) -> None:
    code, output = run("--config", str(tmp_path), "-", "--response-file", "-", stdin="x")
    assert code == 2
    assert "only one of token and response can be standard input" in " ".join(output.split())
