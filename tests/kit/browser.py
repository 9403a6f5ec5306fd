"""A real browser without a window, driven over the DevTools protocol.

Chromium speaks it on a WebSocket, which aiohttp speaks too, so no driver is needed:
https://chromedevtools.github.io/devtools-protocol/
"""

import asyncio
import base64
import itertools
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from proxy.clock import SystemClock

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--remote-debugging-port=0",
)
STARTED_WITHIN = 60.0
POLL_SECONDS = 0.05

_clock = SystemClock()


class Page:
    """One tab: what it shows, what it asked for, what its console says."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.requests: list[str] = []
        """URLs of all it asked for, in order."""
        self.complaints: list[str] = []
        """Errors and warnings of the console, exceptions nobody caught, breaches of a policy."""
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._session: str | None = None
        self._reading = asyncio.get_running_loop().create_task(self._read())

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Ask for something of the protocol."""
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        message = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        await self._socket.send_json(message)
        async with asyncio.timeout(20):
            result: dict[str, Any] = await answer
        return result

    async def attach(self) -> None:
        """Open the tab and listen to what happens in it."""
        target = await self.call("Target.createTarget", url="about:blank")
        attached = await self.call(
            "Target.attachToTarget", targetId=target["targetId"], flatten=True
        )
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.call(f"{domain}.enable")

    async def open(self, url: str) -> None:
        await self.call("Page.navigate", url=url)

    async def look_like(self, *, width: int, height: int, scheme: str) -> None:
        """Emulate a screen of that size, and a preference for `light` or `dark`."""
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        await self.call("Emulation.setEmulatedMedia", features=features)

    async def value(self, expression: str) -> Any:
        """Return what a JavaScript expression is."""
        answer = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def until(self, expression: str, *, within: float = 30) -> None:
        """Wait until a JavaScript expression is true."""
        try:
            async with asyncio.timeout(within):
                while not await self.value(expression):
                    await _clock.sleep_until(_clock.monotonic() + POLL_SECONDS)
        except TimeoutError:
            shown = await self.value("document.body.innerText")
            raise AssertionError(f"never true: {expression}\n{shown}\n{self.complaints}") from None

    async def screenshot(self, file: Path) -> None:
        """Save what the whole page looks like."""
        taken = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        await asyncio.to_thread(file.write_bytes, base64.b64decode(taken["data"]))

    async def close(self) -> None:
        self._reading.cancel()
        await asyncio.wait([self._reading])
        await self._socket.close()

    async def _read(self) -> None:
        async for message in self._socket:
            said = message.json()
            if "id" in said:
                self._settle(self._answers.pop(said["id"]), said)
            else:
                self._note(said["method"], said["params"])

    def _settle(self, answer: asyncio.Future[Any], said: dict[str, Any]) -> None:
        if answer.done():
            return
        if "error" in said:
            answer.set_exception(AssertionError(said["error"]))
        else:
            answer.set_result(said["result"])

    def _note(self, event: str, facts: dict[str, Any]) -> None:
        match event:
            case "Network.requestWillBeSent":
                self.requests.append(facts["request"]["url"])
            case "Runtime.exceptionThrown":
                self.complaints.append(str(facts["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if facts["type"] in {"error", "warning", "assert"}:
                self.complaints.append(str(facts["args"]))
            case "Log.entryAdded" if facts["entry"]["level"] in {"error", "warning"}:
                self.complaints.append(str(facts["entry"]))
            case _:
                pass


@asynccontextmanager
async def browsing(folder: Path) -> AsyncIterator[Page]:
    """Run a browser with a profile of its own, and open a tab in it."""
    browser = await asyncio.create_subprocess_exec(
        "chromium",
        *FLAGS,
        f"--user-data-dir={folder}",
        "about:blank",
        stderr=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
    )
    try:
        url = await _announced(browser)
        async with aiohttp.ClientSession() as http:
            page = Page(await http.ws_connect(url, max_msg_size=2**26))
            try:
                await page.attach()
                yield page
            finally:
                await page.close()
    finally:
        browser.terminate()
        await browser.communicate()


async def _announced(browser: asyncio.subprocess.Process) -> str:
    assert browser.stderr is not None
    async with asyncio.timeout(STARTED_WITHIN):
        while line := await browser.stderr.readline():
            found = re.search(rb"listening on (ws://\S+)", line)
            if found is not None:
                return found[1].decode()
    raise AssertionError("the browser ended at once")
