"""Whatever is sent, by whomever, no secret comes out again: not in a log, not on a page.

The program itself at debug level, its every byte of output searched. What it is sent are the rows
of hostile/, with secrets in the places where an error would repeat them (CWE-117, CWE-209,
CWE-532).
"""

import asyncio
import json
import os
import sys
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.e2e.hostile import answers, incoming, tokens
from tests.kit.client import exchange, parse_response, port_of
from tests.kit.listener import HOST
from tests.kit.process import Process, document_for, serving
from tests.kit.proxy import proxy_for
from tests.kit.upstream import (
    Garbage,
    RawUpstream,
    ReadThenReset,
    RecordedRequest,
    Reply,
    Step,
)

CLIENT_SECRET = "planted-client-secret"
MANAGED = "planted-managed-token"
REDIS_PASSWORD = "planted-redis-password"
ADMIN_TOKEN = "planted-admin-token"
QUERY = "planted-query-secret"
PLANTED = (incoming.SECRET.decode(), CLIENT_SECRET, MANAGED, REDIS_PASSWORD, ADMIN_TOKEN, QUERY)
ACCOUNT = {"name": "london", "client_id": "id", "client_secret": CLIENT_SECRET}
PAGES = ("/metrics", "/status", "/status.json", "/healthz", "/readyz", "/accounts/london", "/none")
LOUD = {"level": "debug", "max_lines_per_second": 100_000}


def check_silent(text: str, planted: tuple[str, ...] = PLANTED) -> None:
    for secret in planted:
        for form in (secret, quote(secret, safe=""), secret.encode().hex()):
            assert form not in text


async def pages(proxy: Process) -> str:
    return "".join([repr(await proxy.ask(path)) for path in PAGES])


async def send(proxy: Process, data: bytes) -> bytes:
    """Send, and return what comes within a short while."""
    try:
        return await exchange(HOST, proxy.port, data, timeout=4)
    except TimeoutError:
        return b""


def granting(request: RecordedRequest) -> Step:
    if request.target.startswith(b"/oauth/token"):
        grant = {"access_token": MANAGED, "token_type": "bearer", "expires_in": 86_400}
        return Reply(200, body=json.dumps(grant).encode())
    return Reply(200)


async def test_no_request_gets_a_secret_told(tmp_path: Path) -> None:
    """Every hostile request, by a caller and on the admin port; no traceback for any of them."""
    limits = {"max_body": incoming.MAX_BODY, "max_header": incoming.MAX_HEADER}
    async with RawUpstream(granting) as upstream:
        document = document_for(
            upstream.url, accounts=[ACCOUNT], limits={**limits, "header_timeout": 1}, log=LOUD
        )
        async with serving(tmp_path, document) as proxy:
            rows = [row for table in incoming.TABLES.values() for row in table.values()]
            raw = await asyncio.gather(*(send(proxy, row.sent) for row in rows))
            everything = await pages(proxy)
    refusals = [answer for row, answer in zip(rows, raw, strict=True) if not row.seen]
    check_silent("".join(map(repr, refusals)) + everything + proxy.stderr)
    assert "Traceback" not in proxy.stderr
    assert len(proxy.logged("request")) > 50


async def test_no_answer_gets_a_secret_told(tmp_path: Path) -> None:
    """Nor does an error of the HTTP client, whose `repr` would show the request's fields."""
    rows = [row for table in answers.TABLES.values() for row in table.values()]
    steps: list[Step] = [*(Garbage(row.sent) for row in rows), ReadThenReset(), Garbage(b"")]
    pending = iter(steps)

    def script(request: RecordedRequest) -> Step:
        if request.target.startswith(b"/oauth/token"):
            return granting(request)
        return next(pending, Reply(200))

    async with RawUpstream(script) as upstream:
        document = document_for(upstream.url, accounts=[ACCOUNT], log=LOUD)
        async with serving(tmp_path, document) as proxy:
            raw = [
                await exchange(HOST, proxy.port, incoming.post(b"Content-Length: 2", body=b"{}"))
                for _ in steps
            ]
            everything = await pages(proxy)
    check_silent("".join(map(repr, raw)) + everything + proxy.stderr)
    assert "Traceback" not in proxy.stderr


async def test_no_answer_names_a_token_or_quotes_why_it_was_refused(tmp_path: Path) -> None:
    keys = tokens.Keys()
    made = [
        row.make(keys)
        for name, table in tokens.TABLES.items()
        for row in table.values()
        if name != "key"
    ]

    def script(request: RecordedRequest) -> Step:
        return Reply(200, body=keys.published) if request.target == b"/keys" else granting(request)

    async with RawUpstream(script) as upstream:
        identity = {
            "issuer": tokens.ISSUER,
            "audience": tokens.AUDIENCE,
            "jwks_url": f"{upstream.url}/keys",
        }
        document = document_for(upstream.url, accounts=[ACCOUNT], identity=identity, log=LOUD)
        async with serving(tmp_path, document) as proxy:
            raw = [
                await send(proxy, incoming.get().replace(incoming.SECRET, token.encode()))
                for token in made
            ]
            everything = await pages(proxy)
    parts = tuple({part for token in made for part in token.split(".") if len(part) > 40})
    check_silent("".join(map(repr, raw)) + everything + proxy.stderr, (*PLANTED, *parts))
    assert "Traceback" not in proxy.stderr


async def test_a_query_is_never_logged(tmp_path: Path) -> None:
    """Secrets are put there by those who know no better."""
    targets = [
        f"{incoming.USERS.decode()}?access_token={QUERY}",
        f"/nowhere?access_token={QUERY}",
        f"http://h{incoming.USERS.decode()}?access_token={QUERY}",
        f"http://h?access_token={QUERY}",
        f"//bad?access_token={QUERY}",
        f"?access_token={QUERY}",
        f"/oauth/token?access_token={QUERY}",
    ]
    async with (
        RawUpstream() as upstream,
        serving(tmp_path, document_for(upstream.url, log=LOUD)) as proxy,
    ):
        for target in targets:
            await send(proxy, incoming.get(target.encode()))
        everything = await pages(proxy)
    check_silent(everything + proxy.stderr)
    assert len(proxy.logged("request")) >= len(targets) - 1


async def test_no_repeat_gets_a_secret_told(tmp_path: Path) -> None:
    """Neither the body nor the key nor the token of a request that comes again, nor its answer."""
    planted = ("planted-key", "planted-body", "planted-answer", incoming.SECRET.decode())
    lost, answered, fails = b'{"a": "planted-body-1"}', b'{"a": "planted-body-2"}', b"planted-body"

    def script(request: RecordedRequest) -> Step:
        match request.body:
            case b'{"a": "planted-body-1"}':
                return ReadThenReset()
            case b'{"a": "planted-body-2"}':
                return Reply(202, body=b"planted-answer", delay=0.3)
            case _:
                return Reply(502, body=b"planted-answer")

    def post(body: bytes, key: bytes) -> bytes:
        fields = (b"Idempotency-Key: planted-key" + key, b"Content-Length: %d" % len(body))
        data = incoming.post(*fields, body=body).split(b" ", 2)
        return b" ".join([data[0], b"/api/v2/recordings/exports", data[2]])

    async with RawUpstream(script) as upstream:
        document = document_for(upstream.url, pacing={"interval": 0.05}, log=LOUD)
        async with serving(tmp_path, document) as proxy:
            refused = [await send(proxy, post(lost, b"1")) for _ in range(2)]
            joined = await asyncio.gather(*(send(proxy, post(answered, b"2")) for _ in range(2)))
            replayed = await send(proxy, post(answered, b"2"))
            refused.append(await send(proxy, post(lost, b"2")))
            await send(proxy, post(fails, b"3"))
            refused.append(await send(proxy, post(fails, b"3")))
            everything = await pages(proxy)
    assert [parse_response(raw).status for raw in refused] == [502, 409, 422, 409]
    assert [parse_response(raw).status for raw in (*joined, replayed)] == [202] * 3
    for outcome in ("joined", "replayed", "in_doubt", "reused"):
        assert f'outcome="{outcome}"' in everything
    check_silent("".join(map(repr, refused)) + everything + proxy.stderr, planted)


async def test_what_a_caller_writes_stays_one_line_and_in_its_field(tmp_path: Path) -> None:
    """Quotes, line separators, escapes and bytes that are no text do not forge a record."""
    agents = [
        b'"} {"level": "error", "event": "forged',
        "a\N{LINE SEPARATOR}b\N{NEXT LINE}c".encode(),
        b"\xff\xfe\xc0\x80",
        b"a\tb",
        b"\\n\\u000a",
        b"x" * 3000,
    ]
    async with (
        RawUpstream() as upstream,
        serving(tmp_path, document_for(upstream.url, log=LOUD)) as proxy,
    ):
        for agent in agents:
            data = incoming.get(incoming.USERS, b"User-Agent: " + agent)
            assert parse_response(await send(proxy, data)).status == 200
        await send(proxy, incoming.get(b"/nowhere/%1b[31m/%0a"))
    lines = proxy.logged("request")  # each line of the log is one JSON object
    assert len(lines) == len(agents) + 1
    assert not any(line.get("event") == "forged" for line in proxy.log)
    assert proxy.stderr.isascii()
    assert "\x1b" not in proxy.stderr
    assert lines[0]["user_agent"] == agents[0].decode()
    assert len(lines[-2]["user_agent"]) <= 256


async def test_no_refusal_names_the_software_or_the_hosts_inside(tmp_path: Path) -> None:
    """Neither versions nor where the API is; to fingerprint is the first step (CWE-200)."""
    async with RawUpstream(default=Garbage(b"SSH-2.0\r\n\r\n")) as upstream:
        document = document_for(upstream.url, retry={"max_attempts": 1})
        async with serving(tmp_path, document) as proxy:
            raw = [
                await send(proxy, data)
                for data in (
                    b"\0\r\n\r\n",
                    incoming.get(b"//x"),
                    incoming.get(b"/nowhere"),
                    incoming.get(b"/api/v2/x", b"Expect: tea"),
                    incoming.get().replace(b"Bearer", b"Basic"),
                    incoming.post(b"Content-Length: 99999999"),
                    incoming.post(b"Content-Length: 0"),
                )
            ]
    for answer in raw:
        response = parse_response(answer)
        text = repr((response.headers, response.body)).lower()
        assert response.status >= 400
        assert response.values("server") == []
        for word in ("aiohttp", "python", "traceback", "file ", HOST, str(upstream.port)):
            assert word not in text


async def test_nobody_learns_of_anothers_wait() -> None:
    """One account is on hold for long; a stranger's answers tell of the stranger alone."""

    def script(request: RecordedRequest) -> Step:
        is_held = request.values("Authorization") == [b"Bearer held"]
        return Reply(429, [("Retry-After", "200")]) if is_held else Reply(200)

    def export(token: bytes, *fields: bytes) -> bytes:
        data = incoming.get(b"/api/v2/recordings/exports", *fields)
        return data.replace(incoming.SECRET, token)

    async with (
        RawUpstream(script) as upstream,
        proxy_for(upstream.url, pacing={"interval": 3}) as proxy,
    ):
        port = port_of(proxy.url)
        held, free, refused = [
            parse_response(await exchange(HOST, port, data))
            for data in (export(b"held"), export(b"free"), export(b"free", b"Prefer: wait=1"))
        ]
    assert held.status == 429
    assert int(held.values("Retry-After")[0]) > 100
    assert (free.status, refused.status) == (200, 429)
    assert b"hold;dur=0.0," in free.values("Server-Timing")[0]
    assert json.loads(refused.body)["predicted_wait"] <= 3
    assert int(refused.values("Retry-After")[0]) <= 4


# The program, as others on the machine see it

CONFIG = """
upstream: {api_url: "http://127.0.0.1:9", login_url: "http://127.0.0.1:9"}
accounts:
  - {name: london, client_id: id, client_secret: "${LONDON_SECRET}"}
store: {url: "redis://:%s@127.0.0.1:9/0"}
"""
WRONG = """
upstream: {api_url: "http://user:${LONDON_SECRET}@127.0.0.1:9"}
accounts:
  - {name: london, client_id: id, client_secret: "${LONDON_SECRET}", keys: ["${LONDON_SECRET}"]}
store: {url: "redis:/:%s-redis-password@127.0.0.1"}
nonsense: %s-redis-password
"""


@pytest.mark.parametrize(
    ("command", "config", "code"),
    [("--help", CONFIG, 0), ("schema", CONFIG, 0), ("check", CONFIG, 0), ("check", WRONG, 2)],
)
async def test_no_command_shows_a_secret(
    command: str, config: str, code: int, tmp_path: Path
) -> None:
    """Of a value that is wrong the key is named, and not the value."""
    file = tmp_path / "proxy.yaml"
    file.write_text(config.replace("%s", "planted" if config is WRONG else REDIS_PASSWORD))
    arguments = [command, "--config", str(file)] if command == "check" else [command]
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "proxy", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "LONDON_SECRET": CLIENT_SECRET},
    )
    said = (await child.communicate())[0].decode()
    assert (child.returncode, bool(said)) == (code, True)
    check_silent(said)


async def test_no_secret_is_on_the_command_line(tmp_path: Path) -> None:
    environ = {"LONDON_SECRET": CLIENT_SECRET}
    async with RawUpstream(granting) as upstream:
        account = {**ACCOUNT, "client_secret": "${LONDON_SECRET}"}
        document = document_for(upstream.url, accounts=[account])
        async with serving(tmp_path, document, environ=environ) as proxy:
            check_silent(await asyncio.to_thread(Path(f"/proc/{proxy.pid}/cmdline").read_text))
            check_silent(proxy.stderr)
