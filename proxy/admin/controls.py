"""What operators can order for an account: to pause, to resume, to send at longer intervals."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from http import HTTPStatus
from typing import Any, Final, Literal

from proxy.admin.answers import json_of, text
from proxy.http.bodies import Bodies
from proxy.http.request import Request
from proxy.http.responses import OwnAnswer
from proxy.pacing.account import Account
from proxy.pacing.accounts import Accounts
from proxy.rules import short_names
from proxy.rules.orders import BadOrder, check_no_fields, read_pause, read_slowdown

Action = Literal["pause", "resume", "interval"]

LISTED: Final = 20  # names in one answer
_ONLY_CONFIGURED: Final = (
    " Only configured accounts obey orders: a `name` and the `client_id` in `accounts` are enough."
)


class Controls:
    """Answers what operators order; the accounts obey it at once."""

    def __init__(self, accounts: Accounts, bodies: Bodies) -> None:
        self._accounts = accounts
        self._bodies = bodies

    async def obey(self, action: Action, request: Request, name: str) -> OwnAnswer:
        """Take an order, and answer what the account obeys now. Raises the Problem of its body."""
        body = await self._bodies.read(request)  # first: a reload may remove the account meanwhile
        if not self._accounts.is_configured(name):
            why = "" if short_names.is_configured(name) else _ONLY_CONFIGURED
            return unknown("account", self._accounts.names(), why)
        account = self._accounts.configured(name)
        try:
            is_shared = await self._order(action, account, _document(body))
        except BadOrder as error:
            return text(f"{error}\n", HTTPStatus.UNPROCESSABLE_ENTITY)
        now, allowance = self._accounts.context.clock.monotonic(), account.allowance
        paused, slowed = allowance.control.pause_state(now), allowance.control.slowdown_state(now)
        answer = {
            "name": name,
            "paused": None if paused is None else asdict(paused),
            "slowed": None if slowed is None else asdict(slowed),
            "interval": allowance.interval,
            "all_replicas": is_shared,
        }
        return json_of(answer)

    async def _order(self, action: Action, account: Account, document: Mapping[str, Any]) -> bool:
        """Give the order; True if all replicas obey it. Raises BadOrder."""
        operators = self._accounts.operators
        match action:
            case "pause":
                return await operators.pause(account, read_pause(document))
            case "resume":
                check_no_fields(document)
                return await operators.resume(account)
            case "interval":
                configured = account.allowance.configured_interval
                interval, seconds = read_slowdown(document, configured=configured)
                return await operators.slow_down(account, interval, seconds)


def _document(body: bytes) -> Mapping[str, Any]:
    """Return the JSON object of a body; empty for an empty body. Raises BadOrder."""
    if not body.strip():
        return {}
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise BadOrder("the body must be a JSON object")
    return document


def unknown(kind: str, names: Iterable[str], why: str = "") -> OwnAnswer:
    """Answer that there is no account of that name, list the known ones, and add a sentence."""
    known = sorted(names)
    listed = f"known: {', '.join(known[:LISTED])}" if known else "none is configured"
    more = f" and {len(known) - LISTED} more" if len(known) > LISTED else ""
    return text(f"No such {kind}; {listed}{more}.{why}\n", HTTPStatus.NOT_FOUND)
