"""One log line for each request that would change something, refused ones included.

The line names the peer, the action, the configured account and the outcome, and nothing else that
the peer sent.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import structlog

from proxy.admin.endpoints import SAFE, Found
from proxy.http.request import Request
from proxy.http.responses import OwnAnswer

_ACTIONS: Final = {
    "/accounts/{name}/refresh": "refresh",
    "/accounts/{name}/pause": "pause",
    "/accounts/{name}/resume": "resume",
    "/accounts/{name}/interval": "interval",
    "/-/reload": "reload",
}
_OPERATOR_LEFT: Final = 499
_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Outcome:
    """The outcome of a request: the status of its answer, 500 until there is one."""

    status: int = HTTPStatus.INTERNAL_SERVER_ERROR


class ActionLog:
    """Logs the actions of operators, refused ones included."""

    def __init__(self, is_configured: Callable[[str], bool]) -> None:
        self._is_configured = is_configured

    @contextmanager
    def noting(self, request: Request, found: Found | OwnAnswer) -> Iterator[Outcome]:
        """Log the request at the end of the block, unless its method is safe."""
        outcome = Outcome()
        try:
            yield outcome
        except asyncio.CancelledError:
            outcome.status = _OPERATOR_LEFT  # what was begun may go on
            raise
        finally:
            if request.method not in SAFE:
                self._write(request.peer, found, outcome.status)

    def _write(self, peer: str, found: Found | OwnAnswer, status: int) -> None:
        action, name = "unknown", ""
        if isinstance(found, Found):
            action, name = _ACTIONS.get(found.endpoint.path, action), found.name
        _log.info(
            "operator action",
            peer=peer,
            action=action,
            account=name if self._is_configured(name) else None,
            outcome=_outcome(status),
            code=int(status),
        )


def _outcome(status: int) -> str:
    if status == _OPERATOR_LEFT:
        return "unknown"
    if status < HTTPStatus.BAD_REQUEST:
        return "done"
    return "refused" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "failed"
