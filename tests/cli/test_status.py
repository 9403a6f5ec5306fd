"""`status`: the command, and what it says of a proxy that runs, that is away, and that is none."""

import asyncio
import json
from io import StringIO

import pytest
from rich.console import Console
from typer.testing import CliRunner

from proxy.cli import status
from proxy.cli.admin_client import NoAnswer
from proxy.cli.commands import _cli
from proxy.clock import SystemClock
from tests.kit.client import exchange, parse_response, port_of
from tests.kit.listener import HOST
from tests.kit.proxy import proxy_for
from tests.kit.status import HOLD, account_of, answer_of, in_every_trouble, row_of
from tests.kit.upstream import Hang, RawUpstream, Reply, free_port

EXPORTS = "/api/v2/recordings/exports"


def test_a_pipe_gets_each_remark_in_one_line() -> None:
    out = StringIO()
    status.show(answer_of(*in_every_trouble(1)), Console(file=out, highlight=False))
    lines = out.getvalue().splitlines()
    assert f"held-0: on hold - {HOLD['advice']}" in lines
    assert "\x1b" not in out.getvalue()


# A running proxy


@pytest.mark.parametrize(
    ("reply", "complaint"),
    [
        (Reply(404), "answers 404"),
        (Reply(200, [("Content-Type", "application/json")], b"[]"), "not answer like a proxy"),
        (Reply(200, [("Content-Type", "application/json")], b"{}"), "not answer like a proxy"),
        (Reply(200, [("Content-Type", "application/json")], b"\xff"), "not answer like a proxy"),
        (Reply(200, [("Content-Type", "text/html")], b"x"), "not answer like a proxy"),
    ],
)
async def test_what_is_no_proxy_is_told_so(reply: Reply, complaint: str) -> None:
    async with RawUpstream(default=reply) as server:
        with pytest.raises(NoAnswer, match=complaint):
            await status.ask(server.url)


def test_the_command_exits_2_without_a_listener() -> None:
    result = CliRunner().invoke(_cli, ["status", "--url", f"http://{HOST}:{free_port()}"])
    assert result.exit_code == 2
    assert "cannot be reached: Connection refused" in result.output


async def test_the_command_shows_a_running_proxy() -> None:
    accounts = [{"name": "london", "client_id": "id"}]
    async with (
        RawUpstream(default=Reply(201)) as upstream,
        proxy_for(upstream.url, accounts=accounts, pacing={"interval": 0.01}) as proxy,
    ):
        port = port_of(proxy.url)
        head = f"POST {EXPORTS} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer t\r\n\r\n"
        assert parse_response(await exchange(HOST, port, head.encode())).status == 201
        arguments = ["status", "--url", proxy.admin_url]
        result = await asyncio.to_thread(CliRunner().invoke, _cli, arguments)
    assert result.exit_code == 0
    assert row_of(result.output, "other")[:3] == ["other", "exports", "0"]
    assert row_of(result.output, "london")[0] == "london"


class Impatient(SystemClock):
    """Waits only for other tasks that are due."""

    async def sleep_until(self, when: float) -> None:
        assert when > 0
        await super().sleep_until(self.monotonic())


async def test_watching_shows_what_changes_and_outlives_a_proxy_that_is_away() -> None:
    out = StringIO()
    console = Console(file=out, width=120, force_terminal=True, color_system=None)
    answers = iter([answer_of(account_of("one-account")), None, answer_of(account_of("another"))])

    def reply(_: object) -> Reply | Hang:
        answer = next(answers, ...)
        if answer is ...:
            return Hang()
        if answer is None:
            return Reply(503)
        body = json.dumps(answer).encode()
        return Reply(200, [("Content-Type", "application/json")], body)

    async with RawUpstream(reply) as server:
        watching = asyncio.get_running_loop().create_task(
            status.watch(server.url, console, Impatient())
        )
        await server.received(4, within=15)
        watching.cancel()
        await asyncio.wait([watching])
    text = out.getvalue()
    assert (
        text.index("one-account") < text.index("answers 503; asking again") < text.index("another")
    )


async def test_watching_without_a_terminal_prints_one_status_after_the_other() -> None:
    """A pipe, and a terminal that cannot move its cursor, get plain lines."""
    for console_options in ({"force_terminal": False}, {"force_terminal": True, "_environ": DUMB}):
        out = StringIO()
        console = Console(file=out, width=120, color_system=None, **console_options)
        body = json.dumps(answer_of(account_of("london"))).encode()
        reply = Reply(200, [("Content-Type", "application/json")], body)
        async with RawUpstream(default=reply) as server:
            watching = asyncio.get_running_loop().create_task(
                status.watch(server.url, console, Impatient())
            )
            await server.received(3, within=15)
            watching.cancel()
            await asyncio.wait([watching])
        assert out.getvalue().count("london") >= 2
        assert "\x1b" not in out.getvalue()


DUMB = {"TERM": "dumb"}


async def test_the_status_as_json_is_what_the_admin_port_says() -> None:
    answer = answer_of(account_of("london"))
    reply = Reply(200, [("Content-Type", "application/json")], json.dumps(answer).encode())
    async with RawUpstream(default=reply) as server:
        arguments = ["status", "--json", "--url", server.url]
        result = await asyncio.to_thread(CliRunner().invoke, _cli, arguments)
        assert (result.exit_code, json.loads(result.output)) == (0, answer)
        arguments.append("--watch")
        assert (await asyncio.to_thread(CliRunner().invoke, _cli, arguments)).exit_code == 2
