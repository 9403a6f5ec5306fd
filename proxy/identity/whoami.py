"""Asks the API whose token it is (`identity.whoami`), by the rules of `rules/whoami.py`.

An unknown token becomes a question (`identity/questions.py`). It ends with an `Owner`, which goes
into the table of issued tokens; with `Denied`, the API's own 401; or with None, for a stranger's
token. Results other than an `Owner` are remembered for a while (`identity/findings.py`). With a
shared store one replica asks, the others wait for its entry.

A question carries the token and nothing else from a caller. Known tokens never come here, so
nothing here can delay them.
"""

import asyncio
import secrets
from collections.abc import Callable, Coroutine
from typing import Any, Final, Literal

import structlog

from proxy.clock import Clock
from proxy.deadlines import time_limit
from proxy.http.client import Client
from proxy.http.messages import Answer, BadAnswer, OutcomeUnknown, Outgoing, Unsent
from proxy.identity.findings import Denied, Findings
from proxy.identity.issued_tokens import IssuedTokens, Owner
from proxy.identity.questions import Outcome, Question, Questions
from proxy.rules.codings import coded_fields, decoded
from proxy.rules.digests import account_id, digest
from proxy.rules.token_answers import read_document, remaining_life
from proxy.rules.whoami import (
    ASK_AGAIN,
    USUAL_LIFE,
    Finding,
    Named,
    Rejected,
    Switch,
    Unclear,
    read_answer,
)
from proxy.settings import Settings
from proxy.store.issued_tokens import SharedTokens
from proxy.store.wire import StoreDown

_log = structlog.get_logger(__name__)
_MAX_ANSWER: Final = 65_536  # bytes; the vendor's is below 2,000
_MORE_THAN_CONNECTING: Final = 1.0  # seconds for the answer, besides the time to connect
_LOOK_AGAIN: Final = 0.05  # seconds between two looks at what another replica found


class Whoami:
    """Asks one API about tokens."""

    def __init__(  # noqa: PLR0913 -- what it needs to know, each by name
        self,
        settings: Settings,
        api: Client,
        issued: IssuedTokens,
        *,
        clock: Clock,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        shared: SharedTokens | None,
    ) -> None:
        self._api = api
        self._issued = issued
        self._clock = clock
        self._shared = shared
        self._me = secrets.token_hex(8)
        self._questions = Questions(self._find_out, self._may_ask, clock=clock, spawn=spawn)
        self._about: tuple[str, str | None, str] | None = None
        self.apply(settings)

    def apply(self, settings: Settings) -> None:
        """Obey new settings from now on; a changed API or call is asked again."""
        about = (
            settings.upstream.api_url,
            settings.identity.whoami,
            settings.identity.whoami_field,
        )
        self._questions.longest = settings.upstream.connect_timeout + _MORE_THAN_CONNECTING
        if about != self._about:
            self._about = about
            _, self._target, self._field = about
            self._switch = Switch()
            self._has_named = False
            self._findings = Findings(clock=self._clock)

    async def ask(
        self, token: str, token_hash: bytes, *, peer: str, is_own: bool = False
    ) -> Outcome:
        """Return the token's owner, the API's refusal, or None if the owner is unknown for now."""
        if self._findings.has(token_hash):
            return self._findings.get(token_hash)
        question = self._questions.about(token_hash)
        if question is None:
            question = self._questions.begin(token, token_hash, peer, is_own=is_own, is_again=False)
        return None if question is None else await self._questions.outcome(question)

    def is_settled(self, token_hash: bytes) -> bool:
        """True if there is a finding on the token, or the API is not asked."""
        return self._target is None or self._findings.has(token_hash)

    def finding(self, token_hash: bytes) -> Denied | None:
        """Return the API's refusal of a token that is settled; None if it is a stranger's."""
        return self._findings.get(token_hash) if self._findings.has(token_hash) else None

    def ask_again(self, token: str, token_hash: bytes, *, peer: str) -> None:
        """Ask in the background about a token whose entry is due."""
        if self._questions.about(token_hash) is None:
            self._questions.begin(token, token_hash, peer, is_own=False, is_again=True)

    def close(self) -> None:
        """End all questions; their callers are strangers."""
        self._questions.close()

    def _may_ask(self) -> bool:
        return self._target is not None and self._switch.is_on(self._clock.monotonic())

    async def _find_out(self, question: Question) -> Outcome:
        if self._shared is not None and not question.is_own:
            who = await self._begin_shared(question, self._shared)
            if who != "ours":
                self._questions.take_back()
                return self._conclude(question, None) if who == "stranger" else who
        answer = await self._get(question)
        finding: Finding = Unclear()
        if answer is not None:
            text = decoded(answer.body, coded_fields(answer.fields), limit=_MAX_ANSWER)
            finding = read_answer(answer.status, read_document(text or b""), self._field)
        if self._switch.note(finding, self._clock.monotonic()):
            _log.warning("the API has no whoami call: it is not asked for ten minutes")
        outcome = await self._understood(question, finding, answer)
        if self._shared is not None and not question.is_own:
            stranger_for = ASK_AGAIN if outcome is None and not question.is_again else None
            await self._shared.end_question(question.token_hash, stranger_for=stranger_for)
        return outcome

    async def _begin_shared(
        self, question: Question, shared: SharedTokens
    ) -> "Owner | Literal['ours', 'stranger']":
        """Ask, or wait for the result of the replica that asks; ask if that takes too long."""
        try:
            while self._clock.monotonic() < question.deadline - _MORE_THAN_CONNECTING:
                who = await shared.begin_question(
                    question.token_hash, self._me, self._questions.longest
                )
                if who == "stranger":
                    return who
                owner = await self._issued.look_up(question.token_hash)
                if owner is not None:
                    return owner
                if who == "ours":
                    return who
                await self._clock.sleep_until(self._clock.monotonic() + _LOOK_AGAIN)
        except StoreDown:
            pass
        return "ours"

    async def _understood(
        self, question: Question, finding: Finding, answer: Answer | None
    ) -> Outcome:
        match finding:
            case Named(client_id, organization):
                self._has_named = True
                owner = Owner(
                    account_id(client_id),
                    by_api=True,
                    organization="" if organization is None else digest(organization),
                )
                if not question.is_own:
                    life = self._life_of(question.token)
                    await self._issued.add_owner(question.token_hash, owner, life)
                return owner
            case Rejected() if answer is not None and question.is_again:
                self._issued.drop(question.token_hash)
                return self._conclude(question, Denied(answer))
            case Rejected() if answer is not None and self._has_named:
                return self._conclude(question, Denied(answer))
            case Rejected() | Unclear():
                return self._conclude(question, None)

    def _conclude(self, question: Question, outcome: Denied | None) -> Denied | None:
        """Remember that the API names no client, or denies the token."""
        if outcome is None and question.is_again:
            self._issued.postpone(question.token_hash, ASK_AGAIN)
            return None
        self._findings.add(question.token_hash, outcome)
        return outcome

    def _life_of(self, token: str) -> float:
        """Return for how many seconds an answer counts: to the token's end, or a default.

        A token that has expired by our clock but not by the API's is asked about again soon.
        """
        remaining = remaining_life(token, self._clock.wall())
        if remaining is None:
            return USUAL_LIFE
        return remaining if remaining > 0 else ASK_AGAIN

    async def _get(self, question: Question) -> Answer | None:
        """Return the API's answer; None if there is none that can be used."""
        path, _, query = (self._target or "").partition("?")
        call = Outgoing(
            method="GET",
            path=path,
            query=query,
            fields=[
                ("Authorization", f"Bearer {question.token}"),
                ("Accept", "application/json"),
            ],
            body=b"",
        )
        try:
            async with time_limit(question.deadline - self._clock.monotonic()):
                return await self._api.read(await self._api.send(call), _MAX_ANSWER)
        except (Unsent, OutcomeUnknown, BadAnswer, TimeoutError):
            return None
