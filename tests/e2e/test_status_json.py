"""/status.json and /status: what they say of a run, and that nothing of a caller's is in it."""

import base64
import hashlib
import json
import re
import time
from pathlib import Path
from typing import Any

from proxy import __version__
from proxy.service.lifecycle import Running
from tests.kit.client import RawConnection, Response, exchange, parse_response, port_of
from tests.kit.listener import HOST
from tests.kit.process import document_for, serving
from tests.kit.proxy import proxy_for
from tests.kit.upstream import RawUpstream, RecordedRequest, Reply

EXPORTS = "/api/v2/recordings/exports"
KEYS = [f"sha256:{hashlib.sha256(b'key-of-london').hexdigest()}"]
LONDON = {"name": "london", "client_id": "id", "client_secret": "s", "keys": KEYS}
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
TRACESTATE = "vendor=a:b,other=1"


def api(code: int = 201) -> RawUpstream:
    """An API and login server in one."""
    token = {"access_token": "minted", "token_type": "bearer", "expires_in": 3600}

    def reply(request: RecordedRequest) -> Reply:
        if request.target == b"/oauth/token":
            return Reply(200, [("Content-Type", "application/json")], json.dumps(token).encode())
        return Reply(code)

    return RawUpstream(reply)


async def ask(url: str, target: str, *fields: str, method: str = "GET") -> Response:
    head = "".join(f"{line}\r\n" for line in (f"{method} {target} HTTP/1.1", "Host: h", *fields))
    port = port_of(url)
    return parse_response(await exchange(HOST, port, f"{head}\r\n".encode()), method)


async def status(proxy: Running) -> dict[str, Any]:
    answer = await admin(proxy, "/status.json")
    document: dict[str, Any] = json.loads(answer.body)
    return document


async def admin(proxy: Running, path: str) -> Response:
    port = port_of(proxy.admin_url)
    head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"
    return parse_response(await exchange(HOST, port, head.encode()))


async def test_the_proxy_says_how_it_is() -> None:
    async with api() as upstream, proxy_for(upstream.url, accounts=[LONDON]) as proxy:
        before = time.time()
        said = await status(proxy)
    assert (said["version"], said["state"], said["store_up"]) == (__version__, "serving", True)
    assert before <= said["at"] <= time.time()
    assert said["clock_skew"] == {}
    assert (said["connections"], said["notes"]) == (0, [])
    (london,) = said["accounts"]
    token = london.pop("token")
    assert london == {
        "name": "london",
        "routes": [],
        "in_flight": 0,
        "hold_remaining_seconds": 0.0,
        "hold_named_seconds": 0.0,
        "hold_limit": None,
        "quota_remaining": None,
        "observed": False,
        "paused": None,
        "slowed": None,
        "refusals": [],
        "callers_waiting": [],
        "callers_refused": [],
        "level": "trouble" if token["expires_in"] is None else "ok",
        "notes": london["notes"],
    }
    assert set(token) == {
        *("expires_in", "scopes", "missing", "next_refresh_in", "issued_at", "rejected")
    }


async def test_sends_and_the_gap_between_them_are_told() -> None:
    async with (
        api() as upstream,
        proxy_for(upstream.url, accounts=[LONDON], pacing={"interval": 0.05}) as proxy,
    ):
        for _ in range(3):
            answer = await ask(
                proxy.url, EXPORTS, "Authorization: Bearer key-of-london", method="POST"
            )
            assert answer.status == 201
        (queue,) = (await status(proxy))["accounts"][0]["routes"]
    assert queue["sent"] == 3
    assert 0.05 <= queue["last_gap_seconds"] < 10


async def test_refusals_are_kept_by_account_and_hold_nothing_of_the_callers() -> None:
    """Refusals of one type are one group, with their number."""
    async with (
        api() as upstream,
        proxy_for(upstream.url, accounts=[LONDON], pacing={"interval": 30}) as proxy,
    ):
        stranger = await ask(proxy.url, "/planted-path?planted-query", "X-Planted: planted-field")
        assert stranger.status == 404
        for number in range(9):
            refused = await ask(
                proxy.url,
                EXPORTS,
                "Authorization: Bearer key-of-london",
                f"Prefer: wait={number % 3}",
                "Planted: planted-field",
                method="POST",
            )
            assert refused.status == 429
        said = await status(proxy)
    london, other = said["accounts"]
    (group,) = london["refusals"]
    assert (group["type"], group["count"]) == ("urn:export-proxy:queue-full", 9)
    assert group["since"] < group["at"]
    assert group["detail"].startswith("A request sent now would wait")
    assert (other["name"], other["refusals"][0]["type"]) == ("other", "urn:export-proxy:not-found")
    assert london["level"] == "attention"
    assert "planted" not in json.dumps(said)
    assert "key-of-london" not in json.dumps(said)


async def test_an_account_that_is_configured_no_more_leaves_nothing_behind() -> None:
    async with (
        api() as upstream,
        proxy_for(upstream.url, accounts=[LONDON], pacing={"interval": 30}) as proxy,
    ):
        refused = await ask(
            proxy.url,
            EXPORTS,
            *("Authorization: Bearer key-of-london", "Prefer: wait=0"),
            method="POST",
        )
        assert refused.status == 429
        text = (await admin(proxy, "/metrics")).body.decode()
        assert 'account="london"' in text
        await proxy.proxy.reload(proxy.proxy.settings.model_copy(update={"accounts": ()}))
        text = (await admin(proxy, "/metrics")).body.decode()
        said = await status(proxy)
    assert 'account="london"' not in text
    assert all(account["name"] != "london" for account in said["accounts"])
    assert all(not account["refusals"] for account in said["accounts"])


async def test_the_page_runs_only_what_is_in_it() -> None:
    """Its policy names the hashes of the one script and the one style, and nothing else to load."""
    async with RawUpstream() as upstream, proxy_for(upstream.url) as proxy:
        answer = await admin(proxy, "/status")
    page = answer.body.decode()
    (policy,) = answer.values("Content-Security-Policy")
    rules = dict(rule.split(" ", 1) for rule in policy.decode().split("; "))
    for kind in ("script", "style"):
        (content,) = re.findall(rf"<{kind}>(.*?)</{kind}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules.pop(f"{kind}-src") == f"'sha256-{digest}'"
    assert rules == {
        "default-src": "'none'",
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    assert answer.values("X-Content-Type-Options") == [b"nosniff"]
    assert answer.values("Content-Type") == [b"text/html; charset=utf-8"]
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)
    assert " style=" not in page
    assert " onclick=" not in page


async def test_the_trace_context_passes_and_is_logged(tmp_path: Path) -> None:
    async with (
        api(200) as upstream,
        serving(tmp_path, document_for(upstream.url)) as process,
    ):
        answer = await ask(
            f"http://{HOST}:{process.port}",
            "/api/v2/users/me",
            "Authorization: Bearer a",
            f"traceparent: {TRACEPARENT}",
            f"tracestate: {TRACESTATE}",
            "tracestate: third=2",
        )
        assert answer.status == 200
    (request,) = upstream.requests
    assert request.values("traceparent") == [TRACEPARENT.encode()]
    assert request.values("tracestate") == [TRACESTATE.encode(), b"third=2"]
    (line,) = process.logged("request")
    assert line["traceparent"] == TRACEPARENT
    assert line["tracestate"] == f"{TRACESTATE},third=2"


async def test_refused_connections_are_counted_and_noted() -> None:
    limits = {"max_connections": 1}
    async with api() as upstream, proxy_for(upstream.url, limits=limits) as proxy:
        port = port_of(proxy.url)
        async with await RawConnection.open(HOST, port) as held:
            await held.send(b"GET /none HTTP/1.1\r\nHost: h\r\n\r\n")
            assert (await held.read_response()).status == 404
            async with await RawConnection.open(HOST, port) as refused:
                assert await refused.read_to_close() == b""
            said = await status(proxy)
        metrics = (await admin(proxy, "/metrics")).body
    assert b'export_proxy_connections_refused_total{reason="limit"} 1.0\n' in metrics
    assert said["connections"] == 1
    (note,) = said["notes"]
    assert (note["level"], note["title"]) == ("attention", "connections refused")
    assert "limits.max_connections" in note["advice"]
