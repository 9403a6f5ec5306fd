"""What the API's refusals mean, and how a final one is passed on.

In each of them the API did nothing: it wants no requests for a while (429), or another token (401,
or 403 with the vendor's code for a missing permission).
"""

import json
import re
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Final, Literal

from proxy.http.messages import Answer
from proxy.http.received import Response
from proxy.rules.codings import coded_fields, decoded
from proxy.rules.refresh import Reason
from proxy.rules.retry_after import delay_seconds

MAX_REFUSAL: Final = 1_048_576  # bytes of a refusal, read whole since it may have to be passed on
DENIALS: Final = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
# The vendor's codes for a permission that is missing; the names stand in the message only.
_MISSING: Final = re.compile(r"missing\.(?:[a-z]+\.)*permissions?", re.IGNORECASE)

Lack = Literal["permission", "division"]
"""What the API's 403 says is missing: a permission anywhere, or in a division of the resource."""


@dataclass(frozen=True, slots=True)
class ApiRefusal:
    """An answer that says the API did nothing.

    `reason` is why sending again may help; None if it would not. `lacks` is what a 403 says is
    missing.
    """

    answer: Answer
    reason: Literal["rate_limited"] | Reason | None
    lacks: Lack | None = None

    def passed_on(self, hold_remaining: float) -> Answer:
        """Return the answer for the caller; a 429 says for how many seconds the hold lasts."""
        if self.answer.status != HTTPStatus.TOO_MANY_REQUESTS:
            return self.answer
        fields = [field for field in self.answer.fields if field[0].lower() != "retry-after"]
        fields.append(("Retry-After", str(delay_seconds(hold_remaining))))
        return replace(self.answer, fields=fields)


def denial(answer: Answer) -> ApiRefusal:
    """Return what a 401 or 403 means: another token may help, or not."""
    if answer.status == HTTPStatus.UNAUTHORIZED:
        return ApiRefusal(answer, "unauthorized")
    code = _error_code(answer) or ""
    if _MISSING.fullmatch(code) is None:
        return ApiRefusal(answer, None)
    lacks: Lack = "division" if "division" in code.lower() else "permission"
    return ApiRefusal(answer, "stale_scope", lacks)


def without_body(response: Response) -> Answer:
    """Return an answer whose body broke off: its status, and the fields not about the body."""
    reason, fields = response.head()
    kept = [field for field in fields if not field[0].lower().startswith("content-")]
    return Answer(response.status, reason, kept, b"")


def document_of(answer: Answer) -> object:
    """Read the JSON of a decoded copy of the body; None if it is none."""
    body = decoded(answer.body, coded_fields(answer.fields), limit=MAX_REFUSAL)
    try:
        return None if body is None else json.loads(body)
    except (ValueError, RecursionError):
        return None


def _error_code(answer: Answer) -> str | None:
    """Read the vendor's error code."""
    document = document_of(answer)
    code = document.get("code") if isinstance(document, dict) else None
    return code if isinstance(code, str) else None
