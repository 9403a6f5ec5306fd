"""Documents as /status.json has them, for what shows them."""

import re
from typing import Any

AT = 1_800_000_000.0


def queue_of(**others: object) -> dict[str, object]:
    queue = {"name": "exports", "queue_depth": 0, "oldest_seconds": 0.0, "interval": 0.5}
    return {**queue, "predicted_seconds": 0.0, "sent": 3, "last_gap_seconds": 0.512, **others}


def token_of(**others: object) -> dict[str, object]:
    token = {"expires_in": 7200.0, "scopes": ["recordings:export"], "missing": []}
    return {**token, "next_refresh_in": 90.0, "issued_at": AT, "rejected": False, **others}


def account_of(name: str, **others: object) -> dict[str, object]:
    account: dict[str, object] = {"name": name, "routes": [queue_of()], "in_flight": 0}
    account |= {"hold_remaining_seconds": 0.0, "token": None, "refusals": []}
    account |= {"callers_waiting": [], "callers_refused": []}
    return {**account, "level": "ok", "notes": [], **others}


def answer_of(*accounts: object, **others: object) -> dict[str, Any]:
    answer = {"version": "1.2.3", "at": AT, "state": "serving", "store_up": True}
    answer |= {"observed": []}
    return {**answer, "clock_skew": {}, "accounts": list(accounts), **others}


def note_of(level: str, title: str) -> dict[str, str]:
    return {"level": level, "title": title, "advice": f"What to do about {title}."}


HOLD = {"level": "trouble", "title": "on hold", "advice": "The API refused this. " * 12 + "End."}
REFUSED = {"level": "attention", "title": "callers refused", "advice": "See why. " * 9 + "End."}
FULL = {"at": AT, "type": "urn:export-proxy:queue-full", "detail": "Full. " * 20, "since": AT}


def in_every_trouble(number: int) -> list[dict[str, object]]:
    busy = account_of("busy", level="busy", notes=[note_of("busy", "waiting")])
    held = account_of("held", level="trouble", notes=[HOLD], hold_remaining_seconds=41.7)
    refused = account_of("refused", level="attention", notes=[REFUSED])
    refused |= {"refusals": [{**FULL, "count": 3}]}
    deep = {"routes": [queue_of(queue_depth=9941, oldest_seconds=3.2, predicted_seconds=4970.0)]}
    kinds = [{**busy, **deep}, refused, held]
    return [
        {**kind, "name": f"{kind['name']}-{index}"} for index in range(number) for kind in kinds
    ]


def row_of(text: str, start: str) -> list[str]:
    """The cells of the line that begins so."""
    (found,) = (line for line in text.splitlines() if line.startswith(start))
    return re.split(r" {2,}", found.strip())


# What is shown
