"""One log line for each request that would change something, also for a refused one.

The line names the peer, the action, the configured account and the outcome; nothing else that the
peer sent is logged.
"""

from collections.abc import Callable
from http import HTTPStatus
from typing import Final

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

SAFE: Final = frozenset({"GET", "HEAD"})

_ACTIONS: Final = {
    "/accounts/{name}/refresh": "refresh",
    "/accounts/{name}/pause": "pause",
    "/accounts/{name}/resume": "resume",
    "/accounts/{name}/interval": "interval",
    "/-/reload": "reload",
}
_log = structlog.get_logger(__name__)


class ActionLog:
    """Logs what operators do, and what they were refused."""

    def __init__(self, is_configured: Callable[[str], bool]) -> None:
        self._is_configured = is_configured

    @web.middleware
    async def note(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Handle the request, then log it unless its method is safe."""
        if request.method in SAFE:
            return await handler(request)
        status = int(HTTPStatus.INTERNAL_SERVER_ERROR)
        try:
            response = await handler(request)
            status = response.status
            return response
        except web.HTTPException as refusal:
            status = refusal.status
            raise
        finally:
            self._write(request, status)

    def _write(self, request: web.Request, status: int) -> None:
        resource = request.match_info.route.resource
        name = request.match_info.get("name", "")
        _log.info(
            "operator action",
            peer=request.remote,
            action=_ACTIONS.get("" if resource is None else resource.canonical, "unknown"),
            account=name if self._is_configured(name) else None,
            outcome=_outcome(status),
            code=status,
        )


def _outcome(status: int) -> str:
    if status < HTTPStatus.BAD_REQUEST:
        return "done"
    return "refused" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "failed"
