"""Orders for an account of a running proxy, given at its admin port: pause, resume and pace."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from proxy.cli import admin_client
from proxy.cli.admin_client import NoAnswer, printable
from proxy.rules.pace import in_words

Action = Literal["pause", "resume", "interval"]


async def order(
    url: str, token_file: Path | None, account: str, action: Action, document: Mapping[str, float]
) -> str:
    """Give an order, and return in one line what the account obeys now. Raises `NoAnswer`."""
    answer = await admin_client.post(
        url, "accounts", account, action, document=document, token=_read(token_file)
    )
    try:
        return in_a_line(answer)
    except (KeyError, TypeError):
        raise NoAnswer(f"{url} does not answer like a proxy of this version") from None


def in_a_line(answer: Mapping[str, Any]) -> str:
    """Return the admin port's answer about an account's orders as one line."""
    paused, slowed = answer["paused"], answer["slowed"]
    line = f"{printable(answer['name'])}: "
    if paused is None:
        line += "not paused"
    elif paused["remaining_seconds"] is None:
        line += "paused until it is resumed"
    else:
        line += f"paused for {in_words(paused['remaining_seconds'])}"
    line += f", interval {answer['interval']:g} s"
    if slowed is not None:
        line += f" for {in_words(slowed['remaining_seconds'])}"
    if not answer["all_replicas"]:
        line += "; the store is down, so the other replicas obey when it is back"
    return line


def _read(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        token = file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise NoAnswer(f"the admin token cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise NoAnswer("the admin token cannot be read: it is not UTF-8 text") from None
    if not token.isprintable():
        raise NoAnswer("the admin token cannot be used: it is more than one line of text")
    return token
