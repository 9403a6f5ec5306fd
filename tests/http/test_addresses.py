"""Addresses: a literal one needs no thread."""

import asyncio
import threading

from proxy.http.addresses import Addresses


async def test_an_address_is_known_although_all_threads_are_busy() -> None:
    """The event loop's threads may all be at work; a look-up would wait for one."""
    loop, over = asyncio.get_running_loop(), threading.Event()
    busy = [loop.run_in_executor(None, over.wait) for _ in range(64)]
    addresses = Addresses("127.0.0.1", 8080)
    try:
        async with asyncio.timeout(5):
            (found,) = await addresses.get()
    finally:
        over.set()
        await asyncio.gather(*busy)
        await addresses.close()
    assert found[4] == ("127.0.0.1", 8080)
