"""What is said of an account, and how grave it is."""

from dataclasses import replace

import pytest

from proxy.rules.advice import Note, level_of, notes_on, notes_on_connections
from proxy.rules.state import (
    AccountState,
    PauseState,
    QueueState,
    Refusal,
    SlowdownState,
    TokenState,
)

NOW = 1_800_000_000.0
GOOD = TokenState(
    expires_in=100.0,
    scopes=("a",),
    missing=(),
    next_refresh_in=50.0,
    issued_at=NOW,
    rejected=False,
)
IDLE = AccountState(
    name="london",
    routes=(QueueState(name="exports", queue_depth=0, oldest_seconds=0.0, interval=0.5),),
    in_flight=1,
    hold_remaining_seconds=0.0,
    token=GOOD,
)
WAITING = (QueueState(name="exports", queue_depth=1, oldest_seconds=2.0, interval=0.5),)


SLOWED = SlowdownState(since=NOW, remaining_seconds=90.0, interval=5.0)


def refused(ago: float) -> tuple[Refusal, ...]:
    return (Refusal(at=NOW - ago, type="urn:export-proxy:queue-full", detail="Full."),)


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (IDLE, []),
        (replace(IDLE, token=None), []),
        (replace(IDLE, routes=()), []),
        (replace(IDLE, routes=WAITING), [("busy", "waiting")]),
        (replace(IDLE, hold_remaining_seconds=0.1), [("trouble", "on hold")]),
        (
            replace(IDLE, paused=PauseState(since=NOW, remaining_seconds=None)),
            [("trouble", "paused")],
        ),
        (replace(IDLE, slowed=SLOWED), [("attention", "slowed down")]),
        (replace(IDLE, observed=True), [("attention", "observed only")]),
        (
            replace(IDLE, observed=True, hold_remaining_seconds=5.0, hold_named_seconds=5.0),
            [("attention", "observed only")],
        ),
        (replace(IDLE, refusals=refused(59.0)), [("attention", "callers refused")]),
        (replace(IDLE, refusals=refused(60.0)), []),
        (replace(IDLE, token=replace(GOOD, missing=("b",))), [("trouble", "scope missing")]),
        (replace(IDLE, token=replace(GOOD, expires_in=None)), [("trouble", "no token")]),
        (
            replace(IDLE, token=replace(GOOD, expires_in=None, rejected=True)),
            [("trouble", "credentials rejected")],
        ),
        (
            replace(
                IDLE,
                routes=WAITING,
                hold_remaining_seconds=3.0,
                refusals=refused(1.0),
                token=replace(GOOD, missing=("b", "c")),
            ),
            [
                ("trouble", "scope missing"),
                ("trouble", "on hold"),
                ("attention", "callers refused"),
                ("busy", "waiting"),
            ],
        ),
    ],
)
def test_what_is_said_the_gravest_first(state: AccountState, said: list[tuple[str, str]]) -> None:
    notes = notes_on(state, NOW)
    assert [(note.level, note.title) for note in notes] == said
    assert level_of(notes) == (said[0][0] if said else "ok")
    assert all(note.advice.endswith(".") for note in notes)


def test_what_becomes_of_requests_in_a_hold_is_true() -> None:
    """It says that callers are refused only while they are, and never that all is at the pace."""
    held = replace(IDLE, routes=WAITING, hold_remaining_seconds=40.0, hold_named_seconds=40.0)
    hold, waiting = notes_on(held, NOW)
    assert "No action is needed now." in hold.advice
    assert "then one request goes first" in hold.advice
    assert waiting.advice == "Requests wait until the hold ends."
    hold, _, _ = notes_on(replace(held, refusals=refused(1.0)), NOW)
    assert "are refused, and told when to come back" in hold.advice
    assert "No action" not in hold.advice


def test_a_wait_longer_than_the_longest_hold_is_said_to_be_probed() -> None:
    held = replace(IDLE, hold_remaining_seconds=300.0, hold_named_seconds=86_400.0)
    (hold,) = notes_on(held, NOW)
    assert "one request now and then tests" in hold.advice
    assert "nothing until the hold ends" not in hold.advice


def test_requests_on_another_route_than_the_held_one_wait_at_the_pace() -> None:
    (route,) = WAITING
    held = replace(route, name="held", hold_remaining_seconds=9.0, hold_named_seconds=9.0)
    other = replace(IDLE, routes=(route, replace(held, queue_depth=0)))
    assert notes_on(other, NOW)[-1].advice.startswith("Requests wait for their slot")
    assert notes_on(replace(IDLE, routes=(held,)), NOW)[-1].advice.startswith("Requests wait until")


def test_held_route_and_the_limit_that_holds_it_are_named() -> None:
    (route,) = WAITING
    held = replace(route, queue_depth=0, hold_named_seconds=9.0, hold_limit="flow.rate")
    (note,) = notes_on(replace(IDLE, routes=(held,)), NOW)
    assert (note.level, note.title) == ("trouble", f"{route.name} on hold")
    assert "(limit flow.rate)" in note.advice


def test_the_missing_scopes_are_named() -> None:
    (note,) = notes_on(replace(IDLE, token=replace(GOOD, missing=("b", "c"))), NOW)
    assert note.advice.startswith("Grant b, c to the client's role")


def test_a_pause_says_since_when_and_how_it_ends() -> None:
    paused = replace(IDLE, paused=PauseState(since=NOW, remaining_seconds=None))
    assert notes_on(paused, NOW)[0].advice == (
        "An operator paused this account at 2027-01-15 08:00:00 UTC. Nothing is sent until it is"
        " resumed. `export-proxy resume london` ends the pause."
    )
    paused = replace(IDLE, paused=PauseState(since=NOW, remaining_seconds=90.0))
    assert "Nothing is sent for another 90.0 s." in notes_on(paused, NOW)[0].advice
    assert notes_on(replace(IDLE, slowed=SLOWED), NOW)[0].advice == (
        "An operator ordered an interval of 5 s at 2027-01-15 08:00:00 UTC, for another 90.0 s."
    )


def test_connections_that_were_refused_are_counted_by_their_reason() -> None:
    assert notes_on_connections({}) == ()
    assert notes_on_connections({"limit": 1_200, "descriptor": 1}) == (
        Note(
            "attention",
            "connections refused",
            "1,200 in the last minute: as many are open as limits.max_connections or the"
            " descriptor limit allows.",
        ),
        Note(
            "attention",
            "connections refused",
            "1 in the last minute: almost no file descriptor is free. Raise the process's limit of"
            " open files.",
        ),
    )


def test_an_observed_account_on_hold_is_said_to_send_nevertheless() -> None:
    observed = replace(IDLE, observed=True, hold_named_seconds=0.5)
    assert notes_on(observed, NOW)[0].advice == (
        "Requests are neither paced nor held: the API asked for a hold, and the proxy sends"
        " requests nevertheless. The metrics would_wait_seconds and would_refuse_total show what"
        " would have happened. To keep the pace, set pacing.mode (or the account's mode) to"
        " enforce, and reload."
    )


def test_an_observed_account_without_a_hold_is_only_said_to_be_unpaced() -> None:
    (note,) = notes_on(replace(IDLE, observed=True), NOW)
    assert note.advice.startswith("Requests are neither paced nor held. The metrics")


def test_a_hold_of_less_than_a_second_is_one_that_requests_wait_for() -> None:
    (route,) = WAITING
    account = replace(IDLE, routes=WAITING, hold_remaining_seconds=0.5)
    assert notes_on(account, NOW)[-1].advice == "Requests wait until the hold ends."
    held = replace(route, hold_remaining_seconds=0.5)
    assert notes_on(replace(IDLE, routes=(held,)), NOW)[-1].advice.startswith("Requests wait until")


@pytest.mark.parametrize(("named", "is_probed"), [(41.0, False), (41.5, True)])
def test_a_hold_is_probed_if_the_api_named_over_a_second_more(
    named: float, *, is_probed: bool
) -> None:
    held = replace(IDLE, hold_remaining_seconds=40.0, hold_named_seconds=named)
    (note,) = notes_on(held, NOW)
    assert ("one request now and then tests" in note.advice) == is_probed


@pytest.mark.parametrize(
    "refusal",
    [
        Refusal(at=NOW - 60.0, type="urn:export-proxy:queue-full", detail="Full."),
        Refusal(at=NOW - 1.0, type="urn:export-proxy:missing-scope", detail="No scope."),
    ],
    ids=["a minute ago", "for another reason"],
)
def test_other_refusals_are_not_blamed_on_the_hold(refusal: Refusal) -> None:
    held = replace(IDLE, hold_remaining_seconds=40.0, refusals=(refusal,))
    assert "No action is needed now." in notes_on(held, NOW)[0].advice


def test_a_hold_without_a_known_limit_names_none() -> None:
    held = replace(IDLE, hold_remaining_seconds=40.0, hold_named_seconds=40.0)
    assert notes_on(held, NOW)[0].advice == (
        "The API refused this account, or announced that its limit is reached. The proxy sends"
        " nothing until the hold ends; then one request goes first. No action is needed now. If it"
        " recurs, find out who else uses this account's quota."
    )


def test_the_limit_that_holds_an_account_is_named() -> None:
    held = replace(IDLE, hold_remaining_seconds=40.0, hold_limit="client.rate")
    assert "its limit is reached (limit client.rate)." in notes_on(held, NOW)[0].advice


def test_a_route_on_hold_for_less_than_a_second_is_named() -> None:
    (route,) = WAITING
    held = replace(route, queue_depth=0, hold_named_seconds=0.5)
    assert notes_on(replace(IDLE, routes=(held,)), NOW)[0].advice == (
        "The API answered 429 on this route and named a wait. Its callers are told when to come"
        " back; other routes go on."
    )
