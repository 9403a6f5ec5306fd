"""The answers to accepted requests: exports created, shown, changed, and the rest.

No I/O, no clock and no randomness: a request comes whole, with the id that a new export would
get. Scopes are judged before the body's syntax, as they would be in front of it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from proxy.simulator import errors
from proxy.simulator.errors import ApiError
from proxy.simulator.exports import AccountExports, Export, key_of
from proxy.simulator.grants import required_scope
from proxy.simulator.tokens import Token

_LISTED = 25
WHOAMI = "/api/v2/tokens/me"


@dataclass(frozen=True, slots=True)
class Answer:
    """A success: its status, and a JSON body unless it has none."""

    status: int
    body: Mapping[str, object] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A request that passed credentials and pace. `path` and `family` are normalised."""

    token: Token
    method: str
    path: str
    family: str | None
    body: bytes
    key_header: str | None
    new_id: str


def answer(ask: Ask, exports: AccountExports) -> Answer | ApiError:
    if ask.family is None:
        return _answer_elsewhere(ask)
    if ask.path == ask.family:
        return _answer_collection(ask, ask.family, exports)
    export = exports.find(ask.family, ask.path.removeprefix(f"{ask.family}/"))
    return errors.NOT_FOUND if export is None else _answer_export(ask, export, exports)


def _answer_collection(ask: Ask, family: str, exports: AccountExports) -> Answer | ApiError:
    match ask.method:
        case "POST":
            return _create(ask, family, exports)
        case "GET" | "HEAD":
            entities = [export.body() for export in exports.of_family(family)]
            return Answer(200, {"entities": entities[-_LISTED:], "total": len(entities)})
        case _:
            return errors.METHOD_NOT_ALLOWED


def _create(ask: Ask, family: str, exports: AccountExports) -> Answer | ApiError:
    body, is_json = _decode(ask.body)
    scope = required_scope(body)
    if scope not in ask.token.scopes:
        return errors.missing_permissions(scope)
    if not is_json:
        return errors.BAD_JSON
    export = Export(id=ask.new_id, family=family)
    exports.create(export, key_of(ask.key_header, body))
    return Answer(202, export.body())


def _decode(body: bytes) -> tuple[object, bool]:
    """Decode JSON, and return whether it was valid; no body counts as an empty one."""
    if not body:
        return None, True
    try:
        return json.loads(body), True
    except (ValueError, RecursionError):
        return None, False


def _answer_export(ask: Ask, export: Export, exports: AccountExports) -> Answer | ApiError:
    match ask.method:
        case "GET" | "HEAD":
            return Answer(200, export.body())
        case "PUT":
            return _change(export, "PROCESSING", exports)
        case "DELETE":
            _change(export, "CANCELLED", exports)
            return Answer(204)
        case _:
            return errors.METHOD_NOT_ALLOWED


def _change(export: Export, state: str, exports: AccountExports) -> Answer:
    changed = replace(export, state=state)
    exports.put(changed)
    return Answer(200, changed.body())


def _answer_elsewhere(ask: Ask) -> Answer | ApiError:
    if not ask.path.startswith("/api/v2/"):
        return errors.NOT_FOUND
    if ask.path == WHOAMI:
        return Answer(200, _token_info(ask.token))
    return Answer(200, {"id": ask.token.client_id, "selfUri": ask.path})


def _token_info(token: Token) -> Mapping[str, object]:
    """Describe a token as the vendor does; a person's names the person."""
    organization = {"id": token.organization, "name": token.organization}
    info: dict[str, object] = {
        "organization": organization,
        "homeOrganization": organization,
        "authorizedScope": sorted(token.scopes),
        "OAuthClient": {
            "id": token.client_id,
            "name": token.client_id,
            "organization": organization,
        },
    }
    return info | ({"user": {"id": token.user}} if token.user else {})
