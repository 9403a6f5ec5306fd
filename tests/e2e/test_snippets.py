"""The snippets of the documentation, run as they stand, with the vendor's own clients.

A snippet is taken out of its page and only its ports are changed. All of them meet the program as
the README starts it: the simulator and `serve` with config/demo.yaml, each a process of its own.
"""

import asyncio
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from proxy.incidents.webhook import signature
from proxy.settings import Account, CallerKey
from tests.conftest import needs, program
from tests.kit.certificates import Authority
from tests.kit.client import exchange, parse_response
from tests.kit.listener import HOST
from tests.kit.process import until
from tests.kit.upstream import free_port

ROOT = Path(__file__).parent.parent.parent
SDK = ROOT / "build" / "javascript" / "node_modules"
README = (ROOT / "README.md").read_text(encoding="utf-8")
CLIENTS = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
PACKAGE = "PureCloudPlatformClientV2"
LOG_IN_AND_EXPORT = """\
client.get_client_credentials_token("any-id", "any-secret")
print(gc.RecordingApi(client).post_recording_jobs({}).state)
"""
INTERVAL = 0.5
TOLERANCE = 0.02


def snippets(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def snippet(page: str, language: str, holding: str) -> str:
    (found,) = (text for text in snippets(page, language) if holding in text)
    return found


class Program:
    """The program as the README starts it, on free ports; `folder` is an empty home."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.api, self.listen, self.admin = (free_port() for _ in range(3))
        self.environ = {
            "PATH": f"{folder}:{os.environ['PATH']}",
            "HOME": str(folder),
            "CLIENT_ID": "any-id",
            "CLIENT_SECRET": "any-secret",
            "EXPORT_PROXY__LISTEN__PORT": str(self.listen),
            "EXPORT_PROXY__ADMIN__PORT": str(self.admin),
            "EXPORT_PROXY__UPSTREAM__API_URL": f"http://{HOST}:{self.api}",
            "EXPORT_PROXY__UPSTREAM__LOGIN_URL": f"http://{HOST}:{self.api}",
        }

    def adapted(self, text: str) -> str:
        """The text with the documented ports replaced by the free ones."""
        ports = {"8081": self.api, "8080": self.listen, "9180": self.admin}
        return re.sub(r"\b(8080|8081|9180)\b", lambda port: str(ports[port[0]]), text)

    async def run(self, *command: str, environ: Mapping[str, str] = {}) -> str:
        """Run a client until it ends well; give what it said."""
        child = await asyncio.create_subprocess_exec(
            *command,
            env={**self.environ, **environ},
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(120):  # to import the SDK alone takes ten seconds
            said, complaint = await child.communicate()
        assert child.returncode == 0, complaint.decode()
        return said.decode()

    async def gap(self) -> float:
        """How far apart its exports reached the API; where the machine stalls, one may look early.

        So it is the median, and one refusal is let pass.
        """
        account = await self.report()
        assert account["refused"] <= 1
        return float(account["median_gap"])

    async def report(self) -> dict[str, Any]:
        """What the API recorded of the account."""
        head = "GET /simulator/report HTTP/1.1\r\nHost: localhost\r\n\r\n"
        answer = parse_response(await exchange(HOST, self.api, head.encode(), timeout=10))
        account: dict[str, Any] = json.loads(answer.body)["accounts"]["any-id"]
        return account

    async def is_ready(self) -> bool:
        """Whether both of them answer."""
        return await self.asked(self.admin, "/readyz") and await self.asked(
            self.api, "/simulator/report"
        )

    async def asked(self, port: int, path: str) -> bool:
        head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"
        try:
            data = await exchange(HOST, port, head.encode(), timeout=5)
        except ConnectionError:
            return False
        return parse_response(data).status == 200


@asynccontextmanager
async def started_as_in(
    page: str,
    holding: str,
    folder: Path,
    environ: Mapping[str, str] = {},
    interval: float | None = None,
) -> AsyncIterator[Program]:
    """Run the page's commands that start simulator and proxy; the API may want another interval."""
    running = Program(folder)
    shim = folder / "export-proxy"
    shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m proxy "$@"\n', encoding="utf-8")
    shim.chmod(0o755)
    commands = running.adapted(snippet(page, "sh", holding))
    if interval is not None:
        commands = commands.replace("simulate ", f"simulate --interval {interval} ")
    lines = [line for line in commands.splitlines() if "export-proxy" in line]
    shell = await asyncio.create_subprocess_exec(
        *("/bin/sh", "-c", "\n".join(lines)),
        env={**running.environ, **environ},
        cwd=ROOT,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        process_group=0,
    )
    try:
        await until(running.is_ready, within=30)
        yield running
    finally:
        os.killpg(shell.pid, 15)
        await shell.wait()


@asynccontextmanager
async def as_in_the_readme(
    folder: Path, environ: Mapping[str, str] = {}, *, interval: float | None = None
) -> AsyncIterator[Program]:
    page = (README, "export-proxy simulate")
    async with started_as_in(*page, folder, environ, interval) as running:
        yield running


async def test_the_first_script(tmp_path: Path) -> None:
    """Ten exports that come at once are 0.5 s apart, and it prints what the README shows."""
    async with as_in_the_readme(tmp_path) as running:
        script = tmp_path / "exports.py"
        script.write_text(running.adapted(snippet(README, "python", "range(10)")))
        lines = (await running.run(sys.executable, str(script))).splitlines()
        gap = await running.gap()
    shown = re.compile(r"\d\.\d s: export \d got 202")
    assert len(lines) == 10
    assert all(shown.fullmatch(line) for line in lines)
    (example,) = snippets(README, "text")
    assert all(shown.fullmatch(line) for line in example.splitlines()[:-1])
    assert gap >= INTERVAL - TOLERANCE


@pytest.mark.needs(PACKAGE)
async def test_python_with_prefixes(tmp_path: Path) -> None:
    """The gateway setting and the two keys that clients.md names with it."""
    keys = re.findall(r"`listen\.(login_prefix|api_prefix): (/\w+)`", CLIENTS)
    environ = {f"EXPORT_PROXY__LISTEN__{key.upper()}": prefix for key, prefix in keys}
    assert len(environ) == 2
    async with as_in_the_readme(tmp_path, environ) as running:
        gateway = running.adapted(snippet(CLIENTS, "python", "set_gateway"))
        script = f"import {PACKAGE} as gc\n{gateway}{LOG_IN_AND_EXPORT}"
        assert await running.run(sys.executable, "-c", script) == "PENDING\n"


@pytest.mark.needs(PACKAGE)
async def test_python_by_its_configuration_file(tmp_path: Path) -> None:
    async with as_in_the_readme(tmp_path) as running:
        folder = tmp_path / ".genesyscloudpython"
        folder.mkdir()
        (folder / "config").write_text(running.adapted(snippet(CLIENTS, "ini", "[general]")))
        create = "client = gc.api_client.ApiClient()\n"
        script = f"import {PACKAGE} as gc\n{create}{LOG_IN_AND_EXPORT}"
        assert await running.run(sys.executable, "-c", script) == "PENDING\n"


QUICK = {"EXPORT_PROXY__PACING__INTERVAL": "0.02"}

# Each script of clients.md: what it needs, where it stands, and what it prints.
SCRIPTS = {
    "Python SDK": (PACKAGE, "python", "post_recording_jobs", "PENDING\n"),
    "requests": ("requests", "python", "print(answer.status_code)\n", "202\n"),
    "httpx": ("httpx", "python", "import httpx", "202\n"),
    "aiohttp": ("aiohttp", "python", "import aiohttp", f"{[202] * 20}\n"),
    "JavaScript SDK": ("node", "javascript", "setGateway", "PENDING\n"),
}


async def run_script(running: Program, name: str, text: str, environ: Mapping[str, str]) -> str:
    """Run a script of clients.md, with the ports of the running program."""
    if name == "JavaScript SDK":
        if not SDK.exists():
            needs("the JavaScript SDK: make build/javascript/node_modules")
        file, interpreter = running.folder / "script.js", str(program("node"))
    else:
        file, interpreter = running.folder / "script.py", sys.executable
    file.write_text(running.adapted(text), encoding="utf-8")
    environ = {"NODE_PATH": str(SDK), **environ}
    return await running.run(interpreter, str(file), environ=environ)


def text_of(name: str) -> str:
    """The script of that client; it is the only one of its page that holds the words."""
    _, language, holding, _ = SCRIPTS[name]
    if name == "requests":
        (found,) = (
            text
            for text in snippets(CLIENTS, language)
            if holding in text and "import requests" in text
        )
        return found
    return snippet(CLIENTS, language, holding)


@pytest.mark.needs(*(needed for needed, *_ in SCRIPTS.values()))
async def test_each_script_exports_through_the_proxy(tmp_path: Path) -> None:
    async with as_in_the_readme(tmp_path, QUICK, interval=0.001) as running:
        for name, (*_, printed) in SCRIPTS.items():
            assert (name, await run_script(running, name, text_of(name), {})) == (name, printed)


@pytest.mark.needs("requests", "aiohttp")
async def test_a_batch_is_served_without_retries(tmp_path: Path) -> None:
    """By 20 workers and fired at once, with fewer exports, connections and a shorter interval."""
    workers = snippet(CLIENTS, "python", "10_000").replace("10_000", "60")
    at_once = text_of("aiohttp").replace("range(20)", "range(100, 160)").replace("(500)", "(9)")
    async with as_in_the_readme(tmp_path, QUICK, interval=0.001) as running:
        assert await run_script(running, "workers", workers, {}) == "60 exports accepted\n"
        assert await run_script(running, "at once", at_once, {}) == f"{[202] * 60}\n"
        report = await running.report()
    assert (report["exports"], report["duplicates"]) == (120, {})


# How each client learns of an authority, as the page's table says it.
TRUSTING = {
    "Python SDK": ('gc.configuration.ssl_ca_cert = "ca.pem"', ""),
    "requests": ("", "REQUESTS_CA_BUNDLE=ca.pem"),
    "httpx": ("", "SSL_CERT_FILE=ca.pem"),
    "aiohttp": ("", "SSL_CERT_FILE=ca.pem"),
    "JavaScript SDK": ("", "NODE_EXTRA_CA_CERTS=ca.pem"),
}


def with_tls(authority: Authority, *names: str) -> dict[str, str]:
    pair = authority.issue("listen", names=names)
    return {
        "EXPORT_PROXY__LISTEN__TLS__CERT_FILE": str(pair.cert_file),
        "EXPORT_PROXY__LISTEN__TLS__KEY_FILE": str(pair.key_file),
    }


@pytest.mark.needs(*(needed for needed, *_ in SCRIPTS.values()))
async def test_each_script_works_over_tls_with_the_setting_the_page_names(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with as_in_the_readme(tmp_path, QUICK | with_tls(authority), interval=0.001) as running:
        for name, (*_, printed) in SCRIPTS.items():
            text, environ = trusting(name, authority)
            assert (name, await run_script(running, name, text, environ)) == (name, printed)


def trusting(name: str, authority: Authority) -> tuple[str, dict[str, str]]:
    """The script with https and what the page's table says of the authority."""
    line, variable = TRUSTING[name]
    rows = [row for row in CLIENTS.splitlines() if row.startswith(f"| {name} |")]
    (row,) = (row for row in rows if "ca.pem" in row)
    assert f"`{line or variable}`" in row
    text = text_of(name).replace("http://127", "https://127")
    text = text.replace('protocol: "http"', 'protocol: "https"')
    if line:
        first = "gc.configuration.host"
        text = text.replace(first, f"{line.replace('ca.pem', str(authority.file))}\n{first}", 1)
        return text, {}
    key, _, _ = variable.partition("=")
    return text, {key: str(authority.file)}


@pytest.mark.needs("curl")
async def test_a_program_that_knows_only_its_region_is_led_here(tmp_path: Path) -> None:
    """One certificate for the names of API and login, and the command that tries it."""
    authority = Authority(tmp_path)
    names = ("api.euw2.pure.cloud", "login.euw2.pure.cloud")
    async with as_in_the_readme(tmp_path, with_tls(authority, *names)) as running:
        command = snippet(CLIENTS, "sh", "--connect-to").replace("ca.pem", str(authority.file))
        command = command.replace("10.0.0.5:443", f"{HOST}:{running.listen}")
        for name in names:
            asked = command.replace("curl ", "curl -si ").replace(names[0], name)
            said = await running.run("/bin/sh", "-ec", asked)
            assert said.startswith("HTTP/1.1 401 ")
            assert "Proxy-Status: export-proxy" in said


@pytest.mark.needs("curl")
async def test_anything_else(tmp_path: Path) -> None:
    async with as_in_the_readme(tmp_path) as running:
        commands = running.adapted(snippet(CLIENTS, "sh", "curl -i"))
        said = await running.run("/bin/sh", "-ec", commands)
    assert said.startswith("HTTP/1.1 202 ")


async def test_the_load_test_starts_as_written(tmp_path: Path) -> None:
    """A variable that overrides nothing would keep it from starting."""
    async with started_as_in(CLIENTS, "export-proxy simulate", tmp_path) as running:
        assert await running.is_ready()


@pytest.mark.needs("sha256sum")
async def test_a_key_is_made_as_security_md_says(tmp_path: Path) -> None:
    """What is printed is what `accounts[].keys` takes, and it is the hash of the key."""
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    commands = snippet(page, "sh", "KEY=") + 'printf %s "$KEY"\n'
    listed, key = (await Program(tmp_path).run("/bin/sh", "-ec", commands)).split("\n")
    assert listed == f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"
    assert len(key) == 43
    Account(name="a", client_id="c", client_secret=SecretStr("s"), keys=(CallerKey(sha256=listed),))


def test_the_incident_is_what_the_page_says_of_it() -> None:
    """Flat, without `number`; and the template is broken JSON for text, as it says."""
    page = (ROOT / "docs" / "faq.md").read_text(encoding="utf-8")
    incident = json.loads(snippet(page, "json", "u_legal_hold"))
    assert "number" not in incident
    assert not any(isinstance(value, dict | list) for value in incident.values())
    template = snippet(page, "text", "u_legal_hold")
    for value, is_json in {"true": True, "1": True, "yes": False, "": False}.items():
        filled = template.replace("{{trigger.legal_hold}}", value)
        assert is_valid(filled) is is_json


def is_valid(text: str) -> bool:
    try:
        json.loads(text)
    except json.JSONDecodeError:
        return False
    return True


def test_a_signature_is_verified_as_the_page_does_it() -> None:
    """By its ten lines; a changed body, key or time is found."""
    page = (ROOT / "docs" / "incidents.md").read_text(encoding="utf-8")
    scope: dict[str, Any] = {}
    exec(snippet(page, "python", "def is_genuine"), scope)  # noqa: S102 -- our own page
    is_genuine = scope["is_genuine"]
    now, body = int(time.time()), b'{"event": "begin"}'
    header = signature(b"key", now, body)
    assert is_genuine(b"key", header, body)
    assert not is_genuine(b"key", header, body + b" ")
    assert not is_genuine(b"another", header, body)
    assert not is_genuine(b"key", header.replace(f"t={now}", f"t={now + 1}"), body)
    assert not is_genuine(b"key", signature(b"key", now - 3600, body), body)
