"""The trouble of each configured account.

There are two sources. The live state says whether a token lacks scopes or is refused, and whether a
hold lasts; it is read once a second, a hundred accounts at a time. The rest is noted as requests
arrive and end: which could not be sent, whose answer was lost, and the subject of the latest
affected request.

Invariants: noting is synchronous, takes a few microseconds, and no time if incidents are off. A
caller that is not a configured account leaves no trace but that the API answers.
"""

from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace
from math import inf
from typing import Final, assert_never

from proxy.clock import Clock
from proxy.pacing.account import Account
from proxy.pacing.accounts import Accounts
from proxy.pacing.holding import Holding
from proxy.rules.digests import account_id
from proxy.rules.incidents import (
    DOUBT_SECONDS,
    KINDS,
    REJECTED_DETAIL,
    Sighting,
    Subject,
    Trouble,
    TroubleKind,
    Unseen,
    doubt_detail,
    hold_detail,
    incident_id,
    lasts,
    scope_detail,
    unreachable_detail,
)
from proxy.settings import Settings
from proxy.tokens.managed import ManagedTokens

_AT_A_TIME: Final = 100  # accounts: about a millisecond
_NEWS_SECONDS: Final = 600.0  # by which a named wait grows before it is news


@dataclass(slots=True)
class _Notes:
    """The notes on one account; monotonic seconds."""

    ids: Mapping[TroubleKind, str]
    latest: Subject = field(default_factory=Subject)
    subjects: dict[TroubleKind, Subject] = field(default_factory=dict)
    answered: bool = False
    unsent_since: float | None = None
    unsent_last: float = -inf
    doubts: int = 0
    doubted_since: float = 0.0
    doubted_last: float = -inf
    doubted_id: str = ""
    was_held: bool = False
    awaited: frozenset[str] | None = None  # scopes of an incident that an earlier start opened


class Watch:
    """Knows what is wrong, account by account."""

    def __init__(
        self, settings: Settings, *, accounts: Accounts, tokens: ManagedTokens, clock: Clock
    ) -> None:
        self.is_on = False
        self._accounts = accounts
        self._tokens = tokens
        self._clock = clock
        self._notes: dict[str, _Notes] = {}
        self._by_id: dict[str, tuple[str, TroubleKind]] = {}
        self._answered_last = -inf  # when the latest attempt began that the API answered
        self.apply(settings)

    def __repr__(self) -> str:
        return f"<Watch: {len(self._notes)} accounts>"

    def apply(self, settings: Settings) -> None:
        """Obey new settings from now on."""
        self.is_on = settings.incidents is not None
        self._open_after = settings.incidents.open_after if settings.incidents else 0.0
        self._server = settings.upstream.api_url
        old = {notes.ids["hold"]: notes for notes in self._notes.values()}
        self._notes = {}
        self._by_id = {}
        for account in settings.accounts if self.is_on else ():
            owner = account_id(account.client_id)
            ids = {kind: incident_id(owner, kind) for kind in KINDS}
            self._notes[account.name] = old.get(ids["hold"]) or _Notes(ids)
            self._by_id |= {ids[kind]: (account.name, kind) for kind in KINDS}

    def owner(self, incident: str) -> tuple[str, TroubleKind] | None:
        """Return the account and kind of an incident; None if its account is not configured."""
        return self._by_id.get(incident)

    @property
    def ids(self) -> frozenset[str]:
        """The ids of all possible incidents."""
        return frozenset(self._by_id)

    def await_scopes(self, incident: str, scopes: frozenset[str]) -> None:
        """Note which scopes an incident of an earlier start says are missing."""
        owner = self.owner(incident)
        if owner is not None and owner[1] == "scope_missing":
            self._notes[owner[0]].awaited = scopes

    # What requests tell

    def arrived(self, account: str, subject: Subject) -> None:
        """Note a request that is about to wait or be sent."""
        notes = self._notes.get(account)
        if notes is not None:
            notes.latest = subject

    def answered(self, account: str, *, begun: float) -> None:
        """Note that the API answered a request of which the first attempt began at that moment."""
        self._answered_last = max(self._answered_last, begun)
        notes = self._notes.get(account)
        if notes is not None:
            notes.answered = True

    def troubled(
        self, account: str, kind: TroubleKind, subject: Subject | None, request_id: str
    ) -> None:
        """Note a request that ended in that kind of trouble."""
        notes = self._notes.get(account)
        if notes is None:
            return
        now = self._clock.monotonic()
        notes.subjects[kind] = subject or notes.latest
        if kind == "unreachable":
            if notes.unsent_since is None or self._answered_last > notes.unsent_last:
                notes.unsent_since = now
            notes.unsent_last = now
        elif kind == "in_doubt":
            if now >= notes.doubted_last + DOUBT_SECONDS:
                notes.doubts, notes.doubted_since = 0, now
            notes.doubts += 1
            notes.doubted_last, notes.doubted_id = now, request_id

    # What there is to tell

    @property
    def pause(self) -> float:
        """Seconds between two batches, so that a thousand accounts take one second."""
        return max(1.0, len(self._notes) / 1_000)

    async def look(self, wanted: Container[str]) -> dict[str, Sighting]:
        """Return all trouble there is, and what is seen of the wanted incidents."""
        found: dict[str, Sighting] = {}
        names = list(self._notes)
        for start in range(0, len(names), _AT_A_TIME):
            now = self._clock.monotonic()
            for name in names[start : start + _AT_A_TIME]:
                notes = self._notes.get(name)
                if notes is not None and self._accounts.is_configured(name):
                    account = self._accounts.configured(name)
                    for kind in KINDS:
                        sighting = self._sighting(account, notes, kind, now)
                        if isinstance(sighting, Trouble) or notes.ids[kind] in wanted:
                            found[notes.ids[kind]] = sighting
            await self._clock.sleep_until(now)  # timers that are due go first
        return found

    def _sighting(self, account: Account, notes: _Notes, kind: TroubleKind, now: float) -> Sighting:
        match kind:
            case "scope_missing":
                return self._scope_missing(account, notes)
            case "credentials_rejected":
                return self._rejected(account, notes)
            case "hold":
                return self._hold(account, notes, now)
            case "unreachable":
                return self._unreachable(account, notes, now)
            case "in_doubt":
                return self._in_doubt(account, notes, now)
            case _:
                assert_never(kind)

    def _scope_missing(self, account: Account, notes: _Notes) -> Sighting:
        keeper = self._tokens.by_name.get(account.label)
        if keeper is None:
            return Unseen.CLEAR
        if keeper.missing:
            notes.awaited = None
            if not keeper.is_scope_overdue:
                return Unseen.UNKNOWN
            return Trouble(
                account=account.label,
                kind="scope_missing",
                since=self._clock.wall(),
                detail=scope_detail(keeper.missing),
                subject=notes.subjects.get("scope_missing", Subject()),
                mark=keeper.missing,
                scopes=keeper.missing,
            )
        if notes.awaited is None:
            return Unseen.CLEAR
        token = keeper.current()
        if token is None or not notes.awaited or token.lacks(notes.awaited):
            return Unseen.UNKNOWN
        return Unseen.CLEAR

    def _rejected(self, account: Account, notes: _Notes) -> Sighting:
        keeper = self._tokens.by_name.get(account.label)
        if keeper is None:
            return Unseen.CLEAR
        if not keeper.is_rejected:
            return Unseen.UNKNOWN if keeper.current() is None else Unseen.CLEAR
        return Trouble(
            account=account.label,
            kind="credentials_rejected",
            since=self._clock.wall(),
            detail=REJECTED_DETAIL,
            subject=notes.subjects.get("credentials_rejected", notes.latest),
        )

    def _hold(self, account: Account, notes: _Notes, now: float) -> Sighting:
        holdings: list[tuple[str | None, Holding]] = [(None, account.allowance.holding)]
        holdings += [(queue.route, queue.holding) for queue in account.queues]
        is_open = True
        for route, holding in holdings:
            hold, does_last = holding.hold, lasts(holding.state, now, open_after=self._open_after)
            if hold is None or does_last is False:
                continue
            notes.was_held, is_open = True, False
            if does_last:
                ends = max(hold.until, hold.named_until)
                wall = self._clock.wall() - now
                subject = notes.latest
                return Trouble(
                    account=account.label,
                    kind="hold",
                    since=wall + hold.since,
                    detail=hold_detail(route, hold.limit, wall + ends),
                    subject=subject if route is None else replace(subject, route=route),
                    mark=(route, hold.limit, ends // _NEWS_SECONDS),
                )
        return Unseen.CLEAR if is_open and (notes.was_held or notes.answered) else Unseen.UNKNOWN

    def _unreachable(self, account: Account, notes: _Notes, now: float) -> Sighting:
        if self._answered_last > notes.unsent_last:
            return Unseen.CLEAR
        if notes.unsent_since is None:
            return Unseen.UNKNOWN
        return Trouble(
            account=account.label,
            kind="unreachable",
            since=self._clock.wall() - (now - notes.unsent_since),
            detail=unreachable_detail(self._server),
            subject=notes.subjects.get("unreachable", Subject()),
        )

    def _in_doubt(self, account: Account, notes: _Notes, now: float) -> Sighting:
        if notes.doubts == 0:
            return Unseen.UNKNOWN
        if now >= notes.doubted_last + DOUBT_SECONDS:
            return Unseen.CLEAR
        return Trouble(
            account=account.label,
            kind="in_doubt",
            since=self._clock.wall() - (now - notes.doubted_since),
            detail=doubt_detail(notes.doubts, notes.doubted_id),
            subject=notes.subjects.get("in_doubt", Subject()),
            mark=notes.doubts,
        )
