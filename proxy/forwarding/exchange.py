"""What is known of one request while it lives."""

from dataclasses import dataclass
from typing import Final, Literal

from aiohttp import web

from proxy.pacing.account import Account
from proxy.rules.state import OTHER

_LONGEST_METHOD: Final = 32
_LONGEST_PATH: Final = 512
_LONGEST_TEXT: Final = 256


@dataclass(slots=True)
class Exchange:
    """One request on its way; times and durations are monotonic seconds.

    `limit` is how long it may wait in all, `waited` how long it has: in line, for a token, between
    tries. `held` and `token` are the parts of that which a hold and the token took, `upstream` what
    the API took. `correlation_id` is the API's name for it, `problem` that of our refusal.
    """

    request: web.BaseRequest
    id: str
    arrived: float
    account: Account | None = None
    route: str = "none"
    origin: Literal["upstream", "proxy"] = "proxy"
    limit: float = 0.0
    attempts: int = 0
    was_renewed: bool = False
    waited: float = 0.0
    held: float = 0.0
    token: float = 0.0
    upstream: float = 0.0
    correlation_id: str | None = None
    problem: str | None = None

    @property
    def account_label(self) -> str:
        """Whose request it is, as ops see it: who proved nothing is among all others."""
        return self.account.label if self.account else OTHER

    @property
    def may_wait(self) -> float:
        """Seconds it may still wait."""
        return self.limit - self.waited

    def server_timing(self, now: float) -> str:
        """Return where the time went, in ms; the parts sum to the elapsed time."""
        rest = now - self.arrived - self.held - self.token - self.upstream
        return (
            f"queue;dur={1000 * rest:.1f}, hold;dur={1000 * self.held:.1f},"
            f" token;dur={1000 * self.token:.1f}, upstream;dur={1000 * self.upstream:.1f}"
        )

    def facts(self, *, code: int, seconds: float) -> dict[str, object]:
        """Return what the log says of a request that is over; nothing of it is a secret."""
        headers = self.request.headers
        facts: dict[str, object] = {
            "request_id": self.id,
            "account": self.account_label,
            "route": self.route,
            "method": self.request.method[:_LONGEST_METHOD],
            "path": self.request.raw_path.partition("?")[0][:_LONGEST_PATH],
            "code": code,
            "origin": self.origin,
            "seconds": round(seconds, 4),
            "waited": round(self.waited, 4),
            "held": round(self.held, 4),
            "token": round(self.token, 4),
            "upstream": round(self.upstream, 4),
            "attempts": self.attempts,
            "peer": self.request.remote,
        }
        optional = {
            "problem": self.problem,
            "correlation_id": self.correlation_id,
            "traceparent": headers.get("traceparent"),
            "tracestate": ",".join(headers.getall("tracestate", ())),
            "user_agent": headers.get("User-Agent"),
        }
        facts.update({name: text[:_LONGEST_TEXT] for name, text in optional.items() if text})
        return facts
