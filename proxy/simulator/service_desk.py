"""The incident table on HTTP: `/api/now/table/incident`, with scripted faults.

This file checks callers, reads calls and plays the faults; `incidents` has the rules of the table.
"""

import asyncio
import base64
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from json import JSONDecodeError

from aiohttp import hdrs, web

from proxy.simulator.incidents import IncidentTable, Row, TableError, shown
from proxy.simulator.settings import SimulatorSettings

PATH = "/api/now/table/incident"
_LIMIT = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """The scripted answer to one call; with `hangs` there is none, for that many seconds.

    With `is_applied` the call is carried out before, and only its answer is lost.
    """

    status: int = 500
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str = ""
    content_type: str = "application/json"
    hangs: float = 0
    is_applied: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """A call as it came."""

    method: str
    body: object


class ServiceDesk:
    """Handler of the table; `calls` is what came, `faults` what the next calls are answered."""

    def __init__(self, settings: SimulatorSettings) -> None:
        self.table = IncidentTable(settings.incident_columns)
        self.calls: list[Call] = []
        self.faults: deque[Fault] = deque()
        self._login = settings.incident_login

    @property
    def rows(self) -> list[Row]:
        """The rows, oldest first."""
        return [*self.table.rows.values()]

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get(PATH, self._find, allow_head=False),
            web.post(PATH, self._insert),
            web.patch(PATH + "/{sys_id}", self._change),
        ]

    async def _find(self, request: web.Request) -> web.Response:
        query = request.query
        limit = int(query.get("sysparm_limit", _LIMIT))
        found = self.table.find(query.get("sysparm_query", ""), limit=limit)
        if isinstance(found, TableError):
            return await self._answer(request, None, found)
        rows = [shown(row, query.get("sysparm_fields", "")) for row in found]
        return await self._answer(request, None, rows)

    async def _insert(self, request: web.Request) -> web.Response:
        document = await _document(request)
        if self._refusal(request) is None and self._is_applied():
            return await self._answer(request, document, self.table.insert(document), status=201)
        return await self._answer(request, document, TableError(500, "not applied"))

    async def _change(self, request: web.Request) -> web.Response:
        document = await _document(request)
        if self._refusal(request) is None and self._is_applied():
            result = self.table.change(request.match_info["sys_id"], document)
            return await self._answer(request, document, result)
        return await self._answer(request, document, TableError(500, "not applied"))

    def _is_applied(self) -> bool:
        return not self.faults or self.faults[0].is_applied

    async def _answer(
        self,
        request: web.Request,
        document: object,
        result: Row | list[Row] | TableError,
        *,
        status: int = 200,
    ) -> web.Response:
        self.calls.append(Call(request.method, document))
        if self.faults:
            fault = self.faults.popleft()
            await asyncio.sleep(fault.hangs)
            return web.Response(
                status=fault.status,
                headers=fault.headers,
                text=fault.body,
                content_type=fault.content_type,
            )
        refusal = self._refusal(request)
        if refusal is not None:
            return refusal
        if isinstance(result, TableError):
            return web.json_response(result.body(), status=result.status)
        return web.json_response({"result": result}, status=status)

    def _refusal(self, request: web.Request) -> web.Response | None:
        shown_login = request.headers.get(hdrs.AUTHORIZATION, "")
        wanted = "" if self._login is None else _basic(*self._login)
        if not shown_login or (wanted and shown_login != wanted):
            error = TableError(401, "User Not Authenticated")
            return web.json_response(error.body(), status=401)
        return None


async def _document(request: web.Request) -> object:
    try:
        return await request.json()
    except (JSONDecodeError, UnicodeDecodeError):
        return None


def _basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
