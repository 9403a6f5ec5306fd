"""However the path of an export is written, it is paced or refused.

The stand-in API reads paths as leniently as gateways do: case, parameters, empty and dot segments,
escapes make no difference to it (CWE-22, CWE-436). So it takes for an export what only looks like
something else, and stamps its arrival.
"""

import asyncio
import time
from collections.abc import Sequence
from functools import cache
from itertools import combinations

import pytest

from proxy.service.lifecycle import Running
from proxy.simulator import ClientSpec, SigningKey, Simulator, SimulatorSettings
from proxy.simulator.settings import DIGITAL_SCOPE, VOICE_SCOPE
from tests.kit.client import Response, exchange, parse_response, port_of
from tests.kit.listener import HOST
from tests.kit.logins import token_from
from tests.kit.proxy import proxy_for
from tests.kit.stalls import noting_stalls

INTERVAL = 0.1
TOLERANCE = 0.06  # of a busy machine; unpaced requests arrive within a few milliseconds
AT_ONCE = 20

PACED = [
    "/api/v2/recordings/exports",
    "/api/v2/recordings/exports/",
    "/api/v2/recordings/exports?",
    "/api/v2/recordings/exports?a=/../b",
    "/API/V2/Recordings/EXPORTS",
    "/api/v2/recordings/exports;x",
    "/api/v2/recordings/exports;x=1/",
    "/api/v2/recordings;a/exports;b",
    "/api/v2/recordings/%65xports",
    "/api/v2/recordings/%45xports",
    "/%61pi/v%32/recordings/exports",
    "http://evil.example/api/v2/recordings/exports",
    "HTTP://evil.example:1/api/v2/recordings/%65xports;x/",
]
REFUSED = [
    "/api/v2/recordings%2Fexports",
    "/api/v2/recordings%2fexports",
    "/api/v2/recordings%5Cexports",
    "/api/v2/recordings\\exports",
    "//api/v2/recordings/exports",
    "/api//v2/recordings/exports",
    "/api/v2/recordings/exports//",
    "/api/v2/recordings/;/exports",
    "/api/v2/x/../recordings/exports",
    "/api/v2/x/%2e%2e/recordings/exports",
    "/api/v2/x/..;y/recordings/exports",
    "/api/v2/./recordings/exports",
    "/api/v2/recordings/%2E/exports",
    "/api/v2/recordings/exports/.",
    "/api/v2/recordings/exports%00",
    "/api/v2/recordings/exports%3f",
    "/api/v2/recordings/exports%3fx=1",
    "/api/v2/recordings/exports%23",
    "/api/v2/recordings/exports%3b",
    "/api/v2/recordings/exports%20",
    "/api/v2/recordings/%20exports",
    "/api/v2/recordings/exports%09",
    "/api/v2/recordings/exports%0a",
    "/api/v2/recordings%252fexports",
    "/api/v2/recordings/%2565xports",
    "/api/v2/recordings%C0%AFexports",
    "/api/v2/recordings%EF%BC%8Fexports",
    "/api/v2/recordings/export%C5%BF",
    "/api/v2/recordings/exports#x",
    "/api/v2/recordings/exports%",
    "/api/v2/recordings/%zzexports",
    "http://evil.example//api/v2/recordings/exports",
    "api/v2/recordings/exports",
]
DECLINED = [
    "/x/api/v2/recordings/exports",
    "/api/v2/recordings/exports.json",
    "/api/v2/recordings/exports,",
]


async def call(proxy: Running, token: str, target: str) -> Response:
    data = (
        f"GET {target} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {token}\r\n"
        "Cache-Control: no-store\r\nConnection: close\r\n\r\n"  # or equal ones are merged
    )
    port = port_of(proxy.url)
    return parse_response(await exchange(HOST, port, data.encode(), timeout=30))


@cache
def _key() -> SigningKey:
    return SigningKey.generate()  # which takes a while


async def fire(targets: Sequence[str]) -> tuple[list[int], list[float], list[bool]]:
    """Send them all at once for one account: statuses, times of arrival, whether each was paced."""
    spec = ClientSpec(secret="s", scopes=frozenset({VOICE_SCOPE, DIGITAL_SCOPE}), opaque=True)
    settings = SimulatorSettings(interval=0.0001, clients={"c": spec})
    simulator = Simulator(settings, monotonic=time.monotonic, wall=time.time, key=_key())
    async with (
        simulator.serve(HOST) as api,
        proxy_for(api.url, pacing={"interval": INTERVAL, "max_wait": 30}) as proxy,
    ):
        token = await token_from(port_of(proxy.url), "c", "s")
        answers = await asyncio.gather(*(call(proxy, token, target) for target in targets))
    arrivals = simulator.arrivals("c")
    return (
        [answer.status for answer in answers],
        [arrival.at for arrival in arrivals],
        [arrival.paced for arrival in arrivals],
    )


def is_paced(times: Sequence[float], *, stalled: float) -> bool:
    """Whether any two arrivals are as far apart as their places in the queue ask for.

    A stamp may be late by the longest time for which the machine stood still, no later.
    """
    slack = TOLERANCE + stalled
    pairs = combinations(enumerate(times), 2)
    return all(b - a >= (k - j) * INTERVAL - slack for (j, a), (k, b) in pairs)


@pytest.mark.parametrize("target", REFUSED)
async def test_a_spelling_that_could_be_an_export_is_refused(target: str) -> None:
    statuses, times, _ = await fire([target] * AT_ONCE)
    assert (statuses, times) == ([400] * AT_ONCE, [])


@pytest.mark.parametrize("target", DECLINED)
async def test_what_only_looks_like_an_export_is_none_to_the_api_either(target: str) -> None:
    _, _, paced = await fire([target] * AT_ONCE)
    assert not any(paced)


@pytest.mark.timed
async def test_every_other_spelling_is_paced() -> None:
    """Each for an account of its own, all at the same time."""
    async with noting_stalls() as stalls:
        outcomes = await asyncio.gather(*(fire([target] * AT_ONCE) for target in PACED))
    for target, (statuses, times, _) in zip(PACED, outcomes, strict=True):
        assert statuses == [200] * AT_ONCE, target
        assert len(times) == AT_ONCE, target
        assert is_paced(times, stalled=stalls.longest), target


@pytest.mark.timed
async def test_all_spellings_together_have_one_pace() -> None:
    async with noting_stalls() as stalls:
        statuses, times, _ = await fire([*PACED, *REFUSED, *PACED])
    assert sorted(statuses) == [200] * 2 * len(PACED) + [400] * len(REFUSED)
    assert is_paced(times, stalled=stalls.longest)
