"""A server whose answers never end, and that looks at the bare connection for its end.

It serves from a thread, either writing on, or silent after some chunks. It takes no part in an
orderly close of TLS, where asyncio's own servers end at once.
"""

import contextlib
import os
import socket
import ssl
import threading
from typing import Self

from proxy.clock import SystemClock
from tests.kit.listener import HOST

_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
_CHUNK = b"1000\r\n" + b"x" * 4096 + b"\r\n"
_PAUSE = 0.001  # seconds between two chunks
_LONGEST = 60.0  # seconds a test may take
_clock = SystemClock()


class EndlessServer:
    """Answers each request without an end; `broken` has the time at which each path was ended."""

    def __init__(self, context: ssl.SSLContext | None = None, *, silent_after: int = 0) -> None:
        self.broken: dict[str, float] = {}
        self._context = context
        self._silent_after = silent_after  # chunks of 4 kB; 0 for an answer that goes on
        self._listening = socket.create_server((HOST, 0))
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._accept, name="endless", daemon=True)]

    @property
    def url(self) -> str:
        scheme = "http" if self._context is None else "https"
        return f"{scheme}://{HOST}:{self._listening.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for thread in self._threads:
            thread.join(_LONGEST)

    def _accept(self) -> None:
        while not self._is_over.is_set():
            try:
                accepted, _ = self._listening.accept()
            except OSError:  # the end
                return
            accepted.settimeout(_LONGEST / 4)
            thread = threading.Thread(
                target=self._serve, args=(accepted,), name="endless", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def _serve(self, accepted: socket.socket) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(accepted.close)
            try:
                if self._context is not None:
                    accepted = self._context.wrap_socket(accepted, server_side=True)
                    stack.callback(accepted.close)
                request = b""
                while b"\r\n\r\n" not in request:
                    part = accepted.recv(65_536)
                    if not part:
                        return
                    request += part
                accepted.sendall(_HEAD)
            except OSError:
                return
            path = request.split(b" ", 2)[1].decode()
            try:
                if self._silent_after:
                    accepted.sendall(self._silent_after * _CHUNK)
                    self._see_end(accepted)
                while not self._silent_after and not self._is_over.wait(_PAUSE):
                    accepted.sendall(_CHUNK)
            except TimeoutError:  # neither is anything read nor does the end come
                return
            except OSError:
                pass
            self.broken[path] = _clock.monotonic()

    @staticmethod
    def _see_end(accepted: socket.socket) -> None:
        """Wait until the peer closes or resets the connection below TLS."""
        with socket.socket(fileno=os.dup(accepted.fileno())) as bare:
            bare.settimeout(_LONGEST / 4)
            while bare.recv(65_536):
                pass
