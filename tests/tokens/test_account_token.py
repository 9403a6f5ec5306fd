"""One token per account: fetched once however many ask, as seldom as it may, and never too old."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from proxy.problems import Problem
from proxy.rules.state import TokenState
from proxy.settings import Account, Retry, Settings, Tokens
from proxy.telemetry.metrics import Metrics
from proxy.tokens.account_token import TokenKeeper, TooSoon
from proxy.tokens.credentials import Credentials, fingerprint_of
from proxy.tokens.login_server import Rejected, Throttled, Troubled
from proxy.tokens.token import Token
from tests.kit.clock import FakeClock
from tests.kit.proxy import settings_for
from tests.kit.tokens import ScriptedLoginServer, Step, issued, scoped, unsigned

START = 5000.0
VOICE = frozenset({"recordings:export"})
DIGITAL = frozenset({"agent_scripting:export"})
NOTHING: frozenset[str] = frozenset()
DOWN = Troubled("the login server cannot be reached")
WRONG = Rejected("the login server says invalid_client")
# No pause of ours is longer than a tenth of a second, so that times below are round.
QUICK = Retry(initial_backoff=0.05, max_backoff=0.05)
WAITING: dict[str, Any] = {"on_missing_scope": "wait", "min_refresh_interval": 1.0}


class Call:
    """A request that wants a token."""

    def __init__(self) -> None:
        self.token: Token | None = None
        self.problem: Problem | None = None
        self.ended_at: float | None = None
        self.task: asyncio.Task[None]

    @property
    def value(self) -> str:
        assert self.token is not None, self.problem
        return self.token.value

    @property
    def refusal(self) -> Problem:
        assert self.problem is not None
        return self.problem


class Bench:
    """An account's token with its clock, its login server, and its callers."""

    def __init__(
        self,
        tasks: asyncio.TaskGroup,
        steps: Sequence[Step] | Callable[[int], Step],
        *,
        retry: Retry,
        credentials: Credentials | None,
        jitter: float,
        **rules: Any,
    ) -> None:
        self.clock = FakeClock(start=START)
        self.registry = CollectorRegistry()
        self.login = ScriptedLoginServer(self.clock, steps)
        self.account = TokenKeeper(
            "london",
            credentials or Credentials("id", lambda: "secret"),
            settings_for("http://localhost").model_copy(
                update={"tokens": Tokens(**rules), "retry": retry}
            ),
            login_server=self.login,
            clock=self.clock,
            metrics=Metrics(self.registry),
            random=lambda: jitter,
        )
        self._tasks = tasks

    @property
    def now(self) -> float:
        return self.clock.monotonic() - START

    @property
    def fetches(self) -> list[float]:
        """When the login server was asked, to a tenth of a second."""
        return [round(at, 1) for at in self.login.calls]

    async def until(self, seconds: float) -> None:
        await self.clock.advance(seconds - self.now)

    def ask(self, needed: frozenset[str] = NOTHING, *, limit: float = 15.0) -> Call:
        call = Call()

        async def wait() -> None:
            try:
                call.token = await self.account.usable(needed, limit=limit)
            except Problem as problem:
                call.problem = problem
            finally:
                call.ended_at = self.now

        call.task = self._tasks.create_task(wait())
        return call

    async def get(self, needed: frozenset[str] = NOTHING, *, limit: float = 15.0) -> Call:
        """Ask, and live through whatever happens at once."""
        call = self.ask(needed, limit=limit)
        await self.clock.advance(0)
        assert call.ended_at is not None, "it waits"
        return call

    async def token(self) -> Token:
        call = await self.get()
        assert call.token is not None
        return call.token

    def renew(
        self, used: Token, reason: Any, *, limit: float = 15.0
    ) -> "asyncio.Task[Token | None]":
        return self._tasks.create_task(self.account.renewed(used, reason, limit=limit))

    async def renewed(self, used: Token, reason: Any) -> str | None:
        task = self.renew(used, reason)
        await self.clock.advance(0)
        token = task.result()
        return None if token is None else token.value

    def refreshes(self, reason: str, outcome: str) -> float:
        labels = {"account": "london", "reason": reason, "outcome": outcome}
        return self.registry.get_sample_value("export_proxy_token_refreshes_total", labels) or 0.0


@asynccontextmanager
async def bench(
    *steps: Step,
    script: Callable[[int], Step] | None = None,
    retry: Retry = QUICK,
    credentials: Credentials | None = None,
    jitter: float = 0.0,
    **rules: Any,
) -> AsyncIterator[Bench]:
    """Run an account's task on a clock that stands still, after its first fetch."""
    async with asyncio.TaskGroup() as tasks:
        made = Bench(
            tasks, script or steps, retry=retry, credentials=credentials, jitter=jitter, **rules
        )
        run = tasks.create_task(made.account.run())
        await made.clock.advance(0)
        yield made
        run.cancel()


def numbered(index: int) -> Step:
    return issued(f"token-{index}")


def ungranted(index: int) -> Step:
    return scoped("recordings:export", jti=index)


def granted_from(index: int) -> Callable[[int], Step]:
    """Return a script in which the digital scope appears with that fetch, counted from 0."""

    def step(at: int) -> Step:
        scopes = "recordings:export agent_scripting:export" if at >= index else "recordings:export"
        return scoped(scopes, jti=at)

    return step


# Fetching


async def test_the_first_token_is_fetched_before_anybody_asks() -> None:
    async with bench(script=numbered) as it:
        assert it.fetches == [0.0]
        assert (await it.get()).value == "token-0"
        assert it.refreshes("startup", "ok") == 1


async def test_two_hundred_requests_at_once_cause_one_fetch() -> None:
    async with bench(script=granted_from(1)) as it:
        await it.until(100)
        it.login.delay = 2.0
        calls = [it.ask(DIGITAL) for _ in range(200)]
        await it.until(110)
        assert it.fetches == [0.0, 100.0]
        assert {call.value for call in calls} == {it.account.current().value}  # type: ignore[union-attr]
        assert {call.ended_at for call in calls} == {102.0}


async def test_two_hundred_without_any_token_cause_one_fetch() -> None:
    async with bench(Throttled(10.0), numbered(1)) as it:
        it.login.delay = 2.0
        await it.until(11)
        calls = [it.ask() for _ in range(200)]
        await it.until(20)
        assert it.fetches == [0.0, 10.0]
        assert {(call.value, call.ended_at) for call in calls} == {("token-1", 12.0)}


async def test_request_that_comes_while_a_fetch_runs_waits_for_its_end() -> None:
    async with bench(DOWN, numbered(1)) as it:
        it.login.gate.clear()
        await it.until(1)
        early = it.ask()
        await it.until(3)
        late = it.ask()
        await it.until(4)
        it.login.gate.set()
        await it.until(4)
        assert (early.value, late.value) == ("token-1", "token-1")
        assert early.ended_at == late.ended_at == 4.0


async def test_a_waiter_that_leaves_cancels_nothing() -> None:
    async with bench(script=numbered) as it:
        await it.until(100)
        used = await it.token()
        it.login.delay = 2.0
        first, second = it.renew(used, "unauthorized"), it.renew(used, "unauthorized")
        await it.until(101)
        first.cancel()
        await it.until(102)
        assert first.cancelled()
        token = second.result()
        assert token is not None
        assert token.value == "token-1"
        assert it.fetches == [0.0, 100.0]


async def test_a_waiter_that_leaves_at_the_very_moment_the_token_comes() -> None:
    async with bench(script=numbered) as it:
        await it.until(100)
        used = await it.token()
        it.login.gate.clear()
        first, second = it.renew(used, "unauthorized"), it.renew(used, "unauthorized")
        await it.until(101)
        it.login.gate.set()
        first.cancel()
        await it.until(101)
        assert first.cancelled()
        assert second.result() is it.account.current() is not used


async def test_when_all_waiters_leave_the_token_still_comes() -> None:
    async with bench(script=granted_from(1)) as it:
        await it.until(100)
        it.login.delay = 2.0
        call = it.ask(DIGITAL)
        await it.until(101)
        call.task.cancel()
        await it.until(103)
        assert (await it.get(DIGITAL)).ended_at == 103.0
        assert it.fetches == [0.0, 100.0]


async def test_a_limit_of_nothing_takes_what_is_there() -> None:
    async with bench(script=numbered) as it:
        assert (await it.get(limit=0)).value == "token-0"
    async with bench(DOWN) as it:
        refusal = (await it.get(limit=0)).refusal
        assert (refusal.name, refusal.retry_after) == ("token-unavailable", 1)


async def test_a_limit_ends_the_wait_and_not_the_fetch() -> None:
    async with bench(script=granted_from(1)) as it:
        await it.until(100)
        it.login.delay = 5.0
        calls = [it.ask(DIGITAL, limit=limit) for limit in (-1.0, 0.0, 2.0)]
        await it.until(103)
        assert [call.ended_at for call in calls] == [100.0, 100.0, 102.0]
        assert {call.refusal.name for call in calls} == {"missing-scope"}
        assert {call.refusal.retry_after for call in calls} == {1}, "a token is on its way"
        await it.until(106)
        assert (await it.get(DIGITAL)).ended_at == 106.0
        assert it.fetches == [0.0, 100.0]


# Lifetime and renewal


@pytest.mark.parametrize(
    ("lifetime", "jitter", "renewed_at"),
    [(3600, 0.0, 3540.0), (3600, 0.5, 3537.0), (100, 0.0, 80.0), (100, 0.999, 78.0)],
)
async def test_renewal_ahead_of_expiry_with_jitter(
    lifetime: float, jitter: float, renewed_at: float
) -> None:
    async with bench(issued("old", lifetime=lifetime), issued("new"), jitter=jitter) as it:
        await it.until(renewed_at - 0.1)
        assert (await it.get()).value == "old"
        await it.until(renewed_at + 0.1)
        assert it.fetches == [0.0, renewed_at]
        assert (await it.get()).value == "new"
        assert it.refreshes("expiry", "ok") == 1


async def test_no_request_waits_for_a_renewal_ahead() -> None:
    async with bench(script=numbered) as it:
        it.login.delay = 20.0
        await it.until(3545)
        assert it.fetches == [0.0, 3540.0]
        assert (await it.get()).value == "token-0"
        await it.until(3560)
        assert (await it.get()).value == "token-1"


async def test_the_old_token_serves_until_it_expires_and_never_longer() -> None:
    async with bench(issued("old", lifetime=600.0), DOWN) as it:
        await it.until(599.9)
        assert len(it.fetches) > 10, "the renewal is tried again and again"
        assert (await it.get()).value == "old"
        await it.until(600)
        refusal = (await it.get(limit=0)).refusal
        assert (refusal.name, refusal.status, refusal.retry_after) == ("token-unavailable", 503, 1)
        assert it.account.current() is None


async def test_a_token_is_used_again_once_the_login_server_is_back() -> None:
    async with bench(DOWN, DOWN, DOWN, numbered(3)) as it:
        await it.until(0.2)
        assert (await it.get()).value == "token-3"
        assert not it.account.state().rejected


async def test_a_jwt_is_used_no_longer_than_its_exp_by_its_servers_own_clock() -> None:
    """Their clock is an hour ahead; the token is good for 100 s all the same."""
    wall = 1_700_000_000.0 + 3600.0
    token = unsigned({"exp": wall + 100, "iat": wall - 5})
    async with bench(issued(token, server_time=wall), DOWN) as it:
        state = it.account.state()
        assert (state.expires_in, state.issued_at) == (100.0, wall - 5)
        await it.until(99.9)
        assert (await it.get()).value == token
        await it.until(100)
        assert (await it.get(limit=0)).problem is not None


async def test_a_token_that_has_expired_when_it_comes_does_not_replace_a_good_one() -> None:
    late = issued(unsigned({"exp": 999}), server_time=1000.0)
    async with bench(issued("old", lifetime=600.0), late) as it:
        await it.until(550)
        assert (await it.get()).value == "old"
        await it.until(600)
        assert "had expired when it came" in (await it.get()).refusal.detail
        assert it.refreshes("expiry", "ok") == 0


async def test_a_wall_clock_that_jumps_changes_nothing() -> None:
    async with bench(script=numbered) as it:
        for jump in (86_400.0, -200_000.0, 10_000_000.0):
            it.clock.jump_wall(jump)
            assert (await it.get()).value == "token-0"
            assert it.account.state().expires_in == 3600.0 - it.now
            await it.until(it.now + 100)
        assert it.fetches == [0.0]


@pytest.mark.parametrize(("skew", "warns"), [(0, 0), (59, 0), (-59, 0), (61, 1), (-3600, 1)])
async def test_a_login_server_whose_clock_differs(skew: float, warns: int) -> None:
    with capture_logs() as lines:
        async with bench(issued(server_time=1_700_000_000.0 + skew)) as it:
            sample = it.registry.get_sample_value(
                "export_proxy_clock_skew_seconds", {"server": "login"}
            )
            assert sample == skew
    warnings = [line for line in lines if "clock" in line["event"]]
    assert [line["seconds"] for line in warnings] == [skew] * warns


async def test_an_answer_without_a_date_says_nothing_of_clocks() -> None:
    async with bench(issued()) as it:
        labels = {"server": "login"}
        assert it.registry.get_sample_value("export_proxy_clock_skew_seconds", labels) is None


async def test_a_token_that_lives_a_second_is_not_minted_each_second() -> None:
    async with bench(issued("short", lifetime=1.0)) as it:
        await it.until(0.9)
        assert (await it.get()).value == "short"
        await it.until(5)
        waiting = it.ask(limit=12)
        refusal = (await it.get(limit=5)).refusal
        assert (refusal.name, refusal.retry_after) == ("token-unavailable", 10)
        await it.until(15)
        assert (waiting.value, waiting.ended_at) == ("short", 15.0)
        await it.until(60)
        assert it.fetches == [0.0, 15.0, 30.0, 45.0, 60.0]


async def test_a_token_that_lives_for_days_is_left_alone() -> None:
    async with bench(issued(lifetime=172_800.0)) as it:
        await it.until(172_700)
        assert it.fetches == [0.0]


# Troubles


async def test_a_login_server_in_trouble_is_asked_three_times_and_then_less_and_less() -> None:
    retry = Retry(initial_backoff=1.0, max_backoff=30.0)
    async with bench(DOWN, retry=retry) as it:
        await it.until(600)
        pauses = [later - earlier for earlier, later in pairwise(it.login.calls)]
        assert 0.5 <= pauses[0] <= 1.0 <= pauses[1] <= 2.0, "three tries of one fetch"
        assert 1.0 <= pauses[2] <= 2.0 <= pauses[5] <= 3.0, "between fetches"
        assert {round(pause, 1) for pause in pauses[20::3]} == {30.0}
        refusal = (await it.get()).refusal
        assert refusal.name == "token-unavailable"
        assert refusal.retry_after is not None
        assert 1 <= refusal.retry_after <= 31
        assert it.refreshes("startup", "error") == 1
        assert it.refreshes("expiry", "error") >= 10


async def test_no_request_waits_for_a_login_server_in_trouble() -> None:
    async with bench(DOWN, retry=Retry(initial_backoff=8.0, max_backoff=8.0)) as it:
        await it.until(16)
        retry_after = (await it.get()).refusal.retry_after
        assert retry_after is not None
        await it.until(16 + retry_after)
        assert len(it.fetches) == 4, "Retry-After is when the next try is made"


@pytest.mark.parametrize("wait", [5.0, 30.0, 300.0])
async def test_a_throttle_is_honoured(wait: float) -> None:
    async with bench(Throttled(wait), numbered(1)) as it:
        await it.until(2)
        refusal = (await it.get()).refusal
        assert (refusal.name, refusal.retry_after) == ("token-unavailable", wait - 2)
        await it.until(wait - 0.1)
        assert it.fetches == [0.0]
        await it.until(wait)
        assert it.fetches == [0.0, wait]
        assert (await it.get()).value == "token-1"


@pytest.mark.parametrize("wait", [None, 0.0])
async def test_a_throttle_that_names_no_time_is_backed_off_from(wait: float | None) -> None:
    retry = Retry(initial_backoff=2.0, max_backoff=60.0)
    async with bench(Throttled(wait), retry=retry) as it:
        await it.until(120)
        first, second, third, *_ = (later - earlier for earlier, later in pairwise(it.login.calls))
        assert 2 <= first <= 4 <= second <= 6
        assert 8 <= third <= 10


async def test_no_request_gets_around_a_throttle() -> None:
    async with bench(scoped("recordings:export"), Throttled(100.0)) as it:
        await it.until(20)
        token = await it.token()
        assert await it.renewed(token, "unauthorized") is None
        assert it.fetches == [0.0, 20.0]
        await it.until(40)
        assert await it.renewed(token, "unauthorized") is None
        assert await it.renewed(token, "stale_scope") is None
        assert (await it.get(DIGITAL)).refusal.retry_after == 80
        with pytest.raises(Problem, match="throttles") as caught:
            await it.account.refresh()
        assert caught.value.retry_after == 80
        assert (await it.get()).token is token
        await it.until(119)
        assert it.fetches == [0.0, 20.0]


async def test_refused_credentials_are_tried_once_a_minute() -> None:
    async with bench(WRONG) as it:
        for tick in range(1, 300):
            await it.until(tick)
            refusal = (await it.get()).refusal
            assert (refusal.name, refusal.status) == ("token-rejected", 502)
            assert refusal.retry_after is None
        assert it.fetches == [0.0, 60.0, 120.0, 180.0, 240.0]
        assert it.account.state().rejected
        with pytest.raises(Problem, match="invalid_client"):
            await it.account.refresh()
        assert len(it.fetches) == 5


async def test_a_token_outlives_refused_credentials() -> None:
    async with bench(issued("old", lifetime=600.0), WRONG) as it:
        await it.until(590)
        assert (await it.get()).value == "old"
        assert it.account.state().rejected
        await it.until(600)
        assert (await it.get()).refusal.name == "token-rejected"


def in_file(file: Path) -> Credentials:
    """Those of an account with a secret file, which is read at once: the clock knows no threads."""
    account = {"name": "london", "client_id": "id", "client_secret_file": str(file)}
    return replace(Credentials.of(Account.model_validate(account)), is_file=False)


async def test_a_new_secret_is_tried_at_once(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("old", encoding="utf-8")
    async with bench(WRONG, numbered(1), credentials=in_file(file)) as it:
        await it.until(5)
        assert (await it.get()).refusal.name == "token-rejected"
        file.write_text("new", encoding="utf-8")
        assert (await it.get()).value == "token-1"
        assert it.fetches == [0.0, 5.0]


async def test_a_new_secret_that_is_wrong_too_is_tried_once(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("old", encoding="utf-8")
    async with bench(WRONG, credentials=in_file(file)) as it:
        await it.until(5)
        file.write_text("new", encoding="utf-8")
        for tick in range(5, 60):
            await it.until(tick)
            assert (await it.get()).refusal.name == "token-rejected"
        assert it.fetches == [0.0, 5.0]


async def test_a_secret_that_changes_during_a_fetch_is_tried_at_once(tmp_path: Path) -> None:
    """The one that was refused is the one that was sent."""
    file = tmp_path / "secret"
    file.write_text("old", encoding="utf-8")
    async with bench(numbered(0), WRONG, numbered(2), credentials=in_file(file)) as it:
        await it.until(20)
        it.login.gate.clear()
        used = await it.token()
        renewal = it.renew(used, "unauthorized")
        await it.until(21)
        file.write_text("new", encoding="utf-8")
        it.login.gate.set()
        await it.until(22)
        assert renewal.result() is None
        assert it.account.state().rejected
        assert await it.renewed(used, "unauthorized") == "token-2"


async def test_a_secret_that_a_reload_changes_during_a_fetch_is_used_next() -> None:
    """Not only when the token that just came expires."""
    async with bench(numbered(0), numbered(1), numbered(2)) as it:
        await it.until(20)
        it.login.gate.clear()
        renewal = it.renew(await it.token(), "unauthorized")
        await it.until(21)
        new = Credentials("id", lambda: "new")
        chosen = settings_for("http://localhost")
        assert it.account.apply("london", new, chosen, fingerprint_of("new"))
        it.login.gate.set()
        await it.until(40)
        renewed = renewal.result()
        assert renewed is not None
        assert renewed.value == "token-1"
        assert (await it.token()).value == "token-2"
        assert it.fetches == [0.0, 20.0, 36.0]


async def test_a_secret_file_that_appears_later(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    no_file = Rejected("the secret file cannot be read: FileNotFoundError")
    async with bench(no_file, numbered(1), credentials=in_file(file)) as it:
        await it.until(5)
        assert "FileNotFoundError" in (await it.get()).refusal.detail
        file.write_text("here", encoding="utf-8")
        assert (await it.get()).value == "token-1"


# Missing scopes


async def test_a_token_that_carries_what_is_needed() -> None:
    async with bench(scoped("recordings:export agent_scripting:export")) as it:
        for needed in (NOTHING, VOICE, DIGITAL, VOICE | DIGITAL):
            assert (await it.get(needed, limit=0)).token is it.account.current()
        assert it.fetches == [0.0]


async def test_an_opaque_token_is_never_refused_for_lacking_a_scope() -> None:
    async with bench(issued("opaque")) as it:
        assert (await it.get(DIGITAL)).value == "opaque"
        assert it.account.state().scopes is None
        assert it.account.state().missing == []


async def test_an_opaque_token_whose_answer_named_its_scopes_is_judged_by_them() -> None:
    async with bench(issued("opaque", scope="recordings:export")) as it:
        assert (await it.get(VOICE)).value == "opaque"
        assert (await it.get(DIGITAL)).refusal.name == "missing-scope"


async def test_a_stale_token_is_renewed_once_before_the_request_goes_on() -> None:
    async with bench(script=granted_from(1)) as it:
        await it.until(100)
        call = await it.get(DIGITAL)
        assert call.token is it.account.current()
        assert it.fetches == [0.0, 100.0]
        assert it.refreshes("stale_scope", "ok") == 1
        await it.until(3000)
        assert it.fetches == [0.0, 100.0], "the window is closed: nothing is missing"


async def test_a_fresh_token_that_lacks_a_scope_is_refused_with_the_reason() -> None:
    token = unsigned({"scope": "recordings:export", "iat": 1_699_999_990})
    async with bench(issued(token)) as it:
        await it.until(5)
        refusal = (await it.get(VOICE | DIGITAL)).refusal
        assert (refusal.name, refusal.status, refusal.retry_after) == ("missing-scope", 403, 10)
        assert refusal.fields == {
            "required": ["agent_scripting:export", "recordings:export"],
            "held": ["recordings:export"],
            "token_issued_at": 1_699_999_990.0,
            "next_refresh_in": 10.0,
        }
        assert token not in f"{refusal} {refusal!r} {refusal.fields}"


async def test_while_the_window_is_open_the_token_is_renewed_on_a_timer_alone() -> None:
    """One request is enough; whether more come makes no difference."""
    async with bench(script=ungranted) as it:
        await it.until(1)
        assert (await it.get(DIGITAL)).refusal.name == "missing-scope"
        await it.until(800)
        assert it.fetches == [0, 15, 45, 105, 225, 345, 465, 585, 705]
        assert it.account.state().missing == ["agent_scripting:export"]


@pytest.mark.parametrize("policy", ["reject", "forward"])
async def test_a_scope_nobody_grants_at_ten_requests_a_second(policy: str) -> None:
    async with bench(script=ungranted, on_missing_scope=policy) as it:
        refused = 0
        for tick in range(9000):
            await it.until(tick / 10)
            call = await it.get(DIGITAL)
            refused += call.problem is not None
            if call.problem and call.problem.retry_after is not None:
                again_at = it.now + call.problem.retry_after
                due = next(at for at in [15, 45, 105, 225, 345, 465, 585, 705, 825] if at > it.now)
                assert due <= again_at <= due + 1
            elif call.problem:
                assert it.now >= 825, "nothing more is scheduled"
            elif call.token:
                assert await it.renewed(call.token, "stale_scope") is None, "the API says 403"
        assert refused == (9000 if policy == "reject" else 0)
        assert it.fetches == [0, 15, 45, 105, 225, 345, 465, 585, 705, 825]
        assert len(it.fetches) <= 12


async def test_after_the_window_renewals_are_on_demand_and_nothing_is_promised() -> None:
    async with bench(script=ungranted) as it:
        await it.until(1)
        await it.get(DIGITAL)
        await it.until(944)
        refusal = (await it.get(DIGITAL)).refusal
        assert refusal.retry_after is None
        assert refusal.fields["next_refresh_in"] is None
        assert it.fetches[-1] == 825.0
        await it.until(945)
        assert (await it.get(DIGITAL)).refusal.retry_after is None
        assert it.fetches[-1] == 945.0
        for tick in range(946, 1200):
            await it.until(tick)
            assert (await it.get(DIGITAL)).refusal.retry_after is None
        assert it.fetches[-3:] == [945.0, 1065.0, 1185.0]
        await it.until(3000)
        assert it.fetches[-1] == 1185.0, "nobody asks, nobody mints"


async def test_a_scope_granted_after_the_window_is_found_on_demand() -> None:
    async with bench(script=granted_from(10)) as it:
        await it.until(1)
        await it.get(DIGITAL)
        await it.until(2000)
        assert len(it.fetches) == 10
        assert (await it.get(DIGITAL)).token is it.account.current()
        assert it.account.state().missing == []


async def test_reject_answers_at_once_and_serves_when_the_scope_has_come() -> None:
    async with bench(script=granted_from(2)) as it:
        await it.until(1)
        call = await it.get(DIGITAL)
        assert (call.refusal.retry_after, call.ended_at) == (14, 1.0)
        await it.until(15)
        assert (await it.get(DIGITAL)).refusal.retry_after == 30
        await it.until(45)
        assert (await it.get(DIGITAL)).token is it.account.current()
        assert (await it.get(VOICE)).token is it.account.current()


async def test_a_request_that_needs_less_is_served_meanwhile() -> None:
    async with bench(script=ungranted) as it:
        assert (await it.get(DIGITAL)).problem is not None
        assert (await it.get(VOICE)).ended_at == 0.0


async def test_forward_sends_the_token_as_it_is_after_its_one_renewal() -> None:
    async with bench(script=ungranted, on_missing_scope="forward") as it:
        await it.until(100)
        call = await it.get(DIGITAL)
        assert call.token is it.account.current()
        assert it.fetches == [0.0, 100.0]


async def test_wait_waits_until_the_scope_has_come() -> None:
    async with bench(script=granted_from(3), **WAITING) as it:
        call = it.ask(DIGITAL, limit=15)
        await it.until(6.9)
        assert call.ended_at is None
        await it.until(7)
        assert call.token is it.account.current()
        assert it.fetches == [0.0, 1.0, 3.0, 7.0]


async def test_wait_is_bounded_by_the_callers_limit() -> None:
    async with bench(script=ungranted, **WAITING) as it:
        call = it.ask(DIGITAL, limit=8)
        await it.until(20)
        assert call.refusal.name == "missing-scope"
        assert call.ended_at == 7.0, "the next renewal, at 15 s, comes too late"
        assert call.refusal.retry_after == 8
        assert (await it.get(DIGITAL, limit=0)).refusal.name == "missing-scope"


async def test_wait_does_not_wait_after_the_window() -> None:
    async with bench(script=ungranted, propagation_window=5.0, **WAITING) as it:
        it.ask(DIGITAL)
        await it.until(50)
        call = await it.get(DIGITAL)
        assert call.refusal.retry_after is None


async def test_wait_goes_on_when_a_fetch_fails_meanwhile() -> None:
    good = scoped("agent_scripting:export")
    retry = Retry(initial_backoff=2.0, max_backoff=2.0)
    async with bench(ungranted(0), DOWN, DOWN, DOWN, good, retry=retry, **WAITING) as it:
        call = it.ask(DIGITAL, limit=15)
        await it.until(14)
        assert len(it.fetches) == 5
        assert call.token is it.account.current()


async def test_wait_gives_up_when_the_login_server_asks_for_more_than_the_limit() -> None:
    async with bench(ungranted(0), Throttled(100.0), ungranted(2), **WAITING) as it:
        call = it.ask(DIGITAL, limit=15)
        await it.until(1)
        assert (call.refusal.name, call.refusal.retry_after) == ("missing-scope", 100)
        assert call.ended_at == 1.0


async def test_a_fetch_that_fails_for_a_missing_scope_leaves_the_window_open() -> None:
    async with bench(ungranted(0), Throttled(20.0)) as it:
        await it.until(100)
        refusal = (await it.get(DIGITAL)).refusal
        assert (refusal.name, refusal.retry_after) == ("missing-scope", 20)


async def test_another_scope_wanted_later_is_renewed_for_at_once() -> None:
    async with bench(script=ungranted) as it:
        await it.until(1)
        await it.get(DIGITAL)
        await it.until(300)
        assert it.fetches == [0, 15, 45, 105, 225]
        refusal = (await it.get(frozenset({"other"}))).refusal
        assert refusal.retry_after == 15
        assert it.fetches[-1] == 300.0
        assert it.account.state().missing == ["agent_scripting:export", "other"]


# What the API refuses


async def test_a_401_is_one_renewal() -> None:
    async with bench(script=numbered) as it:
        used = await it.token()
        await it.until(100)
        assert await it.renewed(used, "unauthorized") == "token-1"
        assert it.refreshes("unauthorized", "ok") == 1


async def test_a_token_that_was_replaced_meanwhile_is_not_renewed_again() -> None:
    async with bench(script=numbered) as it:
        used = await it.token()
        await it.until(100)
        assert await it.renewed(used, "unauthorized") == "token-1"
        assert await it.renewed(used, "unauthorized") == "token-1"
        assert await it.renewed(used, "stale_scope") == "token-1"
        assert it.fetches == [0.0, 100.0]


async def test_a_fresh_token_is_not_renewed() -> None:
    async with bench(script=numbered) as it:
        used = await it.token()
        await it.until(14.9)
        assert await it.renewed(used, "unauthorized") is None
        assert await it.renewed(used, "stale_scope") is None
        await it.until(15)
        assert await it.renewed(used, "unauthorized") == "token-1"


@pytest.mark.parametrize("reason", ["unauthorized", "stale_scope"])
async def test_two_hundred_refused_at_once_are_one_renewal(reason: str) -> None:
    async with bench(script=numbered) as it:
        used = await it.token()
        await it.until(20)
        it.login.delay = 1.0
        renewals = [it.renew(used, reason) for _ in range(200)]
        await it.until(25)
        assert {token.value for task in renewals if (token := task.result())} == {"token-1"}
        assert all(task.result() for task in renewals)
        assert it.fetches == [0.0, 20.0]


async def test_403s_that_go_on_double_the_distance_of_renewals_and_decay() -> None:
    async with bench(script=numbered) as it:
        for tick in range(600):
            await it.until(tick)
            await it.renewed(await it.token(), "stale_scope")
        assert it.fetches == [0, 15, 45, 105, 225, 345, 465, 585]
        await it.until(900)
        await it.renewed(await it.token(), "stale_scope")
        await it.until(930)
        await it.renewed(await it.token(), "stale_scope")
        assert it.fetches[-2:] == [900.0, 930.0]


async def test_a_renewal_that_fails_or_takes_too_long_gives_nothing() -> None:
    async with bench(numbered(0), DOWN, DOWN, DOWN, numbered(4)) as it:
        used = await it.token()
        await it.until(100)
        failed = it.renew(used, "unauthorized")
        await it.until(101)
        assert failed.result() is None
        it.login.delay = 10.0
        slow = it.renew(used, "unauthorized", limit=2.0)
        await it.until(103)
        assert slow.result() is None
        await it.until(120)
        assert (await it.get()).value == "token-4"


async def test_a_token_that_expired_on_the_way_is_renewed() -> None:
    async with bench(issued("old", lifetime=20.0), numbered(1), refresh_margin=0) as it:
        used = await it.token()
        it.login.delay = 3.0
        await it.until(21)
        renewal = it.renew(used, "unauthorized")
        await it.until(24)
        assert renewal.result() is it.account.current()


# Operators


async def test_an_operator_mints_now() -> None:
    async with bench(script=numbered) as it:
        await it.until(20)
        task = asyncio.get_running_loop().create_task(it.account.refresh())
        await it.until(20)
        assert task.result().value == "token-1"
        assert it.refreshes("operator", "ok") == 1


async def test_an_operator_may_come_too_soon() -> None:
    async with bench(script=numbered) as it:
        await it.until(5)
        with pytest.raises(TooSoon) as caught:
            await it.account.refresh()
        assert caught.value.wait == 10.0


async def test_an_operator_joins_the_fetch_that_runs() -> None:
    async with bench(script=numbered) as it:
        used = await it.token()
        await it.until(20)
        it.login.delay = 2.0
        renewal = it.renew(used, "unauthorized")
        await it.until(21)
        refresh = asyncio.get_running_loop().create_task(it.account.refresh())
        await it.until(22)
        assert refresh.result() is renewal.result() is it.account.current()
        assert it.fetches == [0.0, 20.0]


@pytest.mark.parametrize(
    ("trouble", "name", "status", "retry_after"),
    [
        (DOWN, "token-unavailable", 503, 1),
        (Throttled(40.0), "token-unavailable", 503, 40),
        (WRONG, "token-rejected", 502, None),
    ],
)
async def test_an_operator_learns_why_no_token_came(
    trouble: Step, name: str, status: int, retry_after: int | None
) -> None:
    async with bench(numbered(0), trouble) as it:
        await it.until(20)
        task = asyncio.get_running_loop().create_task(it.account.refresh())
        await it.until(20.2)
        problem = task.exception()
        assert isinstance(problem, Problem)
        assert (problem.name, problem.status) == (name, status)
        assert problem.retry_after == retry_after
        assert (await it.get()).value == "token-0"


async def test_no_request_waits_for_ever_on_an_account_that_goes() -> None:
    async with bench(script=numbered) as it:
        await it.until(20)
        it.login.gate.clear()
        used = await it.token()
        renewal = it.renew(used, "unauthorized", limit=inf)
        loop = asyncio.get_running_loop()
        run = loop.create_task(it.account.refresh())
        await it.until(21)
        # The bench ends the account's own task with the fetch still running.
    assert renewal.result() is None
    assert isinstance(run.exception(), Problem)


# State and settings


async def test_state() -> None:
    token = unsigned({"scope": "b a", "iat": 1_700_000_000})
    async with bench(issued(token)) as it:
        await it.until(100)
        assert it.account.state() == TokenState(
            expires_in=3500.0,
            scopes=["a", "b"],
            missing=[],
            next_refresh_in=3440.0,
            issued_at=1_700_000_000.0,
            rejected=False,
        )


async def test_state_without_a_token() -> None:
    async with bench(Throttled(30.0)) as it:
        await it.until(10)
        assert it.account.state() == TokenState(
            expires_in=None,
            scopes=None,
            missing=[],
            next_refresh_in=20.0,
            issued_at=None,
            rejected=False,
        )
        it.login.gate.clear()
        await it.until(40)
        assert it.account.state().next_refresh_in == 0.0


async def test_new_settings_are_obeyed_and_the_token_is_kept() -> None:
    async with bench(script=ungranted) as it:
        token = await it.token()
        assert (await it.get(DIGITAL)).problem is not None
        settings = Settings.model_validate(
            {
                "upstream": {"api_url": "https://a.example", "login_url": "https://l.example"},
                "tokens": {"on_missing_scope": "forward", "min_refresh_interval": 100},
            }
        )
        it.account.apply("london", it.account.credentials, settings, None)
        assert (await it.get(DIGITAL)).token is token
        await it.until(15)
        assert it.fetches == [0.0, 15.0]
        used = await it.token()
        await it.until(114)
        assert await it.renewed(used, "unauthorized") is None
        assert it.fetches == [0.0, 15.0]


async def test_nothing_shows_the_token() -> None:
    with capture_logs() as lines:
        async with bench(issued("planted-token"), DOWN) as it:
            await it.until(20)
            token = await it.token()
            renewal = it.renew(token, "unauthorized")
            await it.until(21)
            assert renewal.result() is None
            shown = f"{it.account!r} {token!r} {it.account.state()!r} {lines}"
    assert "planted-token" not in shown
    assert "<TokenKeeper london: valid>" in shown


async def test_waiters_leave_nothing_behind() -> None:
    async with bench(script=granted_from(1)) as it:
        await it.until(100)
        it.login.delay = 1.0
        for _ in range(50):
            it.ask(DIGITAL, limit=0.5)
        await it.until(102)
        gc.collect()
        assert it.clock.pending == 1, "only the next renewal is waited for"


async def test_a_token_the_api_refused_is_not_sent_while_another_is_on_its_way() -> None:
    async with bench(script=numbered) as it:
        await it.until(100)
        used = await it.token()
        it.login.delay = 2.0
        renewal = it.renew(used, "unauthorized")
        newcomer, impatient = it.ask(), it.ask(limit=1.0)
        await it.until(101)
        assert not it.account.may_be_sent(used)
        assert impatient.refusal.name == "token-unavailable"
        await it.until(102)
        assert renewal.result() is not None
        assert newcomer.value == "token-1"
        assert newcomer.ended_at == 102.0
        assert it.account.may_be_sent(newcomer.token or used)
        assert it.fetches == [0.0, 100.0]


async def test_a_token_the_api_refused_serves_on_when_no_other_comes() -> None:
    async with bench(numbered(0), DOWN) as it:
        await it.until(100)
        used = await it.token()
        renewal = it.renew(used, "unauthorized")
        await it.until(101)
        assert renewal.result() is None
        assert it.account.may_be_sent(used)
        assert (await it.token()) is used
