"""Incidents as rows of ServiceNow's incident table, through its Table API.

A row is one flat object of texts and booleans. `correlation_id` is our id of the incident: before
opening one, the proxy looks for an open row with that id. ServiceNow numbers its rows itself. A row
that a person closed stays closed: the proxy looks it up before it closes it.
https://www.servicenow.com/docs/bundle/zurich-api-reference/page/integrate/inbound-rest/concept/c_TableAPI.html
"""

import json
from collections.abc import Collection, Iterable, Mapping
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote, urlsplit

from proxy.incidents.calls import DeskClient, DeskDown, DeskRefuses, json_of
from proxy.incidents.credentials import CredentialsUnreadable, read_credentials
from proxy.incidents.desk import Known
from proxy.rules.episodes import Episode
from proxy.rules.incidents import ID_PREFIX, Value, columns, utc
from proxy.settings import Incidents

DEFAULT_FIELDS: Final[Mapping[str, Value]] = {
    "short_description": "{title}",
    "description": "{detail}",
}
_TABLE: Final = "/api/now/table/incident"
_MOST_ROWS: Final = 1_000  # open at once: more than people can work on
_SCOPES: Final = "missing: "  # before the scopes in `correlation_display`
_LONGEST_DISPLAY: Final = 100  # characters of that column


class IncidentTable:
    """The desk of a ServiceNow instance."""

    def __init__(self, settings: Incidents, client: DeskClient) -> None:
        self._client = client
        self._settings = settings
        path = urlsplit(settings.url).path.rstrip("/")
        self._path = path or _TABLE

    @property
    def takes_updates(self) -> bool:
        """True: as work notes."""
        return True

    def apply(self, settings: Incidents) -> None:
        """Obey new fields from now on."""
        self._settings = settings

    async def find(self, incidents: Collection[str]) -> Mapping[str, Known]:
        """Return those of the incidents that have an active row."""
        found = await self._look_up(f"correlation_idSTARTSWITH{ID_PREFIX}")
        return {name: known for name, known in found if name in incidents}

    async def find_one(self, incident: str) -> Known | None:
        """Return the active row of that incident."""
        found = await self._look_up(f"correlation_id={incident}")
        return next((known for name, known in found if name == incident), None)

    async def open(self, episode: Episode) -> str:
        """Insert a row, and return its `sys_id`."""
        trouble = episode.trouble
        row = columns(self._settings.fields or DEFAULT_FIELDS, trouble)
        row["correlation_id"] = episode.id
        if trouble.scopes:
            row["correlation_display"] = _display(trouble.scopes)
        answer: object = json_of(await self._call("POST", "", row))
        match answer:
            case {"result": {"sys_id": str(handle)}} if handle:
                return handle
            case _:
                raise DeskDown("the desk's answer names no sys_id")

    async def update(self, episode: Episode) -> None:
        """Add the news as a work note, and change the columns that differ."""
        fields = self._settings.fields or DEFAULT_FIELDS
        row = columns(fields, episode.trouble)
        before = {} if episode.reported is None else columns(fields, episode.reported)
        changed = {name: value for name, value in row.items() if before.get(name) != value}
        changed["work_notes"] = episode.trouble.detail
        if episode.trouble.scopes:
            changed["correlation_display"] = _display(episode.trouble.scopes)
        await self._call("PATCH", f"/{quote(episode.handle, safe='')}", changed)

    async def close(self, episode: Episode) -> None:
        """Close the row, unless a person has."""
        known = await self.find_one(episode.id)
        if known is None or known.handle != episode.handle:
            return
        close = self._settings.close
        row: dict[str, Value] = {
            "state": close.state,
            "close_code": close.close_code,
            "close_notes": f"{episode.notes} It was over at {utc(episode.over_at)}.",
        }
        await self._call("PATCH", f"/{quote(episode.handle, safe='')}", row)

    async def _look_up(self, condition: str) -> list[tuple[str, Known]]:
        """Return the open rows that meet a condition: active, and not in the state we set to close.

        Resolved rows stay active. An older API answers 404 if there is no row.
        """
        query = f"active=true^state!={self._settings.close.state}^{condition}"
        wanted = "sys_id,correlation_id,correlation_display"
        target = (
            f"?sysparm_query={quote(query, safe='')}&sysparm_fields={quote(wanted, safe='')}"
            f"&sysparm_limit={_MOST_ROWS}"
        )
        try:
            answer = json_of(await self._call("GET", target))
        except DeskRefuses as refusal:
            if refusal.status != HTTPStatus.NOT_FOUND:
                raise
            return []
        if not isinstance(answer, dict) or not isinstance(answer.get("result"), list):
            raise DeskDown("the desk's answer is no list of rows")
        return [*_rows(answer["result"])]

    async def _call(self, method: str, rest: str, row: Mapping[str, Value] | None = None) -> bytes:
        try:
            shown = await read_credentials(self._settings.credentials_file, "servicenow")
        except CredentialsUnreadable as error:
            raise DeskDown(f"credentials_file {error}") from None
        body = b"" if row is None else json.dumps(row).encode()
        fields = {"Authorization": shown.authorization}
        return await self._client.call(method, f"{self._path}{rest}", fields, body)


def _rows(result: list[Any]) -> Iterable[tuple[str, Known]]:
    for row in result:
        match row:
            case {"correlation_id": str(name), "sys_id": str(handle), **rest}:
                display = rest.get("correlation_display")
                yield name, Known(handle, _scopes(display if isinstance(display, str) else ""))
            case _:  # no row that the proxy wrote
                continue


def _display(scopes: Iterable[str]) -> str:
    """Write scopes into `correlation_display`, where the proxy finds them after a restart."""
    text = _SCOPES
    for scope in sorted(scopes):
        if len(text) + len(scope) <= _LONGEST_DISPLAY:
            text += f"{scope} "
    return text.rstrip()


def _scopes(display: str) -> frozenset[str]:
    is_ours = display.startswith(_SCOPES)
    return frozenset(display.removeprefix(_SCOPES).split()) if is_ours else frozenset()
