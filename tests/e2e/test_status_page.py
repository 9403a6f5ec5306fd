"""The status page in a real browser, while one account is on hold and another lacks a scope."""

import asyncio
import hashlib
import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from proxy.service.lifecycle import Running
from proxy.simulator import ClientSpec, Simulator, SimulatorSettings
from proxy.simulator.settings import DIGITAL_SCOPE, VOICE_SCOPE
from tests.kit.browser import Page, browsing
from tests.kit.client import Response, exchange, parse_response, port_of
from tests.kit.listener import HOST
from tests.kit.proxy import proxy_for

pytestmark = pytest.mark.needs("chromium")

EXPORTS = "/api/v2/recordings/exports"
VOICE = b'{"mediaType": "voice"}'
CHAT = b'{"channel": "webchat"}'
HOLD_SECONDS = 40.0
NAMES = ("london-exports", "paris-exports", "oslo-archive")
IDLE = ("rome-archive", "bonn-archive")


def key_of(name: str) -> str:
    return f"key-of-{name}"


@dataclass
class Scene:
    """London is on hold, Paris lacks a scope, Oslo is well."""

    proxy: Running
    simulator: Simulator

    async def send(self, name: str, body: bytes = VOICE) -> Response:
        head = (
            f"POST {EXPORTS} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {key_of(name)}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        port = port_of(self.proxy.url)
        return parse_response(await exchange(HOST, port, head.encode() + body, timeout=60))


@asynccontextmanager
async def scene() -> AsyncIterator[Scene]:
    simulator = Simulator(
        SimulatorSettings(
            interval=0.01,  # so that a stall of this machine puts nobody on hold
            clients={
                "id-london-exports": ClientSpec(
                    secret="s", scopes=frozenset({VOICE_SCOPE, DIGITAL_SCOPE})
                ),
                "id-paris-exports": ClientSpec(secret="s"),
                **{f"id-{name}": ClientSpec(secret="s") for name in ("oslo-archive", *IDLE)},
            },
        ),
        monotonic=time.monotonic,
        wall=time.time,
    )
    accounts = [
        {
            "name": name,
            "client_id": f"id-{name}",
            "client_secret": "s",
            "keys": [f"sha256:{hashlib.sha256(key_of(name).encode()).hexdigest()}"],
        }
        for name in (*NAMES, *IDLE)
    ]
    async with (
        simulator.serve(HOST) as api,
        proxy_for(
            api.url,
            accounts=accounts,
            pacing={"interval": 0.25, "max_wait": 60},
            retry={"max_elapsed": 120},
        ) as proxy,
        asyncio.TaskGroup() as callers,
    ):
        it = Scene(proxy, simulator)
        for name in NAMES:
            assert (await it.send(name)).status == 202
        for _ in range(3):
            assert (await it.send("paris-exports", CHAT)).status == 403
        simulator.eat_quota("id-london-exports", HOLD_SECONDS)
        waiting = [callers.create_task(it.send("london-exports")) for _ in range(6)]
        waiting += [callers.create_task(keep_sending(it, "oslo-archive"))]
        yield it
        for task in waiting:
            task.cancel()


async def keep_sending(it: Scene, name: str) -> Response:
    while True:
        await asyncio.gather(*(it.send(name) for _ in range(3)))


def card(name: str) -> str:
    return f"document.querySelector('[data-account=\"{name}\"]')"


async def colour(page: Page, name: str) -> list[int]:
    style = f"getComputedStyle({card(name)}).borderInlineStartColor"
    return [int(part) for part in re.findall(r"\d+", await page.value(style))[:3]]


def is_red(rgb: list[int]) -> bool:
    red, green, blue = rgb
    return red > 150 and red > 1.4 * green and red > 1.4 * blue


async def text(page: Page, expression: str) -> str:
    return str(await page.value(f"{expression}.innerText"))


async def hold_left(page: Page) -> float:
    """How many seconds the page counts down to the end of London's hold."""
    shown = await text(page, f"{card('london-exports')}.querySelector('.hold')")
    found = re.fullmatch(r"([\d.]+) s", shown)
    assert found is not None, shown
    return float(found[1])


async def status(it: Scene) -> dict[str, Any]:
    """What the page is told, by account."""
    answer = await admin(it, "/status.json")
    return {account["name"]: account for account in json.loads(answer.body)["accounts"]}


async def admin(it: Scene, path: str) -> Response:
    head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"
    return parse_response(await exchange(HOST, port_of(it.proxy.admin_url), head.encode()))


async def hold_in(it: Scene) -> float:
    """How many seconds of London's hold are left."""
    return float((await status(it))["london-exports"]["hold_remaining_seconds"])


async def test_the_page_shows_which_account_is_in_trouble_why_and_until_when(
    tmp_path: Path,
) -> None:
    async with scene() as it, browsing(tmp_path / "profile") as page:
        await page.look_like(width=1280, height=900, scheme="light")
        await page.open(f"{it.proxy.admin_url}/status")
        await page.until(f"{card('london-exports')}?.dataset.level === 'trouble'")
        await page.until(f"{card('paris-exports')}?.dataset.level === 'trouble'")

        london = await text(page, card("london-exports"))
        paris = await text(page, card("paris-exports"))
        oslo = await text(page, card("oslo-archive"))
        assert "on hold" in london
        assert "scope missing" not in london
        assert f"missing: {DIGITAL_SCOPE}" in paris
        assert "next refresh in" in paris
        assert "missing-scope" in paris
        assert VOICE_SCOPE in paris
        assert "on hold" not in oslo
        assert "scope missing" not in oslo
        assert is_red(await colour(page, "london-exports"))
        assert is_red(await colour(page, "paris-exports"))
        assert not is_red(await colour(page, "oslo-archive"))
        assert "2 in trouble" in await text(page, "document.getElementById('summary')")

        # The countdown moves, and stays true.
        first = await hold_left(page)
        await page.until(f"document.querySelector('.hold.hot').innerText !== '{first:.0f} s'")
        before, shown, after = await hold_in(it), await hold_left(page), await hold_in(it)
        assert 0 < first <= HOLD_SECONDS
        assert after - 2.5 < shown < before + 2.5

        # What Oslo sends is drawn against its pace.
        await page.until(f"{card('oslo-archive')}.querySelectorAll('svg .gap').length >= 3")
        assert "interval (dashed) 0.25 s" in await text(page, card("oslo-archive"))

        # What rests takes one row; the tab says how bad it is.
        await page.until("document.getElementById('idle-names').children.length === 2")
        idle = await text(page, "document.getElementById('idle')")
        assert idle.startswith("2 accounts are idle:")
        assert all(name in idle for name in IDLE)
        await page.until("document.title === '2 in trouble · export-proxy'")
        assert re.search(r"requests? waits?; the last of them leaves in about", london)
        assert "missing-scope × 3" in paris

        for name, width, scheme in (
            ("light", 1280, "light"),
            ("dark", 1280, "dark"),
            ("phone", 390, "light"),
            ("phone-dark", 390, "dark"),
        ):
            await page.look_like(width=width, height=900, scheme=scheme)
            assert is_red(await colour(page, "london-exports"))
            assert await page.value("document.documentElement.scrollWidth") <= width
            await page.screenshot(tmp_path / f"{name}.png")

        assert page.complaints == []
        assert {urlsplit(url).netloc for url in page.requests if url[:5] != "data:"} == {
            urlsplit(it.proxy.admin_url).netloc
        }
        assert any(url.endswith("/status.json") for url in page.requests)


HOLES = """
[...document.querySelectorAll('.column')].flatMap(column => {
  const boxes = [...column.children].map(card => card.getBoundingClientRect());
  return boxes.slice(1).map((box, index) => box.top - boxes[index].bottom);
})
"""


async def test_what_was_before_the_page_was_opened_is_on_it(tmp_path: Path) -> None:
    """The proxy keeps the last ten minutes: sends and the smallest gap are there on opening."""
    async with scene() as it, browsing(tmp_path / "profile") as page:
        for _ in range(4):
            assert (await it.send("rome-archive")).status == 202
        remembered = json.loads((await admin(it, "/history.json")).body)["accounts"]
        spans = remembered["rome-archive"]["routes"]["exports"]
        gap = min(smallest for _, _, smallest in spans if smallest is not None)
        assert gap >= 0.249
        await page.look_like(width=800, height=900, scheme="light")
        await page.open(f"{it.proxy.admin_url}/status")
        await page.until(f"{card('rome-archive')}?.querySelector('figcaption')?.innerText")
        await page.until("document.getElementById('idle-names').children.length === 1")
        told = await text(page, f"{card('rome-archive')}.querySelector('figcaption')")
        found = re.search(r": 4 sent; the smallest gap is ([\d.]+) s", told)
        assert found is not None, told
        assert abs(float(found[1]) - gap) < 0.001
        assert "nothing was sent" not in await text(page, "document.body")
        gaps = await page.value(HOLES)
        assert len(gaps) == 2  # four cards in two columns
        assert all(abs(gap - 16) < 1 for gap in gaps)
