"""The same load on the proxy and on nginx with `limit_req`, side by side.

nginx books a slot on arrival, so a caller that hangs up, or that the API refuses, has used it.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from bench.findings import Finding
from bench.processes import HOST, MEASURED_CORE, Server, api, ask, called, proxy, running
from tests.kit.upstream import free_port

_ACCOUNTS, _CALLERS = 4, 20
_CONFIG = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    limit_req_zone $http_authorization zone=accounts:10m rate=2r/s;
    upstream api {{ server {host}:{api}; keepalive 64; keepalive_timeout 4s; }}
    server {{
        listen {host}:{port};
        location / {{
            limit_req zone=accounts burst=1000;
            proxy_pass http://api;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
        }}
    }}
}}
"""


async def nginx() -> Sequence[Finding]:
    """Call with 4 x 20 callers: a plain burst, half of them leaving, the quota eaten by others."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        apis = [await stack.enter_async_context(api()) for _ in range(2)]
        ours = await stack.enter_async_context(proxy(folder, apis[0]))
        theirs = await stack.enter_async_context(_nginx(folder, apis[1]))
        await asyncio.sleep(1)
        plain = await _both(ours, theirs)
        leaving = await _both(ours, theirs, leaving=0.5)
        for upstream in apis:
            await ask(upstream, "/control/eaten?after=2&for=3")
        eaten = await _both(ours, theirs)
    refused, refused_by_nginx = [_refused(result) for result in eaten]
    return [
        _finding("goodput of a burst / nginx's", plain, 0.995),
        _finding("goodput while half hang up / nginx's", leaving, 1.7),
        Finding(
            scenario="nginx",
            what="callers refused while another client uses up the quota",
            value=refused,
            target=0,
            details={"nginx": refused_by_nginx, "of": _ACCOUNTS * _CALLERS},
        ),
    ]


def _finding(what: str, results: Sequence[dict[str, Any]], target: float) -> Finding:
    ours, theirs = (result["statuses"].get("200", 0) / result["seconds"] for result in results)
    details = {
        name: {"seconds": result["seconds"], "statuses": result["statuses"]}
        for name, result in zip(("ours", "nginx"), results, strict=True)
    }
    return Finding(
        scenario="nginx",
        what=what,
        value=ours / theirs,
        target=target,
        at_least=True,
        details=details,
    )


def _refused(result: dict[str, Any]) -> int:
    return sum(count for status, count in result["statuses"].items() if status != "200")


async def _both(*servers: Server, leaving: float = 0.0) -> Sequence[dict[str, Any]]:
    load = {"accounts": _ACCOUNTS, "callers": _CALLERS, "seconds": 20, "leaving": leaving}
    results = await asyncio.gather(*(called(server, "burst", **load) for server in servers))
    await asyncio.sleep(11)  # until the slots that were booked for those who left are over
    return results


@asynccontextmanager
async def _nginx(folder: Path, upstream: Server) -> AsyncIterator[Server]:
    port = free_port()
    config = folder / "nginx.conf"
    config.write_text(_CONFIG.format(folder=folder, host=HOST, port=port, api=upstream.port))
    async with running("nginx", "-c", str(config), "-e", "stderr", core=MEASURED_CORE) as child:
        await asyncio.sleep(0.5)
        yield Server(port, child.pid)
