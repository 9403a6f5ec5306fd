"""What the proxy is held against: the HTTP library on its own, with nothing else done.

python -m bench.bare --upstream URL   a reverse proxy that copies headers and body
python -m bench.bare                  a server whose callers only wait
"""

import argparse
import asyncio
import json
import logging
import resource
import sys

import aiohttp
import uvloop
from aiohttp import web

IDLE_TIMEOUT = 4.0  # upstream.idle_timeout of the proxy
_HOP_BY_HOP = ("Connection", "Keep-Alive", "TE", "Trailer", "Transfer-Encoding", "Upgrade")
_BACKLOG = 4096


class Forwarder:
    """Copies headers and body, there and back."""

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=1000, keepalive_timeout=IDLE_TIMEOUT),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        headers = request.headers.copy()
        for name in (*_HOP_BY_HOP, "Host"):
            headers.popall(name, None)
        async with self._session.request(
            request.method,
            self._upstream + request.raw_path,
            headers=headers,
            data=await request.read() if request.can_read_body else None,
            allow_redirects=False,
        ) as answer:
            headers = answer.headers.copy()
            for name in _HOP_BY_HOP:
                headers.popall(name, None)
            response = web.StreamResponse(
                status=answer.status, reason=answer.reason, headers=headers
            )
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
            return response


async def wait(_: web.Request) -> web.StreamResponse:
    """Answer never."""
    await asyncio.get_running_loop().create_future()
    return web.Response()


async def _serve(upstream: str | None) -> None:
    logging.disable()  # who leaves in the middle of an answer is no news
    application = web.Application()
    handler = wait if upstream is None else Forwarder(upstream)
    application.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(application, access_log=None, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=_BACKLOG).start()
    print(json.dumps({"port": runner.addresses[0][1]}), flush=True)
    await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--upstream")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop_runner:
        sys.exit(loop_runner.run(_serve(parser.parse_args().upstream)))
