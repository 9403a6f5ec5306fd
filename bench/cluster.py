"""`make cluster`: what docker-compose.yml runs, natively, with the same files in config/cluster/.

Redis, the stand-in API, two replicas, and the load balancer where HAProxy is installed. It runs
until Ctrl-C, or for `--seconds`; with `--check` it sends exports first and fails unless the two
replicas kept one pace.
"""

import argparse
import asyncio
import json
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Final

from tests.kit.client import Response, exchange, parse_response
from tests.kit.upstream import free_port

FILES: Final = Path(__file__).resolve().parent.parent / "config" / "cluster"
HOST: Final = "127.0.0.1"
PYTHON: Final = (sys.executable, "-m", "proxy")
STARTED_WITHIN: Final = 20.0
STOPPED_WITHIN: Final = 30.0  # the stop_grace_period
INTERVAL: Final = 0.5
EXPORTS: Final = 8
EXPORT: Final = "/api/v2/recordings/exports"
BODY: Final = b'{"channel": "voice"}'
FORM: Final = b"grant_type=client_credentials&client_id=any&client_secret=any"


class Cluster:
    """Programs in the order of their start; the last one is stopped first."""

    def __init__(self) -> None:
        self.children: dict[str, asyncio.subprocess.Process] = {}

    async def start(
        self, name: str, command: Sequence[str], environ: Mapping[str, str] = {}
    ) -> None:
        # In a group of its own: Ctrl-C is for us, and we stop them in order.
        self.children[name] = await asyncio.create_subprocess_exec(
            *command,
            env={**os.environ, **environ},
            start_new_session=True,
            stdout=asyncio.subprocess.DEVNULL,
        )

    async def stop(self) -> None:
        for name, child in reversed(self.children.items()):
            if child.returncode is None:
                child.send_signal(signal.SIGTERM)
                try:
                    async with asyncio.timeout(STOPPED_WITHIN):
                        await child.wait()
                except TimeoutError:
                    print(f"{name} did not end and is killed")
                    child.kill()
                    await child.wait()

    async def ends(self) -> str:
        """Wait until any of them ends; its name."""
        waits = {asyncio.ensure_future(one.wait()): name for name, one in self.children.items()}
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            return waits[done.pop()]
        finally:
            for wait in waits:
                wait.cancel()


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8080, help="where callers connect")
    parser.add_argument("--seconds", type=float, help="stop after so many")
    parser.add_argument("--check", action="store_true", help="send exports, judge, and stop")
    options = parser.parse_args()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cluster-")))
        cluster = Cluster()
        stack.push_async_callback(cluster.stop)
        if not is_free(options.port):
            print(f"port {options.port} is taken")
            return 1
        entries, admins = await start_all(cluster, folder, options.port)
        if options.check:
            return await check(cluster, entries, admins)
        return await wait_for_the_end(cluster, stop, options.seconds)


async def wait_for_the_end(cluster: Cluster, stop: asyncio.Event, seconds: float | None) -> int:
    asked = asyncio.ensure_future(stop.wait())
    ended = asyncio.ensure_future(cluster.ends())
    done, rest = await asyncio.wait(
        [asked, ended], timeout=seconds, return_when=asyncio.FIRST_COMPLETED
    )
    for wait in rest:
        wait.cancel()
    await asyncio.wait([asked, ended])
    if ended in done:
        print(f"{ended.result()} ended by itself")
        return 1
    print("stopping")
    return 0


def is_free(port: int) -> bool:
    """True if nothing listens there yet, so that what answers later is ours."""
    with socket.socket() as sock:
        return sock.connect_ex((HOST, port)) != 0


async def start_all(cluster: Cluster, folder: Path, port: int) -> tuple[list[int], list[int]]:
    """Start everything; the ports at which callers are served, and the replicas' admin ports."""
    redis_port, api_port = free_port(), free_port()
    redis = ["redis-server", str(FILES / "redis.conf"), "--bind", HOST]
    await cluster.start("redis", [*redis, "--port", str(redis_port), "--dir", str(folder)])
    await cluster.start("simulator", [*PYTHON, "simulate", "--port", str(api_port)])
    api_url = f"http://{HOST}:{api_port}"
    addresses: dict[str, str] = {"CLUSTER_LISTEN": f"{HOST}:{port}"}
    entries, admins = [], []
    for number in (1, 2):
        listen, admin = free_port(), free_port()
        await cluster.start(
            f"proxy-{number}",
            [*PYTHON, "serve", "--config", str(FILES / "proxy.yaml")],
            {
                "EXPORT_PROXY__LISTEN__HOST": HOST,
                "EXPORT_PROXY__LISTEN__PORT": str(listen),
                "EXPORT_PROXY__ADMIN__HOST": HOST,
                "EXPORT_PROXY__ADMIN__PORT": str(admin),
                "EXPORT_PROXY__UPSTREAM__API_URL": api_url,
                "EXPORT_PROXY__UPSTREAM__LOGIN_URL": api_url,
                "EXPORT_PROXY__STORE__URL": f"redis://{HOST}:{redis_port}/0",
            },
        )
        addresses[f"CLUSTER_PROXY_{number}"] = f"{HOST}:{listen}"
        addresses[f"CLUSTER_ADMIN_{number}"] = str(admin)
        entries.append(listen)
        admins.append(admin)
        await until_ready(admin)
        print(f"proxy-{number}: http://{HOST}:{listen}, admin port http://{HOST}:{admin}")
    if shutil.which("haproxy"):
        command = ["haproxy", "-db", "-f", str(FILES / "haproxy.cfg")]
        await cluster.start("haproxy", command, addresses)
        entries = [port]
        await until_ready(port, path="/no-such-path", status=404)
        print(f"load balancer: http://{HOST}:{port}")
    else:
        print("no load balancer: haproxy is not installed")
    return entries, admins


async def until_ready(port: int, *, path: str = "/readyz", status: int = 200) -> None:
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    async with asyncio.timeout(STARTED_WITHIN):
        while True:
            with suppress(OSError):
                if parse_response(await exchange(HOST, port, request)).status == status:
                    return
            await asyncio.sleep(0.05)


async def check(cluster: Cluster, entries: Sequence[int], admins: Sequence[int]) -> int:
    """Log in, then fire exports at all entries at once; 0 if all were accepted, at the pace.

    They must have been answered by our replicas, each of them, and every program must still run.
    """
    token = await log_in(entries[0])
    begun = time.monotonic()
    answers = await asyncio.gather(
        *(export(entries[number % len(entries)], token) for number in range(EXPORTS))
    )
    took = time.monotonic() - begun
    statuses = sorted(answer.status for answer in answers)
    print(f"{EXPORTS} exports at once: {statuses} in {took:.2f} s")
    is_paced = (EXPORTS - 1) * INTERVAL <= took <= (EXPORTS + 1) * INTERVAL
    shares = [await exports_answered(admin) for admin in admins]
    ended = [name for name, child in cluster.children.items() if child.returncode is not None]
    print(f"answered by replica: {shares}; ended: {', '.join(ended) or 'none'}")
    is_ours = sum(shares) == EXPORTS and all(shares) and not ended
    return 0 if statuses == [202] * EXPORTS and is_paced and is_ours else 1


async def exports_answered(admin: int) -> int:
    """Ask a replica how many exports it answered with 202."""
    request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
    text = parse_response(await exchange(HOST, admin, request)).body.decode()
    found = re.findall(r'^export_proxy_requests_total\{.*code="202".*\} (\S+)$', text, re.MULTILINE)
    return int(sum(map(float, found)))


async def log_in(port: int) -> str:
    answer = await post(port, "/oauth/token", FORM, "application/x-www-form-urlencoded")
    return str(json.loads(answer.body)["access_token"])


async def export(port: int, token: str) -> Response:
    authorization = f"Authorization: Bearer {token}\r\n"
    return await post(port, EXPORT, BODY, "application/json", authorization)


async def post(port: int, path: str, body: bytes, kind: str, fields: str = "") -> Response:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n"
        f"{fields}Content-Length: {len(body)}\r\n\r\n"
    )
    return parse_response(await exchange(HOST, port, head.encode() + body, timeout=20))


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
