"""The command line: each command is thin, and says in a sentence what went wrong.

The commands that talk to a running proxy are in running.py.
"""

import json
from math import isfinite
from typing import Annotated, Final

import typer

from proxy import __version__, demo
from proxy.cli import running
from proxy.cli.starting import (
    ENVIRONMENT,
    ConfigFile,
    end_on_sigterm,
    read_settings,
    refused,
    run,
)
from proxy.clock import SystemClock
from proxy.http.sockets import authority
from proxy.service.doubts import doubts_about
from proxy.service.lifecycle import CannotListen
from proxy.service.process import RESERVED_FILES, Service, hard_limit
from proxy.service.reload import check_whole, missing_files
from proxy.settings import ConfigError, schema, written_secrets
from proxy.simulator import VOICE_SCOPE, ClientSpec, SimulatorSettings
from proxy.simulator import run as run_simulator

_cli = typer.Typer(
    name="export-proxy",
    help="Paces export requests, honours Retry-After and keeps tokens fresh.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,  # locals may hold secrets
)
_CANNOT_LISTEN: Final = 3  # an exit code of its own: starting again later may help


@_cli.command()
def serve(config: ConfigFile) -> None:
    """Run the proxy; SIGHUP reloads its configuration, SIGTERM drains it."""
    settings = read_settings(config)
    try:
        run(lambda: Service(config, ENVIRONMENT, SystemClock()).run(settings))
    except ConfigError as error:
        raise refused(error) from None
    except CannotListen as error:
        typer.echo(f"{error}")
        raise typer.Exit(_CANNOT_LISTEN) from None


@_cli.command()
def check(config: ConfigFile) -> None:
    """Check a configuration; exit 2 with one line per problem. Warnings do not count."""
    settings = read_settings(config)
    doubts = [
        *missing_files(settings),
        *doubts_about(settings, descriptors=hard_limit(), reserved=RESERVED_FILES),
        *(
            f"{key}: the secret itself is in this file: write ${{NAME}}, or name a file with it"
            for key in written_secrets(config, ENVIRONMENT)
        ),
    ]
    for doubt in doubts:
        typer.echo(f"warning: {doubt}")
    try:
        check_whole(settings)
    except ConfigError as error:
        raise refused(error) from None
    typer.echo(f"{config}: ok")
    if settings.store.is_shared:
        typer.echo(
            f"store.timeout: {settings.store.timeout:g} s is the time for one answer of the store:"
            " it must be longer than a round trip to the store; connecting has 2 s of its own"
        )


@_cli.command("schema")
def show_schema() -> None:
    """Print the JSON Schema of the configuration, for editors."""
    typer.echo(json.dumps(schema(), indent=2, ensure_ascii=False))


@_cli.command("demo")
def run_demo() -> None:
    """Run simulator, proxy and callers in one process, and show the pace."""
    end_on_sigterm()
    raise typer.Exit(run(demo.run))


@_cli.command()
def simulate(  # noqa: PLR0913, PLR0917 -- its parameters are the command's options
    port: Annotated[
        int, typer.Option(help="The port to listen on; 0 takes any.", max=65535, min=0)
    ],
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    interval: Annotated[
        float, typer.Option(help="Seconds the API requires between exports of one account.")
    ] = 0.5,
    opaque: Annotated[bool, typer.Option(help="Issue opaque tokens instead of JWTs.")] = False,
    hold: Annotated[
        float,
        typer.Option(
            help="Seconds for which the API refuses an account's exports, from the first one on.",
            min=0,
            metavar="SECONDS",
        ),
    ] = 0.0,
    scopes: Annotated[
        str, typer.Option(help="The scopes of every token, with blanks or commas between them.")
    ] = VOICE_SCOPE,
    secret: Annotated[
        str | None, typer.Option(help="The only secret that the login server accepts.")
    ] = None,
    slow: Annotated[
        float,
        typer.Option(help="Seconds that each answer of the API takes.", min=0, metavar="SECONDS"),
    ] = 0.0,
) -> None:
    """Simulate the export API and its login server; accept any client."""
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
    end_on_sigterm()
    try:
        run(lambda: run_simulator(settings, host=host, port=port, announce=typer.echo))
    except OSError as error:
        typer.echo(f"cannot listen on {authority(host, port)}: {error.strerror or error}")
        raise typer.Exit(_CANNOT_LISTEN) from None


_cli.add_typer(running.commands)


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
