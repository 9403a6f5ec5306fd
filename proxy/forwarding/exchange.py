"""The state of one request under way: its account, how its time is spent, how it ends.

Other modules count its time through `spending` and its attempts through `attempted`; this module
makes the sums that the log and `Server-Timing` show.
"""

from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Literal, Self, get_args

from proxy.clock import Clock
from proxy.http.request import Request
from proxy.pacing.account import Account
from proxy.rules.incidents import Subject, TroubleKind
from proxy.rules.state import OTHER
from proxy.telemetry.callers import anonymous

_LONGEST_METHOD: Final = 32
_LONGEST_PATH: Final = 512
_LONGEST_TEXT: Final = 256

Part = Literal["queue", "token", "pause", "connecting", "upstream"]
"""How time is spent; `connecting` is that of connects that lost the slot meanwhile."""

_NOTHING_SPENT: Final[dict[Part, float]] = dict.fromkeys(get_args(Part), 0.0)

Attempt = Literal["never left", "refused", "stale token", "answered", "no answer"]
"""The outcome of an attempt: of a send, or of a connect that failed."""


@dataclass(slots=True)
class Exchange:
    """One request on its way; times and durations are monotonic seconds.

    `path` is that of an accepted target, empty for a refused one, which may hold user information
    or a fragment. `limit` is how long the request may wait in all, `held` the part of its time in
    the queue during a hold. `first_sent` is when its first attempt began, `sent_at` the wall time
    of a send that may have been carried out. `is_cut` says that the answer broke off on its way to
    the caller, `is_merged` that it is the answer to an equal request. `correlation_id` is the API's
    id of it, `problem` the name of our refusal, `lacks` what the API's last 403 says is missing.
    `subject` is what an incident tells about it, `trouble` the kind of incident that it indicates.
    `key_name` is the name of the key that the caller presented, if it has one.
    """

    request: Request
    id: str
    clock: Clock
    arrived: float = field(init=False)
    first_sent: float | None = None
    account: Account | None = None
    key_name: str | None = None
    path: str = ""
    route: str = "none"
    limit: float = 0.0
    attempts: tuple[Attempt, ...] = ()
    sent_at: float | None = None
    held: float = 0.0
    spent: dict[Part, float] = field(default_factory=_NOTHING_SPENT.copy)
    origin: Literal["upstream", "proxy"] = "proxy"
    correlation_id: str | None = None
    problem: str | None = None
    lacks: str | None = None
    subject: Subject | None = None
    trouble: TroubleKind | None = None
    is_cut: bool = False
    is_merged: bool = False

    def __post_init__(self) -> None:
        self.arrived = self.clock.monotonic()

    @property
    def account_label(self) -> str:
        """The account's label in metrics and logs; all unknown callers share one."""
        return self.account.label if self.account else OTHER

    @property
    def caller_label(self) -> str:
        """The caller's label on the status: the name of its key, or its address and agent."""
        if self.key_name is not None:
            return self.key_name
        return anonymous(self.request.peer, self.request.headers.get("User-Agent") or "")

    @property
    def waited(self) -> float:
        """Seconds it has waited: in the queue, for a token, between attempts."""
        return sum(self.spent.values()) - self.spent["upstream"]

    @property
    def may_wait(self) -> float:
        """Seconds it may still wait."""
        return self.limit - self.waited

    @property
    def elapsed(self) -> float:
        """Seconds since it arrived."""
        return self.clock.monotonic() - self.arrived

    def spending(self, part: Part) -> "Spell":
        """Count the time that the block takes as spent on `part`."""
        return Spell(self, part)

    @property
    def since_first_send(self) -> float:
        """Seconds since the first attempt to send it, 0 before that."""
        return 0.0 if self.first_sent is None else self.clock.monotonic() - self.first_sent

    def attempted(self, attempt: Attempt, *, begun: float) -> None:
        """Add the outcome of an attempt that began at that moment."""
        if self.first_sent is None:
            self.first_sent = begun
        self.attempts = (*self.attempts, attempt)

    def answered_by_api(self, correlation_id: str | None) -> None:
        """Note that the API's answer goes to the caller."""
        self.origin, self.correlation_id = "upstream", correlation_id

    def ended_here(self, problem: str | None = None) -> None:
        """Note that the proxy ended it, with an answer of its own or with none."""
        self.origin, self.problem = "proxy", problem

    def server_timing(self) -> str:
        """Return how the time was spent, in ms; the parts sum to the elapsed time."""
        token, upstream = self.spent["token"], self.spent["upstream"]
        rest = self.elapsed - self.held - token - upstream
        return (
            f"queue;dur={1000 * rest:.1f}, hold;dur={1000 * self.held:.1f},"
            f" token;dur={1000 * token:.1f}, upstream;dur={1000 * upstream:.1f}"
        )

    def facts(self, *, code: int, seconds: float) -> dict[str, object]:
        """Return the log fields of a request that is over; they hold no secret."""
        headers = self.request.headers
        facts: dict[str, object] = {
            "request_id": self.id,
            "account": self.account_label,
            "route": self.route,
            "method": self.request.method[:_LONGEST_METHOD],
            "path": self.path[:_LONGEST_PATH],
            "code": code,
            "origin": self.origin,
            "seconds": _rounded(seconds),
            "waited": _rounded(self.waited),
            "held": _rounded(self.held),
            "token": _rounded(self.spent["token"]),
            "upstream": _rounded(self.spent["upstream"]),
            "attempts": len(self.attempts),
            "merged": self.is_merged,
            "peer": self.request.peer,
        }
        optional = {
            "problem": self.problem,
            "lacks": self.lacks,
            "correlation_id": self.correlation_id,
            "traceparent": headers.get("traceparent"),
            "tracestate": ",".join(headers.getall("tracestate", ())),
            "user_agent": headers.get("User-Agent"),
        }
        facts.update({name: text[:_LONGEST_TEXT] for name, text in optional.items() if text})
        return facts


def _rounded(seconds: float) -> float:
    """Return seconds to the tenth of a millisecond; `round(seconds, 4)` goes by way of a text."""
    return round(seconds * 10_000) / 10_000


class Spell:
    """A block whose time is counted; the block may change the part it counts for."""

    __slots__ = ("_exchange", "begun", "part")

    def __init__(self, exchange: Exchange, part: Part) -> None:
        self._exchange = exchange
        self.part = part

    def __enter__(self) -> Self:
        self.begun = self._exchange.clock.monotonic()
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self._exchange.spent[self.part] += self._exchange.clock.monotonic() - self.begun
