"""What the kernel is told of a peer, and knows of it, over the socket of a transport."""

import asyncio
import gc
import os
import socket
from collections.abc import AsyncIterator
from typing import cast

import pytest

from proxy.http.peer_socket import PeerSocket
from proxy.http.sockets import CLOSED, poll_of

Pair = tuple[asyncio.Transport, socket.socket]


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    """A transport, and the socket of its peer."""
    ours, theirs = socket.create_server(("127.0.0.1", 0)), socket.socket()
    with ours, theirs:
        theirs.connect(ours.getsockname())
        _, writer = await asyncio.open_connection(sock=ours.accept()[0])
        yield cast("asyncio.Transport", writer.transport), theirs
        writer.close()
        await writer.wait_closed()


async def test_it_sets_options_of_the_transports_socket_and_never_closes_it(pair: Pair) -> None:
    transport, _ = pair
    held = transport.get_extra_info("socket")
    peer = PeerSocket(transport)
    peer.bound_silence(7.5)
    assert held.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert held.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 7500
    del peer
    gc.collect()
    os.fstat(held.fileno())  # raises OSError if it is closed


async def test_a_peer_is_present_until_it_closes(pair: Pair) -> None:
    transport, theirs = pair
    peer = PeerSocket(transport)
    assert peer.is_present()
    theirs.close()
    assert poll_of(transport, CLOSED).poll(10_000)  # the loop does not run meanwhile
    assert not peer.is_present()


async def test_a_lost_socket_is_asked_and_told_nothing(pair: Pair) -> None:
    transport, _ = pair
    held = transport.get_extra_info("socket")
    peer = PeerSocket(transport)
    peer.lose()
    peer.bound_silence(7.5)
    assert not peer.is_present()
    assert held.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) != 7500
