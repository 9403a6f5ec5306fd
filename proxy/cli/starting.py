"""What commands start with: the environment, the configuration, and an event loop."""

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn, TypeVar

import typer

from proxy.settings import ConfigError, Settings, load

_T = TypeVar("_T")
ENVIRONMENT: Final = os.environ
_KILLED_BY: Final = 128  # plus the signal's number: the exit status a shell gives
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


def end_on_sigterm() -> None:
    """End at once on SIGTERM, without a clean-up.

    In a container the command is process 1, for which the kernel ignores SIGTERM if there is no
    handler.
    """
    signal.signal(signal.SIGTERM, _end)


def _end(number: int, _frame: object) -> NoReturn:
    os._exit(_KILLED_BY + number)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415 -- not to be had on every platform
    except ImportError:
        return None
    return uvloop.new_event_loop
