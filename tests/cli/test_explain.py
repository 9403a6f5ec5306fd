"""`explain`: what it shows of a token, what it advises, and how it exits."""

import json
import re
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import jwt
import pytest
from rich.console import Console
from typer.testing import CliRunner

from proxy.cli.commands import _cli
from proxy.cli.explain import CannotExplain, Subject, advice, ask, is_lacking, rows_of, show
from proxy.settings import DEFAULT_ROUTES
from tests.kit.listener import HOST
from tests.kit.upstream import RawUpstream, Reply, free_port

NOW = 1_800_000_000.0
VOICE = "recordings:export"
DIGITAL = "agent_scripting:export"


def token_of(**claims: object) -> str:
    standard = {"iss": "https://login.example", "sub": "0a1b", "client_id": "0a1b"}
    key = "a key that nobody checks, and long enough"
    return jwt.encode({**standard, **claims}, key, "HS256")


def answer_of(token: Mapping[str, Any] | None = None, **others: object) -> dict[str, Any]:
    """What the admin port says of an account whose token was minted 4 min ago."""
    good = {
        "expires_in": 3000.0,
        "scopes": [VOICE],
        "missing": [DIGITAL],
        "next_refresh_in": 38.2,
        "issued_at": NOW - 240,
        "rejected": False,
    }
    state = None if token is None else {**good, **token}
    return {"name": "london", "token": state, "claims": {}, "clock_skew": {}, **others}


def judge(subject: Subject) -> tuple[str, bool]:
    rows = rows_of(DEFAULT_ROUTES, subject.held)
    return advice(subject, rows, NOW), is_lacking(subject, rows, NOW)


def shown(subject: Subject, *, color: bool = False) -> str:
    out = StringIO()
    console = Console(
        file=out, width=120, force_terminal=color, color_system="standard" if color else None
    )
    show(subject, rows_of(DEFAULT_ROUTES, subject.held), NOW, console)
    return out.getvalue()


# What is advised

BOTH = f"{VOICE} {DIGITAL}"
ASKED = "Was {} granted a moment ago? The token was minted {}; {}."
NONE_MISSING = "No scope is missing: a 403 has another reason, such as a role or a division."
OPAQUE = "Opaque token: its scopes cannot be read; GET /api/v2/tokens/me shows them."


@pytest.mark.parametrize(
    ("claims", "sentence", "lacks"),
    [
        (
            {"scope": VOICE, "iat": NOW - 240, "exp": NOW + 3000},
            ASKED.format(DIGITAL, "4 min ago", "get a new one"),
            True,
        ),
        (
            {"scp": []},
            ASKED.format(f"{DIGITAL}, {VOICE}", "before", "get a new one"),
            True,
        ),
        (
            {"permissions": BOTH.split(), "iat": NOW - 60, "exp": NOW + 60},
            NONE_MISSING,
            False,
        ),
        ({"scope": BOTH, "exp": NOW - 7200}, "The token expired 2 h ago: get a new one.", True),
        ({"scope": BOTH, "exp": NOW}, "The token expired 0 s ago: get a new one.", True),
        (
            {"scope": BOTH, "iat": NOW + 300},
            "The issuer clock is +300 s against ours: correct the clocks.",
            False,
        ),
        (
            {"scope": BOTH, "iat": NOW + 60},
            NONE_MISSING,
            False,
        ),
        (
            {"iat": NOW},
            OPAQUE,
            False,
        ),
    ],
)
def test_the_advice_on_a_token(claims: dict[str, object], sentence: str, *, lacks: bool) -> None:
    assert judge(Subject.of_token(token_of(**claims), NOW)) == (sentence, lacks)


REJECTED = {"expires_in": None, "scopes": None, "issued_at": None, "rejected": True}


@pytest.mark.parametrize(
    ("answer", "sentence", "lacks"),
    [
        (
            answer_of({}),
            ASKED.format(DIGITAL, "4 min ago", "next refresh in 38 s"),
            True,
        ),
        (
            answer_of({"missing": [], "next_refresh_in": 80_000.0}),
            ASKED.format(DIGITAL, "4 min ago", "next refresh when a request needs it"),
            True,
        ),
        (
            answer_of({"next_refresh_in": None}),
            f"Fresh tokens still lack {DIGITAL}: grant it, then refresh the account's token.",
            True,
        ),
        (
            answer_of({"scopes": None}),
            OPAQUE,
            False,
        ),
        (
            answer_of({"scopes": [VOICE, DIGITAL]}, clock_skew={"api": 0.4, "login": -90.0}),
            "The login clock is -90 s against ours: correct the clocks.",
            False,
        ),
        (
            answer_of(REJECTED),
            "The login server rejects the credentials: correct the client id or secret.",
            True,
        ),
        (
            answer_of({**REJECTED, "rejected": False}),
            "The login server issues no token; the proxy asks again in 38 s.",
            True,
        ),
        (
            answer_of({**REJECTED, "rejected": False, "next_refresh_in": None}),
            "The login server issues no token; the proxy asks again in a while.",
            True,
        ),
        (
            answer_of(),
            "No secret is configured, so callers' own tokens are sent: explain one of those.",
            False,
        ),
    ],
)
def test_the_advice_on_an_account(answer: dict[str, Any], sentence: str, *, lacks: bool) -> None:
    assert judge(Subject.of_account(answer, NOW)) == (sentence, lacks)


# What is shown


def test_the_needs_of_the_default_routes() -> None:
    rows = rows_of(DEFAULT_ROUTES, frozenset({VOICE}))
    assert [(row.route, row.request[:7], row.scope, row.is_held) for row in rows] == [
        ("exports", "POST", VOICE, True),
        ("exports", "channel", DIGITAL, False),
    ]


def test_claims_ages_and_the_table_are_shown_and_the_token_is_not() -> None:
    token = token_of(scope=VOICE, iat=NOW - 240, exp=NOW + 3 * 3600)
    text = shown(Subject.of_token(token, NOW))
    words = [line.split() for line in text.splitlines()]
    assert ["issuer", "https://login.example"] in words
    assert ["subject", "0a1b"] in words
    assert ["client", "id", "0a1b"] in words
    assert "minted      2027-01-15 07:56:00 UTC, 4 min ago" in text
    assert "expires     2027-01-15 11:00:00 UTC, in 3 h" in text
    (voice,) = [line for line in text.splitlines() if "POST" in line]
    assert VOICE in voice
    assert "yes" in voice
    assert "MISSING" in text
    assert "channel or mediaType: whatsapp, sms" in text
    for part in token.split("."):
        assert part not in text


def test_what_is_missing_is_red() -> None:
    text = shown(Subject.of_token(token_of(scope=VOICE), NOW), color=True)
    red = [line for line in text.splitlines() if "\x1b[31m" in line]
    assert any(DIGITAL in line for line in red)
    assert not any(VOICE in line for line in red)


def test_the_skew_of_each_server_is_shown() -> None:
    answer = answer_of({}, clock_skew={"api": -0.4, "login": 12.0}, claims={"sub": "0a1b"})
    text = shown(Subject.of_account(answer, NOW))
    assert "login clock +12 s against ours" in text
    assert "api clock   +0 s against ours" in text
    assert "token       account london" in text


def test_what_callers_own_tokens_hold_is_unknown() -> None:
    text = shown(Subject.of_account(answer_of(), NOW))
    assert ("unknown" in text, "MISSING" in text) == (True, False)


def test_an_opaque_token_is_not_shown() -> None:
    text = shown(Subject.of_token("opaque-and-planted", NOW))
    assert "opaque token" in text
    assert "planted" not in text
    assert "unknown" in text


def test_claims_that_command_the_terminal_or_make_no_sense() -> None:
    token = token_of(iss="\x1b]0;owned\x07[red]", sub=["a"], iat=-5, exp=9e11, scope=VOICE)
    text = shown(Subject.of_token(token, NOW))
    assert "issuer      ?]0;owned?[red]" in text
    assert "minted      nonsense" in text
    assert "expires     nonsense" in text
    assert "\x1b" not in text


@pytest.mark.parametrize("prefix", ["", "Bearer ", "bearer  ", "\n "])
def test_a_token_as_it_may_be_copied(prefix: str) -> None:
    assert Subject.of_token(f"{prefix}{token_of(scope=VOICE)}\n", NOW).held == frozenset({VOICE})


@pytest.mark.parametrize("text", ["", " \n", "two tokens here", "tok\xe9n"])
def test_what_is_no_token(text: str) -> None:
    with pytest.raises(CannotExplain):
        Subject.of_token(text, NOW)


def test_an_account_without_a_valid_token_has_none() -> None:
    text = shown(Subject.of_account(answer_of(REJECTED), NOW))
    assert "token       none: account london has no valid one" in text


@pytest.mark.parametrize(("skew", "told"), [(-0.4, "+0 s"), (0.4, "+0 s"), (-0.6, "-1 s")])
def test_no_clock_is_off_by_minus_zero(skew: float, told: str) -> None:
    answer = answer_of({}, clock_skew={"api": skew})
    assert f"api clock   {told} against ours" in shown(Subject.of_account(answer, NOW))


# The command

CONFIG = "upstream: {api_url: http://127.0.0.1:1, login_url: http://127.0.0.1:1}\n"


@pytest.fixture
def config(tmp_path: Path) -> str:
    (tmp_path / "proxy.yaml").write_text(CONFIG)
    return str(tmp_path / "proxy.yaml")


def run(*arguments: str, stdin: str = "") -> tuple[int, str]:
    result = CliRunner().invoke(_cli, ["explain", *arguments], input=stdin)
    assert not isinstance(result.exception, Exception)
    return result.exit_code, result.output


def test_the_command_judges_a_file_or_standard_input(config: str, tmp_path: Path) -> None:
    token = token_of(scope=VOICE)
    (tmp_path / "token").write_text(token)
    runs = [
        run("--config", config, "--token-file", str(tmp_path / "token")),
        run("--config", config, "--token-file", "-", stdin=token),
        run("--config", config, "-", stdin=f"Bearer {token}\n"),
    ]
    for code, output in runs:
        assert code == 1
        assert ASKED.format(DIGITAL, "before", "get a new one") in output
        assert token not in output
    assert run("--config", config, "-", stdin=token_of(scope=BOTH))[0] == 0


def test_the_command_used_in_a_wrong_way(config: str, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    wrong: list[list[str]] = [
        [],
        ["--config", config],
        ["--token-file", "-"],
        ["-"],
        ["token-as-an-argument", "--config", config],
        ["--config", config, "--token-file", "-", "-"],
        ["--account", "london", "--config", config],
        ["--account", "london", "-"],
        ["--config", config, "--token-file", missing],
        ["--config", missing, "-"],
        ["--account", "london", "--url", f"http://{HOST}:{free_port()}"],
        ["--account", "london", "--url", "nonsense"],
    ]
    for arguments in wrong:
        code, output = run(*arguments, stdin="a-token")
        assert (arguments, code) == (arguments, 2)
        assert output
        assert not re.search(r"\w(Error|Exception)\b", output)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "No such file or directory"), (b"\xff", "it is not UTF-8 text")],
)
def test_token_that_cannot_be_read_is_told_in_a_sentence(
    config: str, tmp_path: Path, content: bytes | None, reason: str
) -> None:
    token = tmp_path / "token"
    if content is not None:
        token.write_bytes(content)
    code, output = run("--config", config, "--token-file", str(token))
    assert (code, output) == (2, f"the token cannot be read: {reason}\n")


# What is asked


@pytest.mark.parametrize(
    "answer",
    [
        b"<html>",
        b"[]",
        b"{}",
        json.dumps(answer_of({"expires_in": "soon"}, routes=[])).encode(),
        json.dumps(answer_of({}, routes=[{"name": "x"}])).encode(),
        json.dumps(answer_of({}, routes=[], clock_skew=[])).encode(),
    ],
)
async def test_what_is_asked_is_no_proxy(answer: bytes) -> None:
    reply = Reply(200, [("Content-Type", "application/json")], answer)
    async with RawUpstream(default=reply) as other:
        with pytest.raises(CannotExplain, match="does not answer like a proxy"):
            await ask(other.url, "london", NOW)
