"""The first second of the program: signals, closed descriptors, ports, addresses."""

import asyncio
import json
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from proxy.clock import SystemClock
from proxy.service.lifecycle import running
from tests.kit.client import exchange, parse_response, port_of
from tests.kit.listener import HOST
from tests.kit.process import SERVE, document_for, launch, until
from tests.kit.proxy import settings_for
from tests.kit.upstream import RawUpstream, Reply, free_port

HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
REQUEST = b"GET /api/v2/users HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer t\r\n\r\n"


def ignores_hang_up(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    (ignored,) = (line for line in status.splitlines() if line.startswith("SigIgn:"))
    return bool(int(ignored.split()[1], 16) & 1 << (signal.SIGHUP - 1))


async def test_a_hang_up_while_it_starts_does_not_end_it(tmp_path: Path) -> None:
    """The imports take most of a second, and the store's first answer longer."""
    async with RawUpstream(default=Reply(202)) as upstream:
        process = await launch(tmp_path / "proxy.yaml", document_for(upstream.url))
        try:

            async def is_ignored() -> bool:
                assert not process.stderr, "it is too late"
                return ignores_hang_up(process.pid)

            await until(is_ignored)
            for _ in range(3):
                process.signal(signal.SIGHUP)
            await process.has_started()
            process.signal(signal.SIGHUP)

            async def has_reloaded() -> bool:
                return bool(process.logged("reloaded"))

            await until(has_reloaded)
            await process.stop()
        finally:
            await process.kill()


@pytest.mark.parametrize("closed", ["2>&-", "0<&- 1>&- 2>&-"])
async def test_closed_descriptors_are_the_null_device(closed: str, tmp_path: Path) -> None:
    """Or the first socket would be descriptor 2, and its peer would get the log."""
    port = free_port()
    document = document_for("http://127.0.0.1:1", admin={"port": port})
    file = tmp_path / "proxy.yaml"
    file.write_text(json.dumps(document))
    command = f'exec "$@" {closed}'
    child = await asyncio.create_subprocess_exec("sh", "-c", command, "sh", *SERVE, str(file))
    try:

        async def is_serving() -> bool:
            assert child.returncode is None
            try:
                return parse_response(await exchange(HOST, port, HEALTH)).status == 200
            except OSError:
                return False

        await until(is_serving, within=20)
        opened = Path(f"/proc/{child.pid}/fd")
        assert (opened / "2").readlink() == Path("/dev/null")
        child.terminate()
        async with asyncio.timeout(20):
            assert await child.wait() == 0
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()


@pytest.mark.parametrize("section", ["listen", "admin"])
async def test_a_port_that_is_taken_has_an_exit_code_of_its_own(
    section: str, tmp_path: Path
) -> None:
    """It may be free later: a service manager shall try again, as it does not for a bad file."""
    async with RawUpstream() as upstream:
        code, said = await output_of(tmp_path, upstream, {section: {"port": upstream.port}})
    assert (code, said) == (3, f"{section}.port: cannot be listened on: Address already in use\n")


async def test_an_address_that_is_not_there_yet_has_the_same_exit_code(tmp_path: Path) -> None:
    async with RawUpstream() as upstream:
        code, said = await output_of(tmp_path, upstream, {"listen": {"host": "192.0.2.1"}})
    assert code == 3
    assert said.startswith("listen.port: cannot be listened on: "), said


async def output_of(
    folder: Path, upstream: RawUpstream, sections: dict[str, Any]
) -> tuple[int | None, str]:
    file = folder / "proxy.yaml"
    file.write_text(json.dumps(document_for(upstream.url, **sections)))
    child = await asyncio.create_subprocess_exec(
        *SERVE, str(file), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await child.communicate()
    return child.returncode, said.decode()


async def test_a_simulator_whose_port_is_taken_has_it_too() -> None:
    async with RawUpstream() as upstream:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "proxy", "simulate", "--port", str(upstream.port)),
            stdout=asyncio.subprocess.PIPE,
        )
        said, _ = await child.communicate()
    assert child.returncode == 3
    assert said.decode().startswith(f"cannot listen on {HOST}:{upstream.port}: ")


async def test_a_simulator_ends_on_sigterm_by_a_handler_of_its_own() -> None:
    """As process 1 of a container it would not end without one."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "proxy", "simulate", "--port", "0"),
        stdout=asyncio.subprocess.PIPE,
    )
    assert child.stdout is not None
    assert (await child.stdout.readline()).startswith(b"http://")
    child.terminate()
    assert await child.wait() == 128 + signal.SIGTERM


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
@pytest.mark.parametrize("host", ["::", "::1"])
async def test_ipv6_addresses_are_served_and_written_in_brackets(host: str) -> None:
    """The unspecified one serves IPv4 as well."""
    async with RawUpstream(default=Reply(202)) as upstream:
        settings = settings_for(upstream.url, listen={"host": host, "port": 0})
        async with running(settings, SystemClock()) as proxy:
            port = port_of(proxy.url)
            assert proxy.url == f"http://[{host}]:{port}"
            assert await answer_over_ipv6(port) == b"HTTP/1.1 202 Accepted\r\n"
            if host == "::":
                assert parse_response(await exchange(HOST, port, REQUEST)).status == 202
            else:
                with pytest.raises(OSError, match=r"refused|failed"):
                    await exchange(HOST, port, REQUEST)


async def answer_over_ipv6(port: int) -> bytes:
    reader, writer = await asyncio.open_connection("::1", port)
    writer.write(REQUEST)
    line = await reader.readline()
    writer.close()
    await writer.wait_closed()
    return line
