"""The accounts of a running proxy in a terminal: what its status page shows, from /status.json."""

from collections.abc import Callable
from dataclasses import replace
from typing import Final, NoReturn

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from proxy.cli import admin_client
from proxy.cli.admin_client import NoAnswer
from proxy.cli.screen import Screen, Status, rendered
from proxy.clock import Clock

_PERIOD: Final = 1.0  # seconds
_PIPE: Final = 1000  # characters a line, for programs that read lines


async def ask(url: str) -> Status:
    """Return the status from a proxy's admin port. Raises `NoAnswer`."""
    answer = await admin_client.get(url, "status.json")
    if "accounts" not in answer:
        raise NoAnswer(f"{url} does not answer like a proxy")
    return answer


def show(answer: Status, console: Console) -> None:
    """Print the status once."""
    _print(rendered(answer, _screen_of(console)), console)


async def watch(url: str, console: Console, clock: Clock) -> None:
    """Show the status every second until cancelled; ask again if there is no answer.

    A terminal shows each status in the place of the last one. A pipe, or a terminal that cannot
    move its cursor, gets plain lines, one status after the other.
    """
    if _is_plain(console):
        await _repeat(url, clock, console, lambda shown: _print(shown, console))
    with Live(console=console, auto_refresh=False) as live:
        await _repeat(url, clock, console, lambda shown: live.update(shown, refresh=True))


async def _repeat(
    url: str, clock: Clock, console: Console, display: Callable[[Group | Text], None]
) -> NoReturn:
    height = None if _is_plain(console) else console.height - 1  # and the line of the cursor
    while True:
        begun = clock.monotonic()
        try:
            display(rendered(await ask(url), replace(_screen_of(console), height=height)))
        except NoAnswer as trouble:
            display(Text(f"{trouble}; asking again", style="red"))
        await clock.sleep_until(begun + _PERIOD)


def _is_plain(console: Console) -> bool:
    return not console.is_terminal or console.is_dumb_terminal


def _screen_of(console: Console) -> Screen:
    return Screen(width=console.width if console.is_terminal else _PIPE)


def _print(shown: Group | Text, console: Console) -> None:
    """Print a status; into a pipe, each remark is one line, however long."""
    if not console.is_terminal:
        console.width = _PIPE
    console.print(shown, soft_wrap=not console.is_terminal)
