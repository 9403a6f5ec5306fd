"""What a saved 403 of the API says is missing."""

from rich.console import Console
from rich.text import Text

from proxy.cli.admin_client import printable
from proxy.rules.denials import MissingHere

_FORBIDDEN = 403


def is_lacking(found: MissingHere) -> bool:
    """True if the answer names a permission or a division, or says at least that one is missing."""
    is_missing = found.code is not None and found.code.lower().startswith("missing.")
    return bool(found.permissions or found.divisions) or is_missing


def advice(found: MissingHere) -> str:
    """Return the one sentence that fits best."""
    if found.status not in {None, _FORBIDDEN}:
        return f"That is a {found.status} and not a 403: it says nothing about permissions."
    if not found.permissions and not found.divisions:
        if is_lacking(found):
            return "A permission is missing, and the answer does not say which: ask the vendor."
        return "The answer names no permission: look at the client's roles and their divisions."
    which = _listed(found.permissions) or "the permissions that the call needs"
    if len(found.permissions) > 1:
        which = ("one of " if found.any_is_enough else "all of ") + which
    where = ""
    if found.divisions:
        word = "division" if len(found.divisions) == 1 else "divisions"
        where = f", in the {word} {_listed(found.divisions)}"
    return (
        f"Give the client a role with {which}{where}; then refresh the account's token. It may take"
        " minutes until a new token carries it."
    )


def show(found: MissingHere, console: Console) -> None:
    """Print what the answer says, and the advice."""
    answer = " ".join(str(part) for part in (found.status, found.code) if part is not None)
    facts = {
        "answer": answer or "a text without a code",
        "one of" if found.any_is_enough else "missing": _listed(found.permissions),
        "divisions": _listed(found.divisions),
    }
    for label, value in facts.items():
        if value:
            console.print(Text.assemble((f"{label:<12}", "bold"), printable(value)), soft_wrap=True)
    console.print(Text(printable(advice(found))), soft_wrap=True)


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names)
