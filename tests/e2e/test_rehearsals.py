"""Each trouble that the README rehearses is there to be seen, with the commands it gives."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_snippets import README, Program, snippet, started_as_in
from tests.kit.client import exchange, parse_response
from tests.kit.listener import HOST

SERVE = snippet(README, "sh", '"name": "mine"')
OPTIONS = re.findall(r"^\| `(--[^`]+)` \|", README, re.MULTILINE)
HELD = 3.0  # seconds; the README's thirty would be a long test
LOG_IN = b"grant_type=client_credentials&client_id=any-id&client_secret=any-secret"


@asynccontextmanager
async def rehearsing(option: str, folder: Path) -> AsyncIterator[Program]:
    """Simulator and proxy as the README starts them, the simulator with one of its options."""
    page = f"```sh\nexport-proxy simulate --port 8081 {option} &\n{_one_line(SERVE)}```\n"
    async with started_as_in(page, "export-proxy simulate", folder) as running:
        yield running


def _one_line(commands: str) -> str:
    return re.sub(r"\\\n\s*", "", commands)


async def asked(port: int, target: str, body: bytes, *fields: str) -> tuple[int, dict[str, Any]]:
    head = [f"POST {target} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *fields, "", ""]
    answer = parse_response(await exchange(HOST, port, "\r\n".join(head).encode() + body))
    return answer.status, json.loads(answer.body)


async def log_in(running: Program) -> tuple[int, dict[str, Any]]:
    form = "Content-Type: application/x-www-form-urlencoded"
    return await asked(running.listen, "/oauth/token", LOG_IN, form)


async def export(running: Program, number: int = 0) -> tuple[int, dict[str, Any]]:
    _, token = await log_in(running)
    field = f"Authorization: Bearer {token['access_token']}"
    body = json.dumps({"action": "EXPORT", "number": number}).encode()
    return await asked(running.listen, "/api/v2/recording/jobs", body, field)


def test_the_table_has_a_row_for_each_trouble() -> None:
    assert [option.split()[0] for option in OPTIONS] == ["--hold", "--scopes", "--secret", "--slow"]


async def test_a_hold_is_waited_for(tmp_path: Path) -> None:
    """The API refuses once, and then every export is accepted."""
    async with rehearsing(f"--hold {HELD:.0f}", tmp_path) as running:
        answers = await asyncio.gather(*(export(running, number) for number in range(3)))
        report = await exchange(
            HOST, running.api, b"GET /simulator/report HTTP/1.1\r\nHost: x\r\n\r\n"
        )
    assert [status for status, _ in answers] == [202] * 3
    assert json.loads(parse_response(report).body)["accounts"]["any-id"]["refused"] >= 1


@pytest.mark.needs("curl")
async def test_a_missing_scope_is_named_and_can_be_granted(tmp_path: Path) -> None:
    (option,) = (one for one in OPTIONS if one.startswith("--scopes"))
    async with rehearsing(option, tmp_path) as running:
        status, problem = await export(running)
        granted = await running.run(
            "/bin/sh", "-ec", running.adapted(snippet(README, "sh", "grants"))
        )
    assert (status, problem["type"]) == (403, "urn:export-proxy:missing-scope")
    assert problem["required"] == ["recordings:export"]
    assert json.loads(granted)["scope"] == "recordings:export"


async def test_a_wrong_secret_is_refused_by_the_login_server(tmp_path: Path) -> None:
    (option,) = (one for one in OPTIONS if one.startswith("--secret"))
    async with rehearsing(option, tmp_path) as running:
        status, error = await log_in(running)
    assert status == 502
    assert "invalid_client" in error["error_description"]


async def test_a_slow_api_takes_its_time(tmp_path: Path) -> None:
    """The log-in is not slowed, the export is, and the answer says where the time went."""
    async with rehearsing("--slow 1.5", tmp_path) as running:
        _, token = await log_in(running)
        head = (
            "POST /api/v2/recording/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n"
            f"Authorization: Bearer {token['access_token']}\r\n\r\n{{}}"
        )
        answer = parse_response(await exchange(HOST, running.listen, head.encode()))
    assert answer.status == 202
    (timing,) = answer.values("Server-Timing")
    upstream = re.search(rb"upstream;dur=([0-9.]+)", timing)
    assert upstream is not None
    assert float(upstream[1]) >= 1500
