"""What commands start with: the environment, the configuration, and an event loop."""

import asyncio
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import typer

from proxy.settings import ConfigError, Settings, load

_T = TypeVar("_T")
ENVIRONMENT: Final = os.environ
ConfigFile = Annotated[
    Path, typer.Option("--config", help="The configuration file.", metavar="FILE")
]


def read_settings(config: Path) -> Settings:
    """Return the settings; a file with an error ends the command."""
    try:
        return load(config, ENVIRONMENT)
    except ConfigError as error:
        raise refused(error) from None


def refused(error: ConfigError) -> typer.Exit:
    """Print the problems, and return the exit to raise."""
    for problem in error.problems:
        typer.echo(problem)
    return typer.Exit(2)


def run(make: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
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
