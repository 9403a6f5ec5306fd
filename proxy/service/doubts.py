"""Doubts about a valid configuration: keys that undo each other, and risks.

`export-proxy check` prints them, and the proxy logs them when it starts; neither refuses the
configuration. Each doubt is a sentence that begins with the key to look at. None quotes a value
that may be secret.
"""

from collections.abc import Callable, Iterator
from typing import Final
from urllib.parse import urlsplit

from proxy.settings import Settings

_TENTH: Final = 0.1  # a bound this far above another one is never reached
_LAST_SECONDS: Final = 2.0  # of a drain, in which what is unanswered is given up
_ANY: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 -- compared, not bound
_LOOPBACK: Final = frozenset({"localhost", "::1"})
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}

IsHere = Callable[[str], bool]
"""True for an address or a name of this machine."""


def doubts_about(settings: Settings, *, descriptors: float, reserved: int) -> Iterator[str]:
    """Yield a sentence for each doubt; the process may have `descriptors` open files.

    `reserved` of them are not for connections.
    """
    yield from _of_waits(settings)
    yield from _of_connections(settings, descriptors, reserved)
    yield from _of_the_drain(settings)
    yield from _of_replicas(settings)
    yield from _of_plain_http(settings)


def loops(settings: Settings, is_here: IsHere) -> Iterator[str]:
    """Yield a line for each upstream that is the proxy itself."""
    listen, admin = settings.listen, settings.admin
    urls = {"api_url": settings.upstream.api_url, "login_url": settings.upstream.login_url}
    for key, url in urls.items():
        host, port = _authority(url)
        for ours in (listen, admin):
            if port != ours.port or not _is_reached(host, ours.host, is_here):
                continue
            which = "listen" if ours is listen else "admin"
            yield f"upstream.{key}: is this proxy itself, at {which}.host and {which}.port"


def _is_reached(host: str, bound: str, is_here: IsHere) -> bool:
    if host == bound or (_is_loopback(host) and _is_loopback(bound)):
        return True
    return bound in _ANY and (_is_loopback(host) or is_here(host))


def _authority(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or _DEFAULT_PORTS[parts.scheme]


def _is_loopback(host: str) -> bool:
    return host in _LOOPBACK or host.startswith("127.")


def _of_waits(settings: Settings) -> Iterator[str]:
    pacing = settings.pacing
    if pacing.max_wait < pacing.interval:
        yield (
            "pacing.max_wait: is below pacing.interval: no request can wait for even one slot, and"
            " the proxy refuses one of two that come at once"
        )
    for index, account in enumerate(settings.accounts):
        if account.interval is not None and pacing.max_wait < account.interval:
            yield (
                f"accounts[{index}].interval: is above pacing.max_wait: no request of this account"
                " can wait for even one slot"
            )
    if "max_queue" not in pacing.model_fields_set:
        return
    whole = pacing.max_queue * pacing.interval
    if whole < _TENTH * pacing.max_wait:
        yield (
            f"pacing.max_queue: a full queue is sent in {whole:g} s, so no request ever waits for"
            f" pacing.max_wait ({pacing.max_wait:g} s): the proxy refuses further ones"
        )
    elif pacing.max_wait < _TENTH * whole:
        most = int(pacing.max_wait / pacing.interval)
        yield (
            f"pacing.max_queue: is never reached: pacing.max_wait ({pacing.max_wait:g} s) lets"
            f" {most} requests wait, one each pacing.interval"
        )


def _of_connections(settings: Settings, descriptors: float, reserved: int) -> Iterator[str]:
    limits, upstream, pacing = settings.limits, settings.upstream, settings.pacing
    wanted = limits.max_connections + upstream.max_connections + reserved
    if wanted > descriptors:
        yield (
            f"limits.max_connections: with upstream.max_connections it needs {wanted} descriptors,"
            f" and a process may have {descriptors:g}: the proxy lowers both to fit"
        )
    is_chosen = {"max_connections"} & limits.model_fields_set
    if (is_chosen or "max_queue" in pacing.model_fields_set) and (
        limits.max_connections < pacing.max_queue
    ):
        yield (
            "limits.max_connections: is below pacing.max_queue, and each request that waits holds a"
            " connection: the proxy closes further ones unanswered, instead of answering 429"
        )


def _of_the_drain(settings: Settings) -> Iterator[str]:
    limits, upstream = settings.limits, settings.upstream
    left = limits.drain_timeout - limits.drain_delay - _LAST_SECONDS
    is_chosen = {"drain_timeout", "drain_delay"} & limits.model_fields_set
    if (is_chosen or "response_timeout" in upstream.model_fields_set) and (
        left < upstream.response_timeout
    ):
        yield (
            f"limits.drain_timeout: leaves {left:g} s for answers, and upstream.response_timeout is"
            f" {upstream.response_timeout:g} s: a shutdown gives up slower ones, and tells their"
            " callers that the outcome is unknown"
        )
    if 0 < limits.drain_delay < settings.pacing.interval:
        yield (
            "limits.drain_delay: is below pacing.interval: no waiting request is sent in that time"
        )


def _of_replicas(settings: Settings) -> Iterator[str]:
    store = settings.store
    if store.is_shared:
        return
    if store.replicas > 1:
        yield (
            "store.replicas: without a shared store.url each replica paces by itself, and the"
            " API gets requests at several times the pace"
        )
    if store.on_failure == "reject":
        yield "store.on_failure: has no effect with memory://, which cannot fail"


def _of_plain_http(settings: Settings) -> Iterator[str]:
    upstream, identity = settings.upstream, settings.identity
    urls = {
        "upstream.api_url": (upstream.api_url, "tokens"),
        "upstream.login_url": (upstream.login_url, "client secrets and tokens"),
        "identity.jwks_url": (identity.jwks_url, "the keys that prove tokens"),
    }
    for key, (url, what) in urls.items():
        if url is None or not url.lower().startswith("http://"):
            continue
        if not _is_loopback(_authority(url)[0]):
            yield f"{key}: is plain http to another machine: {what} cross the network unprotected"
