"""All tokens of a client have one pace, however they were asked for at the proxy.

The login server is the simulator's; where it would be too strict, a scripted one whose answers are
as servers really write them. The API allows an account one export an interval, and counts.
"""

import asyncio
import base64
import gzip
import json
from time import monotonic, time
from typing import Any

import pytest

from proxy.clock import SystemClock
from proxy.service.lifecycle import Running, running
from proxy.simulator.app import Simulator
from proxy.simulator.settings import ClientSpec, SimulatorSettings
from tests.kit.client import Response, exchange, parse_response, port_of
from tests.kit.listener import HOST
from tests.kit.proxy import has_token, settings_for
from tests.kit.upstream import RawUpstream, RecordedRequest, Reply, Step

EXPORTS = "/api/v2/recordings/exports"
INTERVAL = 0.25
CLIENT, SECRET = "london-id", "s3:cr+t %"
GRANT = "grant_type=client_credentials"
BOTH = "client_id=london-id&client_secret=s3%3Acr%2Bt%20%25"
FORM = "Content-Type: application/x-www-form-urlencoded"
VOICE, DIGITAL = "recordings:export", "agent_scripting:export"


def basic(pair: str) -> str:
    return f"Authorization: Basic {base64.b64encode(pair.encode()).decode()}"


SPELLINGS: list[tuple[str, str, list[str]]] = [
    ("", f"{GRANT}&{BOTH}", [FORM]),
    (f"{GRANT}&{BOTH}", "", []),
    (GRANT, "", [basic(f"{CLIENT}:s3%3Acr%2Bt%20%25")]),
    ("", GRANT, [FORM, basic(f"{CLIENT}:s3%3Acr%2Bt%20%25")]),
    (GRANT, BOTH, [FORM]),
    ("", f"{GRANT}&{BOTH}", [FORM, "Accept-Encoding: gzip"]),
]


async def log_in(proxy: Running, query: str, form: str, fields: list[str]) -> Response:
    target = f"/oauth/token?{query}" if query else "/oauth/token"
    lines = [f"POST {target} HTTP/1.1", "Host: h", *fields, f"Content-Length: {len(form)}"]
    data = "\r\n".join([*lines, "", form]).encode()
    return parse_response(await exchange(HOST, port_of(proxy.url), data, timeout=30))


def token_of(answer: Response) -> str:
    assert answer.status == 200, answer
    coded = answer.values("Content-Encoding") == [b"gzip"]
    token: str = json.loads(gzip.decompress(answer.body) if coded else answer.body)["access_token"]
    return token


async def export(proxy: Running, token: str, body: bytes = b'{"channel": "voice"}') -> int:
    head = (
        f"POST {EXPORTS} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    raw = await exchange(HOST, port_of(proxy.url), head.encode() + body, timeout=30)
    return parse_response(raw).status


def simulator() -> Simulator:
    spec = ClientSpec(secret=SECRET, scopes=frozenset({VOICE}))
    options = SimulatorSettings(interval=INTERVAL, clients={CLIENT: spec})
    return Simulator(options, monotonic=monotonic, wall=time)


@pytest.mark.timed
async def test_tokens_from_log_ins_in_every_spelling_have_one_pace() -> None:
    api = simulator()
    async with api.serve(HOST) as server:
        settings = settings_for(server.url, pacing={"interval": INTERVAL})
        async with running(settings, SystemClock()) as proxy:
            tokens = [token_of(await log_in(proxy, *spelling)) for spelling in SPELLINGS]
            assert len(set(tokens)) == len(SPELLINGS)
            statuses = await asyncio.gather(*(export(proxy, one) for one in tokens * 4))
    assert statuses == [202] * 24
    assert not [one for one in api.arrivals(CLIENT) if one.status == 429]
    assert len({account.label for account in proxy.accounts.accounts() if account.queues}) == 1


async def test_managed_account_gives_its_token_in_every_spelling() -> None:
    api = simulator()
    account = {"name": "london", "client_id": CLIENT, "client_secret": SECRET}
    async with api.serve(HOST) as server:
        settings = settings_for(server.url, pacing={"interval": 0.05}, accounts=[account])
        async with running(settings, SystemClock()) as proxy:
            await has_token(proxy)
            minted = api.report(CLIENT).tokens_minted
            tokens = {token_of(await log_in(proxy, *spelling)) for spelling in SPELLINGS}
            assert len(tokens) == 1
            assert api.report(CLIENT).tokens_minted == minted


ANSWERS: dict[str, dict[str, Any]] = {
    "digits": {"expires_in": "3599"},
    "nothing": {},
    "zero": {"expires_in": 0},
    "absurd": {"expires_in": 10**30},
    "no type": {"expires_in": 600, "token_type": None},
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
async def test_token_belongs_to_its_client_however_it_was_answered(answer: dict[str, Any]) -> None:
    """The second token of the client is in the queue of the first."""

    def script(request: RecordedRequest) -> Step:
        if not request.target.startswith(b"/oauth/token"):
            return Reply(202)
        token = f"token-{request.number}-{request.connection}"
        body = json.dumps({"access_token": token, **answer}).encode()
        return Reply(200, [("Content-Encoding", "gzip")], gzip.compress(body))

    async with RawUpstream(script) as upstream:  # noqa: SIM117 -- it outlives it
        async with running(settings_for(upstream.url), SystemClock()) as proxy:
            for query, form, fields in SPELLINGS[:2]:
                coded = await log_in(proxy, query, form, fields)
                assert await export(proxy, token_of(coded)) == 202
            busy = [account for account in proxy.accounts.accounts() if account.queues]
    assert len(busy) == 1
