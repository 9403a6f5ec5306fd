"""A status on a terminal: what it shows first, and what fits."""

import re
from collections.abc import Mapping
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from proxy.cli.admin_client import NoAnswer
from proxy.cli.screen import Screen, rendered, span
from tests.kit.status import (
    AT,
    HOLD,
    REFUSED,
    account_of,
    answer_of,
    in_every_trouble,
    note_of,
    queue_of,
    row_of,
    token_of,
)


def test_what_is_noted_of_the_proxy_comes_before_the_accounts() -> None:
    note = note_of("attention", "connections refused")
    lines = shown(answer_of(account_of("london"), notes=[note])).splitlines()
    assert lines[1].strip() == f"proxy: {note['title']} - {note['advice']}"


def shown(answer: Mapping[str, Any], *, color: bool = False) -> str:
    out = StringIO()
    console = Console(
        file=out,
        width=160,
        force_terminal=color,
        color_system="standard" if color else None,
        highlight=False,
    )
    console.print(rendered(answer, Screen(width=160)))
    return out.getvalue()


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
                    queue_of(queue_depth=9941, oldest_seconds=3.25, predicted_seconds=4970.0),
                    queue_of(name="api"),
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
    assert span(seconds) == text


# A small screen


def on_a_small_screen(answer: Mapping[str, Any], *, height: int = 24) -> list[str]:
    out = StringIO()
    console = Console(file=out, width=80, height=height, force_terminal=True, color_system=None)
    console.print(rendered(answer, Screen(width=80, height=height - 1)))
    return out.getvalue().splitlines()


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


def test_an_answer_of_another_version_is_told_so() -> None:
    with pytest.raises(NoAnswer, match="another version"):
        rendered(answer_of({"name": "london"}))


def test_no_clock_is_off_by_minus_zero() -> None:
    console = Console(file=StringIO(), width=120)
    console.print(rendered({**answer_of(), "clock_skew": {"api": -0.04}}))
    assert isinstance(console.file, StringIO)
    assert "api clock +0.0 s" in console.file.getvalue()
