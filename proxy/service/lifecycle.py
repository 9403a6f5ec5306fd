"""A proxy's life: its two ports are opened, it serves, it drains, everything is closed.

The drain: for `drain_delay` seconds only readiness fails, and requests that can be sent in that
time are served. Then the listen port closes, and requests that wait or arrive are refused; those
that were sent get their answer, until two seconds before `drain_timeout`. What is unanswered then
is given up, and its callers are told so.
"""

import asyncio
import errno
import os
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from proxy.clock import Clock
from proxy.http.listener import Listener
from proxy.http.server import Server, Site
from proxy.http.sockets import authority
from proxy.pacing.accounts import Accounts
from proxy.service.app import Proxy
from proxy.settings import Admin as AdminSettings
from proxy.settings import ConfigError, Limits, Listen, Settings
from proxy.telemetry.logs import Sink

_LAST_SECONDS: Final = 2.0  # of the drain, in which what is unanswered is given up and told so
_DRAIN_POLL: Final = 0.05
_BACKLOG: Final = 128
_ADMIN_CONNECTIONS: Final = 24  # fewer than the descriptors that are kept for it
_MAY_PASS: Final = frozenset({errno.EADDRINUSE, errno.EADDRNOTAVAIL})  # by itself, in a while


class CannotListen(Exception):
    """A port or address cannot be had now, and may be free later; the message names the key."""


@dataclass(frozen=True, slots=True)
class Running:
    """A proxy that serves; the URLs have the ports that were really taken."""

    url: str
    admin_url: str
    proxy: Proxy

    @property
    def accounts(self) -> Accounts:
        """The accounts, with their queues."""
        return self.proxy.accounts


@asynccontextmanager
async def running(
    settings: Settings,
    clock: Clock,
    *,
    sink: Sink | None = None,
    reload: Callable[[], None] | None = None,
) -> AsyncIterator[Running]:
    """Run a proxy for as long as the context lasts; at its end it drains.

    The admin port's reload calls `reload`, which raises ConfigError if it cannot; `sink` takes the
    log. A background task that fails, which would be a bug, ends the proxy.
    """
    try:
        async with asyncio.TaskGroup() as tasks, AsyncExitStack() as stack:
            proxy = Proxy(settings, clock, tasks, sink=sink, reload=reload)
            stack.push_async_callback(proxy.close)
            if proxy.sharing.store is not None:
                await proxy.sharing.store.settled.wait()
            admin = _AdminRunner(proxy.admin.application(), settings.limits)
            admin_url = await _listen_for_operators(stack, admin, settings.admin)
            url = await _listen(stack, proxy.listener, settings.listen, proxy.tls)
            proxy.is_listening = True
            yield Running(url, admin_url, proxy)
            await _drain(proxy)
    except BaseExceptionGroup as group:
        if len(group.exceptions) > 1:
            raise
        raise group.exceptions[0] from None  # as it was before the task group wrapped it


class _AdminRunner(web.AppRunner):
    """Serves the admin port with the listen port's care, and connections of its own to count."""

    __slots__ = ("_limits",)

    def __init__(self, application: web.Application, limits: Limits) -> None:
        super().__init__(application, access_log=None, shutdown_timeout=_LAST_SECONDS / 4)
        self._limits = limits.model_copy(update={"max_connections": _ADMIN_CONNECTIONS})

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return Server(made.request_handler, self._limits, request_factory=made.request_factory)


async def _drain(proxy: Proxy) -> None:
    """Refuse what waits, deliver what is in flight, and give up what is not answered in time."""
    limits = proxy.settings.limits
    begun = proxy.clock.monotonic()
    deadline = begun + limits.drain_timeout - _LAST_SECONDS
    if limits.drain_delay:
        proxy.drain.announce(begun + limits.drain_delay)
        await proxy.clock.sleep_until(begun + limits.drain_delay)
    proxy.begin_drain()
    proxy.listener.stop_listening()
    while proxy.under_way and proxy.clock.monotonic() < deadline:
        await proxy.clock.sleep_until(proxy.clock.monotonic() + _DRAIN_POLL)
    await proxy.give_up()


async def _listen_for_operators(
    stack: AsyncExitStack, runner: web.BaseRunner, at: AdminSettings
) -> str:
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    with _opening("admin"):
        await Site(runner, at.host, at.port, backlog=_BACKLOG).start()
    return f"http://{authority(at.host, runner.addresses[0][1])}"


async def _listen(
    stack: AsyncExitStack, listener: Listener, at: Listen, tls: ssl.SSLContext | None
) -> str:
    stack.push_async_callback(listener.close, _LAST_SECONDS / 4)
    with _opening("listen"):
        port = await listener.listen(at.host, at.port, backlog=_BACKLOG, tls=tls)
    return f"{'https' if tls else 'http'}://{authority(at.host, port)}"


@contextmanager
def _opening(section: str) -> Iterator[None]:
    """Name the key of a port that cannot be opened."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        complaint = f"{section}.port: cannot be listened on: {reason}"
        if error.errno in _MAY_PASS:
            raise CannotListen(complaint) from None
        raise ConfigError((complaint,)) from None
