"""What is shown: progress while it lasts, a closing table, the result. Nothing is decided here."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from proxy.demo.promises import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far one account is."""

    account: str
    exports: int
    accepted: int
    waiting: int
    hung_up: int
    next_slot: float | None
    """Seconds until the API may get the next export; None before the first and after the last."""


@dataclass(frozen=True, slots=True)
class Display:
    """Where progress is shown, and how many seconds apart."""

    show: Callable[[float, Sequence[Progress]], None]
    period: float


@contextmanager
def open_display(console: Console) -> Iterator[Display]:
    """Show progress in place on a capable terminal, else as a line now and then."""
    if not console.is_terminal or console.is_dumb_terminal:
        yield Display(
            lambda at, rows: console.print(progress_line(at, rows), soft_wrap=True), period=1.0
        )
        console.print()
        return
    # Without a thread of its own: it would compete with the sends for the interpreter.
    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield Display(
            lambda at, rows: live.update(progress_table(at, rows), refresh=True), period=0.1
        )


def progress_table(at: float, rows: Sequence[Progress]) -> Table:
    table = _table(f"After {at:.1f} s")
    table.add_column("account", style="bold")
    table.add_column(width=20)
    table.add_column("accepted", justify="right", style="green")
    table.add_column("waiting", justify="right", style="yellow")
    table.add_column("hung up", justify="right", style="magenta")
    table.add_column("next slot", justify="right", style="cyan")
    for row in rows:
        table.add_row(
            row.account,
            ProgressBar(
                total=row.exports,
                completed=row.accepted,
                complete_style="green",
                finished_style="green",
            ),
            f"{row.accepted} of {row.exports}",
            str(row.waiting),
            str(row.hung_up),
            "-" if row.next_slot is None else f"{row.next_slot:.1f} s",
        )
    return table


def progress_line(at: float, rows: Sequence[Progress]) -> str:
    accounts = (
        f"{row.account}: {row.accepted} of {row.exports} accepted, {row.waiting} waiting"
        + (f", {row.hung_up} hung up" if row.hung_up else "")
        for row in rows
    )
    return f"{at:4.1f} s  {'; '.join(accounts)}"


def closing_table(outcomes: Sequence[Outcome], interval: float) -> Table:
    table = _table("What the API saw")
    table.add_column("account", style="bold")
    for heading in ("accepted", "429s seen", "smallest gap", "median gap", "time", "ideal"):
        table.add_column(heading, justify="right")
    for outcome in outcomes:
        report = outcome.report
        table.add_row(
            outcome.account,
            str(report.accepted),
            str(outcome.rate_limited),
            _milliseconds(report.smallest_gap),
            _milliseconds(report.median_gap),
            f"{report.span:.2f} s",
            f"{max(0, report.accepted - 1) * interval:.2f} s",
        )
    return table


def result_line(broken: Sequence[str]) -> Text:
    if broken:
        return Text.assemble(("Broken: ", "bold red"), "; ".join(broken) + ".")
    held = "no export early, lost or twice; no 429; none from the caller who hung up."
    return Text.assemble(("Held: ", "bold green"), held)


def _table(title: str) -> Table:
    return Table(
        title=f"{title}\n",
        title_justify="left",
        title_style="dim",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.1f} ms"
