"""A file system that does not answer stops nobody: what needs the file waits, the rest is served.

Network file systems hang like that. Here the program's own reading of a file waits for as long as
another file stands beside it, in the program itself: it is started by a few lines that see to that.
"""

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Any

from proxy.clock import SystemClock
from proxy.simulator import ClientSpec, SigningKey, Simulator, SimulatorSettings
from tests.kit.certificates import Authority
from tests.kit.client import RawConnection, Response, exchange, parse_response
from tests.kit.listener import HOST
from tests.kit.logins import log_in, token_from
from tests.kit.process import Process, document_for, launch, serving, until
from tests.kit.upstream import RawUpstream, Reply

# Longer than any test waits: nothing here may come of the bound on a read.
HANGING = """
import pathlib, runpy, time
from proxy.settings import files
read = files._read
def hanging(path, *most):
    if pathlib.Path(f"{path}.hangs").exists():
        pathlib.Path(f"{path}.is-read").touch()
        while pathlib.Path(f"{path}.hangs").exists():
            time.sleep(0.01)
    return read(path, *most)
files._read, files._SECONDS = hanging, 300.0
runpy.run_module("proxy", run_name="__main__", alter_sys=True)
"""
COMMAND = (sys.executable, "-c", HANGING, "serve", "--config")
ACCEPTED = Reply(202)
UNPACED = b"GET /api/v2/users HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer t\r\n\r\n"
LONDON = {"name": "london", "client_id": "id-of-london"}


def hang(file: Path) -> None:
    Path(f"{file}.hangs").touch()


def go_on(file: Path) -> None:
    Path(f"{file}.hangs").unlink()
    Path(f"{file}.is-read").unlink()


async def is_being_read(file: Path) -> None:
    """Wait until the program hangs in it."""
    mark = Path(f"{file}.is-read")

    async def question() -> bool:
        return mark.exists()  # noqa: ASYNC240 -- at once, on a disk

    await until(question)


async def others_are_served(process: Process, *, at_listen_port: bool = True) -> None:
    for _ in range(3):
        assert await process.is_ready()
        if at_listen_port:
            answer = parse_response(await exchange(HOST, process.port, UNPACED))
            assert answer.status == ACCEPTED.status


async def has_reloaded(process: Process, times: int) -> None:
    async def question() -> bool:
        return len(process.logged("reloaded")) == times

    await until(question)


def with_secret(folder: Path, api_url: str) -> tuple[Path, dict[str, Any]]:
    """A configuration with an account whose secret is in a file, and the file."""
    file = folder / "secret"
    file.write_text("s3cret")
    account = {**LONDON, "client_secret_file": str(file)}
    return file, document_for(api_url, accounts=[account])


async def test_a_file_that_hangs_in_a_reload_stops_nobody(tmp_path: Path) -> None:
    """Whichever it is; and the file of the admin token, which each action reads."""
    authority, token = Authority(tmp_path), tmp_path / "token"
    pair, desk = authority.issue("proxy"), tmp_path / "desk"
    token.write_text("admin-token-of-this-test")
    desk.write_text('{"hmac_key": "key"}')
    secret, document = with_secret(tmp_path, "https://127.0.0.1:1")
    document["listen"]["tls"] = {
        "cert_file": str(pair.cert_file),
        "key_file": str(pair.key_file),
    }
    document["upstream"]["ca_file"] = str(authority.file)
    document["incidents"] = {
        "url": "http://127.0.0.1:1/",
        "format": "flat",
        "credentials_file": str(desk),
    }
    document["admin"] |= {"host": "0.0.0.0", "token_file": str(token)}
    async with serving(tmp_path, document, command=COMMAND) as process:
        files = (process.config, pair.cert_file, pair.key_file, authority.file, secret, desk)
        for times, file in enumerate(files):
            hang(file)
            process.signal(signal.SIGHUP)
            await is_being_read(file)
            await others_are_served(process, at_listen_port=False)
            assert len(process.logged("reloaded")) == times
            go_on(file)
            await has_reloaded(process, times + 1)
        hang(token)
        head = (
            b"POST /-/reload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n"
            b"Authorization: Bearer admin-token-of-this-test\r\n\r\n"
        )
        call = exchange(HOST, process.admin_port, head, timeout=60)
        asking = asyncio.get_running_loop().create_task(call)
        await is_being_read(token)
        await others_are_served(process, at_listen_port=False)
        assert not asking.done()
        go_on(token)
        assert parse_response(await asking).status == 200


async def test_reloads_are_done_one_after_another_and_none_is_lost(tmp_path: Path) -> None:
    async with RawUpstream(default=ACCEPTED) as upstream:
        file, document = with_secret(tmp_path, upstream.url)
        async with serving(tmp_path, document, command=COMMAND) as process:
            hang(file)
            process.signal(signal.SIGHUP)
            await is_being_read(file)
            renamed = {**document["accounts"][0], "name": "paris"}
            process.configure({**document, "accounts": [renamed]})
            second = asyncio.get_running_loop().create_task(process.reload())
            await others_are_served(process)
            assert not second.done()
            assert "london" in await process.accounts()
            go_on(file)
            assert (await second).status == 200
            await has_reloaded(process, 2)
            names = await process.accounts()
            assert {"paris", "london"} & names.keys() == {"paris"}
            hang(file)
            leaving = asyncio.get_running_loop().create_task(process.reload())
            await is_being_read(file)
            leaving.cancel()  # its operator does not wait for the end
            await asyncio.wait([leaving])
            await others_are_served(process)
            go_on(file)
            await has_reloaded(process, 3)


async def test_a_reload_whose_operator_left_is_logged_if_it_is_refused(tmp_path: Path) -> None:
    head = b"POST /-/reload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
    document = document_for("http://127.0.0.1:1")
    async with serving(tmp_path, document, command=COMMAND) as process:
        hang(process.config)
        async with await RawConnection.open(HOST, process.admin_port) as operator:
            await operator.send(head)
            await is_being_read(process.config)

        async def has_left() -> bool:
            return bool(process.logged("operator action"))

        await until(has_left)
        process.configure({**document, "pacing": {"interval": "none"}})
        go_on(process.config)

        async def is_refused() -> bool:
            return bool(process.logged("reload refused, the old configuration stays"))

        await until(is_refused)


async def test_a_drain_does_not_wait_for_a_file_that_hangs(tmp_path: Path) -> None:
    async with RawUpstream(default=ACCEPTED) as upstream:
        file, document = with_secret(tmp_path, upstream.url)
        process = await launch(tmp_path / "proxy.yaml", document, command=COMMAND)
        try:
            await process.has_started()
            hang(file)
            asking = asyncio.get_running_loop().create_task(process.reload())
            await is_being_read(file)
            process.signal(signal.SIGHUP)
            process.signal(signal.SIGTERM)
            assert await process.ended() == 0
        finally:
            await process.kill()
        answer = await asking
    assert answer.status == 422
    assert answer.body == b"the proxy is starting or shutting down; it does not reload now\n"
    events = [line["event"] for line in process.log]
    assert events[events.index("draining") :][-1] == "stopped"
    assert "reloaded" not in events
    assert not [event for event in events if "exception" in event.lower()]


async def test_a_log_in_whose_secret_hangs_stops_nobody(tmp_path: Path) -> None:
    clock = SystemClock()
    simulator = Simulator(
        SimulatorSettings(clients={LONDON["client_id"]: ClientSpec(secret="s3cret")}),
        monotonic=clock.monotonic,
        wall=clock.wall,
        key=SigningKey.generate(),
    )
    async with simulator.serve(HOST) as api:
        file, document = with_secret(tmp_path, api.url)
        async with serving(tmp_path, document, command=COMMAND) as process:
            token = await token_from(process.port, LONDON["client_id"], "s3cret")
            hang(file)
            waiting = [_log_in(process, "s3cret"), _log_in(process, "wrong")]
            await is_being_read(file)
            await others_are_served(process, at_listen_port=False)
            assert not any(one.done() for one in waiting)
            go_on(file)
            right, wrong = [await one for one in waiting]
    assert (right.status, json.loads(right.body)["access_token"]) == (200, token)
    assert wrong.status == 401


def _log_in(process: Process, secret: str) -> "asyncio.Task[Response]":
    call = log_in(process.port, LONDON["client_id"], secret)
    return asyncio.get_running_loop().create_task(call)
