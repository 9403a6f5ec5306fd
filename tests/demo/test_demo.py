"""The demo's result and what it shows, by plain calls."""

from dataclasses import replace
from io import StringIO

import pytest
from aiohttp import ClientSession, web
from pytest_aiohttp.plugin import AiohttpServer
from rich.console import Console

from proxy.clock import SystemClock
from proxy.demo.callers import Callers, ServiceAccount
from proxy.demo.display import Progress, closing_table, open_display, result_line
from proxy.demo.promises import Outcome, judge
from proxy.simulator import AccountReport

REPORT = AccountReport(
    accepted=12,
    refused=0,
    early=0,
    storm=0,
    eaten=0,
    smallest_gap=0.499,
    median_gap=0.502,
    span=5.52,
    ahead=0.0,
    statuses={202: 12},
    exports=12,
    duplicates={},
    tokens_minted=1,
)
KEPT = Outcome(
    account="voice-exports",
    staying=12,
    answers={202: 12},
    quitter_answers=0,
    quitter_arrivals=0,
    report=REPORT,
)
MIDWAY = Progress(
    account="voice-exports", exports=12, accepted=5, waiting=7, hung_up=1, next_slot=0.3
)
LOGGED_IN_ONLY = Progress(
    account="chat-exports", exports=12, accepted=0, waiting=0, hung_up=0, next_slot=None
)


# What is judged


def test_what_keeps_every_promise_breaks_none() -> None:
    assert judge([KEPT, replace(KEPT, account="chat-exports")]) == []


@pytest.mark.parametrize(
    ("outcome", "complaint"),
    [
        (
            replace(KEPT, report=replace(REPORT, ahead=0.021)),
            "an export reached the API 21 ms ahead of the pace",
        ),
        (replace(KEPT, report=replace(REPORT, early=2)), "the API refused 2 as early"),
        (
            replace(KEPT, answers={202: 11, None: 1}),
            "a 202 was seen by only 11 of 12 callers",
        ),
        (replace(KEPT, answers={202: 11}), "a 202 was seen by only 11 of 12 callers"),
        (
            replace(KEPT, report=replace(REPORT, exports=11)),
            "the API created 11 exports for 12 answers of 202",
        ),
        (
            replace(
                KEPT,
                report=replace(REPORT, exports=14, duplicates={"export-7": 2, "export-3": 2}),
            ),
            "created more than once: export-3, export-7",
        ),
        (
            replace(KEPT, quitter_answers=1),
            "the caller that meant to hang up while it waited was answered before",
        ),
        (
            replace(KEPT, quitter_arrivals=1, report=replace(REPORT, exports=13)),
            "the export of the caller that hung up reached the API",
        ),
    ],
)
def test_a_broken_promise_is_named_with_its_account(outcome: Outcome, complaint: str) -> None:
    chat = replace(KEPT, account="chat-exports")
    assert judge([chat, outcome]) == [f"voice-exports: {complaint}"]


def test_a_429_breaks_two_promises() -> None:
    assert judge([replace(KEPT, answers={202: 10, 429: 2})]) == [
        "voice-exports: a 429 was seen by 2 of 12 callers",
        "voice-exports: a 202 was seen by only 10 of 12 callers",
    ]


@pytest.mark.parametrize("ahead", [None, -3.0, 0.020])
def test_an_arrival_within_the_tolerance_is_not_early(ahead: float | None) -> None:
    assert judge([replace(KEPT, report=replace(REPORT, ahead=ahead))]) == []


def test_an_account_of_which_nothing_arrived_breaks_its_promise() -> None:
    silence = replace(REPORT, accepted=0, exports=0, ahead=None)
    assert judge([replace(KEPT, answers={}, report=silence)]) == [
        "voice-exports: a 202 was seen by only 0 of 12 callers"
    ]


# What callers do


async def test_a_broken_connection_is_kept_as_no_answer(aiohttp_server: AiohttpServer) -> None:
    async def log_in(_: web.Request) -> web.Response:
        return web.json_response({"access_token": "t"})

    async def hang_up(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    application = web.Application()
    application.add_routes([web.post("/oauth/token", log_in), web.post("/{path:.*}", hang_up)])
    account = ServiceAccount(name="a", client_id="a", secret="s", channel="voice")
    callers = Callers(account, staying=2, one_hangs_up=False)
    server = await aiohttp_server(application)
    async with ClientSession(server.make_url("/")) as http:
        await callers.act(http, SystemClock())
    assert (callers.answers, callers.waiting) == ({None: 2}, 0)


# What is shown


def test_a_terminal_gets_a_table_that_fits_into_80_columns() -> None:
    screen = StringIO()
    console = Console(file=screen, force_terminal=True, width=80, color_system=None)
    with open_display(console) as display:
        display.show(2.84, [MIDWAY, LOGGED_IN_ONLY])
    assert "After 2.8 s" in screen.getvalue()
    assert "5 of 12        7        1      0.3 s" in screen.getvalue()
    assert "0 of 12        0        0          -" in screen.getvalue()


def test_a_terminal_that_cannot_move_its_cursor_gets_lines() -> None:
    screen = StringIO()
    dumb = {"TERM": "dumb"}
    console = Console(file=screen, force_terminal=True, width=80, _environ=dumb)
    with open_display(console) as display:
        assert display.period == 1.0
        display.show(2.84, [MIDWAY])
        assert "voice-exports: 5 of 12 accepted" in screen.getvalue()  # at once, not at the end
    assert "\x1b" not in screen.getvalue()


def test_the_closing_table_fits_into_80_columns() -> None:
    console = Console(file=StringIO(), width=80)
    nothing = replace(REPORT, accepted=0, smallest_gap=None, median_gap=None, span=0.0)
    with console.capture() as shown:
        console.print(closing_table([KEPT, replace(KEPT, report=nothing)], 0.5))
    rows = [" ".join(line.split()) for line in shown.get().splitlines()]
    assert rows[-2:] == [
        "voice-exports 12 0 499.0 ms 502.0 ms 5.52 s 5.50 s",
        "voice-exports 0 0 - - 0.00 s 0.00 s",
    ]


def test_the_result_is_one_line() -> None:
    assert result_line(["a: this", "b: that"]).plain == "Broken: a: this; b: that."
