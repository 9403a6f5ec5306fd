"""TLS on both sides: what callers are offered, and what the API must prove.

Certificates are made here by an authority that nobody else knows. RFC 8446, RFC 9325 (versions),
RFC 9110 section 4.3.4 (names); CWE-295.
"""

import asyncio
import json
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.kit.certificates import Authority, Pair
from tests.kit.client import RawConnection, Response, exchange, parse_response, port_of
from tests.kit.listener import HOST
from tests.kit.process import document_for, serving, until
from tests.kit.proxy import proxy_for
from tests.kit.upstream import RawUpstream, free_port

USERS = "/api/v2/users/me"
GET = f"GET {USERS} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer a\r\n\r\n".encode()
ONCE = {"max_attempts": 1}


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


# The API


class TlsApi:
    """An API that answers 200 over TLS, and keeps what it was asked."""

    def __init__(self, pair: Pair) -> None:
        self.requests: list[web.BaseRequest] = []
        self.url = ""
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(pair.cert_file, pair.key_file)

    @asynccontextmanager
    async def serve(self) -> AsyncIterator["TlsApi"]:
        runner = web.ServerRunner(web.Server(self._answer), shutdown_timeout=1)
        await runner.setup()
        try:
            await web.TCPSite(runner, HOST, 0, ssl_context=self.context).start()
            self.url = f"https://{HOST}:{runner.addresses[0][1]}"
            yield self
        finally:
            await runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.requests.append(request)
        return web.Response(text="ok")


async def ask(port: int) -> Response:
    return parse_response(await exchange(HOST, port, GET, timeout=20))


def check_unreachable(answer: Response) -> None:
    """Nothing was sent: 503, and a time to come back."""
    assert answer.status == 503
    assert json.loads(answer.body)["type"] == "urn:export-proxy:upstream-unreachable"
    assert answer.values("retry-after") != []


async def test_an_api_that_proves_its_name_is_asked(authority: Authority) -> None:
    async with (
        TlsApi(authority.issue("api")).serve() as api,
        proxy_for(api.url, upstream={"ca_file": str(authority.file)}) as proxy,
    ):
        assert (await ask(port_of(proxy.url))).status == 200
    assert len(api.requests) == 1


def _expired(authority: Authority) -> Pair:
    return authority.issue("expired", days=-1)


def _for_another_name(authority: Authority) -> Pair:
    return authority.issue("other", "192.0.2.1")


def _by_another_authority(authority: Authority) -> Pair:
    return Authority(authority.folder, "another authority").issue("foreign")


def _by_one_of_the_same_name(authority: Authority) -> Pair:
    return Authority(authority.folder, authority.name).issue("impostor")


@pytest.mark.parametrize(
    "issue", [_expired, _for_another_name, _by_another_authority, _by_one_of_the_same_name]
)
async def test_an_api_that_does_not_is_never_asked(
    authority: Authority, issue: Callable[[Authority], Pair]
) -> None:
    trusted = str(authority.file)
    async with (
        TlsApi(issue(authority)).serve() as api,
        proxy_for(api.url, upstream={"ca_file": trusted}, retry=ONCE) as proxy,
    ):
        check_unreachable(await ask(port_of(proxy.url)))
    assert api.requests == []


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_an_api_of_an_old_version_is_never_asked(authority: Authority) -> None:
    api = TlsApi(authority.issue("api"))
    api.context.minimum_version = ssl.TLSVersion.TLSv1
    api.context.maximum_version = ssl.TLSVersion.TLSv1_1
    api.context.set_ciphers("ALL:@SECLEVEL=0")
    async with (
        api.serve(),
        proxy_for(api.url, upstream={"ca_file": str(authority.file)}, retry=ONCE) as proxy,
    ):
        check_unreachable(await ask(port_of(proxy.url)))
    assert api.requests == []


async def test_no_environment_changes_who_is_trusted(authority: Authority, tmp_path: Path) -> None:
    """Neither whom to trust nor whom to ask, nor what is written down of the session's keys."""
    hashed = tmp_path / "hashed"
    hashed.mkdir()
    (hashed / "a.pem").write_bytes(authority.file.read_bytes())
    nowhere = f"http://{HOST}:{free_port()}"
    environ = {
        "SSL_CERT_FILE": str(authority.file),
        "SSL_CERT_DIR": str(hashed),
        "REQUESTS_CA_BUNDLE": str(authority.file),
        "CURL_CA_BUNDLE": str(authority.file),
        "PYTHONHTTPSVERIFY": "0",
        "SSLKEYLOGFILE": str(tmp_path / "keys.log"),
        "HTTPS_PROXY": nowhere,
        "HTTP_PROXY": nowhere,
        "ALL_PROXY": nowhere,
        "https_proxy": nowhere,
        "http_proxy": nowhere,
    }
    async with TlsApi(authority.issue("api")).serve() as api:
        document = document_for(api.url, retry=ONCE)
        async with serving(tmp_path, document, environ=environ) as proxy:
            check_unreachable(await ask(proxy.port))
        assert api.requests == []
        document["upstream"]["ca_file"] = str(authority.file)
        async with serving(tmp_path, document, environ=environ) as proxy:
            assert (await ask(proxy.port)).status == 200
    # The HTTP library opens the file, and nothing is written to it.
    assert "SECRET" not in (tmp_path / "keys.log").read_text()


# Callers


class Caller:
    """A caller over TLS who trusts the authority, and knows whom it speaks to."""

    def __init__(self, authority: Authority) -> None:
        self.context = ssl.create_default_context(cafile=authority.file)

    @asynccontextmanager
    async def connect(self, port: int) -> AsyncIterator[tuple[str, Callable[[], Any]]]:
        """The common name of who answers, and a call."""
        reader, writer = await asyncio.open_connection(HOST, port, ssl=self.context)
        try:
            subject = writer.get_extra_info("peercert")["subject"]

            async def call() -> int:
                writer.write(GET)
                async with asyncio.timeout(5):
                    head = await reader.readuntil(b"\r\n\r\n")
                return int(head.split()[1])

            yield dict(pair for part in subject for pair in part)["commonName"], call
        finally:
            writer.close()
            await writer.wait_closed()

    async def meets(self, port: int) -> str:
        """Return who answers, after one call."""
        async with self.connect(port) as (name, call):
            assert await call() == 200
            return name


def tls_document(api_url: str, pair: Pair, **sections: Any) -> dict[str, Any]:
    tls = {"cert_file": str(pair.cert_file), "key_file": str(pair.key_file)}
    return document_for(api_url, listen={"port": 0, "tls": tls}, **sections)


async def test_a_replaced_certificate_is_served_after_a_reload(
    authority: Authority, tmp_path: Path
) -> None:
    """To new connections; those that are open go on. A pair that does not fit is refused."""
    first, second = authority.issue("first"), authority.issue("second")
    other = authority.issue("other")
    caller = Caller(authority)
    async with (
        RawUpstream() as upstream,
        serving(tmp_path, tls_document(upstream.url, first)) as proxy,
        caller.connect(proxy.port) as (name, call),
    ):
        assert (name, await call()) == ("first", 200)
        first.replace_by(second)
        assert await caller.meets(proxy.port) == "first"
        proxy.signal(signal.SIGHUP)

        async def is_replaced() -> bool:
            return await caller.meets(proxy.port) == "second"

        await until(is_replaced)
        assert await call() == 200
        first.key_file.write_bytes(other.key_file.read_bytes())
        assert (await proxy.reload()).status == 422
        assert await caller.meets(proxy.port) == "second"


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize(
    ("version", "is_spoken"),
    [
        (ssl.TLSVersion.TLSv1, False),
        (ssl.TLSVersion.TLSv1_1, False),
        (ssl.TLSVersion.TLSv1_2, True),
        (ssl.TLSVersion.TLSv1_3, True),
    ],
)
async def test_only_current_versions_are_spoken(
    authority: Authority, version: ssl.TLSVersion, *, is_spoken: bool
) -> None:
    pair = authority.issue("proxy")
    tls = {"cert_file": str(pair.cert_file), "key_file": str(pair.key_file)}
    caller = Caller(authority)
    caller.context.minimum_version = caller.context.maximum_version = version
    if not is_spoken:
        caller.context.set_ciphers("ALL:@SECLEVEL=0")
    async with (
        RawUpstream() as upstream,
        proxy_for(upstream.url, listen={"port": 0, "tls": tls}) as proxy,
    ):
        refusal = ""
        try:
            async with caller.connect(port_of(proxy.url)) as (_, call):
                assert await call() == 200
        except ssl.SSLError as error:
            refusal = error.reason
        except ConnectionResetError:
            refusal = "reset"
    assert refusal in ([""] if is_spoken else ["reset", "TLSV1_ALERT_PROTOCOL_VERSION"])


async def test_a_handshake_has_its_time(authority: Authority, tmp_path: Path) -> None:
    """Silence and plain HTTP end without an answer; a half-open handshake like a slow head."""
    document = tls_document("http://127.0.0.1:9", authority.issue("proxy"))
    document["limits"] = {"header_timeout": 0.5}
    async with serving(tmp_path, document) as proxy:
        assert b"HTTP/" not in await exchange(HOST, proxy.port, GET)
        for start in (b"", b"\x16\x03\x01\x00\xa5\x01"):
            async with await RawConnection.open(HOST, proxy.port) as caller:
                await caller.send(start)
                assert await caller.read_to_close() == b""
        log = proxy.stderr
    assert "Traceback" not in log
    assert "Bearer" not in log


# A forward proxy

USER, PASSWORD = "proxy-user", "planted-proxy.password"


class TinyProxy:
    """A real forward proxy that requires authentication."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder

    @property
    def log(self) -> str:
        return (self._folder / "tinyproxy.log").read_text()

    @property
    def url(self) -> str:
        return f"http://{USER}:{PASSWORD}@{HOST}:{self.port}"

    @asynccontextmanager
    async def serve(self) -> AsyncIterator["TinyProxy"]:
        config = self._folder / "tinyproxy.conf"
        config.write_text(
            f"Port {self.port}\nListen {HOST}\nAllow {HOST}\nTimeout 30\nMaxClients 20\n"
            f'LogLevel Info\nLogFile "{self._folder / "tinyproxy.log"}"\n'
            f"BasicAuth {USER} {PASSWORD}\n"
        )
        program = await asyncio.create_subprocess_exec(
            "tinyproxy", "-d", "-c", str(config), stdout=asyncio.subprocess.DEVNULL
        )

        async def is_up() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex((HOST, self.port)) == 0

        try:
            await until(is_up)
            yield self
        finally:
            program.terminate()
            await program.wait()


@pytest.mark.needs("tinyproxy")
async def test_https_goes_through_a_tunnel(authority: Authority, tmp_path: Path) -> None:
    """The forward proxy sees a name and a port, and the API nothing of the forward proxy."""
    async with (
        TlsApi(authority.issue("api")).serve() as api,
        TinyProxy(tmp_path).serve() as forward,
        proxy_for(
            api.url, upstream={"ca_file": str(authority.file), "proxy_url": forward.url}
        ) as proxy,
    ):
        assert [(await ask(port_of(proxy.url))).status for _ in range(3)] == [200] * 3
    assert f"CONNECT {api.url.removeprefix('https://')} HTTP/1.1" in forward.log
    assert USERS not in forward.log
    assert len(api.requests) == 3
    for request in api.requests:
        assert (request.path, request.scheme) == (USERS, "https")
        assert "Proxy-Authorization" not in request.headers
        assert request.headers["Authorization"] == "Bearer a"


@pytest.mark.needs("tinyproxy")
async def test_http_goes_through_it_too(tmp_path: Path) -> None:
    async with (
        RawUpstream() as upstream,
        TinyProxy(tmp_path).serve() as forward,
        proxy_for(upstream.url, upstream={"proxy_url": forward.url}) as proxy,
    ):
        assert [(await ask(port_of(proxy.url))).status for _ in range(3)] == [200] * 3
    assert f"GET {upstream.url}{USERS} HTTP/1.1" in forward.log
    assert [request.values("Proxy-Authorization") for request in upstream.requests] == [[]] * 3
    assert {request.target for request in upstream.requests} == {USERS.encode()}


@pytest.mark.needs("tinyproxy")
@pytest.mark.parametrize("credentials", ["", f"{USER}:wrong@"], ids=["none", "wrong"])
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_forward_proxy_that_refuses_us_leaves_nothing_sent(
    scheme: str, credentials: str, authority: Authority, tmp_path: Path
) -> None:
    """Its 407 is not the caller's business; to wrong ones without a tunnel this one says 401."""
    async with (
        TlsApi(authority.issue("api")).serve() as secure,
        RawUpstream() as plain,
        TinyProxy(tmp_path).serve() as forward,
    ):
        url = {"http": plain.url, "https": secure.url}[scheme]
        way = {
            "ca_file": str(authority.file),
            "proxy_url": f"http://{credentials}{HOST}:{forward.port}",
        }
        async with proxy_for(url, upstream=way, retry=ONCE) as proxy:
            answer = await ask(port_of(proxy.url))
    if (scheme, bool(credentials)) == ("http", True):
        assert answer.status == 401
    else:
        check_unreachable(answer)
        assert answer.values("proxy-authenticate") == []
    assert (plain.requests, secure.requests) == ([], [])


async def test_without_the_forward_proxy_nothing_is_sent(authority: Authority) -> None:
    """There is no way round it."""
    way = {"ca_file": str(authority.file), "proxy_url": f"http://{HOST}:{free_port()}"}
    async with (
        TlsApi(authority.issue("api")).serve() as api,
        proxy_for(api.url, upstream=way, retry=ONCE) as proxy,
    ):
        check_unreachable(await ask(port_of(proxy.url)))
    assert api.requests == []


@pytest.mark.needs("tinyproxy")
async def test_a_tunnel_does_not_vouch_for_the_api(authority: Authority, tmp_path: Path) -> None:
    async with (
        TlsApi(_by_another_authority(authority)).serve() as api,
        TinyProxy(tmp_path).serve() as forward,
    ):
        way = {"ca_file": str(authority.file), "proxy_url": forward.url}
        async with proxy_for(api.url, upstream=way, retry=ONCE) as proxy:
            check_unreachable(await ask(port_of(proxy.url)))
    assert api.requests == []
