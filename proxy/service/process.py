"""`export-proxy serve`: the process around the proxy: signals, reloads, log, service manager.

SIGHUP reloads. Reloads are done one after another and none is left out; while one reads its files,
the proxy serves. The first SIGTERM or SIGINT drains; a second one ends the process at once. During
the drain no request is sent again.
"""

import asyncio
import gc
import os
import resource
import signal
import sys
from collections.abc import Awaitable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from math import inf
from pathlib import Path
from typing import Any, Final

import structlog

from proxy.clock import Clock, Timer
from proxy.service.app import Proxy
from proxy.service.doubts import doubts_about
from proxy.service.lifecycle import running
from proxy.service.systemd import Notifier, watchdog_pause
from proxy.settings import ConfigError, Settings, load
from proxy.settings.files import aside, read_configuration
from proxy.telemetry.logs import Sink, logging_to, obey

_log = structlog.get_logger(__name__)

RESERVED_FILES: Final = 64  # descriptors for the admin port, files, and the loop itself
_KILLED_BY: Final = 128  # plus the signal's number: the exit status a shell gives
_NOT_NOW: Final = "the proxy is starting or shutting down; it does not reload now"
_LAST_WORDS: Final = 0.1  # seconds for the log when there is no time left


class Service:
    """One process that serves a configuration file."""

    def __init__(self, config: Path, environ: Mapping[str, str], clock: Clock) -> None:
        self._config = config
        self._environ = environ
        self._clock = clock
        self._notifier = Notifier(environ)
        self._stop = asyncio.Event()
        self._reloads: set[asyncio.Task[None]] = set()
        self._one_reload = asyncio.Lock()
        self._proxy: Proxy | None = None
        self._sink: Sink

    async def run(self, settings: Settings) -> None:
        """Serve until told to stop, then drain. Raises ConfigError if it cannot start."""
        self._sink = Sink(settings.log, clock=self._clock, descriptor=sys.stderr.fileno())
        with logging_to(self._sink), self._watchdog():
            self._obey_signals()
            settings = fit_descriptors(settings)
            async with running(settings, self._clock, sink=self._sink, reload=self._reload) as now:
                self._proxy = now.proxy
                _settle_collector()
                self._notifier.ready()
                _log.info("serving", listen=now.url, admin=now.admin_url)
                warn_of_plain_http(settings)
                warn_of_doubts(settings)
                warn_of_observing(settings)
                await self._stop.wait()
                self._notifier.stopping()
                _log.info("draining")
                await self._end_reloads()
            _log.info("stopped")

    def _obey_signals(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._end, signal.SIGTERM)
        loop.add_signal_handler(signal.SIGINT, self._end, signal.SIGINT)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)

    def _end(self, number: signal.Signals) -> None:
        if self._stop.is_set():
            self._sink.close(within=_LAST_WORDS)
            os._exit(_KILLED_BY + number)  # no clean-up, which could take time
        self._stop.set()

    def _hang_up(self) -> None:
        _ = self._begin(self._reload_and_log())  # a task that is kept

    async def _reload_and_log(self) -> None:
        await _logged(self._reload_in_turn())

    async def _reload(self) -> None:
        """Reload for the admin port, also if the operator does not wait for its end."""
        task = self._begin(self._reload_in_turn())
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():  # the drain has begun
                raise ConfigError((_NOT_NOW,)) from None
            _ = self._begin(_logged(task))  # the operator left; a task that is kept
            raise

    def _begin(self, reload: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(reload)
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)
        return task

    async def _end_reloads(self) -> None:
        """End those that still read: to obey them now is of no use."""
        for task in self._reloads:
            task.cancel()
        if self._reloads:
            await asyncio.wait(self._reloads)

    async def _reload_in_turn(self) -> None:
        """Read the file again and obey it; a bad one raises ConfigError and changes nothing."""
        async with self._one_reload:
            if self._proxy is None or self._stop.is_set():
                raise ConfigError((_NOT_NOW,))
            self._notifier.reloading(self._clock.monotonic())
            try:
                settings = await aside(self._read)
                await self._proxy.reload(fit_descriptors(settings))
                obey(settings.log, self._sink)
                _log.info("reloaded")
                warn_of_plain_http(settings)
                warn_of_observing(settings)
            finally:
                if not self._stop.is_set():
                    self._notifier.ready()

    def _read(self) -> Settings:
        return load(self._config, self._environ, read=read_configuration)

    @contextmanager
    def _watchdog(self) -> Iterator[None]:
        """Notify the service manager's watchdog, in the drain too, unless a queue is stalled."""
        pause = watchdog_pause(self._environ, os.getpid())
        timer: Timer | None = None

        def feed(pause: float) -> None:
            nonlocal timer
            if self._proxy is None or not self._proxy.accounts.is_stalled():
                self._notifier.alive()
            timer = self._clock.call_at(self._clock.monotonic() + pause, lambda: feed(pause))

        if pause is not None:
            feed(pause)
        try:
            yield
        finally:
            if timer is not None:
                timer.cancel()


async def _logged(reload: Awaitable[None]) -> None:
    """Wait for a reload, and log that it is refused."""
    try:
        await reload
    except ConfigError as error:
        _log.error("reload refused, the old configuration stays", problems=error.problems)


def _settle_collector() -> None:
    """Exempt the objects of the start from garbage collection, and collect the rest rarely.

    Reference counts free a finished request; only cycles wait for the collector. By default it runs
    after every 700 new objects, and often scans all modules and waiting callers. Each run stops the
    process, so the middle generation is small: 15,000 objects take some 20 ms.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 3, 1_000)


def fit_descriptors(settings: Settings) -> Settings:
    """Raise the soft limit of open files to what is configured, or shrink the configuration."""
    limits, upstream = settings.limits, settings.upstream
    wanted = limits.max_connections + upstream.max_connections + RESERVED_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft != unlimited and soft < wanted:
        soft = wanted if hard == unlimited else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == unlimited or soft >= wanted:
        return settings
    share = max(1, (soft - min(RESERVED_FILES, soft // 2)) // 3)
    callers = min(limits.max_connections, 2 * share)
    upstreams = min(upstream.max_connections, share)
    _log.warning(
        "too few file descriptors: connections are limited",
        descriptors=soft,
        max_connections=callers,
        upstream_max_connections=upstreams,
    )
    return settings.model_copy(
        update={
            "limits": limits.model_copy(update={"max_connections": callers}),
            "upstream": upstream.model_copy(update={"max_connections": upstreams}),
        }
    )


def warn_of_observing(settings: Settings) -> None:
    """Warn if the pace of any account is not kept."""
    mode, modes = settings.pacing.mode, {one.name: one.mode for one in settings.accounts}
    observed = [name for name, own in modes.items() if (own or mode) == "observe"]
    if observed or mode == "observe":
        _log.warning(
            "the pace is only observed: requests are neither paced nor held",
            accounts=observed,
            others=mode == "observe",
        )


def hard_limit() -> float:
    """Return how many descriptors the process may have at most."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return inf if hard == resource.RLIM_INFINITY else hard


def warn_of_doubts(settings: Settings) -> None:
    """Log what is doubtful in the configuration; `check` says it in the same words."""
    for doubt in doubts_about(settings, descriptors=inf, reserved=RESERVED_FILES):
        _log.warning("the configuration is doubtful", doubt=doubt)


def warn_of_plain_http(settings: Settings) -> None:
    """Warn if managed tokens and secrets would cross a network unencrypted."""
    listen = settings.listen
    is_local = listen.host in {"localhost", "::1"} or listen.host.startswith("127.")
    if listen.tls is None and not is_local and any(a.is_managed for a in settings.accounts):
        _log.warning("plain HTTP off loopback with managed accounts: set listen.tls")
