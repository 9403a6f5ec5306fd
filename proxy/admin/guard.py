"""Who may use the admin port: the checks before any of its handlers.

Any web page can direct a browser to loopback. So the Host must be an address, localhost or a
configured name (DNS rebinding), and cross-site requests are refused (Fetch Metadata,
https://www.w3.org/TR/fetch-metadata/). Off loopback each request that changes something needs the
admin token; without a configured token such requests are answered 404.
"""

import hmac
import ipaddress
import re
from http import HTTPStatus
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from proxy.admin.answers import text
from proxy.admin.endpoints import SAFE
from proxy.http.request import Request
from proxy.http.responses import OwnAnswer
from proxy.settings import Admin
from proxy.settings.files import aside, read_small_file

_PORT: Final = re.compile(r":[0-9]*\Z")


class AdminGuard:
    """Decides which requests reach the admin port's handlers."""

    def __init__(self, settings: Admin) -> None:
        self._names = {"localhost", *(host.lower() for host in settings.allowed_hosts)}
        self._is_local = settings.host == "localhost" or _is_loopback(settings.host)
        self._token_file = settings.token_file

    async def refusal(self, request: Request) -> OwnAnswer | None:
        """Return the answer to a request that may not reach its handler, None if it may."""
        hosts = request.headers.getall("Host", ())  # every browser sends one
        if len(hosts) > 1 or not all(self._is_known(host) for host in hosts):
            return text("Unknown Host.\n", HTTPStatus.FORBIDDEN)
        if _is_cross_site(request):
            return text("Not for other sites.\n", HTTPStatus.FORBIDDEN)
        if request.method in SAFE or self._is_local:
            return None
        if self._token_file is None:
            return text("Not found.\n", HTTPStatus.NOT_FOUND)
        if not await _has_token(request, self._token_file):
            challenge = ("WWW-Authenticate", 'Bearer realm="export-proxy admin"')
            return text("The admin token is needed.\n", HTTPStatus.UNAUTHORIZED, [challenge])
        return None

    def _is_known(self, host: str) -> bool:
        name = _PORT.sub("", host).lower()
        return name in self._names or _is_address(name)


def _is_cross_site(request: Request) -> bool:
    if request.headers.get("Sec-Fetch-Site", "none") not in {"none", "same-origin"}:
        return True
    origin = request.headers.get("Origin")
    if origin is None:
        return False
    try:
        return urlsplit(origin).netloc.lower() != request.headers.get("Host", "").lower()
    except ValueError:  # no URL, and so no origin of ours
        return True


async def _has_token(request: Request, file: Path) -> bool:
    try:
        token = (await aside(lambda: read_small_file(file))).strip()
    except (OSError, UnicodeDecodeError):
        return False
    shown = request.headers.get("Authorization", "").encode("utf-8", "replace")
    return bool(token) and hmac.compare_digest(shown, f"Bearer {token}".encode())


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return _is_address(host) and ipaddress.ip_address(host.strip("[]")).is_loopback
