"""One outcome for several callers, all of which wait for the same future."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from proxy.problems import Problem

_T = TypeVar("_T")


async def share_outcome(
    done: "asyncio.Future[_T | Problem]", work: Coroutine[Any, Any, _T]
) -> None:
    """Do the work, and give what comes of it to all that wait for `done`.

    A Problem is a result, which each caller raises anew; a bug is raised for each of them. If the
    work is cancelled, `done` is too.
    """
    try:
        done.set_result(await work)
    except Problem as problem:
        done.set_result(problem.anew())
    except Exception as bug:  # noqa: BLE001 -- raised again for each caller
        done.set_exception(bug)
        done.exception()  # there may be no caller left
    finally:
        done.cancel()  # where it was given up
