"""A proxy's life: it opens its two ports, serves, drains, and closes everything.

The drain: for `drain_delay` seconds only readiness fails, and requests that can be sent in that
time are served. Then the listen port closes, and requests that wait or arrive are refused. Sent
requests get their answer until two seconds before `drain_timeout`; then the proxy gives up the
unanswered ones, and tells their callers.
"""

import asyncio
import errno
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Final

from proxy.clock import Clock
from proxy.http.listener import Listener
from proxy.http.sockets import authority
from proxy.pacing.accounts import Accounts
from proxy.service.app import Proxy
from proxy.settings import Admin as AdminSettings
from proxy.settings import ConfigError, Listen, Settings
from proxy.telemetry.logs import Sink

_LAST_SECONDS: Final = 2.0  # of the drain, in which what is unanswered is given up and told so
_DRAIN_POLL: Final = 0.05
_BACKLOG: Final = 128
_MAY_PASS: Final = frozenset({errno.EADDRINUSE, errno.EADDRNOTAVAIL})  # by itself, in a while


class CannotListen(Exception):
    """A port or address is not available now, but may be later; the message names the key."""


@dataclass(frozen=True, slots=True)
class Running:
    """A proxy that serves; the URLs have the ports actually opened."""

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
    reload: Callable[[], Awaitable[None]] | None = None,
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
            with _opening("admin"):
                admin_url = await _listen(stack, proxy.admin_listener, settings.admin)
            with _opening("listen"):
                url = await _listen(stack, proxy.listener, settings.listen, proxy.tls)
            proxy.is_listening = True
            yield Running(url, admin_url, proxy)
            await _drain(proxy)
    except BaseExceptionGroup as group:
        if len(group.exceptions) > 1:
            raise
        raise group.exceptions[0] from None  # as it was before the task group wrapped it


async def _drain(proxy: Proxy) -> None:
    """Refuse waiting requests, deliver the answers in flight, and give up the late ones."""
    limits = proxy.settings.limits
    begun = proxy.clock.monotonic()
    deadline = begun + limits.drain_timeout - _LAST_SECONDS
    if limits.drain_delay:
        proxy.drain.announce(begun + limits.drain_delay)
        await proxy.clock.sleep_until(begun + limits.drain_delay)
    proxy.begin_drain()
    proxy.listener.stop_listening()
    while _is_delivering(proxy) and proxy.clock.monotonic() < deadline:
        await proxy.clock.sleep_until(proxy.clock.monotonic() + _DRAIN_POLL)
    await proxy.give_up()


def _is_delivering(proxy: Proxy) -> bool:
    """True while a request is being answered, or some of an answer has not left."""
    return proxy.under_way > 0 or proxy.listener.is_delivering


async def _listen(
    stack: AsyncExitStack,
    listener: Listener,
    at: Listen | AdminSettings,
    tls: ssl.SSLContext | None = None,
) -> str:
    stack.push_async_callback(listener.close, _LAST_SECONDS / 4)
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
