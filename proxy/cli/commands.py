"""The command line: each command is thin, and says in a sentence what went wrong."""

import asyncio
import json
import os
import sys
from collections.abc import Callable, Coroutine, Mapping
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import typer
from rich.console import Console

from proxy import __version__, demo
from proxy.cli import controls, denials, explain, status
from proxy.cli.admin_client import ADMIN_URL, NoAnswer
from proxy.clock import SystemClock
from proxy.http.sockets import authority
from proxy.rules.denials import MissingHere, read_denial
from proxy.service.doubts import doubts_about
from proxy.service.lifecycle import CannotListen
from proxy.service.process import RESERVED_FILES, Service, hard_limit
from proxy.service.reload import check_whole, missing_files
from proxy.settings import ConfigError, Settings, load, schema, written_secrets
from proxy.simulator import VOICE_SCOPE, ClientSpec, SimulatorSettings
from proxy.simulator import run as run_simulator

_cli = typer.Typer(
    name="export-proxy",
    help="Paces export requests, honours Retry-After and keeps tokens fresh.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,  # locals may hold secrets
)
_LONGEST_RESPONSE: Final = 1_048_576  # characters of a saved answer
_CANNOT_LISTEN: Final = 3  # an exit code of its own: starting again later may help
_T = TypeVar("_T")
_Config = Annotated[Path, typer.Option("--config", help="The configuration file.", metavar="FILE")]
_Url = Annotated[str, typer.Option(help="The running proxy's admin port.")]
_AdminToken = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The admin token's file; needed off loopback only."),
]


@_cli.command()
def serve(config: _Config) -> None:
    """Run the proxy; SIGHUP reloads its configuration, SIGTERM drains it."""
    settings = _load(config)
    try:
        _run(lambda: Service(config, os.environ, SystemClock()).run(settings))
    except ConfigError as error:
        raise _refused(error) from None
    except CannotListen as error:
        typer.echo(f"{error}")
        raise typer.Exit(_CANNOT_LISTEN) from None


@_cli.command()
def check(config: _Config) -> None:
    """Check a configuration; exit 2 with one line per problem. A warning is no problem."""
    settings = _load(config)
    doubts = [
        *missing_files(settings),
        *doubts_about(settings, descriptors=hard_limit(), reserved=RESERVED_FILES),
        *(
            f"{key}: the secret stands in the file itself: write ${{NAME}}, or name a file of it"
            for key in written_secrets(config, os.environ)
        ),
    ]
    for doubt in doubts:
        typer.echo(f"warning: {doubt}")
    try:
        check_whole(settings)
    except ConfigError as error:
        raise _refused(error) from None
    typer.echo(f"{config}: ok")
    if settings.store.is_shared:
        typer.echo(
            f"store.timeout: {settings.store.timeout:g} s is for one answer of the store: it must"
            " be longer than a round trip to it; connecting has 2 s of its own"
        )


@_cli.command("schema")
def show_schema() -> None:
    """Print the JSON Schema of the configuration, for editors."""
    typer.echo(json.dumps(schema(), indent=2, ensure_ascii=False))


@_cli.command("demo")
def run_demo() -> None:
    """Run simulator, proxy and callers in one process, and show the pace."""
    raise typer.Exit(_run(demo.run))


@_cli.command()
def simulate(  # noqa: PLR0913, PLR0917 -- its parameters are the command's options
    port: Annotated[
        int, typer.Option(help="The port to listen on; 0 takes any.", max=65535, min=0)
    ],
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    interval: Annotated[
        float, typer.Option(help="Seconds the API wants between exports of one account.")
    ] = 0.5,
    opaque: Annotated[bool, typer.Option(help="Issue opaque tokens instead of JWTs.")] = False,
    hold: Annotated[
        float,
        typer.Option(
            help="Seconds for which an account's exports are refused, from its first one on.",
            min=0,
            metavar="SECONDS",
        ),
    ] = 0.0,
    scopes: Annotated[
        str, typer.Option(help="The scopes of every token, with blanks or commas between them.")
    ] = VOICE_SCOPE,
    secret: Annotated[
        str | None, typer.Option(help="The only secret with which clients may log in.")
    ] = None,
    slow: Annotated[
        float,
        typer.Option(help="Seconds that each answer of the API takes.", min=0, metavar="SECONDS"),
    ] = 0.0,
) -> None:
    """Simulate the export API and its login server; any client may log in."""
    if not all(map(isfinite, (interval, hold, slow))) or interval <= 0:
        raise typer.BadParameter(
            "--interval, --hold and --slow take a number of seconds, the first one above 0"
        )
    spec = ClientSpec(
        secret=secret, scopes=frozenset(scopes.replace(",", " ").split()), opaque=opaque
    )
    settings = SimulatorSettings(
        interval=interval, hold=hold, latency=slow, any_client=True, any_client_spec=spec
    )
    try:
        _run(lambda: run_simulator(settings, host=host, port=port, announce=typer.echo))
    except OSError as error:
        typer.echo(f"cannot listen on {authority(host, port)}: {error.strerror or error}")
        raise typer.Exit(_CANNOT_LISTEN) from None


@_cli.command("explain")
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

    With --response-file also, or only, say what a 403 of the API names as missing. Exit 0 if
    nothing is missing, 1 if a scope, a permission or a valid token is, 2 if there is no answer.
    """
    source, now = token_file or stdin, SystemClock().wall()
    is_denied = False
    if response_file is not None:
        is_denied = _show_denial(response_file, source)
        if account is None and config is None and source is None:
            raise typer.Exit(int(is_denied))
    try:
        if account is not None and config is None and source is None:
            subject, routes = _run(lambda: explain.ask(url, account, now))
        elif account is None and config is not None and source is not None:
            if (token_file and stdin) or (stdin not in {None, "-"}):
                raise typer.BadParameter("give the token once: --token-file FILE, or -")
            subject = explain.Subject.of_token(_read_input(source, "token"), now)
            routes = _load(config).routes
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


@_cli.command("status")
def show_status(
    url: _Url = ADMIN_URL,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again every second.")] = False,
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
            typer.echo(json.dumps(_run(lambda: status.ask(url)), indent=2))
        elif watch:
            _run(lambda: status.watch(url, console, SystemClock()))
        else:
            status.show(_run(lambda: status.ask(url)), console)
    except NoAnswer as error:
        typer.echo(f"{error}", err=True)
        raise typer.Exit(2) from None


@_cli.command()
def pause(
    account: Annotated[str, typer.Argument(help="A configured account.")],
    seconds: Annotated[
        float | None,
        typer.Option("--for", metavar="SECONDS", help="End the pause by itself after so long."),
    ] = None,
    url: _Url = ADMIN_URL,
    token_file: _AdminToken = None,
) -> None:
    """Send nothing for an account until it is resumed; its requests wait.

    Exit 0 if the account is paused, 2 if not.
    """
    _order(url, token_file, account, "pause", {} if seconds is None else {"for": seconds})


@_cli.command()
def resume(
    account: Annotated[str, typer.Argument(help="A configured account.")],
    url: _Url = ADMIN_URL,
    token_file: _AdminToken = None,
) -> None:
    """End the pause of an account; a hold that the API asked for goes on.

    Exit 0 if the account is not paused any more, 2 if the proxy did not obey.
    """
    _order(url, token_file, account, "resume", {})


@_cli.command()
def pace(
    account: Annotated[str, typer.Argument(help="A configured account.")],
    interval: Annotated[
        float,
        typer.Option("--seconds", help="Seconds between two sends; not below the configured ones."),
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
        typer.echo(_run(lambda: controls.order(url, token_file, account, action, document)))
    except NoAnswer as error:
        typer.echo(f"{error}", err=True)
        raise typer.Exit(2) from None


def _read_input(source: str, what: str, *, most: int = -1) -> str:
    """Read so many characters of a file, or of standard input (`-`)."""
    try:
        if source == "-":
            return sys.stdin.read(most)
        with Path(source).open(encoding="utf-8") as file:
            return file.read(most)
    except OSError as error:
        raise explain.CannotExplain(f"the {what} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise explain.CannotExplain(f"the {what} cannot be read: it is not UTF-8 text") from None


@_cli.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if version:
        typer.echo(f"export-proxy {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line."""
    _cli()


def _load(config: Path) -> Settings:
    try:
        return load(config, os.environ)
    except ConfigError as error:
        raise _refused(error) from None


def _refused(error: ConfigError) -> typer.Exit:
    for problem in error.problems:
        typer.echo(problem)
    return typer.Exit(2)


def _run(make: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
    """Run a coroutine on the fastest loop installed; Ctrl-C ends it without a traceback."""
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(make())
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415 -- not to be had on every platform
    except ImportError:
        return None
    return uvloop.new_event_loop
