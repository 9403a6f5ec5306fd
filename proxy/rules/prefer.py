"""Prefer: how long a caller is willing to wait.

Preferences other than `wait` are for the API. One that cannot be read is ignored, as RFC 7240
section 2 asks: nothing a caller writes raises here.

Obeys RFC 7240 sections 2 (Prefer) and 4.3 (wait).
"""

import re
from collections.abc import Sequence
from typing import Final

# More digits than this could mean are read as this: some thirty years.
LONGEST_WAIT_SECONDS: Final = 1e9


def prefer_wait(values: Sequence[str]) -> float | None:
    """Seconds of the `wait` preference over all Prefer fields, in order; None without a valid one.

    If it is given more than once only the first counts (RFC 7240 section 2), valid or not.
    """
    preferences = (text for value in values for text in _PREFERENCE.findall(value))
    for preference in preferences:
        if wait := _WAIT.match(preference):
            return _seconds(preference[wait.end() :])
    return None


# Up to a comma outside quotes. An unclosed quote takes all that follows: nothing after it can be
# told from its text.
_PREFERENCE = re.compile(r'(?:[^",]|"(?:[^"\\]|\\.?)*+(?:"|\Z))++', re.DOTALL)
_TCHAR = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_WAIT = re.compile(rf"[ \t]*+wait(?!{_TCHAR})", re.IGNORECASE | re.ASCII)
_VALUE = re.compile(
    r'[ \t]*+=[ \t]*+(?P<quote>"?)(?P<digits>[0-9]++)(?P=quote)[ \t]*+(?:;.*)?', re.DOTALL
)


def _seconds(value: str) -> float | None:
    delay = _VALUE.fullmatch(value)
    return None if delay is None else min(float(delay["digits"]), LONGEST_WAIT_SECONDS)
