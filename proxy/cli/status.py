"""The accounts of a running proxy in a terminal: what its status page shows, from /status.json.

`ask` and `watch` do I/O; `picture` turns an answer into what is shown, and is pure.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NoReturn

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from proxy.cli import admin_client
from proxy.cli.admin_client import NoAnswer, printable
from proxy.clock import Clock

Account = Mapping[str, Any]
Status = Mapping[str, Any]

_PERIOD: Final = 1.0
_STYLES: Final = {"trouble": "red", "attention": "yellow", "busy": "blue", "ok": "green"}
_UNITS: Final = ((172_800, 86_400, "d"), (5400, 3600, "h"), (100, 60, "min"), (0, 1, "s"))
_REFUSALS: Final = 2  # of an account; the page shows more


async def ask(url: str) -> Status:
    """Return the status from a proxy's admin port. Raises `NoAnswer`."""
    answer = await admin_client.get(url, "status.json")
    if "accounts" not in answer:
        raise NoAnswer(f"{url} does not answer like a proxy")
    return answer


async def watch(url: str, console: Console, clock: Clock) -> None:
    """Show the status every second until cancelled; ask again if there is no answer.

    A terminal shows it in place. A pipe, or a terminal that cannot move its cursor, gets one after
    the other, as plain lines.
    """
    if not console.is_terminal or console.is_dumb_terminal:
        await _repeat(url, clock, console.print)
    with Live(console=console, auto_refresh=False) as live:
        await _repeat(url, clock, lambda shown: live.update(shown, refresh=True))


async def _repeat(url: str, clock: Clock, show: Callable[[Group | Text], None]) -> NoReturn:
    while True:
        begun = clock.monotonic()
        try:
            show(picture(await ask(url)))
        except NoAnswer as trouble:
            show(Text(f"{trouble}; asking again", style="red"))
        await clock.sleep_until(begun + _PERIOD)


def picture(status: Status) -> Group:
    """Return the status as shown: one line for the proxy, the accounts, then the remarks."""
    try:
        return Group(_headline(status), _table(status["accounts"]), *_remarks(status))
    except (KeyError, TypeError, AttributeError):
        raise NoAnswer("that proxy is of another version") from None


def _headline(status: Status) -> Text:
    style = "green" if status["state"] == "serving" else "red"
    at = datetime.fromtimestamp(status["at"], UTC)
    line = Text.assemble(
        "export-proxy ", status["version"], ", ", (status["state"], style), f", {at:%T} UTC"
    )
    if not status["store_up"]:
        line.append(", store down", "red")
    for server, skew in status["clock_skew"].items():
        line.append(f", {server} clock {round(skew, 1) + 0.0:+.1f} s")  # never -0.0
    return line


def _table(accounts: Sequence[Account]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("account", style="bold", overflow="fold")
    table.add_column("route")
    for heading in ("waiting", "oldest", "interval", "last gap", "in flight", "hold", "token"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for account in accounts:
        queues = account["routes"] or [None]
        for index, queue in enumerate(queues):
            first = index == 0
            table.add_row(
                _plain(account["name"]) if first else "",
                *_cells_of_queue(queue),
                str(account["in_flight"]) if first else "",
                _hold(account) if first else "",
                _token(account["token"]) if first else "",
                _badges(account) if first else "",
            )
    return table


def _cells_of_queue(queue: Mapping[str, Any] | None) -> tuple[Text | str, ...]:
    if queue is None:
        return ("-",) * 5
    gap, depth = queue["last_gap_seconds"], queue["queue_depth"]
    return (
        _plain(queue["name"]),
        f"{depth:,} ({span(queue['predicted_seconds'])})" if depth else "0",
        span(queue["oldest_seconds"]) if depth else "-",
        f"{queue['interval']:g} s" if queue["interval"] else "-",
        "-" if gap is None or not queue["interval"] else span(gap),
    )


def _hold(account: Account) -> Text | str:
    seconds = account["hold_remaining_seconds"]
    return Text(span(seconds), style="red") if seconds else "-"


def _token(token: Mapping[str, Any] | None) -> Text | str:
    if token is None:
        return "-"
    if token["expires_in"] is None:
        return Text("none", style="red")
    return Text(span(token["expires_in"]), style="red" if token["missing"] else "")


def _badges(account: Account) -> Text:
    badges = [(printable(note["title"]), _STYLES[note["level"]]) for note in account["notes"]]
    return Text(", ").join(Text(*badge) for badge in badges)


def _remarks(status: Status) -> list[Text]:
    """Return what to do, and the last refusals, account by account."""
    remarks = []
    for account in status["accounts"]:
        name, token = (printable(account["name"]), "bold"), account["token"]
        for note in account["notes"]:
            if note["level"] != "busy":
                title = (printable(note["title"]), _STYLES[note["level"]])
                remarks.append(Text.assemble(name, ": ", title, f" - {printable(note['advice'])}"))
        if token is not None and token["missing"]:
            missing, held = _listed(token["missing"]), _listed(token["scopes"] or ())
            wait = token["next_refresh_in"]
            refresh = "none planned" if wait is None else f"in {span(wait)}"
            facts = f"missing {missing}; held {held or 'unknown'}; next refresh {refresh}"
            remarks.append(Text.assemble(name, f": {facts}"))
        for refusal in account["refusals"][:_REFUSALS]:
            kind = printable(refusal["type"]).rpartition(":")[2]
            ago, count = span(max(0.0, status["at"] - refusal["at"])), refusal["count"]
            times = f"{count:,} times, the last " if count > 1 else ""
            detail = printable(refusal["detail"])
            remarks.append(Text.assemble(name, f": refused {times}{ago} ago, {kind} - {detail}"))
    return remarks


def _listed(scopes: Sequence[str]) -> str:
    return printable(", ".join(scopes))


def span(seconds: float) -> str:
    """Return a time as people read it."""
    _, size, unit = next(row for row in _UNITS if seconds >= row[0])
    digits = 1 if size == 1 and seconds < 10 else 0  # noqa: PLR2004 -- below, tenths tell
    return f"{seconds / size:.{digits}f} {unit}"


def _plain(text: str) -> Text:
    return Text(printable(text))
