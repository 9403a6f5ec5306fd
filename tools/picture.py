"""docs/pace.svg: what the API saw of three real runs, drawn from the simulator's arrivals.

Each run is a burst of callers of one service account. No number in the picture is made up: without
the arrivals of these runs there is no picture. `make picture` draws it again.
"""

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp
import structlog

from proxy.clock import SystemClock
from proxy.service.lifecycle import running
from proxy.settings import Admin, Listen, Settings, Upstream
from proxy.simulator import ClientSpec, Simulator, SimulatorSettings

_TARGET: Final = Path(__file__).parent.parent / "docs" / "pace.svg"
_HOST: Final = "127.0.0.1"
_CALLERS: Final = 12
_CREDENTIALS: Final = aiohttp.encode_basic_auth("account", "any")
_EXPORTS: Final = "/api/v2/recordings/exports"
_ACCEPTED: Final = 202
_REFUSED: Final = 429
_SECONDS: Final = 8
"""How much time is drawn."""
_MOMENT: Final = 0.05
_SOMEONE_ELSE: Final = (1.7, 1.5)
"""When a client outside the proxy uses up the account's quota, and for how long."""


@dataclass(frozen=True, slots=True)
class Dot:
    """One arrival at the API: seconds after the burst, and the status it was answered with."""

    at: float
    status: int


async def arrivals(*, proxied: bool, someone_else: bool = False) -> list[Dot]:
    """Run one burst, directly at the API or through the proxy; return what the API saw."""
    clock = SystemClock()
    simulator = Simulator(
        SimulatorSettings(any_client=True, any_client_spec=ClientSpec(secret=None)),
        monotonic=time.monotonic,
        wall=time.time,
    )
    async with AsyncExitStack() as stack:
        url = (await stack.enter_async_context(simulator.serve(_HOST))).url
        if proxied:
            settings = Settings(
                listen=Listen(host=_HOST, port=0),
                admin=Admin(host=_HOST, port=0),
                upstream=Upstream(api_url=url, login_url=url),
            )
            url = (await stack.enter_async_context(running(settings, clock))).url
        http = await stack.enter_async_context(aiohttp.ClientSession(url))
        token = await _log_in(http)
        await clock.sleep_until(clock.monotonic() + 1)
        begun = clock.monotonic()
        async with asyncio.TaskGroup() as group:
            for _ in range(_CALLERS):
                group.create_task(_export(http, token))
            if someone_else:
                after, seconds = _SOMEONE_ELSE
                await clock.sleep_until(begun + after)
                simulator.eat_quota("account", seconds)
        seen = simulator.arrivals("account")
    return [Dot(arrival.at - begun, arrival.status or 0) for arrival in seen]


async def _log_in(http: aiohttp.ClientSession) -> str:
    form = {"grant_type": "client_credentials"}
    headers = {"Authorization": _CREDENTIALS}
    async with http.post("/oauth/token", data=form, headers=headers) as answer:
        return str((await answer.json())["access_token"])


async def _export(http: aiohttp.ClientSession, token: str) -> None:
    headers = {"Authorization": f"Bearer {token}"}
    async with http.post(_EXPORTS, json={"channel": "voice"}, headers=headers) as answer:
        await answer.read()


# The drawing; lengths are pixels.

_LEFT: Final = 16
_WIDTH: Final = 760
_ROW: Final = 78
_SECOND: Final = (_WIDTH - 2 * _LEFT) / _SECONDS
_STYLE: Final = """
text { font: 14px system-ui, -apple-system, 'Segoe UI', sans-serif; fill: #1f2328 }
.faint { fill: #59636e; font-size: 12px }
.background { fill: #ffffff; stroke: #d1d9e0 }
.line { stroke: #d1d9e0 }
.accepted { fill: #1a7f37 }
.refused { fill: none; stroke: #cf222e; stroke-width: 2 }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc }
  .faint { fill: #9198a1 }
  .background { fill: #0d1117; stroke: #3d444d }
  .line { stroke: #3d444d }
  .accepted { fill: #3fb950 }
  .refused { stroke: #f85149 }
}
"""


def drawing(rows: Sequence[tuple[str, Sequence[Dot]]]) -> str:
    """Draw one line of time for each row."""
    height = 12 + _ROW * len(rows) + 30
    # The picture has a background: the page may be dark where the reader's system is light.
    size = f'width="{_WIDTH - 1}" height="{height - 1}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img">',
        "<title>What the API sees of a burst, without and with the proxy</title>",
        f"<style>{_STYLE}</style>",
        f'<rect class="background" x="0.5" y="0.5" {size} rx="6"/>',
    ]
    for number, (label, dots) in enumerate(rows):
        parts += _row(label, dots, 12 + _ROW * number)
    parts += _axis(12 + _ROW * len(rows))
    return "\n".join([*parts, "</svg>", ""])


def _row(label: str, dots: Sequence[Dot], top: int) -> Iterator[str]:
    accepted = sum(dot.status != _REFUSED for dot in dots)
    refused = len(dots) - accepted
    counts = f"{accepted} accepted" + (f", {refused} × 429" if refused else "")
    span = dots[-1].at - dots[0].at
    duration = f" in {span:.2f} s" if span > _MOMENT else f" in {span * 1000:.0f} ms"
    yield f'<text x="{_LEFT}" y="{top + 16}">{label}</text>'
    yield (
        f'<text class="faint" x="{_WIDTH - _LEFT}" y="{top + 16}" '
        f'text-anchor="end">{counts}{duration}</text>'
    )
    middle = top + 46
    yield f'<path class="line" d="M{_LEFT} {middle}H{_WIDTH - _LEFT}"/>'
    for dot, (x, y) in zip(dots, _places(dots), strict=True):
        kind, radius = ("refused", 4) if dot.status == _REFUSED else ("accepted", 5)
        yield (
            f'<circle class="{kind}" cx="{x:.1f}" cy="{middle + y}" r="{radius}">'
            f"<title>{dot.at:.3f} s: {dot.status}</title></circle>"
        )


def _places(dots: Sequence[Dot]) -> Iterator[tuple[float, int]]:
    """Put each dot at its moment; those of one moment stand together, three to a column."""
    together = 0
    last = -1.0
    for dot in dots:
        together = together + 1 if dot.at - last < _MOMENT else 0
        last = dot.at
        yield _LEFT + 8 + dot.at * _SECOND + together // 3 * 12, (0, -12, 12)[together % 3]


def _axis(top: int) -> Iterator[str]:
    for second in range(_SECONDS):
        yield (
            f'<text class="faint" x="{_LEFT + 8 + second * _SECOND:.1f}" y="{top + 16}" '
            f'text-anchor="middle">{second} s</text>'
        )


async def main() -> None:
    """Run, and draw."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    rows = [
        (f"{_CALLERS} exports at once, straight to the API", await arrivals(proxied=False)),
        ("the same through the proxy", await arrivals(proxied=True)),
        (
            "and while somebody else uses up the quota",
            await arrivals(proxied=True, someone_else=True),
        ),
    ]
    for label, dots in rows[1:]:
        if sum(dot.status == _ACCEPTED for dot in dots) != _CALLERS:
            raise RuntimeError(f"{label}: not every export was accepted")
    _TARGET.write_text(drawing(rows), encoding="utf-8")


if __name__ == "__main__":
    asyncio.run(main())
