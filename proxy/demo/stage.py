"""The wiring of the demo: its parts, their ports, and its end."""

import asyncio
import logging
import secrets
from collections.abc import Sequence
from typing import Final

import aiohttp
import structlog
from rich.console import Console

from proxy.clock import Clock, SystemClock
from proxy.demo.callers import HANG_UP_AFTER, QUITTER_PATH, Callers, ServiceAccount
from proxy.demo.display import Display, Progress, closing_table, open_display, result_line
from proxy.demo.promises import Outcome, judge
from proxy.service.lifecycle import running
from proxy.settings import Admin, Listen, Pacing, Settings, Upstream
from proxy.simulator import ClientSpec, Simulator, SimulatorSettings
from proxy.simulator.settings import DIGITAL_SCOPE, VOICE_SCOPE

_HOST: Final = "127.0.0.1"
_INTERVAL: Final = 0.5
_STAYING: Final = 12
_PLOT: Final = (
    f"Two service accounts ask for {_STAYING} exports each within a moment;\n"
    f"the API takes one every {_INTERVAL} s from each. One more caller of\n"
    f"voice-exports hangs up after {HANG_UP_AFTER} s in the queue.\n"
)


async def run() -> int:
    """Run the demo on the terminal; return 0 if every promise held, else 1."""
    # A line per request, which `serve` logs, would drown what is shown.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    console = Console(highlight=False)
    console.print(_PLOT, soft_wrap=True)
    outcomes = await _play(console, SystemClock())
    broken = judge(outcomes)
    console.print(closing_table(outcomes, _INTERVAL))
    console.print()
    console.print(result_line(broken), soft_wrap=True)
    return 1 if broken else 0


async def _play(console: Console, clock: Clock) -> list[Outcome]:
    cast = [
        Callers(_account("voice-exports", "voice"), staying=_STAYING, one_hangs_up=True),
        Callers(_account("chat-exports", "webchat"), staying=_STAYING, one_hangs_up=False),
    ]
    simulator = _simulator(cast, clock)
    async with (
        simulator.serve(_HOST) as api,
        running(_settings(api.url), clock) as proxy,
        aiohttp.ClientSession(proxy.url) as http,
    ):
        with open_display(console) as display:
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(_watch(cast, simulator, clock, display))
                async with asyncio.TaskGroup() as acting:
                    for callers in cast:
                        acting.create_task(callers.act(http, clock))
                watching.cancel()
    return [_outcome(callers, simulator) for callers in cast]


def _account(name: str, channel: str) -> ServiceAccount:
    return ServiceAccount(
        name=name, client_id=f"id-of-{name}", secret=secrets.token_hex(16), channel=channel
    )


def _simulator(cast: Sequence[Callers], clock: Clock) -> Simulator:
    clients = {
        callers.account.client_id: ClientSpec(
            secret=callers.account.secret, scopes=frozenset({VOICE_SCOPE, DIGITAL_SCOPE})
        )
        for callers in cast
    }
    settings = SimulatorSettings(interval=_INTERVAL, clients=clients)
    return Simulator(settings, monotonic=clock.monotonic, wall=clock.wall)


def _settings(api_url: str) -> Settings:
    """Return the settings of config/demo.yaml, with free ports."""
    return Settings(
        listen=Listen(host=_HOST, port=0),
        admin=Admin(host=_HOST, port=0),
        upstream=Upstream(api_url=api_url, login_url=api_url),
        pacing=Pacing(interval=_INTERVAL),
    )


async def _watch(
    cast: Sequence[Callers], simulator: Simulator, clock: Clock, display: Display
) -> None:
    begun = now = clock.monotonic()
    while True:
        await clock.sleep_until(now + display.period)
        now = clock.monotonic()
        display.show(now - begun, [_progress(callers, simulator, now) for callers in cast])


def _progress(callers: Callers, simulator: Simulator, now: float) -> Progress:
    arrivals = simulator.arrivals(callers.account.client_id)
    awaits_slot = bool(arrivals) and callers.waiting > 0
    return Progress(
        account=callers.account.name,
        exports=callers.staying,
        accepted=simulator.report(callers.account.client_id).accepted,
        waiting=callers.waiting,
        hung_up=callers.hung_up,
        next_slot=max(0.0, arrivals[-1].at + _INTERVAL - now) if awaits_slot else None,
    )


def _outcome(callers: Callers, simulator: Simulator) -> Outcome:
    client_id = callers.account.client_id
    return Outcome(
        account=callers.account.name,
        staying=callers.staying,
        answers=callers.answers,
        quitter_answers=callers.quitter_answers.total(),
        quitter_arrivals=sum(a.path == QUITTER_PATH for a in simulator.arrivals(client_id)),
        report=simulator.report(client_id),
    )
