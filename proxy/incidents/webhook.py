"""Incidents as one signed POST per start and end: the flat format.

A receiver verifies `X-Export-Proxy-Signature: t=TIME,v1=HMAC`, the HMAC-SHA256 (RFC 2104) of
TIME "." body, and refuses an old TIME. After a lost answer the same call comes again: a receiver
recognises it by `correlation_id`, `event` and `since`.
"""

import hashlib
import hmac
import json
from collections.abc import Collection, Mapping
from typing import Final, Literal
from urllib.parse import urlsplit

from proxy.clock import Clock
from proxy.incidents.calls import DeskClient, DeskDown
from proxy.incidents.credentials import CredentialsUnreadable, read_credentials
from proxy.incidents.desk import Known
from proxy.incidents.ledger import Ledger
from proxy.rules.episodes import Episode
from proxy.rules.incidents import PLACEHOLDERS, Value, columns, utc
from proxy.settings import Incidents

SIGNATURE: Final = "X-Export-Proxy-Signature"
DEFAULT_FIELDS: Final[Mapping[str, Value]] = {name: f"{{{name}}}" for name in PLACEHOLDERS}


class Webhook:
    """A receiver that gets one POST per event."""

    def __init__(
        self, settings: Incidents, client: DeskClient, ledger: Ledger, *, clock: Clock
    ) -> None:
        self._client = client
        self._settings = settings
        self._ledger = ledger
        self._clock = clock
        parts = urlsplit(settings.url)
        self._target = f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}"

    @property
    def takes_updates(self) -> bool:
        """False: it only gets start and end."""
        return False

    def apply(self, settings: Incidents) -> None:
        """Obey new fields from now on."""
        self._settings = settings

    async def find(self, incidents: Collection[str]) -> Mapping[str, Known]:
        """Return those of the incidents whose start was announced, and not their end."""
        return dict.fromkeys(await self._ledger.kept(incidents), Known(""))

    async def find_one(self, incident: str) -> Known | None:
        """Return that incident if its start was announced, and not its end."""
        return (await self.find([incident])).get(incident)

    async def open(self, episode: Episode) -> str:
        """Announce the start."""
        await self._announce("begin", episode)
        await self._ledger.keep(episode.id)
        return ""

    async def update(self, episode: Episode) -> None:
        """Send nothing: it only gets start and end."""

    async def close(self, episode: Episode) -> None:
        """Announce the end."""
        await self._announce("end", episode)
        await self._ledger.forget(episode.id)

    async def _announce(self, event: Literal["begin", "end"], episode: Episode) -> None:
        at = episode.over_at if event == "end" else episode.trouble.since
        body = json.dumps(
            {
                **columns(self._settings.fields or DEFAULT_FIELDS, episode.trouble),
                "event": event,
                "correlation_id": episode.id,
                "at": utc(at),
            }
        ).encode()
        try:
            shown = await read_credentials(self._settings.credentials_file, "flat")
        except CredentialsUnreadable as error:
            raise DeskDown(f"credentials_file {error}") from None
        fields = {SIGNATURE: signature(shown.hmac_key, int(self._clock.wall()), body)}
        await self._client.call("POST", self._target, fields, body)


def signature(key: bytes, time: int, body: bytes) -> str:
    """Return the value of the signature's header for a body that is sent at that wall time."""
    value = hmac.new(key, f"{time}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={time},v1={value}"
