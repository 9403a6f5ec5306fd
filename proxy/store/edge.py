"""The edge of redis-py: a time limit for its calls, and a translation of its errors."""

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

from proxy.deadlines import time_limit
from proxy.store.wire import StoreDown, why_failed

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
        async with time_limit(seconds):
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


def _why(error: BaseException) -> str:
    fitting = (words for kind, words in _REASONS if isinstance(error, kind))
    return next(fitting, None) or why_failed(error)
