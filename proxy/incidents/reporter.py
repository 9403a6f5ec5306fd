"""Keeps the episodes of trouble, and reports them to the desk, one step at a time.

Theory of operation. `observe` looks at all accounts once a second and keeps an episode for each
trouble that is there. `deliver` takes the next step that is due: it opens, updates or closes one
incident, then looks for the next. A desk that is down (no answer, 401, 429, 5xx, a page in the
place of JSON) stops all steps for a pause that grows, or that the desk named. A call that the desk
refuses (any other 4xx) postpones its own episode alone, and is given up after ten times.

Before an incident is opened the desk is asked for an open one of that name: another replica, or
this one before a restart or before its answer was lost, may have opened it. A lock in the ledger
keeps two replicas from doing so at once. An incident is closed by the last replica that sees it.

Invariants: episodes of one incident are told in their order. At most one call is under way. Nothing
here is awaited by a request.
"""

import asyncio
from math import inf
from typing import Final

import structlog

from proxy.clock import Clock
from proxy.incidents.calls import DeskDown, DeskRefuses
from proxy.incidents.desk import Desk, Known
from proxy.incidents.episodes import Episodes
from proxy.incidents.ledger import Ledger
from proxy.incidents.watch import Watch
from proxy.retries import RetryRules
from proxy.rules.episodes import Episode, Step
from proxy.rules.incidents import Trouble, TroubleKind
from proxy.settings import Retry
from proxy.telemetry.metrics import Metrics

_log = structlog.get_logger(__name__)

_SEE_SECONDS: Final = 20.0  # between two notes for other replicas; they believe one for a minute
_LOCK_PAUSE: Final = 2.0  # while another replica opens the incident
_PAUSES: Final = RetryRules(Retry(initial_backoff=1.0, max_backoff=300.0))
_MOST_FAILURES: Final = 12  # in a row; the pause has long stopped growing


class Reporter:
    """Tells one desk of the trouble that a watch sees."""

    def __init__(
        self, watch: Watch, desk: Desk, ledger: Ledger, *, clock: Clock, metrics: Metrics
    ) -> None:
        self._watch = watch
        self._desk = desk
        self._ledger = ledger
        self._clock = clock
        self._metrics = metrics
        self._episodes = Episodes(lambda incident: watch.owner(incident) is not None)
        self._has_looked_up = False
        self._failures = 0
        self._pauses_until = -inf
        self._sees_at = -inf
        self._noted: frozenset[str] = frozenset()
        self._woken = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Reporter: {self._episodes}>"

    # What is there

    async def observe(self) -> None:
        """Look once a second, until cancelled."""
        while True:
            found = await self._watch.look(frozenset(self._episodes.present))
            now = self._clock.monotonic()
            for episode in self._episodes.take(found, now=now, wall=self._clock.wall()):
                self._given_up(
                    episode, "the trouble is over, and the desk could not be told in time"
                )
            self._woken.set()
            seen = self._episodes.confirmed()
            if now >= self._sees_at or not seen <= self._noted:
                self._sees_at, self._noted = now + _SEE_SECONDS, seen
                await self._ledger.see(seen)
            await self._clock.sleep_until(now + self._watch.pause)

    # Reports to the desk

    async def deliver(self) -> None:
        """Take the steps that are due, until cancelled."""
        while True:
            self._woken.clear()
            now = self._clock.monotonic()
            number, due = self._episodes.next_step()
            due = max(due if self._has_looked_up else -inf, self._pauses_until)
            if due > now:
                await self._sleep_until(due)
            elif not self._has_looked_up:
                await self._look_up()
            elif number is not None:
                await self._take_step(number)

    async def _sleep_until(self, when: float) -> None:
        """Sleep until then, or until another look is taken; a pause is slept through."""
        timer = None if when == inf else self._clock.call_at(when, self._woken.set)
        try:
            await self._woken.wait()
        finally:
            if timer is not None:
                timer.cancel()

    async def _look_up(self) -> None:
        """Go on with incidents that are open at the desk, as after a restart."""
        try:
            found = await self._desk.find(self._watch.ids)
        except (DeskDown, DeskRefuses) as failure:
            self._fail(failure, None)
            return
        self._has_looked_up, self._failures = True, 0
        now = self._clock.monotonic()
        for incident, known in found.items():
            owner = self._watch.owner(incident)
            if owner is None:
                continue
            if incident not in self._episodes.present:
                self._watch.await_scopes(incident, known.scopes)
                self._episodes.begin(_earlier(incident, *owner, now=now, wall=self._clock.wall()))
            self._adopt(self._episodes.present[incident], known)

    def _adopt(self, number: int, known: Known) -> None:
        episode = self._episodes[number]
        told = episode.trouble
        self._episodes.put(
            number, episode.told(told, handle=known.handle, now=self._clock.monotonic())
        )
        self._note(told, "adopted", incident=episode.id)

    async def _take_step(self, number: int) -> None:
        episode = self._episodes[number]
        step = episode.step()
        self._episodes.under_way = number
        try:
            match step:
                case "open":
                    await self._open(number)
                case "update":
                    await self._update(number)
                case "close":
                    await self._close(number)
                case None:
                    return
            self._failures = 0
        except DeskDown as down:
            self._fail(down, step, episode.trouble)
        except DeskRefuses as refusal:
            self._refused(number, refusal)
        finally:
            self._episodes.under_way = None

    async def _open(self, number: int) -> None:
        episode = self._episodes[number]
        if not await self._ledger.lock(episode.id):
            now = self._clock.monotonic()
            self._episodes.put(number, self._episodes[number].later(_LOCK_PAUSE, now=now))
            return
        try:
            known = await self._desk.find_one(episode.id)
            if known is not None:
                self._adopt(number, known)
                return
            told = self._episodes[number].trouble
            handle = await self._desk.open(self._episodes[number])
        finally:
            await self._ledger.unlock(episode.id)
        self._told(number, told, handle, "opened")

    async def _update(self, number: int) -> None:
        episode = self._episodes[number]
        if self._desk.takes_updates:
            await self._desk.update(episode)
        self._told(
            number,
            episode.trouble,
            episode.handle,
            "updated" if self._desk.takes_updates else None,
        )

    async def _close(self, number: int) -> None:
        episode = self._episodes[number]
        if await self._ledger.leave(episode.id):
            await self._desk.close(episode)
            self._note(episode.trouble, "closed", incident=episode.id)
        self._episodes.drop(number)

    def _told(self, number: int, trouble: Trouble, handle: str, outcome: str | None) -> None:
        episode = self._episodes[number].told(trouble, handle=handle, now=self._clock.monotonic())
        self._episodes.put(number, episode)
        if outcome is not None:
            self._note(trouble, outcome, incident=episode.id)

    # What goes wrong

    def _fail(
        self,
        failure: DeskDown | DeskRefuses,
        step: Step | None,
        trouble: Trouble | None = None,
    ) -> None:
        """Make no calls to the desk for a while."""
        self._failures = min(self._failures + 1, _MOST_FAILURES)
        pause = _PAUSES.after_unsent(self._failures)
        if isinstance(failure, DeskDown) and failure.wait is not None:
            pause = max(pause, failure.wait)
        self._pauses_until = self._clock.monotonic() + pause
        kind = "none" if trouble is None else trouble.kind
        self._metrics.incidents.count(kind, "failed")
        _log.warning(
            "the service desk was not told",
            account=None if trouble is None else trouble.account,
            kind=None if trouble is None else kind,
            step=step or "look-up",
            reason=str(failure),
            next_try_in=round(pause, 1),
        )

    def _refused(self, number: int, refusal: DeskRefuses) -> None:
        """Postpone one episode, or give it up."""
        episode = self._episodes[number]
        now = self._clock.monotonic()
        self._metrics.incidents.count(episode.trouble.kind, "failed")
        later = episode.refused(now=now)
        if later is None:
            self._episodes.drop(number)
            self._given_up(episode, str(refusal))
            return
        self._episodes.put(number, later)
        _log.warning(
            "the service desk refuses an incident",
            account=episode.trouble.account,
            kind=episode.trouble.kind,
            step=episode.step(),
            reason=str(refusal),
            next_try_in=round(later.not_before - now, 1),
        )

    def _given_up(self, episode: Episode, reason: str) -> None:
        self._note(episode.trouble, "dropped", incident=episode.id, reason=reason)

    def _note(self, trouble: Trouble, outcome: str, **facts: str) -> None:
        self._metrics.incidents.count(trouble.kind, outcome)
        write = _log.warning if outcome == "dropped" else _log.info
        write("incident", account=trouble.account, kind=trouble.kind, outcome=outcome, **facts)


def _earlier(incident: str, account: str, kind: TroubleKind, *, now: float, wall: float) -> Episode:
    """Return the episode of an incident that was opened before this start."""
    trouble = Trouble(account=account, kind=kind, since=wall, detail="")
    return Episode(id=incident, trouble=trouble, begun=now, confirmed=False)
