"""What is known of a transport's socket."""

import asyncio
import gc
import os
import socket

from proxy.http.sockets import BorrowedSocket


async def test_a_borrowed_socket_sets_options_of_the_transports_and_never_closes_it() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        _, writer = await asyncio.open_connection(sock=ours)
        held = writer.transport.get_extra_info("socket")
        borrowed = BorrowedSocket(writer.transport)
        borrowed.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        assert held.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        del borrowed
        gc.collect()
        os.fstat(held.fileno())  # raises OSError if it is closed
        writer.close()
        await writer.wait_closed()
