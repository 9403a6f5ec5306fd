"""The commands that call a running proxy: its status, orders, and the reason of a 403."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from proxy.cli import controls, denials, explain, status
from proxy.cli.admin_client import ADMIN_URL, NoAnswer
from proxy.cli.starting import read_settings, run
from proxy.clock import SystemClock
from proxy.rules.denials import MissingHere, read_denial

commands = typer.Typer()
_LONGEST_RESPONSE: Final = 1_048_576  # characters of a saved answer
_Url = Annotated[str, typer.Option(help="The running proxy's admin port.")]
_AdminToken = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The admin token's file; needed off loopback only."),
]


@commands.command("explain")
def run_explain(  # noqa: PLR0913, PLR0917 -- one parameter an option
    stdin: Annotated[
        str | None, typer.Argument(metavar="[-]", help="- reads a token from standard input.")
    ] = None,
    account: Annotated[str | None, typer.Option(help="An account of a running proxy.")] = None,
    url: _Url = ADMIN_URL,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Use the routes of this configuration.")
    ] = None,
    token_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="The token's file; - is standard input.")
    ] = None,
    response_file: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="A 403 of the API, as saved by curl -i; - is standard input."
        ),
    ] = None,
) -> None:
    """Compare a token's scopes with those each route needs; the token is never printed.

    --response-file, alone or with the others, shows what a saved 403 of the API names as missing.
    Exit 0 if nothing is known to be missing, 1 if a scope, a permission or a valid token is, 2 if
    there is no such token, account or file.
    """
    source, now = token_file or stdin, SystemClock().wall()
    is_denied = False
    if response_file is not None:
        is_denied = _show_denial(response_file, source)
        if account is None and config is None and source is None:
            raise typer.Exit(int(is_denied))
    try:
        if account is not None and config is None and source is None:
            subject, routes = run(lambda: explain.ask(url, account, now))
        elif account is None and config is not None and source is not None:
            if (token_file and stdin) or (stdin not in {None, "-"}):
                raise typer.BadParameter("give the token once: --token-file FILE, or -")
            subject = explain.Subject.of_token(_read_input(source, "token"), now)
            routes = read_settings(config).routes
        else:
            raise typer.BadParameter("give --account, or --config with --token-file FILE or -")
    except explain.CannotExplain as error:
        typer.echo(f"{error}", err=True)
        raise typer.Exit(2) from None
    rows = explain.rows_of(routes, subject.held)
    explain.show(subject, rows, now, Console(highlight=False))
    raise typer.Exit(int(explain.is_lacking(subject, rows, now) or is_denied))


def _show_denial(response_file: str, token_source: str | None) -> bool:
    """Print what a saved 403 names as missing; True if it names anything."""
    if response_file == token_source == "-":
        raise typer.BadParameter("only one of token and response can be standard input")
    try:
        found = _read_denial(response_file)
    except explain.CannotExplain as error:
        typer.echo(f"{error}", err=True)
        raise typer.Exit(2) from None
    denials.show(found, Console(highlight=False))
    return denials.is_lacking(found)


def _read_denial(response_file: str) -> MissingHere:
    found = read_denial(_read_input(response_file, "response", most=_LONGEST_RESPONSE))
    if found is None:
        raise explain.CannotExplain("the response is empty")
    return found


@commands.command("status")
def show_status(
    url: _Url = ADMIN_URL,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show the status again every second.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print /status.json, for programs.")
    ] = False,
) -> None:
    """Show the accounts of a running proxy: what waits, why, and what to do.

    Exit 0 if the proxy answered, 2 if not.
    """
    console = Console(highlight=False)
    try:
        if watch and as_json:
            raise typer.BadParameter("give --watch or --json")
        if as_json:
            typer.echo(json.dumps(run(lambda: status.ask(url)), indent=2))
        elif watch:
            run(lambda: status.watch(url, console, SystemClock()))
        else:
            status.show(run(lambda: status.ask(url)), console)
    except NoAnswer as error:
        typer.echo(f"{error}", err=True)
        raise typer.Exit(2) from None


@commands.command()
def pause(
    account: Annotated[str, typer.Argument(help="A configured account.")],
    seconds: Annotated[
        float | None,
        typer.Option("--for", metavar="SECONDS", help="End the pause after this time."),
    ] = None,
    url: _Url = ADMIN_URL,
    token_file: _AdminToken = None,
) -> None:
    """Send nothing for an account until it is resumed; its requests wait.

    Exit 0 if the account is paused, 2 if not.
    """
    _order(url, token_file, account, "pause", {} if seconds is None else {"for": seconds})


@commands.command()
def resume(
    account: Annotated[str, typer.Argument(help="A configured account.")],
    url: _Url = ADMIN_URL,
    token_file: _AdminToken = None,
) -> None:
    """End the pause of an account; a hold that the API asked for goes on.

    Exit 0 if the account is no longer paused, 2 if the proxy did not obey.
    """
    _order(url, token_file, account, "resume", {})


@commands.command()
def pace(
    account: Annotated[str, typer.Argument(help="A configured account.")],
    interval: Annotated[
        float,
        typer.Option(
            "--seconds", help="Seconds between two sends; at least the configured interval."
        ),
    ],
    seconds: Annotated[
        float, typer.Option("--for", metavar="SECONDS", help="For how long to keep this interval.")
    ],
    url: _Url = ADMIN_URL,
    token_file: _AdminToken = None,
) -> None:
    """Send the paced requests of an account at a longer interval for a while.

    Exit 0 if the account keeps the interval, 2 if not.
    """
    document = {"seconds": interval, "for": seconds}
    _order(url, token_file, account, "interval", document)


def _order(
    url: str,
    token_file: Path | None,
    account: str,
    action: controls.Action,
    document: Mapping[str, float],
) -> None:
    try:
        typer.echo(run(lambda: controls.order(url, token_file, account, action, document)))
    except NoAnswer as error:
        typer.echo(f"{error}", err=True)
        raise typer.Exit(2) from None


def _read_input(source: str, what: str, *, most: int = -1) -> str:
    """Read up to `most` characters of a file, or of standard input (`-`)."""
    try:
        if source == "-":
            return sys.stdin.read(most)
        with Path(source).open(encoding="utf-8") as file:
            return file.read(most)
    except OSError as error:
        raise explain.CannotExplain(f"the {what} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise explain.CannotExplain(f"the {what} cannot be read: it is not UTF-8 text") from None
