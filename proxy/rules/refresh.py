"""When a token is minted, and for how long a missing scope may still appear.

Monotonic seconds; `now` is an argument. A newly granted scope may take minutes to appear in tokens:
while that window is open the token is renewed at pauses that double, whatever the request rate.
"""

from dataclasses import dataclass, replace
from math import inf
from typing import Final, Literal

Reason = Literal["startup", "expiry", "stale_scope", "unauthorized", "operator"]

LONGEST_STEP: Final = 120.0
_RENEW_AT: Final = 0.8  # of a token's life
_MOST_DOUBLINGS: Final = 16


def renew_at(*, received_at: float, expires_at: float, margin: float, jitter: float) -> float:
    """Return when to renew: `margin` before expiry or at 80 % of life, whichever is later.

    `jitter` in [0, 1) makes it earlier by up to a tenth of the life left then, so that accounts
    that started together do not renew together.
    """
    at = max(expires_at - margin, received_at + _RENEW_AT * (expires_at - received_at))
    return at - jitter * 0.1 * (expires_at - at)


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The time in which a scope that fresh tokens lack may still appear.

    `next_at` is the next scheduled renewal, None once the window is over; `step` is the pause after
    that, and doubles up to `longest_step`.
    """

    closes_at: float
    next_at: float | None
    step: float
    longest_step: float

    def after_renewal(self, now: float) -> "Window":
        """Return the window after a renewal at `now` that did not bring the scope."""
        next_at = now + self.step
        return replace(
            self,
            next_at=next_at if self.next_at is not None and next_at <= self.closes_at else None,
            step=min(2 * self.step, self.longest_step),
        )


class Schedule:
    """When one account's token is minted next, and who may cause it.

    No token is minted before `not_before`: that keeps `min_interval` between tokens, and the pause
    a login server asks for. `missing` holds the scopes that requests needed and the last token
    lacked; a window exists exactly while `missing` is not empty.
    """

    def __init__(self, *, min_interval: float, window_length: float) -> None:
        self._min_interval = min_interval
        self._window_length = window_length
        self.not_before = -inf
        self.missing: frozenset[str] = frozenset()
        self._window: Window | None = None
        self._renew_at = -inf
        self._asked: Reason | None = "startup"
        self._is_minting = False
        self._last_mint = -inf
        self._denials = 0

    def apply(self, *, min_interval: float, window_length: float) -> None:
        """Obey new settings from the next mint on."""
        self._min_interval = min_interval
        self._window_length = window_length

    @property
    def is_window_open(self) -> bool:
        """True if a missing scope is still expected to appear."""
        return self._window is not None and self._window.next_at is not None

    def next_mint(self) -> tuple[float, Reason]:
        """Return when the next token is to be minted, and why."""
        wishes: list[tuple[float, Reason]] = [(self._renew_at, "expiry")]
        if self._window is not None and self._window.next_at is not None:
            wishes.append((self._window.next_at, "stale_scope"))
        at, reason = min(wishes, key=lambda wish: wish[0])
        if self._is_minting or self._asked is not None:
            at, reason = -inf, self._asked or reason
        return max(at, self.not_before), reason

    def is_due(self, now: float) -> bool:
        """True if a token is being minted, or about to be."""
        return self._is_minting or self.next_mint()[0] <= now

    def comes_before(self, deadline: float) -> bool:
        """True if the next token is to be minted before then."""
        return self.next_mint()[0] < deadline

    def next_in(self, now: float) -> float:
        """Return the seconds until the next token is to be minted."""
        return max(0.0, self.next_mint()[0] - now)

    def want(self, missing: frozenset[str], now: float) -> None:
        """Note that a request needs scopes the token lacks.

        A newly missed scope opens the window again, with a renewal as soon as allowed. After the
        window a request still causes a renewal, but seldom.
        """
        if not missing <= self.missing:
            self.missing |= missing
            self._open_window(now)
        elif missing and self._may_ask_again(now):
            self._asked = self._asked or "stale_scope"

    def order_renewal(self, reason: Reason, now: float) -> bool:
        """Order another token for this reason; False if none may be minted now.

        Because of 403s (`stale_scope`) tokens are minted at pauses that double while 403s go on.
        """
        if self._is_minting:
            return True
        if now < self.not_before:
            return False
        if self._asked is not None:
            return True
        if reason == "stale_scope":
            if self.is_window_open or now < self._last_mint + self._pause_after_denials(now):
                return False
            self._denials += 1
        self._asked = reason
        return True

    def order(self, reason: Reason) -> None:
        """Order a token, to be minted as soon as `not_before` allows."""
        self._asked = self._asked or reason

    def allow_now(self) -> None:
        """Allow the next token at once."""
        self.not_before = -inf

    def begin(self, now: float) -> None:
        """Note that a token is being minted; requests that ask meanwhile get that token.

        A token that is ordered meanwhile is another one.
        """
        self._is_minting = True
        self._asked = None
        self._last_mint = now

    def succeed(self, now: float, *, renew_at: float, held: frozenset[str] | None) -> None:
        """Note a token that was received, and the scopes it holds (None: unknown)."""
        self._end(now + self._min_interval)
        self._renew_at = renew_at
        self.missing = frozenset() if held is None else self.missing - held
        still_misses = self._window if self.missing else None
        self._window = None if still_misses is None else still_misses.after_renewal(now)

    def fail(self, now: float, *, pause: float) -> None:
        """Note that no token came, and that none may be requested for that many seconds."""
        self._end(now + pause)

    def _end(self, not_before: float) -> None:
        self._is_minting = False
        self.not_before = not_before

    @property
    def _longest_step(self) -> float:
        return max(self._min_interval, LONGEST_STEP)

    def _open_window(self, now: float) -> None:
        closes_at = now + self._window_length
        first = max(now, self.not_before)
        # A token that came a moment ago counts as the first renewal.
        step = self._min_interval * (2 if first > now else 1)
        self._window = Window(
            closes_at=closes_at,
            next_at=first if first <= closes_at else None,
            step=min(step, self._longest_step),
            longest_step=self._longest_step,
        )

    def _may_ask_again(self, now: float) -> bool:
        return now >= max(self.not_before, self._last_mint + self._longest_step)

    def _pause_after_denials(self, now: float) -> float:
        if self._window is not None:
            return self._longest_step
        doubled = self._min_interval * 2.0 ** min(self._denials, _MOST_DOUBLINGS)
        pause = min(doubled, self._longest_step)
        if now < self._last_mint + 2 * pause:
            return pause
        self._denials = 0
        return self._min_interval
