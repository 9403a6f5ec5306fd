"""From trouble to the desk and back: the strict table on a real socket, time on a fake clock."""

import json
from pathlib import Path
from typing import Any

import pytest

from proxy.rules.incidents import (
    Unseen,
    incident_id,
)
from proxy.simulator import Fault
from tests.kit.desk import HOLD, Sight, a_table, desk_settings, telling, trouble
from tests.kit.listener import HOST
from tests.kit.upstream import RawUpstream, RecordedRequest, Reply, free_port

SCOPE = incident_id("id-of-london", "scope_missing")


async def test_trouble_is_opened_once_updated_and_closed(tmp_path: Path) -> None:
    sight = Sight({HOLD: trouble()})
    async with a_table() as (simulator, url), telling(desk_settings(url, tmp_path), sight) as now:
        desk = simulator.service_desk
        await now.until(lambda: len(desk.rows) == 1)
        (row,) = desk.rows
        assert row["short_description"] == "london: on hold, the API refuses requests"
        assert (row["correlation_id"], row["active"]) == (HOLD, "true")
        sight.sightings = {HOLD: trouble(mark="news")}
        await now.until(lambda: "work_notes" in desk.rows[0])
        assert desk.rows[0]["work_notes"] == "detail news"
        sight.sightings = {HOLD: Unseen.CLEAR}
        await now.until(lambda: desk.rows[0]["active"] == "false")
        (row,) = desk.rows
    assert (row["state"], row["close_code"]) == ("7", "Resolved by caller")
    assert row["close_notes"].startswith("The hold is over. It was over at 20")
    assert [now.count("hold", one) for one in ("opened", "updated", "closed")] == [1, 1, 1]


async def test_trouble_that_comes_again_is_another_incident(tmp_path: Path) -> None:
    sight = Sight({HOLD: trouble()})
    async with a_table() as (simulator, url), telling(desk_settings(url, tmp_path), sight) as now:
        desk = simulator.service_desk
        await now.until(lambda: len(desk.rows) == 1)
        sight.sightings = {HOLD: Unseen.CLEAR}
        await now.until(lambda: desk.rows[0]["active"] == "false")
        sight.sightings = {HOLD: trouble()}
        await now.until(lambda: len(desk.rows) == 2)
        assert [row["active"] for row in desk.rows] == ["false", "true"]


async def test_where_incidents_are_resolved_the_next_one_is_another(tmp_path: Path) -> None:
    """A resolved row stays active."""
    sight = Sight({HOLD: trouble()})
    async with a_table() as (simulator, url):
        settings = desk_settings(url, tmp_path, close={"state": "6", "close_code": "ours"})
        async with telling(settings, sight) as now:
            desk = simulator.service_desk
            await now.until(lambda: len(desk.rows) == 1)
            sight.sightings = {HOLD: Unseen.CLEAR}
            await now.until(lambda: desk.rows[0]["state"] == "6")
            assert (desk.rows[0]["active"], desk.rows[0]["close_code"]) == ("true", "ours")
            sight.sightings = {HOLD: trouble()}
            await now.until(lambda: len(desk.rows) == 2)


async def test_a_look_up_that_answers_404_has_found_none(tmp_path: Path) -> None:
    sight = Sight({HOLD: trouble()})
    async with a_table() as (simulator, url):
        simulator.service_desk.faults.extend([Fault(status=404, body='{"error": {}}')] * 2)
        async with telling(desk_settings(url, tmp_path), sight) as now:
            await now.until(lambda: len(simulator.service_desk.rows) == 1)
            assert now.count("hold", "failed") == 0


async def test_news_that_comes_often_is_told_once_a_minute(tmp_path: Path) -> None:
    sight = Sight({HOLD: trouble(mark=0)})
    async with a_table() as (simulator, url), telling(desk_settings(url, tmp_path), sight) as now:
        desk = simulator.service_desk
        await now.until(lambda: len(desk.rows) == 1)
        for mark in range(1, 50):
            sight.sightings = {HOLD: trouble(mark=mark)}
            await now.settle(1)
        assert [call.method for call in desk.calls].count("PATCH") <= 1
        await now.until(lambda: desk.rows[0].get("work_notes") == "detail 49")
        assert [call.method for call in desk.calls].count("PATCH") <= 2


async def test_after_a_restart_what_is_open_is_gone_on_with_and_closed(tmp_path: Path) -> None:
    """Also what nobody sees again: it is closed when it could have been seen."""
    missing = trouble("scope_missing", scopes=frozenset({"b:c", "a:b"}))
    async with a_table() as (simulator, url):
        settings, desk = desk_settings(url, tmp_path), simulator.service_desk
        async with telling(settings, Sight({HOLD: trouble(), SCOPE: missing})) as now:
            await now.until(lambda: len(desk.rows) == 2)
        sight = Sight({HOLD: Unseen.UNKNOWN, SCOPE: Unseen.UNKNOWN})
        async with telling(settings, sight) as now:
            await now.until(lambda: now.count("hold", "adopted") == 1)
            assert sight.awaited == {HOLD: frozenset(), SCOPE: frozenset({"a:b", "b:c"})}
            sight.sightings = {HOLD: Unseen.UNKNOWN, SCOPE: Unseen.CLEAR}
            await now.until(lambda: [row["active"] for row in desk.rows].count("false") == 1)
            await now.settle(600)
            assert [row["active"] for row in desk.rows].count("true") == 1
            await now.until(lambda: [row["active"] for row in desk.rows] == ["false"] * 2, step=30)
        assert len(desk.rows) == 2
        (held,) = [row for row in desk.rows if row["correlation_id"] == HOLD]
        assert held["close_notes"].startswith("Not seen again")


async def test_a_restart_while_trouble_lasts_opens_no_other(tmp_path: Path) -> None:
    sight = Sight({HOLD: trouble()})
    async with a_table() as (simulator, url):
        settings = desk_settings(url, tmp_path)
        for _ in range(3):
            async with telling(settings, sight) as now:
                await now.until(
                    lambda: now.count("hold", "opened") + now.count("hold", "adopted") == 1
                )
                await now.settle(60)
        assert len(simulator.service_desk.rows) == 1


async def test_what_a_person_closed_stays_as_it_is(tmp_path: Path) -> None:
    sight = Sight({HOLD: trouble()})
    async with a_table() as (simulator, url), telling(desk_settings(url, tmp_path), sight) as now:
        desk = simulator.service_desk
        await now.until(lambda: len(desk.rows) == 1)
        by_hand = {"state": "7", "close_code": "User error", "close_notes": "by hand"}
        desk.table.change(desk.rows[0]["sys_id"], by_hand)
        sight.sightings = {HOLD: Unseen.CLEAR}
        await now.until(lambda: now.count("hold", "closed") == 1)
        assert desk.rows[0]["close_notes"] == "by hand"


FAULTS = {
    "throttled": Fault(status=429, headers={"Retry-After": "30"}),
    "unauthorized": Fault(status=401, body="{}"),
    "broken": Fault(status=500, body="oops"),
    "a page": Fault(status=200, body="<html>Log in</html>", content_type="text/html"),
    "no row": Fault(status=201, body='{"result": {}}'),
    "redirect": Fault(status=302, headers={"Location": "http://127.0.0.1:1/"}),
    "not json": Fault(status=200, body="[" * 100_000),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_a_desk_in_trouble_is_told_again_later(fault: Fault, tmp_path: Path) -> None:
    """Each call is counted, and none comes before the desk's own time or the pause is over."""
    sight = Sight({HOLD: trouble()})
    async with a_table() as (simulator, url):
        desk = simulator.service_desk
        desk.faults.extend([fault] * 3)
        async with telling(desk_settings(url, tmp_path), sight) as now:
            await now.until(lambda: len(desk.rows) == 1)
            took = now.clock.monotonic()
            failed = sum(now.count(kind, "failed") for kind in ("none", "hold"))
    assert len(desk.rows) == 1
    assert failed == 3
    assert took >= (90 if fault.status == 429 else 3)


async def test_an_answer_that_was_lost_opens_no_second_incident(tmp_path: Path) -> None:
    """The row was made, the answer was a page: the next look-up finds it."""
    sight = Sight({HOLD: trouble()})
    async with a_table() as (simulator, url):
        desk = simulator.service_desk
        fine = Fault(status=200, body='{"result": []}')
        lost = Fault(status=502, body="", is_applied=True)
        desk.faults.extend([fine, fine, lost])
        async with telling(desk_settings(url, tmp_path), sight) as now:
            await now.until(lambda: now.count("hold", "adopted") == 1)
            await now.settle(60)
    assert len(desk.rows) == 1
    assert now.count("hold", "opened") == 0


async def test_a_row_that_the_desk_refuses_is_given_up_after_ten_times(tmp_path: Path) -> None:
    """While the trouble lasts it is tried again from the begin, as somebody may repair the desk."""
    sight = Sight({HOLD: trouble()})
    async with a_table() as (simulator, url):
        settings = desk_settings(url, tmp_path, fields={"u_unknown": "{account}"})
        async with telling(settings, sight) as now:
            await now.until(lambda: now.count("hold", "dropped") >= 1, step=600)
            assert now.count("hold", "failed") >= 10
            assert now.clock.monotonic() > 3600
    assert simulator.service_desk.rows == []


async def test_a_refused_incident_delays_no_other(tmp_path: Path) -> None:
    def judge(request: RecordedRequest) -> Reply:
        return Reply(400 if json.loads(request.body)["correlation_id"] == HOLD else 200)

    sight = Sight({HOLD: trouble(), SCOPE: trouble("scope_missing")})
    async with RawUpstream(judge) as receiver:
        settings = desk_settings(f"{receiver.url}/", tmp_path, format="flat")
        async with telling(settings, sight) as now:
            await now.until(lambda: now.count("scope_missing", "opened") == 1, step=0.01)
            assert now.clock.monotonic() < 30
            assert now.count("hold", "opened") == 0


async def test_new_credentials_are_read_without_a_restart(tmp_path: Path) -> None:
    sight = Sight({HOLD: trouble()})
    async with a_table() as (simulator, url):
        settings = desk_settings(url, tmp_path)
        right = settings.credentials_file.read_text()
        settings.credentials_file.write_text('{"username": "proxy", "password": "another"}')
        async with telling(settings, sight) as now:
            await now.until(lambda: now.count("none", "failed") >= 1)
            settings.credentials_file.write_text(right)
            await now.until(lambda: len(simulator.service_desk.rows) == 1, step=10)


# The flat format


def told(receiver: RawUpstream) -> list[tuple[str, str]]:
    documents = [json.loads(request.body) for request in receiver.requests]
    return [(one["event"], one["correlation_id"]) for one in documents]


async def test_the_flat_format_is_one_post_per_begin_and_end(tmp_path: Path) -> None:
    sight = Sight({HOLD: trouble()})
    async with RawUpstream() as receiver:
        settings = desk_settings(f"{receiver.url}/hook?a=1", tmp_path, format="flat")
        async with telling(settings, sight) as now:
            await now.until(lambda: len(receiver.requests) == 1)
            sight.sightings = {HOLD: trouble(mark="news")}
            await now.settle(120)
            sight.sightings = {HOLD: Unseen.CLEAR}
            await now.until(lambda: len(receiver.requests) == 2)
    assert told(receiver) == [("begin", HOLD), ("end", HOLD)]
    assert {request.target for request in receiver.requests} == {b"/hook?a=1"}
    begin: dict[str, Any] = json.loads(receiver.requests[0].body)
    assert (begin["account"], begin["kind"]) == ("london", "hold")
    assert not any(isinstance(value, dict | list) for value in begin.values())


async def test_a_receiver_that_is_down_for_an_hour_misses_nothing(tmp_path: Path) -> None:
    """Nor is anything told twice, or in another order."""
    sight = Sight()
    port = free_port()
    settings = desk_settings(f"http://{HOST}:{port}/", tmp_path, format="flat")
    async with telling(settings, sight) as now:
        for _ in range(20):
            sight.sightings = {HOLD: trouble()}
            await now.settle(80)
            sight.sightings = {HOLD: Unseen.CLEAR}
            await now.settle(80)
        assert now.count("hold", "dropped") == 0
        async with RawUpstream(port=port) as receiver:
            await now.until(lambda: len(receiver.requests) == 40, step=20)
            await now.settle(60)
    assert told(receiver) == [("begin", HOLD), ("end", HOLD)] * 20


async def test_what_was_over_for_more_than_an_hour_is_given_up_and_counted(
    tmp_path: Path,
) -> None:
    """Trouble that is still there is told, however long the receiver was down."""
    sight = Sight()
    port = free_port()
    settings = desk_settings(f"http://{HOST}:{port}/", tmp_path, format="flat")
    other = incident_id("id-of-london", "unreachable")
    async with telling(settings, sight) as now:
        sight.sightings = {HOLD: trouble(), other: trouble("unreachable")}
        await now.settle(60)
        sight.sightings = {HOLD: Unseen.CLEAR, other: trouble("unreachable")}
        await now.settle(60)
        await now.until(lambda: now.count("hold", "dropped") == 1, step=300)
        async with RawUpstream(port=port) as receiver:
            await now.until(lambda: len(receiver.requests) == 1, step=20)
            await now.settle(60)
    assert told(receiver) == [("begin", other)]


async def test_a_refusal_of_the_receiver_is_told_again(tmp_path: Path) -> None:
    sight = Sight({HOLD: trouble()})
    async with RawUpstream([Reply(503, [("Retry-After", "60")])]) as receiver:
        settings = desk_settings(f"{receiver.url}/", tmp_path, format="flat")
        async with telling(settings, sight) as now:
            await now.until(lambda: len(receiver.requests) == 2)
            assert now.clock.monotonic() >= 60
    assert told(receiver) == [("begin", HOLD)] * 2


async def test_what_comes_after_a_postponed_begin_waits_for_it(tmp_path: Path) -> None:
    """Begin and end of one incident come in their order, also where the first begin was refused."""
    sight = Sight({HOLD: trouble()})
    async with RawUpstream([Reply(400)]) as receiver:
        settings = desk_settings(f"{receiver.url}/", tmp_path, format="flat")
        async with telling(settings, sight) as now:
            await now.until(lambda: now.count("hold", "failed") == 1, step=0.1)
            sight.sightings = {HOLD: Unseen.CLEAR}
            await now.settle(3)
            sight.sightings = {HOLD: trouble()}
            await now.until(lambda: len(receiver.requests) == 4)
            await now.settle(60)
    assert [event for event, _ in told(receiver)] == ["begin", "begin", "end", "begin"]
