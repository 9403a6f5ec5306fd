"""Messages to the service manager: sd_notify(3) and sd_watchdog_enabled(3).

Each is a datagram to the socket named by `$NOTIFY_SOCKET`. Without that variable nothing is sent;
if the service manager does not read them, the proxy goes on.
"""

import contextlib
import socket
from collections.abc import Mapping


class Notifier:
    """Sends states to the service manager, if there is one."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        # A leading @ stands for Linux's abstract namespace.
        self._address = "\0" + address[1:] if address.startswith("@") else address

    def ready(self) -> None:
        """Report the end of the start, or of a reload."""
        self._send("READY=1")

    def reloading(self, monotonic: float) -> None:
        """Report the start of a reload; `monotonic` is in seconds, and distinguishes reloads."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={int(monotonic * 1e6)}")

    def stopping(self) -> None:
        """Report the start of the drain."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """Notify the watchdog."""
        self._send("WATCHDOG=1")

    def _send(self, state: str) -> None:
        if not self._address:
            return
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock,
        ):
            sock.setblocking(False)  # noqa: FBT003 -- the socket module's way to say it
            sock.connect(self._address)
            sock.send(state.encode())


def watchdog_pause(environ: Mapping[str, str], pid: int) -> float | None:
    """Return the seconds between two messages, half of what the watchdog allows; None without one.

    A watchdog that was set for another process does not count.
    """
    microseconds = environ.get("WATCHDOG_USEC", "")
    if environ.get("WATCHDOG_PID", str(pid)) != str(pid) or not microseconds.isdecimal():
        return None
    return int(microseconds) / 2e6 or None
