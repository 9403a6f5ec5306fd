"""The edge of redis-py: a time limit for its calls, and a translation of its errors."""

import asyncio
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import structlog
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.sentinel import MasterNotFoundError

from proxy.store.wire import PASS_SECONDS, PASSES, StoreDown, why_failed

_log = structlog.get_logger(__name__)

_REASONS: Final = (  # the first that fits; redis-py's own texts may name the server
    (RedisTimeoutError, "no answer in time"),
    (MasterNotFoundError, "no sentinel knows a master"),
    (AuthenticationError | AuthorizationError, "the server refuses the credentials"),
    (BusyLoadingError, "the server is still loading its data"),
    (RedisConnectionError, "the connection was lost"),
    (ResponseError, "the server refuses a command"),
    (RedisError, "the answer is not usable"),
)


@asynccontextmanager
async def edge(seconds: float) -> AsyncIterator[None]:
    """Limit the time of the block, and turn each error of redis-py into StoreDown.

    redis-py raises other libraries' errors too: a reset connection is uvloop's RuntimeError, an odd
    answer a ValueError. So only calls of redis-py and the wire belong into the block.
    """
    try:
        async with _limit(seconds):
            yield
    except StoreDown:
        raise
    except Exception as error:  # noqa: BLE001 -- the edge of a foreign library, as said above
        # The error's text may name the server, and with some errors its password.
        if not isinstance(error, RedisError | OSError | TimeoutError):
            *_, (frame, line) = traceback.walk_tb(error.__traceback__)
            where = f"{frame.f_code.co_filename}:{line}"
            _log.error("the store's client failed", kind=type(error).__name__, where=where)
        raise StoreDown(_why(error)) from None


@asynccontextmanager
async def _limit(seconds: float) -> AsyncIterator[None]:
    """Limit the time of the block; at its end our own loop gets some passes to read late answers.

    They take no time if the server is slow, and as long as needed if our own loop was busy.
    """
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle
    async with asyncio.timeout(None) as limit:

        def look(passes_left: int) -> None:
            nonlocal timer
            if passes_left:
                timer = loop.call_later(PASS_SECONDS, look, passes_left - 1)
            else:
                limit.reschedule(loop.time())

        timer = loop.call_later(seconds, look, PASSES)
        try:
            yield
        finally:
            timer.cancel()


def _why(error: BaseException) -> str:
    fitting = (words for kind, words in _REASONS if isinstance(error, kind))
    return next(fitting, None) or why_failed(error)
