"""Which promises an outcome breaks. Plain values in, sentences out."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from proxy.simulator import AccountReport

TOLERANCE: Final = 0.020
"""Seconds by which an arrival may be ahead of the pace: what the way to the API adds and takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The results of one account's exports: as its callers saw them, and as the API reports."""

    account: str
    staying: int
    answers: Mapping[int | None, int]
    """How many of the `staying` callers saw which status; None is a connection that broke."""
    quitter_answers: int
    """How many answers the caller saw that meant to hang up while it waited."""
    quitter_arrivals: int
    """How often its request reached the API."""
    report: AccountReport

    @property
    def accepted(self) -> int:
        return self.answers.get(HTTPStatus.ACCEPTED, 0)

    @property
    def rate_limited(self) -> int:
        return self.answers.get(HTTPStatus.TOO_MANY_REQUESTS, 0)


def judge(outcomes: Sequence[Outcome]) -> list[str]:
    """Return every promise that was broken, as a phrase that names the account."""
    return [
        f"{outcome.account}: {complaint}"
        for outcome in outcomes
        for complaint in _complaints(outcome)
    ]


def _complaints(outcome: Outcome) -> Iterator[str]:
    report = outcome.report
    if report.ahead is not None and report.ahead > TOLERANCE:
        yield f"an export reached the API {report.ahead * 1000:.0f} ms ahead of the pace"
    if report.early:
        yield f"the API refused {report.early} as early"
    if outcome.rate_limited:
        yield f"a 429 was seen by {outcome.rate_limited} of {outcome.staying} callers"
    if outcome.accepted != outcome.staying:
        yield f"a 202 was seen by only {outcome.accepted} of {outcome.staying} callers"
    if report.exports < outcome.accepted:
        yield f"the API created {report.exports} exports for {outcome.accepted} answers of 202"
    if report.duplicates:
        yield f"created more than once: {', '.join(sorted(report.duplicates))}"
    if outcome.quitter_answers:
        yield "the caller that meant to hang up while it waited was answered before"
    if outcome.quitter_arrivals:
        yield "the export of the caller that hung up reached the API"
