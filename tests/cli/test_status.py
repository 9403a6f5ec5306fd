"""`status`: the accounts table on a terminal, of an answer at hand and of a running proxy."""

import asyncio
import json
import re
from collections.abc import Mapping
from io import StringIO
from typing import Any

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
from tests.kit.upstream import Hang, RawUpstream, Reply, free_port

AT = 1_800_000_000.0
EXPORTS = "/api/v2/recordings/exports"


def line_of(**others: object) -> dict[str, object]:
    line = {"name": "exports", "queue_depth": 0, "oldest_seconds": 0.0, "interval": 0.5}
    return {**line, "predicted_seconds": 0.0, "sent": 3, "last_gap_seconds": 0.512, **others}


def token_of(**others: object) -> dict[str, object]:
    token = {"expires_in": 7200.0, "scopes": ["recordings:export"], "missing": []}
    return {**token, "next_refresh_in": 90.0, "issued_at": AT, "rejected": False, **others}


def account_of(name: str, **others: object) -> dict[str, object]:
    account: dict[str, object] = {"name": name, "routes": [line_of()], "in_flight": 0}
    account |= {"hold_remaining_seconds": 0.0, "token": None, "refusals": []}
    account |= {"callers_waiting": [], "callers_refused": []}
    return {**account, "level": "ok", "notes": [], **others}


def answer_of(*accounts: object, **others: object) -> dict[str, Any]:
    answer = {"version": "1.2.3", "at": AT, "state": "serving", "store_up": True}
    answer |= {"observed": []}
    return {**answer, "clock_skew": {}, "accounts": list(accounts), **others}


def test_what_is_noted_of_the_proxy_comes_before_the_accounts() -> None:
    note = note_of("attention", "connections refused")
    lines = shown(answer_of(account_of("london"), notes=[note])).splitlines()
    assert lines[1].strip() == f"proxy: {note['title']} - {note['advice']}"


def note_of(level: str, title: str) -> dict[str, str]:
    return {"level": level, "title": title, "advice": f"What to do about {title}."}


def shown(answer: Mapping[str, Any], *, color: bool = False) -> str:
    out = StringIO()
    console = Console(
        file=out,
        width=160,
        force_terminal=color,
        color_system="standard" if color else None,
        highlight=False,
    )
    console.print(status.picture(answer, status.Screen(width=160)))
    return out.getvalue()


def row_of(text: str, start: str) -> list[str]:
    """The cells of the line that begins so."""
    (found,) = (line for line in text.splitlines() if line.startswith(start))
    return re.split(r" {2,}", found.strip())


# What is shown


def test_an_account_that_is_well_has_one_plain_line() -> None:
    text = shown(answer_of(account_of("london", token=token_of())))
    assert text.splitlines()[0] == "export-proxy 1.2.3, serving, 08:00:00 UTC"
    assert row_of(text, "london") == [
        *("london", "exports", "0", "-", "0.5 s", "0.5 s", "0", "-", "2 h"),
    ]
    assert len(text.splitlines()) == 4


def test_waiters_are_shown_with_the_reason_and_the_advice() -> None:
    refusal = {"at": AT - 12, "type": "urn:export-proxy:queue-full", "detail": "Full."}
    refusal |= {"count": 1, "since": AT - 12}
    text = shown(
        answer_of(
            account_of(
                "london",
                routes=[
                    line_of(queue_depth=9941, oldest_seconds=3.25, predicted_seconds=4970.0),
                    line_of(name="api"),
                ],
                in_flight=2,
                hold_remaining_seconds=41.7,
                refusals=[refusal, {**refusal, "count": 1234}, refusal],
                notes=[note_of("trouble", "on hold"), note_of("busy", "waiting")],
            )
        )
    )
    assert row_of(text, "london ") == [
        *("london", "exports", "9,941 (83 min)", "3.2 s", "0.5 s", "0.5 s", "2", "42 s", "-"),
        "on hold, waiting",
    ]
    assert "london: on hold - What to do about on hold." in text
    assert "What to do about waiting" not in text
    assert "london: refused 12 s ago, queue-full - Full." in text
    assert "london: refused 1,234 times, the last 12 s ago, queue-full - Full." in text
    assert text.count("refused") == 2
    assert re.search(r"^ +api +0 +- ", text, re.MULTILINE)


def test_a_missing_scope_is_named_with_the_next_refresh() -> None:
    token = token_of(missing=["b:c"], next_refresh_in=38.2)
    text = shown(answer_of(account_of("paris", token=token)))
    told = "paris: missing b:c; held recordings:export; next refresh in 38 s"
    assert told in text
    token = token_of(missing=["b:c"], next_refresh_in=None, scopes=None)
    text = shown(answer_of(account_of("paris", token=token)))
    assert "paris: missing b:c; held unknown; next refresh none planned" in text


def test_no_valid_token_and_a_store_that_is_down_are_plain() -> None:
    down = answer_of(
        account_of("paris", routes=[], token=token_of(expires_in=None)),
        state="stalled",
        store_up=False,
        clock_skew={"api": -61.5},
    )
    text = shown(down)
    assert "stalled, 08:00:00 UTC, store down, api clock -61.5 s" in text
    assert row_of(text, "paris") == ["paris", "-", "-", "-", "-", "-", "0", "-", "none"]


def test_trouble_is_red_and_what_goes_well_is_not() -> None:
    held = account_of("a", hold_remaining_seconds=3.0, notes=[note_of("trouble", "on hold")])
    text = shown(answer_of(held, account_of("b")), color=True)
    assert "\x1b[31m3.0 s\x1b[0m" in text
    assert "\x1b[31mon hold" in text
    (line,) = (line for line in text.splitlines() if "\x1b[1mb" in line)
    assert "\x1b[31m" not in line


def test_nothing_in_an_answer_can_command_the_terminal() -> None:
    evil = "\x1b]0;x\x07[bold]\n"
    refusal = {"at": AT, "type": evil, "detail": evil, "count": 1, "since": AT}
    note = {"level": "trouble", "title": evil, "advice": evil}
    token = token_of(missing=[evil])
    text = shown(answer_of(account_of(evil, refusals=[refusal], notes=[note], token=token)))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[bold]" in text  # and is no markup


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *[(0.04, "0.0 s"), (9.94, "9.9 s"), (10.0, "10 s"), (99.0, "99 s"), (100.0, "2 min")],
        *[(5400.0, "2 h"), (90_000.0, "25 h"), (200_000.0, "2 d")],
    ],
)
def test_times_are_short(seconds: float, text: str) -> None:
    assert status.span(seconds) == text


# A small screen


HOLD = {"level": "trouble", "title": "on hold", "advice": "The API refused this. " * 12 + "End."}
REFUSED = {"level": "attention", "title": "callers refused", "advice": "See why. " * 9 + "End."}
FULL = {"at": AT, "type": "urn:export-proxy:queue-full", "detail": "Full. " * 20, "since": AT}


def on_a_small_screen(answer: Mapping[str, Any], *, height: int = 24) -> list[str]:
    out = StringIO()
    console = Console(file=out, width=80, height=height, force_terminal=True, color_system=None)
    console.print(status.picture(answer, status.Screen(width=80, height=height - 1)))
    return out.getvalue().splitlines()


def in_every_trouble(number: int) -> list[dict[str, object]]:
    busy = account_of("busy", level="busy", notes=[note_of("busy", "waiting")])
    held = account_of("held", level="trouble", notes=[HOLD], hold_remaining_seconds=41.7)
    refused = account_of("refused", level="attention", notes=[REFUSED])
    refused |= {"refusals": [{**FULL, "count": 3}]}
    deep = {"routes": [line_of(queue_depth=9941, oldest_seconds=3.2, predicted_seconds=4970.0)]}
    kinds = [{**busy, **deep}, refused, held]
    return [
        {**kind, "name": f"{kind['name']}-{index}"} for index in range(number) for kind in kinds
    ]


@pytest.mark.parametrize("number", [1, 2, 5, 40])
def test_a_screen_of_80_by_24_holds_it_with_the_gravest_first(number: int) -> None:
    """Every advice is whole, however many accounts there are."""
    idle = [account_of(f"idle-{index}") for index in range(30)]
    lines = on_a_small_screen(answer_of(*in_every_trouble(number), *idle))
    text = " ".join(" ".join(lines).split())
    assert len(lines) <= 23
    assert all(len(line) <= 80 for line in lines)
    assert HOLD["advice"] in text
    assert REFUSED["advice"] in text
    assert text.index("on hold") < text.index("callers refused") < text.index("route")
    names = [
        line.split()[0] for line in lines if re.match(r"(held|refused|busy)-\d+ +exports", line)
    ]
    assert names[0] == "held-0"
    assert names == sorted(names, key=lambda name: "hrb".index(name[0]))
    assert "30 idle: idle-0" in text


def test_what_there_is_no_room_for_is_counted() -> None:
    lines = on_a_small_screen(answer_of(*in_every_trouble(40)))
    (more,) = (int(line.split()[0]) for line in lines if re.fullmatch(r"\d+ more *", line))
    rows = [line for line in lines if re.match(r"(held|refused|busy)-\d+ +exports", line)]
    assert more + len(rows) == 120


def test_on_a_small_screen_a_backlog_is_shown_with_its_end() -> None:
    lines = on_a_small_screen(answer_of(*in_every_trouble(1)))
    assert any("9,941 (83 min)" in line for line in lines)


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


def test_an_answer_of_another_version_is_told_so() -> None:
    with pytest.raises(NoAnswer, match="another version"):
        status.picture(answer_of({"name": "london"}))


def test_the_command_exits_2_without_a_listener() -> None:
    result = CliRunner().invoke(_cli, ["status", "--url", f"http://{HOST}:{free_port()}"])
    assert result.exit_code == 2
    assert "cannot be asked: Connection refused" in result.output


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


def test_no_clock_is_off_by_minus_zero() -> None:
    console = Console(file=StringIO(), width=120)
    console.print(status.picture({**answer_of(), "clock_skew": {"api": -0.04}}))
    assert isinstance(console.file, StringIO)
    assert "api clock +0.0 s" in console.file.getvalue()
