"""The status in a terminal: from the document /status.json to rows and remarks; pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from io import StringIO
from typing import Any, Final

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from proxy.cli.admin_client import NoAnswer, printable

Account = Mapping[str, Any]
Status = Mapping[str, Any]

_MEASURE: Final = Console(file=StringIO())
_STYLES: Final = {"trouble": "red", "attention": "yellow", "busy": "blue", "ok": "green"}
_UNITS: Final = ((172_800, 86_400, "d"), (5400, 3600, "h"), (100, 60, "min"), (0, 1, "s"))
_REFUSALS: Final = 2  # of an account; the page shows more
_GRAVITY: Final = {level: rank for rank, level in enumerate(_STYLES)}
_COLUMNS: Final = (
    *("account", "route", "waiting", "oldest", "interval", "last gap", "in flight", "hold"),
    *("token", ""),
)
_WIDE: Final = 110  # characters that all columns take
_WIDE_ONLY: Final = {"interval", "last gap", ""}  # the notes are above the table
_FEW: Final = 8  # accounts that all have a line, idle ones too
_TABLE_LINES: Final = 2  # its head and the rule

_Row = dict[str, Text | str]


@dataclass(frozen=True, slots=True)
class Screen:
    """The size of the terminal; without a height, lines are unlimited."""

    width: int = 80
    height: int | None = None

    def lines(self, text: Text) -> int:
        """Return how many lines a text takes."""
        return len(text.wrap(_MEASURE, self.width))


def rendered(status: Status, screen: Screen = Screen()) -> Group:
    """Return the status as shown: the proxy, what to do, the accounts, then the last refusals.

    What to do comes first and uncut, the most severe first. If the screen has a height, the table
    and the remarks below it get the lines that are left.
    """
    try:
        accounts = sorted(status["accounts"], key=lambda one: _GRAVITY[one["level"]])
        resting = [one for one in accounts if len(accounts) > _FEW and _is_idle(one)]
        shown = [account for account in accounts if account not in resting]
        top = [_headline(status), *_advice([_proxy(status), *shown])]
        left = screen.height
        if left is not None:
            left -= sum(screen.lines(line) for line in top) + bool(resting)
        rows = [row for account in shown for row in _rows(account)]
        remarks = [remark for account in shown for remark in _remarks(account, status["at"])]
        return Group(
            *top,
            *_table(rows, screen, left),
            *_idle(resting, screen),
            *_that_fit(remarks, screen, left, used=len(rows) + _TABLE_LINES),
        )
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
    if status["observed"]:
        line.append(f", NOT PACING, only observing {_some(status['observed'])}", "red")
    for server, skew in status["clock_skew"].items():
        line.append(f", {server} clock {round(skew, 1) + 0.0:+.1f} s")  # never -0.0
    return line


def _proxy(status: Status) -> Account:
    """Return the notes on the proxy in the form of an account's."""
    return {"name": "proxy", "notes": status.get("notes", ())}


def _advice(accounts: Sequence[Account]) -> list[Text]:
    """Return what to do, the most severe first; advice for several accounts is one line."""
    names: dict[tuple[str, str, str], list[str]] = {}
    for account in accounts:
        for note in account["notes"]:
            if note["level"] != "busy":
                key = (note["level"], printable(note["title"]), printable(note["advice"]))
                names.setdefault(key, []).append(printable(account["name"]))
    return [
        Text.assemble((_some(named), "bold"), ": ", (title, _STYLES[level]), f" - {advice}")
        for (level, title, advice), named in sorted(
            names.items(), key=lambda item: _GRAVITY[item[0][0]]
        )
    ]


def _some(names: Sequence[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _is_idle(account: Account) -> bool:
    """True if the account has nothing to show, so it goes into the line of idle accounts."""
    is_quiet = not any(queue["queue_depth"] for queue in account["routes"])
    return (
        account["level"] == "ok"
        and is_quiet
        and not account["in_flight"]
        and not account["refusals"]
    )


def _idle(accounts: Sequence[Account], screen: Screen) -> list[Text]:
    if not accounts:
        return []
    names = [printable(account["name"]) for account in accounts]
    line = Text(f"{len(names)} idle: {', '.join(names)}", style="dim")
    if screen.height is not None:
        line.truncate(screen.width, overflow="ellipsis")
    return [line]


def _table(rows: Sequence[_Row], screen: Screen, left: int | None) -> list[Table | Text]:
    """Return as many accounts as there is room for, and the number of the others."""
    if not rows:
        return []
    fit = len(rows) if left is None else max(1, left - _TABLE_LINES)
    if fit < len(rows):
        fit = max(1, fit - 1)  # a line for the number
    columns = [column for column in _COLUMNS if screen.width >= _WIDE or column not in _WIDE_ONLY]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        is_text = column in {"account", "route", ""}
        table.add_column(
            column,
            justify="left" if is_text else "right",
            style="bold" if column == "account" else "",
            overflow="fold" if column == "account" else "ellipsis",
            no_wrap=screen.height is not None,
        )
    for row in rows[:fit]:
        table.add_row(*(row.get(column, "") for column in columns))
    hidden = max(0, len(rows) - fit)
    return [table, *([Text(f"{hidden} more", style="dim")] if hidden else [])]


def _rows(account: Account) -> list[_Row]:
    rows: list[_Row] = [_cells_of_queue(queue) for queue in account["routes"] or [None]]
    rows[0] |= {
        "account": _plain(account["name"]),
        "in flight": str(account["in_flight"]),
        "hold": _hold(account),
        "token": _token(account["token"]),
        "": _badges(account),
    }
    return rows


def _cells_of_queue(queue: Mapping[str, Any] | None) -> _Row:
    if queue is None:
        return dict.fromkeys(("route", "waiting", "oldest", "interval", "last gap"), "-")
    gap, depth = queue["last_gap_seconds"], queue["queue_depth"]
    return {
        "route": _plain(queue["name"]),
        "waiting": f"{depth:,} ({span(queue['predicted_seconds'])})" if depth else "0",
        "oldest": span(queue["oldest_seconds"]) if depth else "-",
        "interval": f"{queue['interval']:g} s" if queue["interval"] else "-",
        "last gap": "-" if gap is None or not queue["interval"] else span(gap),
    }


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


def _remarks(account: Account, now: float) -> list[Text]:
    """Return the facts of the token that lacks a scope, and the last refusals."""
    remarks = []
    name, token = (printable(account["name"]), "bold"), account["token"]
    if token is not None and token["missing"]:
        missing, held = _listed(token["missing"]), _listed(token["scopes"] or ())
        wait = token["next_refresh_in"]
        refresh = "none planned" if wait is None else f"in {span(wait)}"
        facts = f"missing {missing}; held {held or 'unknown'}; next refresh {refresh}"
        remarks.append(Text.assemble(name, f": {facts}"))
    for what, callers in (
        ("most waiting", account["callers_waiting"]),
        ("most refused", account["callers_refused"]),
    ):
        if callers:
            named = [f"{printable(one['caller'])} ({one['count']:,})" for one in callers]
            remarks.append(Text.assemble(name, f": {what}: {', '.join(named)}"))
    for refusal in account["refusals"][:_REFUSALS]:
        kind = printable(refusal["type"]).rpartition(":")[2]
        ago, count = span(max(0.0, now - refusal["at"])), refusal["count"]
        times = f"{count:,} times, the last " if count > 1 else ""
        detail = printable(refusal["detail"])
        remarks.append(Text.assemble(name, f": refused {times}{ago} ago, {kind} - {detail}"))
    return remarks


def _that_fit(remarks: list[Text], screen: Screen, left: int | None, *, used: int) -> list[Text]:
    """Return the remarks for which there is room, each whole."""
    if left is None:
        return remarks
    left -= used
    fitting = []
    for remark in remarks:
        left -= screen.lines(remark)
        if left < 0:
            break
        fitting.append(remark)
    return fitting


def _listed(scopes: Sequence[str]) -> str:
    return printable(", ".join(scopes))


def span(seconds: float) -> str:
    """Return seconds as text with a fitting unit."""
    _, size, unit = next(row for row in _UNITS if seconds >= row[0])
    digits = 1 if size == 1 and seconds < 10 else 0  # noqa: PLR2004 -- below, tenths tell
    return f"{seconds / size:.{digits}f} {unit}"


def _plain(text: str) -> Text:
    return Text(printable(text))
